//! Whether the fence devices of a configuration can be used: their agents are asked to describe themselves, and what the
//! configuration tells them is held against that. An agent that is not installed is no mistake: it is needed on the node
//! that uses it.

use std::ops::Range;
use std::time::Duration;

use orchestrator_core::fence::Outcome;
use replicator::config::{Cluster, FenceDevice, Problems, Severity};

use super::agent;
use super::metadata::{Metadata, Misuse};

/// How long an agent may take to describe itself.
const DESCRIBE_WITHIN: Duration = Duration::from_secs(30);

/// Adds what is wrong with the fence devices to the problems of the file.
pub fn check(cluster: &Cluster, problems: &mut Problems) {
    for device in &cluster.fence {
        let at = |option: &Option<String>| place(device, option.as_deref());
        match misuses(device) {
            None => {
                let message =
                    format!("{} is not installed here, so its options were not checked", device.agent);
                problems.add(Severity::Warning, &device.places.agent, &message, None);
            }
            Some(Err(why)) => problems.add(Severity::Error, &device.places.agent, &why, None),
            Some(Ok(misuses)) => {
                for misuse in misuses {
                    let severity = if misuse.is_harmless { Severity::Warning } else { Severity::Error };
                    problems.add(severity, &at(&misuse.option), &misuse.message, misuse.help);
                }
            }
        }
    }
}

/// Whether a device can be used on this machine.
pub(super) fn is_usable(device: &FenceDevice) -> bool {
    matches!(misuses(device), Some(Ok(misuses)) if misuses.iter().all(|misuse| misuse.is_harmless))
}

/// What is wrong with a device; `None` if its agent is not here, an error if the agent does not describe itself.
fn misuses(device: &FenceDevice) -> Option<Result<Vec<Misuse>, String>> {
    let program = agent::find(&device.agent)?;
    let answer = agent::call(&program, b"action=metadata\n", None, DESCRIBE_WITHIN);
    let described = match answer.outcome {
        Outcome::Exited(0) => Metadata::parse(&answer.output).map_err(|error| error.to_string()),
        Outcome::Exited(code) => Err(format!("it ended with exit code {code}: {}", answer.words)),
        Outcome::TimedOut => Err("it took too long".to_owned()),
        Outcome::Failed(why) => Err(why),
    };
    let described = described.map_err(|why| format!("{} does not describe itself: {why}", device.agent));
    Some(described.map(|metadata| metadata.misuses(device)))
}

fn place(device: &FenceDevice, option: Option<&str>) -> Range<usize> {
    let found = option.and_then(|option| device.places.options.get(option));
    found.unwrap_or(&device.places.agent).clone()
}
