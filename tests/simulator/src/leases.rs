//! Checks what leases are for: nobody answers a client after the end of its lease, and nobody in a reign that is over
//! once a later one has answered.

use replicator_core::event::AdminAction;
use replicator_core::units::{Epoch, Instant};

use crate::rule::broken;

/// Answers of one moment are told apart by single nanoseconds.
const MOMENT_NS: u64 = 10_000;

/// What each node was told of leases, and who has answered.
#[derive(Debug)]
pub struct Leases {
    managed: bool,
    /// The reign of each node and the latest end of a lease that it was told for it.
    ends: Vec<(Epoch, Option<Instant>)>,
    /// An operator answers for whoever was promoted by force, and for nothing after that.
    is_void: bool,
    newest: Epoch,
}

impl Leases {
    pub fn new(nodes: usize, managed: bool) -> Self {
        Self { managed, ends: vec![(Epoch(0), None); nodes], is_void: false, newest: Epoch(0) }
    }

    /// A node is told something.
    pub fn told(&mut self, node: usize, action: AdminAction) {
        let (epoch, end) = match action {
            AdminAction::OpenEpoch(reign) => (reign.epoch, reign.lease_end),
            // For another reign than the one that has begun it is none.
            AdminAction::Lease { epoch, end } if epoch == self.ends[node].0 => (epoch, Some(end)),
            AdminAction::Promote { force: true, .. } => return self.is_void = true,
            _ => return,
        };
        let known = &mut self.ends[node];
        if epoch > known.0 {
            *known = (epoch, end);
        } else if epoch == known.0 {
            known.1 = known.1.max(end);
        }
    }

    /// Whether a node may answer clients in the reign of `epoch`.
    pub fn may_answer(&self, node: usize, now: Instant, epoch: Epoch) -> bool {
        let (of, end) = self.ends[node];
        of == epoch && end.is_some_and(|end| now < end)
    }

    /// A node has answered a client, in the reign of `epoch`.
    pub fn answered(&mut self, node: usize, now: Instant, epoch: Epoch) {
        if !self.managed || self.is_void {
            return;
        }
        let (of, end) = self.ends[node];
        if of != epoch || end.is_none_or(|end| now.0 >= end.0 + MOMENT_NS) {
            broken(
                "answered-without-lease",
                format!("node {node} answers in epoch {epoch} at {now:?}, its lease: epoch {of}, {end:?}"),
            );
        }
        if epoch < self.newest {
            broken(
                "answered-in-the-past",
                format!("node {node} answers in epoch {epoch}, after somebody did in epoch {}", self.newest),
            );
        }
        self.newest = epoch;
    }
}
