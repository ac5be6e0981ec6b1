//! The log in memory: which frames lie where in the ring and in the arena, how far they are journaled, durable
//! and applied. It answers questions and keeps the counters honest; it starts no I/O.
//!
//! ```text
//! ring:    tail ....... applied ......... durable ....... journaled ....... head
//!          |  index, sparse  |   frames, every one of them, in order        |
//! ```

use alloc::collections::VecDeque;

use crate::disk::layout::Layout;
use crate::disk::superblock::LogPoint;
use crate::frame::FrameHeader;
use crate::limits::RING_RESERVE_BYTES;
use crate::units::{Buffer, Chain, Epoch, Instant, Position, RingOffset, Sequence};

/// A frame that is not yet applied, or whose bytes are still needed.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Sequence of the first entry; of the next one in a mark.
    pub first: Sequence,
    /// Number of entries; 0 in a mark.
    pub entries: u32,
    /// Bytes in the ring.
    pub total_bytes: u32,
    /// The reign that sequenced it.
    pub epoch: Epoch,
    /// Where it lies in the ring.
    pub ring_offset: RingOffset,
    /// Chain after its last entry.
    pub chain_after: Chain,
    /// The stable mark in its local part.
    pub local_stable: Sequence,
    /// When its Primary closed it, in milliseconds since 1970 by that one's clock; 0 if not known.
    pub closed_ms: u64,
    /// Before this a delayed replica does not apply it.
    pub due: Instant,
    /// Where its bytes are in the arena, while they are.
    pub buffer: Option<Buffer>,
    /// Sends that still read those bytes.
    pub holds: u32,
    /// Whether its journal write has completed.
    pub written: bool,
}

impl Frame {
    /// Sequence of the last entry; of the one before `first` in a mark.
    #[must_use]
    pub fn last(&self) -> Sequence {
        Sequence(self.first.0 - 1 + u64::from(self.entries))
    }

    /// Offset behind it.
    #[must_use]
    pub fn ring_end(&self) -> RingOffset {
        self.ring_offset.plus(u64::from(self.total_bytes))
    }

    /// The point of the log behind it.
    #[must_use]
    pub fn point_after(&self) -> LogPoint {
        let position = Position { epoch: self.epoch, sequence: self.last() };
        LogPoint { ring_offset: self.ring_end(), position, chain: self.chain_after }
    }
}

/// The log of one replica.
#[derive(Debug)]
pub struct Log {
    /// Where the ring lies.
    pub layout: Layout,
    /// End of the log.
    pub head: LogPoint,
    /// When its last entry was sequenced, in milliseconds since 1970; 0 if not known.
    pub head_ms: u64,
    /// Everything up to here is applied, not necessarily durably on the disk.
    pub applied: LogPoint,
    /// When the newest of that was closed, as [`Frame::closed_ms`]; 0 if not known.
    pub applied_ms: u64,
    /// Frames from `applied` on, and some before it whose bytes are still needed.
    frames: VecDeque<Frame>,
    /// Number of the frame at the front of `frames`.
    front: u64,
    /// Frames below this number are journaled.
    written: u64,
    /// Frames below this number are durable here.
    durable: u64,
    /// Last sequence of the frames below `written`.
    journaled_sequence: Sequence,
    /// Last sequence of the frames below `durable`.
    durable_sequence: Sequence,
    /// Newest stable mark in the local parts of durable frames.
    durable_mark: Sequence,
    /// Entries above `applied`.
    unapplied_entries: usize,
    /// Points from the tail to `applied`, about evenly spread, to find old frames from.
    index: VecDeque<LogPoint>,
    index_spacing_bytes: u64,
}

impl Log {
    /// A log that ends at `applied`, whose oldest frame is at `tail`; frames are added with [`Self::recover`].
    #[must_use]
    pub fn new(layout: Layout, tail: LogPoint, applied: LogPoint, frames_max: usize) -> Self {
        let mut index = VecDeque::with_capacity(4100);
        index.push_back(tail);
        let sequence = applied.position.sequence;
        Self {
            layout,
            head: applied,
            head_ms: 0,
            applied,
            applied_ms: 0,
            frames: VecDeque::with_capacity(frames_max),
            front: 0,
            written: 0,
            durable: 0,
            journaled_sequence: sequence,
            durable_sequence: sequence,
            durable_mark: Sequence(0),
            unapplied_entries: 0,
            index,
            index_spacing_bytes: (layout.ring_bytes / 4096).max(1 << 20),
        }
    }

    /// Adds a frame that recovery found, durable and not in memory.
    pub fn recover(&mut self, header: &FrameHeader, ring_offset: RingOffset, local_stable: Sequence) {
        self.push(header, ring_offset, local_stable, None);
        let frame = self.frames.back_mut().expect("just pushed");
        frame.written = true;
        self.written += 1;
        self.durable += 1;
        self.journaled_sequence = header.last();
        self.durable_sequence = header.last();
        self.durable_mark = self.durable_mark.max(local_stable);
    }

    /// Where a frame of `bytes` would lie, if the ring has room for it down to `tail`. Control frames may use the
    /// space kept for them.
    #[must_use]
    pub fn place(&self, tail: RingOffset, bytes: u64, control: bool) -> Option<RingOffset> {
        let at = self.layout.place(self.head.ring_offset, bytes);
        let reserve = if control { 0 } else { RING_RESERVE_BYTES };
        let used = at.plus(bytes).0 - tail.0;
        (used + reserve <= self.layout.ring_bytes).then_some(at)
    }

    /// Adds the next frame and returns its number.
    ///
    /// # Panics
    /// If it does not continue the log: whoever calls has checked it.
    pub fn push(
        &mut self,
        header: &FrameHeader,
        ring_offset: RingOffset,
        local_stable: Sequence,
        buffer: Option<Buffer>,
    ) -> u64 {
        assert!(header.first == self.head.position.sequence.next(), "frames follow one another");
        assert!(header.chain_before == self.head.chain, "the chain is not broken");
        assert!(ring_offset >= self.head.ring_offset, "the ring is filled forwards");
        assert!(header.epoch >= self.head.position.epoch || header.entries == 0, "epochs do not go back");
        let frame = Frame {
            first: header.first,
            entries: header.entries,
            total_bytes: header.total_bytes,
            epoch: header.epoch,
            ring_offset,
            chain_after: header.chain_after,
            local_stable,
            closed_ms: header.closed_ms,
            due: Instant(0),
            buffer,
            holds: 0,
            written: false,
        };
        if header.entries > 0 {
            self.head.position = header.last_position();
            self.head.chain = header.chain_after;
            self.head_ms = header.closed_ms;
        }
        self.head.ring_offset = frame.ring_end();
        self.unapplied_entries += header.entries as usize;
        self.frames.push_back(frame);
        self.front + self.frames.len() as u64 - 1
    }

    /// The frame of that number, while it is kept.
    #[must_use]
    pub fn frame(&self, number: u64) -> Option<&Frame> {
        self.frames.get(usize::try_from(number.checked_sub(self.front)?).ok()?)
    }

    /// The frame of that number, while it is kept.
    pub fn frame_mut(&mut self, number: u64) -> Option<&mut Frame> {
        self.frames.get_mut(usize::try_from(number.checked_sub(self.front)?).ok()?)
    }

    /// Number of the frame that holds entry `sequence`, while it is kept.
    #[must_use]
    pub fn find(&self, sequence: Sequence) -> Option<u64> {
        if sequence > self.head.position.sequence {
            return None;
        }
        let index = self.frames.partition_point(|frame| frame.last() < sequence);
        let frame = self.frames.get(index)?;
        (frame.first <= sequence).then_some(self.front + index as u64)
    }

    /// Bytes of the ring behind entry `sequence`, up to the head; more, by at most the spacing of the index, where its
    /// frame is not kept. `None` if it lies before the tail.
    #[must_use]
    pub fn bytes_behind(&self, sequence: Sequence) -> Option<u64> {
        let kept = self.frames.partition_point(|frame| frame.last() <= sequence);
        let is_kept = self.frames.front().is_some_and(|front| front.first <= sequence.next());
        let end = match kept.checked_sub(1).and_then(|before| self.frames.get(before)) {
            Some(frame) => frame.ring_end(),
            None if is_kept => self.frames.front()?.ring_offset,
            None if sequence >= self.head.position.sequence => self.head.ring_offset,
            None => {
                let known = self.index.partition_point(|point| point.position.sequence <= sequence);
                self.index.get(known.checked_sub(1)?)?.ring_offset
            }
        };
        Some(self.head.ring_offset.0 - end.0)
    }

    /// Number of the first frame above `applied`.
    #[must_use]
    pub fn first_unapplied(&self) -> u64 {
        let applied = self.applied.ring_offset;
        self.front + self.frames.partition_point(|frame| frame.ring_end() <= applied) as u64
    }

    /// Number that the next frame will get.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.front + self.frames.len() as u64
    }

    /// Notes that a frame's journal write has completed.
    pub fn mark_written(&mut self, number: u64) {
        let frame = self.frame_mut(number).expect("a frame stays until it is written");
        assert!(!frame.written, "a frame is written once");
        frame.written = true;
        while let Some(frame) = self.frame(self.written).copied().filter(|frame| frame.written) {
            self.journaled_sequence = frame.last();
            self.written += 1;
        }
    }

    /// Frames below this number have completed their journal writes: what a sync submitted now covers.
    #[must_use]
    pub fn written_number(&self) -> u64 {
        self.written
    }

    /// Whether some journaled frame is not durable.
    #[must_use]
    pub fn has_undurable(&self) -> bool {
        self.durable < self.written
    }

    /// Whether some journal write is under way.
    #[must_use]
    pub fn has_unwritten(&self) -> bool {
        self.written < self.next_number()
    }

    /// Notes that a sync which was submitted when [`Self::written_number`] was `covered` has succeeded.
    pub fn mark_durable(&mut self, covered: u64) {
        assert!(covered <= self.written, "a sync covers only completed writes");
        while self.durable < covered {
            let frame = *self.frame(self.durable).expect("a frame stays until it is durable");
            self.durable_sequence = frame.last();
            self.durable_mark = self.durable_mark.max(frame.local_stable);
            self.durable += 1;
        }
    }

    /// Frames below this number are durable here.
    #[must_use]
    pub fn durable_number(&self) -> u64 {
        self.durable
    }

    /// Written to the journal, without gaps.
    #[must_use]
    pub fn journaled(&self) -> Sequence {
        self.journaled_sequence
    }

    /// Durable in the journal.
    #[must_use]
    pub fn durable(&self) -> Sequence {
        self.durable_sequence
    }

    /// Newest stable mark that is durable in the journal.
    #[must_use]
    pub fn durable_mark(&self) -> Sequence {
        self.durable_mark
    }

    /// Last entry.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.head.position.sequence
    }

    /// Newest stable mark in the local part of any frame, durable or not.
    #[must_use]
    pub fn newest_mark(&self) -> Sequence {
        self.frames.back().map_or(self.durable_mark, |frame| frame.local_stable.max(self.durable_mark))
    }

    /// Entries that are not applied.
    #[must_use]
    pub fn unapplied_entries(&self) -> usize {
        self.unapplied_entries
    }

    /// Notes that everything up to and including frame `number` is applied; calls `free` with the buffers that
    /// become free.
    pub fn mark_applied(&mut self, number: u64, mut free: impl FnMut(Buffer)) {
        for n in self.first_unapplied()..=number {
            let frame = *self.frame(n).expect("a frame stays until it is applied");
            assert!(n < self.durable, "only what is durable here is applied");
            self.unapplied_entries -= frame.entries as usize;
            let mut point = frame.point_after();
            if frame.entries == 0 {
                point.position = self.applied.position;
            }
            self.applied = point;
            if frame.closed_ms > 0 {
                self.applied_ms = frame.closed_ms;
            }
            let last = self.index.back().expect("the tail is always there").ring_offset;
            if point.ring_offset.0 >= last.0 + self.index_spacing_bytes {
                self.index.push_back(point);
            }
            self.take_done_buffer(n).into_iter().for_each(&mut free);
        }
        self.drop_done();
    }

    /// Notes that one more send reads the frame's bytes.
    pub fn hold(&mut self, number: u64) {
        self.frame_mut(number).expect("a frame that is sent is kept").holds += 1;
    }

    /// Notes that one send less reads the frame's bytes; returns its buffer if that was all it was kept for.
    pub fn unhold(&mut self, number: u64) -> Option<Buffer> {
        let frame = self.frame_mut(number).expect("a held frame is kept");
        frame.holds = frame.holds.checked_sub(1).expect("a hold is given up once");
        let buffer = self.take_done_buffer(number);
        self.drop_done();
        buffer
    }

    /// Whether a frame with entries beyond `sequence` is being sent.
    #[must_use]
    pub fn is_held_beyond(&self, sequence: Sequence) -> bool {
        self.frames.iter().rev().take_while(|frame| frame.last() > sequence).any(|frame| frame.holds > 0)
    }

    /// Takes the buffer of a frame that is applied and read by nobody. A frame that is still held by a slow link
    /// must not keep the buffers of those behind it.
    fn take_done_buffer(&mut self, number: u64) -> Option<Buffer> {
        let applied = self.applied.ring_offset;
        let frame = self.frame_mut(number)?;
        if frame.holds == 0 && frame.ring_end() <= applied { frame.buffer.take() } else { None }
    }

    /// Gives up the memory of the frames from number `from` on that are journaled and that nobody sends; they are read
    /// back when they are to be applied. Returns the number of the first frame that it did not come to.
    pub fn release_journaled(&mut self, from: u64, mut free: impl FnMut(Buffer)) -> u64 {
        let from = from.max(self.first_unapplied());
        for number in from..self.written {
            let frame = self.frame_mut(number).expect("a frame stays until it is applied");
            if frame.holds == 0 {
                frame.buffer.take().into_iter().for_each(&mut free);
            }
        }
        from.max(self.written)
    }

    /// Takes the memory of the newest frame that [`Self::release_journaled`] would release from number `from` on.
    pub fn release_newest(&mut self, from: u64) -> Option<Buffer> {
        for number in (from.max(self.first_unapplied())..self.written).rev() {
            let frame = self.frame_mut(number).expect("a frame stays until it is applied");
            if frame.holds == 0 && frame.buffer.is_some() {
                return frame.buffer.take();
            }
        }
        None
    }

    /// Forgets the frames at the front that are applied and hold no memory.
    fn drop_done(&mut self) {
        let applied = self.applied.ring_offset;
        while let Some(frame) = self.frames.front() {
            if frame.ring_end() > applied || frame.buffer.is_some() {
                break;
            }
            self.frames.pop_front();
            self.front += 1;
        }
    }

    /// The best point at or before entry `sequence` to look for older frames from, if the ring still has them.
    #[must_use]
    pub fn point_before(&self, sequence: Sequence) -> Option<LogPoint> {
        let count = self.index.partition_point(|point| point.position.sequence < sequence);
        count.checked_sub(1).map(|index| self.index[index])
    }

    /// Oldest point of the ring.
    #[must_use]
    pub fn tail(&self) -> LogPoint {
        *self.index.front().expect("the tail is always there")
    }

    /// The first known point at or behind `offset`, not beyond `limit`: where the tail may move to.
    #[must_use]
    pub fn tail_candidate(&self, offset: RingOffset, limit: LogPoint) -> LogPoint {
        let index = self.index.partition_point(|point| point.ring_offset < offset);
        let point = self.index.get(index).copied().unwrap_or(limit);
        if point.ring_offset > limit.ring_offset { limit } else { point }
    }

    /// Moves the tail: what lies before `point` may be overwritten.
    pub fn set_tail(&mut self, point: LogPoint) {
        while self.index.front().is_some_and(|first| first.ring_offset < point.ring_offset) {
            self.index.pop_front();
        }
        if self.index.front().is_none_or(|first| first.ring_offset > point.ring_offset) {
            self.index.push_front(point);
        }
    }

    /// Cuts everything behind entry `last`; returns false if that is not a frame's end. Calls `free` with the
    /// buffers that become free. Nothing may be under way.
    ///
    /// # Panics
    /// If something applied would be cut, or a write is under way.
    pub fn truncate(&mut self, last: Sequence, mut free: impl FnMut(Buffer)) -> bool {
        assert!(!self.has_unwritten(), "a log is cut when nothing is under way");
        assert!(last >= self.applied.position.sequence, "applied entries are never cut");
        if last == self.last() {
            return true;
        }
        let keep = self.frames.partition_point(|frame| frame.last() <= last);
        let end = keep.checked_sub(1).map(|index| self.frames[index]);
        let head = match &end {
            Some(frame) if frame.ring_end() > self.applied.ring_offset => LogPoint {
                ring_offset: frame.ring_end(),
                position: Position { epoch: frame.epoch, sequence: frame.last() },
                chain: frame.chain_after,
            },
            _ => self.applied,
        };
        if head.position.sequence != last {
            return false;
        }
        while self.frames.len() > keep {
            let frame = self.frames.pop_back().expect("counted");
            assert!(frame.holds == 0, "nobody sends what is cut");
            self.unapplied_entries -= frame.entries as usize;
            if let Some(buffer) = frame.buffer {
                free(buffer);
            }
        }
        self.head = head;
        self.written = self.next_number();
        self.durable = self.durable.min(self.written);
        self.journaled_sequence = last;
        self.durable_sequence = self.durable_sequence.min(last);
        true
    }

    /// Gives up everything that is not applied, and all memory; calls `free` with the buffers. Nothing may be under way.
    pub fn forget(&mut self, mut free: impl FnMut(Buffer)) {
        for frame in &mut self.frames {
            assert!(frame.holds == 0 && frame.written, "a log is given up when nothing is under way");
            frame.buffer.take().into_iter().for_each(&mut free);
        }
        self.applied = self.head;
    }

    /// Begins anew at `base`, where nothing is known of what came before; frames go on behind the old head.
    ///
    /// # Panics
    /// If something is under way, or not applied: it would be lost without a trace.
    pub fn restart(&mut self, position: Position, chain: Chain) {
        assert!(
            !self.has_unwritten() && !self.has_undurable(),
            "a log begins anew when nothing is under way"
        );
        assert!(self.applied.position.sequence == self.last(), "and everything is applied");
        assert!(self.frames.iter().all(|frame| frame.buffer.is_none()), "and nobody reads it");
        self.front = self.next_number();
        self.frames.clear();
        (self.written, self.durable) = (self.front, self.front);
        let sequence = position.sequence;
        (self.journaled_sequence, self.durable_sequence) = (sequence, sequence);
        self.durable_mark = Sequence(0);
        self.unapplied_entries = 0;
        self.head = LogPoint { ring_offset: self.head.ring_offset, position, chain };
        self.applied = self.head;
        self.index.clear();
        self.index.push_back(self.head);
    }

    /// The next frame goes to `at`, or behind it: something else lies before.
    ///
    /// # Panics
    /// If that is before the end of the log.
    pub fn skip_to(&mut self, at: RingOffset) {
        assert!(at >= self.head.ring_offset, "the ring is filled forwards");
        self.head.ring_offset = at;
    }

    /// Whether the bytes of some frame are still in memory.
    #[must_use]
    pub fn has_buffers(&self) -> bool {
        self.frames.iter().any(|frame| frame.buffer.is_some())
    }

    /// Bytes of the ring in use.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.head.ring_offset.0 - self.tail().ring_offset.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ReignId, VolumeId};

    #[test]
    fn what_lies_behind_an_entry_is_known_as_long_as_the_log_reaches_back() {
        let layout = Layout::with(1 << 30, 64 << 20, false).unwrap();
        let begin = LogPoint {
            ring_offset: RingOffset(0),
            position: Position { epoch: Epoch(1), sequence: Sequence(5) },
            chain: Chain(0),
        };
        let mut log = Log::new(layout, begin, begin, 16);
        assert_eq!(log.bytes_behind(Sequence(5)), Some(0));
        for turn in 0..3_u64 {
            let header = FrameHeader {
                volume: VolumeId(1),
                epoch: Epoch(1),
                reign: ReignId(1),
                first: Sequence(6 + 2 * turn),
                entries: 2,
                total_bytes: 8192,
                chain_before: Chain(0),
                chain_after: Chain(0),
                committed: Sequence(0),
                stable: Sequence(0),
                closed_ms: 0,
            };
            log.push(&header, RingOffset(8192 * turn), Sequence(0), None);
        }
        let behind = |sequence| log.bytes_behind(Sequence(sequence));
        assert_eq!(
            [behind(5), behind(7), behind(9), behind(11)],
            [Some(24576), Some(16384), Some(8192), Some(0)]
        );
        assert_eq!(behind(8), Some(16384), "half a frame is not journaled");
        assert_eq!(behind(4), None, "that is before the tail");
    }
}
