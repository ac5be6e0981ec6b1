//! The sending end of a stream: what one turn has to say goes out as one gathered send; what the next turns say
//! meanwhile waits for it. `R` is what may be released once the bytes before it have left.

use std::io;
use std::vec::Drain;

use replicator_core::units::Span;

use super::Op;
use crate::ring::{FileId, MemoryId, PIECES_MAX, Piece, Ring};

pub(crate) mod sealed;

/// Pieces in their order, and the memory of the small ones.
struct Batch<R> {
    memory: MemoryId,
    size: usize,
    used: usize,
    pieces: Vec<Piece>,
    /// Pieces that have left.
    sent: usize,
    releases: Vec<R>,
}

/// What is to be sent on a stream.
pub(crate) struct Outbox<R> {
    sending: Batch<R>,
    queued: Batch<R>,
    in_flight: bool,
}

impl<R> Batch<R> {
    fn new(ring: &mut Ring<Op>, size: usize) -> io::Result<Self> {
        let memory = ring.add_memory(size)?;
        Ok(Self {
            memory,
            size,
            used: 0,
            pieces: Vec::with_capacity(256),
            sent: 0,
            releases: Vec::with_capacity(64),
        })
    }

    /// Makes room for `len` more local bytes. Nothing in flight names this batch.
    fn reserve(&mut self, ring: &mut Ring<Op>, len: usize) -> io::Result<()> {
        if self.used + len <= self.size {
            return Ok(());
        }
        let size = (self.used + len).next_power_of_two();
        let memory = ring.add_memory(size)?;
        // Growth is rare; an extra copy on the way keeps the two memories apart.
        let bytes = ring.memory(self.memory)[..self.used].to_vec();
        ring.memory_mut(memory)[..self.used].copy_from_slice(&bytes);
        ring.remove_memory(self.memory);
        (self.memory, self.size) = (memory, size);
        Ok(())
    }

    fn say(&mut self, ring: &mut Ring<Op>, bytes: &[u8]) -> io::Result<()> {
        self.reserve(ring, bytes.len())?;
        let span = Span { start: self.used, len: bytes.len() };
        ring.memory_mut(self.memory)[span.range()].copy_from_slice(bytes);
        self.used += bytes.len();
        match self.pieces.last_mut() {
            Some(Piece::Local(last)) if last.start + last.len == span.start => last.len += span.len,
            _ => self.pieces.push(Piece::Local(span)),
        }
        Ok(())
    }

    /// Takes away `count` bytes that have left.
    fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let piece = &mut self.pieces[self.sent];
            let len = piece.span().len;
            if count < len {
                *piece = piece.advance(count);
                return;
            }
            count -= len;
            self.sent += 1;
        }
    }

    fn rest(&self) -> &[Piece] {
        &self.pieces[self.sent..]
    }

    /// What may be released: everything if all of it has left, which also empties it.
    fn finish(&mut self) -> Drain<'_, R> {
        let is_done = self.rest().is_empty();
        if is_done {
            self.pieces.clear();
            (self.used, self.sent) = (0, 0);
        }
        let releases = if is_done { self.releases.len() } else { 0 };
        self.releases.drain(..releases)
    }
}

impl<R> Outbox<R> {
    /// An empty one; `size` bytes of small things take no further memory.
    pub(crate) fn new(ring: &mut Ring<Op>, size: usize) -> io::Result<Self> {
        let sending = Batch::new(ring, size)?;
        match Batch::new(ring, size) {
            Ok(queued) => Ok(Self { sending, queued, in_flight: false }),
            Err(error) => {
                ring.remove_memory(sending.memory);
                Err(error)
            }
        }
    }

    /// Appends bytes, copied.
    pub(crate) fn say(&mut self, ring: &mut Ring<Op>, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() { Ok(()) } else { self.queued.say(ring, bytes) }
    }

    /// Appends bytes of the arena, which stay as they are until released.
    pub(crate) fn attach(&mut self, span: Span) {
        self.queued.pieces.push(Piece::Arena(span));
    }

    /// Has `what` released once everything appended so far has left.
    pub(crate) fn release_later(&mut self, what: R) {
        self.queued.releases.push(what);
    }

    /// Local bytes that wait.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.queued.used
    }

    /// Whether everything has left.
    pub(crate) fn is_empty(&self) -> bool {
        !self.in_flight && self.queued.pieces.is_empty()
    }

    /// Whether a send is in flight.
    pub(crate) fn is_sending(&self) -> bool {
        self.in_flight
    }

    /// Sends what waits, unless a send is in flight.
    pub(crate) fn start(&mut self, ring: &mut Ring<Op>, tag: Op, file: FileId) {
        if self.in_flight || self.queued.pieces.is_empty() {
            return;
        }
        std::mem::swap(&mut self.sending, &mut self.queued);
        self.send(ring, tag, file);
    }

    fn send(&mut self, ring: &mut Ring<Op>, tag: Op, file: FileId) {
        let rest = self.sending.rest();
        ring.send(tag, file, self.sending.memory, &rest[..rest.len().min(PIECES_MAX)]);
        self.in_flight = true;
    }

    /// A send is done with `count` bytes: sends the rest, or releases what may be.
    pub(crate) fn sent(&mut self, ring: &mut Ring<Op>, tag: Op, file: FileId, count: usize) -> Drain<'_, R> {
        self.in_flight = false;
        self.sending.advance(count);
        if !self.sending.rest().is_empty() {
            self.send(ring, tag, file);
        }
        self.sending.finish()
    }

    /// A send has failed; nothing more will leave.
    pub(crate) fn failed(&mut self) {
        self.in_flight = false;
    }

    /// Gives the memory back; what was to be released comes back, sent or not.
    pub(crate) fn release(self, ring: &mut Ring<Op>) -> impl Iterator<Item = R> + use<R> {
        assert!(!self.in_flight, "the kernel still reads this");
        ring.remove_memory(self.sending.memory);
        ring.remove_memory(self.queued.memory);
        self.sending.releases.into_iter().chain(self.queued.releases)
    }
}
