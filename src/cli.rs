//! The command line: subcommands, flags and their help.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use replicator::config::{parse_duration_ms, parse_size};

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
    /// Give up the data of this node's copy, and have it written anew by the primary
    Invalidate(InvalidateArgs),
    /// Compare the other copies of a volume with the primary's, while it is in use. Exit code 3 if they differ
    Verify(VerifyArgs),
    /// Come back from a fork: name the node whose side is given up. It is kept as a branch first
    Resolve(ResolveArgs),
    /// What was kept of forks that this node lost
    #[command(subcommand)]
    Branch(BranchCommand),
    /// Stop applying at one exact position on a secondary, and offer what it holds as VOLUME@frozen
    FreezeApply(VolumeArgs),
    /// End a freeze: the secondary applies again, and its frozen export ends
    Thaw(VolumeArgs),
    /// Make a volume that is served on this node a block device, /dev/nbdN or /dev/ublkbN
    Attach(AttachArgs),
    /// End the block device of a volume
    Detach(DetachArgs),
    /// Read a replica at rest: superblock, journal, entries. Exit code 3 if it is damaged
    Inspect(InspectArgs),
    /// Check a configuration file, or print one to begin with
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run a throwaway cluster on this machine, until SIGTERM or SIGINT
    Sandbox(SandboxArgs),
    /// Show a failover: write, kill the primary, promote the other, check everything
    Demo(DemoArgs),
}

/// Which node of which configuration.
#[derive(Debug, Args)]
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

/// Arguments of `cluster`.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// What to ask or to say
    #[command(subcommand)]
    pub(crate) command: ClusterCommand,
    /// The orchestrator's control socket [default: /run/holdfast/orchestrator.sock]
    #[arg(long, global = true, value_name = "SOCKET", env = "HOLDFAST_ORCHESTRATOR")]
    pub(crate) control: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Arguments of `fence`.
#[derive(Debug, Args)]
pub(crate) struct FenceArgs {
    /// The node
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) word: WordArgs,
}

/// Arguments of `confirm-off`.
#[derive(Debug, Args)]
pub(crate) struct ConfirmOffArgs {
    /// The node
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) word: WordArgs,
}

/// How a word about the power of a node is given.
#[derive(Debug, Args)]
pub(crate) struct WordArgs {
    /// Do it
    #[arg(long)]
    pub(crate) yes: bool,
    /// Whose word it is [default: your user name]
    #[arg(long, value_name = "NAME")]
    pub(crate) who: Option<String>,
    /// The orchestrator's control socket [default: /run/holdfast/orchestrator.sock]
    #[arg(long, value_name = "SOCKET", env = "HOLDFAST_ORCHESTRATOR")]
    pub(crate) control: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to ask the orchestrator, or to tell it.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Who leads, who is heard, who may write each volume, and why nothing else
    Status,
    /// What would happen; asked at the leader
    Plan {
        /// If this node died now
        #[arg(long, value_name = "NODE")]
        dead: Option<String>,
    },
    /// Let a volume be primary on another node, with everything safe first
    Move {
        /// The volume
        volume: String,
        /// Where to [default: nowhere in particular any more]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// Give a node nothing, and take from it what it has
    Standby {
        /// The node
        node: String,
        /// It may be given things again
        #[arg(long)]
        off: bool,
    },
    /// Let the orchestrator do nothing: about everything, a volume or a node
    Pause {
        /// Only this volume
        #[arg(long, value_name = "VOLUME", conflicts_with = "node")]
        volume: Option<String>,
        /// Only this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        /// Let it go on
        #[arg(long)]
        off: bool,
    },
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Only this volume
    pub(crate) volume: Option<String>,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it again every second, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Arguments of `promote`.
#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    /// The volume
    pub(crate) volume: String,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Without the word of members that cannot be reached. Only when they are surely down: two primaries split the
    /// volume's history
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `shrink`.
#[derive(Debug, Args)]
pub(crate) struct ShrinkArgs {
    /// The volume
    pub(crate) volume: String,
    /// The node whose replica is gone
    #[arg(long, value_name = "NODE")]
    pub(crate) remove: String,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `invalidate`.
#[derive(Debug, Args)]
pub(crate) struct InvalidateArgs {
    /// The volume
    pub(crate) volume: String,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Yes: what only this copy holds is lost
    #[arg(long)]
    pub(crate) discard_my_data: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The volume
    pub(crate) volume: String,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Write anew what differs: from the copy that the journal proves right, or else from the trusted one
    #[arg(long)]
    pub(crate) repair: bool,
    /// Whose copy is right where nothing proves it; blocks of the others are overwritten [default: the primary's]
    #[arg(long, value_name = "NODE", requires = "repair")]
    pub(crate) trust: Option<String>,
    /// Wait until it has ended, and show what it found
    #[arg(long)]
    pub(crate) wait: bool,
    /// End the one under way
    #[arg(long, conflicts_with_all = ["repair", "wait"])]
    pub(crate) stop: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `resolve`.
#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    /// The volume
    pub(crate) volume: String,
    /// The node whose entries past the common point are given up
    #[arg(long, value_name = "NODE")]
    pub(crate) discard: String,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
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

/// Which branch.
#[derive(Debug, Args)]
pub(crate) struct BranchArgs {
    #[command(flatten)]
    pub(crate) volume: VolumeArgs,
    /// The branch, as `branch list` names it
    pub(crate) name: String,
}

/// What to do with branches.
#[derive(Debug, Subcommand)]
pub(crate) enum BranchCommand {
    /// List them
    List(VolumeArgs),
    /// Show one: what it keeps, of which log, since when
    Show(BranchArgs),
    /// Say how to read one over NBD
    Export(BranchArgs),
    /// Remove one for good
    Delete(BranchArgs),
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["volume", "status"])))]
pub(crate) struct AttachArgs {
    /// The volume
    pub(crate) volume: Option<String>,
    /// The device, as /dev/nbd0 or /dev/ublkb0 [default: a free one]
    #[arg(requires = "volume")]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Show what is attached on this host
    #[arg(long)]
    pub(crate) status: bool,
    /// By the kernel's ublk driver instead of its NBD client: faster, needs Linux 6.5 with ublk_drv
    #[arg(long, requires = "volume")]
    pub(crate) ublk: bool,
    /// Stay, and connect the device again whenever the replicator was restarted
    #[arg(long, requires = "volume")]
    pub(crate) follow: bool,
    /// Connections, and so hardware queues. With more than one a request that waits for longer than
    /// --request-timeout costs its connection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16), conflicts_with = "ublk")]
    pub(crate) connections: u8,
    /// How long I/O waits for a replicator that has gone, before it fails; whole seconds
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = parse_duration_ms)]
    pub(crate) dead_time: u64,
    /// When the kernel looks again at a request without an answer [default: 2s, with several connections 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms, conflicts_with = "ublk")]
    pub(crate) request_timeout: Option<u64>,
    /// The device's logical blocks, 512 to 4096 bytes [default: the volume's]
    #[arg(long, value_name = "BYTES")]
    pub(crate) block_size: Option<u32>,
    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// The volume, or its device
    pub(crate) what: String,
    /// Though it is in use, or what was written to it cannot be written back: that fails and is lost
    #[arg(long)]
    pub(crate) force: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("replica").required(true).args(["volume", "journal"])))]
pub(crate) struct InspectArgs {
    /// The volume, found with --config and --node
    #[arg(requires = "config")]
    pub(crate) volume: Option<String>,
    /// The journal itself
    #[arg(long, value_name = "PATH", conflicts_with = "volume")]
    pub(crate) journal: Option<PathBuf>,
    /// The backing disk: says whether it is the one the journal belongs to
    #[arg(long, value_name = "PATH", requires = "journal")]
    pub(crate) disk: Option<PathBuf>,
    /// The cluster's configuration file
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// The node [default: the one with this host's name]
    #[arg(long, value_name = "NAME", env = "HOLDFAST_NODE")]
    pub(crate) node: Option<String>,
    /// List every entry of the journal
    #[arg(long)]
    pub(crate) entries: bool,
    /// Read at most so many frames
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) frames: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to do with a configuration file.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check a file as a whole; every mistake is shown with its line and a cure
    Check {
        /// The file
        file: PathBuf,
        /// Leave the secret file alone, as on a machine that is no node
        #[arg(long)]
        no_secret: bool,
    },
    /// Print a commented file to begin with, with a fresh UUID and secret
    New,
}

/// DRBD's replication protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum ProtocolArg {
    /// Acknowledged when here; the others follow
    A,
    /// Acknowledged when in the memory of all
    B,
    /// Acknowledged when in the journal of all
    C,
}

impl ProtocolArg {
    pub(crate) fn letter(self) -> char {
        match self {
            Self::A => 'A',
            Self::B => 'B',
            Self::C => 'C',
        }
    }
}

/// What a primary does when a member is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerLossArg {
    /// I/O waits for the member or the operator
    Freeze,
    /// I/O goes on alone, and that is remembered
    Continue,
}

impl PeerLossArg {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Continue => "continue",
        }
    }
}

/// Arguments of `sandbox`.
#[derive(Debug, Args)]
pub(crate) struct SandboxArgs {
    /// Nodes, called a, b, c ...
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) nodes: u8,
    /// When a write is acknowledged
    #[arg(long, value_enum, ignore_case = true, default_value_t = ProtocolArg::C)]
    pub(crate) protocol: ProtocolArg,
    /// Size of the volume r0
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    pub(crate) size: u64,
    /// Size of each journal
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    pub(crate) journal_size: u64,
    /// What the primary does when a member is gone
    #[arg(long, value_enum, default_value_t = PeerLossArg::Freeze)]
    pub(crate) on_peer_loss: PeerLossArg,
    /// Folder for everything; must be empty or absent [default: a fresh temporary one]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Serve NBD on a loopback TCP port too
    #[arg(long)]
    pub(crate) tcp: bool,
    /// Have the nodes talk in TLS, though they are all on this machine
    #[arg(long)]
    pub(crate) tls: bool,
    /// Keep the files when it ends
    #[arg(long)]
    pub(crate) keep: bool,
    /// Give up if it is not ready in time
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration_ms)]
    pub(crate) ready_within: u64,
    /// Print one line of JSON when ready
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How long to write, in all
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
    /// Folder for everything; must be empty or absent [default: a fresh temporary one]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the files when it ends
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print the result as a last line of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_has_help() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                let is_documented = argument.get_help().is_some() || argument.get_id() == "help";
                assert!(is_documented, "{} {} has no help", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn what_is_accepted() {
        for line in [
            "holdfast create r0 --config f --node a --force",
            "holdfast replicator --config f",
            "holdfast status",
            "holdfast status r0 --json --watch --control /s",
            "holdfast promote r0 --config f --node b --force",
            "holdfast demote r0",
            "holdfast shrink r0 --remove b",
            "holdfast invalidate r0 --control /s --discard-my-data --json",
            "holdfast verify r0",
            "holdfast verify r0 --control /s --repair --trust b --wait --json",
            "holdfast verify r0 --stop",
            "holdfast attach r0",
            "holdfast attach r0 /dev/nbd0 --control /s --follow --connections 4 --dead-time 30s --request-timeout 5s",
            "holdfast attach r0 --config f --node a --read-only --block-size 4096 --json",
            "holdfast resolve r0 --discard b --yes",
            "holdfast branch list r0",
            "holdfast branch delete r0 3-42-0a1b2c3d",
            "holdfast freeze-apply r0",
            "holdfast thaw r0",
            "holdfast attach --status --json",
            "holdfast detach r0",
            "holdfast detach /dev/nbd0 --force",
            "holdfast inspect r0 --config f",
            "holdfast inspect --journal j --disk d --entries --json",
            "holdfast config check f",
            "holdfast config new",
            "holdfast sandbox --nodes 3 --protocol b --size 2G --journal-size 64MiB --on-peer-loss continue --tcp --tls",
            "holdfast demo --json --seconds 3",
            "holdfast orchestrator --config f --node a",
            "holdfast cluster status --json",
            "holdfast cluster plan --dead b --control /s",
            "holdfast cluster move r0 --to b",
            "holdfast cluster standby b --off",
            "holdfast cluster pause --volume r0",
            "holdfast fence b",
            "holdfast fence b --yes --who root --control /s --json",
            "holdfast confirm-off b --yes",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_is_refused() {
        for (line, part) in [
            ("holdfast", "Usage"),
            ("holdfast promot r0", "promote"),
            ("holdfast shrink r0", "--remove"),
            ("holdfast status --control /s --config f", "cannot be used with"),
            ("holdfast status --node a", "--config"),
            ("holdfast verify r0 --trust b", "--repair"),
            ("holdfast verify r0 --stop --wait", "cannot be used with"),
            ("holdfast attach", "--status"),
            ("holdfast attach r0 --status", "cannot be used with"),
            ("holdfast attach r0 --connections 0", "1..=16"),
            ("holdfast inspect", "--journal <PATH>"),
            ("holdfast sandbox --size 1GB", "1GiB"),
            ("holdfast sandbox --nodes 99", "8"),
            ("holdfast cluster pause --volume r0 --node a", "cannot be used with"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert!(error.to_string().contains(part), "{line}: {error}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
