//! Where volumes should be for what stands on them: stacks that failed too often, that belong together or apart, and that
//! are better elsewhere. Safety is not decided here; this is preference only.

use alloc::format;
use alloc::string::String;

use super::candidate::fit;
use crate::policy::{Policy, Volume};
use crate::record::Record;
use crate::stack::Stack;
use crate::state::State;
use crate::units::NodeId;
use crate::view::{Health, View};

/// A reign that is to end so that another can begin.
pub(super) struct Move {
    pub(super) to: NodeId,
    pub(super) reason: String,
}

/// How good a node is for the stacks on a volume: the higher the better, one by one in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Liking {
    /// None of them is given up there.
    works: bool,
    /// They run where the others do that they run beside.
    together: bool,
    /// None that they do not run beside is there.
    apart: bool,
    /// Where it stands among the preferred nodes; the first is the highest.
    preferred: usize,
}

/// How good `node` is for what stands on `volume`.
pub(super) fn liking(state: &State, policy: &Policy, view: &View, volume: &Volume, node: NodeId) -> Liking {
    let stacks = || policy.stacks_on(volume.id);
    let place = |name: &String| policy.stacks.iter().find(|stack| stack.name == *name)?.place(state);
    let preference = |stack: &Stack| {
        let place = stack.prefers.iter().position(|preferred| *preferred == node);
        place.map_or(0, |place| stack.prefers.len() - place)
    };
    Liking {
        works: stacks().all(|stack| !view.stack(&stack.name, node).is_some_and(|view| view.given_up)),
        together: stacks().all(|stack| {
            let anchor = stack.volumes.first().filter(|first| **first != volume.id);
            let anchor = anchor.and_then(|first| state.records.get(first)?.primary);
            anchor.is_none_or(|at| at == node)
                && stack.with.iter().all(|other| place(other).is_none_or(|at| at == node))
        }),
        apart: stacks().all(|stack| stack.apart.iter().all(|other| place(other) != Some(node))),
        preferred: stacks().map(preference).max().unwrap_or(0),
    }
}

/// A node that is better for what stands on `volume` than its primary, and worth a move.
pub(super) fn better_place(
    state: &State,
    policy: &Policy,
    view: &View,
    volume: &Volume,
    record: &Record,
    primary: NodeId,
) -> Option<Move> {
    policy.stacks_on(volume.id).next()?;
    let here = worth(policy, volume, liking(state, policy, view, volume, primary));
    let is_steady = |node: &NodeId| view.nodes.get(node).is_some_and(|node| node.health == Health::Alive);
    let others = volume.replicas.iter().copied().filter(|node| *node != primary).filter(is_steady);
    let fit =
        others.filter(|node| fit(state, view, volume, record, *node).is_ok_and(|replica| replica.proven));
    let liked = fit.map(|node| (worth(policy, volume, liking(state, policy, view, volume, node)), node));
    // Of equally good ones the first in the configuration.
    let (there, to) = liked.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
    if there <= here {
        return None;
    }
    let names = policy.stacks_on(volume.id).map(|stack| stack.name.as_str());
    let names = names.reduce(|first, _| first).unwrap_or_default();
    let reason = if there.works != here.works {
        format!("{names} fails on {}", policy.node_name(primary))
    } else if there.together != here.together {
        format!("{names} belongs beside what is there")
    } else if there.apart != here.apart {
        format!("{names} does not belong beside what is on {}", policy.node_name(primary))
    } else {
        format!("{names} is better there")
    };
    Some(Move { to, reason })
}

/// What of a liking is worth a move: preferences are only to stacks that do not stay where they are.
fn worth(policy: &Policy, volume: &Volume, liking: Liking) -> Liking {
    let stays = policy.stacks_on(volume.id).all(|stack| stack.stays);
    Liking { preferred: if stays { 0 } else { liking.preferred }, ..liking }
}
