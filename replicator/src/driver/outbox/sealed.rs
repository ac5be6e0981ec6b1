//! Sending in TLS: what an outbox has is sealed piece by piece into memory of its own, and that is sent.

use std::io;
use std::vec::Drain;

use replicator_core::units::Span;

use super::{Batch, Outbox};
use crate::driver::Op;
use crate::ring::{FileId, MemoryId, Piece, Ring};
use crate::session::{OWN_BYTES_MAX, Session, sealed_bytes_max};

/// So much is sealed at once: enough that sends are few, little enough that a processor's cache holds it.
const PLAIN_BYTES_MAX: usize = 256 << 10;
/// In so many pieces.
const PIECES_MAX: usize = 64;
const SEALED_BYTES: usize =
    (OWN_BYTES_MAX + sealed_bytes_max(PLAIN_BYTES_MAX, PIECES_MAX)).next_power_of_two();

/// What is sealed and on its way.
pub(crate) struct Sealing {
    memory: MemoryId,
    filled: usize,
    sent: usize,
    /// Bytes of the outbox's batch that are in it.
    plain: usize,
}

impl Sealing {
    pub(crate) fn new(ring: &mut Ring<Op>) -> io::Result<Self> {
        Ok(Self { memory: ring.add_memory(SEALED_BYTES)?, filled: 0, sent: 0, plain: 0 })
    }

    /// Gives the memory back.
    pub(crate) fn release(self, ring: &mut Ring<Op>) {
        ring.remove_memory(self.memory);
    }

    fn fill<R>(&mut self, ring: &mut Ring<Op>, session: &mut Session, batch: &Batch<R>) {
        self.filled = session.say(&mut ring.memory_mut(self.memory)[..OWN_BYTES_MAX]);
        (self.sent, self.plain) = (0, 0);
        if !session.is_open() || session.has_to_say() {
            return;
        }
        for piece in batch.rest().iter().take(PIECES_MAX) {
            let len = piece.span().len.min(PLAIN_BYTES_MAX - self.plain);
            if len == 0 {
                break;
            }
            let (plain, sealed) = ring.piece_and_memory(batch.memory, *piece, self.memory);
            self.filled += session.seal(&plain[..len], &mut sealed[self.filled..]);
            self.plain += len;
        }
    }

    fn rest(&self) -> Span {
        Span { start: self.sent, len: self.filled - self.sent }
    }
}

impl<R> Outbox<R> {
    /// As [`Outbox::start`], in TLS: what TLS itself has to say goes first.
    pub(crate) fn start_sealed(
        &mut self,
        ring: &mut Ring<Op>,
        tag: Op,
        file: FileId,
        session: &mut Session,
        sealing: &mut Sealing,
    ) {
        if self.in_flight {
            return;
        }
        assert!(self.sending.pieces.is_empty(), "a batch is on its way until all of it has left");
        if session.is_open() {
            std::mem::swap(&mut self.sending, &mut self.queued);
        }
        self.send_sealed(ring, tag, file, session, sealing);
    }

    fn send_sealed(
        &mut self,
        ring: &mut Ring<Op>,
        tag: Op,
        file: FileId,
        session: &mut Session,
        sealing: &mut Sealing,
    ) {
        sealing.fill(ring, session, &self.sending);
        if sealing.filled > 0 {
            ring.send(tag, file, sealing.memory, &[Piece::Local(sealing.rest())]);
            self.in_flight = true;
        }
    }

    /// As [`Outbox::sent`], in TLS; `count` bytes of what was sealed have left.
    pub(crate) fn sent_sealed(
        &mut self,
        ring: &mut Ring<Op>,
        tag: Op,
        file: FileId,
        count: usize,
        session: &mut Session,
        sealing: &mut Sealing,
    ) -> Drain<'_, R> {
        self.in_flight = false;
        sealing.sent += count;
        if sealing.rest().len > 0 {
            ring.send(tag, file, sealing.memory, &[Piece::Local(sealing.rest())]);
            self.in_flight = true;
            return self.sending.releases.drain(..0);
        }
        self.sending.advance(sealing.plain);
        if !self.sending.rest().is_empty() {
            self.send_sealed(ring, tag, file, session, sealing);
        }
        self.sending.finish()
    }
}
