//! The stream of a Primary: each peer has a cursor and is sent what follows it, from memory where the frames still
//! are, else from the ring. Catching up and keeping up are the same loop.

use alloc::format;

use super::greet::Place;
use super::peer::{Chunk, LinkState, RingPlace};
use super::{Io, Machine, index_of};
use crate::command::Command;
use crate::config::Protocol;
use crate::disk::superblock::Cut;
use crate::event::{Errno, IoResult};
use crate::frame;
use crate::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use crate::units::{Chain, RingOffset, Sequence, Span, Token};
use crate::wire::envelope::MessageKind;
use crate::wire::message::{Ack, Message, Start};

/// Bytes of the ring read at a time for a peer that is behind: any frame fits.
const CHUNK_BYTES: usize = FRAME_BYTES_MAX + (252 << 10);

/// What a look into a chunk found.
enum Found {
    /// The next frame for the peer: its bytes, its last entry, and the chain after that.
    Frame(usize, Sequence, Chain),
    /// Something to pass over, of this many bytes, and the chain after it.
    Skip(usize, Chain),
    /// The rest lies beyond the chunk.
    Beyond,
    /// No frame of this log here: the rest of the lap is unused, or damaged.
    Nothing,
    /// The frame is damaged.
    Broken,
}

impl Machine {
    pub(super) fn start_stream(&mut self, index: usize, common: Sequence, needs_blocks: bool) {
        let record = self.meta.saved.record;
        let acks_received = self.peers[index].config.protocol == Protocol::B;
        let place = Place::Peer(index);
        let link = self.link_mut(place);
        link.become_state(LinkState::Starting);
        link.next = common.next();
        let start = Start { common, record, acks_received };
        if needs_blocks || !self.reaches_back_to(common) {
            self.start_resync(index, start);
        } else {
            self.send(place, Message::Start(start), false);
        }
    }

    pub(super) fn on_ack(&mut self, index: usize, ack: Ack) {
        let now = self.now;
        let link = self.link_mut(Place::Peer(index));
        if !matches!(link.state, LinkState::Starting | LinkState::Streaming) {
            return;
        }
        let old = link.ack;
        let ordered =
            ack.applied <= ack.durable && ack.durable <= ack.journaled && ack.journaled <= ack.received;
        let grows =
            ack.received >= old.received && ack.journaled >= old.journaled && ack.durable >= old.durable;
        if !ordered || !grows || ack.received >= link.next {
            let reason = format!("it acknowledged what it cannot have: {ack:?}, next is {}", link.next);
            self.close(Place::Peer(index), &reason, true);
            return;
        }
        if (ack.received, ack.journaled, ack.durable) != (old.received, old.journaled, old.durable) {
            link.progress_at = now;
        }
        link.ack = ack;
        if link.state == LinkState::Starting {
            link.become_state(LinkState::Streaming);
            link.progress_at = now;
            self.begin_tracking(index, ack.durable);
            if self.link_mut(Place::Peer(index)).state == LinkState::Closing {
                return;
            }
            // The record may have changed since the stream was announced, when only streaming peers were told.
            let record = self.meta.saved.record;
            self.send(Place::Peer(index), Message::Record(record), false);
        }
    }

    /// Asks the members for a sync up to `sequence`, once.
    pub(super) fn want_peer_sync(&mut self, sequence: Sequence) {
        let counted = self.counted();
        for index in 0..self.peers.len() {
            let peer = &mut self.peers[index];
            if !counted.contains(peer.config.node) {
                continue;
            }
            let Some(link) = peer.link.as_mut().filter(|link| link.state == LinkState::Streaming) else {
                continue;
            };
            // A frame that is still to be sent will carry the wish itself.
            if link.ack.durable < sequence && link.sync_asked < sequence && link.next > sequence {
                link.sync_asked = link.next.previous();
                link.told = (self.committed, self.stable);
                self.send(Place::Peer(index), Message::Mark, true);
            }
        }
    }

    /// Sends what each peer may be sent now.
    pub(super) fn pump_peers(&mut self, arena: &mut [u8]) {
        self.check_links();
        self.pump_replay();
        self.pump_intake();
        self.pump_visits(arena);
        for index in 0..self.peers.len() {
            match self.peers[index].link.as_ref().map(|link| link.state) {
                Some(LinkState::Streaming) => {
                    while self.send_next(index, arena) {}
                    if self.peers[index].streaming().is_none() {
                        continue;
                    }
                    self.leave_ring(index);
                    self.pump_source(index, arena);
                    self.send_mark(index);
                }
                Some(LinkState::Cutting { .. }) => self.advance_cut(index),
                Some(LinkState::Draining { .. }) => self.drain(index),
                Some(LinkState::Staging { saved }) => self.begin_stage(index, saved),
                Some(LinkState::Jumping { saved }) if self.meta.is_saved(saved) && !self.is_failed() => {
                    self.begin_following(index);
                }
                Some(LinkState::Following) => self.send_ack_if_due(index),
                Some(LinkState::Idle) => self.lend(index, arena),
                _ => {}
            }
        }
        // What they say must stand behind everything that was sequenced before.
        self.pump_mends(arena);
        self.pump_verify(arena);
    }

    /// Sends one frame, if there is one and the window is open.
    fn send_next(&mut self, index: usize, arena: &mut [u8]) -> bool {
        let window = self.config.send_window_bytes;
        let last = self.log.last();
        let link = self.link_mut(Place::Peer(index));
        let next = link.next;
        if link.in_flight_bytes >= window || next > last || link.stages_blocks() {
            return false;
        }
        let number = self.log.find(next);
        let frame = number.and_then(|number| self.log.frame(number).copied());
        if let (Some(number), Some(buffer)) = (number, frame.and_then(|frame| frame.buffer)) {
            let frame = frame.expect("it has a buffer");
            if frame.first != next {
                self.close(Place::Peer(index), "its log ends within a frame of this one", true);
                return false;
            }
            self.log.hold(number);
            let link = self.link_mut(Place::Peer(index));
            link.place = None;
            let span = Span { start: buffer.start(), len: frame.total_bytes as usize };
            self.send_frame(index, Io::SendFrame.token(number), span, frame.last());
            return true;
        }
        if next > self.log.journaled() {
            return false;
        }
        self.send_from_ring(index, frame.map(|frame| frame.ring_offset), arena)
    }

    /// A peer that was sent everything reads the ring no more: the piece in memory is given back, and the ring is not
    /// kept for it.
    fn leave_ring(&mut self, index: usize) {
        let last = self.log.last();
        let link = self.link_mut(Place::Peer(index));
        let idle = |chunk: &Chunk| chunk.holds == 0 && !chunk.reading;
        // The stream begins when the blocks are sent: till then the ring is kept for it.
        if link.stages_blocks() || link.next <= last || !link.chunk.as_ref().is_none_or(idle) {
            return;
        }
        link.place = None;
        if let Some(chunk) = link.chunk.take() {
            self.pool.give(chunk.buffer);
        }
    }

    fn send_frame(&mut self, index: usize, token: Token, span: Span, last: Sequence) {
        let sync = self.persist.wants(last);
        let now = self.now;
        let told = (self.committed, self.stable);
        let link = self.link_mut(Place::Peer(index));
        link.next = last.next();
        let bytes = u32::try_from(span.len).expect("a frame is small");
        link.sends.push_back((token, bytes));
        link.in_flight_bytes += u64::from(bytes);
        link.said_at = now;
        link.told = told;
        link.mark_due = None;
        if sync {
            link.sync_asked = link.sync_asked.max(last);
        }
        let (id, session) = (link.id, link.session);
        let mut envelope = self.envelope_of(session, MessageKind::Frame, sync);
        envelope.body_bytes = bytes;
        self.push(Command::SendFrame { link: id, token, envelope, span });
    }

    /// Sends the next frame from the piece of the ring in memory, or gets the piece that has it.
    fn send_from_ring(&mut self, index: usize, known: Option<RingOffset>, arena: &mut [u8]) -> bool {
        let next = self.peers[index].link.as_ref().expect("the caller looked").next;
        let cut = self.meta.current.cut;
        let link = self.link_mut(Place::Peer(index));
        let (id, place) = (link.id, link.place);
        let Some(chunk) = link.chunk.as_mut().filter(|chunk| !chunk.stale) else {
            if link.chunk.is_none() {
                let known = known.map(|ring_offset| RingPlace { ring_offset, chain: None });
                let point = self.log.point_before(next).map(RingPlace::from);
                self.read_chunk(index, place.or(known).or(point));
            }
            return false;
        };
        if chunk.reading {
            return false;
        }
        let at = chunk.ring_offset.plus(chunk.at as u64);
        let bytes = &arena[chunk.buffer.start() + chunk.at..chunk.buffer.start() + chunk.len];
        match look(bytes, at, next, chunk.chain, cut) {
            Found::Frame(total, last, chain) => {
                chunk.chain = Some(chain);
                let span = Span { start: chunk.buffer.start() + chunk.at, len: total };
                chunk.at += total;
                chunk.holds += 1;
                self.send_frame(index, Io::SendChunk.token(id.0), span, last);
                true
            }
            Found::Skip(total, chain) => {
                chunk.chain = Some(chain);
                chunk.at += total;
                true
            }
            Found::Beyond => self.leave_chunk(index, at),
            Found::Nothing if self.log.layout.bytes_to_end(at) < self.log.layout.ring_bytes => {
                let lap = at.plus(self.log.layout.bytes_to_end(at));
                self.leave_chunk(index, lap)
            }
            Found::Nothing | Found::Broken if next <= self.log.tail().position.sequence => {
                self.overtake(index);
                false
            }
            Found::Nothing | Found::Broken => {
                self.pass_over_damage(index, Errno(5));
                false
            }
        }
    }

    /// Goes on at `from` when the chunk is no longer being sent.
    fn leave_chunk(&mut self, index: usize, from: RingOffset) -> bool {
        let link = self.link_mut(Place::Peer(index));
        let chunk = link.chunk.expect("the caller has it");
        let place = RingPlace { ring_offset: from, chain: chunk.chain };
        link.place = Some(place);
        if chunk.holds > 0 {
            return false;
        }
        link.chunk = None;
        self.pool.give(chunk.buffer);
        self.read_chunk(index, Some(place));
        false
    }

    fn read_chunk(&mut self, index: usize, from: Option<RingPlace>) {
        let tail = self.log.tail().ring_offset;
        let Some(RingPlace { ring_offset: from, chain }) = from.filter(|from| from.ring_offset >= tail)
        else {
            // At its next hello it is brought level by blocks.
            return self.overtake(index);
        };
        let to_head = self.log.head.ring_offset.0.saturating_sub(from.0);
        let len = to_head.min(self.log.layout.bytes_to_end(from)).min(CHUNK_BYTES as u64);
        if len == 0 {
            // It was passed over on the way here, by what lies in its place.
            return self.pass_over_damage(index, Errno(5));
        }
        let len = usize::try_from(len).expect("bounded by the chunk");
        // A returning peer must not starve the writes of the day.
        if self.pool.free_pages() < self.pool.pages() / 4 {
            return;
        }
        let Some(buffer) = self.pool.take(len) else { return };
        let (at, holds, reading, stale) = (0, 0, true, false);
        let chunk = Chunk { buffer, ring_offset: from, len, at, chain, holds, reading, stale };
        let link = self.link_mut(Place::Peer(index));
        link.chunk = Some(chunk);
        let token = Io::Chunk.token(link.id.0);
        let device_offset = self.log.layout.device_offset(from);
        let span = Span { start: buffer.start(), len };
        self.push(Command::ReadJournal { token, device_offset, span });
    }

    /// The journal no longer holds what a peer needs next.
    fn overtake(&mut self, index: usize) {
        let stages = self.link_mut(Place::Peer(index)).stages();
        self.peers[index].overtaken |= stages;
        self.close(Place::Peer(index), "overtaken: the journal no longer holds what it needs next", true);
    }

    pub(super) fn on_chunk_read(&mut self, token: Token, result: IoResult) {
        let id = crate::units::LinkId(index_of(token));
        if let Some(at) = self.orphan_chunks.iter().position(|(link, _)| *link == id) {
            let (_, buffer) = self.orphan_chunks.swap_remove(at);
            self.pool.give(buffer);
            return;
        }
        let place = self.find_link(id).expect("a link's read ends before it is forgotten");
        let link = self.link_mut(place);
        let chunk = link.chunk.as_mut().expect("it was being read");
        chunk.reading = false;
        let (stale, buffer) = (chunk.stale, chunk.buffer);
        if stale || result.is_err() {
            link.chunk = None;
            self.pool.give(buffer);
        }
        if let (Err(errno), false, Place::Peer(index)) = (result, stale, place) {
            self.pass_over_damage(index, errno);
        }
    }

    /// The ring does not give what the peer needs next. If that is applied it is on the disk here: at its next hello the
    /// peer is brought level by blocks, as is everybody who needs that entry. If not, this copy has lost it.
    fn pass_over_damage(&mut self, index: usize, errno: Errno) {
        let next = self.link_mut(Place::Peer(index)).next;
        self.damaged = self.damaged.max(next);
        let reason = format!("the journal here does not give entry {next} (error {})", errno.0);
        self.close(Place::Peer(index), &reason, true);
        if next > self.log.applied.position.sequence {
            self.fail_device("reading back the journal", errno);
        }
    }

    /// Whether the stream behind `common` can be had from the ring, as far as is known.
    pub(super) fn reaches_back_to(&self, common: Sequence) -> bool {
        common >= self.log.tail().position.sequence.max(self.damaged)
    }

    /// Tells a peer the newest positions when no frame has carried them for a while.
    fn send_mark(&mut self, index: usize) {
        let interval_ms = self.config.sync_interval_ms;
        let (now, newest, hurry) = (self.now, (self.committed, self.stable), self.role.hurries());
        let link = self.link_mut(Place::Peer(index));
        if link.told == newest {
            link.mark_due = None;
            return;
        }
        let due = *link.mark_due.get_or_insert(now.plus_ms(interval_ms));
        if due <= now || hurry {
            link.mark_due = None;
            link.told = newest;
            self.send(Place::Peer(index), Message::Mark, hurry);
        }
    }
}

/// What lies at the start of `bytes`, which are the ring's from `at` on, for a peer that wants entry `next`; `chain` is
/// the log's at `at`, if that is known. What the log does not continue with is no part of it: remains of what was cut,
/// or lost with the power, may lie where a lap ends early.
fn look(bytes: &[u8], at: RingOffset, next: Sequence, chain: Option<Chain>, cut: Cut) -> Found {
    if bytes.len() < FRAME_HEADER_BYTES {
        return Found::Beyond;
    }
    let local = frame::decode_local(bytes);
    let (Ok(header), Ok(local)) = (frame::decode(bytes), local) else { return Found::Nothing };
    let follows = chain.is_none_or(|chain| chain == header.chain_before);
    if local.ring_offset != at || frame::is_cut(&header, &local, cut) || !follows {
        return Found::Nothing;
    }
    let total = header.total_bytes as usize;
    if total > bytes.len() {
        return Found::Beyond;
    }
    if header.entries == 0 || header.last() < next {
        return Found::Skip(total, header.chain_after);
    }
    // What is sent is verified first: rot here must not become rot there.
    if header.first != next || frame::check_payloads(bytes, &header).is_err() {
        return Found::Broken;
    }
    Found::Frame(total, header.last(), header.chain_after)
}
