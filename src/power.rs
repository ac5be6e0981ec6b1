//! `holdfast fence` and `holdfast confirm-off`: a node is switched off, or somebody has seen that it is.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, bail};
use orchestrator::control::Client;
use orchestrator::control::json::{FencePlan, Word};
use replicator::control::json::Done;
use serde::Serialize;

use crate::cli::{ConfirmOffArgs, FenceArgs, WordArgs};
use crate::orchestrator_cluster::CONTROL_SOCKET;
use crate::output;

/// Switches a node off, or shows what that would do.
pub(crate) fn fence(arguments: &FenceArgs) -> Result<()> {
    let (client, node) = (client(&arguments.word), &arguments.node);
    if arguments.word.yes {
        let word = Word { who: who(&arguments.word)? };
        let done: Done = client.post(&format!("/v1/nodes/{node}/fence"), &word)?;
        return show(arguments.word.json, &done, || done.message.clone());
    }
    let plan: FencePlan = client.get(&format!("/v1/nodes/{node}/fence"))?;
    show(arguments.word.json, &plan, || render(&plan))
}

/// Says that a node is off, or what saying so promises.
pub(crate) fn confirm_off(arguments: &ConfirmOffArgs) -> Result<()> {
    let node = &arguments.node;
    if !arguments.word.yes {
        return output::print(&promise(node));
    }
    let word = Word { who: who(&arguments.word)? };
    let done: Done = client(&arguments.word).post(&format!("/v1/nodes/{node}/confirm-off"), &word)?;
    show(arguments.word.json, &done, || done.message.clone())
}

fn client(word: &WordArgs) -> Client {
    Client::new(word.control.as_deref().unwrap_or(Path::new(CONTROL_SOCKET)))
}

/// Whose word it is: who is logged in, not whom `sudo` stands for.
fn who(word: &WordArgs) -> Result<String> {
    let named = || ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    match word.who.clone().or_else(named).filter(|who| !who.is_empty()) {
        Some(who) => Ok(who),
        None => bail!("nobody answers for this: say whose word it is with --who NAME"),
    }
}

fn show<T: Serialize>(json: bool, value: &T, text: impl FnOnce() -> String) -> Result<()> {
    if json { output::print_json(value, true) } else { output::print(&text()) }
}

fn render(plan: &FencePlan) -> String {
    let mut out = format!("{} would be switched off.\n\n", plan.node);
    match &plan.by {
        Some(by) => {
            let _ = writeln!(out, "  by {by}");
        }
        None => out.push_str("  by nobody: no other node that is heard has agents for it\n"),
    }
    for way in &plan.ways {
        let _ = writeln!(out, "  {way}");
    }
    let volumes = if plan.primary_of.is_empty() { "nothing".to_owned() } else { plan.primary_of.join(", ") };
    let _ = writeln!(out, "\nIt is primary of {volumes}. Without it:\n");
    if plan.steps.is_empty() {
        out.push_str("  nothing else would change\n");
    }
    for step in &plan.steps {
        let _ = writeln!(out, "  after {:>6} ms  {}", step.after_ms, step.text);
    }
    let _ = write!(out, "\nNothing was done. To do it: holdfast fence {} --yes", plan.node);
    out
}

fn promise(node: &str) -> String {
    format!(
        "With this you promise, by name, and it is written down:\n\n  \
         {node} is off, or cut off from every client, every disk and every other node, now;\n  \
         it stays so until it has booted anew;\n  \
         nothing that it ran, in memory or on the way, comes to be any more.\n\n\
         Others then take over what {node} had at once, without waiting for a lease, a watchdog or an agent. If it is not\n\
         so, two nodes may serve the same volume, and what one of them acknowledges is lost. A node that is silent is not\n\
         off: look at its power, its console or its hypervisor.\n\n\
         Nothing was done. To say so: holdfast confirm-off {node} --yes"
    )
}
