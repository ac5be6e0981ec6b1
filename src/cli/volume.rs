//! Arguments of what is asked of a replicator about a volume, or told it.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use replicator::config::parse_size;
use replicator::control::json::FreezeApply;
use replicator::control::parse_position;
use replicator::control::time::parse_time;

use super::{TargetArgs, VolumeArgs};

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
    #[command(flatten)]
    pub(crate) on: VolumeArgs,
    /// Without the word of members that cannot be reached. Only when they are surely down: two primaries split the
    /// volume's history
    #[arg(long)]
    pub(crate) force: bool,
}

/// Arguments of `freeze-apply`.
#[derive(Debug, Args)]
pub(crate) struct FreezeApplyArgs {
    #[command(flatten)]
    pub(crate) on: VolumeArgs,
    /// Where, on a replica with an `apply-delay`: a position as in 3:1042, a time as in "2026-11-29 14:05:00" (UTC), or so
    /// long ago as in 10min [default: where it is]
    #[arg(long, value_name = "POSITION|TIME", value_parser = parse_place)]
    pub(crate) at: Option<FreezeApply>,
}

fn parse_place(text: &str) -> Result<FreezeApply, String> {
    if parse_position(text).is_some() {
        return Ok(FreezeApply { position: Some(text.to_owned()), time_ms: None });
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
    let now_ms = u64::try_from(now.as_millis()).map_err(|error| error.to_string())?;
    let time_ms = parse_time(text, now_ms).ok_or_else(|| {
        "write a position as in 3:1042, a time as in \"2026-11-29 14:05:00\" (UTC), or so long ago as in 10min".to_owned()
    })?;
    Ok(FreezeApply { position: None, time_ms: Some(time_ms) })
}

/// Arguments of `shrink`.
#[derive(Debug, Args)]
pub(crate) struct ShrinkArgs {
    #[command(flatten)]
    pub(crate) on: VolumeArgs,
    /// The node whose replica is gone
    #[arg(long, value_name = "NODE")]
    pub(crate) remove: String,
}

/// Arguments of `invalidate`.
#[derive(Debug, Args)]
pub(crate) struct InvalidateArgs {
    #[command(flatten)]
    pub(crate) on: VolumeArgs,
    /// Yes: what only this copy holds is lost
    #[arg(long)]
    pub(crate) discard_my_data: bool,
}

/// Arguments of `reload`.
#[derive(Debug, Args)]
pub(crate) struct ReloadArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `grow`.
#[derive(Debug, Args)]
pub(crate) struct GrowArgs {
    #[command(flatten)]
    pub(crate) on: VolumeArgs,
    /// What the volume is to have in all, such as 2TiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) size: u64,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) on: VolumeArgs,
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
}

/// Arguments of `scrub`.
#[derive(Debug, Args)]
pub(crate) struct ScrubArgs {
    #[command(flatten)]
    pub(crate) on: VolumeArgs,
    /// Wait until it has ended, and show what it found
    #[arg(long)]
    pub(crate) wait: bool,
    /// End the one under way
    #[arg(long, conflicts_with = "wait")]
    pub(crate) stop: bool,
}

/// Arguments of `resolve`.
#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    #[command(flatten)]
    pub(crate) on: VolumeArgs,
    /// The node whose entries past the common point are given up
    #[arg(long, value_name = "NODE")]
    pub(crate) discard: String,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Which branch.
#[derive(Debug, Args)]
pub(crate) struct BranchArgs {
    #[command(flatten)]
    pub(crate) on: VolumeArgs,
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

/// Which bookmark.
#[derive(Debug, Args)]
pub(crate) struct BookmarkArgs {
    #[command(flatten)]
    pub(crate) on: VolumeArgs,
    /// Its name: at most 32 letters, digits, '-', '_' and '.'
    pub(crate) name: String,
}

/// What to do with bookmarks.
#[derive(Debug, Subcommand)]
pub(crate) enum BookmarkCommand {
    /// Make one: from now on that node notes which blocks of its copy change. While it is frozen, at just that position
    Add(BookmarkArgs),
    /// List them: where they are, and how much changed since
    List(VolumeArgs),
    /// End one
    Delete(BookmarkArgs),
}
