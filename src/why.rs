//! `holdfast explain`, `history` and `events`: why something is so, what was decided, what happens.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use orchestrator::control::json::{DecisionReport, Decisions, Events, Finding, Severity, Why};
use orchestrator::control::{Client, ClientError};
use serde::Serialize;

use crate::cli::{AskArgs, EventsArgs, ExplainArgs, HistoryArgs};
use crate::orchestrator_cluster::CONTROL_SOCKET;
use crate::output::{self, Style};

/// How long a question about events waits for one.
const WAIT_MS: u64 = 20_000;
/// How long an orchestrator that has gone is left alone before it is asked again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Why a volume or a node is as it is.
pub(crate) fn explain(arguments: &ExplainArgs) -> Result<()> {
    let why: Why = client(&arguments.ask).get(&format!("/v1/explain/{}", arguments.name))?;
    show(&arguments.ask, &why, || render(&why, Style::stdout()))
}

/// What was decided.
pub(crate) fn history(arguments: &HistoryArgs) -> Result<()> {
    let asked = [
        arguments.volume.as_ref().map(|volume| format!("volume={volume}")),
        arguments.node.as_ref().map(|node| format!("node={node}")),
        arguments.last.map(|last| format!("last={last}")),
    ];
    let query = asked.into_iter().flatten().collect::<Vec<_>>().join("&");
    let decisions: Decisions = client(&arguments.ask).get(&format!("/v1/history?{query}"))?;
    show(&arguments.ask, &decisions, || {
        if decisions.decisions.is_empty() {
            return "nothing was decided about that, or it is not kept any more".to_owned();
        }
        decisions.decisions.iter().map(line).collect()
    })
}

/// What happens, until somebody interrupts.
pub(crate) fn events(arguments: &EventsArgs) -> Result<()> {
    let client = client(&arguments.ask).within(Duration::from_millis(2 * WAIT_MS));
    let ask = |after: u64, wait_ms: u64| -> Result<Events, ClientError> {
        client.get(&format!("/v1/events?after={after}&wait-ms={wait_ms}"))
    };
    let first = ask(0, 0)?;
    let mut process = first.process;
    let mut after = first.events.last().map_or(0, |last| last.number);
    let mut found = if arguments.all { first.events } else { Vec::new() };
    loop {
        for event in found.drain(..) {
            if arguments.ask.json {
                output::print_json(&event, false)?;
            } else {
                output::print(&format!("{}  {}", time(event.at_unix_ms), event.text))?;
            }
        }
        match ask(after, WAIT_MS) {
            // Another process counts from the beginning.
            Ok(events) if events.process != process => (process, after) = (events.process, 0),
            Ok(events) => {
                after = events.events.last().map_or(after, |last| last.number);
                found = events.events;
            }
            Err(error) => {
                output::say(&format!("holdfast: {error}"));
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
    }
}

fn client(ask: &AskArgs) -> Client {
    Client::new(ask.control.as_deref().unwrap_or(Path::new(CONTROL_SOCKET)))
}

fn show<T: Serialize>(ask: &AskArgs, value: &T, text: impl FnOnce() -> String) -> Result<()> {
    if ask.json { output::print_json(value, true) } else { output::print(&text()) }
}

fn render(why: &Why, style: Style) -> String {
    let explained = &why.explanation;
    let mut out = format!("{}\n\n", style.bold(&explained.summary));
    for Finding { severity, text } in &explained.findings {
        let text = match severity {
            Severity::Error => style.red(text),
            Severity::Warning => style.yellow(text),
            Severity::Note => text.clone(),
        };
        let _ = writeln!(out, "  {text}");
    }
    if !explained.next.is_empty() {
        out.push_str("\nNext:\n");
        explained.next.iter().for_each(|next| out.push_str(&format!("  {next}\n")));
    }
    if !why.history.is_empty() {
        out.push_str("\nDecided before:\n");
        why.history.iter().for_each(|decision| out.push_str(&format!("  {}", line(decision))));
    }
    if !explained.cures.is_empty() {
        out.push('\n');
        explained.cures.iter().for_each(|cure| out.push_str(&format!("{} {cure}\n", output::arrow())));
    }
    out
}

fn line(decision: &DecisionReport) -> String {
    format!("{}  {}, since {}\n", time(decision.at_unix_ms), decision.text, decision.reason)
}

/// A moment for people, in UTC.
fn time(at_unix_ms: u64) -> String {
    let (days, ms) = (at_unix_ms / 86_400_000, at_unix_ms % 86_400_000);
    // Counted from 1 March of the year 0, in eras of 400 years, so that a leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}.{:03}", ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_for_people() {
        for (at_unix_ms, text) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_400_000, "2000-02-29 00:00:00.000"),
            (1_709_251_199_999, "2024-02-29 23:59:59.999"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(time(at_unix_ms), text);
        }
    }
}
