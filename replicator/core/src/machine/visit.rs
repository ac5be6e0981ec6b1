//! A Primary's visits to a Secondary: it asks what blocks hold, and has some written anew, each at one point of the
//! stream. A visit waits until everything up to its point is applied here, and nothing beyond that is applied before
//! its turn has come. While its blocks are read or written, nothing that overlaps them is applied.
//!
//! Its memory is taken when it comes. If there is none it is told to come again, since nothing may be held back for
//! want of memory that only what is held back would give free.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use xxhash_rust::xxh3::xxh3_128;

use super::block_read::{BlockRead, Reader, each_bit, valid_bits};
use super::greet::Place;
use super::{Io, Machine};
use crate::command::{Command, Report};
use crate::dirty::{BLOCK_BYTES, DirtyMap, WORD_BLOCKS, WORD_BYTES};
use crate::disk::superblock::DiskState;
use crate::event::IoResult;
use crate::limits::VISITS_MAX;
use crate::sums::Sum;
use crate::units::{Buffer, LinkId, PAGE_BYTES, Sequence, Span};
use crate::wire::envelope::Envelope;
use crate::wire::message::Message;
use crate::wire::visit::{Check, Checked, Fetch, Fetched, Mend};

/// Blocks of so many visits may be read at one time.
const READING_MAX: usize = 8;

/// What a Primary wants, with the memory for it.
#[derive(Debug)]
enum Visit {
    Check(Box<Check>, Buffer),
    Mend(Mend, Buffer),
    Fetch(Fetch, Buffer),
}

impl Visit {
    fn point(&self) -> Sequence {
        match self {
            Self::Check(check, _) => check.point,
            Self::Mend(mend, _) => mend.point,
            Self::Fetch(fetch, _) => fetch.point,
        }
    }

    fn buffer(&self) -> Buffer {
        match self {
            Self::Check(_, buffer) | Self::Mend(_, buffer) | Self::Fetch(_, buffer) => *buffer,
        }
    }
}

/// The visits of one session.
#[derive(Debug)]
pub(super) struct Visits {
    link: LinkId,
    session: u64,
    queue: VecDeque<Visit>,
    /// Those whose blocks are being read.
    #[expect(clippy::vec_box, reason = "a check is large and came in this box")]
    comparing: Vec<Box<Check>>,
    /// Something was written and is not synced.
    is_unsynced: bool,
}

/// A block on its way to the disk. It goes on though its session ends.
#[derive(Debug)]
pub(super) struct Mending {
    block: u64,
    buffer: Buffer,
    link: LinkId,
    sum: Sum,
}

/// What a verify found here.
#[derive(Debug)]
pub(super) struct Found {
    run: u64,
    differs: DirtyMap,
}

impl Machine {
    /// The visits of this session, if it may have some.
    fn visits_of(&mut self, index: usize, envelope: &Envelope) -> Option<&mut Visits> {
        let is_whole = self.meta.saved.disk_state == DiskState::UpToDate && self.intake.is_none();
        if !self.is_of_session(index, envelope) || self.is_failed() || !is_whole {
            return None;
        }
        self.learn(envelope);
        let link = self.link_mut(Place::Peer(index));
        let (link, session) = (link.id, link.session);
        if self.visits.as_ref().is_some_and(|visits| visits.link != link || visits.session != session) {
            let old = self.visits.as_ref().expect("looked at").link;
            self.drop_visits(old);
        }
        let fresh = || {
            let (queue, comparing) = (VecDeque::new(), Vec::new());
            Box::new(Visits { link, session, queue, comparing, is_unsynced: false })
        };
        Some(self.visits.get_or_insert_with(fresh))
    }

    /// Whether a visit may wait, or why its sender is no good.
    fn admit_visit(&mut self, index: usize, point: Sequence, is_sound: bool) -> bool {
        let waiting = self.visits.as_ref().map_or(0, |visits| visits.queue.len());
        if is_sound && point <= self.log.last() && waiting < VISITS_MAX {
            return true;
        }
        self.close(Place::Peer(index), "it asked for blocks that it may not ask for", true);
        false
    }

    pub(super) fn has_block(&self, block: u64) -> bool {
        block < self.volume_bytes().div_ceil(BLOCK_BYTES)
    }

    /// Bytes of a block: the last one may be a part.
    pub(super) fn block_length(&self, block: u64) -> usize {
        let left = self.volume_bytes() - block * BLOCK_BYTES;
        usize::try_from(left.min(BLOCK_BYTES)).expect("a block is small")
    }

    pub(super) fn on_check(&mut self, index: usize, envelope: &Envelope, check: Box<Check>) {
        let valid = valid_bits(check.word, self.volume_bytes());
        let is_sound = check.bits != 0 && check.bits & !valid == 0;
        if self.visits_of(index, envelope).is_none() || !self.admit_visit(index, check.point, is_sound) {
            return;
        }
        let (run, number) = (check.run, check.number);
        if self.found.as_ref().is_none_or(|found| found.run != run) {
            let differs = DirtyMap::new(self.volume_bytes(), 2 * self.log.layout.map_bytes);
            self.found = Some(Box::new(Found { run, differs }));
        }
        let Some(buffer) = self.take_block_buffer() else {
            let (differs, unreadable, hashes) = (0, 0, [0; WORD_BLOCKS as usize]);
            let busy = Checked { number, is_busy: true, differs, unreadable, hashes };
            return self.send(Place::Peer(index), Message::Checked(Box::new(busy)), false);
        };
        let visits = self.visits.as_mut().expect("looked at");
        visits.queue.push_back(Visit::Check(check, buffer));
    }

    pub(super) fn on_mend(&mut self, index: usize, envelope: &Envelope, mend: Mend) {
        let is_sound = self.has_block(mend.block) && mend.bytes.len() == self.block_length(mend.block);
        if self.visits_of(index, envelope).is_none() || !self.admit_visit(index, mend.point, is_sound) {
            return;
        }
        // Without memory it is forgotten: the question behind it finds that out, and it comes again.
        if let Some(buffer) = self.pool.take(PAGE_BYTES) {
            self.visits.as_mut().expect("looked at").queue.push_back(Visit::Mend(mend, buffer));
        }
    }

    pub(super) fn on_fetch(&mut self, index: usize, envelope: &Envelope, fetch: Fetch) {
        let is_sound = self.has_block(fetch.block);
        let is_late = self.is_delaying() && fetch.point > self.log.applied.position.sequence;
        if is_late || self.visits_of(index, envelope).is_none() {
            // Whoever cannot answer says so: somebody waits for it, or asks another one.
            let nothing = Fetched { number: fetch.number, bytes: None };
            return self.send(Place::Peer(index), Message::Fetched(nothing), false);
        }
        if !self.admit_visit(index, fetch.point, is_sound) {
            return;
        }
        match self.pool.take(2 * PAGE_BYTES) {
            Some(buffer) => {
                self.visits.as_mut().expect("looked at").queue.push_back(Visit::Fetch(fetch, buffer));
            }
            None => {
                let nothing = Fetched { number: fetch.number, bytes: None };
                self.send(Place::Peer(index), Message::Fetched(nothing), false);
            }
        }
    }

    /// The session of `link` is over. What is being read or written goes on to its end.
    pub(super) fn drop_visits(&mut self, link: LinkId) {
        if let Some(visits) = self.visits.take_if(|visits| visits.link == link) {
            visits.queue.iter().for_each(|visit| self.pool.give(visit.buffer()));
        }
    }

    /// Nothing beyond this is applied before the visit that waits there has had its turn.
    pub(super) fn visit_bound(&self) -> Option<Sequence> {
        let visits = self.visits.as_ref()?;
        visits.queue.iter().map(Visit::point).min()
    }

    /// Lets in whoever's turn has come.
    pub(super) fn pump_visits(&mut self, arena: &mut [u8]) {
        while self.mending.is_none() && !self.visit_sync && !self.is_failed() {
            let applied = self.log.applied.position.sequence;
            let Some(visits) = self.visits.as_mut() else { return };
            let Some(visit) = visits.queue.front().filter(|visit| visit.point() <= applied) else { return };
            let (link, session) = (visits.link, visits.session);
            match visit {
                Visit::Mend(mend, _) => {
                    let (from, to) = (mend.block * BLOCK_BYTES, (mend.block + 1) * BLOCK_BYTES);
                    let (block, sum) = (mend.block, Sum::of(mend.block, &mend.bytes));
                    if !self.apply.is_idle() || self.blocks_are_read(from, to) {
                        return;
                    }
                    if !self.may_bypass_bookmarks() || !self.may_overwrite(block, sum) {
                        return;
                    }
                    self.begin_mending(arena);
                }
                Visit::Check(..) if visits.is_unsynced => {
                    visits.is_unsynced = false;
                    self.visit_sync = true;
                    self.push(Command::SyncDisk { token: Io::VisitSync.token(0) });
                }
                Visit::Check(..) | Visit::Fetch(..) => {
                    if self.count_reads(|r| matches!(r, Reader::Check(..) | Reader::Fetch(..))) >= READING_MAX
                    {
                        return;
                    }
                    let volume_bytes = self.volume_bytes();
                    let visits = self.visits.as_mut().expect("looked at");
                    match visits.queue.pop_front().expect("looked at") {
                        Visit::Check(check, buffer) => {
                            let reader = Reader::Check(link, session, check.number);
                            let read = BlockRead::new(reader, check.word, check.bits, buffer, volume_bytes);
                            visits.comparing.push(check);
                            self.begin_block_read(read);
                        }
                        Visit::Fetch(fetch, buffer) => {
                            let reader = Reader::Fetch(link, session, fetch.number);
                            let (word, bit) = (fetch.block / WORD_BLOCKS, fetch.block % WORD_BLOCKS);
                            self.begin_block_read(BlockRead::new(
                                reader,
                                word,
                                1 << bit,
                                buffer,
                                volume_bytes,
                            ));
                        }
                        Visit::Mend(..) => unreachable!("told apart above"),
                    }
                }
            }
        }
    }

    fn begin_mending(&mut self, arena: &mut [u8]) {
        let visits = self.visits.as_mut().expect("the caller has it");
        let Some(Visit::Mend(mend, buffer)) = visits.queue.pop_front() else {
            unreachable!("the caller looked")
        };
        visits.is_unsynced = true;
        let span = Span { start: buffer.start(), len: mend.bytes.len() };
        arena[span.range()].copy_from_slice(&mend.bytes);
        let sum = Sum::of(mend.block, &mend.bytes);
        self.mending = Some(Mending { block: mend.block, buffer, link: visits.link, sum });
        let offset = mend.block * BLOCK_BYTES;
        self.note_bypass(offset, span.len as u64);
        self.push(Command::WriteDisk { token: Io::VisitWrite.token(0), offset, span });
    }

    pub(super) fn on_visit_written(&mut self, result: IoResult) {
        let Mending { block, buffer, link, sum } = self.mending.take().expect("a block was being written");
        self.pool.give(buffer);
        // A disk without space keeps what it has: the question behind this finds that out.
        let is_short = result.is_err_and(|errno| errno.is_no_space());
        if is_short || !self.device_ok("writing the disk", result) {
            return;
        }
        self.note_sum(block, sum);
        self.counters.mended_blocks += 1;
        let from = self.peers.iter().find(|peer| peer.link.as_ref().is_some_and(|of| of.id == link));
        if let Some(from) = from.map(|peer| peer.config.node) {
            self.report(Report::Mended { block, from });
        }
    }

    pub(super) fn on_visit_synced(&mut self, result: IoResult) {
        assert!(core::mem::take(&mut self.visit_sync), "the disk was being synced");
        self.device_ok("syncing the disk", result);
    }

    /// Compares what was read with what the Primary has at the same point.
    pub(super) fn answer_check(
        &mut self,
        link: LinkId,
        session: u64,
        number: u64,
        read: BlockRead,
        arena: &[u8],
    ) {
        self.pool.give(read.buffer);
        let of = |visits: &&mut Box<Visits>| visits.link == link && visits.session == session;
        let Some(visits) = self.visits.as_mut().filter(of) else { return };
        let Some(at) = visits.comparing.iter().position(|check| check.number == number) else { return };
        let check = visits.comparing.swap_remove(at);
        let mut checked = Checked {
            number,
            is_busy: false,
            differs: read.bad,
            unreadable: read.bad,
            hashes: [0; WORD_BLOCKS as usize],
        };
        let mut different = 0;
        for (rank, bit) in each_bit(check.bits).enumerate() {
            if read.bad >> bit & 1 == 1 {
                continue;
            }
            let mine = xxh3_128(&arena[read.block(bit).range()]);
            if mine != check.hashes[rank] {
                checked.differs |= 1 << bit;
                checked.hashes[different] = mine;
                different += 1;
            }
        }
        self.note_bad(&read);
        if let Some(found) = self.found.as_mut().filter(|found| found.run == check.run) {
            found.differs.clear_word(check.word, check.bits & !checked.differs);
            each_bit(checked.differs).for_each(|bit| {
                found.differs.set_bytes(check.word * WORD_BYTES + u64::from(bit) * BLOCK_BYTES, 1);
            });
        }
        if let Some(index) = self.peer_in_session(link, session) {
            self.send(Place::Peer(index), Message::Checked(Box::new(checked)), false);
        }
    }

    pub(super) fn answer_fetch(
        &mut self,
        link: LinkId,
        session: u64,
        number: u64,
        read: BlockRead,
        arena: &[u8],
    ) {
        self.pool.give(read.buffer);
        let bit = read.bits.trailing_zeros();
        let block = read.word * WORD_BLOCKS + u64::from(bit);
        // Whoever asks does not have it: to ask back would only go to and fro. Once it has it, it sends it.
        if read.rotten != 0 {
            self.count_rotten(block);
        } else if read.bad != 0 {
            self.count_unreadable(block);
        }
        let span = read.block(bit);
        let bytes = (read.bad == 0).then(|| Box::from(&arena[span.range()]));
        if let Some(index) = self.peer_in_session(link, session) {
            self.send(Place::Peer(index), Message::Fetched(Fetched { number, bytes }), false);
        }
    }

    /// Counts blocks of a word that are bad here, and has them written anew by the Primary if it is another one.
    pub(super) fn note_bad(&mut self, read: &BlockRead) {
        for bit in each_bit(read.bad) {
            let block = read.word * WORD_BLOCKS + u64::from(bit);
            if read.rotten >> bit & 1 == 1 {
                self.note_rotten(block);
            } else {
                self.note_unreadable(block);
            }
        }
    }

    /// The disk here cannot read a block.
    pub(super) fn note_unreadable(&mut self, block: u64) {
        self.count_unreadable(block);
        self.ask_for_block(block);
    }

    /// A block is not what was written there.
    pub(super) fn note_rotten(&mut self, block: u64) {
        if self.count_rotten(block) {
            self.ask_for_block(block);
        }
    }

    fn count_unreadable(&mut self, block: u64) {
        self.counters.unreadable_blocks += 1;
        self.report(Report::Unreadable { block });
    }

    /// Says `false` of a copy that is being written anew: there nobody expects what was written.
    fn count_rotten(&mut self, block: u64) -> bool {
        if self.meta.current.disk_state != DiskState::UpToDate {
            return false;
        }
        if self.is_newly_bad(block) {
            self.counters.rotten_blocks += 1;
            self.report(Report::Rotten { block });
        }
        true
    }

    /// Blocks here that differ from the Primary's, as the last verify left them.
    pub(super) fn found_blocks(&self) -> u64 {
        let is_incomplete = self.meta.current.disk_state != DiskState::UpToDate;
        self.found.as_ref().filter(|_| !is_incomplete).map_or(0, |found| found.differs.dirty_blocks())
    }

    /// What was found here is of the past: the copy is written anew.
    pub(super) fn forget_found(&mut self) {
        self.found = None;
    }
}
