//! `holdfast cluster`: what the orchestrator knows and decides, and what operators want of it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use orchestrator::control::Client;
use orchestrator::control::json::{Invite, Invited, Move, Note, Plan, RotateKeys, Severity, Status, Switch};
use replicator::config::format_duration_ms;
use replicator::control::json::Done;
use serde::Serialize;

use crate::cli::{ClusterArgs, ClusterCommand};
use crate::output::{self, Style};
use crate::table::Table;
use crate::{cluster_stacks, new_cluster};

pub(crate) const CONTROL_SOCKET: &str = "/run/holdfast/orchestrator.sock";
/// Happenings shown.
const EVENTS_SHOWN: usize = 8;

/// Asks, or tells.
pub(crate) fn run(arguments: &ClusterArgs) -> Result<()> {
    let socket = arguments.control.as_deref().unwrap_or(Path::new(CONTROL_SOCKET));
    let client = Client::new(socket);
    match &arguments.command {
        ClusterCommand::Init(init) => new_cluster::init(init, arguments.json),
        ClusterCommand::Join(join) => new_cluster::come_in(join, arguments.json),
        ClusterCommand::Token { node, valid } => {
            let invited: Invited =
                client.post(&format!("/v1/nodes/{node}/token"), &Invite { valid_ms: *valid })?;
            show(arguments.json, &invited, || render_invited(&invited))
        }
        ClusterCommand::Reload => {
            let done: Done = client.post("/v1/reload", &())?;
            show(arguments.json, &done, || done.message.clone())
        }
        ClusterCommand::RotateKeys { keep_old } => {
            let done: Done = client.post("/v1/keys/rotate", &RotateKeys { keep_old: *keep_old })?;
            show(arguments.json, &done, || format!("{}{}", done.message, after_rotation(*keep_old)))
        }
        ClusterCommand::Status => {
            let status: Status = client.get("/v1/status")?;
            show(arguments.json, &status, || render(&status, Style::stdout()))
        }
        ClusterCommand::Plan { dead, cut, disk, volume } => {
            let query = match (dead, cut.as_slice(), disk, volume) {
                (Some(node), ..) => format!("?dead={node}"),
                (_, [one, other], ..) => format!("?cut={one},{other}"),
                (_, _, Some(node), Some(volume)) => format!("?disk={node}&volume={volume}"),
                (_, _, Some(node), None) => format!("?disk={node}"),
                _ => String::new(),
            };
            let plan: Plan = client.get(&format!("/v1/plan{query}"))?;
            show(arguments.json, &plan, || render_plan(&plan))
        }
        ClusterCommand::Move { volume, to } => {
            let done: Done = client.post(&format!("/v1/volumes/{volume}/move"), &Move { to: to.clone() })?;
            show(arguments.json, &done, || done.message.clone())
        }
        ClusterCommand::Forgive { stack } => {
            let done: Done = client.post(&format!("/v1/stacks/{stack}/forgive"), &())?;
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
            (None, false, false) if !node.votes => "does not vote yet",
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
    if !status.stacks.is_empty() {
        out.push('\n');
        out.push_str(&cluster_stacks::table(&status.stacks));
    }
    if status.paused {
        out.push_str("\nEverything is paused: nothing fails over. holdfast cluster pause --off\n");
    }
    if let Some(excluded) = &status.excluded {
        let _ = writeln!(out, "\n{}", style.red(excluded));
    }
    if status.leader.is_none() {
        let text =
            style.red("Nobody leads: nothing fails over until a majority of the nodes hear each other.");
        let _ = writeln!(out, "\n{text}");
    }
    out.push_str(&wrong(status, style));
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

/// What is wrong, the worst first, and what to type about it.
fn wrong(status: &Status, style: Style) -> String {
    let mut notes: Vec<&Note> = status.notes.iter().filter(|note| note.severity > Severity::Note).collect();
    notes.sort_by_key(|note| std::cmp::Reverse(note.severity));
    let mut out = String::new();
    for note in &notes {
        let name = if note.severity == Severity::Error {
            style.red(&note.volume)
        } else {
            style.yellow(&note.volume)
        };
        let _ =
            write!(out, "\n{name} {}\n  {} holdfast explain {}\n", note.text, output::arrow(), note.volume);
    }
    out.push_str(&cluster_stacks::wrong(&status.stacks, style));
    for node in status.nodes.iter().filter(|node| node.health != "alive") {
        let name = style.yellow(&node.name);
        let _ = write!(
            out,
            "\n{name} is {}\n  {} holdfast explain {}\n",
            node.health,
            output::arrow(),
            node.name
        );
    }
    if out.is_empty() && status.leader.is_some() {
        out.push_str(&format!("\n{}\n", style.green("Nothing is wrong.")));
    }
    out
}

fn render_invited(invited: &Invited) -> String {
    let valid = format_duration_ms(invited.valid_ms);
    format!(
        "on the machine that is to be {}, once and within {valid}:\n\nholdfast cluster join {}\n\n\
         Whoever has the token gets the cluster's secret: tell it to that machine alone.",
        invited.node, invited.token
    )
}

/// What is left for people to do.
fn after_rotation(is_old_kept: bool) -> &'static str {
    if is_old_kept {
        "\n\nnext: make the certificates of NBD clients and operators anew, if there are any, and bring them there; then\n\
         holdfast cluster rotate-keys"
    } else {
        "\n\nCertificates of NBD clients and operators that were made before are of no use any more: make new ones with\n\
         holdfast client-certificate and holdfast operator-certificate."
    }
}

fn render_plan(plan: &Plan) -> String {
    if plan.steps.is_empty() {
        return "nothing would change".to_owned();
    }
    let lines: Vec<String> =
        plan.steps.iter().map(|step| format!("after {:>6} ms  {}", step.after_ms, step.text)).collect();
    lines.join("\n")
}
