//! One connection to a peer: where it stands between dialing and its end, what is being received. What is done
//! about it is the business of `driver::links`.

use std::io;

use replicator_core::units::{Buffer, Instant, LinkId, NodeId, Token};
use replicator_core::wire::envelope::Envelope;

use crate::auth::Handshake;
use crate::driver::Op;
use crate::driver::inbox::Inbox;
use crate::driver::outbox::Outbox;
use crate::ring::{FileId, Ring};

/// Bytes of a link's receive buffer: many small frames, or the beginning of a large one.
pub(crate) const INBOX_BYTES: usize = 256 << 10;
/// Bytes of each of a link's two buffers for envelopes and small bodies, before they grow.
const OUTBOX_BYTES: usize = 64 << 10;
/// A peer that has not read so much of what is not frames is cut off.
pub(crate) const BACKLOG_BYTES_MAX: usize = 4 << 20;
/// Connecting, and proving the secret, may each take so long.
pub(crate) const HANDSHAKE_MS: u64 = 5_000;
/// A link that is closed may take so long to get its last words out.
pub(crate) const FAREWELL_MS: u64 = 1_000;

/// How far a link has come.
///
/// ```text
/// Connecting --> Proving --> Up --> Closing --no operation in flight--> (gone, LinkDown)
///      +------------+-----------------^
/// ```
pub(crate) enum Phase {
    /// The socket is being connected.
    Connecting,
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
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox<Token>,
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
            inbox,
            outbox,
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
        matches!(self.phase, Phase::Connecting | Phase::Proving(_))
    }

    /// Whether it is shut down and only waits for the kernel.
    pub(crate) fn is_shut(&self) -> bool {
        matches!(self.phase, Phase::Closing { is_shut: true, .. })
    }

    /// Whether the kernel has no operation of it any more.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.connecting && !self.inbox.is_receiving() && !self.outbox.is_sending()
    }
}
