//! How long a failover takes at most, computed from the configuration and from nothing else.

use crate::policy::Policy;

/// Time of a Raft election at most, after the others notice: one timeout, one round that splits, one that does not.
const ELECTION_ROUNDS: u64 = 2;

/// Parts of the time from the death of a node until another serves, each at its worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worst {
    /// Until the node is suspected.
    pub detect_ms: u64,
    /// Until there is a Raft leader, if the node was that, too.
    pub elect_ms: u64,
    /// Until its lease has surely ended, counted from its last renewal at the moment of death.
    pub lease_ms: u64,
    /// Until the new primary may answer; opening its epoch comes on top.
    pub total_ms: u64,
}

/// The worst case of `policy`, with Raft elections of at most `election_ms`.
#[must_use]
pub fn worst(policy: &Policy, election_ms: u64) -> Worst {
    let detect_ms = policy.detection.suspect_at_most_ms + policy.detection.heartbeat_ms;
    let elect_ms = election_ms * ELECTION_ROUNDS;
    let lease_ms = policy.lease.surely_over_ms();
    // A new leader counts the old lease from its own election, and suspects while it waits.
    let total_ms = detect_ms.max(elect_ms + lease_ms) + policy.detection.heartbeat_ms;
    Worst { detect_ms, elect_ms, lease_ms, total_ms }
}
