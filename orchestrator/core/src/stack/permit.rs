//! Whether a stack may run on this node now. Nothing starts before its node serves all its volumes under a lease, and
//! what holds more than a lease can take away waits for more.

use alloc::format;
use alloc::string::String;

use super::Stack;
use crate::decide::{Local, needs_off};
use crate::policy::Policy;
use crate::proof::Resource;
use crate::state::State;
use crate::units::{Epoch, Instant, NodeId};
use crate::view::{ReplicaView, Role};

/// What a stack may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It may run, until then.
    Run {
        /// End of the first lease to end.
        until: Instant,
        /// The highest epoch among its volumes: with another one, proofs begin anew.
        reign: Epoch,
        /// Whether nobody else can hold anything of it, not even what no lease takes away.
        is_sure: bool,
    },
    /// Its node may not serve now, and perhaps soon again: nothing is started, and addresses go at once.
    Freeze(String),
    /// It is to be stopped in order.
    Stop(String),
    /// Somebody else has its volumes, or may have: it is to be gone at once.
    Evict(String),
}

impl Permit {
    /// The permit without what has ended since it was given.
    #[must_use]
    pub fn at(&self, now: Instant) -> Self {
        match self {
            Self::Run { until, .. } if now >= *until => Self::Freeze(String::from("its lease has ended")),
            other => other.clone(),
        }
    }
}

/// What `stack` may do on node `me`.
#[must_use]
pub fn permit(state: &State, policy: &Policy, me: NodeId, local: &Local, stack: &Stack) -> Permit {
    let (mut ends, mut highest, mut all_sure) = (Instant(u64::MAX), Epoch(0), true);
    let mut held = None;
    for id in &stack.volumes {
        let name = policy.volume(*id).map_or_else(|| format!("{id}"), |volume| volume.name.clone());
        let Some(record) = state.records.get(id) else {
            return Permit::Evict(format!("{name} has no record yet"));
        };
        if record.primary != Some(me) {
            let other = record.primary.map_or_else(|| String::from("nobody"), |node| policy.node_name(node));
            return Permit::Evict(format!("{name} is served by {other}"));
        }
        if state.leaving.get(id) == Some(&record.epoch) {
            held = Some(Permit::Stop(format!("{name} is handed over")));
            continue;
        }
        let (serves, is_over) = match local.replicas.get(id) {
            Some(ReplicaView::Running(replica)) => {
                let serves = replica.role == Role::Primary && replica.record.0 == record.epoch;
                (serves && record.opened, replica.role == Role::Secondary)
            }
            Some(ReplicaView::Stopped) => (false, true),
            Some(ReplicaView::Silent(_)) | None => (false, false),
        };
        // A reign that was opened is never continued, and where the old node must be surely off whoever follows would wait
        // for what is left of it here for ever.
        let is_awaited = policy.volume(*id).is_some_and(|volume| needs_off(policy, volume));
        if record.opened && is_over && is_awaited {
            return Permit::Evict(format!("{name} is served here no more"));
        }
        let lease = local.leases.get(id).copied().filter(|until| local.now < *until);
        let lacks = match (serves, lease) {
            (true, Some(until)) => {
                ends = ends.min(until);
                None
            }
            (false, _) => Some(format!("{name} is not served here yet")),
            (true, None) => Some(format!("{name} has no lease")),
        };
        held = held.or(lacks.map(Permit::Freeze));
        highest = highest.max(record.epoch);
        all_sure &= record.proof.suffices_for(Resource::Foreign);
    }
    held.unwrap_or(Permit::Run { until: ends, reign: highest, is_sure: all_sure })
}
