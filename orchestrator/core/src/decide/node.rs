//! What each node does about its own replicas: it follows the record, and serves only with a lease.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::policy::Policy;
use crate::record::Record;
use crate::state::State;
use crate::units::{Epoch, Instant, NodeId, VolumeId};
use crate::view::{Replica, ReplicaView, Role};

/// What a node knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Now.
    pub now: Instant,
    /// Its replicas.
    pub replicas: BTreeMap<VolumeId, ReplicaView>,
    /// Until when it may serve.
    pub leases: BTreeMap<VolumeId, Instant>,
}

/// Something to do about a replica here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The volume.
    pub volume: VolumeId,
    /// What.
    pub kind: StepKind,
    /// Why.
    pub reason: String,
}

/// What to do about a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// It is to begin to serve, in an epoch not below this one.
    Promote(Epoch),
    /// It is to stop serving.
    Demote,
    /// It is to go on without a member that the record does not name any more.
    Shrink(NodeId),
}

/// What node `me` does now.
#[must_use]
pub fn node(state: &State, policy: &Policy, me: NodeId, local: &Local) -> Vec<Step> {
    let mut steps = Vec::new();
    for (volume, view) in &local.replicas {
        let (ReplicaView::Running(replica), Some(record)) = (view, state.records.get(volume)) else {
            continue;
        };
        let has_lease = local.leases.get(volume).is_some_and(|until| local.now < *until);
        let mut step = |kind, reason| steps.push(Step { volume: *volume, kind, reason });
        match replica.role {
            Role::Secondary => {
                let is_mine = record.primary == Some(me) && !record.opened;
                if is_mine && has_lease {
                    step(
                        StepKind::Promote(record.epoch),
                        format!("the record names it, epoch {}", record.epoch),
                    );
                }
            }
            // On its way up it may not arrive; on its way down, being asked again does no harm.
            Role::Primary | Role::Changing if record.primary != Some(me) => {
                let text = match record.primary {
                    Some(other) => format!("the record names {}", policy.node_name(other)),
                    None => String::from("the record names nobody"),
                };
                step(StepKind::Demote, text);
            }
            Role::Primary | Role::Changing if !has_lease => {
                step(StepKind::Demote, String::from("its lease has ended: somebody else may serve"));
            }
            Role::Changing => {}
            Role::Primary => {
                for (kind, reason) in leave_behind(policy, record, me, replica) {
                    step(kind, reason);
                }
            }
        }
    }
    steps
}

/// Members that the primary still waits for and the record does not name.
fn leave_behind<'a>(
    policy: &'a Policy,
    record: &'a Record,
    me: NodeId,
    replica: &'a Replica,
) -> impl Iterator<Item = (StepKind, String)> + 'a {
    let gone = replica.in_sync.difference(record.in_sync).difference(replica.following).without(me);
    gone.iter().map(|node| {
        (
            StepKind::Shrink(node),
            format!("the record is without {} since it does not follow", policy.node_name(node)),
        )
    })
}
