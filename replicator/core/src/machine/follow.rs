//! Following: a Secondary cuts what the Primary does not have, promises its epoch, takes its frames in order, and
//! acknowledges what it holds.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;

use super::Machine;
use super::apply::give_back;
use super::greet::Place;
use super::peer::LinkState;
use super::role::RoleState;
use crate::command::{Command, Report};
use crate::disk::superblock::{Cut, LogPoint, Record};
use crate::frame::{self, EntryKind, FrameHeader};
use crate::history::{History, Reign};
use crate::units::{Buffer, LinkId, Sequence};
use crate::wire::envelope::{Envelope, MessageKind};
use crate::wire::message::{Ack, Resync, Start};

impl Machine {
    pub(super) fn on_start(
        &mut self,
        index: usize,
        envelope: &Envelope,
        start: Start,
        resync: Option<Resync>,
    ) {
        let place = Place::Peer(index);
        if self.link_mut(place).state != LinkState::Awaiting {
            self.close(place, "a stream began out of order", true);
            return;
        }
        if !matches!(self.role, RoleState::Secondary) {
            self.close(place, "this node changes its own role just now", true);
            return;
        }
        let theirs = self.link_mut(place).hello.as_ref().map_or(0, |hello| hello.volume_bytes);
        if let Err(reason) = self.check_room(theirs) {
            return self.refuse(place, reason);
        }
        let (saved, last) = (self.meta.saved, self.log.last());
        let record = start.record;
        let promised = self.meta.current.promised;
        if record.epoch < promised {
            let reason =
                format!("epoch {} is over: this replica has promised epoch {promised}", record.epoch);
            self.refuse(place, reason);
        } else if record.epoch == saved.record.epoch && record.reign != saved.record.reign {
            self.refuse(place, format!("split brain: epoch {} was opened twice", record.epoch));
        } else if start.common > last
            || envelope.epoch != record.epoch
            || record.order() < self.meta.current.record.order()
        {
            self.close(place, "the start of the stream does not fit this log", true);
        } else if start.common < self.stable.min(last) {
            // Nothing below the stable mark is ever cut. What both said at the hello was judged there; this log has
            // moved on since, following somebody else.
            self.close(place, "this log moved on since the hello", true);
        } else {
            // From here on no older stream moves this log, so that what is checked stays so.
            self.promise(record.epoch, Some(index));
            let link = self.link_mut(place);
            link.acks_received = start.acks_received;
            link.plan = resync.map(Box::new);
            link.become_state(LinkState::Cutting { common: start.common, record, saved: None });
        }
    }

    /// Cuts the log when nothing is under way, stores the promise and the cut, and only then acknowledges.
    pub(super) fn advance_cut(&mut self, index: usize) {
        let place = Place::Peer(index);
        let LinkState::Cutting { common, record, saved } = self.link_mut(place).state else { return };
        if let Some(saved) = saved {
            if self.meta.is_saved(saved) {
                self.leave_cut(index);
            }
            return;
        }
        // What stays is made durable first: it may lie where an older cut's remains lay.
        let busy = self.log.has_unwritten() || self.log.has_undurable() || self.apply.is_loading();
        // A Primary that stepped down may still be sending what it is about to cut.
        let sending = self.log.is_held_beyond(common);
        if busy || sending || self.persist.is_syncing() || self.is_failed() {
            self.persist.want_sync(self.log.last());
            return;
        }
        if !self.cut_log(common) {
            let reason = format!("no frame of this log ends at entry {common}: it needs a full verification");
            self.refuse(place, reason);
            return;
        }
        assert!(self.meta.current.promised == record.epoch, "a later promise closes this link");
        let link = self.link_mut(place);
        let (volatile_acks, jumps) =
            (link.acks_received, link.plan.as_ref().is_some_and(|p| p.jump.is_some()));
        if jumps {
            // The source's journal begins behind this entry, so that all of it is stable.
            self.stable = self.stable.max(common);
            self.committed = self.committed.max(common);
        }
        self.replace_record(record);
        self.meta.current.volatile_acks = volatile_acks;
        let saved = Some(self.meta.change());
        self.link_mut(place).become_state(LinkState::Cutting { common, record, saved });
    }

    /// The cut is saved: the stream is followed, or the log begins anew.
    fn leave_cut(&mut self, index: usize) {
        let link = self.link_mut(Place::Peer(index));
        if link.plan.as_ref().is_some_and(|plan| plan.jump.is_some()) {
            link.become_state(LinkState::Draining { is_syncing: false });
            self.drain(index);
        } else {
            self.begin_following(index);
        }
    }

    pub(super) fn begin_following(&mut self, index: usize) {
        let link = self.link_mut(Place::Peer(index));
        link.become_state(LinkState::Following);
        // What was gathered before is being put in place by now.
        if link.plan.is_some() && self.intake.is_none() {
            self.begin_intake(index);
            self.tell_diverged(index);
        }
        self.send_ack(index);
    }

    fn cut_log(&mut self, common: Sequence) -> bool {
        let was = self.log.head.position;
        assert!(common >= self.persist.durable_mark(&self.log).min(was.sequence), "nothing stable is cut");
        let Self { log, pool, apply, .. } = self;
        if !log.truncate(common, |buffer| give_back(pool, apply, buffer)) {
            return false;
        }
        self.persist.history.truncate(common);
        self.grow.cut(common);
        self.persist.limit_wish(common);
        let number = self.log.next_number();
        self.delay.cut(number);
        self.released = self.released.min(number);
        let reach = self.meta.current.apply_reach.map(|reach| reach.min(common));
        self.meta.current.apply_reach = reach;
        self.meta.current.durable = self.meta.current.durable.min(common);
        self.recovered_end = self.recovered_end.min(common);
        self.committed = self.committed.min(common);
        if was.sequence > common {
            let count = self.meta.current.cut.count + 1;
            self.meta.current.cut = Cut { count, first: common.next() };
            self.report(Report::Cut { common: self.log.head.position, was });
        }
        true
    }

    /// Takes over what the Primary knows, as far as this log reaches.
    pub(super) fn learn(&mut self, envelope: &Envelope) {
        let last = self.log.last();
        self.committed = self.committed.max(envelope.committed.min(last));
        self.stable = self.stable.max(envelope.stable.min(self.committed));
        if !self.meta.current.proven && self.log.journaled() >= envelope.committed {
            self.meta.current.proven = true;
            self.meta.change();
        }
    }

    pub(super) fn is_of_session(&self, index: usize, envelope: &Envelope) -> bool {
        let record = &self.meta.saved.record;
        let link = self.peers[index].link.as_ref().expect("the caller looked");
        matches!(link.state, LinkState::Following | LinkState::Staging { .. })
            && envelope.session == link.peer_session
            && envelope.epoch == record.epoch
            && envelope.reign == record.reign
            && envelope.epoch >= self.meta.current.promised
    }

    pub(super) fn on_mark(&mut self, index: usize, envelope: &Envelope) {
        if !self.is_of_session(index, envelope) {
            return;
        }
        self.learn(envelope);
        if envelope.sync {
            self.persist.want_sync(self.log.last());
        }
    }

    /// The envelope of a frame is here, the frame is not. Memory and ring may be full of frames that only wait to hear
    /// that they are stable, and this envelope says so.
    pub(super) fn on_frame_announced(&mut self, id: LinkId, envelope: &Envelope) {
        let now = self.now;
        let Some(Place::Peer(index)) = self.find_link(id) else { return };
        self.link_mut(Place::Peer(index)).heard_at = now;
        if self.is_of_session(index, envelope) {
            self.learn(envelope);
        }
    }

    pub(super) fn on_frame(&mut self, id: LinkId, envelope: Envelope, buffer: Buffer, arena: &mut [u8]) {
        let now = self.now;
        let place = self.find_link(id);
        if let Some(place) = place {
            self.link_mut(place).heard_at = now;
        }
        match place {
            Some(Place::Peer(index)) if self.is_switching(index) => {
                self.parked.push_back((id, envelope, buffer));
            }
            Some(Place::Peer(index)) if self.is_of_session(index, &envelope) && !self.is_failed() => {
                self.learn(&envelope);
                if envelope.kind == MessageKind::Blocks {
                    self.accept_blocks(index, &envelope, buffer, arena);
                } else {
                    self.accept(index, envelope, buffer, arena);
                }
            }
            Some(place) => {
                // What is fenced off is not even read. A sender that goes on under an old epoch is told.
                self.pool.give(buffer);
                if self.link_mut(place).state == LinkState::Following {
                    self.close(place, "frames of a session or an epoch that is over", true);
                }
            }
            None => self.pool.give(buffer),
        }
    }

    fn accept(&mut self, index: usize, envelope: Envelope, buffer: Buffer, arena: &mut [u8]) {
        if let LinkState::Staging { .. } = self.link_mut(Place::Peer(index)).state {
            return self.accept_staged(index, &envelope, buffer, arena);
        }
        let (head, history) = (self.log.head, self.persist.history);
        match self.check_frame(&envelope, buffer, arena, head, &history) {
            Err(reason) => {
                self.pool.give(buffer);
                self.close(Place::Peer(index), &reason, true);
            }
            Ok(header) => {
                if self.ring_place(u64::from(header.total_bytes), false).is_none() {
                    let id = self.link_mut(Place::Peer(index)).id;
                    self.parked.push_back((id, envelope, buffer));
                    return;
                }
                self.take_frame(&envelope, &header, buffer, arena);
            }
        }
    }

    fn take_frame(&mut self, envelope: &Envelope, header: &FrameHeader, buffer: Buffer, arena: &mut [u8]) {
        let block = &arena[buffer.span().range()];
        let first = frame::entries(block, header).next();
        if let Some(Ok(entry)) =
            first.filter(|entry| entry.is_ok_and(|entry| entry.kind == EntryKind::EpochStart))
        {
            assert!(entry.kind == EntryKind::EpochStart);
            self.meta.current.reign_ms = header.closed_ms;
            self.persist.history.push(Reign {
                epoch: header.epoch,
                reign: header.reign,
                first: header.first,
                chain_before: header.chain_before,
            });
        }
        if let Some(bytes) = frame::size_after(block, header) {
            let bytes = bytes.max(self.volume_bytes());
            self.grow.note(header.first, bytes);
        }
        self.write_frame(header, buffer, true, arena);
        self.learn(envelope);
        if envelope.sync {
            self.persist.want_sync(header.last());
        }
    }

    /// Everything a frame must be before it enters the log that ends at `head`.
    pub(super) fn check_frame(
        &self,
        envelope: &Envelope,
        buffer: Buffer,
        arena: &[u8],
        head: LogPoint,
        history: &History,
    ) -> Result<FrameHeader, alloc::string::String> {
        let bytes = &arena[buffer.span().range()];
        let header = frame::decode(bytes).map_err(|error| format!("a damaged frame: {error}"))?;
        if header.total_bytes != envelope.body_bytes || buffer.len_bytes() != header.total_bytes as usize {
            return Err("a frame whose length is not what its envelope says".to_string());
        }
        if header.volume != self.config.volume || header.entries == 0 || header.epoch > envelope.epoch {
            return Err("a frame that does not belong here".to_string());
        }
        let last = head.position.sequence;
        if header.first != last.next() || header.chain_before != head.chain {
            return Err(format!("frame {} does not follow entry {last}", header.first));
        }
        let before = head.position.epoch;
        frame::check_for_log(bytes, &header, before, self.incoming_bytes())
            .map_err(|error| format!("a frame that does not fit the log: {error}"))?;
        if let Some(bytes) = frame::size_after(bytes, &header) {
            self.check_room(bytes)?;
        }
        let newest = history.newest().map(|reign| reign.reign);
        if header.epoch == before && newest.is_some_and(|reign| reign != header.reign) {
            return Err("a frame of another reign of the same epoch".to_string());
        }
        frame::check_payloads(bytes, &header).map_err(|error| format!("a damaged frame: {error}"))?;
        Ok(header)
    }

    /// Takes the frames that found no room in the ring before.
    pub(super) fn unpark(&mut self, arena: &mut [u8]) {
        while let Some((id, envelope, buffer)) = self.parked.front().copied() {
            if matches!(self.find_link(id), Some(Place::Peer(index)) if self.is_switching(index)) {
                return;
            }
            if envelope.kind == MessageKind::Frame {
                let header = frame::decode_trusted(&arena[buffer.span().range()]);
                if self.ring_place(u64::from(header.total_bytes), false).is_none() {
                    return;
                }
            }
            self.parked.pop_front();
            self.on_frame(id, envelope, buffer, arena);
        }
    }

    fn my_ack(&self) -> Ack {
        Ack {
            received: self.log.last(),
            journaled: self.log.journaled(),
            durable: self.log.durable(),
            applied: self.log.applied.position.sequence,
        }
    }

    pub(super) fn send_ack_if_due(&mut self, index: usize) {
        let ack = self.my_ack();
        let link = self.link_mut(Place::Peer(index));
        let old = link.acked;
        let news = ack.journaled != old.journaled
            || ack.durable != old.durable
            || (link.acks_received && ack.received != old.received);
        if news {
            self.send_ack(index);
        }
    }

    pub(super) fn send_ack(&mut self, index: usize) {
        let (ack, now) = (self.my_ack(), self.now);
        let saved = &self.meta.saved;
        assert!(
            saved.promised == self.meta.current.promised || self.role.is_sealing(),
            "a promise is stored first"
        );
        assert!(saved.record.epoch >= saved.promised, "acknowledgements serve the promised epoch");
        let link = self.link_mut(Place::Peer(index));
        link.acked = ack;
        link.said_at = now;
        let (id, session) = (link.id, link.session);
        let envelope = self.envelope_of(session, MessageKind::Ack, false);
        self.push(Command::SendAck { link: id, envelope, ack });
    }

    pub(super) fn on_record(&mut self, index: usize, record: Record) {
        let saved = self.meta.current.record;
        let link = self.link_mut(Place::Peer(index));
        let follows = matches!(link.state, LinkState::Following | LinkState::Staging { .. });
        if follows
            && record.epoch == saved.epoch
            && record.reign == saved.reign
            && record.version > saved.version
        {
            self.meta.current.record = record;
            self.meta.change();
        }
    }
}
