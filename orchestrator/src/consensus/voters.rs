//! Who is to vote: the nodes of the leader's configuration, each with the store that it has now. Pure; one change at a time.

use std::collections::BTreeSet;

use orchestrator_core::units::NodeId;

use super::node_of;

/// A change of who votes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// This one votes, too, in the place of another one of its node if there is one.
    Joins { new: u64, voters: BTreeSet<u64> },
    /// These are no nodes any more.
    Leaves { gone: BTreeSet<NodeId>, voters: BTreeSet<u64> },
}

/// What the leader knows.
pub(crate) struct Known<'k> {
    /// Who votes now.
    pub(crate) voters: &'k BTreeSet<u64>,
    /// Who says that it is there, with which store.
    pub(crate) reported: &'k BTreeSet<u64>,
    /// The nodes of the configuration, this one among them.
    pub(crate) configured: &'k BTreeSet<NodeId>,
}

/// The next change, if there is one to be made.
pub(crate) fn change(known: &Known<'_>) -> Option<Change> {
    let Known { voters, reported, configured } = known;
    // Who comes before who goes: so the fewest are ever too few.
    let is_new = |voter: &&u64| configured.contains(&node_of(**voter)) && !voters.contains(*voter);
    if let Some(new) = reported.iter().find(is_new).copied() {
        let others = voters.iter().copied().filter(|voter| node_of(*voter) != node_of(new));
        return Some(Change::Joins { new, voters: others.chain([new]).collect() });
    }
    let (kept, gone): (BTreeSet<u64>, BTreeSet<u64>) =
        voters.iter().copied().partition(|voter| configured.contains(&node_of(*voter)));
    // A majority of those that stay must be there, or nothing could be agreed on afterwards, not even this.
    let there = kept.iter().filter(|voter| reported.contains(voter)).count();
    let is_decisive = there * 2 > kept.len();
    (!gone.is_empty() && is_decisive)
        .then(|| Change::Leaves { gone: gone.into_iter().map(node_of).collect(), voters: kept })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The voter that a node is with its first, its second store.
    fn voter(node: u8, store: u64) -> u64 {
        store << 8 | u64::from(node)
    }

    fn nodes(nodes: &[u8]) -> BTreeSet<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn voters(nodes: &[u8]) -> BTreeSet<u64> {
        nodes.iter().map(|node| voter(*node, 1)).collect()
    }

    fn next(voting: &[u8], reported: &BTreeSet<u64>, configured: &[u8]) -> Option<Change> {
        change(&Known { voters: &voters(voting), reported, configured: &nodes(configured) })
    }

    #[test]
    fn nothing_is_changed_while_the_voters_are_the_nodes_of_the_configuration() {
        assert_eq!(next(&[0, 1, 2], &voters(&[0, 1, 2]), &[0, 1, 2]), None);
        assert_eq!(next(&[0, 1, 2], &voters(&[0]), &[0, 1, 2]), None, "one that is away still votes");
    }

    #[test]
    fn a_new_node_votes_when_it_is_there_and_not_before() {
        assert_eq!(next(&[0, 1, 2], &voters(&[0, 1, 2]), &[0, 1, 2, 3]), None);
        let joins = Change::Joins { new: voter(3, 1), voters: voters(&[0, 1, 2, 3]) };
        assert_eq!(next(&[0, 1, 2], &voters(&[0, 1, 2, 3]), &[0, 1, 2, 3]), Some(joins));
    }

    #[test]
    fn a_node_that_the_configuration_does_not_have_does_not_vote() {
        assert_eq!(next(&[0, 1, 2], &voters(&[0, 1, 2, 3]), &[0, 1, 2]), None);
    }

    #[test]
    fn a_node_with_another_store_takes_the_place_of_itself() {
        let reported = BTreeSet::from([voter(0, 1), voter(2, 2)]);
        let now = BTreeSet::from([voter(0, 1), voter(1, 1), voter(2, 2)]);
        let joins = Change::Joins { new: voter(2, 2), voters: now };
        assert_eq!(next(&[0, 1, 2], &reported, &[0, 1, 2]), Some(joins));
    }

    #[test]
    fn a_node_that_has_left_the_configuration_votes_no_more_if_the_others_can_decide_without_it() {
        let leaves = |node, voters| Some(Change::Leaves { gone: nodes(&[node]), voters });
        assert_eq!(next(&[0, 1, 2, 3], &voters(&[0, 1]), &[0, 1, 2]), leaves(3, voters(&[0, 1, 2])));
        assert_eq!(next(&[0, 1, 2, 3], &voters(&[0, 3]), &[0, 1, 2]), None, "one of three that stay");
    }

    #[test]
    fn who_comes_comes_before_who_goes() {
        let joins = Change::Joins { new: voter(3, 1), voters: voters(&[0, 1, 2, 3]) };
        assert_eq!(next(&[0, 1, 2], &voters(&[0, 1, 2, 3]), &[0, 1, 3]), Some(joins));
    }
}
