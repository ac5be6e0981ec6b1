//! The `device` step: a volume as a block device of the kernel. It is this program's own `attach` and `detach` that do it,
//! and `attach --follow` that keeps the device connected across restarts of the replicator.

use std::path::{Path, PathBuf};
use std::process::Command;

use orchestrator_core::stack::{Action, Outcome};
use rustix::process::Signal;

use super::command::why;
use super::supervised::Supervised;
use super::{Executor, Places, Task};
use crate::process::{End, Leaves, call};

/// Where `attach` puts links to devices, by volume.
const LINKS: &str = "/dev/holdfast";

/// A volume as a device.
#[derive(Debug)]
pub(super) struct Device {
    volume: String,
    ublk: bool,
    program: PathBuf,
    replicator: PathBuf,
    follower: Supervised,
}

impl Device {
    pub(super) fn new(volume: &str, ublk: bool, places: &Places, state: PathBuf) -> Self {
        let (program, replicator) = (places.program.clone(), places.replicator.clone());
        Self { volume: volume.to_owned(), ublk, program, replicator, follower: Supervised::new(state) }
    }

    fn attach(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["attach", &self.volume, "--control"]).arg(&self.replicator);
        if self.ublk {
            command.arg("--ublk");
        }
        command
    }

    fn call(command: &mut Command, task: &Task<'_>) -> Outcome {
        let answer = call(command, b"", task.timeout, Leaves::Nothing, task.is_broken_off);
        match answer.end {
            End::Exited(0) => Outcome::Done,
            _ => Outcome::Failed(why(&answer, task.timeout)),
        }
    }

    /// A follower that ended is started again: the device does not need it until the replicator restarts.
    fn follow(&self) -> Outcome {
        match self.follower.start(self.attach().arg("--follow")) {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(format!("nobody follows the device: {error}")),
        }
    }

    fn is_attached(&self) -> bool {
        // A link to a device that is gone does not exist.
        Path::new(LINKS).join(&self.volume).exists()
    }

    fn detach(&self, task: &Task<'_>, by_force: bool) -> Outcome {
        // A follower that is told nothing would connect it again.
        self.follower.end(Signal::TERM, task.timeout, task.is_broken_off);
        if !self.is_attached() {
            return Outcome::Done;
        }
        let mut command = Command::new(&self.program);
        command.args(["detach", &self.volume]);
        if by_force {
            command.arg("--force");
        }
        Self::call(&mut command, task)
    }
}

impl Executor for Device {
    fn carry_out(&self, task: &Task<'_>) -> Outcome {
        match task.action {
            Action::Start => match Self::call(&mut self.attach(), task) {
                Outcome::Done => self.follow(),
                failed => failed,
            },
            Action::Probe | Action::Monitor if !self.is_attached() => Outcome::NotRunning,
            Action::Probe => Outcome::Done,
            Action::Monitor => self.follow(),
            Action::Stop => self.detach(task, false),
            Action::Force => self.detach(task, true),
            Action::Refresh => Outcome::Done,
        }
    }
}
