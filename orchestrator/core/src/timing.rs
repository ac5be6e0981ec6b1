//! How long a failover takes, computed from the configuration and from nothing else. What the new primary's disk takes to
//! begin its epoch is not in it; on a disk that works this is done while the old lease runs out.

use crate::lease::Terms;
use crate::policy::Detection;

/// Elections at most until one is won: one that splits the votes, one that does not.
const ELECTION_ROUNDS: u64 = 2;

/// The time from the death of a machine until another may answer clients, and its parts, each at its worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worst {
    /// Until the node is suspected, on links as unsteady as they may be.
    pub detect_ms: u64,
    /// Until there is a leader, if the node was that, too.
    pub elect_ms: u64,
    /// Until its lease has surely ended, counted from its last renewal.
    pub lease_ms: u64,
    /// All together.
    pub total_ms: u64,
    /// All together on steady links, where the node did not lead.
    pub usual_ms: u64,
}

/// The times that follow from these, where a silent leader is followed after `election_ms` at most.
#[must_use]
pub fn worst(detection: &Detection, lease: Terms, election_ms: u64) -> Worst {
    // Looked at once in a heartbeat's time.
    let detect = |patience_ms| patience_ms + detection.heartbeat_ms;
    let detect_ms = detect(detection.suspect_at_most_ms);
    let elect_ms = election_ms * ELECTION_ROUNDS;
    let lease_ms = lease.surely_over_ms();
    // A new leader counts the old lease from its own election, and suspects while it waits.
    let total_ms = detect_ms.max(elect_ms + lease_ms) + detection.heartbeat_ms;
    let usual_ms = detect(detection.suspect_after_ms).max(lease_ms) + detection.heartbeat_ms;
    Worst { detect_ms, elect_ms, lease_ms, total_ms, usual_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Terms = Terms { duration_ms: 600, drift_ppm: 0 };

    #[test]
    fn the_longest_part_counts() {
        let detection = Detection { suspect_at_most_ms: 2_100, ..Detection::default() };
        let times = worst(&detection, LEASE, 600);
        assert_eq!((times.detect_ms, times.elect_ms, times.lease_ms), (2_150, 1_200, 601));
        assert_eq!((times.total_ms, times.usual_ms), (2_200, 651));
        // A leader that is hard to elect.
        assert_eq!(worst(&detection, LEASE, 2_000).total_ms, 4_000 + 601 + 50);
        // Suspicion that takes longer than the lease.
        let patient = Detection { suspect_after_ms: 1_000, ..detection };
        assert_eq!(worst(&patient, LEASE, 600).usual_ms, 1_100);
    }
}
