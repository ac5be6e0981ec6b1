//! Reads: a view of what is committed, taken when the read is issued. What unapplied entries cover is copied
//! from memory at once; only the gaps are read from the disk.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{Io, Machine, index_of};
use crate::command::{Command, RequestError};
use crate::dirty::BLOCK_BYTES;
use crate::event::{IoResult, ZeroKind};
use crate::extents::Content;
use crate::units::{Buffer, Epoch, RequestId, SECTOR_BYTES, Sequence, Span, Token};

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
    /// Blocks below this one are checked.
    checked: u64,
}

/// A part of a read that is on its way from the disk.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Where in the volume; whole blocks where they are checked.
    start: u64,
    span: Span,
    /// What of `span` is wanted, and where, if it was not read there.
    copy: Option<(Span, usize)>,
    buffer: Option<Buffer>,
}

/// A read that waits for memory.
#[derive(Clone, Copy, Debug)]
struct Held {
    request: RequestId,
    offset: u64,
    destination: Span,
    tries: u32,
    frozen: bool,
}

/// Reads under way.
#[derive(Debug)]
pub(super) struct Reads {
    slots: Vec<Option<Read>>,
    free: Vec<u32>,
    /// Gaps of the read being taken apart.
    gaps: Vec<(u64, u64)>,
    /// What each slot's read is made of.
    parts: Vec<Vec<Part>>,
    /// Parts of the read being taken apart.
    scratch: Vec<Part>,
    /// Slots that wait for checksums.
    waiting: Vec<u32>,
    held: VecDeque<Held>,
}

impl Reads {
    pub(super) fn new() -> Self {
        let (slots, free) = (Vec::with_capacity(1024), Vec::with_capacity(1024));
        let (parts, scratch, waiting, held) = (Vec::new(), Vec::new(), Vec::new(), VecDeque::new());
        Self { slots, free, gaps: Vec::with_capacity(64), parts, scratch, waiting, held }
    }

    fn add(&mut self, read: Read) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(read);
            return slot;
        }
        self.slots.push(Some(read));
        self.parts.push(Vec::new());
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
        if !self.read_gaps(request, (offset, end), destination, tries, false) {
            self.reads.held.push_back(Held { request, offset, destination, tries, frozen: false });
        }
    }

    /// Reads the gaps from the disk, as whole blocks if these are to be checked. Says whether there was memory for that.
    fn read_gaps(
        &mut self,
        request: RequestId,
        (start, end): (u64, u64),
        destination: Span,
        tries: u32,
        frozen: bool,
    ) -> bool {
        let gaps = core::mem::take(&mut self.reads.gaps);
        let mut parts = core::mem::take(&mut self.reads.scratch);
        let volume_bytes = self.meta.saved.volume_bytes;
        for &(from, to) in &gaps {
            let skip = usize::try_from(from - start).expect("within the destination");
            let len = usize::try_from(to - from).expect("within the destination");
            let span = Span { start: destination.start + skip, len };
            let first = from / BLOCK_BYTES * BLOCK_BYTES;
            let last = to.next_multiple_of(BLOCK_BYTES).min(volume_bytes);
            if self.at_rest.is_none() || (first, last) == (from, to) {
                parts.push(Part { start: from, span, copy: None, buffer: None });
                continue;
            }
            let whole = usize::try_from(last - first).expect("as long as the read and two blocks");
            let Some(buffer) = self.take_buffer(whole) else { break };
            let before = usize::try_from(from - first).expect("within a block");
            let wanted = Span { start: buffer.start() + before, len };
            let read = Span { start: buffer.start(), len: whole };
            parts.push(Part {
                start: first,
                span: read,
                copy: Some((wanted, span.start)),
                buffer: Some(buffer),
            });
        }
        let is_whole = parts.len() == gaps.len();
        self.reads.gaps = gaps;
        if !is_whole {
            parts.drain(..).filter_map(|part| part.buffer).for_each(|buffer| self.pool.give(buffer));
            self.reads.scratch = parts;
            return false;
        }
        let parts_left = u32::try_from(parts.len()).expect("bounded by the sectors of a read");
        let view = if frozen { self.log.applied.position.sequence } else { self.overlay_through };
        let (epoch, failed, checked) = (self.meta.saved.record.epoch, false, 0);
        let read = Read {
            request,
            start,
            end,
            destination,
            tries,
            view,
            epoch,
            frozen,
            parts_left,
            failed,
            checked,
        };
        let slot = self.reads.add(read);
        for part in &parts {
            let (token, offset, span) = (Io::Read.token(u64::from(slot)), part.start, part.span);
            self.push(Command::ReadDisk { token, offset, span });
        }
        core::mem::swap(&mut self.reads.parts[slot as usize], &mut parts);
        self.reads.scratch = parts;
        true
    }

    /// Reads that wait for memory, or for checksums, are looked at again.
    pub(super) fn check_waiting_reads(&mut self, arena: &mut [u8]) {
        for slot in core::mem::take(&mut self.reads.waiting) {
            self.finish_read(slot, arena);
        }
        for held in core::mem::take(&mut self.reads.held) {
            let Held { request, offset, destination, tries, frozen } = held;
            if frozen {
                self.begin_read_frozen(request, offset, destination);
            } else if self.role.is_serving() {
                self.begin_read(request, offset, destination, tries, arena);
            } else {
                self.complete(request, Err(RequestError::NotServing));
            }
        }
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
        self.begin_read_frozen(request, offset, destination);
    }

    fn begin_read_frozen(&mut self, request: RequestId, offset: u64, destination: Span) {
        if !self.is_frozen_open() {
            return self.complete(request, Err(RequestError::NotServing));
        }
        let end = offset + destination.len as u64;
        self.reads.gaps.clear();
        self.reads.gaps.push((offset, end));
        if !self.read_gaps(request, (offset, end), destination, 0, true) {
            self.reads.held.push_back(Held { request, offset, destination, tries: 0, frozen: true });
        }
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

    pub(super) fn on_disk_read(&mut self, token: Token, result: IoResult, arena: &mut [u8]) {
        let slot = usize::try_from(index_of(token)).expect("a slot");
        let read = self.reads.slots[slot].as_mut().expect("a read under way");
        read.failed |= result.is_err();
        read.parts_left -= 1;
        if read.parts_left == 0 {
            self.finish_read(u32::try_from(slot).expect("a slot"), arena);
        }
    }

    /// All is read: it is checked, and answered.
    fn finish_read(&mut self, slot: u32, arena: &mut [u8]) {
        let index = slot as usize;
        let mut read = self.reads.slots[index].expect("a read under way");
        if !read.failed {
            match self.check_parts(index, &mut read, arena) {
                Some(is_right) => read.failed = !is_right,
                None => {
                    self.reads.slots[index] = Some(read);
                    return self.reads.waiting.push(slot);
                }
            }
        }
        for part in self.reads.parts[index].drain(..) {
            if let Some((from, to)) = part.copy {
                arena.copy_within(from.range(), to);
            }
            part.buffer.into_iter().for_each(|buffer| self.pool.give(buffer));
        }
        self.reads.slots[index] = None;
        self.reads.free.push(slot);
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

    /// Whether the blocks of a read are what they should be; `None` if that cannot be said yet.
    fn check_parts(&mut self, index: usize, read: &mut Read, arena: &[u8]) -> Option<bool> {
        if self.at_rest.is_none() {
            return Some(true);
        }
        for at in 0..self.reads.parts[index].len() {
            let Part { start, span, .. } = self.reads.parts[index][at];
            for (block, bytes) in
                (start / BLOCK_BYTES..).zip(arena[span.range()].chunks(BLOCK_BYTES as usize))
            {
                if block < read.checked {
                    continue;
                }
                if !self.is_right(block, bytes)? {
                    if read.frozen {
                        self.note_rotten(block);
                    }
                    return Some(false);
                }
                read.checked = block + 1;
            }
        }
        Some(true)
    }
}
