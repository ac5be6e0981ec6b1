//! The target of a resync: a Secondary whose blocks are brought level. It stores that it is Inconsistent before its
//! first block is written, places each item where it stands in the stream, and is UpToDate again when all is durable.
//!
//! An item waits until this replica has applied what the source had when it read the blocks, and nothing beyond that is
//! applied before it is written. So it is ordered with the entries that overlap it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use xxhash_rust::xxh3::xxh3_128;

use super::checkpoint::Checkpoint;
use super::greet::Place;
use super::peer::LinkState;
use super::source::{BlockRead, each_bit};
use super::{Io, Machine};
use crate::command::{Command, Report};
use crate::dirty::{WORD_BLOCKS, WORD_BYTES};
use crate::disk::superblock::{Cut, DiskState};
use crate::event::{IoResult, ZeroKind};
use crate::limits::ITEMS_WAITING_MAX;
use crate::tracker::Base;
use crate::units::{Buffer, Instant, LinkId, PAGE_BYTES, Sequence, Span};
use crate::wire::blocks::{BlocksHeader, runs};
use crate::wire::envelope::Envelope;
use crate::wire::message::{Hashes, Message, Resync};

/// How long written items wait for a sync of the disk.
const SYNC_AFTER_MS: u64 = 50;
/// How many of them do not wait any longer.
const SYNC_AFTER_ITEMS: u64 = 128;
/// Words that may be hashed at one time.
const HASHING_MAX: usize = 4;

/// Items that come in, from one source in one session.
#[derive(Debug)]
pub(super) struct Intake {
    link: LinkId,
    session: u64,
    queue: VecDeque<(BlocksHeader, Buffer)>,
    received: u64,
    written: u64,
    durable: u64,
    /// What the source was told of the last two.
    told: (u64, u64),
    unsynced_since: Option<Instant>,
    asked: VecDeque<(u64, u64)>,
    /// The source has no more.
    is_finishing: bool,
    /// Superblock sequence that says UpToDate.
    saved: Option<u64>,
}

/// Items that are being written in place. They go on though their session ends.
#[derive(Debug)]
pub(super) struct Placing {
    link: LinkId,
    session: u64,
    buffers: Vec<Buffer>,
    last: u64,
    writes_left: u32,
}

impl Machine {
    /// Applies all there is and makes it durable on the disk; then the log begins anew.
    pub(super) fn drain(&mut self, index: usize) {
        let LinkState::Draining { is_syncing } = self.link_mut(Place::Peer(index)).state else { return };
        if is_syncing || self.is_failed() {
            return;
        }
        let applied = self.log.applied.position.sequence == self.log.last() && self.apply.is_idle();
        let still = !self.log.has_unwritten() && !self.log.has_undurable() && !self.log.has_buffers();
        let quiet = self.checkpoint.is_idle() && !self.persist.is_syncing() && self.placing.is_none();
        if !applied || !still || !quiet || self.drain_sync.is_some() {
            self.persist.want_sync(self.log.last());
            return;
        }
        let link = self.link_mut(Place::Peer(index));
        link.become_state(LinkState::Draining { is_syncing: true });
        self.drain_sync = Some(link.id);
        self.push(Command::SyncDisk { token: Io::DrainSync.token(0) });
    }

    pub(super) fn on_drained(&mut self, result: IoResult) {
        let id = self.drain_sync.take().expect("the disk was being synced");
        if !self.device_ok("syncing the disk", result) {
            return;
        }
        let Some(Place::Peer(index)) = self.find_link(id) else { return };
        if (self.link_mut(Place::Peer(index)).state == LinkState::Draining { is_syncing: true }) {
            self.jump(index);
        }
    }

    /// The log begins anew at a point of the source's. From here on the copy is Inconsistent, durably before the
    /// source hears of it.
    fn jump(&mut self, index: usize) {
        let plan = self.link_mut(Place::Peer(index)).plan.clone().expect("it was to jump");
        let Resync { jump, history, .. } = *plan;
        let jump = jump.expect("it was to jump");
        let was = self.log.head.position;
        if self.meta.current.disk_state == DiskState::UpToDate {
            self.meta.current.data_base = Some(was);
        }
        self.meta.current.disk_state = DiskState::Inconsistent;
        self.restart_log(jump);
        self.persist.history = history;
        let saved = self.meta.change();
        self.link_mut(Place::Peer(index)).become_state(LinkState::Jumping { saved });
        self.report(Report::Cut { common: jump.position, was });
    }

    /// Forgets the log: it goes on behind `point`. Nothing of it may be under way.
    pub(super) fn restart_log(&mut self, point: Base) {
        let sequence = point.position.sequence;
        self.log.restart(point.position, point.chain);
        self.persist.restart(sequence);
        self.checkpoint = Checkpoint::new(self.log.head);
        (self.stable, self.committed, self.recovered_end) = (sequence, sequence, sequence);
        (self.overlay_through, self.damaged) = (sequence, Sequence(0));
        let current = &mut self.meta.current;
        // Whatever the ring still holds is no part of the log.
        current.cut = Cut { count: current.cut.count + 1, first: Sequence(0) };
        (current.tail, current.applied_through) = (self.log.head, self.log.head);
        (current.stable, current.durable) = (sequence, sequence);
        self.peers.iter_mut().for_each(|peer| peer.tracker.restart(point));
        self.forget_maps();
    }

    pub(super) fn begin_intake(&mut self, index: usize) {
        let link = self.link_mut(Place::Peer(index));
        let (link, session) = (link.id, link.peer_session);
        assert!(self.meta.saved.disk_state == DiskState::Inconsistent, "it is stored before the first block");
        assert!(self.intake.is_none(), "a replica follows one source");
        self.intake = Some(Box::new(Intake {
            link,
            session,
            queue: VecDeque::with_capacity(ITEMS_WAITING_MAX),
            received: 0,
            written: 0,
            durable: 0,
            told: (0, 0),
            unsynced_since: None,
            asked: VecDeque::new(),
            is_finishing: false,
            saved: None,
        }));
    }

    /// The session of `link` is over: what came in it and is not being written is forgotten.
    pub(super) fn drop_intake(&mut self, link: LinkId) {
        if self.intake.as_ref().is_some_and(|intake| intake.link == link) {
            let intake = self.intake.take().expect("looked at");
            intake.queue.into_iter().for_each(|(_, buffer)| self.pool.give(buffer));
        }
    }

    pub(super) fn accept_blocks(&mut self, index: usize, envelope: &Envelope, buffer: Buffer, arena: &[u8]) {
        let volume_bytes = self.meta.saved.volume_bytes;
        let decoded = BlocksHeader::decode(&arena[buffer.span().range()], volume_bytes);
        let session = envelope.session;
        let intake = self.intake.as_mut().filter(|intake| intake.session == session);
        let reason = match (decoded, intake) {
            (Err(error), _) => format!("damaged blocks: {error}"),
            (_, None) => "blocks came, and no resync is under way".to_string(),
            (Ok(header), Some(intake)) => {
                let fits = header.number == intake.received + 1 && header.volume == self.config.volume;
                if fits && intake.queue.len() < ITEMS_WAITING_MAX && header.point <= self.log.last() {
                    intake.received = header.number;
                    intake.queue.push_back((header, buffer));
                    return;
                }
                "blocks came out of order".to_string()
            }
        };
        self.pool.give(buffer);
        self.close(Place::Peer(index), &reason, true);
    }

    pub(super) fn on_compare(&mut self, index: usize, word: u64, bits: u64) {
        let words = self.meta.saved.volume_bytes.div_ceil(WORD_BYTES);
        let inside = word < words && bits != 0 && {
            let last = word * WORD_BYTES + u64::from(63 - bits.leading_zeros()) * crate::dirty::BLOCK_BYTES;
            last < self.meta.saved.volume_bytes
        };
        match self.intake.as_mut().filter(|intake| inside && intake.asked.len() < 2 * ITEMS_WAITING_MAX) {
            Some(intake) => intake.asked.push_back((word, bits)),
            None => self.close(Place::Peer(index), "it asked for blocks that it may not ask for", true),
        }
    }

    pub(super) fn on_finish(&mut self, index: usize) {
        match self.intake.as_mut() {
            Some(intake) => intake.is_finishing = true,
            None => self.close(Place::Peer(index), "a resync ended that had not begun", true),
        }
    }

    /// Nothing beyond this is applied before the item that waits there is written.
    pub(super) fn intake_bound(&self) -> Option<Sequence> {
        let intake = self.intake.as_ref()?;
        intake.queue.front().map(|(header, _)| header.point)
    }

    /// Places, syncs, hashes and answers what came in.
    pub(super) fn pump_intake(&mut self) {
        if self.intake.is_none() || self.is_failed() {
            return;
        }
        self.place_items();
        self.sync_items();
        self.hash_asked();
        self.tell_source();
    }

    /// Writes the items whose point is reached. Entries are not applied at the same time.
    fn place_items(&mut self) {
        if self.placing.is_some() || !self.apply.is_idle() {
            return;
        }
        let (applied, volume_bytes) = (self.log.applied.position.sequence, self.meta.saved.volume_bytes);
        let Self { intake, commands, .. } = self;
        let intake = intake.as_mut().expect("looked at");
        let (mut words, mut buffers): (Vec<u64>, Vec<Buffer>) = (Vec::new(), Vec::new());
        let (mut last, mut writes_left) = (intake.written, 0);
        while let Some((header, buffer)) = intake.queue.front().copied() {
            // An older item of the same blocks is written first.
            if header.point > applied || words.contains(&header.word) {
                break;
            }
            intake.queue.pop_front();
            let token = Io::Place.token(0);
            let mut at = buffer.start() + PAGE_BYTES;
            for (offset, length) in runs(header.word, header.present, volume_bytes) {
                let len = usize::try_from(length).expect("a word's blocks");
                commands.push_back(Command::WriteDisk { token, offset, span: Span { start: at, len } });
                at += len;
                writes_left += 1;
            }
            for (offset, length) in runs(header.word, header.zeros, volume_bytes) {
                commands.push_back(Command::ZeroDisk { token, offset, length, kind: ZeroKind::Trim });
                writes_left += 1;
            }
            words.push(header.word);
            buffers.push(buffer);
            last = header.number;
        }
        if buffers.is_empty() {
            return;
        }
        let (link, session) = (intake.link, intake.session);
        self.placing = Some(Placing { link, session, buffers, last, writes_left });
        if writes_left == 0 {
            self.finish_placing();
        }
    }

    pub(super) fn on_placed_write(&mut self, result: IoResult) {
        let placing = self.placing.as_mut().expect("items are being written");
        placing.writes_left -= 1;
        let done = placing.writes_left == 0;
        if self.device_ok("writing the disk", result) && done && !self.is_failed() {
            self.finish_placing();
        }
    }

    fn finish_placing(&mut self) {
        let placing = self.placing.take().expect("items were being written");
        placing.buffers.iter().for_each(|buffer| self.pool.give(*buffer));
        let now = self.now;
        let of = |intake: &&mut Box<Intake>| intake.link == placing.link && intake.session == placing.session;
        if let Some(intake) = self.intake.as_mut().filter(of) {
            intake.written = placing.last;
            intake.unsynced_since.get_or_insert(now);
        }
    }

    fn sync_items(&mut self) {
        let now = self.now;
        if self.intake_sync.is_some() {
            return;
        }
        let intake = self.intake.as_mut().expect("looked at");
        let Some(since) = intake.unsynced_since else { return };
        let many = intake.written - intake.durable >= SYNC_AFTER_ITEMS;
        if many || intake.is_finishing || now >= since.plus_ms(SYNC_AFTER_MS) {
            intake.unsynced_since = None;
            self.intake_sync = Some((intake.link, intake.session, intake.written));
            self.push(Command::SyncDisk { token: Io::IntakeSync.token(0) });
        }
    }

    pub(super) fn on_intake_synced(&mut self, result: IoResult) {
        let (link, session, written) = self.intake_sync.take().expect("items were being synced");
        if !self.device_ok("syncing the disk", result) {
            return;
        }
        if let Some(intake) = self.intake.as_mut().filter(|i| i.link == link && i.session == session) {
            intake.durable = written;
        }
    }

    fn hash_asked(&mut self) {
        let volume_bytes = self.meta.saved.volume_bytes;
        while self.block_reads.iter().flatten().count() < HASHING_MAX {
            let intake = self.intake.as_mut().expect("looked at");
            let id = intake.link;
            let Some((word, bits)) = intake.asked.front().copied() else { return };
            let Some(buffer) = self.take_block_buffer() else { return };
            self.intake.as_mut().expect("looked at").asked.pop_front();
            let place = self.find_link(id).expect("the intake ends with its link");
            let session = self.link_mut(place).session;
            let read = BlockRead { link: id, session, word, bits, buffer, to_send: false };
            self.begin_block_read(read, volume_bytes);
        }
    }

    /// Says what was read here. It may be old by the time the source compares it: what has changed since is in the
    /// stream up to the point at which the source reads.
    pub(super) fn send_hashes(&mut self, index: usize, read: BlockRead, arena: &[u8]) {
        self.pool.give(read.buffer);
        let volume_bytes = self.meta.saved.volume_bytes;
        let of = |intake: &Intake| intake.link == read.link;
        if !self.intake.as_deref().is_some_and(of) {
            return;
        }
        let mut hashes = Hashes { word: read.word, bits: read.bits, hashes: [0; WORD_BLOCKS as usize] };
        for (hash, bit) in hashes.hashes.iter_mut().zip(each_bit(read.bits)) {
            *hash = xxh3_128(&arena[read.block(bit, volume_bytes).range()]);
        }
        self.send(Place::Peer(index), Message::Hashes(Box::new(hashes)), false);
    }

    fn tell_source(&mut self) {
        let saved_sequence = self.meta.saved.sequence;
        let intake = self.intake.as_mut().expect("looked at");
        let (written, durable, told, id) = (intake.written, intake.durable, intake.told, intake.link);
        let is_done = intake.saved.is_some_and(|saved| saved_sequence >= saved);
        let all = intake.is_finishing && intake.queue.is_empty() && durable == intake.received;
        let begins_to_save = all && intake.saved.is_none();
        intake.told = (written, durable);
        let place = self.find_link(id).expect("the intake ends with its link");
        if begins_to_save {
            let current = &mut self.meta.current;
            (current.disk_state, current.suspect, current.data_base) = (DiskState::UpToDate, false, None);
            let saved = self.meta.change();
            self.intake.as_mut().expect("looked at").saved = Some(saved);
        }
        if told != (written, durable) || is_done {
            self.send(place, Message::Placed { written, durable, is_done }, false);
        }
        if is_done {
            self.intake = None;
            self.link_mut(place).plan = None;
        }
    }

    /// When the target wants to be looked at though nothing happened.
    pub(super) fn intake_due(&self) -> Option<Instant> {
        let since = self.intake.as_ref()?.unsynced_since.filter(|_| self.intake_sync.is_none())?;
        Some(since.plus_ms(SYNC_AFTER_MS).max(self.now.plus_ms(1)))
    }
}
