//! `holdfast verify`: begins a verify at the primary, ends one, or waits for one and says what it found.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result};
use replicator::control::json::{StartVerify, VerifiedPeerReport, VerifyReport};
use replicator::control::{Client, ClientError};

use crate::cli::VerifyArgs;
use crate::output::{self, counted, human_bytes};
use crate::target;

const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Runs of differences that are shown to people.
const SHOWN_MAX: usize = 20;

/// Copies differ: what was compared is listed already.
#[derive(Debug)]
pub(crate) struct Differs {
    text: String,
}

impl std::error::Error for Differs {}

impl std::fmt::Display for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Does what the arguments say.
pub(crate) fn run(arguments: &VerifyArgs) -> Result<()> {
    let client = target::client(&arguments.on.target)?;
    let VerifyArgs { repair, stop, .. } = *arguments;
    let request = StartVerify { repair, stop, trust: arguments.trust.clone() };
    let answer = client.verify(&arguments.on.volume, &request);
    if arguments.on.json
        && let Err(ClientError::Refused(reason)) = &answer
    {
        output::print_json(&serde_json::json!({ "error": reason }), true)?;
    }
    let done = answer?;
    if !arguments.wait {
        if arguments.on.json {
            return output::print_json(&done, true);
        }
        output::print(&done.message)?;
        let volume = &arguments.on.volume;
        return if stop {
            Ok(())
        } else {
            output::print(&format!("holdfast status {volume} shows how far it is"))
        };
    }
    let report = wait(&client, &arguments.on.volume, !arguments.on.json)?;
    if arguments.on.json {
        output::print_json(&report, true)?;
    } else {
        output::print(&render(&report))?;
    }
    judge(&report)
}

/// Waits until the verify has ended, and shows how far it is to whoever looks.
fn wait(client: &Client, volume: &str, shows: bool) -> Result<VerifyReport> {
    let shows = shows && std::io::stderr().is_terminal();
    loop {
        let replica = client.volume(volume)?.replica.context("the replica has stopped")?;
        let report = replica.verify.context("the replicator was restarted, and the verify ended with it")?;
        if report.is_over() {
            if shows {
                eprintln!();
            }
            return Ok(report);
        }
        if shows {
            let progress = report.progress;
            let done = progress.bytes.saturating_sub(progress.left_bytes);
            let percent = u128::from(done) * 100 / u128::from(progress.bytes.max(1));
            let left = progress.left_seconds.map_or_else(String::new, |left| format!(", {left} s left"));
            eprint!("\r{} {percent}%, {}/s{left}    ", report.phase, human_bytes(progress.rate_bytes));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A verify for people.
pub(crate) fn render(report: &VerifyReport) -> String {
    let progress = report.progress;
    let done = progress.bytes.saturating_sub(progress.left_bytes);
    let mut out = format!(
        "verify {}: {} of {} compared in {} s, {}/s\n",
        report.phase,
        human_bytes(done),
        human_bytes(progress.bytes),
        report.seconds,
        human_bytes(progress.rate_bytes)
    );
    if let Some(reason) = &report.reason {
        let _ = writeln!(out, "  {reason}");
    }
    for peer in &report.peers {
        out.push_str(&render_peer(peer));
    }
    if report.unreadable_bytes > 0 {
        let _ = writeln!(
            out,
            "  {} can be read neither here nor elsewhere",
            human_bytes(report.unreadable_bytes)
        );
    }
    out
}

fn render_peer(peer: &VerifiedPeerReport) -> String {
    let blocks = |bytes: u64| counted(bytes / 4096, "block", "blocks");
    let mut out = format!("  {}: ", peer.node);
    if peer.differing_bytes > 0 {
        let _ = write!(out, "{} differ", blocks(peer.differing_bytes));
    } else {
        out.push_str("equal");
    }
    if peer.settled_bytes > 0 {
        let _ = write!(out, ", {} had differed", blocks(peer.settled_bytes));
    }
    if peer.unreadable_bytes > 0 {
        let _ = write!(out, ", {} could not be read there", blocks(peer.unreadable_bytes));
    }
    if let Some(lost) = &peer.lost {
        let _ = write!(out, " (not compared to the end: {lost})");
    }
    out.push('\n');
    for run in peer.differences.iter().take(SHOWN_MAX) {
        let right = match run.right.as_deref() {
            None => String::new(),
            Some("neither") => ", the journal says that neither is right".to_owned(),
            Some(node) => format!(", the journal proves {node} right"),
        };
        let _ = writeln!(out, "    at byte {}, {}{right}", run.offset, blocks(run.length));
    }
    if peer.differences.len() > SHOWN_MAX {
        let _ = writeln!(out, "    and {} more runs: --json lists them", peer.differences.len() - SHOWN_MAX);
    }
    out
}

fn judge(report: &VerifyReport) -> Result<()> {
    let differ: Vec<&str> =
        report.peers.iter().filter(|peer| peer.differing_bytes > 0).map(|peer| peer.node.as_str()).collect();
    if !differ.is_empty() {
        let text = format!("copies differ: {}; holdfast status says what to type next", differ.join(", "));
        return Err(Differs { text }.into());
    }
    let lost = report.peers.iter().any(|peer| peer.lost.is_some());
    if report.phase != "done" || lost || report.unreadable_bytes > 0 {
        anyhow::bail!("the verify did not compare everything");
    }
    Ok(())
}
