//! TLS on one connection of the reactor, between its socket and its inbox and outbox. Not the handshake, which is
//! `session`'s, nor who is at the other end.

use std::io;
use std::vec::Drain;

use crate::driver::Op;
use crate::driver::inbox::Inbox;
use crate::driver::inbox::sealed::SealedInbox;
use crate::driver::outbox::Outbox;
use crate::driver::outbox::sealed::Sealing;
use crate::ring::{FileId, Ring};
use crate::session::{Session, SessionError};

/// TLS on a connection.
pub(crate) struct Secure {
    pub(crate) session: Session,
    came: SealedInbox,
    sealing: Sealing,
}

impl Secure {
    pub(crate) fn new(ring: &mut Ring<Op>, session: Session) -> io::Result<Self> {
        let came = SealedInbox::new(ring)?;
        match Sealing::new(ring) {
            Ok(sealing) => Ok(Self { session, came, sealing }),
            Err(error) => {
                came.release(ring);
                Err(error)
            }
        }
    }

    /// Whether a receive is in flight.
    pub(crate) fn is_receiving(&self) -> bool {
        self.came.is_receiving()
    }

    /// Receives more, unless that is under way.
    pub(crate) fn receive(&mut self, ring: &mut Ring<Op>, tag: Op, file: FileId) {
        self.came.receive(ring, tag, file);
    }

    /// A receive is done: what came is opened into `inbox`. There may be something to say after it.
    pub(crate) fn received(
        &mut self,
        ring: &mut Ring<Op>,
        count: usize,
        inbox: &mut Inbox,
    ) -> Result<(), SessionError> {
        self.came.received(count);
        self.came.open(ring, &mut self.session, inbox)
    }

    /// A receive has failed, or nothing more comes.
    pub(crate) fn received_nothing(&mut self) {
        self.came.received(0);
    }

    /// Sends what waits in `outbox`, and before it what TLS itself has to say, unless a send is in flight.
    pub(crate) fn start<R>(&mut self, ring: &mut Ring<Op>, tag: Op, file: FileId, outbox: &mut Outbox<R>) {
        outbox.start_sealed(ring, tag, file, &mut self.session, &mut self.sealing);
    }

    /// A send is done with `count` bytes: sends the rest, or releases what may be.
    pub(crate) fn sent<'o, R>(
        &mut self,
        ring: &mut Ring<Op>,
        tag: Op,
        file: FileId,
        count: usize,
        outbox: &'o mut Outbox<R>,
    ) -> Drain<'o, R> {
        outbox.sent_sealed(ring, tag, file, count, &mut self.session, &mut self.sealing)
    }

    /// Gives its memory back; nothing is in flight.
    pub(crate) fn release(self, ring: &mut Ring<Op>) {
        self.came.release(ring);
        self.sealing.release(ring);
    }
}
