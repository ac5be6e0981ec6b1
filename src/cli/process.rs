//! Arguments of what runs on a node, and of what makes it ready to.

use clap::Args;

use super::NodeArgs;

/// Arguments of `create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The volume
    pub(crate) volume: String,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Overwrite what lies on the disk and the journal
    #[arg(long)]
    pub(crate) force: bool,
    /// Keep what the disk holds, a copy of the volume made by hand: it is compared, and only what differs is sent
    #[arg(long)]
    pub(crate) seeded: bool,
    /// The disk is all zeros already: a block device is read to see, and not written
    #[arg(long, conflicts_with = "seeded")]
    pub(crate) zeroed: bool,
    /// Keep what the disk holds and make it the volume's data: the other replicas are brought level from it
    #[arg(long, conflicts_with_all = ["seeded", "zeroed"])]
    pub(crate) adopt: bool,
}

/// Arguments of `move-journal`.
#[derive(Debug, Args)]
pub(crate) struct MoveJournalArgs {
    /// The volume
    pub(crate) volume: String,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Where it goes: a file that is made, or a block device at least as large
    #[arg(long, value_name = "PATH")]
    pub(crate) to: std::path::PathBuf,
    /// Overwrite what lies there
    #[arg(long)]
    pub(crate) force: bool,
}

/// Arguments of `replicator`.
#[derive(Debug, Args)]
pub(crate) struct ReplicatorArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Be killed when the process with this id, which must be the parent, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) die_with: Option<u32>,
}

/// Arguments of `orchestrator`.
#[derive(Debug, Args)]
pub(crate) struct OrchestratorArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Be killed when the process with this id, which must be the parent, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) die_with: Option<u32>,
}
