//! Receiving in TLS: what comes is opened into the inbox, record by record.

use std::io;

use replicator_core::units::Span;

use super::Inbox;
use crate::driver::Op;
use crate::ring::{FileId, MemoryId, Place, Ring};
use crate::session::{Session, SessionError};

/// A few records of the largest size.
const SEALED_BYTES: usize = 128 << 10;

/// What has come and is not opened yet: the beginning of a record, between receives.
pub(crate) struct SealedInbox {
    memory: MemoryId,
    filled: usize,
    receiving: bool,
}

impl SealedInbox {
    pub(crate) fn new(ring: &mut Ring<Op>) -> io::Result<Self> {
        Ok(Self { memory: ring.add_memory(SEALED_BYTES)?, filled: 0, receiving: false })
    }

    /// Whether a receive is in flight.
    pub(crate) fn is_receiving(&self) -> bool {
        self.receiving
    }

    /// Receives more, unless that is under way.
    pub(crate) fn receive(&mut self, ring: &mut Ring<Op>, tag: Op, file: FileId) {
        if !self.receiving {
            let rest = Span { start: self.filled, len: SEALED_BYTES - self.filled };
            assert!(rest.len > 0, "a record is smaller than this");
            ring.receive(tag, file, Place::Local(self.memory, rest), false);
            self.receiving = true;
        }
    }

    /// A receive is done.
    pub(crate) fn received(&mut self, count: usize) {
        self.receiving = false;
        self.filled += count;
    }

    /// Opens what has come into `inbox`. More is received only for what is parsed in one piece, so there is room.
    pub(crate) fn open(
        &mut self,
        ring: &mut Ring<Op>,
        session: &mut Session,
        inbox: &mut Inbox,
    ) -> Result<(), SessionError> {
        inbox.make_room(ring);
        assert!(inbox.size - inbox.filled >= self.filled, "whatever is parsed in one piece fits beside it");
        let [sealed, opened] = ring.two_memories(self.memory, inbox.memory);
        let done = session.take_in(&mut sealed[..self.filled], |plain| {
            opened[inbox.filled..inbox.filled + plain.len()].copy_from_slice(plain);
            inbox.filled += plain.len();
        })?;
        sealed.copy_within(done..self.filled, 0);
        self.filled -= done;
        Ok(())
    }

    /// Gives the memory back.
    pub(crate) fn release(self, ring: &mut Ring<Op>) {
        ring.remove_memory(self.memory);
    }
}
