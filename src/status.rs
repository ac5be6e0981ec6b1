//! `holdfast status`: a node on one screen, what is wrong, and what to type next.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use replicator::config::{format_duration_ms, format_size};
use replicator::control::json::{
    Advice, AdviceSeverity, DelayReport, NodeStatus, PeerReport, ReplicaReport, UsageReport, VolumeReport,
};
use replicator::control::time::format_time;
use replicator::control::{Client, ClientError};

use crate::cli::StatusArgs;
use crate::output::{self, Style, arrow, counted, human_bytes};
use crate::signals::StopFlag;
use crate::table::Table;
use crate::target;

const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Shows the status once, or again and again.
pub(crate) fn run(arguments: &StatusArgs) -> Result<()> {
    let client = target::client(&arguments.target)?;
    if !arguments.watch {
        let status = ask(&client, arguments.volume.as_deref())?;
        return if arguments.json {
            print_json(&status, arguments.volume.is_some(), true)
        } else {
            output::print(&render(&status, Style::stdout()))
        };
    }
    let stop = StopFlag::install()?;
    let clear = if std::io::stdout().is_terminal() { CLEAR_SCREEN } else { "" };
    loop {
        match ask(&client, arguments.volume.as_deref()) {
            Ok(status) if arguments.json => print_json(&status, arguments.volume.is_some(), false)?,
            Ok(status) => output::print(&format!("{clear}{}", render(&status, Style::stdout())))?,
            // A node that restarts is just what one may be watching.
            Err(ClientError::Refused(reason)) => return Err(ClientError::Refused(reason).into()),
            Err(error) if arguments.json => output::say(&format!("holdfast: {error}")),
            Err(error) => output::print(&format!("{clear}{error}"))?,
        }
        if stop.sleep(WATCH_INTERVAL) {
            return Ok(());
        }
    }
}

fn ask(client: &Client, volume: Option<&str>) -> Result<NodeStatus, ClientError> {
    let mut status = client.status()?;
    if let Some(volume) = volume {
        // Asking for the one volume gives the server's own words if there is none of that name.
        status.volumes = vec![client.volume(volume)?];
    }
    Ok(status)
}

fn print_json(status: &NodeStatus, only_volume: bool, indented: bool) -> Result<()> {
    match status.volumes.first() {
        Some(volume) if only_volume => output::print_json(volume, indented),
        _ => output::print_json(status, indented),
    }
}

/// A node for people.
pub(crate) fn render(status: &NodeStatus, style: Style) -> String {
    let mut out = format!(
        "node {} of cluster {}, holdfast {}, process {}\n",
        style.bold(&status.node),
        status.cluster,
        status.version,
        status.pid
    );
    for volume in &status.volumes {
        out.push('\n');
        out.push_str(&render_volume(volume, style));
    }
    if status.volumes.is_empty() {
        out.push_str("\nno volumes\n");
    }
    out
}

fn render_volume(volume: &VolumeReport, style: Style) -> String {
    let mut out = String::new();
    let Some(replica) = &volume.replica else {
        let _ = writeln!(out, "{}  no status", style.bold(&volume.name));
        out.push_str(&render_problems(&volume.problems, style));
        return out;
    };
    let _ = writeln!(
        out,
        "{}  {}, {}  {}  {}, blocks of {}  epoch {}, in sync: {}",
        style.bold(&volume.name),
        replica.role,
        service(replica),
        replica.disk_state,
        format_size(replica.size_bytes),
        replica.block_bytes,
        replica.record.epoch,
        if replica.record.in_sync.is_empty() {
            "nobody yet".to_owned()
        } else {
            replica.record.in_sync.join(", ")
        },
    );
    if !replica.peers.is_empty() {
        out.push_str(&render_peers(replica));
    }
    let _ = writeln!(
        out,
        "  log     head {}, durable {}, stable {}, applied {}",
        replica.head, replica.durable, replica.stable, replica.applied
    );
    if let Some(delay) = &replica.delay {
        let _ = writeln!(out, "  delay   {}", render_delay(delay));
    }
    let _ = writeln!(
        out,
        "  space   journal {} of {}, memory {} of {}",
        percent(replica.ring),
        human_bytes(replica.ring.bytes),
        percent(replica.memory),
        human_bytes(replica.memory.bytes)
    );
    let counters = &replica.counters;
    let _ = writeln!(
        out,
        "  I/O     {} ({}), {} ({}), {}, {}",
        counted(counters.writes, "write", "writes"),
        human_bytes(counters.written_bytes),
        counted(counters.reads, "read", "reads"),
        human_bytes(counters.read_bytes),
        counted(counters.flushes, "flush", "flushes"),
        counted(u64::from(replica.nbd_connections), "connection", "connections")
    );
    if let Some(sums) = &replica.checksums {
        let _ = write!(out, "  sums    {}", crate::scrub::render_sums(sums));
    }
    if let Some(scrub) = &replica.scrub {
        let _ = write!(out, "  {}", crate::scrub::render(scrub));
    }
    if let Some(verify) = &replica.verify {
        let _ = write!(out, "  {}", crate::verify::render(verify).replace("\n  ", "\n    "));
    }
    if let Some(ublk) = &replica.ublk {
        let state = match (ublk.broken, ublk.served) {
            (true, _) => ", its requests fail",
            (_, false) => ", its requests wait",
            (_, true) => "",
        };
        let _ = writeln!(out, "  ublk    /dev/ublkb{}{state}", ublk.index);
    }
    for uri in &volume.nbd {
        let _ = writeln!(out, "  nbd     {uri}");
    }
    out.push_str(&render_problems(&volume.problems, style));
    out
}

fn render_delay(delay: &DelayReport) -> String {
    let whole_seconds = |ms: u64| format_duration_ms(ms / 1000 * 1000);
    let of = delay.applied_ms.map_or_else(String::new, |ms| format!(", written {}", format_time(ms)));
    let waits = match delay.lag_ms {
        _ if delay.waiting_entries == 0 => "nothing waits".to_owned(),
        lag => format!(
            "{} ({}) wait, the oldest for {}",
            counted(delay.waiting_entries, "entry", "entries"),
            human_bytes(delay.waiting_bytes),
            lag.map_or_else(|| "an unknown time".to_owned(), whole_seconds)
        ),
    };
    let way = match (delay.is_delaying, delay.gives_way) {
        (false, _) => ", not counting now",
        (true, true) => ", the journal decides",
        (true, false) => "",
    };
    format!("{}{way}; the disk shows {}{of}; {waits}", format_duration_ms(delay.delay_ms), delay.applied)
}

fn service(replica: &ReplicaReport) -> &'static str {
    match (replica.frozen.is_some(), replica.serving) {
        (true, _) => "frozen",
        (false, true) => "serving",
        (false, false) => "not serving",
    }
}

fn render_peers(replica: &ReplicaReport) -> String {
    let heads = ["peer", "address", "fed by", "connection", "role", "disk", "in sync", "behind"];
    let mut table = Table::new(2, &heads);
    for peer in &replica.peers {
        table.row([
            peer.node.clone(),
            peer.address.clone().unwrap_or_default(),
            peer.protocol.clone(),
            peer.connection.clone(),
            peer.role.clone().unwrap_or_else(|| "?".to_owned()),
            peer.disk_state.clone().unwrap_or_else(|| "?".to_owned()),
            if peer.member { "yes" } else { "no" }.to_owned(),
            behind(replica, peer),
        ]);
    }
    table.render()
}

fn behind(replica: &ReplicaReport, peer: &PeerReport) -> String {
    let is_connected = peer.disk_state.is_some();
    if replica.role != "Primary" {
        return "-".to_owned();
    }
    match replica.journaled.saturating_sub(peer.ack.journaled) {
        _ if !is_connected => "?".to_owned(),
        0 => "0".to_owned(),
        entries => counted(entries, "entry", "entries"),
    }
}

fn render_problems(problems: &[Advice], style: Style) -> String {
    if problems.is_empty() {
        return format!("  {}\n", style.green("all is well"));
    }
    let mut out = String::new();
    for problem in problems {
        let mark = match problem.severity {
            AdviceSeverity::Error => style.red("error"),
            AdviceSeverity::Warning => style.yellow("warning"),
            AdviceSeverity::Note => "note".to_owned(),
        };
        let _ = writeln!(out, "  {mark}: {}", problem.text);
        if let Some(cure) = &problem.cure {
            let _ = writeln!(out, "    {} {cure}", arrow());
        }
    }
    out
}

fn percent(usage: UsageReport) -> String {
    let percent = u128::from(usage.used_bytes) * 100 / u128::from(usage.bytes.max(1));
    format!("{percent}%")
}
