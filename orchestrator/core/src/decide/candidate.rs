//! Who may be promoted: every replica is a candidate or has a reason why not, in words for people.

use alloc::format;
use alloc::string::String;

use super::stack;
use crate::policy::{Policy, Volume};
use crate::record::Record;
use crate::state::State;
use crate::units::NodeId;
use crate::view::{Copy, Health, Replica, ReplicaView, View};

/// Why a replica is not promoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It does not hold every acknowledged write: only an operator's word can promote it.
    NotMember,
    /// It cannot now, and may later.
    Unable(String),
    /// An operator does not want it.
    Unwanted(&'static str),
}

impl Unfit {
    pub(super) fn text(&self) -> String {
        match self {
            Self::NotMember => String::from("is not in the in-sync set: it may lack acknowledged writes"),
            Self::Unable(text) => text.clone(),
            Self::Unwanted(text) => String::from(*text),
        }
    }
}

/// The replica on `node` if it may be promoted.
pub(super) fn fit<'v>(
    state: &State,
    view: &'v View,
    volume: &Volume,
    record: &Record,
    node: NodeId,
) -> Result<&'v Replica, Unfit> {
    let replica = able(view, volume, record, node)?;
    if state.standby.contains(&node) {
        return Err(Unfit::Unwanted("is in standby"));
    }
    if state.paused.nodes.contains(&node) {
        return Err(Unfit::Unwanted("is paused"));
    }
    Ok(replica)
}

/// A replica that operators do not want promoted, and that has what `than`, which is not proven, may have lost.
pub(super) fn spared<'v>(
    state: &State,
    view: &'v View,
    volume: &Volume,
    record: &Record,
    than: &Replica,
) -> Option<(NodeId, &'v Replica)> {
    let is_unwanted =
        |node: &NodeId| matches!(fit(state, view, volume, record, *node), Err(Unfit::Unwanted(_)));
    let unwanted = volume.replicas.iter().copied().filter(is_unwanted);
    let able = unwanted.filter_map(|node| Some((node, able(view, volume, record, node).ok()?)));
    let better = able.filter(|(_, replica)| !than.proven && (replica.proven || replica.head > than.head));
    better.max_by_key(|(_, replica)| (replica.proven, replica.head))
}

/// The replica on `node` if it could be promoted, whether operators want that or not.
fn able<'v>(view: &'v View, volume: &Volume, record: &Record, node: NodeId) -> Result<&'v Replica, Unfit> {
    if !record.in_sync.contains(node) {
        return Err(Unfit::NotMember);
    }
    let unable = |text: &str| Err(Unfit::Unable(String::from(text)));
    let replica = match (view.nodes.get(&node).map(|node| node.health), view.replica_view(volume.id, node)) {
        (None | Some(Health::Suspected { .. }), _) => return unable("is not heard"),
        (Some(_), None) => return unable("has not reported yet"),
        (Some(_), Some(ReplicaView::Stopped)) => return unable("does not run its replicator"),
        (Some(_), Some(ReplicaView::Silent(reason))) => {
            return Err(Unfit::Unable(format!("has a replicator that does not answer: {reason}")));
        }
        (Some(_), Some(ReplicaView::Running(replica))) => replica,
    };
    if let Copy::Unusable(state) = &replica.copy {
        return Err(Unfit::Unable(format!("has a copy that is {state}")));
    }
    if view.unsealed.contains(&(volume.id, node)) {
        return unable("was asked for its promise and did not give it");
    }
    if knows_itself_out(replica, record, node) {
        return unable("knows itself that it is out of the in-sync set");
    }
    Ok(replica)
}

/// Whether a replica was told by somebody who wrote without it. Nobody acts on an older record than a replica knows; but
/// what it knows may be older itself: one that is taken in is counted before, and may not live to hear of it.
pub(super) fn knows_itself_out(replica: &Replica, record: &Record, node: NodeId) -> bool {
    replica.record >= record.order() && !replica.in_sync.contains(node)
}

/// The best of those that may be promoted: proven first, then whoever does not flap, then the one that operators want,
/// then where the stacks on the volume are best, then the longest log, then the configured order. In protocol C every
/// proven member is right; the rest is preference. Of those that are not proven, the one with the longest log has what
/// the others may have lost, and that comes before all preference. A flapping member is better than none.
pub(super) fn best<'v>(
    state: &State,
    policy: &Policy,
    view: &'v View,
    volume: &Volume,
    record: &Record,
) -> Option<(NodeId, &'v Replica)> {
    let fit = volume.replicas.iter().enumerate().filter_map(|(place, node)| {
        fit(state, view, volume, record, *node).ok().map(|replica| (place, *node, replica))
    });
    let wanted = state.wanted.get(&volume.id);
    let best = fit.max_by_key(|(place, node, replica)| {
        let is_steady = view.nodes.get(node).is_some_and(|node| node.health == Health::Alive);
        let liking = stack::liking(state, policy, view, volume, *node);
        let is_wanted = Some(node) == wanted;
        let survived = (!replica.proven).then_some(replica.head);
        (replica.proven, survived, is_steady, is_wanted, liking, replica.head, core::cmp::Reverse(*place))
    });
    best.map(|(_, node, replica)| (node, replica))
}

/// Why each of the others is not promoted.
pub(super) fn reasons(
    state: &State,
    view: &View,
    policy: &Policy,
    volume: &Volume,
    record: &Record,
    except: Option<NodeId>,
) -> String {
    let mut text = String::new();
    for node in volume.replicas.iter().filter(|node| Some(**node) != except) {
        if let Err(unfit) = fit(state, view, volume, record, *node) {
            let comma = if text.is_empty() { "" } else { "; " };
            text = format!("{text}{comma}{} {}", policy.node_name(*node), unfit.text());
        }
    }
    if text.is_empty() { String::from("there is no other replica") } else { text }
}
