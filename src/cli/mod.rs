//! The command line: subcommands, flags and their help. The arguments of each lie in the file of what they are about;
//! what is done with them, elsewhere.

mod cluster;
mod device;
mod file;
mod process;
#[cfg(test)]
mod tests;
mod trial;
mod volume;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub(crate) use cluster::{
    AskArgs, ClusterArgs, ClusterCommand, ConfirmOffArgs, EventsArgs, ExplainArgs, FenceArgs, HistoryArgs,
    InitArgs, JoinArgs, SwitchoverArgs, WordArgs,
};
pub(crate) use device::{AttachArgs, ClientCertificateArgs, DetachArgs};
pub(crate) use file::{AtRestArgs, ConfigCommand, ExtractArgs, InspectArgs};
pub(crate) use process::{CreateArgs, MoveJournalArgs, OrchestratorArgs, ReplicatorArgs};
pub(crate) use trial::{DemoArgs, OnOff, SandboxArgs};
pub(crate) use volume::{
    BookmarkCommand, BranchArgs, BranchCommand, FreezeApplyArgs, GrowArgs, InvalidateArgs, PromoteArgs,
    ReloadArgs, ResolveArgs, ScrubArgs, ShrinkArgs, StatusArgs, VerifyArgs,
};

/// A block device kept alive on two or more machines.
///
/// Start here: `holdfast demo` shows it at work on this machine, `holdfast sandbox` gives you a throwaway cluster,
/// `holdfast config new` prints a configuration to edit.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make this node's replica of a volume: an empty disk and a journal
    Create(CreateArgs),
    /// Run this node's replicas in the foreground, until SIGTERM or SIGINT
    Replicator(ReplicatorArgs),
    /// Run this node's orchestrator in the foreground: votes, notices failures, promotes
    Orchestrator(OrchestratorArgs),
    /// Ask the orchestrator: who leads, who may write, what would happen; or tell it what is wanted
    Cluster(ClusterArgs),
    /// Say why a volume or a node is as it is: not promoted, moved, switched off, waiting
    Explain(ExplainArgs),
    /// Show what the orchestrators have decided: when, what and why
    History(HistoryArgs),
    /// Show what happens, as it happens, until interrupted
    Events(EventsArgs),
    /// Move a volume or a stack to another node: stop in order, hand over, start there; waits until it runs
    Switchover(SwitchoverArgs),
    /// Switch a node off with its fence agents; shows what would happen unless --yes is given
    Fence(FenceArgs),
    /// Say that you have seen a node to be off; shows what that promises unless --yes is given
    ConfirmOff(ConfirmOffArgs),
    /// Show a node and its volumes: what is wrong and what to type next
    Status(StatusArgs),
    /// Make a node the volume's primary: clients are served there
    Promote(PromoteArgs),
    /// Make a primary a secondary again, with everything safe first
    Demote(VolumeArgs),
    /// Take a replica that is gone out of the in-sync set, so that I/O goes on without it
    Shrink(ShrinkArgs),
    /// Move the journal of this node's replica, which must not run, to another file or device
    MoveJournal(MoveJournalArgs),
    /// Have a running replicator read its configuration file again: replicas of its volumes are taken in and let go
    Reload(ReloadArgs),
    /// Make a volume larger while it is in use; on its primary, with every replica connected
    Grow(GrowArgs),
    /// Give up the data of this node's copy, and have it written anew by the primary
    Invalidate(InvalidateArgs),
    /// Compare the other copies of a volume with the primary's, while it is in use. Exit code 3 if they differ
    Verify(VerifyArgs),
    /// Have a node read every block of its copy and check it; what is bad is written anew from another node
    Scrub(ScrubArgs),
    /// Come back from a fork: name the node whose side is given up. It is kept as a branch first
    Resolve(ResolveArgs),
    /// What was kept of forks that this node lost
    #[command(subcommand)]
    Branch(BranchCommand),
    /// Stop applying at one exact position on a secondary, and offer what it holds as VOLUME@frozen
    FreezeApply(FreezeApplyArgs),
    /// End a freeze: the secondary applies again, and its frozen export ends
    Thaw(VolumeArgs),
    /// Note what changes on a node from now on, so that a backup reads only that
    #[command(subcommand)]
    Bookmark(BookmarkCommand),
    /// Make the certificate by which a machine outside the cluster may use volumes over NBD with TLS
    ClientCertificate(ClientCertificateArgs),
    /// Make the certificate by which a machine outside the cluster may ask and tell the orchestrators, over TLS
    OperatorCertificate(ClientCertificateArgs),
    /// Make a volume that is served on this node a block device, /dev/nbdN or /dev/ublkbN
    Attach(AttachArgs),
    /// End the block device of a volume
    Detach(DetachArgs),
    /// Read a replica at rest: superblock, journal, entries. Exit code 3 if it is damaged
    Inspect(InspectArgs),
    /// Write what a volume holds to standard output, read off a replica at rest: its disk, with its journal on top
    Extract(ExtractArgs),
    /// Check a configuration file, or print one to begin with
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run a throwaway cluster on this machine, until SIGTERM or SIGINT
    Sandbox(SandboxArgs),
    /// Show a failover: write, kill the primary, promote the other, check everything
    Demo(DemoArgs),
}

/// Which node of which configuration.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArgs {
    /// The cluster's configuration file
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG")]
    pub(crate) config: PathBuf,
    /// The node [default: the one with this host's name]
    #[arg(long, value_name = "NAME", env = "HOLDFAST_NODE")]
    pub(crate) node: Option<String>,
}

/// Which running node.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// The node's control socket [default: /run/holdfast/control.sock]
    #[arg(long, value_name = "SOCKET", env = "HOLDFAST_CONTROL", conflicts_with_all = ["config", "node"])]
    pub(crate) control: Option<PathBuf>,
    /// Find the control socket in this configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The node in that file [default: the one with this host's name]
    #[arg(long, value_name = "NAME", requires = "config")]
    pub(crate) node: Option<String>,
}

/// Which volume of which node.
#[derive(Debug, Args)]
pub(crate) struct VolumeArgs {
    /// The volume
    pub(crate) volume: String,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
