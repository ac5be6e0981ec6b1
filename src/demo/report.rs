//! What the demonstration tells: a line for each thing that happens, progress in between, and a summary.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::output::{Style, grouped, human_bytes, say};
use crate::table::Table;

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Outcome {
    /// Records whose write was acknowledged.
    pub(super) acknowledged: u64,
    /// Of those, records whose flush was acknowledged too.
    pub(super) flushed: u64,
    /// Records acknowledged before the kill.
    pub(super) acknowledged_before_failover: u64,
    /// Acknowledged records that are not there.
    pub(super) lost: u64,
    /// Places that hold something else.
    pub(super) corrupt: u64,
    /// From the kill to the first write that the new primary acknowledged.
    pub(super) failover_ms: u64,
    /// From the restart of the old primary until it was level and in sync.
    pub(super) caught_up_ms: u64,
    /// Whether both disks are equal, byte for byte.
    pub(super) replicas_identical: bool,
    /// The first byte that differs, if one does.
    pub(super) first_difference: Option<u64>,
    /// Bytes of each disk.
    pub(super) compared_bytes: u64,
    /// DRBD's letter.
    pub(super) protocol: char,
    /// How long it all took.
    pub(super) seconds: f64,
}

impl Outcome {
    /// Whether everything is as it must be.
    pub(super) fn is_good(&self) -> bool {
        self.lost == 0 && self.corrupt == 0 && self.replicas_identical
    }
}

/// Tells what happens, with the time since the beginning.
#[derive(Debug)]
pub(super) struct Narrator {
    began: Instant,
    /// A line that moves, on a terminal only.
    bar: Option<ProgressBar>,
}

impl Narrator {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("         {spinner} {msg}").expect("a sound template"),
            );
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { began: Instant::now(), bar }
    }

    /// Something has happened: a line that stays.
    pub(super) fn tell(&self, text: &str) {
        self.tell_at(Instant::now(), text);
    }

    /// Something happened at that moment.
    pub(super) fn tell_at(&self, moment: Instant, text: &str) {
        let line = format!("{:7.2}s  {text}", moment.duration_since(self.began).as_secs_f64());
        match &self.bar {
            Some(bar) => bar.println(line),
            None => say(&line),
        }
    }

    /// Something is going on: the line that moves.
    pub(super) fn progress(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }

    /// Since the beginning.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Takes the moving line away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The end of the story.
pub(super) fn summary(outcome: &Outcome) -> String {
    let style = Style::stdout();
    let mut table = Table::new(2, &["what was asked", "answer"]);
    let mut row = |question: &str, answer: String| table.row([question.to_owned(), answer]);
    row(
        "records acknowledged",
        format!(
            "{} ({} before the kill)",
            grouped(outcome.acknowledged),
            grouped(outcome.acknowledged_before_failover)
        ),
    );
    row("  of those flushed", grouped(outcome.flushed));
    row("lost", grouped(outcome.lost));
    row("corrupt", grouped(outcome.corrupt));
    row("failover, kill to first new write", format!("{} ms", grouped(outcome.failover_ms)));
    row("old primary back in sync after", format!("{} ms", grouped(outcome.caught_up_ms)));
    let disks = match outcome.first_difference {
        None => format!("identical, {} each", human_bytes(outcome.compared_bytes)),
        Some(at) => format!("DIFFERENT from byte {at} on"),
    };
    row("both disks", disks);
    let verdict = if outcome.is_good() {
        style.green("Nothing acknowledged was lost.")
    } else {
        style.red("This must not happen. The files are kept: please report it.")
    };
    format!("\n{}\n{verdict} It took {:.1} s.", table.render(), outcome.seconds)
}
