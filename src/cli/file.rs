//! Arguments of what reads files and asks nobody.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use replicator::config::parse_size;

/// Which replica at rest.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("replica").required(true).args(["volume", "journal"])))]
pub(crate) struct AtRestArgs {
    /// The volume, found with --config and --node
    #[arg(requires = "config")]
    pub(crate) volume: Option<String>,
    /// The journal itself
    #[arg(long, value_name = "PATH", conflicts_with = "volume")]
    pub(crate) journal: Option<PathBuf>,
    /// Its backing disk; it must be the one that the journal belongs to
    #[arg(long, value_name = "PATH", requires = "journal")]
    pub(crate) disk: Option<PathBuf>,
    /// The cluster's configuration file
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// The node [default: the one with this host's name]
    #[arg(long, value_name = "NAME", env = "HOLDFAST_NODE")]
    pub(crate) node: Option<String>,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) replica: AtRestArgs,
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

/// Arguments of `extract`.
#[derive(Debug, Args)]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    pub(crate) replica: AtRestArgs,
    /// Begin here
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0B")]
    pub(crate) offset: u64,
    /// So much of it [default: to the end]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) length: Option<u64>,
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
