//! One connection to a peer: where it stands between dialing and its end, what is being received. What is done
//! about it is the business of `driver::links`.

use std::io;
use std::vec::Drain;

use replicator_core::units::{Buffer, Instant, LinkId, NodeId, Token};
use replicator_core::wire::envelope::Envelope;

use crate::auth::Handshake;
use crate::driver::Op;
use crate::driver::inbox::Inbox;
use crate::driver::outbox::Outbox;
use crate::ring::{FileId, Ring};
use crate::secrets::KeyId;
use crate::secure::Secure;
use crate::session::SessionError;

/// Bytes of a link's receive buffer: many small frames, or the beginning of a large one.
pub(crate) const INBOX_BYTES: usize = 256 << 10;
/// Bytes of each of a link's two buffers for envelopes and small bodies, before they grow.
const OUTBOX_BYTES: usize = 64 << 10;
/// A peer that has not read so much of what is not frames is cut off.
pub(crate) const BACKLOG_BYTES_MAX: usize = 4 << 20;
/// Connecting, the handshake of TLS and proving the secret may each take so long.
pub(crate) const HANDSHAKE_MS: u64 = 5_000;
/// A link that is closed may take so long to get its last words out.
pub(crate) const FAREWELL_MS: u64 = 1_000;

/// How far a link has come.
///
/// ```text
/// Connecting --> Securing --> Proving --> Up --> Closing --no operation in flight--> (gone, LinkDown)
///      +------------+------------+-----------------^
/// ```
pub(crate) enum Phase {
    /// The socket is being connected.
    Connecting,
    /// The ends prove to each other which nodes they are. Without TLS this does not happen.
    Securing,
    /// The ends prove the secret to each other.
    Proving(Box<Handshake>),
    /// The machine knows it.
    Up,
    /// It ends. What is queued still leaves until it is shut down; nothing is received.
    Closing { reason: String, is_shut: bool },
}

/// A frame being received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    pub(crate) envelope: Envelope,
    pub(crate) buffer: Buffer,
    pub(crate) filled: usize,
    /// The receive in flight goes straight into the buffer.
    pub(crate) is_direct: bool,
}

/// One connection to a peer.
pub(crate) struct Link {
    /// The machine's name for it.
    pub(crate) id: LinkId,
    /// Who is at the other end, if this end dialed.
    pub(crate) peer: Option<NodeId>,
    /// What to call it in the log.
    pub(crate) name: String,
    pub(crate) file: FileId,
    pub(crate) phase: Phase,
    /// The machine was told of it, and will be told of its end.
    pub(crate) was_up: bool,
    pub(crate) up_since: Option<Instant>,
    /// The secret that the other end has proven.
    pub(crate) proven_with: Option<KeyId>,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox<Token>,
    /// What everything goes through, if the cluster has it so.
    pub(crate) secure: Option<Secure>,
    pub(crate) connecting: bool,
    pub(crate) incoming: Option<Incoming>,
    pub(crate) is_dirty: bool,
    /// It waits for memory for a frame.
    pub(crate) is_parked: bool,
    /// When the phase must be over.
    pub(crate) deadline: Option<Instant>,
}

impl Link {
    pub(crate) fn new(
        ring: &mut Ring<Op>,
        file: FileId,
        id: LinkId,
        peer: Option<NodeId>,
        name: String,
        now: Instant,
    ) -> io::Result<Self> {
        let inbox = Inbox::new(ring, INBOX_BYTES)?;
        let outbox = match Outbox::new(ring, OUTBOX_BYTES) {
            Ok(outbox) => outbox,
            Err(error) => {
                inbox.release(ring);
                return Err(error);
            }
        };
        Ok(Self {
            id,
            peer,
            name,
            file,
            phase: Phase::Connecting,
            was_up: false,
            up_since: None,
            proven_with: None,
            inbox,
            outbox,
            secure: None,
            connecting: false,
            incoming: None,
            is_dirty: false,
            is_parked: false,
            deadline: Some(now.plus_ms(HANDSHAKE_MS)),
        })
    }

    /// Whether the machine may send on it.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up)
    }

    /// Whether it has not proven the secret yet.
    pub(crate) fn is_unproven(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Securing | Phase::Proving(_))
    }

    /// Whether it is shut down and only waits for the kernel.
    pub(crate) fn is_shut(&self) -> bool {
        matches!(self.phase, Phase::Closing { is_shut: true, .. })
    }

    /// Whether the kernel has no operation of it any more.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.connecting && !self.is_receiving() && !self.outbox.is_sending()
    }

    /// Whether a receive is in flight.
    pub(crate) fn is_receiving(&self) -> bool {
        self.inbox.is_receiving() || self.secure.as_ref().is_some_and(Secure::is_receiving)
    }

    /// Whether nothing waits to be sent, nor is being sent.
    pub(crate) fn has_said_all(&self) -> bool {
        self.outbox.is_empty() && !self.secure.as_ref().is_some_and(|secure| secure.session.has_to_say())
    }

    /// Receives more, unless that is under way.
    pub(crate) fn receive(&mut self, ring: &mut Ring<Op>, tag: Op) {
        match &mut self.secure {
            Some(secure) => secure.receive(ring, tag, self.file),
            None => self.inbox.receive(ring, tag, self.file),
        }
    }

    /// A receive into the inbox is done. In TLS there may be something to say after it.
    pub(crate) fn received(&mut self, ring: &mut Ring<Op>, count: usize) -> Result<(), SessionError> {
        match &mut self.secure {
            Some(secure) => secure.received(ring, count, &mut self.inbox),
            None => {
                self.inbox.received(count);
                Ok(())
            }
        }
    }

    /// A receive has failed, or nothing more comes.
    pub(crate) fn received_nothing(&mut self) {
        match &mut self.secure {
            Some(secure) => secure.received_nothing(),
            None => self.inbox.received(0),
        }
    }

    /// Sends what waits, unless a send is in flight.
    pub(crate) fn start(&mut self, ring: &mut Ring<Op>, tag: Op) {
        match &mut self.secure {
            Some(secure) => secure.start(ring, tag, self.file, &mut self.outbox),
            None => self.outbox.start(ring, tag, self.file),
        }
    }

    /// A send is done with `count` bytes: sends the rest, or releases what may be.
    pub(crate) fn sent(&mut self, ring: &mut Ring<Op>, tag: Op, count: usize) -> Drain<'_, Token> {
        match &mut self.secure {
            Some(secure) => secure.sent(ring, tag, self.file, count, &mut self.outbox),
            None => self.outbox.sent(ring, tag, self.file, count),
        }
    }

    /// Gives its memory and its file back; nothing is in flight. What had not left is the machine's with its end.
    pub(crate) fn release(self, ring: &mut Ring<Op>) {
        drop(self.outbox.release(ring));
        self.inbox.release(ring);
        if let Some(secure) = self.secure {
            secure.release(ring);
        }
        ring.remove_file(self.file);
    }
}
