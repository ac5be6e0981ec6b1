//! Gathering: clients' writes of one turn become one frame. A small write is copied into the open frame; a large
//! one lies in a frame of its own from the start. How many frames may be under way is bounded, so that writes
//! gather while earlier ones travel.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{Io, Machine, Pending};
use crate::command::Command;
use crate::frame::{self, Entry, FrameHeader, LocalPart};
use crate::limits::{
    ENTRIES_UNAPPLIED_MAX, FRAME_ENTRIES_MAX, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, GATHER_BYTES_MAX,
    GATHER_FRAME_BYTES,
};
use crate::units::{Buffer, PAGE_BYTES, RequestId, SECTOR_BYTES, Span};

/// A request that has its place in a frame and no position yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathered {
    pub(super) entry: Entry,
    pub(super) request: Option<RequestId>,
}

/// The frame that is being filled.
#[derive(Debug)]
struct Open {
    buffer: Buffer,
    payload_end: usize,
}

/// Requests on their way into frames.
#[derive(Debug)]
pub(super) struct Gather {
    open: Option<Open>,
    entries: Vec<Gathered>,
    /// Payloads with frames of their own, complete.
    large: VecDeque<(Buffer, Gathered)>,
    /// Where the payload placed last begins, until its write is given.
    placed: Option<Span>,
}

impl Gather {
    pub(super) fn new() -> Self {
        let entries = Vec::with_capacity(FRAME_ENTRIES_MAX);
        Self { open: None, entries, large: VecDeque::with_capacity(256), placed: None }
    }

    pub(super) fn entries(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.large.is_empty()
    }
}

/// The buffer of a large payload, from where the payload lies.
fn large_buffer(payload: Span) -> Buffer {
    let start = payload.start - FRAME_HEADER_BYTES;
    let pages = (FRAME_HEADER_BYTES + payload.len).div_ceil(PAGE_BYTES);
    let narrow = |n: usize| u32::try_from(n).expect("an arena is far below 16 TiB");
    Buffer { page: narrow(start / PAGE_BYTES), pages: narrow(pages) }
}

impl Machine {
    pub(super) fn place(&mut self, length: usize) -> Option<Span> {
        assert!(length > 0 && length <= FRAME_PAYLOAD_BYTES_MAX, "the driver splits larger writes");
        assert!(self.gather.placed.is_none(), "a small payload is given before the next one is placed");
        if length > GATHER_BYTES_MAX {
            // Some pages stay free for what makes progress: marks, control frames, incoming frames.
            if self.pool.free_pages() < self.pool.pages() / 8 {
                return None;
            }
            let buffer = self.pool.take(FRAME_HEADER_BYTES + length)?;
            return Some(Span { start: buffer.start() + FRAME_HEADER_BYTES, len: length });
        }
        if !self.open_has_room(length) {
            return None;
        }
        let open = self.gather.open.as_mut().expect("there is room");
        let span = Span { start: open.buffer.start() + open.payload_end, len: length };
        self.gather.placed = Some(span);
        Some(span)
    }

    /// Makes sure that the open frame takes one more entry with `length` bytes of payload.
    fn open_has_room(&mut self, length: usize) -> bool {
        if self.gather.entries.len() == FRAME_ENTRIES_MAX {
            return false;
        }
        if let Some(open) = &self.gather.open {
            return open.payload_end + length <= open.buffer.len_bytes();
        }
        if self.pool.free_pages() < self.pool.pages() / 8 || self.too_many_unapplied() {
            return false;
        }
        let Some(buffer) = self.pool.take(FRAME_HEADER_BYTES + GATHER_FRAME_BYTES) else { return false };
        self.gather.open = Some(Open { buffer, payload_end: FRAME_HEADER_BYTES });
        true
    }

    fn too_many_unapplied(&self) -> bool {
        self.log.unapplied_entries() + self.gather.large.len() + 2 * FRAME_ENTRIES_MAX > ENTRIES_UNAPPLIED_MAX
    }

    /// Puts a write whose payload has been placed among those that wait for a position.
    pub(super) fn gather_write(&mut self, mut entry: Entry, request: RequestId, payload: Span) {
        if self.gather.placed.take() == Some(payload) {
            let open = self.gather.open.as_mut().expect("the payload was placed in it");
            let at = payload.start - open.buffer.start();
            entry.payload_at = u32::try_from(at).expect("a frame is small");
            open.payload_end = at + payload.len.next_multiple_of(SECTOR_BYTES as usize);
            self.gather.entries.push(Gathered { entry, request: Some(request) });
        } else {
            entry.payload_at = FRAME_HEADER_BYTES as u32;
            self.gather.large.push_back((large_buffer(payload), Gathered { entry, request: Some(request) }));
        }
    }

    /// Forgets a payload that was placed and will not be used.
    pub(super) fn drop_placed(&mut self, payload: Span) {
        if self.gather.placed.take() != Some(payload) {
            self.pool.give(large_buffer(payload));
        }
    }

    /// Puts an entry without payload among those that wait for a position, if there is room.
    pub(super) fn gather_plain(&mut self, entry: Entry, request: RequestId) -> bool {
        let room = self.open_has_room(0);
        if room {
            self.gather.entries.push(Gathered { entry, request: Some(request) });
        }
        room
    }

    /// Closes what may be closed now.
    pub(super) fn close_frames(&mut self, arena: &mut [u8]) {
        while self.role.is_serving() && !self.is_failed() && !self.gather.is_empty() {
            let (frames, bytes) = self.in_flight();
            let small_may = frames < self.config.frames_in_flight_max;
            let large_may = small_may || bytes < self.config.send_window_bytes / 2;
            let closed = if !self.gather.entries.is_empty() && small_may {
                self.close_open(arena)
            } else if !self.gather.large.is_empty() && large_may {
                self.close_large(arena)
            } else {
                false
            };
            if !closed {
                break;
            }
        }
    }

    /// Frames, and their bytes, that are sequenced and not committed.
    fn in_flight(&self) -> (u32, u64) {
        let Some(mut number) = self.log.find(self.committed.next()) else { return (0, 0) };
        let (mut frames, mut bytes) = (0, 0);
        while let Some(frame) = self.log.frame(number) {
            frames += u32::from(frame.entries > 0);
            bytes += u64::from(frame.total_bytes);
            number += 1;
        }
        (frames, bytes)
    }

    fn close_open(&mut self, arena: &mut [u8]) -> bool {
        let open = self.gather.open.as_ref().expect("entries lie in it");
        let total = open.payload_end.next_multiple_of(PAGE_BYTES);
        if self.ring_place(total as u64, false).is_none() {
            return false;
        }
        if self.are_held(&self.gather.entries) {
            return false;
        }
        let open = self.gather.open.take().expect("checked");
        let buffer = self.pool.shrink(open.buffer, total);
        let mut entries = core::mem::take(&mut self.gather.entries);
        self.append(buffer, &entries, false, arena);
        entries.clear();
        self.gather.entries = entries;
        true
    }

    fn close_large(&mut self, arena: &mut [u8]) -> bool {
        let (buffer, gathered) = self.gather.large.front().expect("the caller looked");
        if self.are_held(core::slice::from_ref(gathered)) {
            return false;
        }
        let total = buffer.len_bytes() as u64;
        if self.ring_place(total, false).is_none() {
            return false;
        }
        let (buffer, gathered) = self.gather.large.pop_front().expect("the caller looked");
        self.append(buffer, &[gathered], false, arena);
        true
    }

    /// Sequences `entries`, whose payloads lie in `buffer`, as the next frame: journals it; the peers get it from
    /// the log. The caller has made sure of the room.
    pub(super) fn append(&mut self, buffer: Buffer, entries: &[Gathered], control: bool, arena: &mut [u8]) {
        assert!(self.role.is_sequencing(), "only a Primary sequences");
        let record = self.meta.saved.record;
        let first = self.log.last().next();
        let total_bytes = u32::try_from(buffer.len_bytes()).expect("a frame is small");
        let header = FrameHeader {
            volume: self.config.volume,
            epoch: record.epoch,
            reign: record.reign,
            first,
            entries: 0,
            total_bytes,
            chain_before: self.log.head.chain,
            chain_after: self.log.head.chain,
            committed: self.committed,
            stable: self.stable,
            closed_ms: self.wall_ms(),
        };
        let block = &mut arena[buffer.span().range()];
        // Old bytes of the arena are nobody's business on the wire.
        let payload_end = entries.iter().map(|gathered| gathered.entry.payload_end()).max().unwrap_or(0);
        block[payload_end.max(FRAME_HEADER_BYTES)..].fill(0);
        let header = frame::encode(block, header, entries.iter().map(|gathered| &gathered.entry));
        let mut fua = false;
        for (sequence, gathered) in (first.0..).zip(entries) {
            fua |= gathered.entry.fua;
            if let Some(request) = gathered.request {
                let sequence = crate::units::Sequence(sequence);
                self.pending.push_back(Pending { sequence, request, fua: gathered.entry.fua });
            }
        }
        self.probe.get_or_insert((header.last(), self.now));
        self.write_frame(&header, buffer, control, arena);
        if fua {
            self.persist.want_sync(header.last());
        }
    }

    /// Gives a frame its place in this ring, completes its local part, and journals it.
    pub(super) fn write_frame(
        &mut self,
        header: &FrameHeader,
        buffer: Buffer,
        control: bool,
        arena: &mut [u8],
    ) {
        let tail = self.ring_tail();
        let total = u64::from(header.total_bytes);
        let ring_offset = self.ring_place(total, control).expect("the caller made sure of the room");
        assert!(
            ring_offset.plus(total).0 - tail.0 <= self.log.layout.ring_bytes,
            "the ring never eats its tail"
        );
        let stable = self.stable.min(self.log.last());
        let cuts = self.meta.current.cut.count;
        let local = LocalPart { ring_offset, durable: self.log.durable(), stable, cuts };
        frame::encode_local(&mut arena[buffer.span().range()], &local);
        let number = self.log.push(header, ring_offset, stable, Some(buffer));
        self.counters.frames += 1;
        let span = Span { start: buffer.start(), len: header.total_bytes as usize };
        let device_offset = self.log.layout.device_offset(ring_offset);
        self.push(Command::WriteJournal { token: Io::Frame.token(number), device_offset, span });
    }

    /// Gives up everything that has no position yet: its clients are told that nobody serves here.
    pub(super) fn drop_gathered(&mut self) {
        if let Some(open) = self.gather.open.take() {
            self.pool.give(open.buffer);
        }
        self.gather.placed = None;
        let entries = core::mem::take(&mut self.gather.entries);
        let large = core::mem::take(&mut self.gather.large);
        for gathered in entries.iter().chain(large.iter().map(|(_, gathered)| gathered)) {
            if let Some(request) = gathered.request {
                self.complete(request, Err(crate::command::RequestError::NotServing));
            }
        }
        for (buffer, _) in large {
            self.pool.give(buffer);
        }
    }
}
