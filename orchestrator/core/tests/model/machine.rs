//! One machine: a replica that keeps the replicator's rules in the small, and an orchestrator that carries out decisions
//! as the shell does.

use std::collections::{BTreeMap, BTreeSet};

use orchestrator_core::decide::{Awaited, StepKind};
use orchestrator_core::health::Detector;
use orchestrator_core::power::Off;
use orchestrator_core::record::{Order, Record};
use orchestrator_core::state::State;
use orchestrator_core::units::{BootId, Epoch, Instant, NodeId, NodeSet, Position, VolumeId};
use orchestrator_core::view::{self, Copy, Replica, ReplicaView, Report, Request, Role};

pub(crate) const VOLUME: VolumeId = VolumeId(7);
/// Writes of a run at most.
pub(crate) const WRITES_MAX: usize = 16_384;

/// Which writes a log has.
#[derive(Clone)]
pub(crate) struct Writes(Vec<u64>);

impl Writes {
    pub(crate) fn new() -> Self {
        Self(vec![0; WRITES_MAX / 64])
    }

    pub(crate) fn insert(&mut self, number: usize) {
        self.0[number / 64] |= 1 << (number % 64);
    }

    /// The first write of `other` that is not here.
    pub(crate) fn first_missing(&self, other: &Self) -> Option<usize> {
        let words = self.0.iter().zip(&other.0).enumerate();
        let mut missing = words.map(|(place, (mine, theirs))| (place, theirs & !mine));
        missing.find(|(_, bits)| *bits != 0).map(|(place, bits)| place * 64 + bits.trailing_zeros() as usize)
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// A replica.
pub(crate) struct Rep {
    pub(crate) up: bool,
    pub(crate) role: Role,
    /// The epoch it writes in, if it is primary.
    pub(crate) epoch: u64,
    /// The highest epoch promised.
    pub(crate) promised: u64,
    pub(crate) writes: Writes,
    /// The set of the record that it was told, and those that it counts beside it.
    pub(crate) in_sync: NodeSet,
    pub(crate) pending: NodeSet,
    pub(crate) record: (Epoch, u64),
    /// Until when it answers clients, on its machine's clock.
    pub(crate) lease: Option<Instant>,
    pub(crate) length: u64,
}

impl Rep {
    /// Its reign ends, and with it the lease and what it counted.
    pub(crate) fn step_down(&mut self) {
        (self.role, self.pending, self.lease) = (Role::Secondary, NodeSet::default(), None);
    }
}

/// A step under way.
pub(crate) struct Under {
    pub(crate) kind: StepKind,
    pub(crate) record: Record,
    pub(crate) done_at: u64,
}

/// A report on its way.
pub(crate) struct Outstanding {
    pub(crate) sequence: u64,
    pub(crate) sent: Instant,
    pub(crate) gives_up_at: u64,
}

/// What a leader remembers.
#[derive(Default)]
pub(crate) struct Leading {
    pub(crate) term: u64,
    pub(crate) since: Instant,
    pub(crate) reports: BTreeMap<NodeId, (u64, u64, Report)>,
    pub(crate) grants: BTreeMap<(VolumeId, NodeId), Instant>,
    /// Replicas that did not give their promise, until when.
    pub(crate) unsealed: BTreeMap<(VolumeId, NodeId), Instant>,
    /// The record on which a change of the primary was decided that may yet come to be.
    pub(crate) closing: Option<Order>,
    pub(crate) awaited: Awaited,
    /// Evidence that this leader has taken note of: what came before it says nothing against it.
    pub(crate) known_off: BTreeMap<NodeId, Off>,
}

impl Leading {
    /// Forgets what nodes said before it was agreed on that they are off.
    pub(crate) fn note_evidence(&mut self, state: &State) {
        for (node, one) in &state.power.nodes {
            if self.known_off.get(node) != one.off.as_ref() {
                match &one.off {
                    Some(off) => drop(self.known_off.insert(*node, off.clone())),
                    None => drop(self.known_off.remove(node)),
                }
                if one.off.is_some() {
                    self.reports.remove(node);
                }
            }
        }
    }
}

/// A machine.
pub(crate) struct Machine {
    pub(crate) id: NodeId,
    /// Its clock: an offset and a rate in parts per million.
    pub(crate) offset: u64,
    pub(crate) rate_ppm: u64,
    pub(crate) up: bool,
    pub(crate) boot: u128,
    pub(crate) orchestrator_up: bool,
    /// Each start of the orchestrator is another process.
    pub(crate) process: u64,
    pub(crate) applied: usize,
    pub(crate) told: Option<usize>,
    pub(crate) leases: BTreeMap<VolumeId, Instant>,
    pub(crate) requests: BTreeMap<VolumeId, Request>,
    pub(crate) unfollowed: BTreeMap<(VolumeId, NodeId), Instant>,
    pub(crate) detectors: BTreeMap<NodeId, Detector>,
    pub(crate) beat: u64,
    pub(crate) sequence: u64,
    pub(crate) outstanding: Option<Outstanding>,
    pub(crate) under: Option<Under>,
    pub(crate) leading: Option<Leading>,
    pub(crate) replica: Option<Rep>,
}

impl Machine {
    /// Its clock at a moment of true time.
    pub(crate) fn clock(&self, now: u64) -> Instant {
        Instant(self.offset + now * self.rate_ppm / 1_000_000)
    }

    /// Ends the orchestrator's process: what it had in memory is gone, the file of its leases is not.
    pub(crate) fn stop_orchestrator(&mut self) {
        self.orchestrator_up = false;
        self.told = None;
        self.outstanding = None;
        self.under = None;
        self.leading = None;
        self.requests.clear();
        self.unfollowed.clear();
    }

    pub(crate) fn start_orchestrator(&mut self, now: u64) {
        self.orchestrator_up = true;
        self.process += 1;
        self.sequence = 0;
        let at = self.clock(now);
        for detector in self.detectors.values_mut() {
            *detector = Detector::new(orchestrator_core::policy::Detection::default(), 1, at);
        }
    }

    /// What it says of itself beside its replica: every machine can switch off the others.
    pub(crate) fn said(&self) -> view::Machine {
        let fences = (0..3).map(NodeId).filter(|node| *node != self.id).collect();
        view::Machine { boot: BootId(self.boot), watchdog_ms: None, fences }
    }

    /// The machine loses its power. A boot ends all leases.
    pub(crate) fn die(&mut self) {
        self.up = false;
        self.stop_orchestrator();
        self.stop_replica();
        self.leases.clear();
    }

    pub(crate) fn stop_replica(&mut self) {
        if let Some(replica) = &mut self.replica {
            replica.up = false;
            replica.step_down();
        }
        self.under = None;
    }

    /// What it says of its replica.
    pub(crate) fn views(&self, following: NodeSet) -> BTreeMap<VolumeId, ReplicaView> {
        let view = self.replica.as_ref().map(|replica| {
            if !replica.up {
                return (VOLUME, ReplicaView::Stopped);
            }
            let at = Position { epoch: replica.record.0, sequence: replica.length };
            let view = Replica {
                role: replica.role,
                copy: Copy::UpToDate,
                proven: true,
                promised: Epoch(replica.promised),
                head: at,
                committed: at,
                record: replica.record,
                in_sync: replica.in_sync,
                following,
                pending: replica.pending,
            };
            (VOLUME, ReplicaView::Running(view))
        });
        view.into_iter().collect()
    }

    /// The leases that it holds or asks for.
    pub(crate) fn held(&self, now: Instant, due: bool) -> BTreeSet<VolumeId> {
        let held = self.leases.iter().filter(|(_, until)| now < **until).map(|(volume, _)| *volume);
        held.chain(due.then_some(VOLUME)).collect()
    }
}
