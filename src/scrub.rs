//! `holdfast scrub`: has a node read all of its copy, ends that, or waits for it and says what it found.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use replicator::control::json::{ScrubReport, StartScrub, SumsReport};

use crate::cli::ScrubArgs;
use crate::output::{self, counted, human_bytes};
use crate::target;

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Does what the arguments say.
pub(crate) fn run(arguments: &ScrubArgs) -> Result<()> {
    let on = &arguments.on;
    let client = target::client(&on.target)?;
    let done = client.scrub(&on.volume, &StartScrub { stop: arguments.stop })?;
    if !arguments.wait {
        return if on.json { output::print_json(&done, true) } else { output::print(&done.message) };
    }
    let report = loop {
        let replica = client.volume(&on.volume)?.replica.context("the replica has stopped")?;
        let report = replica.scrub.context("the replicator was restarted, and the scrub ended with it")?;
        if report.is_over() {
            break report;
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    if on.json {
        output::print_json(&report, true)?;
    } else {
        output::print(&render(&report))?;
    }
    if report.phase != "done" {
        anyhow::bail!("the scrub did not read everything");
    }
    Ok(())
}

/// A scrub for people.
pub(crate) fn render(report: &ScrubReport) -> String {
    let progress = report.progress;
    let done = progress.bytes.saturating_sub(progress.left_bytes);
    let mut out = format!(
        "scrub {}: {} of {} read in {} s, {}/s",
        report.phase,
        human_bytes(done),
        human_bytes(progress.bytes),
        report.seconds,
        human_bytes(progress.rate_bytes)
    );
    if let Some(left) = progress.left_seconds.filter(|_| !report.is_over()) {
        let _ = write!(out, ", {left} s left");
    }
    let blocks = |bytes: u64| counted(bytes / 4096, "block", "blocks");
    let _ = write!(out, "; {} bad", blocks(report.bad_bytes));
    if report.learnt_bytes > 0 {
        let _ = write!(out, ", {} had no checksum and have one now", blocks(report.learnt_bytes));
    }
    out.push('\n');
    out
}

/// The checksums of a copy for people.
pub(crate) fn render_sums(sums: &SumsReport) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut out = format!("{} of {} in memory", human_bytes(sums.memory_bytes), human_bytes(sums.area_bytes));
    match sums.scrubbed_ms {
        None => out.push_str(", never scrubbed"),
        Some(at) => {
            let hours = now.saturating_sub(Duration::from_millis(at)).as_secs() / 3600;
            let ago = match hours {
                0 => "less than an hour ago".to_owned(),
                1..48 => format!("{hours} h ago"),
                _ => format!("{} days ago", hours / 24),
            };
            let bad = counted(sums.scrubbed_bad_blocks, "bad block", "bad blocks");
            let _ = write!(out, ", scrubbed {ago}: {bad}");
        }
    }
    if sums.damaged_sectors > 0 {
        let _ = write!(out, ", {} could not be believed", counted(sums.damaged_sectors, "sector", "sectors"));
    }
    out.push('\n');
    out
}
