//! Arguments of what reads files and asks nobody.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

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
