//! Apply: entries reach the backing disk, in whole frames, only up to a stable mark that is itself durable here.
//! A batch of frames is reduced to the bytes that are still wanted, which are disjoint and so need no order;
//! the next batch begins when the last one is done. A disk without space is tried again until it has some.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::batch_sums::BatchSums;
use super::commit::each_extent;
use super::{Io, Machine, index_of};
use crate::batch::Batch;
use crate::command::{Command, Report};
use crate::event::{Errno, IoResult};
use crate::extents::{Content, Extent};
use crate::frame;
use crate::limits::FRAME_ENTRIES_MAX;
use crate::log::Frame;
use crate::pool::Pool;
use crate::units::{Buffer, Instant, Sequence, Span, Token};

/// Frames one batch may have.
const BATCH_FRAMES_MAX: u64 = 64;
/// Bytes one batch may have.
const BATCH_BYTES_MAX: u64 = 8 << 20;
/// Bytes zeroed at a time, at least.
const ZERO_PIECE_BYTES: u64 = 256 << 20;
/// Pieces of one range.
const ZERO_PIECES_MAX: u64 = 1024;
/// Frames that are read back at one time. What waited in the journal must not be slower than what comes.
const LOADS_MAX: usize = 32;
/// Bytes read back at one time.
const LOAD_BYTES_MAX: u64 = 4 << 20;
/// How long apply waits before it asks a disk that had no space again.
pub(super) const SPACE_RETRY_MS: u64 = 200;

/// Entries on their way to the disk.
#[derive(Debug)]
pub(super) struct Apply {
    batch: Batch,
    /// Last frame of the batch under way.
    batch_end: Option<u64>,
    pub(super) batch_sums: Option<Box<BatchSums>>,
    writes_left: u32,
    /// Nothing beyond this entry was ever written to the disk.
    touched: Sequence,
    /// A write of the batch under way found no space.
    is_short: bool,
    /// Since the disk had no space nothing was applied; when to try again.
    retry_at: Option<Instant>,
    /// Frames that are being read back into memory: what recovery found, or what gave its memory up.
    loading: Vec<(u64, Buffer)>,
    /// Memory for such a frame that nothing else may take: what comes in later cannot be applied, and so not freed,
    /// before what was there first.
    reserve: Buffer,
    reserve_is_free: bool,
}

impl Apply {
    pub(super) fn new(reserve: Buffer, touched: Sequence) -> Self {
        Self {
            batch: Batch::new(BATCH_FRAMES_MAX as usize * FRAME_ENTRIES_MAX),
            batch_end: None,
            batch_sums: None,
            writes_left: 0,
            touched,
            is_short: false,
            retry_at: None,
            loading: Vec::with_capacity(LOADS_MAX),
            reserve,
            reserve_is_free: true,
        }
    }

    /// The log begins anew behind `sequence`, and everything before is on the disk.
    pub(super) fn restart(&mut self, sequence: Sequence) {
        self.touched = sequence;
    }

    /// Whether the disk shows what was applied, up to `applied`, and no part of what comes next.
    pub(super) fn is_settled(&self, applied: Sequence) -> bool {
        self.batch_end.is_none() && self.touched <= applied
    }

    /// The last frame of the batch that is being written.
    pub(super) fn batch_end(&self) -> Option<u64> {
        self.batch_end
    }

    /// Whether nothing is being written.
    pub(super) fn is_between_batches(&self) -> bool {
        self.batch_end.is_none()
    }

    /// What the batch under way writes.
    pub(super) fn extents(&self) -> &[Extent] {
        self.batch.extents()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.batch_end.is_none() && self.loading.is_empty()
    }

    /// Calls `visit` with each extent of the batch that was applied last.
    pub(super) fn each_applied(&self, visit: impl FnMut(&Extent)) {
        self.batch.extents().iter().for_each(visit);
    }

    /// Whether what is to be applied waits for space on the disk.
    pub(super) fn waits_for_space(&self) -> bool {
        self.retry_at.is_some()
    }

    /// When to try a disk again that had no space.
    pub(super) fn retry_due(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.batch_end.is_none())
    }

    pub(super) fn is_loading(&self) -> bool {
        !self.loading.is_empty()
    }

    fn take_reserve(&mut self) -> Option<Buffer> {
        core::mem::take(&mut self.reserve_is_free).then_some(self.reserve)
    }
}

/// A range to be zeroed, in pieces that a slow disk can do one by one before it is taken for one that hangs.
fn pieces(start: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let piece = len.div_ceil(ZERO_PIECES_MAX).next_multiple_of(1 << 20).max(ZERO_PIECE_BYTES);
    (0..len.div_ceil(piece)).map(move |n| (start + n * piece, piece.min(len - n * piece)))
}

/// Gives a frame's buffer back to where it came from.
pub(super) fn give_back(pool: &mut Pool, apply: &mut Apply, buffer: Buffer) {
    if buffer == apply.reserve {
        assert!(!apply.reserve_is_free, "the reserve is given back once");
        apply.reserve_is_free = true;
    } else {
        pool.give(buffer);
    }
}

impl Machine {
    /// The last entry that may be applied now.
    pub(super) fn apply_bound(&self) -> Sequence {
        let mut bound = self.persist.durable_mark(&self.log).min(self.log.durable());
        let waits = [self.intake_bound(), self.visit_bound(), self.delay_bound()];
        for point in waits.into_iter().flatten() {
            bound = bound.min(point);
        }
        // A limit counts from when it is chosen until it is surely no longer stored.
        for superblock in [&self.meta.current, &self.meta.saved] {
            let limit = Some(superblock.apply_limit).filter(|limit| *limit > Sequence(0));
            for limit in limit.into_iter().chain(superblock.apply_reach) {
                bound = bound.min(limit);
            }
        }
        bound
    }

    /// The last entry of which the disk may show something: entries up to it may have been written before a crash, or
    /// are being written now.
    pub(super) fn apply_end(&self) -> Sequence {
        self.log.applied.position.sequence.max(self.apply.touched.min(self.log.last()))
    }

    pub(super) fn pump_apply(&mut self, arena: &mut [u8]) {
        if !self.apply.is_idle() || self.is_failed() || self.apply.retry_at.is_some_and(|due| due > self.now)
        {
            return;
        }
        if self.apply.waits_for_space() {
            // Should nothing be applied now for another reason, it is not asked for in a busy loop.
            self.apply.retry_at = Some(self.now.plus_ms(SPACE_RETRY_MS));
        }
        if self.placing.is_some() || self.mending.is_some() || self.replay.is_some() {
            return;
        }
        let bound = self.apply_bound();
        let first = self.log.first_unapplied();
        let mut bytes = 0;
        let mut end = None;
        self.apply.batch.clear();
        for number in first..first + BATCH_FRAMES_MAX {
            let Some(frame) = self.log.frame(number).copied() else { break };
            if frame.last() > bound || number >= self.log.durable_number() || bytes > BATCH_BYTES_MAX {
                break;
            }
            if frame.entries > 0 {
                let Some(buffer) = frame.buffer else {
                    if end.is_none() {
                        self.load(number, bound);
                    }
                    break;
                };
                if self.is_being_read(buffer, frame.first, arena) {
                    break;
                }
                let batch = &mut self.apply.batch;
                each_extent(buffer, frame.first, arena, |extent| batch.add(extent));
            }
            bytes += u64::from(frame.total_bytes);
            end = Some(number);
        }
        if let Some(end) = end {
            self.start_batch(end);
        }
    }

    /// A read from the disk that did not see these entries must not find them half written.
    fn is_being_read(&self, buffer: Buffer, first: Sequence, arena: &[u8]) -> bool {
        if self.reads.is_empty() && self.block_reads.is_empty() && self.mends.is_empty() {
            return false;
        }
        let mut blocked = false;
        each_extent(buffer, first, arena, |extent| {
            blocked |= self.reads.blocks(extent.start, extent.end(), extent.sequence);
            blocked |= self.blocks_are_read(extent.start, extent.end());
            blocked |= self.is_exchanging(extent.start, extent.end());
        });
        blocked
    }

    fn start_batch(&mut self, end: u64) {
        self.apply.batch.reduce();
        self.apply.batch_end = Some(end);
        let first = self.log.frame(self.log.first_unapplied()).expect("the caller looked").first;
        let is_new = first > self.apply.touched;
        let last = self.log.frame(end).expect("the caller looked").last();
        self.apply.touched = self.apply.touched.max(last);
        if self.begin_batch_sums(is_new) {
            self.write_batch();
        }
    }

    /// Writes the batch, once its edges are known.
    pub(super) fn write_batch(&mut self) {
        let (volume_bytes, token) = (self.volume_bytes(), Io::Apply.token(0));
        let Self { apply, commands, .. } = self;
        let mut writes = 0;
        for extent in apply.batch.extents() {
            assert!(extent.end() <= volume_bytes, "an entry's range was checked before it entered the log");
            match extent.content {
                Content::Bytes { at } => {
                    let len = usize::try_from(extent.len).expect("a payload");
                    let span = Span { start: at, len };
                    commands.push_back(Command::WriteDisk { token, offset: extent.start, span });
                    writes += 1;
                }
                Content::Zero(kind) => {
                    for (offset, length) in pieces(extent.start, extent.len) {
                        commands.push_back(Command::ZeroDisk { token, offset, length, kind });
                        writes += 1;
                    }
                }
            }
        }
        self.counters.disk_writes += u64::from(writes);
        self.apply.writes_left = writes;
        if writes == 0 {
            self.end_writing();
        }
    }

    pub(super) fn on_disk_written(&mut self, result: IoResult) {
        self.apply.writes_left -= 1;
        match result {
            // Nothing is wrong with the copy. What was acknowledged is in the journal and can wait there.
            Err(errno) if errno.is_no_space() => self.apply.is_short = true,
            result => {
                self.device_ok("writing the disk", result);
            }
        }
        if self.apply.writes_left > 0 || self.is_failed() {
            return;
        }
        if core::mem::take(&mut self.apply.is_short) {
            self.apply.batch_end = None;
            self.apply.batch_sums = None;
            if !self.apply.waits_for_space() {
                self.report(Report::DiskFull);
            }
            self.apply.retry_at = Some(self.now.plus_ms(SPACE_RETRY_MS));
        } else {
            self.end_writing();
        }
    }

    fn end_writing(&mut self) {
        if self.apply.batch_sums.is_none() {
            return self.finish_batch();
        }
        self.begin_noting();
    }

    pub(super) fn finish_batch(&mut self) {
        self.apply.batch_sums = None;
        let end = self.apply.batch_end.take().expect("a batch was under way");
        let in_memory = |frame: &Frame| frame.entries == 0 || frame.buffer.is_some();
        let mut batch = (self.log.first_unapplied()..=end).filter_map(|number| self.log.frame(number));
        assert!(batch.all(in_memory), "what a batch is written from is not given up");
        if self.apply.retry_at.take().is_some() {
            self.report(Report::DiskHasSpace);
        }
        let last = self.log.frame(end).expect("a frame stays until it is applied").last();
        let Self { apply, overlay, .. } = self;
        if !overlay.is_empty() {
            for extent in apply.batch.extents() {
                overlay.remove_through(extent.start, extent.end(), last);
            }
        }
        let before = self.log.applied.ring_offset;
        let Self { log, pool, apply, .. } = self;
        log.mark_applied(end, |buffer| give_back(pool, apply, buffer));
        self.checkpoint.applied_bytes += self.log.applied.ring_offset.0 - before.0;
        self.grow_through(last);
        self.track_applied(last);
    }

    /// Reads back the frames from `first` on that are to be applied and are not in memory.
    fn load(&mut self, first: u64, bound: Sequence) {
        let mut bytes = 0;
        for number in first..first + LOADS_MAX as u64 {
            let Some(frame) = self.log.frame(number).copied() else { return };
            let is_next = frame.last() <= bound && number < self.log.durable_number();
            if !is_next || frame.buffer.is_some() || bytes > LOAD_BYTES_MAX {
                return;
            }
            if frame.entries == 0 {
                continue;
            }
            let plenty = self.pool.free_pages() > self.pool.pages() / 4;
            let taken = if plenty { self.pool.take(frame.total_bytes as usize) } else { None };
            let reserve = || if number == first { self.apply.take_reserve() } else { None };
            let Some(buffer) = taken.or_else(reserve) else { return };
            self.apply.loading.push((number, buffer));
            bytes += u64::from(frame.total_bytes);
            let device_offset = self.log.layout.device_offset(frame.ring_offset);
            let span = Span { start: buffer.start(), len: frame.total_bytes as usize };
            self.push(Command::ReadJournal { token: Io::Load.token(number), device_offset, span });
        }
    }

    pub(super) fn on_loaded(&mut self, token: Token, result: IoResult, arena: &mut [u8]) {
        let number = index_of(token);
        let at = self.apply.loading.iter().position(|(other, _)| *other == number).expect("it was loading");
        let (_, buffer) = self.apply.loading.swap_remove(at);
        let bytes = &arena[buffer.span().range()];
        let sound = result.is_ok()
            && frame::decode(bytes).is_ok_and(|header| {
                let expected = self.log.frame(number).expect("a frame stays until it is applied");
                header.first == expected.first
                    && header.chain_after == expected.chain_after
                    && frame::check_payloads(bytes, &header).is_ok()
            });
        if sound {
            self.log.frame_mut(number).expect("checked").buffer = Some(buffer);
        } else {
            give_back(&mut self.pool, &mut self.apply, buffer);
            self.fail_device("reading back the journal", result.err().unwrap_or(Errno(5)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_without_a_gap_and_are_not_too_many() {
        for (start, len) in [(512, 512), (0, 256 << 20), (4096, (256 << 20) + 512), (1 << 40, 1 << 49)] {
            let all: Vec<_> = pieces(start, len).collect();
            assert!(all.len() as u64 <= ZERO_PIECES_MAX);
            let end = all.iter().fold(start, |at, (offset, length)| {
                assert!(*offset == at && *length > 0);
                at + length
            });
            assert_eq!(end, start + len);
        }
    }
}
