//! Carries out orders to switch nodes off: one at a time for each node, on a thread that may wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orchestrator_core::fence::{Device, Next, Outcome, Run};
use orchestrator_core::units::{NodeId, NodeSet};
use replicator::config::{Cluster, FenceDevice};

use super::{agent, check};

/// How often a wait looks whether it is still wanted.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The devices of each node, and how long one waits longer for a node that is primary.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fencer {
    targets: BTreeMap<NodeId, Target>,
    priority_delay_ms: u64,
}

#[derive(Clone, Debug)]
struct Target {
    name: String,
    devices: Vec<FenceDevice>,
}

/// The fencer of a cluster.
pub(crate) fn devices_of(cluster: &Cluster) -> Fencer {
    let target = |node: &replicator::config::Node| {
        let devices = cluster.fence.iter().filter(|device| device.target == node.id);
        let target = Target { name: node.name.clone(), devices: devices.cloned().collect() };
        (NodeId(node.id.0), target)
    };
    let targets = cluster.nodes.iter().map(target).filter(|(_, target)| !target.devices.is_empty());
    let priority_delay_ms = cluster.orchestrator.as_ref().map_or(0, |section| section.priority_delay_ms);
    Fencer { targets: targets.collect(), priority_delay_ms }
}

impl Fencer {
    /// Nodes with a device.
    pub(crate) fn targets(&self) -> NodeSet {
        self.targets.keys().copied().collect()
    }

    /// Nodes that can be switched off from here: for at least one level all agents are here and take what they are told.
    /// Takes a while.
    pub(crate) fn usable(&self) -> NodeSet {
        let can = |target: &Target| {
            let levels = target.devices.iter().map(|device| device.level);
            let is_usable = |level: u8| {
                target.devices.iter().filter(|device| device.level == level).all(check::is_usable)
            };
            levels.collect::<std::collections::BTreeSet<_>>().into_iter().any(is_usable)
        };
        self.targets.iter().filter(|(_, target)| can(target)).map(|(node, _)| *node).collect()
    }

    /// How a node would be switched off, in words.
    pub(crate) fn ways(&self, node: NodeId, is_primary: bool) -> Vec<String> {
        let Some(target) = self.targets.get(&node) else { return Vec::new() };
        let mut devices: Vec<&FenceDevice> = target.devices.iter().collect();
        devices.sort_by_key(|device| device.level);
        let more_ms = if is_primary { self.priority_delay_ms } else { 0 };
        let first = devices.first().map_or(0, |device| device.delay_ms) + more_ms;
        let wait = (first > 0).then(|| format!("after waiting for {first} ms"));
        let way = |device: &&FenceDevice| {
            let tries = u64::from(device.retries) + 1;
            format!(
                "level {}: {} with {}, tried {tries} times, {} ms each",
                device.level, device.name, device.agent, device.timeout_ms
            )
        };
        wait.into_iter().chain(devices.iter().map(way)).collect()
    }

    /// Switches a node off and reads that back. Says which devices did, or why it is not known to be off. Gives up between
    /// two steps when it is not wanted any more.
    pub(crate) fn switch_off(
        &self,
        node: NodeId,
        is_primary: bool,
        is_wanted: &Arc<AtomicBool>,
        say: &dyn Fn(String),
    ) -> Option<Result<String, String>> {
        let Some(target) = self.targets.get(&node) else { return Some(Err("it has no device".to_owned())) };
        let device = |device: &FenceDevice| Device {
            name: device.name.clone(),
            level: device.level,
            retries: device.retries,
            delay_ms: device.delay_ms,
        };
        let mut devices = target.devices.clone();
        devices.sort_by_key(|device| device.level);
        let more_ms = if is_primary { self.priority_delay_ms } else { 0 };
        let mut run = Run::new(devices.iter().map(device).collect(), more_ms);
        loop {
            if !is_wanted.load(Ordering::Relaxed) {
                return None;
            }
            let (place, action) = match run.next() {
                Next::Wait { delay_ms } => {
                    wait(Duration::from_millis(delay_ms), is_wanted);
                    run.waited();
                    continue;
                }
                Next::Off(place) => (place, "off"),
                Next::Status(place) => (place, "status"),
                Next::Done(result) => return Some(result),
            };
            let outcome = ask(&devices[place], &target.name, action, say);
            run.came_to(&outcome);
        }
    }
}

fn ask(device: &FenceDevice, target: &str, action: &str, say: &dyn Fn(String)) -> Outcome {
    let Some(program) = agent::find(&device.agent) else {
        return Outcome::Failed(format!("{} is not installed", device.agent));
    };
    let secret = device.password.as_ref().map(|secret| secret.0.as_slice());
    let input = agent::input(device, target, action);
    let answer = agent::call(&program, &input, secret, Duration::from_millis(device.timeout_ms));
    let came_to = match &answer.outcome {
        Outcome::Exited(code) => format!("exit code {code}"),
        Outcome::TimedOut => "no answer in time, killed".to_owned(),
        Outcome::Failed(why) => why.clone(),
    };
    let words = if answer.words.is_empty() { String::new() } else { format!(" ({})", answer.words) };
    say(format!("{target}: {action} by {}: {came_to}{words}", device.name));
    answer.outcome
}

fn wait(time: Duration, is_wanted: &AtomicBool) {
    let until = Instant::now() + time;
    while is_wanted.load(Ordering::Relaxed) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(LOOK_INTERVAL));
    }
}
