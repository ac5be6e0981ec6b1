//! Everything a replica may ask of the world. Each I/O carries a token that its completion brings back; every
//! buffer named here stays untouched by the machine until then.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use thiserror::Error;

use crate::dirty::DirtyMap;
use crate::disk::superblock::Superblock;
use crate::event::{Errno, ZeroKind};
use crate::status::ForkStatus;
use crate::tracker::Base;
use crate::units::{AdminId, LinkId, NodeId, Position, RequestId, Span, Token};
use crate::wire::envelope::Envelope;
use crate::wire::message::Message;

/// Something the driver must do. Commands are done in the order they come out where they name the same link;
/// I/O may be done in any order and at the same time.
#[derive(Debug)]
pub enum Command {
    /// Write `span` to the journal device.
    WriteJournal {
        /// Names the I/O.
        token: Token,
        /// First byte on the device.
        device_offset: u64,
        /// What to write, a multiple of the page.
        span: Span,
    },
    /// Sync the journal device; covers the writes that had completed when this is submitted.
    SyncJournal {
        /// Names the I/O.
        token: Token,
    },
    /// Read from the journal device into `span`.
    ReadJournal {
        /// Names the I/O.
        token: Token,
        /// First byte on the device.
        device_offset: u64,
        /// Where to.
        span: Span,
    },
    /// Read from the backing disk into `span`.
    ReadDisk {
        /// Names the I/O.
        token: Token,
        /// First byte on the disk.
        offset: u64,
        /// Where to.
        span: Span,
    },
    /// Write `span` to the backing disk.
    WriteDisk {
        /// Names the I/O.
        token: Token,
        /// First byte on the disk.
        offset: u64,
        /// What to write.
        span: Span,
    },
    /// Make a range of the backing disk read as zeros.
    ZeroDisk {
        /// Names the I/O.
        token: Token,
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Whether the space may be given back.
        kind: ZeroKind,
    },
    /// Sync the backing disk.
    SyncDisk {
        /// Names the I/O.
        token: Token,
    },
    /// Write both copies of the superblock, each synced before the other is touched.
    WriteSuperblock {
        /// Names the I/O.
        token: Token,
        /// What to write.
        superblock: Box<Superblock>,
    },
    /// Send a message.
    Send {
        /// On which connection.
        link: LinkId,
        /// Its envelope; the driver fills in length and CRC of the body.
        envelope: Envelope,
        /// Its body.
        message: Box<Message>,
    },
    /// Send a message that is all envelope (a mark, a ping): sent too often to be boxed.
    SendBare {
        /// On which connection.
        link: LinkId,
        /// Its envelope, complete.
        envelope: Envelope,
    },
    /// Send an acknowledgement: a message that is sent too often to be boxed.
    SendAck {
        /// On which connection.
        link: LinkId,
        /// Its envelope; the driver fills in length and CRC of the body.
        envelope: Envelope,
        /// Its body.
        ack: crate::wire::message::Ack,
    },
    /// Send a frame.
    SendFrame {
        /// On which connection.
        link: LinkId,
        /// Comes back when the bytes are no longer needed.
        token: Token,
        /// Its envelope, complete.
        envelope: Envelope,
        /// The frame.
        span: Span,
    },
    /// Close a connection; [`Event::LinkDown`](crate::event::Event::LinkDown) still follows.
    CloseLink {
        /// Which.
        link: LinkId,
        /// Why, for the log.
        reason: String,
        /// Whether dialing again soon makes sense.
        retry: bool,
    },
    /// Answer a client's request. The buffer of a read is the driver's to give back once it is sent.
    Complete {
        /// Which.
        request: RequestId,
        /// How it went.
        result: Result<(), RequestError>,
    },
    /// Answer an operator's request.
    Answer {
        /// Which.
        id: AdminId,
        /// What was done, or why not.
        result: Result<String, AdminError>,
    },
    /// The export opened or closed for clients.
    Serve {
        /// Whether clients may be served now.
        open: bool,
    },
    /// The frozen export opened or ended.
    ServeFrozen {
        /// Whether it may be read now.
        open: bool,
    },
    /// Keep what the backing disk holds in some blocks as a branch, complete and durable. Nothing is written to the
    /// disk until [`Event::BranchKept`](crate::event::Event::BranchKept) answers.
    KeepBranch {
        /// Names it.
        token: Token,
        /// What to keep.
        plan: Box<BranchPlan>,
    },
    /// Make the backing disk hold so many bytes, durably, if it is a file and holds fewer; say how many it holds.
    GrowDisk {
        /// Comes back with the answer.
        token: Token,
        /// How many.
        bytes: u64,
    },
    /// Other replicas than before take part: see the status.
    Replicas,
    /// The volume that clients see has another size.
    VolumeSize {
        /// How many bytes.
        bytes: u64,
    },
    /// Something an operator would want in the log.
    Report(Report),
    /// The machine has stopped in order; nothing follows.
    Stopped,
}

/// Why a client's request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The volume is not served here (any more).
    #[error("the volume is not served here")]
    NotServing,
    /// The disk failed.
    #[error("the disk failed")]
    Device,
    /// Range outside the volume or not aligned.
    #[error("the range is outside the volume or not aligned")]
    Range,
}

/// Why an operator's request was refused: what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AdminError {
    /// Nothing was changed, and nothing would help but another state.
    #[error("{0}")]
    Refused(String),
    /// Somebody else decides this.
    #[error("{0}")]
    Managed(String),
    /// A member's word is missing.
    #[error("{0}")]
    NeedsForce(String),
    /// The disk failed on the way.
    #[error("{0}")]
    Device(String),
}

/// What a branch is made of.
#[derive(Clone, Debug)]
pub struct BranchPlan {
    /// Where the logs parted.
    pub common: Base,
    /// The end of the log whose content it keeps.
    pub head: Base,
    /// The blocks to keep.
    pub blocks: DirtyMap,
    /// What changed since the common point could not be told: these are all blocks there are.
    pub is_everything: bool,
}

/// Something an operator would want in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The log of a peer parted from this one.
    Fork {
        /// Which.
        node: NodeId,
        /// Where, and what lies past that.
        fork: ForkStatus,
    },
    /// How giving up the data of one side goes on.
    Branch(String),
    /// Apply stands still here, and the frozen export is open.
    FreezeBegan(Position),
    /// Apply goes on, and the frozen export has ended, for this reason.
    FreezeEnded(String),
    /// The copy here has another size.
    Grown {
        /// How many bytes.
        bytes: u64,
    },
    /// The role changed.
    Role(String),
    /// The state of a peer changed.
    Peer {
        /// Which.
        node: NodeId,
        /// To what.
        text: String,
    },
    /// The in-sync set or its epoch changed.
    Record(String),
    /// An uncommitted tail was cut.
    Cut {
        /// The last entry that stayed.
        common: Position,
        /// The last entry that went.
        was: Position,
    },
    /// I/O of clients waits, for this reason.
    Frozen(String),
    /// I/O of clients goes on.
    Thawed,
    /// A device failed, so the copy is out of service.
    DeviceFailed {
        /// What it was doing, as in "syncing the journal".
        what: &'static str,
        /// What it said.
        errno: Errno,
    },
    /// How a verify goes, or went.
    Verify(String),
    /// A block of the backing disk cannot be read.
    Unreadable {
        /// Which block of 4096 bytes.
        block: u64,
    },
    /// A block of the backing disk is not what was written there.
    Rotten {
        /// Which block of 4096 bytes.
        block: u64,
    },
    /// Checksums of blocks could not be believed: nothing is known of them until they are written, or scrubbed.
    SumsLost {
        /// The first block of the page they lie in.
        block: u64,
        /// Sectors of the page, each for 126 blocks.
        sectors: u64,
    },
    /// How a scrub goes, or went.
    Scrub(String),
    /// It was written anew with what another replica holds.
    Mended {
        /// Which block of 4096 bytes.
        block: u64,
        /// Whose.
        from: NodeId,
    },
    /// The backing disk has no space: what is to be applied waits in the journal.
    DiskFull,
    /// It has some again.
    DiskHasSpace,
}

/// A list of commands that is reused.
pub type Commands = Vec<Command>;
