//! Everything that can happen to a replica. The driver turns completions, messages and requests into events;
//! the machine turns them into [`Command`](crate::command::Command)s.

use alloc::string::String;

use crate::bookmarks::BookmarkName;
use crate::config::PeerConfig;
use crate::units::{
    AdminId, Buffer, Epoch, Instant, LinkId, NodeId, NodeSet, Position, ReignId, RequestId, Span, Token,
};
use crate::wire::envelope::Envelope;

/// Result of an I/O: done in full, or the error number the kernel gave.
pub type IoResult = Result<(), Errno>;

/// An error number of the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Whether there was no space, or none that the quota lets be used: ENOSPC or EDQUOT.
    #[must_use]
    pub fn is_no_space(self) -> bool {
        matches!(self.0, 28 | 122)
    }
}

/// How a range is zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroKind {
    /// The space may be given back.
    Trim,
    /// The space stays allocated where the disk can do that.
    Zeroes,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A client writes. The payload lies at `payload`, placed by
    /// [`Machine::place_write`](crate::machine::Machine::place_write).
    Write {
        /// Names the request.
        request: RequestId,
        /// First byte in the volume.
        offset: u64,
        /// Where the payload lies in the arena.
        payload: Span,
        /// Answer only when durable everywhere.
        fua: bool,
    },
    /// A client's payload was placed and will never be complete: its connection is gone.
    WriteAbandoned {
        /// What [`Machine::place_write`](crate::machine::Machine::place_write) returned.
        payload: Span,
    },
    /// A client zeroes or trims a range.
    Zero {
        /// Names the request.
        request: RequestId,
        /// First byte in the volume.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Which of the two.
        kind: ZeroKind,
        /// Answer only when durable everywhere.
        fua: bool,
    },
    /// A client reads into `destination`, memory of the arena that the machine took for it with
    /// [`Machine::take_buffer`](crate::machine::Machine::take_buffer).
    Read {
        /// Names the request.
        request: RequestId,
        /// First byte in the volume.
        offset: u64,
        /// Where the bytes go; its length is the length of the read.
        destination: Span,
    },
    /// A client of the frozen export reads into `destination`, as in `Read`.
    ReadFrozen {
        /// Names the request.
        request: RequestId,
        /// First byte in the volume.
        offset: u64,
        /// Where the bytes go; its length is the length of the read.
        destination: Span,
    },
    /// A client flushes: everything committed by now must be durable everywhere.
    Flush {
        /// Names the request.
        request: RequestId,
    },
    /// The driver has handed over all it had this turn; frames may close.
    TurnEnd,
    /// [`Machine::next_timeout`](crate::machine::Machine::next_timeout) has come.
    Timeout,

    /// A journal write is done.
    JournalWritten {
        /// Of the command.
        token: Token,
        /// How it went.
        result: IoResult,
    },
    /// A journal sync is done.
    JournalSynced {
        /// Of the command.
        token: Token,
        /// How it went.
        result: IoResult,
    },
    /// A journal read is done.
    JournalRead {
        /// Of the command.
        token: Token,
        /// How it went.
        result: IoResult,
    },
    /// A read of the backing disk is done.
    DiskRead {
        /// Of the command.
        token: Token,
        /// How it went.
        result: IoResult,
    },
    /// A write or zeroing of the backing disk is done.
    DiskWritten {
        /// Of the command.
        token: Token,
        /// How it went.
        result: IoResult,
    },
    /// A sync of the backing disk is done.
    DiskSynced {
        /// Of the command.
        token: Token,
        /// How it went.
        result: IoResult,
    },
    /// Both copies of the superblock are written and synced, one after the other.
    SuperblockWritten {
        /// Of the command.
        token: Token,
        /// How it went.
        result: IoResult,
    },

    /// A branch is complete and durable, or could not be kept.
    BranchKept {
        /// Of the command.
        token: Token,
        /// Why it could not, for the operator. Nothing of it is left then.
        result: Result<(), String>,
    },

    /// The backing disk was looked at, and enlarged where it is a file: so many bytes it holds, durably.
    DiskGrown {
        /// Of the command.
        token: Token,
        /// How many, or why it could not be enlarged.
        result: Result<u64, Errno>,
    },

    /// A connection to `peer` stands and both ends have proven the secret.
    LinkUp {
        /// Names the connection.
        link: LinkId,
        /// Who is at the other end, as far as the driver knows; the hello is checked against it when it dialed.
        peer: Option<NodeId>,
    },
    /// A message other than a frame arrived.
    Message {
        /// On which connection.
        link: LinkId,
        /// Its envelope, decoded.
        envelope: Envelope,
        /// Its body.
        body: &'a [u8],
    },
    /// A frame arrived, in a buffer that
    /// [`Machine::place_frame`](crate::machine::Machine::place_frame) gave.
    Frame {
        /// On which connection.
        link: LinkId,
        /// Its envelope, decoded.
        envelope: Envelope,
        /// Where it lies.
        buffer: Buffer,
    },
    /// A frame's buffer was given and the frame will never be complete: the connection is gone.
    FrameAbandoned {
        /// What was given.
        buffer: Buffer,
    },
    /// A frame has left: its bytes are no longer needed for sending.
    FrameSent {
        /// On which connection.
        link: LinkId,
        /// Of the command.
        token: Token,
    },
    /// A connection is gone; nothing of it follows.
    LinkDown {
        /// Which.
        link: LinkId,
        /// Why, for the operator.
        reason: String,
    },

    /// The operator wants something.
    Admin {
        /// Names the request.
        id: AdminId,
        /// What.
        action: AdminAction,
    },
}

/// What an operator may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAction {
    /// Become Primary.
    Promote {
        /// Without the word of members that cannot be reached.
        force: bool,
        /// A fresh random identity for the reign.
        reign: ReignId,
    },
    /// Become Secondary, with everything stable first.
    Demote,
    /// Take a member that is gone out of the in-sync set.
    Shrink {
        /// Whom.
        node: NodeId,
    },
    /// Refuse every lower epoch, end a reign of one, and bring the log to rest; of a configuration manager, as all below
    /// but the last two.
    Seal {
        /// Above the record's, and not below what was promised.
        epoch: Epoch,
    },
    /// Begin exactly this reign.
    OpenEpoch(Reign),
    /// The record as it was read back.
    Record {
        /// The reign it is of.
        epoch: Epoch,
        /// Its version; a lower one than is known changes nothing.
        version: u64,
        /// The set that was agreed on.
        in_sync: NodeSet,
    },
    /// Clients may be answered until then.
    Lease {
        /// In this reign.
        epoch: Epoch,
        /// On the machine's clock.
        end: Instant,
    },
    /// Serve no more, with everything durable at the members.
    Release,
    /// Compare the other copies with the one here, block by block.
    Verify {
        /// Write anew what differs.
        repair: bool,
        /// Whose copy is right where nothing proves which one is; `None` is the Primary's.
        trust: Option<NodeId>,
    },
    /// Have the volume grow.
    Grow {
        /// To so many bytes.
        bytes: u64,
    },
    /// Take in another replica.
    AddReplica(PeerConfig),
    /// Let a replica go for good.
    RemoveReplica {
        /// Whose.
        node: NodeId,
    },
    /// End the verify under way.
    StopVerify,
    /// Read every block of the disk here, and have written anew what is bad.
    Scrub,
    /// End the scrub under way.
    StopScrub,
    /// Discard the data here: the copy is written anew by whoever is, or becomes, Primary.
    Invalidate,
    /// Give up what a copy has past the point where its log parted from the others': it is kept as a branch, and the
    /// copy follows.
    Resolve {
        /// Whose.
        discard: NodeId,
    },
    /// Stop applying at one exact position and offer what the disk then holds for reading.
    FreezeApply {
        /// Which.
        at: FreezeAt,
    },
    /// End that.
    Thaw,
    /// Note from now on which blocks of the copy here change.
    AddBookmark {
        /// Its name.
        name: BookmarkName,
    },
    /// Stop noting that.
    DeleteBookmark {
        /// Its name.
        name: BookmarkName,
    },
    /// Stop in order: everything journaled synced, applied as far as allowed, superblock clean.
    Stop,
}

/// Where apply is to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeAt {
    /// Where it is.
    Here,
    /// Right behind this entry, which is not applied yet.
    Position(Position),
    /// Before the first entry that was written later, by the clock of its Primary.
    Time {
        /// Milliseconds since 1970.
        ms: u64,
    },
}

/// A reign that a configuration manager begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// Above every promise but its own.
    pub epoch: Epoch,
    /// Version of its record.
    pub version: u64,
    /// Its identity.
    pub reign: ReignId,
    /// Who holds every acknowledged write.
    pub in_sync: NodeSet,
    /// Counts the promotions that broke clients' sessions; below 2^31.
    pub generation: u64,
    /// Until when clients may be answered, if that is known already.
    pub lease_end: Option<Instant>,
}
