//! The receiving end of a stream: one linear buffer with what has come and is not taken yet, and direct receipt
//! into the arena for what is large. Parsing is somebody else's.

use std::io;

use replicator_core::units::Span;

use super::Op;
use crate::ring::{FileId, MemoryId, Place, Ring};

pub(crate) mod sealed;

/// After something large, so much is received at once: enough for the next header, little of what follows it.
const CAUTIOUS_BYTES: usize = 4096;

/// What has come on a stream.
pub(crate) struct Inbox {
    memory: MemoryId,
    size: usize,
    head: usize,
    filled: usize,
    /// A receive is in flight.
    receiving: bool,
    /// The last message was large and taken directly; its like may follow.
    pub(crate) cautious: bool,
}

impl Inbox {
    pub(crate) fn new(ring: &mut Ring<Op>, size: usize) -> io::Result<Self> {
        let memory = ring.add_memory(size)?;
        Ok(Self { memory, size, head: 0, filled: 0, receiving: false, cautious: false })
    }

    /// Whether a receive is in flight.
    pub(crate) fn is_receiving(&self) -> bool {
        self.receiving
    }

    /// What has come and is not taken yet.
    pub(crate) fn unread<'r>(&self, ring: &'r Ring<Op>) -> &'r [u8] {
        &ring.memory(self.memory)[self.head..self.filled]
    }

    /// How much of it there is.
    pub(crate) fn unread_bytes(&self) -> usize {
        self.filled - self.head
    }

    /// Where the next `len` unread bytes lie.
    pub(crate) fn span(&self, at: usize, len: usize) -> (MemoryId, Span) {
        assert!(at + len <= self.unread_bytes());
        (self.memory, Span { start: self.head + at, len })
    }

    /// Takes `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.unread_bytes(), "only what has come is taken");
        self.head += count;
        if self.head == self.filled {
            (self.head, self.filled) = (0, 0);
        }
    }

    /// Copies unread bytes into the arena, as many as there are and fit, and takes them.
    pub(crate) fn copy_to_arena(&mut self, ring: &mut Ring<Op>, to: Span) -> usize {
        let count = to.len.min(self.unread_bytes());
        let (arena, bytes) = ring.arena_and_memory(self.memory);
        arena[to.start..to.start + count].copy_from_slice(&bytes[self.head..self.head + count]);
        self.consume(count);
        count
    }

    /// Receives more, unless that is under way.
    pub(crate) fn receive(&mut self, ring: &mut Ring<Op>, tag: Op, file: FileId) {
        if self.receiving {
            return;
        }
        self.make_room(ring);
        let room = self.size - self.filled;
        assert!(room > 0, "whatever is parsed in one piece fits");
        let len = if self.cautious { room.min(CAUTIOUS_BYTES) } else { room };
        ring.receive(tag, file, Place::Local(self.memory, Span { start: self.filled, len }), false);
        self.receiving = true;
    }

    /// Room is made only when it is short, so that small receives do not move the same bytes again and again.
    fn make_room(&mut self, ring: &mut Ring<Op>) {
        if self.head > 0 && self.size - self.filled < self.size / 2 {
            ring.memory_mut(self.memory).copy_within(self.head..self.filled, 0);
            (self.head, self.filled) = (0, self.unread_bytes());
        }
    }

    /// Receives exactly into `to`; the buffer is empty.
    pub(crate) fn receive_directly(&mut self, ring: &mut Ring<Op>, tag: Op, file: FileId, to: Span) {
        assert!(!self.receiving && self.unread_bytes() == 0, "the stream has one order");
        ring.receive(tag, file, Place::Arena(to), true);
        self.receiving = true;
    }

    /// A receive is done. `count` is 0 if it was a direct one, or the stream has ended.
    pub(crate) fn received(&mut self, count: usize) {
        self.receiving = false;
        self.filled += count;
    }

    /// Gives the memory back.
    pub(crate) fn release(self, ring: &mut Ring<Op>) {
        ring.remove_memory(self.memory);
    }
}
