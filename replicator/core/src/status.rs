//! What a replica says of itself: plain data, in DRBD's words, for the control interface and the tests.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::config::Protocol;
use crate::disk::superblock::{DiskState, Record};
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
    /// What it last acknowledged.
    pub ack: Ack,
    /// The resync of its copy from here, if one is under way.
    pub resync: Option<Progress>,
    /// Blocks of its copy that may differ, as far as the journal does not say it.
    pub dirty_blocks: u64,
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
    /// The other replicas.
    pub peers: Vec<PeerStatus>,
    /// Things counted.
    pub counters: Counters,
}
