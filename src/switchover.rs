//! `holdfast switchover`: a volume or a stack moves to another node, and this waits until it runs there.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use orchestrator::control::Client;
use orchestrator::control::json::{Move, Phase, Status};
use replicator::control::json::Done;
use serde::Serialize;

use crate::cli::SwitchoverArgs;
use crate::orchestrator_cluster::CONTROL_SOCKET;
use crate::output::{print, print_json, say};

const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Debug, Serialize)]
struct Moved {
    what: String,
    to: String,
    took_ms: u64,
}

/// Moves, and waits.
pub(crate) fn run(arguments: &SwitchoverArgs) -> Result<()> {
    let socket = arguments.control.as_deref().unwrap_or(Path::new(CONTROL_SOCKET));
    let client = Client::new(socket);
    let (what, to) = (&arguments.what, &arguments.to);
    let began = Instant::now();
    let body = Move { to: Some(to.clone()) };
    let _: Done = client.post(&format!("/v1/volumes/{what}/move"), &body)?;
    let mut told = String::new();
    loop {
        let status: Status = client.get("/v1/status")?;
        let Some(waits_for) = unfinished(&status, what, to) else { break };
        if began.elapsed() >= Duration::from_secs(arguments.timeout) {
            bail!("{what} is not on {to} after {} s, and goes on trying: {waits_for}", arguments.timeout);
        }
        if !arguments.json && waits_for != told {
            say(&waits_for);
            told = waits_for;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    if arguments.json {
        return print_json(&Moved { what: what.clone(), to: to.clone(), took_ms }, false);
    }
    print(&format!("{what} runs on {to}, after {took_ms} ms"))
}

/// What is still to come, in words; nothing if it runs there.
fn unfinished(status: &Status, what: &str, to: &str) -> Option<String> {
    let note = |name: &str| {
        let note = status.notes.iter().find(|note| note.volume == name);
        note.map_or_else(|| format!("{name} is on its way"), |note| format!("{name} {}", note.text))
    };
    if let Some(volume) = status.volumes.iter().find(|volume| volume.name == what) {
        let record = volume.record.as_ref();
        let is_there = record.is_some_and(|record| record.opened && record.primary.as_deref() == Some(to));
        return (!is_there).then(|| note(what));
    }
    let stack = status.stacks.iter().find(|stack| stack.name == what)?;
    if stack.node.as_deref() != Some(to) {
        let leaves = stack.at.iter().find(|at| Some(&at.node) == stack.node.as_ref());
        return Some(leaves.map_or_else(
            || format!("{what} is on its way"),
            |at| format!("{what} on {}: {}", at.node, at.view.note),
        ));
    }
    // Only that node and the leader know how it is there.
    let there = stack.at.iter().find(|at| at.node == to)?;
    let why = if there.view.note.is_empty() { "is being started" } else { &there.view.note };
    (there.view.phase != Phase::Running).then(|| format!("{what} on {to}: {why}"))
}
