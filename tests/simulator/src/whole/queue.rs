//! What is on its way to a process, and when it is there.

use std::collections::BTreeMap;

use orchestrator_core::decide::{Seal, Step, StepKind};
use orchestrator_core::stack::{Order, Outcome};
use orchestrator_core::units::{Epoch, Instant, NodeId};
use orchestrator_core::view::{ReplicaView, Report};
use replicator_core::units::AdminId;

/// A report on its way to a leader, or waiting there for a majority to confirm it.
pub(super) struct Letter {
    pub(super) from: usize,
    pub(super) process: u64,
    pub(super) sequence: u64,
    pub(super) report: Report,
    /// Whether a lease is due.
    pub(super) asks: bool,
    pub(super) confirmed: bool,
    /// Until when a confirmation is waited for, by the world's time.
    pub(super) until: u64,
}

/// What a leader answers, or that it is none.
pub(super) struct Answer {
    pub(super) sequence: u64,
    pub(super) applied: Option<usize>,
    pub(super) granted: bool,
}

/// A promise that is asked for.
#[derive(Clone, Copy)]
pub(super) struct AskSeal {
    pub(super) seal: Seal,
    pub(super) leader: usize,
    pub(super) leader_process: u64,
    pub(super) attempt: u64,
}

/// Something that a replicator was asked for, and what is done when it answers.
pub(super) struct Waiting {
    pub(super) id: AdminId,
    /// The process of the replicator that was asked.
    pub(super) starts: u64,
    pub(super) until: u64,
    pub(super) purpose: Purpose,
}

#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Step(StepKind),
    Seal(AskSeal),
    Lease,
}

/// Something that happens to the process of an orchestrator.
pub(super) enum What {
    Turn,
    Wake,
    Heartbeat {
        from: NodeId,
        process: u64,
        beat: u64,
    },
    Letter(Box<Letter>),
    Answer(Answer),
    /// It asks its replicator what it does, for the first time or since then.
    Observe {
        since: Option<u64>,
    },
    Observed(Box<ReplicaView>),
    /// A step is at the replicator.
    Act {
        step: Box<Step>,
        lease: Option<Instant>,
    },
    Lease {
        epoch: Epoch,
        end: Instant,
    },
    Hear(Box<Waiting>),
    StepDone {
        kind: StepKind,
        view: Box<ReplicaView>,
    },
    Seal(AskSeal),
    Sealed {
        seal: Seal,
        attempt: u64,
        report: Option<Box<Report>>,
    },
    /// An order about a step of a stack is carried out.
    Done {
        order: Order,
        outcome: Outcome,
    },
    /// A device is asked the next thing.
    Fence {
        number: u64,
    },
    Feed,
}

/// All of it, in order of time, and of when it was put there.
#[derive(Default)]
pub(super) struct Queue {
    items: BTreeMap<(u64, u64), (usize, u64, What)>,
    count: u64,
}

impl Queue {
    pub(super) fn put(&mut self, at: u64, machine: usize, process: u64, what: What) {
        self.count += 1;
        self.items.insert((at, self.count), (machine, process, what));
    }

    /// The next thing that is due: machine, process, and what.
    pub(super) fn due(&mut self, now: u64) -> Option<(usize, u64, What)> {
        let first = self.items.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    pub(super) fn next(&self) -> Option<u64> {
        self.items.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes away what was on its way to a process that has ended, and gives back orders about steps.
    pub(super) fn end(&mut self, machine: usize, process: u64) -> Vec<Order> {
        let gone =
            self.items.extract_if(.., |_, (of, process_of, _)| (*of, *process_of) == (machine, process));
        let orders = gone.filter_map(|(_, (_, _, what))| match what {
            What::Done { order, .. } => Some(order),
            _ => None,
        });
        orders.collect()
    }
}
