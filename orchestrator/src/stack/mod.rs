//! What carries out orders about steps of stacks, one file for each kind of step. What is ordered, and when, is the core's;
//! that nobody waits for it is `turn`'s.
//!
//! Every executor is called on a thread of its own and may block. It knows nothing of other steps. It does the same thing
//! again without harm, and does not go on after its time is over.

mod address;
mod agent;
mod cage;
mod command;
mod device;
mod filesystem;
#[cfg(test)]
mod one_step;
mod supervised;
mod turn;
mod unit;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use orchestrator_core::proof::Resource;
use orchestrator_core::stack::{Action, Outcome, Stack, StepRule};
use orchestrator_core::units::{Instant, NodeId, VolumeId};
use replicator::config::{Cluster, Problems, Step, StepKind};

use cage::Cage;

pub(crate) use turn::{Running, begin, report};

/// What an executor is asked to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task<'a> {
    action: Action,
    timeout: Duration,
    /// End of the lease, for what has a lifetime.
    until: Instant,
    /// Nobody wants it any more.
    is_broken_off: &'a AtomicBool,
}

/// Carries out orders about one step.
pub(crate) trait Executor: Send + Sync + std::fmt::Debug {
    /// Does it, and says what came of it.
    fn carry_out(&self, task: &Task<'_>) -> Outcome;
}

/// The executors of each stack's steps, by the stack's name.
pub(crate) type Executors = BTreeMap<String, Vec<Arc<dyn Executor>>>;

/// Where this node has what executors need.
pub(crate) struct Places {
    /// Name of this node.
    pub(crate) node: String,
    /// This very program.
    pub(crate) program: PathBuf,
    /// Control socket of the replicator.
    pub(crate) replicator: PathBuf,
    /// Folder of the orchestrator's store.
    pub(crate) store: PathBuf,
}

/// The executors of configured stacks.
pub(crate) fn executors(stacks: &[replicator::config::Stack], places: &Places) -> Executors {
    let steps = |stack: &replicator::config::Stack| {
        stack.steps.iter().map(|step| executor(&stack.name, step, places)).collect()
    };
    stacks.iter().map(|stack| (stack.name.clone(), steps(stack))).collect()
}

fn executor(stack: &str, step: &Step, places: &Places) -> Arc<dyn Executor> {
    let name = &step.name;
    let state = places.store.join("steps").join(format!("{stack}.{name}"));
    let cage = Cage::of(stack, name, &state);
    match &step.kind {
        StepKind::Device { volume, ublk } => Arc::new(device::Device::new(volume, *ublk, places, state)),
        StepKind::FileSystem(step) => Arc::new(filesystem::FileSystem::new(step.clone())),
        StepKind::Agent(agent) => {
            let interval_ms = step.monitor_interval_ms;
            Arc::new(agent::Agent::new(agent, (stack, name), interval_ms, places, cage))
        }
        StepKind::Unit(step) => Arc::new(unit::Unit::new(step)),
        StepKind::Address { address, prefix_bits, interface, refuses_duplicates } => {
            Arc::new(address::Address::new(*address, *prefix_bits, interface, *refuses_duplicates))
        }
        StepKind::Command(step) => Arc::new(command::Command::new(
            step.clone(),
            command::Names::new(stack, name, places),
            state,
            cage,
        )),
    }
}

/// What the core is told of a stack.
pub(crate) fn rule(stack: &replicator::config::Stack) -> Stack {
    Stack {
        name: stack.name.clone(),
        volumes: stack.volumes.iter().map(|volume| VolumeId(volume.0)).collect(),
        steps: stack.steps.iter().map(step_rule).collect(),
        prefers: stack.prefers.iter().map(|node| NodeId(node.0)).collect(),
        stays: stack.stays,
        with: stack.with.clone(),
        apart: stack.apart.clone(),
        failures_max: stack.failures_max,
        forget_after_ms: stack.forget_after_ms,
    }
}

fn step_rule(step: &Step) -> StepRule {
    let resource = match &step.kind {
        _ if step.needs_off => Resource::Foreign,
        StepKind::Address { .. } => Resource::Address,
        _ => Resource::VolumeService,
    };
    StepRule {
        name: step.name.clone(),
        resource,
        start_timeout_ms: step.start_timeout_ms,
        stop_timeout_ms: step.stop_timeout_ms,
        monitor_interval_ms: Some(step.monitor_interval_ms).filter(|ms| *ms > 0),
        monitor_timeout_ms: step.monitor_timeout_ms,
    }
}

/// Adds what is wrong with the stacks to the problems of the file, as far as it can be told on this machine.
pub fn check(cluster: &Cluster, problems: &mut Problems) {
    for step in cluster.stacks.iter().flat_map(|stack| &stack.steps) {
        match &step.kind {
            StepKind::Agent(agent) => agent::check(step, agent, problems),
            StepKind::Unit(unit) => unit::check(unit, problems),
            _ => {}
        }
    }
}
