//! Reads: a view of what is committed, taken when the read is issued. What unapplied entries cover is copied
//! from memory at once; only the gaps are read from the disk.

use alloc::vec::Vec;

use super::{Io, Machine, index_of};
use crate::command::{Command, RequestError};
use crate::event::{IoResult, ZeroKind};
use crate::extents::Content;
use crate::units::{Epoch, RequestId, SECTOR_BYTES, Sequence, Span, Token};

/// A read that waits for the disk.
#[derive(Clone, Copy, Debug)]
struct Read {
    request: RequestId,
    start: u64,
    end: u64,
    destination: Span,
    /// How often its blocks were mended already.
    tries: u32,
    /// Entries up to here were in its view.
    view: Sequence,
    /// The reign that took it: what it saw may be of the past in another one.
    epoch: Epoch,
    /// Of the frozen export: what it saw is right whatever has become of the role.
    frozen: bool,
    parts_left: u32,
    failed: bool,
}

/// Reads under way.
#[derive(Debug)]
pub(super) struct Reads {
    slots: Vec<Option<Read>>,
    free: Vec<u32>,
    /// Gaps of the read being taken apart.
    gaps: Vec<(u64, u64)>,
}

impl Reads {
    pub(super) fn new() -> Self {
        let (slots, free) = (Vec::with_capacity(1024), Vec::with_capacity(1024));
        Self { slots, free, gaps: Vec::with_capacity(64) }
    }

    fn add(&mut self, read: Read) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(read);
            return slot;
        }
        self.slots.push(Some(read));
        u32::try_from(self.slots.len() - 1).expect("reads are bounded by the arena")
    }

    /// Whether a read that did not see entry `sequence` may still be reading `start..end` from the disk.
    pub(super) fn blocks(&self, start: u64, end: u64, sequence: Sequence) -> bool {
        let overlaps = |read: &Read| read.start < end && read.end > start && read.view < sequence;
        self.slots.iter().flatten().any(overlaps)
    }

    /// Whether any read waits for the disk.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

impl Machine {
    pub(super) fn on_read(&mut self, request: RequestId, offset: u64, destination: Span, arena: &mut [u8]) {
        let end = offset.saturating_add(destination.len as u64);
        let aligned = offset.is_multiple_of(SECTOR_BYTES) && end.is_multiple_of(SECTOR_BYTES);
        if !self.role.is_serving() || end > self.meta.saved.volume_bytes || !aligned {
            let serving = self.role.is_serving();
            let error = if serving { RequestError::Range } else { RequestError::NotServing };
            self.complete(request, Err(error));
            return;
        }
        self.counters.reads += 1;
        self.counters.read_bytes += destination.len as u64;
        self.begin_read(request, offset, destination, 0, arena);
    }

    /// Takes a view and reads what it does not cover.
    pub(super) fn begin_read(
        &mut self,
        request: RequestId,
        offset: u64,
        destination: Span,
        tries: u32,
        arena: &mut [u8],
    ) {
        let end = offset + destination.len as u64;
        self.cover_committed(arena);
        self.copy_covered(offset, end, destination, arena);
        if self.reads.gaps.is_empty() {
            self.complete(request, Ok(()));
            return;
        }
        let gaps = core::mem::take(&mut self.reads.gaps);
        let parts_left = u32::try_from(gaps.len()).expect("bounded by the sectors of a read");
        let (view, epoch, failed) = (self.overlay_through, self.meta.saved.record.epoch, false);
        let start = offset;
        let frozen = false;
        let read = Read { request, start, end, destination, tries, view, epoch, frozen, parts_left, failed };
        let slot = self.reads.add(read);
        for &(from, to) in &gaps {
            let skip = usize::try_from(from - offset).expect("within the destination");
            let len = usize::try_from(to - from).expect("within the destination");
            let span = Span { start: destination.start + skip, len };
            self.push(Command::ReadDisk { token: Io::Read.token(u64::from(slot)), offset: from, span });
        }
        self.reads.gaps = gaps;
    }

    /// A read of what the disk holds while apply stands still. Should that end meanwhile, nothing is applied under it.
    pub(super) fn on_read_frozen(&mut self, request: RequestId, offset: u64, destination: Span) {
        let end = offset.saturating_add(destination.len as u64);
        let aligned = offset.is_multiple_of(SECTOR_BYTES) && end.is_multiple_of(SECTOR_BYTES);
        if !self.is_frozen_open() || end > self.meta.saved.volume_bytes || !aligned {
            let error = if self.is_frozen_open() { RequestError::Range } else { RequestError::NotServing };
            return self.complete(request, Err(error));
        }
        self.counters.reads += 1;
        self.counters.read_bytes += destination.len as u64;
        let (view, epoch) = (self.log.applied.position.sequence, self.meta.saved.record.epoch);
        let (start, tries, frozen, parts_left, failed) = (offset, 0, true, 1, false);
        let read = Read { request, start, end, destination, tries, view, epoch, frozen, parts_left, failed };
        let slot = self.reads.add(read);
        self.push(Command::ReadDisk { token: Io::Read.token(u64::from(slot)), offset, span: destination });
    }

    /// Copies what unapplied entries cover of `offset..end`, and collects the gaps.
    fn copy_covered(&mut self, offset: u64, end: u64, destination: Span, arena: &mut [u8]) {
        let gaps = &mut self.reads.gaps;
        gaps.clear();
        let mut at = offset;
        self.overlay.overlapping(offset, end, |extent| {
            let part = extent.clip(offset, end);
            if part.start > at {
                gaps.push((at, part.start));
            }
            at = part.end();
            let to =
                destination.start + usize::try_from(part.start - offset).expect("within the destination");
            let len = usize::try_from(part.len).expect("within the destination");
            match part.content {
                Content::Bytes { at } => arena.copy_within(at..at + len, to),
                Content::Zero(ZeroKind::Trim | ZeroKind::Zeroes) => arena[to..to + len].fill(0),
            }
        });
        if at < end {
            gaps.push((at, end));
        }
    }

    pub(super) fn on_disk_read(&mut self, token: Token, result: IoResult) {
        let slot = usize::try_from(index_of(token)).expect("a slot");
        let read = self.reads.slots[slot].as_mut().expect("a read under way");
        read.failed |= result.is_err();
        read.parts_left -= 1;
        if read.parts_left > 0 {
            return;
        }
        let read = self.reads.slots[slot].take().expect("a read under way");
        self.reads.free.push(u32::try_from(slot).expect("a slot"));
        if read.frozen {
            // It is of the past by its nature: no lease is needed for it, and no peer has it.
            let result = if read.failed { Err(RequestError::Device) } else { Ok(()) };
            return self.push(Command::Complete { request: read.request, result });
        }
        let is_past = !self.role.is_serving() || read.epoch != self.meta.saved.record.epoch;
        let answer = if is_past {
            Err(RequestError::NotServing)
        } else if read.failed {
            return self.wound(read.request, read.start, read.destination, read.tries);
        } else {
            Ok(())
        };
        self.complete(read.request, answer);
    }
}
