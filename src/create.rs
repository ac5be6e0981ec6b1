//! `holdfast create`: makes this node's replica of a volume.

use anyhow::{Context, Result};

use crate::cli::CreateArgs;
use crate::output::{human_bytes, print};
use crate::target;

/// Makes the replica and says what was made.
pub(crate) fn run(arguments: &CreateArgs) -> Result<()> {
    let (cluster, node) = target::node(&arguments.node)?;
    let options = cluster.volume_options(&node.name, &arguments.volume)?;
    let created = replicator::create(&options, arguments.force)
        .with_context(|| format!("the replica of {} on {} is not created", options.name, node.name))?;
    print(&format!(
        "created the replica of {} on node {}: {} on {}, journal of {} on {}",
        options.name,
        node.name,
        human_bytes(created.size_bytes),
        created.disk.display(),
        human_bytes(created.journal_bytes),
        created.journal.display(),
    ))
}
