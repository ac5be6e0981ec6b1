//! Leases: until when a primary may serve without renewal, and from when nobody can still hold one. Two clocks are
//! involved and never compared; each runs at most `drift_ppm` too fast or too slow.
//!
//! The holder counts from when it *sent* the request, the granter from when it answered, which is later. In true time the
//! holder's lease ends at most D / (1 - e) after that; on the granter's clock that takes at most D (1 + e) / (1 - e).

use serde::{Deserialize, Serialize};

use crate::limits::DRIFT_PPM_MAX;
use crate::units::Instant;

/// What all nodes agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// How long a lease lasts on its holder's clock.
    pub duration_ms: u64,
    /// How far any clock may be from the true rate, in parts per million.
    pub drift_ppm: u64,
}

impl Terms {
    /// Until when the holder may serve: `sent` is when it sent the request that was granted.
    #[must_use]
    pub fn held_until(&self, sent: Instant) -> Instant {
        sent.plus_ms(self.duration_ms)
    }

    /// How long the granter waits after its last grant, on its own clock.
    ///
    /// # Panics
    /// If the drift is beyond [`DRIFT_PPM_MAX`], which a configuration never says.
    #[must_use]
    pub fn surely_over_ms(&self) -> u64 {
        assert!(self.drift_ppm <= DRIFT_PPM_MAX, "the configuration is checked");
        let fast = u128::from(1_000_000 + self.drift_ppm);
        let slow = u128::from(1_000_000 - self.drift_ppm);
        let ms = (u128::from(self.duration_ms) * fast).div_ceil(slow);
        // One more, since instants are cut to whole milliseconds on both clocks.
        u64::try_from(ms).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// From when no lease granted before can still be held, on the granter's clock. A leader that was elected at
    /// `elected` knows of none granted by those before it, and that none can be granted by them any more.
    #[must_use]
    pub fn surely_over_at(&self, last_grant: Option<Instant>, elected: Instant) -> Instant {
        last_grant.unwrap_or(elected).max(elected).plus_ms(self.surely_over_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_drift_the_granter_waits_as_long_as_the_lease() {
        let terms = Terms { duration_ms: 1000, drift_ppm: 0 };
        assert_eq!(terms.surely_over_ms(), 1001);
    }

    #[test]
    fn drift_counts_on_both_clocks() {
        let terms = Terms { duration_ms: 1_000_000, drift_ppm: 1000 };
        assert_eq!(terms.surely_over_ms(), 1_002_003 + 1);
    }

    #[test]
    fn a_new_leader_counts_from_its_election() {
        let terms = Terms { duration_ms: 1000, drift_ppm: 0 };
        assert_eq!(terms.surely_over_at(None, Instant(500)), Instant(1501));
        assert_eq!(terms.surely_over_at(Some(Instant(100)), Instant(500)), Instant(1501));
        assert_eq!(terms.surely_over_at(Some(Instant(900)), Instant(500)), Instant(1901));
    }
}
