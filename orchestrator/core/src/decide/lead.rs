//! Who is to lead: best a node that is primary of nothing. If one machine dies that is both, an election and the old lease
//! come one after the other; if it is not, the leader has long counted the lease when it ends.

use crate::policy::Policy;
use crate::state::State;
use crate::units::NodeId;
use crate::view::{Health, View};

/// Who is to follow `me` as leader, if that is better: somebody steady who is primary of nothing, a witness before others.
/// Not while anything about a volume is being changed, which another leader would begin anew.
#[must_use]
pub fn successor(state: &State, policy: &Policy, view: &View, me: NodeId) -> Option<NodeId> {
    let is_primary = |node: NodeId| state.records.values().any(|record| record.primary == Some(node));
    let is_settled = state.records.values().all(|record| record.opened && record.primary.is_some());
    if !is_primary(me) || !is_settled {
        return None;
    }
    let is_steady = |node: NodeId| {
        view.nodes.get(&node).is_some_and(|node| node.health == Health::Alive && node.report.is_some())
    };
    let fit = policy.nodes.iter().map(|node| node.id).filter(|node| is_steady(*node) && !is_primary(*node));
    let replicas =
        |node: &NodeId| policy.volumes.iter().filter(|volume| volume.replicas.contains(node)).count();
    fit.min_by_key(replicas)
}
