//! `holdfast cluster`: what the orchestrator knows and decides, and what operators want of it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use orchestrator::control::Client;
use orchestrator::control::json::{Move, Plan, Status, Switch};
use replicator::control::json::Done;
use serde::Serialize;

use crate::cli::{ClusterArgs, ClusterCommand};
use crate::output::{self, Style};
use crate::table::Table;

pub(crate) const CONTROL_SOCKET: &str = "/run/holdfast/orchestrator.sock";
/// Happenings shown.
const EVENTS_SHOWN: usize = 8;

/// Asks, or tells.
pub(crate) fn run(arguments: &ClusterArgs) -> Result<()> {
    let socket = arguments.control.as_deref().unwrap_or(Path::new(CONTROL_SOCKET));
    let client = Client::new(socket);
    match &arguments.command {
        ClusterCommand::Status => {
            let status: Status = client.get("/v1/status")?;
            show(arguments.json, &status, || render(&status, Style::stdout()))
        }
        ClusterCommand::Plan { dead } => {
            let query = dead.as_ref().map_or_else(String::new, |node| format!("?dead={node}"));
            let plan: Plan = client.get(&format!("/v1/plan{query}"))?;
            show(arguments.json, &plan, || render_plan(&plan))
        }
        ClusterCommand::Move { volume, to } => {
            let done: Done = client.post(&format!("/v1/volumes/{volume}/move"), &Move { to: to.clone() })?;
            show(arguments.json, &done, || done.message.clone())
        }
        ClusterCommand::Standby { node, off } => {
            let body = Switch { on: !off, volume: None, node: None };
            let done: Done = client.post(&format!("/v1/nodes/{node}/standby"), &body)?;
            show(arguments.json, &done, || done.message.clone())
        }
        ClusterCommand::Pause { volume, node, off } => {
            let body = Switch { on: !off, volume: volume.clone(), node: node.clone() };
            let done: Done = client.post("/v1/pause", &body)?;
            show(arguments.json, &done, || done.message.clone())
        }
    }
}

fn show<T: Serialize>(json: bool, value: &T, text: impl FnOnce() -> String) -> Result<()> {
    if json { output::print_json(value, true) } else { output::print(&text()) }
}

fn render(status: &Status, style: Style) -> String {
    let leader = status.leader.as_deref().unwrap_or("nobody");
    let mut out = format!("{} led by {leader}, seen from {}\n\n", style.bold(&status.cluster), status.node);
    let mut nodes = Table::new(2, &["node", "heard", "suspicions", ""]);
    for node in &status.nodes {
        let state = match (&node.power, node.standby, node.paused) {
            (Some(power), ..) => power.as_str(),
            (None, true, _) => "standby",
            (None, _, true) => "paused",
            _ => "",
        };
        nodes.row([node.name.clone(), node.health.clone(), node.suspicions.to_string(), state.to_owned()]);
    }
    out.push_str(&nodes.render());
    out.push('\n');
    let mut volumes = Table::new(2, &["volume", "primary", "epoch", "in sync", "wanted on"]);
    for volume in &status.volumes {
        let wanted = volume.wanted.clone().unwrap_or_default();
        let row = match &volume.record {
            None => [volume.name.clone(), "no record yet".to_owned(), String::new(), String::new(), wanted],
            Some(record) => {
                let primary = record.primary.clone().unwrap_or_else(|| "nobody".to_owned());
                let primary = if record.opened { primary } else { format!("{primary} (not yet)") };
                let epoch = format!("{}.{}", record.epoch, record.version);
                [volume.name.clone(), primary, epoch, record.in_sync.join(" "), wanted]
            }
        };
        volumes.row(row);
    }
    out.push_str(&volumes.render());
    if status.paused {
        out.push_str("\nEverything is paused: nothing fails over. holdfast cluster pause --off\n");
    }
    for note in &status.notes {
        let _ = writeln!(out, "\n{} {}", style.bold(&note.volume), note.text);
    }
    if !status.power.is_empty() {
        out.push_str("\nPower:\n");
        for past in status.power.iter().rev().take(EVENTS_SHOWN).rev() {
            let _ = writeln!(out, "  {} {}", past.node, past.text);
        }
    }
    if !status.events.is_empty() {
        out.push_str("\nLast here:\n");
        for event in status.events.iter().rev().take(EVENTS_SHOWN).rev() {
            let _ = writeln!(out, "  {}", event.text);
        }
    }
    out
}

fn render_plan(plan: &Plan) -> String {
    if plan.steps.is_empty() {
        return "nothing would change".to_owned();
    }
    let lines: Vec<String> =
        plan.steps.iter().map(|step| format!("after {:>6} ms  {}", step.after_ms, step.text)).collect();
    lines.join("\n")
}
