//! `holdfast create` and `move-journal`: makes this node's replica of a volume, and has its journal lie elsewhere.

use anyhow::{Context, Result};
use replicator::Content;

use crate::cli::{CreateArgs, MoveJournalArgs};
use crate::output::{human_bytes, print};
use crate::target;

/// Makes the replica and says what was made.
pub(crate) fn run(arguments: &CreateArgs) -> Result<()> {
    let (cluster, node) = target::node(&arguments.node)?;
    let options = cluster.volume_options(&node.name, &arguments.volume)?;
    let content = match arguments {
        CreateArgs { seeded: true, .. } => Content::Seed,
        CreateArgs { zeroed: true, .. } => Content::Zeros,
        CreateArgs { adopt: true, .. } => Content::Adopted,
        _ => Content::Any,
    };
    let created = replicator::create(&options, content, arguments.force)
        .with_context(|| format!("the replica of {} on {} is not created", options.name, node.name))?;
    let kept = match content {
        Content::Seed => "; what the disk has is compared with the primary's before it counts",
        Content::Adopted => {
            "; what the disk has is the volume's data: promote this replica, the others follow it"
        }
        Content::Any | Content::Zeros => "",
    };
    let moment = created.adopted.map(|position| format!(" (it is of {position})")).unwrap_or_default();
    print(&format!(
        "created the replica of {} on node {}: {} on {}, journal of {} on {}{kept}{moment}",
        options.name,
        node.name,
        human_bytes(created.size_bytes),
        created.disk.display(),
        human_bytes(created.journal_bytes),
        created.journal.display(),
    ))
}

/// Moves the journal and says what to do next.
pub(crate) fn move_journal(arguments: &MoveJournalArgs) -> Result<()> {
    let (cluster, node) = target::node(&arguments.node)?;
    let options = cluster.volume_options(&node.name, &arguments.volume)?;
    let moved = replicator::move_journal(&options, &arguments.to, arguments.force)
        .with_context(|| format!("the journal of {} on {} is not moved", options.name, node.name))?;
    print(&format!(
        "the journal of {} on node {} ({}) is at {} now: write journal = \"{}\" for this replica into the configuration, \
         then start the replicator",
        options.name,
        node.name,
        human_bytes(moved.journal_bytes),
        moved.journal.display(),
        moved.journal.display(),
    ))
}
