//! Links and hellos: who is at the other end, what follows from what both hold, and when a link is given up.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};

use super::apply::give_back;
use super::peer::{Link, LinkState, Peer};
use super::replicas::Presence;
use super::source::buffer_of;
use super::{Io, Machine, index_of};
use crate::command::{Command, Report};
use crate::compare::{Verdict, verdict};
use crate::units::{LinkId, NodeId, Sequence, Token};
use crate::wire::envelope::{Envelope, MessageKind};
use crate::wire::message::{Ack, Hello, Message};

/// Where a link is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Peer(usize),
    Spare(usize),
}

impl Machine {
    pub(super) fn find_link(&self, id: LinkId) -> Option<Place> {
        let is = |link: &Link| link.id == id;
        let peer = self.peers.iter().position(|peer| peer.link.as_ref().is_some_and(is));
        peer.map(Place::Peer).or_else(|| self.spare_links.iter().position(is).map(Place::Spare))
    }

    pub(super) fn link_mut(&mut self, place: Place) -> &mut Link {
        match place {
            Place::Peer(index) => self.peers[index].link.as_mut().expect("found there"),
            Place::Spare(index) => &mut self.spare_links[index],
        }
    }

    pub(super) fn on_link_up(&mut self, id: LinkId, node: Option<NodeId>) {
        let mut link = Link::new(id, self.now);
        self.send_hello(&mut link, false);
        if self.discard.is_some() || self.is_branching() || self.replay.is_some() {
            // What the hello says is about to be no longer so.
            self.spare_links.push(link);
            let place = Place::Spare(self.spare_links.len() - 1);
            let reason = match self.replay {
                Some(_) => "blocks that were gathered are being put in place here",
                None => "the data here is being discarded, or a branch of it kept",
            };
            return self.close(place, reason, true);
        }
        let index = node.and_then(|node| self.peer_index(node));
        match index {
            Some(index) => self.adopt(index, link),
            None => self.spare_links.push(link),
        }
    }

    /// Where the peer is, if it takes part.
    pub(super) fn peer_index(&self, node: NodeId) -> Option<usize> {
        let is_it = |peer: &Peer| peer.config.node == node && peer.presence == Presence::Present;
        self.peers.iter().position(is_it)
    }

    /// Makes `link` the peer's; an older one ends first, with everything that came on it.
    fn adopt(&mut self, index: usize, link: Link) {
        if self.peers[index].streaming().is_some() {
            self.lose(index);
        }
        if let Some(old) = self.peers[index].link.take() {
            self.spare_links.push(old);
            let place = Place::Spare(self.spare_links.len() - 1);
            self.close(place, "replaced by a newer connection", true);
        }
        self.peers[index].link = Some(link);
    }

    /// Notes that the peer takes no stream from here.
    fn lose(&mut self, index: usize) {
        self.peers[index].lost_since = self.now;
        self.peers[index].tracker.end_stream();
    }

    fn send_hello(&mut self, link: &mut Link, wants_reply: bool) {
        let hello = Message::Hello(self.hello());
        let envelope = self.envelope_of(link.session, MessageKind::Hello, wants_reply);
        link.said_at = self.now;
        self.push(Command::Send { link: link.id, envelope, message: Box::new(hello) });
    }

    /// What this replica says of itself: only what its disks hold.
    pub(super) fn hello(&self) -> Hello {
        let saved = &self.meta.saved;
        let applied = self.log.applied.position.sequence;
        Hello {
            node: self.config.node,
            replica: saved.replica,
            // What is in a Primary's log comes with the stream; what is only in another one's may yet be cut.
            volume_bytes: if self.role.is_sequencing() { self.volume_bytes() } else { saved.volume_bytes },
            block_bytes: saved.block_bytes,
            primary: self.role.is_sequencing(),
            proven: saved.proven,
            suspect: self.meta.current.suspect,
            disk_state: self.meta.current.disk_state,
            promised: saved.promised,
            record: saved.record,
            head: self.log.head,
            tail: self.log.tail().position.sequence,
            stable: self.stable.min(self.log.last()).max(applied),
            durable: self.log.durable(),
            applied,
            data_base: saved.data_base.map(|base| base.sequence),
            discards: saved.discards,
            history: self.persist.history,
            yields: saved.yields,
            diverges: saved.diverges,
            discards_of: self.discards_of,
            delayed: self.config.apply_delay_ms > 0,
            end: self.log_end(),
        }
    }

    pub(super) fn envelope_of(&self, session: u64, kind: MessageKind, sync: bool) -> Envelope {
        Envelope {
            kind,
            sync,
            body_bytes: 0,
            body_crc: 0,
            incarnation: self.config.incarnation,
            volume: self.config.volume,
            session,
            epoch: self.meta.saved.record.epoch,
            reign: self.meta.saved.record.reign,
            committed: self.committed,
            stable: self.stable,
        }
    }

    pub(super) fn send(&mut self, place: Place, message: Message, sync: bool) {
        let now = self.now;
        let link = self.link_mut(place);
        link.said_at = now;
        let (id, session) = (link.id, link.session);
        let envelope = self.envelope_of(session, message.kind(), sync);
        self.push(match message {
            Message::Mark | Message::Ping => Command::SendBare { link: id, envelope },
            message => Command::Send { link: id, envelope, message: Box::new(message) },
        });
    }

    /// Says hello again on every link, since what the last hello said is no longer so.
    pub(super) fn greet_all(&mut self) {
        // Whose peer is not known yet was told, too, and would wait for what this node no longer is.
        for index in 0..self.spare_links.len() {
            self.close(Place::Spare(index), "this node's role changed since it said hello", true);
        }
        for index in 0..self.peers.len() {
            self.lose(index);
            self.greet(index, true);
        }
    }

    fn greet(&mut self, index: usize, wants_reply: bool) {
        let Some(mut link) = self.peers[index].link.take() else { return };
        if link.state != LinkState::Closing {
            self.peers[index].tracker.end_stream();
            self.reset_stream(&mut link);
            link.session += 1;
            link.become_state(LinkState::Greeting);
            self.send_hello(&mut link, wants_reply);
        }
        self.peers[index].link = Some(link);
    }

    /// Forgets the stream on a link: what was sent still goes out, what was acknowledged counts no more.
    fn reset_stream(&mut self, link: &mut Link) {
        link.ack = Ack::default();
        link.acked = Ack::default();
        (link.sync_asked, link.told, link.mark_due) = (Sequence(0), (Sequence(0), Sequence(0)), None);
        (link.place, link.plan) = (None, None);
        (link.lends, link.diverged) = (None, None);
        let held = link.resync.take().map(|source| source.held_buffers());
        held.into_iter().flatten().for_each(|buffer| self.pool.give(buffer));
        if let Some(mut chunk) = link.chunk.take() {
            chunk.stale = true;
            if chunk.reading || chunk.holds > 0 {
                link.chunk = Some(chunk);
            } else {
                self.pool.give(chunk.buffer);
            }
        }
        self.drop_parked(link.id);
    }

    fn end_source(&mut self, place: Place) {
        let held = self.link_mut(place).resync.take().map(|source| source.held_buffers());
        held.into_iter().flatten().for_each(|buffer| self.pool.give(buffer));
    }

    fn drop_parked(&mut self, id: LinkId) {
        let pool = &mut self.pool;
        self.parked.retain(|(link, _, buffer)| {
            if *link == id {
                pool.give(*buffer);
            }
            *link != id
        });
        self.drop_intake(id);
        self.drop_visits(id);
    }

    pub(super) fn close(&mut self, place: Place, reason: &str, retry: bool) {
        let link = self.link_mut(place);
        if link.state == LinkState::Closing {
            return;
        }
        let was = link.state;
        link.become_state(LinkState::Closing);
        let id = link.id;
        self.end_source(place);
        self.drop_parked(id);
        if let (Place::Peer(index), LinkState::Streaming) = (place, was) {
            self.lose(index);
        }
        self.push(Command::CloseLink { link: id, reason: reason.to_string(), retry });
    }

    /// Ends all connections, also those whose peer has not said hello yet: what it is told would no longer be so.
    pub(super) fn close_all(&mut self, reason: &str) {
        for index in 0..self.spare_links.len() {
            self.close(Place::Spare(index), reason, true);
        }
        for index in 0..self.peers.len() {
            if self.peers[index].link.is_some() {
                self.close(Place::Peer(index), reason, true);
            }
        }
    }

    /// Ends a link over something that only an operator can settle.
    pub(super) fn refuse(&mut self, place: Place, reason: impl Into<String>) {
        let reason = reason.into();
        self.send(place, Message::Refuse(reason.clone()), false);
        self.stand_alone(place, &reason);
    }

    fn stand_alone(&mut self, place: Place, reason: &str) {
        self.close(place, reason, false);
        if let Place::Peer(index) = place {
            let peer = &mut self.peers[index];
            let node = peer.config.node;
            if peer.standalone.as_deref() != Some(reason) {
                peer.standalone = Some(reason.to_string());
                self.report(Report::Peer { node, text: format!("StandAlone: {reason}") });
            }
        }
    }

    pub(super) fn on_message(&mut self, id: LinkId, envelope: &Envelope, body: &[u8]) {
        let Some(place) = self.find_link(id) else { return };
        let now = self.now;
        let link = self.link_mut(place);
        if link.state == LinkState::Closing {
            return;
        }
        link.heard_at = now;
        if envelope.volume != self.config.volume || envelope.incarnation != self.config.incarnation {
            let reason = "the peer speaks of another volume, or of another incarnation of the cluster";
            self.refuse(place, reason.to_string());
            return;
        }
        match Message::decode(envelope.kind, body) {
            Ok(Message::Hello(hello)) => self.on_hello(place, envelope, hello),
            Ok(message) => self.on_later_message(place, envelope, message),
            Err(error) => self.close(place, &format!("the peer sent a message that is none: {error}"), true),
        }
    }

    fn on_later_message(&mut self, place: Place, envelope: &Envelope, message: Message) {
        let link = self.link_mut(place);
        let Place::Peer(index) = place else {
            self.close(place, "the peer did not say hello first", true);
            return;
        };
        if link.state == LinkState::Greeting || envelope.session != link.peer_session {
            // Of a session that is over; a refusal counts all the same.
            if let Message::Refuse(reason) = message {
                self.stand_alone(place, &format!("the peer refuses: {reason}"));
            }
            return;
        }
        match message {
            Message::Start(start) => self.on_start(index, envelope, start, None),
            Message::Mark => self.on_mark(index, envelope),
            Message::Ack(ack) => {
                let record = &self.meta.saved.record;
                // An acknowledgement counts for the reign it was given to, and for no other.
                if envelope.epoch == record.epoch && envelope.reign == record.reign {
                    self.on_ack(index, ack);
                }
            }
            Message::Seal(seal) => self.on_seal(index, seal),
            Message::Sealed(sealed) => self.on_sealed(index, &sealed),
            Message::Record(record) => self.on_record(index, record),
            Message::Refuse(reason) => self.stand_alone(place, &format!("the peer refuses: {reason}")),
            Message::Resync(resync) => self.on_start(index, envelope, resync.start, Some(resync)),
            Message::Compare { word, bits } => self.on_compare(index, word, bits),
            Message::Hashes(hashes) => self.on_hashes(index, hashes),
            Message::Placed { written, durable, is_done } => {
                self.on_placed(index, written, durable, is_done);
            }
            Message::Finish => self.on_finish(index),
            Message::Staging => self.on_staging(index),
            Message::Check(check) => self.on_check(index, envelope, check),
            Message::Mend(mend) => self.on_mend(index, envelope, mend),
            Message::Fetch(fetch) => self.on_fetch(index, envelope, fetch),
            Message::Checked(checked) => self.on_checked(index, &checked),
            Message::Fetched(fetched) => self.on_fetched(index, fetched),
            Message::Ask { block } => self.on_ask(index, block),
            Message::Changed(changed) => self.on_changed(index, &changed),
            Message::Grow { bytes } => self.on_grow_asked(index, bytes),
            Message::Grown { bytes, reason } => {
                let node = self.peers[index].config.node;
                self.note_room(node, bytes, &reason);
            }
            Message::Ping => {}
            Message::Hello(_) => unreachable!("told apart by the caller"),
        }
    }

    fn on_hello(&mut self, place: Place, envelope: &Envelope, hello: Hello) {
        let Some(index) = self.peer_index(hello.node) else {
            self.refuse(place, format!("node id {} is no replica of this volume here", hello.node.0));
            return;
        };
        let place = match place {
            Place::Spare(spare) => {
                let link = self.spare_links.swap_remove(spare);
                self.adopt(index, link);
                Place::Peer(index)
            }
            Place::Peer(known) if known == index => place,
            Place::Peer(_) => {
                let reason = format!("another node answers at this address: it says it is {}", hello.node);
                self.refuse(place, reason);
                return;
            }
        };
        if envelope.sync {
            self.greet(index, false);
        }
        let link = self.link_mut(place);
        if link.state != LinkState::Greeting {
            self.close(place, "a hello came out of order", true);
            return;
        }
        link.peer_session = envelope.session;
        let is_primary = hello.primary;
        link.hello = Some(Box::new(hello));
        self.peers[index].seen_primary = is_primary.then_some(self.now);
        self.settle(index);
    }

    /// Acts on what both said.
    fn settle(&mut self, index: usize) {
        let place = Place::Peer(index);
        let mine = self.hello();
        let theirs = self.link_mut(place).hello.clone().expect("the caller stored it");
        let verdict = verdict(&self.config, &mine, &theirs);
        if !matches!(verdict, Verdict::Fork { .. } | Verdict::Refuse { .. }) {
            (self.peers[index].standalone, self.peers[index].fork) = (None, None);
        }
        if theirs.yields || theirs.diverges || !matches!(verdict, Verdict::Fork { .. }) {
            self.discards_of.take_if(|node| *node == theirs.node);
        }
        match verdict {
            Verdict::Idle | Verdict::AwaitStepDown => {
                self.link_mut(place).become_state(LinkState::Idle);
            }
            Verdict::Borrow => {
                self.forget_lent();
                self.link_mut(place).become_state(LinkState::Idle);
            }
            Verdict::Lend { common } => {
                let link = self.link_mut(place);
                link.become_state(LinkState::Idle);
                link.lends = Some(common);
            }
            Verdict::Source { common, needs_blocks } => {
                self.start_stream(index, common, needs_blocks);
            }
            Verdict::Target => {
                self.link_mut(place).become_state(LinkState::Awaiting);
            }
            Verdict::StepDown => {
                self.report(Report::Role(format!(
                    "stepping down: {} is Primary in epoch {}",
                    theirs.node, theirs.record.epoch
                )));
                self.link_mut(place).become_state(LinkState::Idle);
                self.leave_primary();
            }
            Verdict::Fork { common, reason } => {
                self.note_fork(index, &mine, &theirs, common);
                self.refuse(place, reason);
                if theirs.discards_of == Some(self.config.node) {
                    self.yield_here(None);
                }
            }
            Verdict::Refuse { reason } => self.refuse(place, reason),
        }
    }

    pub(super) fn on_link_down(&mut self, id: LinkId, reason: &str) {
        let Some(place) = self.find_link(id) else { return };
        self.end_source(place);
        self.drop_parked(id);
        let link = match place {
            Place::Spare(index) => self.spare_links.swap_remove(index),
            Place::Peer(index) => {
                let was = self.link_mut(place).state;
                if was == LinkState::Streaming {
                    self.lose(index);
                }
                let node = self.peers[index].config.node;
                self.report(Report::Peer { node, text: format!("disconnected: {reason}") });
                self.role_link_lost(node);
                self.peers[index].link.take().expect("found there")
            }
        };
        for (token, _) in link.sends {
            self.release_sent(token);
        }
        if let Some(mut chunk) = link.chunk {
            chunk.holds = 0;
            if chunk.reading {
                self.orphan_chunks.push((id, chunk.buffer));
            } else {
                self.pool.give(chunk.buffer);
            }
        }
    }

    /// Gives back what a send has read. A chunk's holds are the caller's.
    fn release_sent(&mut self, token: Token) {
        if Io::SendBlocks.is(token) {
            self.pool.give(buffer_of(token));
        }
        if !Io::SendFrame.is(token) {
            return;
        }
        if let Some(buffer) = self.log.unhold(index_of(token)) {
            give_back(&mut self.pool, &mut self.apply, buffer);
        }
    }

    pub(super) fn on_frame_sent(&mut self, id: LinkId, token: Token) {
        let place = self.find_link(id).expect("a link stays until it is down");
        let link = self.link_mut(place);
        let (first, bytes) = link.sends.pop_front().expect("a frame was handed over");
        assert!(first == token, "frames of one link leave in order");
        link.in_flight_bytes -= u64::from(bytes);
        if !Io::SendChunk.is(token) {
            self.release_sent(token);
            return;
        }
        let chunk = link.chunk.as_mut().expect("its frames were being sent");
        chunk.holds -= 1;
        if chunk.stale && chunk.holds == 0 && !chunk.reading {
            let buffer = chunk.buffer;
            link.chunk = None;
            self.pool.give(buffer);
        }
    }

    /// Gives up links from which nothing comes, or whose peer makes no progress; probes idle ones.
    pub(super) fn check_links(&mut self) {
        let (timeout_ms, ping_ms) = (self.config.peer_timeout_ms, self.config.ping_interval_ms);
        let (now, last) = (self.now, self.log.last());
        for index in 0..self.peers.len() {
            let Some(link) = self.peers[index].link.as_mut() else { continue };
            if link.state == LinkState::Closing {
                continue;
            }
            // One that gathers acknowledges nothing, and nobody waits for it.
            if link.state != LinkState::Streaming || link.is_level(last) || link.stages() {
                link.progress_at = now;
            }
            if now >= link.heard_at.plus_ms(timeout_ms) {
                let reason = format!("nothing heard for {timeout_ms} ms");
                self.close(Place::Peer(index), &reason, true);
            } else if now >= link.progress_at.plus_ms(3 * timeout_ms) {
                let reason = format!("it acknowledged nothing new for {} ms", 3 * timeout_ms);
                self.close(Place::Peer(index), &reason, true);
            } else if now >= link.said_at.plus_ms(ping_ms) {
                if link.state == LinkState::Following {
                    self.send_ack(index);
                } else {
                    self.send(Place::Peer(index), Message::Ping, false);
                }
            }
        }
    }
}
