//! What a replica says of itself: plain data, in DRBD's words, for the control interface and the tests.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::bookmarks::BookmarkStatus;
use crate::config::Protocol;
use crate::disk::superblock::{DiskState, Record, ScrubRecord};
use crate::units::{Chain, Epoch, Instant, NodeId, NodeSet, Position, Sequence};
use crate::wire::message::Ack;

/// Role of a replica, in DRBD's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It follows.
    Secondary,
    /// It writes.
    Primary,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Secondary => "Secondary",
            Self::Primary => "Primary",
        })
    }
}

/// State of the connection to a peer, in DRBD's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Refused: an operator must act. See the reason.
    StandAlone,
    /// Not connected, trying.
    Connecting,
    /// Connected; no data flows since neither is Primary.
    Connected,
    /// The peer is being brought level from the journal.
    CatchUp,
    /// The peer is being brought level by blocks from here.
    SyncSource,
    /// This replica is being brought level by blocks from the peer.
    SyncTarget,
    /// Level; every change is sent as it happens.
    Established,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::StandAlone => "StandAlone",
            Self::Connecting => "Connecting",
            Self::Connected => "Connected",
            Self::CatchUp => "CatchUp",
            Self::SyncSource => "SyncSource",
            Self::SyncTarget => "SyncTarget",
            Self::Established => "Established",
        })
    }
}

/// One peer as seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which.
    pub node: NodeId,
    /// How writes are replicated to it.
    pub protocol: Protocol,
    /// State of the connection.
    pub connection: Connection,
    /// Why it is StandAlone, if it is.
    pub reason: Option<String>,
    /// Its role as it last said, if it is connected.
    pub role: Option<Role>,
    /// State of its copy as it last said, if it is connected.
    pub disk_state: Option<DiskState>,
    /// Whether it is in the in-sync set.
    pub member: bool,
    /// Whether anything came from it within two intervals of probing.
    pub answers: bool,
    /// Whether it applies late, as it last said: then it is never taken into the set.
    pub delayed: bool,
    /// What it last acknowledged.
    pub ack: Ack,
    /// Bytes of this log that it has not in its journal; `None` if nothing is sent to it, or the log does not reach back as
    /// far.
    pub lag_bytes: Option<u64>,
    /// The resync of its copy from here, if one is under way.
    pub resync: Option<Progress>,
    /// Blocks of its copy that may differ, as far as the journal does not say it.
    pub dirty_blocks: u64,
    /// Where its log parted from this one, if it did.
    pub fork: Option<ForkStatus>,
}

/// Where two logs parted, and what lies past that point in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForkStatus {
    /// The last entry both hold.
    pub common: Position,
    /// This replica's side.
    pub here: ForkSide,
    /// The peer's side, as it last said.
    pub there: ForkSide,
}

/// One side of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForkSide {
    /// The end of its log.
    pub head: Position,
    /// Entries past the common point.
    pub entries: u64,
    /// Blocks of 4 KiB that it changed and its peers may lack, as far as it has applied them.
    pub changed_blocks: u64,
    /// When the first of the entries was sequenced, in milliseconds since 1970 by the clock of its Primary.
    pub first_ms: Option<u64>,
    /// When the last one was.
    pub last_ms: Option<u64>,
}

/// How far giving up what a copy has past the common point has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branching {
    /// It waits for a Primary to be connected; nothing has happened to the data.
    WaitsForPrimary,
    /// Its branch is being written; nothing has been overwritten.
    Keeping,
    /// The branch is complete; the copy begins to follow.
    Kept,
}

/// A replica whose apply stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezeStatus {
    /// What its disk holds: everything up to here, and nothing beyond.
    pub position: Position,
    /// Whether that can be read.
    pub is_open: bool,
    /// Since when, in milliseconds since 1970 by the clock here.
    pub since_ms: Option<u64>,
    /// Bytes of the journal that wait to be applied.
    pub used_bytes: u64,
    /// When as many wait, it thaws.
    pub budget_bytes: u64,
}

/// A replica that applies late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DelayStatus {
    /// How old an entry is when it is applied.
    pub delay_ms: u64,
    /// Whether that counts now: not at a Primary, nor while apply is frozen or the copy is brought level by blocks.
    pub is_delaying: bool,
    /// What its disk holds: everything up to here.
    pub applied: Position,
    /// When the newest of that was closed, in milliseconds since 1970 by its Primary's clock, if that is known.
    pub applied_ms: Option<u64>,
    /// Entries in the journal that wait to be applied.
    pub waiting_entries: u64,
    /// Bytes of the ring that they have.
    pub waiting_bytes: u64,
    /// Bytes of the ring that may wait because of the delay.
    pub share_bytes: u64,
    /// How old the oldest of them is, by the clock here; nothing if none waits.
    pub lag_ms: Option<u64>,
    /// It is the ring that decides when entries are applied, and not the delay: they would not fit.
    pub gives_way: bool,
}

/// How far a resync has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Blocks of 4 KiB that were dirty when it began.
    pub blocks: u64,
    /// Blocks that are still dirty.
    pub left_blocks: u64,
    /// Milliseconds since it began.
    pub elapsed_ms: u64,
    /// Bytes a second it may take while clients write.
    pub allowed_rate: u64,
    /// The target gathers all of it before it gives up what it has.
    pub is_staged: bool,
}

/// What the target of a resync has gathered in its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// Blocks and stream are gathered; the copy is what it was.
    Gathering {
        /// Bytes of the ring that they have.
        bytes: u64,
        /// Bytes that they may have besides.
        free_bytes: u64,
    },
    /// All is gathered, and the blocks are put in place.
    Replaying {
        /// Items of blocks that are left.
        items_left: u64,
    },
}

impl Progress {
    /// Blocks a second so far.
    #[must_use]
    pub fn rate_blocks(&self) -> u64 {
        self.blocks.saturating_sub(self.left_blocks) * 1000 / self.elapsed_ms.max(1)
    }

    /// Milliseconds until it ends if it goes on as so far; `None` while nothing can be said.
    #[must_use]
    pub fn left_ms(&self) -> Option<u64> {
        let done = self.blocks.saturating_sub(self.left_blocks);
        let left = u128::from(self.left_blocks) * u128::from(self.elapsed_ms);
        left.checked_div(u128::from(done)).and_then(|ms| u64::try_from(ms).ok())
    }
}

/// What a verify is doing, or how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyPhase {
    /// Copies are compared.
    Comparing,
    /// The journal is searched for what proves which copy is right.
    Proving,
    /// What differs is written anew.
    Repairing,
    /// It went through to its end.
    Done,
    /// An operator ended it.
    Stopped,
    /// It ended for this reason.
    Interrupted(String),
}

/// Which of two different blocks is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing tells.
    None,
    /// The journal proves the Primary's.
    Primary,
    /// The journal proves the other one.
    Peer,
    /// The journal holds something else: neither is.
    Neither,
}

/// A run of blocks that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first block of 4096 bytes.
    pub block: u64,
    /// How many.
    pub blocks: u64,
    /// What is known of who is right.
    pub proof: Proof,
}

/// What a verify knows of one other copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// Whose.
    pub node: NodeId,
    /// Why it was not compared to the end, if it was not.
    pub lost: Option<String>,
    /// Blocks that differ now.
    pub differing_blocks: u64,
    /// Those that were found and are equal by now, written anew or not.
    pub settled_blocks: u64,
    /// Blocks that could not be read there when they were compared.
    pub unreadable_blocks: u64,
    /// The blocks that differ now, as far as they fit in here.
    pub differences: Vec<Difference>,
}

/// A verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyStatus {
    /// What it is doing.
    pub phase: VerifyPhase,
    /// Whether it writes anew what differs.
    pub repair: bool,
    /// Whose copy it trusts where nothing proves which one is right.
    pub trust: NodeId,
    /// Blocks of 4 KiB to compare, those compared, time, and the rate allowed.
    pub progress: Progress,
    /// Blocks that cannot be read here, nor from another replica.
    pub unreadable_blocks: u64,
    /// The other copies.
    pub peers: Vec<VerifiedPeer>,
}

/// Checksums of blocks at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumsStatus {
    /// Bytes of them in memory.
    pub memory_bytes: u64,
    /// Bytes of them on the journal device.
    pub area_bytes: u64,
    /// Sectors of them that could not be believed since the process started.
    pub damaged_sectors: u64,
    /// The last scrub that went through to its end.
    pub last: Option<ScrubRecord>,
}

/// A scrub since the process started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubStatus {
    /// How it ended; `None` while it goes on.
    pub ended: Option<ScrubEnd>,
    /// Blocks to read, those left, time, and the rate allowed.
    pub progress: Progress,
    /// Blocks that could not be read, or did not match their checksum.
    pub bad_blocks: u64,
    /// Blocks of which nothing was known: they count as right from now on.
    pub learnt_blocks: u64,
}

/// How a scrub ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubEnd {
    /// It went through to its end.
    Done,
    /// An operator ended it.
    Stopped,
    /// The copy here is not whole any more.
    Interrupted,
}

/// Things counted since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Write, zero and trim requests completed.
    pub writes: u64,
    /// Read requests completed.
    pub reads: u64,
    /// Flush requests completed.
    pub flushes: u64,
    /// Bytes written by clients.
    pub written_bytes: u64,
    /// Bytes read by clients.
    pub read_bytes: u64,
    /// Frames closed or received.
    pub frames: u64,
    /// Syncs of the journal.
    pub journal_syncs: u64,
    /// Writes to the backing disk.
    pub disk_writes: u64,
    /// Checkpoints taken.
    pub checkpoints: u64,
    /// Bytes of blocks sent in resyncs.
    pub resync_bytes: u64,
    /// Blocks of the backing disk that could not be read.
    pub unreadable_blocks: u64,
    /// Blocks of the backing disk that were not what was written there.
    pub rotten_blocks: u64,
    /// Blocks here that were written anew with what another replica holds.
    pub mended_blocks: u64,
}

/// What a Primary would have changed in its in-sync set, by whoever decides that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Replicas that have everything: they are pending, and count already.
    pub add: NodeSet,
    /// Members that do not follow.
    pub remove: NodeSet,
    /// What is committed now.
    pub committed: Sequence,
}

/// A replica at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Random identity of its copy, made once.
    pub replica: u128,
    /// Its role.
    pub role: Role,
    /// Whether clients are served now.
    pub serving: bool,
    /// Why clients' I/O waits, if it does.
    pub frozen: Option<String>,
    /// Whether a configuration manager decides here.
    pub managed: bool,
    /// Until when clients may be answered, in a reign of a configuration manager.
    pub lease_end: Option<Instant>,
    /// What the Primary wishes of the configuration manager.
    pub wish: Option<Wish>,
    /// State of its copy.
    pub disk_state: DiskState,
    /// Whether the copy must be verified.
    pub suspect: bool,
    /// Whether the backing disk has no space, so that entries wait in the journal.
    pub disk_full: bool,
    /// Whether it cannot have lost volatile state since it last acknowledged.
    pub proven: bool,
    /// Names what clients are attached to: while it stays, all that was acknowledged to them here is still here, and
    /// nobody else has written.
    pub export_generation: u64,
    /// In a reign of a configuration manager, its count of those that began with acknowledged writes perhaps missing: while
    /// it stays, a client may go from one node to another.
    pub sessions: Option<u64>,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Smallest unit a client may address.
    pub block_bytes: u32,
    /// The newest record it was told.
    pub record: Record,
    /// Highest epoch promised.
    pub promised: Epoch,
    /// End of its log.
    pub head: Position,
    /// Chain there.
    pub chain: Chain,
    /// Written to the journal.
    pub journaled: Sequence,
    /// Durable in the journal.
    pub durable: Sequence,
    /// Known committed.
    pub committed: Sequence,
    /// Known stable.
    pub stable: Sequence,
    /// Applied to the disk.
    pub applied: Sequence,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// Bytes of the ring in use.
    pub ring_used_bytes: u64,
    /// Bytes of the arena in use.
    pub arena_used_bytes: u64,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Bad superblock copies found and repaired so far.
    pub superblock_repairs: u64,
    /// The verify under way or the last one, at the Primary that began it.
    pub verify: Option<VerifyStatus>,
    /// Checksums of blocks at rest.
    pub sums: Option<SumsStatus>,
    /// The scrub under way, or the last one.
    pub scrub: Option<ScrubStatus>,
    /// Blocks here of which a verify said that they differ from the Primary's, and that were not written anew since.
    pub found_blocks: u64,
    /// What it has past a common point is being given up.
    pub branching: Option<Branching>,
    /// Why the last branch could not be kept.
    pub branch_failure: Option<String>,
    /// Whose data an operator gave up here, until that node has heard of it.
    pub discards_of: Option<NodeId>,
    /// Apply stands still.
    pub freeze: Option<FreezeStatus>,
    /// It applies late.
    pub delay: Option<DelayStatus>,
    /// Named points in the past of the copy here.
    pub bookmarks: Vec<BookmarkStatus>,
    /// What a resync of the copy here has gathered.
    pub staged: Option<Staged>,
    /// The other replicas.
    pub peers: Vec<PeerStatus>,
    /// Things counted.
    pub counters: Counters,
}
