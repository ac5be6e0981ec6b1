//! Switching one node off: which device is asked what, in which order, and when that is evidence. Not here: agents, which
//! the shell runs, and the decision that a node is to be off, which is `decide::fence`.
//!
//! ```text
//!                       exit 0                says off, device is not the last of its level
//!  Waiting --> Off(device) ----> Status(device) --------------> Off(next device)
//!                  ^  |                |  |  +----------------> Done(Ok), if it is the last
//!                  |  |                |  |
//!                  |  +--- anything else, a timeout too, while there are retries
//!                  +-------------------+--> first device of the next level; none left: Done(Err)
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::units::{NodeSet, VolumeId};
use alloc::collections::BTreeSet;

/// Exit code of `status` when the agent reached its device, and the node is off.
pub const STATUS_OFF: i32 = 2;
/// Exit code of `status` when the node is on; of `off`, when the agent believes that it is off.
const DONE: i32 = 0;

/// When power is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Only where nothing else can prove what must be proven.
    #[default]
    WhenNeeded,
    /// Before every takeover from a node that cannot say that it serves nobody.
    Always,
    /// Operators switch off.
    Never,
}

/// The configured rules of fencing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// When power is used.
    pub mode: Mode,
    /// How long a node that is heard may take to stop serving before power is used.
    pub stop_patience_ms: u64,
    /// Nodes with a device that can switch them off.
    pub fenceable: NodeSet,
    /// Volumes that another node may have only when the old one is surely off: an ended lease does not stop everything
    /// that runs on them.
    pub surely_off: BTreeSet<VolumeId>,
}

impl Default for Rules {
    fn default() -> Self {
        let (fenceable, surely_off) = (NodeSet::default(), BTreeSet::new());
        Self { mode: Mode::default(), stop_patience_ms: 20_000, fenceable, surely_off }
    }
}

/// A way to switch a node off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// All devices of the lowest level are tried first, and all of them must succeed; then those of the next.
    pub level: u8,
    /// How often it is tried again.
    pub retries: u32,
    /// How long the first attempt waits.
    pub delay_ms: u64,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait before the first device.
    Wait {
        /// How long.
        delay_ms: u64,
    },
    /// Ask the device with this place in the list to switch the node off.
    Off(usize),
    /// Ask that device whether it is off.
    Status(usize),
    /// It is over: the devices that have switched it off and read it back, or why it is not known to be off.
    Done(Result<String, String>),
}

/// What came of asking a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The agent has ended, with this code.
    Exited(i32),
    /// The agent was killed because it took too long. Nobody knows what it has done.
    TimedOut,
    /// The agent was not run, or was killed by somebody else.
    Failed(String),
}

/// Switches one node off.
#[derive(Clone, Debug)]
pub struct Run {
    devices: Vec<Device>,
    /// Where `next` is: the device, how often it was tried, and whether it is to be read back.
    device: usize,
    tries: u32,
    stage: Stage,
    /// Devices of the present level that are done.
    done: Vec<String>,
    failures: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting { delay_ms: u64 },
    Off,
    Status,
    Over,
}

impl Run {
    /// Begins with these devices, after the delay of the first and this one more.
    #[must_use]
    pub fn new(mut devices: Vec<Device>, more_delay_ms: u64) -> Self {
        devices.sort_by_key(|device| device.level);
        let stage = match devices.first() {
            Some(first) => Stage::Waiting { delay_ms: first.delay_ms + more_delay_ms },
            None => Stage::Over,
        };
        let failures =
            if devices.is_empty() { Vec::from([String::from("it has no device")]) } else { Vec::new() };
        Self { devices, device: 0, tries: 0, stage, done: Vec::new(), failures }
    }

    /// The devices, in the order of their places.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// What to do now.
    #[must_use]
    pub fn next(&self) -> Next {
        match self.stage {
            Stage::Waiting { delay_ms } => Next::Wait { delay_ms },
            Stage::Off => Next::Off(self.device),
            Stage::Status => Next::Status(self.device),
            Stage::Over if self.done.is_empty() => Next::Done(Err(self.failures.join("; "))),
            Stage::Over => Next::Done(Ok(self.done.join(", "))),
        }
    }

    /// The wait is over.
    ///
    /// # Panics
    /// If nothing waits.
    pub fn waited(&mut self) {
        assert!(matches!(self.stage, Stage::Waiting { .. }), "only the first device waits");
        self.stage = Stage::Off;
    }

    /// What was to be done has come to this.
    ///
    /// # Panics
    /// If no device was to be asked.
    pub fn came_to(&mut self, outcome: &Outcome) {
        match (self.stage, outcome) {
            (Stage::Off, Outcome::Exited(DONE)) => self.stage = Stage::Status,
            // Only what the device says of the node afterwards is evidence.
            (Stage::Status, Outcome::Exited(STATUS_OFF)) => self.succeed(),
            (Stage::Off | Stage::Status, _) => self.fail(outcome),
            (Stage::Waiting { .. } | Stage::Over, _) => panic!("no device was asked"),
        }
    }

    fn succeed(&mut self) {
        let level = self.devices[self.device].level;
        self.done.push(self.devices[self.device].name.clone());
        match self.devices.get(self.device + 1).filter(|next| next.level == level) {
            Some(_) => self.begin(self.device + 1),
            None => self.stage = Stage::Over,
        }
    }

    fn fail(&mut self, outcome: &Outcome) {
        let device = &self.devices[self.device];
        let asked = if self.stage == Stage::Off { "off" } else { "status" };
        let text = match outcome {
            Outcome::Exited(DONE) => {
                format!("{} reported success, and its status says that the node is on", device.name)
            }
            Outcome::Exited(code) => format!("{} answered {asked} with exit code {code}", device.name),
            Outcome::TimedOut => format!("{} did not answer {asked} in time", device.name),
            Outcome::Failed(why) => format!("{} could not be asked for {asked}: {why}", device.name),
        };
        if !self.failures.contains(&text) {
            self.failures.push(text);
        }
        if self.tries < device.retries {
            self.tries += 1;
            self.stage = Stage::Off;
            return;
        }
        // What other devices of this level did is no more than half of what was to be done.
        self.done.clear();
        let level = device.level;
        match self.devices.iter().position(|other| other.level > level) {
            Some(place) => self.begin(place),
            None => self.stage = Stage::Over,
        }
    }

    fn begin(&mut self, device: usize) {
        (self.device, self.tries, self.stage) = (device, 0, Stage::Off);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, level: u8, retries: u32) -> Device {
        Device { name: String::from(name), level, retries, delay_ms: 0 }
    }

    /// Runs with answers in order; says what was asked and what came of it.
    fn play(devices: &[Device], answers: &[Outcome]) -> (Vec<String>, Result<String, String>) {
        let mut run = Run::new(devices.to_vec(), 0);
        let (mut asked, mut answers) = (Vec::new(), answers.iter());
        loop {
            let names: Vec<String> = run.devices().iter().map(|device| device.name.clone()).collect();
            match run.next() {
                Next::Wait { .. } => {
                    run.waited();
                    continue;
                }
                Next::Off(place) => asked.push(format!("off {}", names[place])),
                Next::Status(place) => asked.push(format!("status {}", names[place])),
                Next::Done(result) => {
                    assert!(answers.next().is_none(), "all answers were wanted");
                    return (asked, result);
                }
            }
            run.came_to(answers.next().expect("an answer for each question"));
        }
    }

    use Outcome::{Exited, TimedOut};

    #[test]
    fn off_counts_when_the_status_says_off() {
        let (asked, result) = play(&[device("ipmi", 1, 0)], &[Exited(0), Exited(2)]);
        assert_eq!((asked.join(", ").as_str(), result), ("off ipmi, status ipmi", Ok(String::from("ipmi"))));
    }

    #[test]
    fn a_device_that_lies_proves_nothing() {
        let (_, result) = play(&[device("ipmi", 1, 0)], &[Exited(0), Exited(0)]);
        assert_eq!(result.unwrap_err(), "ipmi reported success, and its status says that the node is on");
    }

    #[test]
    fn a_timeout_is_a_failure_wherever_it_happens() {
        let (_, result) = play(&[device("ipmi", 1, 0)], &[TimedOut]);
        assert_eq!(result.unwrap_err(), "ipmi did not answer off in time");
        let (_, result) = play(&[device("ipmi", 1, 0)], &[Exited(0), TimedOut]);
        assert_eq!(result.unwrap_err(), "ipmi did not answer status in time");
    }

    #[test]
    fn only_exit_code_two_of_status_means_off() {
        for code in [0, 1, 3, 127, -1] {
            let (_, result) = play(&[device("ipmi", 1, 0)], &[Exited(0), Exited(code)]);
            assert!(result.is_err(), "exit code {code}");
        }
    }

    #[test]
    fn off_that_failed_is_not_read_back() {
        let (asked, _) = play(&[device("ipmi", 1, 0)], &[Exited(1)]);
        assert_eq!(asked.join(", "), "off ipmi");
    }

    #[test]
    fn a_device_is_tried_again_as_often_as_it_says() {
        let answers = [Exited(1), Exited(0), Exited(0), Exited(0), Exited(2)];
        let (asked, result) = play(&[device("ipmi", 1, 2)], &answers);
        assert_eq!(asked.join(", "), "off ipmi, off ipmi, status ipmi, off ipmi, status ipmi");
        assert!(result.is_ok());
    }

    #[test]
    fn all_devices_of_a_level_must_succeed() {
        let devices = [device("left", 1, 0), device("right", 1, 0)];
        let (_, result) = play(&devices, &[Exited(0), Exited(2), Exited(0), Exited(2)]);
        assert_eq!(result, Ok(String::from("left, right")));
        let (_, result) = play(&devices, &[Exited(0), Exited(2), Exited(1)]);
        assert_eq!(result.unwrap_err(), "right answered off with exit code 1");
    }

    #[test]
    fn the_next_level_is_tried_when_one_has_failed_and_what_that_did_counts_for_nothing() {
        let devices = [device("ipmi", 2, 0), device("left", 1, 0), device("right", 1, 0)];
        let (asked, result) = play(&devices, &[Exited(0), Exited(2), Exited(1), Exited(0), Exited(2)]);
        assert_eq!(asked.join(", "), "off left, status left, off right, off ipmi, status ipmi");
        assert_eq!(result, Ok(String::from("ipmi")));
        let (_, result) = play(&devices, &[Exited(1), Exited(1)]);
        assert_eq!(
            result.unwrap_err(),
            "left answered off with exit code 1; ipmi answered off with exit code 1"
        );
    }

    #[test]
    fn a_node_without_devices_is_never_off() {
        assert_eq!(play(&[], &[]).1.unwrap_err(), "it has no device");
    }

    #[test]
    fn the_first_device_waits_for_its_delay_and_the_one_of_the_target() {
        let slow = Device { delay_ms: 500, ..device("ipmi", 1, 0) };
        assert_eq!(Run::new(Vec::from([slow]), 2000).next(), Next::Wait { delay_ms: 2500 });
    }
}
