//! One NBD connection: where its stream stands, which requests of it are under way. What is done about it is the
//! business of `driver::clients`; the protocol itself is in `nbd-frontend`.

use std::io;

use nbd_frontend::{Negotiated, Reject, ReplyFormat, ReplyTag, Request, Session};
use replicator_core::command::RequestError;
use replicator_core::units::{Buffer, Instant, PAGE_BYTES, Span};

use crate::driver::inbox::Inbox;
use crate::driver::outbox::Outbox;
use crate::driver::slab::Key;
use crate::driver::{BRANCH, FROZEN, Op};
use crate::latency::Kind;
use crate::ring::{FileId, Ring};
use crate::secure::Secure;
use crate::session::SessionError;

/// Bytes of a connection's receive buffer.
pub(crate) const INBOX_BYTES: usize = 256 << 10;
/// Bytes of each of a connection's two send buffers; block status may have them grow.
const OUTBOX_BYTES: usize = 32 << 10;
/// Requests of one connection under way at one time; more wait in the socket.
pub(crate) const REQUESTS_MAX: u32 = 256;
/// Replies that one connection has not taken yet; while it has that many bytes of them, its requests wait in the
/// socket, so that a client that does not read cannot take the memory of the others.
pub(crate) const REPLY_BYTES_MAX: usize = 4 << 20;
/// A connection that takes longer to negotiate is closed.
pub(crate) const HANDSHAKE_MS: u64 = 3_000;
/// A connection that takes no answers for so long is closed if others wait for the memory they lie in.
pub(crate) const HOARD_MS: u64 = 2_000;
/// A connection that holds memory for a payload and does not send it for so long is closed.
pub(crate) const STALL_MS: u64 = 30_000;

/// The most one turn replies on one connection, errors with texts included, fits without growing.
const _: () = assert!(REQUESTS_MAX as usize * nbd_frontend::OK_BYTES_MAX <= OUTBOX_BYTES);
const _: () = assert!(nbd_frontend::READ_HEADER_BYTES_MAX <= PAGE_BYTES);

/// What comes next in a connection's stream.
pub(crate) enum Stage {
    /// The handshake, or a request's header.
    Header,
    /// The payload of a write.
    Payload(Payload),
    /// A request that waits for memory.
    Blocked(Request),
    /// Once the answer to that has left, all else is in TLS.
    Securing,
    /// A payload that nobody wants; then the request is rejected.
    Drain { left: u64, reject: Reject },
}

/// The payload of a write as it comes in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payload {
    /// The write.
    pub(crate) operation: Key,
    /// Where its rest goes.
    pub(crate) offset: u64,
    /// Bytes of it that are not yet in a piece handed over.
    pub(crate) left: u64,
    /// Answer only when durable everywhere.
    pub(crate) fua: bool,
    /// The piece being filled directly: placed by the machine, so many bytes there.
    pub(crate) filling: Option<(Span, usize)>,
}

/// How far a connection is from its end.
///
/// ```text
/// Open --NBD_CMD_DISC--> Finishing --all answered--> Closed --no operation in flight--> (gone)
///   +------------ error, end of stream, export closed --^
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Served.
    Open,
    /// The client is done; what is outstanding is answered.
    Finishing,
    /// Shut down; the kernel still holds operations.
    Closed,
}

/// What a connection wants memory for. Some is kept back for writes, so they do not wait behind reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The payload of a write.
    Write,
    /// The data of a read.
    Read,
}

/// What a client chose to read, or to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The volume.
    Volume,
    /// What the volume held at the position where apply stands still.
    Frozen,
    /// The branch of this name.
    Branch(String),
}

impl Choice {
    fn of(export: &str) -> Self {
        match export.split_once(BRANCH) {
            Some((_, name)) => Self::Branch(name.to_owned()),
            None if export.ends_with(FROZEN) => Self::Frozen,
            None => Self::Volume,
        }
    }
}

/// One NBD connection.
pub(crate) struct Client {
    pub(crate) session: Session,
    pub(crate) format: ReplyFormat,
    pub(crate) is_negotiated: bool,
    pub(crate) choice: Choice,
    pub(crate) file: FileId,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox<Buffer>,
    /// What everything goes through, once the client has asked for it.
    pub(crate) secure: Option<Secure>,
    pub(crate) stage: Stage,
    pub(crate) life: Life,
    /// Requests under way.
    pub(crate) operations: u32,
    /// Memory of its reads, until their data has left.
    pub(crate) read_bytes: usize,
    /// It is in the list of those with something to send.
    pub(crate) is_dirty: bool,
    /// It is in the list of those that wait for memory for this.
    pub(crate) parked: Option<Need>,
    /// It has as many requests or replies under way as it may.
    pub(crate) is_full: bool,
    /// When the negotiation, or the payload being received, must be done.
    pub(crate) deadline: Option<Instant>,
    /// When the client must have taken some more of what is being sent.
    pub(crate) send_deadline: Option<Instant>,
}

impl Client {
    pub(crate) fn new(ring: &mut Ring<Op>, file: FileId, session: Session, now: Instant) -> io::Result<Self> {
        let inbox = Inbox::new(ring, INBOX_BYTES)?;
        let outbox = match Outbox::new(ring, OUTBOX_BYTES) {
            Ok(outbox) => outbox,
            Err(error) => {
                inbox.release(ring);
                return Err(error);
            }
        };
        Ok(Self {
            session,
            format: ReplyFormat::Simple,
            is_negotiated: false,
            choice: Choice::Volume,
            file,
            inbox,
            outbox,
            secure: None,
            stage: Stage::Header,
            life: Life::Open,
            operations: 0,
            read_bytes: 0,
            is_dirty: false,
            parked: None,
            is_full: false,
            deadline: Some(now.plus_ms(HANDSHAKE_MS)),
            send_deadline: None,
        })
    }

    /// Sends what the session has to say.
    pub(crate) fn take_output(&mut self, ring: &mut Ring<Op>) -> io::Result<()> {
        let output = self.session.output();
        self.outbox.say(ring, output)?;
        output.clear();
        Ok(())
    }

    /// The negotiation is over.
    pub(crate) fn negotiated(&mut self) -> Option<&Negotiated> {
        self.is_negotiated = true;
        self.deadline = None;
        let negotiated = self.session.negotiated()?;
        (self.format, self.choice) = (negotiated.format, Choice::of(&negotiated.export_name));
        self.session.negotiated()
    }

    /// Whether it holds memory in answers that it has not been taking for [`HOARD_MS`].
    pub(crate) fn hoards(&self, now: Instant) -> bool {
        let stalled = self.send_deadline.is_some_and(|due| due <= now.plus_ms(STALL_MS - HOARD_MS));
        stalled && self.read_bytes > 0
    }

    /// Whether its next request must wait for its last ones.
    pub(crate) fn is_laden(&self) -> bool {
        let reply_bytes = self.read_bytes + self.outbox.waiting_bytes();
        self.operations >= REQUESTS_MAX || reply_bytes >= REPLY_BYTES_MAX
    }

    /// Whether the kernel has no operation of this connection any more.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.is_receiving() && !self.outbox.is_sending()
    }

    /// Whether a receive is in flight.
    pub(crate) fn is_receiving(&self) -> bool {
        self.inbox.is_receiving() || self.secure.as_ref().is_some_and(Secure::is_receiving)
    }

    /// Whether nothing waits to be sent, nor is being sent.
    pub(crate) fn has_said_all(&self) -> bool {
        self.outbox.is_empty() && !self.has_tls_to_say()
    }

    /// Whether TLS itself has something to send.
    pub(crate) fn has_tls_to_say(&self) -> bool {
        self.secure.as_ref().is_some_and(|secure| secure.session.has_to_say())
    }

    /// Whether the ends still prove to each other who they are.
    pub(crate) fn is_securing(&self) -> bool {
        self.secure.as_ref().is_some_and(|secure| !secure.session.is_open())
    }

    /// Receives more, unless that is under way.
    pub(crate) fn receive(&mut self, ring: &mut Ring<Op>, tag: Op) {
        match &mut self.secure {
            Some(secure) => secure.receive(ring, tag, self.file),
            None => self.inbox.receive(ring, tag, self.file),
        }
    }

    /// A receive into the inbox is done.
    pub(crate) fn received(&mut self, ring: &mut Ring<Op>, count: usize) -> Result<(), SessionError> {
        match &mut self.secure {
            Some(secure) => secure.received(ring, count, &mut self.inbox),
            None => {
                self.inbox.received(count);
                Ok(())
            }
        }
    }

    /// A receive has failed, nothing more comes, or it was a direct one.
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

    /// Gives its memory and its file back; nothing is in flight. What had not left comes back.
    pub(crate) fn release(self, ring: &mut Ring<Op>) -> impl Iterator<Item = Buffer> + use<> {
        if let Some(secure) = self.secure {
            secure.release(ring);
        }
        self.inbox.release(ring);
        ring.remove_file(self.file);
        self.outbox.release(ring)
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Operation {
    /// Whose; it may be gone.
    pub(crate) client: Key,
    /// What it is, and when it was read.
    pub(crate) kind: Kind,
    pub(crate) began: Instant,
    /// What the reply repeats.
    pub(crate) tag: ReplyTag,
    /// Pieces handed to the machine and not completed.
    pub(crate) pieces_left: u32,
    /// Pieces handed over so far.
    pub(crate) pieces: u32,
    /// More pieces will be handed over.
    pub(crate) is_open: bool,
    /// The first error of a piece.
    pub(crate) error: Option<RequestError>,
    /// Of a read.
    pub(crate) read: Option<Read>,
}

/// Where the data of a read is put.
#[derive(Debug)]
pub(crate) struct Read {
    /// Its length.
    pub(crate) length: u64,
    /// The first piece: a page that ends with the reply's header, then data.
    pub(crate) first: (Buffer, usize),
    /// The other pieces of a long read, data only.
    pub(crate) rest: Vec<(Buffer, usize)>,
}

impl Read {
    /// Memory that it takes.
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.pieces().map(|(_, buffer)| buffer.len_bytes()).sum()
    }

    /// All pieces: what to send of each, and its buffer.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (Span, Buffer)> + '_ {
        let (buffer, len) = self.first;
        let first = (Span { start: buffer.start() + PAGE_BYTES, len }, buffer);
        let rest = self.rest.iter().map(|(buffer, len)| (Span { start: buffer.start(), len: *len }, *buffer));
        std::iter::once(first).chain(rest)
    }
}
