//! What one seed draws for a run of the whole stack beside the plan of replication: who votes, what runs above the volume,
//! how nodes are switched off, and what strikes.

use std::collections::BTreeSet;

use orchestrator_core::fence::{Mode, Rules};
use orchestrator_core::lease::Terms;
use orchestrator_core::policy::{Detection, Node, Policy, Volume};
use orchestrator_core::proof::Resource;
use orchestrator_core::stack::{Stack, StepRule};
use orchestrator_core::units::{NodeId, VolumeId};

use crate::plan::{Fault, Plan};
use crate::random::Random;
use crate::world::Clock;

/// The one volume.
pub const VOLUME: VolumeId = VolumeId(0x1234_5678);
/// How long a lease lasts on its holder's clock.
pub const LEASE_MS: u64 = 1000;
/// Clocks differ by a fiftieth at most.
pub const DRIFT_PPM: u64 = 20_000;

/// What may strike, beside the faults of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strike {
    /// The process of an orchestrator dies.
    KillOrchestrator,
    /// The process of a replicator dies, and its machine lives.
    KillReplicator,
    /// An orchestrator stands still for a while, and nothing else of its machine.
    PauseOrchestrator,
    /// A machine stands still.
    PauseMachine,
    /// A machine has no power.
    PowerOff,
    /// A machine is cut off from all others.
    Isolate,
    /// Orchestrators do not hear each other, one way or both.
    CutTalk,
    /// Replicas do not hear each other; orchestrators may.
    CutData,
    /// An operator wants the volume elsewhere.
    Want,
    /// An operator puts a node into standby, or takes it out.
    Standby,
    /// Something that a stack runs ends by itself.
    Crash,
}

impl Strike {
    pub const ALL: [Self; 11] = [
        Self::KillOrchestrator,
        Self::KillReplicator,
        Self::PauseOrchestrator,
        Self::PauseMachine,
        Self::PowerOff,
        Self::Isolate,
        Self::CutTalk,
        Self::CutData,
        Self::Want,
        Self::Standby,
        Self::Crash,
    ];

    /// What is counted when it has struck.
    pub fn mark(self) -> &'static str {
        match self {
            Self::KillOrchestrator => "orchestrator killed",
            Self::KillReplicator => "replicator killed",
            Self::PauseOrchestrator => "orchestrator paused",
            Self::PauseMachine => "machine paused",
            Self::PowerOff => "machine without power",
            Self::Isolate => "machine cut off",
            Self::CutTalk => "orchestrators cut",
            Self::CutData => "replicas cut",
            Self::Want => "volume wanted elsewhere",
            Self::Standby => "standby changed",
            Self::Crash => "step crashed",
        }
    }
}

/// What a seed draws.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Machines with an orchestrator; the last one has no replica if there are more than nodes.
    pub machines: usize,
    /// The clock of the witness.
    pub witness_clock: Clock,
    /// Orchestrators have cables of their own.
    pub own_cables: bool,
    pub has_stack: bool,
    /// The stack has a step that nothing but the end of a machine takes away.
    pub has_foreign: bool,
    pub mode: Mode,
    /// Machines can be switched off by devices.
    pub has_devices: bool,
    pub watchdog_ms: Option<u64>,
    /// How long faults go on.
    pub faulty_ms: u64,
    /// Between two strikes, at most.
    pub strike_every_ms: u64,
    pub strikes: BTreeSet<Strike>,
    /// In how many of a hundred tenths of a second what is down comes back.
    pub return_percent: u64,
    /// Between two requests of clients, at most.
    pub client_every_ms: u64,
}

fn pick<'a, T>(random: &mut Random, from: &'a [T]) -> &'a T {
    &from[random.index(from.len())]
}

impl Draw {
    fn new(seed: u64, nodes: usize) -> Self {
        let mut random = Random::new(seed ^ 0x0077_401e);
        let has_stack = random.percent(85);
        let has_foreign = has_stack && random.percent(45);
        let (mode, has_devices) = match random.below(10) {
            0..=2 => (Mode::Always, true),
            3..=6 => (Mode::WhenNeeded, true),
            _ => (Mode::WhenNeeded, false),
        };
        let is_watched = random.percent(if has_devices { 25 } else { 50 });
        let drift = i64::try_from(random.below(41)).expect("small") - 20;
        let witness_clock = Clock { ahead: random.below(1 << 50), drift_permille: drift };
        let strikes = Strike::ALL.into_iter().filter(|_| random.percent(60)).collect();
        Self {
            // An even number of votes is no better than one less.
            machines: nodes + usize::from(nodes.is_multiple_of(2)),
            witness_clock,
            own_cables: random.percent(50),
            has_stack,
            has_foreign,
            mode,
            has_devices,
            watchdog_ms: is_watched.then_some(2000),
            faulty_ms: *pick(&mut random, &[6000, 12_000, 12_000, 25_000]),
            strike_every_ms: *pick(&mut random, &[300, 1000, 1000, 3000, 8000]),
            strikes,
            return_percent: *pick(&mut random, &[1, 3, 10, 30]),
            client_every_ms: *pick(&mut random, &[4, 20, 60]),
        }
    }

    /// The plan of a run of the whole stack.
    pub fn plan(seed: u64) -> Plan {
        let mut plan = Plan::draw(seed);
        plan.setup.managed = true;
        plan.chances.retain(|fault, _| !fault.is_operators() && !is_unlawful(*fault));
        for chance in plan.chances.values_mut() {
            // Such a run has many more steps.
            *chance = (*chance / 8).max(1);
        }
        plan.whole = Some(Self::new(seed, plan.setup.nodes));
        plan
    }

    /// What the cluster is configured to be.
    pub fn policy(&self, nodes: usize) -> Policy {
        let ids = |count: usize| (0..count).map(node_id);
        let drift_ppm = DRIFT_PPM;
        let fenceable = if self.has_devices { ids(nodes).collect() } else { Default::default() };
        let surely_off = if self.has_foreign { BTreeSet::from([VOLUME]) } else { BTreeSet::new() };
        Policy {
            nodes: ids(self.machines).map(|id| Node { id, name: id.to_string() }).collect(),
            volumes: vec![Volume { id: VOLUME, name: "r0".to_owned(), replicas: ids(nodes).collect() }],
            lease: Terms { duration_ms: LEASE_MS, drift_ppm },
            detection: Detection { quarantine_at_most_ms: 4000, ..Detection::default() },
            unproven_grace_ms: 3000,
            member_patience_ms: 1000,
            fence: Rules { mode: self.mode, stop_patience_ms: 5000, fenceable, surely_off },
            stacks: self.has_stack.then(|| self.stack()).into_iter().collect(),
        }
    }

    /// A service on the volume, perhaps something that nothing takes away, and an address.
    fn stack(&self) -> Stack {
        let rule = |name: &str, resource| StepRule {
            name: name.to_owned(),
            resource,
            start_timeout_ms: 1500,
            stop_timeout_ms: 1000,
            monitor_interval_ms: Some(400),
            monitor_timeout_ms: 500,
        };
        let foreign = self.has_foreign.then(|| rule("licence", Resource::Foreign));
        let steps = [rule("service", Resource::VolumeService)].into_iter().chain(foreign);
        Stack {
            name: "web".to_owned(),
            volumes: vec![VOLUME],
            steps: steps.chain([rule("address", Resource::Address)]).collect(),
            prefers: Vec::new(),
            stays: true,
            with: Vec::new(),
            apart: Vec::new(),
            failures_max: 4,
            forget_after_ms: 8000,
        }
    }
}

/// A clock that jumps is beyond what leases are made for, unless its machine slept meanwhile; that it does here.
fn is_unlawful(fault: Fault) -> bool {
    matches!(fault, Fault::ClockJump)
}

pub fn node_id(machine: usize) -> NodeId {
    NodeId(u8::try_from(machine).expect("few"))
}
