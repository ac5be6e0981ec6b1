//! `holdfast resolve` and `branch`: coming back from a fork, and what was kept of the side that yielded.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal};

use anyhow::{Result, bail};
use replicator::control::Client;
use replicator::control::json::{BranchReport, VolumeReport};

use crate::cli::{BranchArgs, BranchCommand, ResolveArgs};
use crate::output::{self, human_bytes};
use crate::role::report;
use crate::table::Table;
use crate::target;

/// Gives up one side of a fork.
pub(crate) fn resolve(arguments: &ResolveArgs) -> Result<()> {
    let client = target::client(&arguments.on.target)?;
    if !arguments.yes {
        confirm(&client, arguments)?;
    }
    report(client.resolve(&arguments.on.volume, &arguments.discard), arguments.on.json)
}

/// Says what is given up, and asks.
fn confirm(client: &Client, arguments: &ResolveArgs) -> Result<()> {
    let volume = client.volume(&arguments.on.volume)?;
    output::say(&what_is_given_up(&volume, &arguments.discard));
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to be asked: if that is what you want, say --yes");
    }
    output::say(&format!("Type the name of the node that yields, {}, to go on:", arguments.discard));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != arguments.discard {
        bail!("nothing was done");
    }
    Ok(())
}

fn what_is_given_up(volume: &VolumeReport, loser: &str) -> String {
    let peers = volume.replica.iter().flat_map(|replica| &replica.peers);
    let forks: Vec<_> = peers.filter_map(|peer| peer.fork.as_ref().map(|fork| (&peer.node, fork))).collect();
    let named = forks.iter().find(|(node, _)| *node == loser).map(|(_, fork)| (fork, &fork.there));
    // The loser's own node: any fork tells of its side.
    let own = || forks.first().map(|(_, fork)| (fork, &fork.here));
    match named.or_else(own) {
        Some((fork, side)) => format!(
            "{} entries of {} that {loser} has past entry {}, up to {}, leave the volume ({} changed). They are kept as a \
             branch first; the other side's entries stay.",
            side.entries,
            volume.name,
            fork.common,
            side.head,
            human_bytes(side.changed_bytes)
        ),
        None => format!("no fork of {} with {loser} is known at this node", volume.name),
    }
}

/// Lists, shows, removes branches.
pub(crate) fn run(command: &BranchCommand) -> Result<()> {
    match command {
        BranchCommand::List(arguments) => {
            let client = target::client(&arguments.target)?;
            let list = client.branches(&arguments.volume)?;
            if arguments.json {
                output::print_json(&list, true)
            } else {
                output::print(&table(&list.branches))
            }
        }
        BranchCommand::Show(arguments) => {
            let (_, branch) = find(arguments)?;
            if arguments.on.json { output::print_json(&branch, true) } else { output::print(&shown(&branch)) }
        }
        BranchCommand::Export(arguments) => {
            let (client, branch) = find(arguments)?;
            let volume = client.volume(&arguments.on.volume)?;
            let uris: Vec<String> =
                volume.nbd.iter().map(|uri| uri_of(uri, &volume.name, &branch.export)).collect();
            if arguments.on.json {
                output::print_json(&serde_json::json!({ "export": branch.export, "nbd": uris }), true)
            } else {
                output::print(&uris.join("\n"))
            }
        }
        BranchCommand::Delete(arguments) => {
            let client = target::client(&arguments.on.target)?;
            report(client.delete_branch(&arguments.on.volume, &arguments.name), arguments.on.json)
        }
    }
}

/// The URI of another export at the same place.
fn uri_of(uri: &str, volume: &str, export: &str) -> String {
    uri.replacen(&format!("/{volume}"), &format!("/{export}"), 1)
}

fn find(arguments: &BranchArgs) -> Result<(Client, BranchReport)> {
    let client = target::client(&arguments.on.target)?;
    let list = client.branches(&arguments.on.volume)?;
    match list.branches.into_iter().find(|branch| branch.name == arguments.name) {
        Some(branch) => Ok((client, branch)),
        None => bail!("there is no branch {}; `holdfast branch list` shows what there is", arguments.name),
    }
}

fn table(branches: &[BranchReport]) -> String {
    if branches.is_empty() {
        return "no branches".to_owned();
    }
    let mut table = Table::new(0, &["branch", "parted after", "blocks", "kept", "on disk"]);
    for branch in branches {
        table.row([
            branch.name.clone(),
            branch.common.clone(),
            branch.blocks.to_string(),
            human_bytes(branch.bytes),
            human_bytes(branch.stored_bytes),
        ]);
    }
    table.render().trim_end().to_owned()
}

fn shown(branch: &BranchReport) -> String {
    let mut out = format!("branch {}\n", branch.name);
    let what = if branch.is_everything { " (all: which ones differ could not be told)" } else { "" };
    let _ = writeln!(out, "  content of the log up to {}, which parted after {}", branch.head, branch.common);
    let _ = writeln!(out, "  {} blocks, {}{what}", branch.blocks, human_bytes(branch.bytes));
    let _ = writeln!(
        out,
        "  kept at {} ms since 1970, {} on disk",
        branch.kept_ms,
        human_bytes(branch.stored_bytes)
    );
    let _ = write!(out, "  export {}, file {}", branch.export, branch.path);
    out
}
