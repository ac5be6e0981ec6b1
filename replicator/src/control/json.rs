//! The words of the control interface. Core types are mapped here, field by field, so that a change inside does
//! not change what programs outside read. States are in DRBD's words.

use replicator_core::dirty::BLOCK_BYTES;
use replicator_core::status::{Counters, PeerStatus, Progress, Staged};
use replicator_core::wire::message::Ack;
use serde::{Deserialize, Serialize};

use super::advice;
pub use super::bookmark_words::BookmarkReport;
pub use super::delay_words::{DelayReport, FreezeApply};
use super::facts::{Facts, protocol_letter};
use super::fork_words::branching_word;
pub use super::fork_words::{
    BranchList, BranchReport, DeleteBranch, ForkReport, ForkSideReport, FreezeReport, Nothing, Resolve,
};
pub use super::requests::{
    AttachUblk, BreakUblk, Demote, Grow, Invalidate, Lease, NameBookmark, OpenEpoch, Promote, Release, Seal,
    Shrink, StartScrub, StartVerify, TellRecord,
};
pub use super::scrub_words::{ScrubReport, SumsReport};
pub use super::verify_words::{DifferenceReport, VerifiedPeerReport, VerifyReport};
use crate::config::format_uuid;
use crate::{UblkStatus, VolumeStatus};

/// Answer to `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Version of the program.
    pub version: String,
    /// Version of this interface.
    pub api: u32,
}

/// Answer to `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the node.
    pub node: String,
    /// Process id of the replicator.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// Its volumes.
    pub volumes: Vec<VolumeReport>,
}

/// A volume's replica on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Name of the volume.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// What is wrong or needs attention, and what to do about it; empty if all is well.
    pub problems: Vec<Advice>,
    /// Where clients find the volume on this node.
    pub nbd: Vec<String>,
    /// The replica; absent if it has stopped or does not answer.
    pub replica: Option<ReplicaReport>,
}

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// `error`: clients or data are affected. `warning`: redundancy is. `note`: it passes by itself.
    pub severity: AdviceSeverity,
    /// What is wrong.
    pub text: String,
    /// What to do or to type, if there is something.
    pub cure: Option<String>,
}

/// How much attention it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdviceSeverity {
    /// It passes by itself.
    Note,
    /// Redundancy is affected.
    Warning,
    /// Clients or data are affected.
    Error,
}

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// Identity of this copy, 32 hexadecimal digits; one that is created anew is another.
    #[serde(default)]
    pub replica_id: String,
    /// `Primary` or `Secondary`.
    pub role: String,
    /// Whether clients are served now.
    pub serving: bool,
    /// Why clients' I/O waits, if it does.
    pub frozen: Option<String>,
    /// Whether an orchestrator decides who is Primary and who is in sync.
    pub managed: bool,
    /// Until when clients may be answered, on `CLOCK_BOOTTIME`, in a reign that an orchestrator began; none without one,
    /// and while there is no lease.
    pub lease_end_ms: Option<u64>,
    /// What a Primary wishes of the orchestrator.
    pub wish: Option<WishReport>,
    /// `UpToDate`, `Outdated`, `Inconsistent`, `Failed`, `Attaching` or `Diskless`.
    pub disk_state: String,
    /// Whether the copy must be verified.
    pub suspect: bool,
    /// Whether the backing disk has no space, so that entries wait in the journal.
    pub disk_full: bool,
    /// Whether it cannot have lost volatile state since it last acknowledged.
    pub proven: bool,
    /// Names what clients are attached to: while it stays, all that was acknowledged to them on this node is still
    /// there, and nobody else has written.
    pub export_generation: u64,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Smallest unit a client may address.
    pub block_bytes: u32,
    /// The newest record of who writes and who is in sync.
    pub record: RecordReport,
    /// Highest epoch promised.
    pub promised: u64,
    /// End of the log, `epoch:sequence`.
    pub head: String,
    /// Chain value there.
    pub chain: String,
    /// Sequence written to the journal.
    pub journaled: u64,
    /// Sequence durable in the journal.
    pub durable: u64,
    /// Sequence known committed.
    pub committed: u64,
    /// Sequence known stable.
    pub stable: u64,
    /// Sequence applied to the disk.
    pub applied: u64,
    /// The journal's ring.
    pub ring: UsageReport,
    /// Memory for requests and frames.
    pub memory: UsageReport,
    /// Bad superblock copies found and repaired so far.
    pub superblock_repairs: u64,
    /// NBD connections now.
    pub nbd_connections: u32,
    /// The device of the kernel's ublk driver that it serves, if it serves one.
    #[serde(default)]
    pub ublk: Option<UblkReport>,
    /// How disk and journal are read and written.
    pub backends: String,
    /// Flags of the ring that does it.
    pub ring_flags: String,
    /// Whether the process has locked its memory.
    pub memory_locked: bool,
    /// The verify under way or the last one, at the primary that began it.
    pub verify: Option<VerifyReport>,
    /// Checksums of blocks at rest, if this copy has any.
    pub checksums: Option<SumsReport>,
    /// The scrub under way, or the last one since the process started.
    pub scrub: Option<ScrubReport>,
    /// Bytes here of which a verify said that they differ from the primary's, and that were not written anew since.
    pub found_bytes: u64,
    /// What this copy has past a fork is being given up: `waits-for-primary`, `keeping` or `kept`.
    pub branching: Option<String>,
    /// Why the last branch could not be kept.
    pub branch_failure: Option<String>,
    /// The node that an operator asked here to yield, until it has heard of it.
    pub discards_of: Option<String>,
    /// Apply stands still.
    pub freeze: Option<FreezeReport>,
    /// It applies late.
    #[serde(default)]
    pub delay: Option<DelayReport>,
    /// Bookmarks of the copy here, the oldest first.
    #[serde(default)]
    pub bookmarks: Vec<BookmarkReport>,
    /// What a resync of the copy here has gathered in its journal.
    pub staged: Option<StagedReport>,
    /// The other replicas.
    pub peers: Vec<PeerReport>,
    /// Things counted since the process started.
    pub counters: CountersReport,
}

/// Who writes and who holds every acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordReport {
    /// The reign.
    pub epoch: u64,
    /// Change of the record within the reign.
    pub version: u64,
    /// Who may write.
    pub primary: Option<String>,
    /// Identity of the reign.
    pub reign: String,
    /// Names of the members of the in-sync set.
    pub in_sync: Vec<String>,
}

/// Changes of the in-sync set that a Primary wishes for. They hold for the record beside them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WishReport {
    /// Names of replicas that have everything: they are pending, and count already.
    pub add: Vec<String>,
    /// Names of members that do not follow.
    pub remove: Vec<String>,
    /// Sequence known committed.
    pub committed: u64,
}

/// How full something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// Bytes there are.
    pub bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
}

/// Another replica as seen from here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Name of its node.
    pub node: String,
    /// Where it listens.
    pub address: Option<String>,
    /// `A`, `B` or `C`: how it is fed.
    pub protocol: String,
    /// `Established`, `SyncSource`, `SyncTarget`, `CatchUp`, `Connected`, `Connecting` or `StandAlone`.
    pub connection: String,
    /// Why it is StandAlone, if it is.
    pub reason: Option<String>,
    /// Its role as it last said, if it is connected.
    pub role: Option<String>,
    /// State of its copy as it last said, if it is connected.
    pub disk_state: Option<String>,
    /// Whether it is in the in-sync set.
    pub member: bool,
    /// Whether anything came from it within two of `ping-interval`.
    pub answers: bool,
    /// Whether it applies late, as it last said: then it is never taken into the set.
    #[serde(default)]
    pub delayed: bool,
    /// What it last acknowledged.
    pub ack: AckReport,
    /// Bytes of the log here that it has not in its journal; none if nothing is sent to it, or the log does not reach back
    /// as far.
    #[serde(default)]
    pub lag_bytes: Option<u64>,
    /// The resync of its copy from here, if one is under way.
    pub resync: Option<ResyncReport>,
    /// Bytes of the volume that its copy may lack, as far as the journal does not say it.
    pub dirty_bytes: u64,
    /// Where its log parted from this one.
    pub fork: Option<ForkReport>,
}

/// What the target of a resync has gathered before it gives up what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedReport {
    /// Whether all is gathered, and the blocks are being put in place.
    pub is_switched: bool,
    /// Bytes of the journal that are gathered; 0 when they are being put in place.
    pub bytes: u64,
    /// Bytes that may be gathered besides.
    pub free_bytes: u64,
    /// Items of blocks that are still to be put in place.
    pub items_left: u64,
}

/// How far a resync has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncReport {
    /// Bytes of the volume that were to be brought level when it began.
    pub bytes: u64,
    /// Those that are left.
    pub left_bytes: u64,
    /// Bytes a second so far.
    pub rate_bytes: u64,
    /// Bytes a second that it may take while clients write.
    pub allowed_rate_bytes: u64,
    /// Seconds until it ends if it goes on so; none while that cannot be said.
    pub left_seconds: Option<u64>,
    /// Whether the target gathers all of it before it gives up what it has.
    pub is_staged: bool,
}

/// Sequences a peer has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckReport {
    /// Received into memory.
    pub received: u64,
    /// Written to the journal.
    pub journaled: u64,
    /// Durable in the journal.
    pub durable: u64,
    /// Applied to the disk.
    pub applied: u64,
}

/// Things counted since the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersReport {
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
    /// Blocks of 4096 bytes of the backing disk that could not be read.
    pub unreadable_blocks: u64,
    /// Blocks of the backing disk that were not what was written there.
    pub rotten_blocks: u64,
    /// Blocks here that were written anew with what another replica holds.
    pub mended_blocks: u64,
}

/// A device of the kernel's ublk driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UblkReport {
    /// N of `/dev/ublkbN`.
    pub index: u32,
    /// The export generation that it belongs to.
    pub generation: u64,
    /// Whether its requests are carried out now; if not, they wait, or fail if it is broken.
    pub served: bool,
    /// Whether its requests fail, now and for ever.
    pub broken: bool,
}

impl From<UblkStatus> for UblkReport {
    fn from(status: UblkStatus) -> Self {
        Self {
            index: status.index,
            generation: status.generation,
            served: status.is_served,
            broken: status.is_broken,
        }
    }
}

/// Answer to `POST .../seal`: it is done, durably, and the position does not move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Of the request.
    pub attempt: u64,
    /// The sealed replica: its position, chain, disk state, proven, promised, record.
    pub replica: ReplicaReport,
}

/// Answer to a POST that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What was done.
    pub message: String,
}

/// Answer to anything that was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub error: FailureReason,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureReason {
    /// A word for programs.
    pub code: String,
    /// The cause.
    pub message: String,
    /// The cure, if there is one.
    pub hint: Option<String>,
}

impl VolumeReport {
    /// A report of the volume `name`, with what its replica said or why it said nothing.
    pub(super) fn new<E: std::fmt::Display>(
        facts: &Facts,
        name: &str,
        status: Result<&VolumeStatus, E>,
    ) -> Self {
        let uuid = facts.volume(name).map_or_else(String::new, |volume| format_uuid(volume.id.0));
        let mut report = Self {
            name: name.to_owned(),
            uuid,
            problems: Vec::new(),
            nbd: facts.nbd_uris(name),
            replica: status.as_ref().ok().map(|status| ReplicaReport::new(facts, name, status)),
        };
        report.problems = match status {
            Ok(_) => advice::problems(facts, &report),
            Err(error) => vec![advice::silent(name, &error.to_string())],
        };
        report
    }
}

impl ReplicaReport {
    fn new(facts: &Facts, volume: &str, status: &VolumeStatus) -> Self {
        let core = &status.core;
        Self {
            replica_id: format!("{:032x}", core.replica),
            role: core.role.to_string(),
            serving: core.serving,
            frozen: core.frozen.as_deref().map(|reason| facts.with_names(reason)),
            managed: core.managed,
            lease_end_ms: core.lease_end.map(|end| end.0 / 1_000_000),
            wish: core.wish.map(|wish| WishReport {
                add: facts.names_of(wish.add),
                remove: facts.names_of(wish.remove),
                committed: wish.committed.0,
            }),
            disk_state: core.disk_state.to_string(),
            suspect: core.suspect,
            disk_full: core.disk_full,
            proven: core.proven,
            export_generation: core.export_generation,
            size_bytes: core.volume_bytes,
            block_bytes: core.block_bytes,
            record: RecordReport {
                epoch: core.record.epoch.0,
                version: core.record.version,
                primary: core.record.primary.map(|node| facts.name_of(node)),
                reign: format!("{:032x}", core.record.reign.0),
                in_sync: facts.names_of(core.record.in_sync),
            },
            promised: core.promised.0,
            head: core.head.to_string(),
            chain: core.chain.to_string(),
            journaled: core.journaled.0,
            durable: core.durable.0,
            committed: core.committed.0,
            stable: core.stable.0,
            applied: core.applied.0,
            ring: UsageReport { bytes: core.ring_bytes, used_bytes: core.ring_used_bytes },
            memory: UsageReport { bytes: core.arena_bytes, used_bytes: core.arena_used_bytes },
            superblock_repairs: core.superblock_repairs,
            nbd_connections: status.nbd_connections,
            ublk: status.ublk.map(UblkReport::from),
            backends: status.backends.clone(),
            ring_flags: status.ring_flags.clone(),
            memory_locked: status.memory_locked,
            verify: core.verify.as_ref().map(|verify| VerifyReport::new(facts, core.node, verify)),
            checksums: core.sums.map(SumsReport::from),
            scrub: core.scrub.as_ref().map(ScrubReport::from),
            found_bytes: core.found_blocks * BLOCK_BYTES,
            branching: core.branching.map(|branching| branching_word(branching).to_owned()),
            branch_failure: core.branch_failure.clone(),
            discards_of: core.discards_of.map(|node| facts.name_of(node)),
            freeze: core.freeze.map(|freeze| FreezeReport::new(volume, freeze)),
            delay: core.delay.map(DelayReport::from),
            bookmarks: core.bookmarks.iter().map(BookmarkReport::new).collect(),
            staged: core.staged.map(StagedReport::from),
            peers: core.peers.iter().map(|peer| PeerReport::new(facts, volume, peer)).collect(),
            counters: CountersReport::from(core.counters),
        }
    }
}

impl PeerReport {
    fn new(facts: &Facts, volume: &str, peer: &PeerStatus) -> Self {
        Self {
            node: facts.name_of(peer.node),
            address: facts.replica(volume, peer.node).map(|replica| replica.listen.to_string()),
            protocol: protocol_letter(peer.protocol).to_owned(),
            connection: peer.connection.to_string(),
            reason: peer.reason.as_deref().map(|reason| facts.with_names(reason)),
            role: peer.role.map(|role| role.to_string()),
            disk_state: peer.disk_state.map(|state| state.to_string()),
            member: peer.member,
            answers: peer.answers,
            delayed: peer.delayed,
            ack: AckReport::from(peer.ack),
            lag_bytes: peer.lag_bytes,
            resync: peer.resync.map(ResyncReport::from),
            dirty_bytes: peer.dirty_blocks * BLOCK_BYTES,
            fork: peer.fork.map(ForkReport::from),
        }
    }
}

impl From<Staged> for StagedReport {
    fn from(staged: Staged) -> Self {
        match staged {
            Staged::Gathering { bytes, free_bytes } => {
                Self { is_switched: false, bytes, free_bytes, items_left: 0 }
            }
            Staged::Replaying { items_left } => {
                Self { is_switched: true, bytes: 0, free_bytes: 0, items_left }
            }
        }
    }
}

impl From<Progress> for ResyncReport {
    fn from(progress: Progress) -> Self {
        Self {
            bytes: progress.blocks * BLOCK_BYTES,
            left_bytes: progress.left_blocks * BLOCK_BYTES,
            rate_bytes: progress.rate_blocks() * BLOCK_BYTES,
            allowed_rate_bytes: progress.allowed_rate,
            left_seconds: progress.left_ms().map(|ms| ms.div_ceil(1000)),
            is_staged: progress.is_staged,
        }
    }
}

impl From<Ack> for AckReport {
    fn from(ack: Ack) -> Self {
        Self {
            received: ack.received.0,
            journaled: ack.journaled.0,
            durable: ack.durable.0,
            applied: ack.applied.0,
        }
    }
}

impl From<Counters> for CountersReport {
    fn from(counters: Counters) -> Self {
        Self {
            writes: counters.writes,
            reads: counters.reads,
            flushes: counters.flushes,
            written_bytes: counters.written_bytes,
            read_bytes: counters.read_bytes,
            frames: counters.frames,
            journal_syncs: counters.journal_syncs,
            disk_writes: counters.disk_writes,
            checkpoints: counters.checkpoints,
            resync_bytes: counters.resync_bytes,
            unreadable_blocks: counters.unreadable_blocks,
            rotten_blocks: counters.rotten_blocks,
            mended_blocks: counters.mended_blocks,
        }
    }
}
