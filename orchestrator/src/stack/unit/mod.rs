//! The `systemd` step: a unit of the service manager, asked for by systemctl(1), which speaks D-Bus with it and waits for its
//! jobs. The unit is the manager's: it starts, limits and kills it.

#[cfg(test)]
mod tests;

use std::process::Command;
use std::time::{Duration, Instant};

use orchestrator_core::stack::{Action, Outcome};
use replicator::config::{Problems, Severity, UnitStep};

use super::command::why;
use super::{Executor, Task};
use crate::process::{Answer, End, Leaves, call, shown};

/// How often a unit on its way is looked at again.
const SETTLE_INTERVAL: Duration = Duration::from_millis(100);
/// How long the manager may take to answer a question of `config check`.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A unit.
#[derive(Debug)]
pub(super) struct Unit {
    unit: String,
}

/// How a unit is, in the manager's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shown {
    load: String,
    active: String,
    result: String,
    file: String,
}

/// What a unit is for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Runs,
    Changes,
    Stopped,
    Failed,
}

impl Shown {
    fn parse(text: &str) -> Self {
        let mut shown = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let field = match key {
                "LoadState" => &mut shown.load,
                "ActiveState" => &mut shown.active,
                "Result" => &mut shown.result,
                "UnitFileState" => &mut shown.file,
                _ => continue,
            };
            value.clone_into(field);
        }
        shown
    }

    fn sort(&self) -> Sort {
        match self.active.as_str() {
            "active" | "reloading" | "refreshing" => Sort::Runs,
            "inactive" => Sort::Stopped,
            "failed" => Sort::Failed,
            // What the manager may say one day is not taken for the end of anything.
            _ => Sort::Changes,
        }
    }

    /// Whether the manager can start it at all, and why not.
    fn refusal(&self) -> Option<&'static str> {
        match self.load.as_str() {
            "not-found" => Some("systemd knows no such unit here"),
            "masked" => Some("the unit is masked: systemctl unmask"),
            "bad-setting" | "error" => Some("the unit cannot be read: systemctl status says why"),
            _ => None,
        }
    }
}

impl Unit {
    pub(super) fn new(step: &UnitStep) -> Self {
        Self { unit: step.unit.clone() }
    }

    fn tell(&self, arguments: &[&str], task: &Task<'_>, deadline: Instant) -> Answer {
        let left = deadline.saturating_duration_since(Instant::now());
        call(&mut systemctl(arguments, &self.unit), b"", left, Leaves::Nothing, task.is_broken_off)
    }

    fn show(&self, task: &Task<'_>, deadline: Instant) -> Result<Shown, Outcome> {
        let answer = self.tell(SHOW, task, deadline);
        match answer.end {
            End::Exited(0) => Ok(Shown::parse(&String::from_utf8_lossy(&answer.output))),
            _ => Err(Outcome::Failed(format!("systemctl show: {}", why(&answer, task.timeout)))),
        }
    }

    /// How it is once it is on its way nowhere.
    fn settled(&self, task: &Task<'_>, deadline: Instant) -> Result<Shown, Outcome> {
        loop {
            let shown = self.show(task, deadline)?;
            if shown.sort() != Sort::Changes {
                return Ok(shown);
            }
            if Instant::now() + SETTLE_INTERVAL >= deadline {
                return Err(Outcome::Failed(format!("it is {} all the time", shown.active)));
            }
            std::thread::sleep(SETTLE_INTERVAL);
        }
    }

    fn start(&self, task: &Task<'_>) -> Result<(), Outcome> {
        let deadline = Instant::now() + task.timeout;
        let before = self.show(task, deadline)?;
        if let Some(refusal) = before.refusal() {
            return Err(Outcome::Refused(format!("{}: {refusal}", self.unit)));
        }
        // One that failed too often for the manager's own limit could not be started any more.
        self.tell(&["reset-failed"], task, deadline);
        let answer = self.tell(&["start"], task, deadline);
        if answer.end != End::Exited(0) {
            return Err(Outcome::Failed(why(&answer, task.timeout)));
        }
        let after = self.settled(task, deadline)?;
        match after.sort() {
            Sort::Runs => Ok(()),
            _ => Err(Outcome::Failed(format!("it has ended at once, with {}", after.result))),
        }
    }

    fn look(&self, task: &Task<'_>) -> Result<Outcome, Outcome> {
        let deadline = Instant::now() + task.timeout;
        // Nothing is known of it yet, and it may run: so one on its way is not waited for.
        let shown = match task.action {
            Action::Probe => self.show(task, deadline)?,
            _ => self.settled(task, deadline)?,
        };
        Ok(match (shown.sort(), task.action) {
            (Sort::Runs | Sort::Changes, _) => Outcome::Done,
            (Sort::Stopped, _) | (Sort::Failed, Action::Probe) => Outcome::NotRunning,
            (Sort::Failed, _) => {
                Outcome::Failed(format!("{} failed with {}: journalctl -u {0}", self.unit, shown.result))
            }
        })
    }

    fn stop(&self, task: &Task<'_>, by_force: bool) -> Result<(), Outcome> {
        let deadline = Instant::now() + task.timeout;
        if by_force {
            // None left to kill is what is wanted; the look below tells.
            self.tell(&["kill", "--signal=KILL"], task, deadline);
        }
        let answer = self.tell(&["stop"], task, deadline);
        // Nobody is left the time to ask how it is.
        if matches!(answer.end, End::TimedOut | End::BrokenOff) {
            return Err(Outcome::Failed(format!("systemctl stop: {}", why(&answer, task.timeout))));
        }
        let after = self.settled(task, deadline)?;
        if matches!(after.sort(), Sort::Runs | Sort::Changes) {
            return Err(Outcome::Failed(format!("it is {}: {}", after.active, why(&answer, task.timeout))));
        }
        self.tell(&["reset-failed"], task, deadline);
        Ok(())
    }
}

const SHOW: &[&str] = &["show", "--property=LoadState,ActiveState,Result,UnitFileState"];

fn systemctl(arguments: &[&str], unit: &str) -> Command {
    let mut command = Command::new("systemctl");
    command.args(["--system", "--no-pager", "--no-ask-password"]).args(arguments).args(["--", unit]);
    command.env("LC_ALL", "C");
    command
}

/// Adds what is wrong with a step of a unit to the problems of the file, as far as this machine's manager says.
pub(super) fn check(step: &UnitStep, problems: &mut Problems) {
    let never = std::sync::atomic::AtomicBool::new(false);
    let answer = call(&mut systemctl(SHOW, &step.unit), b"", ANSWER_WITHIN, Leaves::Nothing, &never);
    let unit = &step.unit;
    if answer.end != End::Exited(0) {
        let message =
            format!("no systemd answers here, so {unit} was not checked: {}", shown(&answer.errors, None));
        return problems.add(Severity::Warning, &step.place, &message, None);
    }
    let found = Shown::parse(&String::from_utf8_lossy(&answer.output));
    if let Some(refusal) = found.refusal() {
        return problems.add(Severity::Warning, &step.place, &format!("{unit}: {refusal}"), None);
    }
    if matches!(found.file.as_str(), "enabled" | "enabled-runtime") {
        let message = format!("{unit} is enabled: systemd starts it at boot, wherever its volume is");
        let help = format!("systemctl disable {unit}");
        problems.add(Severity::Warning, &step.place, &message, Some(help));
    }
}

impl Executor for Unit {
    fn carry_out(&self, task: &Task<'_>) -> Outcome {
        let done = |result: Result<(), Outcome>| result.err().unwrap_or(Outcome::Done);
        match task.action {
            Action::Start => done(self.start(task)),
            Action::Probe | Action::Monitor => self.look(task).unwrap_or_else(|outcome| outcome),
            Action::Stop => done(self.stop(task, false)),
            Action::Force => done(self.stop(task, true)),
            Action::Refresh => Outcome::Done,
        }
    }
}
