//! Whether the `ocf` steps of a configuration can be used: their agents describe themselves, and what they are told and how
//! long they are given is held against that. An agent that is not installed is no mistake: it is needed on the nodes that
//! run it.

use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use replicator::config::{AgentStep, Problems, Severity, Step};

use super::description::Description;
use super::{CHECK_LEVEL, program, tell};
use crate::process::{End, Leaves, call, shown};

/// How long an agent may take to describe itself.
const DESCRIBE_WITHIN: Duration = Duration::from_secs(30);

/// Adds what is wrong with a step to the problems of the file.
pub(in super::super) fn check(step: &Step, agent: &AgentStep, problems: &mut Problems) {
    let (name, place) = (agent.name(), &agent.places.agent);
    if agent.agent.starts_with("IPaddr") && !step.needs_off {
        let message =
            format!("{name} adds an address that stays when the lease has ended: two nodes may have it");
        let help = "write a step of kind = \"address\" instead, or needs = \"off\"".to_owned();
        problems.add(Severity::Warning, place, &message, Some(help));
    }
    if !program(agent).is_file() {
        let message = format!("{name} is not installed here, so its parameters were not checked");
        return problems.add(Severity::Warning, place, &message, None);
    }
    let description = match describe(agent) {
        Ok(description) => description,
        Err(why) => {
            let message = format!("{name} does not describe itself: {why}");
            return problems.add(Severity::Error, place, &message, None);
        }
    };
    for action in ["start", "stop", "monitor"].into_iter().filter(|action| !description.knows(action)) {
        problems.add(Severity::Error, place, &format!("{name} knows no action `{action}`"), None);
    }
    for missing in description.required().filter(|required| !agent.parameters.contains_key(*required)) {
        let help = format!("write {missing} = \"...\" in `parameters`");
        problems.add(Severity::Error, place, &format!("{name} must be told `{missing}`"), Some(help));
    }
    for (key, place) in &agent.places.parameters {
        if !description.takes(key) && key != CHECK_LEVEL {
            let help = format!("it takes: {}", description.parameters());
            problems.add(Severity::Error, place, &format!("{name} takes no `{key}`"), Some(help));
        }
    }
    let given = [
        ("start", "start-timeout", step.start_timeout_ms),
        ("stop", "stop-timeout", step.stop_timeout_ms),
        ("monitor", "monitor-timeout", step.monitor_timeout_ms),
    ];
    for (action, key, given_ms) in given {
        let advised_ms = description.advised_ms(action);
        if given_ms < advised_ms {
            let advised = advised_ms.div_ceil(1_000);
            let message =
                format!("{name} advises {advised} s for its {action}, and has {} s", given_ms / 1_000);
            problems.add(Severity::Warning, place, &message, Some(format!("write {key} = \"{advised}s\"")));
        }
    }
}

fn describe(agent: &AgentStep) -> Result<Description, String> {
    let mut command = Command::new(program(agent));
    tell(&mut command, agent, "none");
    let never = AtomicBool::new(false);
    let answer = call(command.arg("meta-data"), b"", DESCRIBE_WITHIN, Leaves::Nothing, &never);
    match answer.end {
        End::Exited(0) => Description::parse(&answer.output).map_err(|error| error.to_string()),
        End::Exited(code) => Err(format!("it ended with exit code {code}: {}", shown(&answer.errors, None))),
        End::TimedOut | End::BrokenOff => Err("it took too long".to_owned()),
        End::Failed(why) => Err(why),
    }
}
