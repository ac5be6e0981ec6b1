//! Which step of a rotation of the cluster's keys is next, by what every node says of its own: pure. A key is used when every
//! node accepts it, and dropped when no node uses it any more; so between any two nodes there is always one that both know,
//! and a rotation that was cut off anywhere goes on from where the nodes stand.

use std::collections::{BTreeMap, BTreeSet};

use orchestrator_core::units::NodeId;
use replicator::secrets::{KeyId, Secrets};
use serde::{Deserialize, Serialize};

/// The keys of one node, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    own: u64,
    next: Option<u64>,
    old: Option<u64>,
}

impl Held {
    pub(crate) fn of(secrets: &Secrets) -> Self {
        let name = |secret| KeyId::of(secret).0;
        Self {
            own: name(&secrets.own),
            next: secrets.next.as_ref().map(name),
            old: secrets.old.as_ref().map(name),
        }
    }

    fn is_at_rest(self) -> bool {
        self.next.is_none() && self.old.is_none()
    }
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing is under way: every node has the same key and no other.
    Rest,
    /// A new key is to be accepted by these, who do not yet; by all if it is to be drawn first.
    Accept(BTreeSet<NodeId>),
    /// All accept this one: these are to use it.
    Use(KeyId, BTreeSet<NodeId>),
    /// All use it: these are to drop the one before.
    Drop(BTreeSet<NodeId>),
    /// The keys of these are of no rotation.
    Apart(BTreeSet<NodeId>),
}

/// The next step, for the node that leads it. Everybody's keys are in `held`, and its own.
pub(crate) fn next(held: &BTreeMap<NodeId, Held>, me: NodeId) -> Next {
    let nodes = |is_one: &dyn Fn(&Held) -> bool| -> BTreeSet<NodeId> {
        held.iter().filter(|(_, held)| is_one(held)).map(|(node, _)| *node).collect()
    };
    let used: BTreeSet<u64> = held.values().map(|held| held.own).collect();
    let mine = held[&me];
    if used.len() > 1 {
        // Whoever is not there yet accepts it, or the first would not have begun.
        let Some(new) = used.iter().find(|key| is_used_or_accepted(held, **key)) else {
            return Next::Apart(nodes(&|held| held.own != mine.own));
        };
        return Next::Use(KeyId(*new), nodes(&|held| held.own != *new));
    }
    if held.values().all(|held| held.is_at_rest()) {
        return Next::Rest;
    }
    if held.values().all(|held| held.next.is_none()) {
        return Next::Drop(nodes(&|held| held.old.is_some()));
    }
    match mine.next {
        // It is nowhere in use: this node draws another one.
        None => Next::Accept(held.keys().copied().collect()),
        Some(new) if held.values().all(|held| held.next == Some(new)) => {
            Next::Use(KeyId(new), held.keys().copied().collect())
        }
        Some(new) => Next::Accept(nodes(&|held| held.next != Some(new))),
    }
}

/// Whether every node uses this key, or accepts it as the next.
fn is_used_or_accepted(held: &BTreeMap<NodeId, Held>, key: u64) -> bool {
    held.values().all(|held| held.own == key || held.next == Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(0);
    const O: u64 = 10;
    const N: u64 = 20;

    /// What one node does when it is told to.
    fn apply(held: &mut Held, step: &Next, drawn: u64) {
        match step {
            Next::Accept(_) => held.next = Some(drawn),
            Next::Use(key, _) => {
                assert_eq!(held.next, Some(key.0), "it uses what it did not accept");
                *held = Held { own: key.0, next: None, old: Some(held.own) };
            }
            Next::Drop(_) => held.old = None,
            Next::Rest | Next::Apart(_) => panic!("that is no step"),
        }
    }

    fn who(step: &Next) -> BTreeSet<NodeId> {
        match step {
            Next::Accept(nodes) | Next::Use(_, nodes) | Next::Drop(nodes) | Next::Apart(nodes) => {
                nodes.clone()
            }
            Next::Rest => BTreeSet::new(),
        }
    }

    /// Whether any two nodes can still prove themselves to each other.
    fn all_meet(held: &BTreeMap<NodeId, Held>) -> bool {
        let accepts = |held: &Held, key| held.own == key || held.next == Some(key) || held.old == Some(key);
        held.values().all(|one| held.values().all(|other| accepts(other, one.own)))
    }

    fn at_rest() -> BTreeMap<NodeId, Held> {
        (0..3).map(|node| (NodeId(node), Held { own: O, next: None, old: None })).collect()
    }

    /// Leads a rotation from where the nodes stand, and stops after so many changes of single nodes.
    fn lead(held: &mut BTreeMap<NodeId, Held>, me: NodeId, drawn: u64, changes: usize) -> usize {
        let mut made = 0;
        let mut has_begun = !matches!(next(held, me), Next::Rest);
        loop {
            let step = match next(held, me) {
                Next::Rest if has_begun => return made,
                Next::Rest => Next::Accept(held.keys().copied().collect()),
                step => step,
            };
            has_begun = true;
            // The node that leads accepts first: it has what it has drawn then.
            let drawn = held[&me].next.unwrap_or(drawn);
            let order: Vec<NodeId> = who(&step).into_iter().collect();
            for node in
                order.iter().filter(|node| **node == me).chain(order.iter().filter(|node| **node != me))
            {
                if made == changes {
                    return made;
                }
                apply(held.get_mut(node).unwrap(), &step, drawn);
                made += 1;
                assert!(all_meet(held), "two nodes cannot meet: {held:?}");
            }
        }
    }

    #[test]
    fn a_rotation_ends_with_the_new_key_everywhere_and_any_two_can_meet_at_any_time() {
        let mut held = at_rest();
        assert_eq!(lead(&mut held, ME, N, usize::MAX), 9);
        assert!(held.values().all(|held| held.own == N && held.is_at_rest()));
    }

    #[test]
    fn one_that_is_cut_off_anywhere_goes_on_from_any_node() {
        for cut in 1..9 {
            for other in 0..3 {
                for again in 0..9 {
                    let mut held = at_rest();
                    lead(&mut held, ME, N, cut);
                    lead(&mut held, NodeId(other), 30, again);
                    lead(&mut held, NodeId((other + 1) % 3), 40, usize::MAX);
                    let own = held[&ME].own;
                    assert!(held.values().all(|held| held.own == own && held.is_at_rest()), "{cut} {other}");
                    assert_ne!(own, O);
                }
            }
        }
    }

    #[test]
    fn a_node_with_keys_of_its_own_is_named_and_nothing_is_done() {
        let mut held = at_rest();
        held.insert(NodeId(2), Held { own: 99, next: None, old: None });
        assert_eq!(next(&held, ME), Next::Apart(BTreeSet::from([NodeId(2)])));
    }
}
