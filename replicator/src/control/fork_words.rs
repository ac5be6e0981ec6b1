//! Words of the control interface for forks, branches and frozen replicas.

use replicator_core::dirty::BLOCK_BYTES;
use replicator_core::status::{Branching, ForkSide, ForkStatus, FreezeStatus};
use serde::{Deserialize, Serialize};

use crate::branch::BranchInfo;

/// Where two logs parted, and what lies past that in each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkReport {
    /// The last entry both hold, `epoch:sequence`.
    pub common: String,
    /// This node's side.
    pub here: ForkSideReport,
    /// The peer's side, as it last said.
    pub there: ForkSideReport,
}

/// One side of a fork.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkSideReport {
    /// The end of its log, `epoch:sequence`.
    pub head: String,
    /// Entries past the common point.
    pub entries: u64,
    /// Bytes of the blocks that it changed, as far as it has applied them.
    pub changed_bytes: u64,
    /// When the first of the entries was written, in milliseconds since 1970 by the clock of its primary.
    pub first_ms: Option<u64>,
    /// When the last one was.
    pub last_ms: Option<u64>,
}

/// A replica whose apply stands still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeReport {
    /// What its disk holds, `epoch:sequence`.
    pub position: String,
    /// Name of the export that has it, once it can be read.
    pub export: Option<String>,
    /// Since when, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Bytes of the journal that wait because of it.
    pub used_bytes: u64,
    /// When as many wait, it thaws.
    pub budget_bytes: u64,
}

/// Answer to `GET .../branches`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchList {
    /// By name.
    pub branches: Vec<BranchReport>,
}

/// What was kept of a fork that this node lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchReport {
    /// Its name.
    pub name: String,
    /// The NBD export that reads it.
    pub export: String,
    /// Where the logs parted, `epoch:sequence`.
    pub common: String,
    /// The end of the log whose content it keeps.
    pub head: String,
    /// When it was kept, in milliseconds since 1970.
    pub kept_ms: u64,
    /// Blocks of 4 KiB that it keeps.
    pub blocks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes it takes on its file system.
    pub stored_bytes: u64,
    /// It keeps all blocks: which ones differ could not be told.
    pub is_everything: bool,
    /// Its file.
    pub path: String,
}

/// Body of `POST .../resolve`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// Name of the node whose entries past the common point are given up.
    pub discard: String,
}

/// Body of `POST .../thaw`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Body of `POST .../branches/delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteBranch {
    /// Its name.
    pub name: String,
}

impl From<ForkStatus> for ForkReport {
    fn from(fork: ForkStatus) -> Self {
        Self { common: fork.common.to_string(), here: fork.here.into(), there: fork.there.into() }
    }
}

impl From<ForkSide> for ForkSideReport {
    fn from(side: ForkSide) -> Self {
        Self {
            head: side.head.to_string(),
            entries: side.entries,
            changed_bytes: side.changed_blocks * BLOCK_BYTES,
            first_ms: side.first_ms,
            last_ms: side.last_ms,
        }
    }
}

impl FreezeReport {
    pub(super) fn new(volume: &str, freeze: FreezeStatus) -> Self {
        Self {
            position: freeze.position.to_string(),
            export: freeze.is_open.then(|| format!("{volume}{}", crate::driver::FROZEN)),
            since_ms: freeze.since_ms,
            used_bytes: freeze.used_bytes,
            budget_bytes: freeze.budget_bytes,
        }
    }
}

impl BranchReport {
    pub(super) fn new(volume: &str, branch: BranchInfo) -> Self {
        Self {
            export: format!("{volume}{}{}", crate::driver::BRANCH, branch.name),
            name: branch.name,
            common: branch.common.position.to_string(),
            head: branch.head.position.to_string(),
            kept_ms: branch.kept_ms,
            blocks: branch.blocks,
            bytes: branch.blocks * BLOCK_BYTES,
            stored_bytes: branch.stored_bytes,
            is_everything: branch.is_everything,
            path: branch.path.display().to_string(),
        }
    }
}

/// How far giving up one side has come.
pub(super) fn branching_word(branching: Branching) -> &'static str {
    match branching {
        Branching::WaitsForPrimary => "waits-for-primary",
        Branching::Keeping => "keeping",
        Branching::Kept => "kept",
    }
}
