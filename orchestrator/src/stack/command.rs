//! The `command` step: a program that runs as long as the step does, or programs that start and stop something. They find
//! node, stack and step in `HOLDFAST_NODE`, `HOLDFAST_STACK` and `HOLDFAST_STEP`.

use std::path::PathBuf;
use std::process;
use std::time::{Duration, Instant};

use orchestrator_core::stack::{Action, Outcome};
use replicator::config::CommandStep;
use rustix::process::Signal;

use super::cage::Cage;
use super::supervised::Supervised;
use super::{Executor, Places, Task};
use crate::process::{Answer, End, Leaves, call, shown};

/// What programs are told.
#[derive(Debug)]
pub(super) struct Names {
    stack: String,
    step: String,
    node: String,
}

impl Names {
    pub(super) fn new(stack: &str, step: &str, places: &Places) -> Self {
        Self { stack: stack.to_owned(), step: step.to_owned(), node: places.node.clone() }
    }
}

/// A step of programs.
#[derive(Debug)]
pub(super) struct Command {
    step: CommandStep,
    names: Names,
    running: Supervised,
    cage: Cage,
}

impl Command {
    pub(super) fn new(step: CommandStep, names: Names, state: PathBuf, cage: Cage) -> Self {
        Self { step, names, running: Supervised::new(state), cage }
    }

    /// A program, in the step's control group if what it starts is to stay.
    fn program(&self, words: &[String], stays: bool) -> process::Command {
        let (program, arguments) = words.split_first().expect("the configuration is checked");
        let mut command = if stays { self.cage.command(program) } else { process::Command::new(program) };
        command.args(arguments).env("HOLDFAST_NODE", &self.names.node);
        command.env("HOLDFAST_STACK", &self.names.stack).env("HOLDFAST_STEP", &self.names.step);
        command
    }

    fn call(&self, words: &[String], task: &Task<'_>, leaves: Leaves) -> Outcome {
        self.call_within(words, task, task.timeout, leaves)
    }

    fn call_within(&self, words: &[String], task: &Task<'_>, within: Duration, leaves: Leaves) -> Outcome {
        let mut program = self.program(words, leaves != Leaves::Nothing);
        let answer = call(&mut program, b"", within, leaves, task.is_broken_off);
        match answer.end {
            End::Exited(0) => Outcome::Done,
            _ => Outcome::Failed(why(&answer, within)),
        }
    }

    /// A look: nothing to look with says nothing against it.
    fn look(&self, monitor: Option<&Vec<String>>, task: &Task<'_>) -> Outcome {
        monitor.map_or(Outcome::Done, |monitor| self.call(monitor, task, Leaves::Nothing))
    }

    /// Ends what runs, and then all that it has left.
    fn end(&self, signal: Signal, task: &Task<'_>) -> Outcome {
        let began = Instant::now();
        if signal == Signal::KILL {
            self.cage.clear(task.timeout, task.is_broken_off);
        }
        let left = task.timeout.saturating_sub(began.elapsed());
        if !self.running.end(signal, left, task.is_broken_off) {
            return Outcome::Failed(format!(
                "it still runs {} ms after {signal:?}",
                task.timeout.as_millis()
            ));
        }
        self.clear(task, began)
    }

    /// Has `stop` stop it and kills what is left; by force the other way around, so that it has nobody to wait for.
    fn stop(&self, stop: Option<&Vec<String>>, task: &Task<'_>) -> Outcome {
        let began = Instant::now();
        if task.action == Action::Force {
            self.cage.clear(task.timeout / 2, task.is_broken_off);
        }
        let left = task.timeout.saturating_sub(began.elapsed());
        match stop.map(|stop| self.call_within(stop, task, left, Leaves::Nothing)) {
            None | Some(Outcome::Done) => self.clear(task, began),
            Some(failed) => failed,
        }
    }

    /// What is left of it goes with it.
    fn clear(&self, task: &Task<'_>, began: Instant) -> Outcome {
        match self.cage.clear(task.timeout.saturating_sub(began.elapsed()), task.is_broken_off) {
            true => Outcome::Done,
            false => Outcome::Failed("what it started cannot be killed".to_owned()),
        }
    }
}

/// Why a call is none that succeeded.
pub(super) fn why(answer: &Answer, timeout: Duration) -> String {
    let words = shown(&answer.errors, None);
    let colon = if words.is_empty() { "" } else { ": " };
    match &answer.end {
        End::Exited(code) => format!("exit code {code}{colon}{words}"),
        End::TimedOut => {
            format!("it took longer than {} ms and was killed{colon}{words}", timeout.as_millis())
        }
        End::BrokenOff => "it was broken off".to_owned(),
        End::Failed(why) => format!("{why}{colon}{words}"),
    }
}

impl Executor for Command {
    fn carry_out(&self, task: &Task<'_>) -> Outcome {
        match (&self.step, task.action) {
            (CommandStep::Run { run, .. }, Action::Start) => {
                match self.running.start(&mut self.program(run, true)) {
                    Ok(()) => Outcome::Done,
                    Err(error) => Outcome::Failed(error.to_string()),
                }
            }
            (CommandStep::Run { monitor, .. }, Action::Monitor) if self.running.is_running() => {
                self.look(monitor.as_ref(), task)
            }
            (CommandStep::Run { .. }, Action::Probe) if self.running.is_running() => Outcome::Done,
            (CommandStep::Run { .. }, Action::Probe | Action::Monitor) => Outcome::NotRunning,
            (CommandStep::Run { .. }, Action::Stop) => self.end(Signal::TERM, task),
            (CommandStep::Run { .. }, Action::Force) => self.end(Signal::KILL, task),
            (CommandStep::Call { start, .. }, Action::Start) => self.call(start, task, Leaves::Services),
            (CommandStep::Call { monitor, .. }, Action::Monitor) => self.look(monitor.as_ref(), task),
            // Without a look it is taken for stopped: starting it again does no harm.
            (CommandStep::Call { monitor, .. }, Action::Probe) => match monitor {
                Some(monitor) => match self.call(monitor, task, Leaves::Nothing) {
                    Outcome::Done => Outcome::Done,
                    _ => Outcome::NotRunning,
                },
                None => Outcome::NotRunning,
            },
            (CommandStep::Call { stop, .. }, Action::Stop | Action::Force) => self.stop(stop.as_ref(), task),
            (_, Action::Refresh) => Outcome::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use super::super::cage::tests::are_possible;
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn step(folder: &Path, step: CommandStep) -> Command {
        let names = Names { stack: "db".to_owned(), step: "app".to_owned(), node: "a".to_owned() };
        let state = folder.join("db.app");
        let cage = Cage::of("db", "app", &state);
        Command::new(step, names, state, cage)
    }

    fn words(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    fn act(command: &Command, action: Action, timeout: Duration) -> Outcome {
        let until = crate::clock::now();
        command.carry_out(&Task { action, timeout, until, is_broken_off: &AtomicBool::new(false) })
    }

    /// Whether a process lives whose number is in this file, once it is.
    fn lives(file: &Path) -> bool {
        let deadline = Instant::now() + LONG;
        while !std::fs::read_to_string(file).is_ok_and(|text| text.ends_with('\n')) {
            assert!(Instant::now() < deadline, "{} is not written", file.display());
            std::thread::yield_now();
        }
        let pid = std::fs::read_to_string(file).unwrap();
        // Not its command line: that is empty for a moment while a program takes the place of another.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    #[test]
    fn a_stop_that_hangs_is_followed_by_force_which_kills_what_left_its_process_group() {
        if !are_possible() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (pid, stopped) = (folder.path().join("pid"), folder.path().join("stopped"));
        let start = format!(
            "setsid sh -c 'trap \"\" TERM; echo $$ > {}; sleep 600; sleep 600' >/dev/null 2>&1 &",
            pid.display()
        );
        // It waits for what it should stop, as many do.
        let stop = format!(
            "while kill -0 $(cat {}); do sleep 0.05; done; touch {}",
            pid.display(),
            stopped.display()
        );
        let call = CommandStep::Call { start: words(&start), stop: Some(words(&stop)), monitor: None };
        let command = step(folder.path(), call);
        assert_eq!(act(&command, Action::Start, LONG), Outcome::Done);
        assert!(lives(&pid));
        let outcome = act(&command, Action::Stop, Duration::from_millis(400));
        assert!(matches!(&outcome, Outcome::Failed(why) if why.contains("was killed")), "{outcome:?}");
        assert!(lives(&pid), "in order nothing is killed");
        assert_eq!(act(&command, Action::Force, LONG), Outcome::Done);
        assert!(!lives(&pid) && stopped.exists(), "its own stop had nobody to wait for");
    }

    #[test]
    fn what_a_program_leaves_behind_goes_with_it() {
        if !are_possible() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("setsid sh -c 'echo $$ > {}; exec sleep 600' & exec sleep 600", pid.display());
        let command = step(folder.path(), CommandStep::Run { run: words(&script), monitor: None });
        assert_eq!(act(&command, Action::Start, LONG), Outcome::Done);
        assert!(lives(&pid));
        assert_eq!(act(&command, Action::Stop, LONG), Outcome::Done);
        assert!(!lives(&pid));
        assert_eq!(act(&command, Action::Probe, LONG), Outcome::NotRunning);
    }
}
