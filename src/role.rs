//! `holdfast promote`, `demote`, `shrink`, `grow`, `invalidate`, `freeze-apply` and `thaw`: an operator's word to a running node.

use anyhow::{Result, bail};
use replicator::control::ClientError;
use replicator::control::json::Done;

use crate::cli::{FreezeApplyArgs, GrowArgs, InvalidateArgs, PromoteArgs, ShrinkArgs, VolumeArgs};
use crate::{output, target};

/// Makes a node the volume's primary.
pub(crate) fn promote(arguments: &PromoteArgs) -> Result<()> {
    let client = target::client(&arguments.on.target)?;
    report(client.promote(&arguments.on.volume, arguments.force), arguments.on.json)
}

/// Makes a primary a secondary.
pub(crate) fn demote(arguments: &VolumeArgs) -> Result<()> {
    let client = target::client(&arguments.target)?;
    report(client.demote(&arguments.volume), arguments.json)
}

/// Takes a replica out of the in-sync set.
pub(crate) fn shrink(arguments: &ShrinkArgs) -> Result<()> {
    let client = target::client(&arguments.on.target)?;
    report(client.shrink(&arguments.on.volume, &arguments.remove), arguments.on.json)
}

/// Has a volume grow.
pub(crate) fn grow(arguments: &GrowArgs) -> Result<()> {
    let client = target::client(&arguments.on.target)?;
    report(client.grow(&arguments.on.volume, arguments.size), arguments.on.json)
}

/// Gives up the data of a node's copy.
pub(crate) fn invalidate(arguments: &InvalidateArgs) -> Result<()> {
    if !arguments.discard_my_data {
        bail!(
            "this gives up the data of {} on that node: it is overwritten by what the Primary has. If that is what you \
             want, say --discard-my-data",
            arguments.on.volume
        );
    }
    let client = target::client(&arguments.on.target)?;
    report(client.invalidate(&arguments.on.volume), arguments.on.json)
}

/// Stops a secondary's apply at one position.
pub(crate) fn freeze_apply(arguments: &FreezeApplyArgs) -> Result<()> {
    let client = target::client(&arguments.on.target)?;
    let at = arguments.at.clone().unwrap_or_default();
    report(client.freeze_apply(&arguments.on.volume, &at), arguments.on.json)
}

/// Lets it go on.
pub(crate) fn thaw(arguments: &VolumeArgs) -> Result<()> {
    let client = target::client(&arguments.target)?;
    report(client.thaw(&arguments.volume), arguments.json)
}

pub(crate) fn report(answer: Result<Done, ClientError>, json: bool) -> Result<()> {
    if json && let Err(ClientError::Refused(reason)) = &answer {
        output::print_json(&serde_json::json!({ "error": reason }), true)?;
    }
    let done = answer?;
    if json { output::print_json(&done, true) } else { output::print(&done.message) }
}
