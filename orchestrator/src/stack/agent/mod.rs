//! The `ocf` step: a resource agent of the Open Cluster Framework, run unmodified. What it is told in its environment, and
//! what its exit codes mean for a step. Agents that are promoted are not for stacks: a volume has one primary already.

mod check;
mod description;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orchestrator_core::stack::{Action, Outcome};
use replicator::config::AgentStep;

use super::cage::Cage;
use super::command::why;
use super::{Executor, Places, Task};
use crate::process::{Answer, End, Leaves, call};

pub(super) use check::check;

/// Where agents are, unless `OCF_ROOT` says so.
const ROOT: &str = "/usr/lib/ocf";
/// Where they keep what they know, and expect a folder.
const STATE: &str = "/run/resource-agents";
/// Before the reason that an agent gives on standard error.
const REASON: &str = "ocf-exit-reason:";
/// Passed on as it is: how closely a look is to look.
const CHECK_LEVEL: &str = "OCF_CHECK_LEVEL";

/// Exit codes of the standard.
const SUCCESS: i32 = 0;
const NOT_INSTALLED: i32 = 5;
const NOT_RUNNING: i32 = 7;
const RUNNING_PROMOTED: i32 = 8;
const FAILED_PROMOTED: i32 = 9;
const DEGRADED: i32 = 190;
const DEGRADED_PROMOTED: i32 = 191;

/// A resource agent.
#[derive(Debug)]
pub(super) struct Agent {
    step: AgentStep,
    /// The name under which it knows what it runs.
    instance: String,
    node: String,
    monitor_interval: Duration,
    cage: Cage,
}

impl Agent {
    pub(super) fn new(
        step: &AgentStep,
        names: (&str, &str),
        interval_ms: u64,
        places: &Places,
        cage: Cage,
    ) -> Self {
        let instance = format!("{}-{}", names.0, names.1);
        let monitor_interval = Duration::from_millis(interval_ms);
        Self { step: step.clone(), instance, node: places.node.clone(), monitor_interval, cage }
    }

    fn tell(&self, command: &mut Command, name: &str, interval: Duration, timeout: Duration) {
        tell(command, &self.step, &self.instance);
        for (key, value) in &self.step.parameters {
            let key = if key == CHECK_LEVEL { key.clone() } else { format!("OCF_RESKEY_{key}") };
            command.env(key, value);
        }
        command.env("OCF_RESKEY_CRM_meta_name", name).env("OCF_RESKEY_CRM_meta_on_node", &self.node);
        command.env("OCF_RESKEY_CRM_meta_interval", interval.as_millis().to_string());
        command.env("OCF_RESKEY_CRM_meta_timeout", timeout.as_millis().to_string());
        command.arg(name);
    }

    fn run(&self, name: &str, task: &Task<'_>, timeout: Duration) -> Answer {
        let program = program(&self.step);
        // A look that is the first is one with no interval: by that agents know that nothing needs to be there yet.
        let interval = if task.action == Action::Monitor { self.monitor_interval } else { Duration::ZERO };
        let (mut command, leaves) = match name {
            "start" => (self.cage.command(program), Leaves::Daemons),
            _ => (Command::new(program), Leaves::Nothing),
        };
        self.tell(&mut command, name, interval, timeout);
        call(&mut command, b"", timeout, leaves, task.is_broken_off)
    }

    fn start(&self, task: &Task<'_>) -> Outcome {
        // Where there is a service manager it was made at boot; what is wrong with it the agent says.
        let _ = std::fs::create_dir_all(STATE);
        let answer = self.run("start", task, task.timeout);
        match answer.end {
            End::Exited(SUCCESS) => Outcome::Done,
            _ => failure(&answer, task.timeout),
        }
    }

    fn look(&self, task: &Task<'_>) -> Outcome {
        let answer = self.run("monitor", task, task.timeout);
        let is_probe = task.action == Action::Probe;
        match answer.end {
            End::Exited(SUCCESS | RUNNING_PROMOTED | DEGRADED | DEGRADED_PROMOTED) => Outcome::Done,
            End::Exited(NOT_RUNNING) => Outcome::NotRunning,
            // What is not there does not run, as where its program lies on the volume.
            End::Exited(NOT_INSTALLED) if is_probe => Outcome::NotRunning,
            End::Exited(FAILED_PROMOTED) if is_probe => Outcome::Done,
            _ => failure(&answer, task.timeout),
        }
    }

    /// Stops it, and kills what is left of it then; or the other way around.
    fn stop(&self, task: &Task<'_>, by_force: bool) -> Outcome {
        let began = Instant::now();
        if by_force {
            self.cage.clear(task.timeout / 2, task.is_broken_off);
        }
        let left = || task.timeout.saturating_sub(began.elapsed());
        let answer = self.run("stop", task, left());
        match answer.end {
            End::Exited(SUCCESS | NOT_RUNNING) if self.cage.clear(left(), task.is_broken_off) => {
                Outcome::Done
            }
            End::Exited(SUCCESS | NOT_RUNNING) => {
                Outcome::Failed("what it started cannot be killed".to_owned())
            }
            _ => failure(&answer, task.timeout),
        }
    }
}

/// The program of an agent.
fn program(step: &AgentStep) -> PathBuf {
    root().join("resource.d").join(&step.provider).join(&step.agent)
}

fn root() -> PathBuf {
    std::env::var_os("OCF_ROOT").map_or_else(|| Path::new(ROOT).to_owned(), PathBuf::from)
}

/// What every call of an agent finds in its environment.
fn tell(command: &mut Command, step: &AgentStep, instance: &str) {
    command.env("OCF_ROOT", root()).env("OCF_RA_VERSION_MAJOR", "1").env("OCF_RA_VERSION_MINOR", "1");
    command.env("OCF_RESOURCE_PROVIDER", &step.provider).env("OCF_RESOURCE_TYPE", &step.agent);
    command.env("OCF_RESOURCE_INSTANCE", instance).env("OCF_EXIT_REASON_PREFIX", REASON);
}

/// What an exit code is called, and whether trying again on this node cures nothing.
fn meaning(code: i32) -> Option<(&'static str, bool)> {
    Some(match code {
        1 => ("it failed", false),
        2 => ("its parameters are wrong here", true),
        3 => ("the agent does not know how", true),
        4 => ("it has not the rights it needs", true),
        NOT_INSTALLED => ("something that it needs is not installed here", true),
        6 => ("its parameters are wrong", true),
        NOT_RUNNING => ("it does not run", false),
        RUNNING_PROMOTED => ("it runs promoted", false),
        FAILED_PROMOTED => ("it failed while promoted", false),
        _ => return None,
    })
}

fn failure(answer: &Answer, timeout: Duration) -> Outcome {
    let End::Exited(code) = answer.end else { return Outcome::Failed(why(answer, timeout)) };
    let Some((words, is_lasting)) = meaning(code) else { return Outcome::Failed(why(answer, timeout)) };
    let said = String::from_utf8_lossy(&answer.errors);
    let reason = said.lines().rev().find_map(|line| line.trim().strip_prefix(REASON));
    let text = match reason {
        Some(reason) => format!("{words} (exit code {code}): {}", reason.trim()),
        None => format!("{words}: {}", why(answer, timeout)),
    };
    if is_lasting { Outcome::Refused(text) } else { Outcome::Failed(text) }
}

impl Executor for Agent {
    fn carry_out(&self, task: &Task<'_>) -> Outcome {
        if !program(&self.step).is_file() {
            let text = format!("{} is not installed here", self.step.name());
            return match task.action {
                Action::Probe => Outcome::NotRunning,
                Action::Start | Action::Monitor => Outcome::Refused(text),
                Action::Stop | Action::Force => Outcome::Failed(text),
                Action::Refresh => Outcome::Done,
            };
        }
        match task.action {
            Action::Start => self.start(task),
            Action::Probe | Action::Monitor => self.look(task),
            Action::Stop => self.stop(task, false),
            Action::Force => self.stop(task, true),
            Action::Refresh => Outcome::Done,
        }
    }
}
