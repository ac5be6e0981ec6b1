//! Arguments of what runs on this machine alone, to see how it goes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use replicator::config::{parse_duration_ms, parse_size};

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

/// Yes or no, where there is a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    /// Yes
    On,
    /// No
    Off,
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
    /// Have the nodes, and NBD clients over TCP, talk in TLS, though all are on this machine
    #[arg(long)]
    pub(crate) tls: bool,
    /// Whether the replicas keep checksums of their blocks at rest
    #[arg(long, value_enum, value_name = "CHOICE")]
    pub(crate) checksums: Option<OnOff>,
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
