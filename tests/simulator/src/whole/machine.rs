//! A machine: its power, what its kernel holds, and the memory of its orchestrator, which a process begins anew.

use std::collections::{BTreeMap, BTreeSet};

use orchestrator_core::decide::{Awaited, Local, StepKind};
use orchestrator_core::health::Detector;
use orchestrator_core::policy::Policy;
use orchestrator_core::power::Off;
use orchestrator_core::record::Order;
use orchestrator_core::stack::{Permit, Runner};
use orchestrator_core::state::State;
use orchestrator_core::units::{BootId, Epoch, Instant, NodeId, NodeSet, VolumeId};
use orchestrator_core::view::{self, Report};

use crate::world::{Clock, MS};

/// What a leader remembers.
#[derive(Default)]
pub(super) struct Leading {
    pub(super) term: u64,
    pub(super) since: Instant,
    /// When it came, the process that sent it, its number, and what it says.
    pub(super) reports: BTreeMap<NodeId, (Instant, u64, u64, Report)>,
    pub(super) grants: BTreeMap<(VolumeId, NodeId), Instant>,
    /// Replicas that are being asked for a promise: the attempt, and when it is given up.
    pub(super) sealing: BTreeMap<NodeId, (u64, Instant)>,
    pub(super) unsealed: BTreeMap<(VolumeId, NodeId), Instant>,
    /// The record on which a change of the primary was decided that may yet come to be.
    pub(super) closing: Option<Order>,
    pub(super) awaited: Awaited,
    pub(super) known_off: BTreeMap<NodeId, Off>,
    pub(super) handed_over_at: Instant,
}

impl Leading {
    /// Forgets what nodes said before it was agreed on that they are off.
    pub(super) fn note_evidence(&mut self, state: &State) {
        let off = state.power.nodes.iter().filter_map(|(node, one)| Some((*node, one.off.clone()?)));
        let known: BTreeMap<NodeId, Off> = off.collect();
        for (node, off) in &known {
            if self.known_off.get(node) != Some(off) {
                self.reports.remove(node);
            }
        }
        self.known_off = known;
    }
}

/// A report that waits for its answer.
pub(super) struct Outstanding {
    pub(super) sequence: u64,
    pub(super) sent: Instant,
    pub(super) gives_up_at: Instant,
}

/// A stack here.
pub(super) struct Running {
    pub(super) runner: Runner,
    pub(super) permit: Permit,
}

/// The memory of one orchestrator's process.
pub(super) struct Mind {
    /// Each process is another; numbers say nothing of their order.
    pub(super) process: u64,
    pub(super) local: Local,
    /// The highest entry that a leader has told this process to be applied: nobody acts on less.
    pub(super) told: Option<usize>,
    pub(super) busy: BTreeSet<StepKind>,
    pub(super) leasing: bool,
    pub(super) detectors: BTreeMap<NodeId, Detector>,
    pub(super) beat: u64,
    pub(super) sequence: u64,
    pub(super) outstanding: Option<Outstanding>,
    pub(super) last: Option<(Report, Instant)>,
    pub(super) leading: Option<Leading>,
    pub(super) stack: Option<Running>,
    /// Until when it feeds the watchdog that it has armed.
    pub(super) feeds_until: Option<Instant>,
    /// Another turn is on its way already.
    pub(super) wakes: bool,
}

impl Mind {
    pub(super) fn new(
        policy: &Policy,
        me: NodeId,
        process: u64,
        now: Instant,
        leases: BTreeMap<VolumeId, Instant>,
    ) -> Self {
        let others = policy.nodes.iter().map(|node| node.id).filter(|node| *node != me);
        let stack = policy.stacks_of(me).next().map(|rule| Running {
            runner: Runner::new(rule),
            permit: Permit::Freeze("nothing is known yet".to_owned()),
        });
        Self {
            process,
            local: Local { leases, ..Local::default() },
            told: None,
            busy: BTreeSet::new(),
            leasing: false,
            detectors: others.map(|id| (id, Detector::new(policy.detection, 1, now))).collect(),
            beat: 0,
            sequence: 0,
            outstanding: None,
            last: None,
            leading: None,
            stack,
            feeds_until: None,
            wakes: false,
        }
    }

    /// Begins a step; says no if it is under way. A reign begins when all others are done.
    pub(super) fn begin(&mut self, step: StepKind) -> bool {
        let is_under_way = match step {
            StepKind::Open(_) => !self.busy.is_empty(),
            _ => self.busy.contains(&step),
        };
        !is_under_way && self.busy.insert(step)
    }
}

/// What a machine's kernel holds for one step of a stack.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// Something of it runs. An address has a lifetime instead.
    pub(super) runs: bool,
    /// It ended by itself, and nobody has looked since.
    pub(super) crashed: bool,
    /// By the world's time: until when an address is there.
    pub(super) until: u64,
}

/// A watchdog device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Armed {
    pub(super) timeout_ms: u64,
    /// By the world's time.
    pub(super) fires_at: u64,
}

/// A machine.
pub(super) struct Machine {
    pub(super) id: NodeId,
    pub(super) clock: Clock,
    pub(super) on: bool,
    pub(super) boot: u128,
    /// Its two cables for power: with neither it is off.
    pub(super) feeds: [bool; 2],
    /// The boot that the world counts for the replica's machine.
    pub(super) seen_boot: u128,
    pub(super) mind: Option<Mind>,
    pub(super) paused_until: u64,
    /// How far the log is applied; it is on the disk.
    pub(super) applied: usize,
    /// The file of its leases.
    pub(super) lease_file: BTreeMap<VolumeId, Instant>,
    pub(super) steps: Vec<Held>,
    pub(super) watchdog: Option<Armed>,
    /// The last reign in which the replica here served.
    pub(super) served: Option<Epoch>,
}

impl Machine {
    /// Its clock, in the milliseconds of an orchestrator.
    pub(super) fn now(&self, now: u64) -> Instant {
        Instant(self.clock.at(now) / MS)
    }

    /// When that moment of its clock is.
    pub(super) fn when(&self, instant: Instant) -> u64 {
        self.clock.when(instant.0.saturating_mul(MS))
    }

    pub(super) fn runs(&self, now: u64) -> bool {
        self.on && self.mind.is_some() && self.paused_until <= now
    }

    pub(super) fn is_process(&self, process: u64) -> bool {
        self.on && self.mind.as_ref().is_some_and(|mind| mind.process == process)
    }

    /// What it says of itself.
    pub(super) fn said(&self, fences: NodeSet) -> view::Machine {
        let is_fed = self.mind.as_ref().is_some_and(|mind| mind.feeds_until.is_some());
        let watchdog_ms = self.watchdog.filter(|_| is_fed).map(|armed| armed.timeout_ms);
        view::Machine { boot: BootId(self.boot), watchdog_ms, fences }
    }
}
