//! How fast a resync may go: as fast as clients do not notice, and never slower than a floor. A pure controller: it is
//! told the latency of clients' writes and the time, and says when the next item may start.

use crate::dirty::WORD_BYTES;
use crate::units::Instant;

/// The floor, bytes a second: a resync never starves.
pub const RATE_MIN: u64 = 4 << 20;
/// The ceiling, bytes a second: beyond it only the window counts.
pub const RATE_MAX: u64 = 4 << 30;
const RATE_FIRST: u64 = 64 << 20;
/// Bytes that may be started at once after a pause.
const CREDIT_MAX: u64 = 8 * WORD_BYTES;
/// How often the rate is judged.
const JUDGE_MS: u64 = 100;
/// Latency that nobody notices, above twice the quiet one.
const SLACK_NS: u64 = 2_000_000;

/// The controller.
#[derive(Debug)]
pub struct Pace {
    rate: u64,
    credit: u64,
    refilled_at: Instant,
    judged_at: Instant,
    samples: u64,
    sum_ns: u64,
    /// The lowest mean of a while, which creeps up lest it be that of another day.
    quiet_ns: Option<u64>,
}

impl Pace {
    /// A controller that begins now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            rate: RATE_FIRST,
            credit: CREDIT_MAX,
            refilled_at: now,
            judged_at: now,
            samples: 0,
            sum_ns: 0,
            quiet_ns: None,
        }
    }

    /// Bytes a second that are allowed now.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// A client's write was committed, so long after it was sequenced.
    pub fn note_latency(&mut self, latency_ns: u64) {
        self.samples += 1;
        self.sum_ns = self.sum_ns.saturating_add(latency_ns);
    }

    /// Whether an item of one word may start now; it is charged if so.
    pub fn may_start(&mut self, now: Instant) -> bool {
        self.judge(now);
        let passed = now.0.saturating_sub(self.refilled_at.0);
        let earned = u128::from(passed) * u128::from(self.rate) / 1_000_000_000;
        if earned > 0 {
            self.refilled_at = now;
            self.credit =
                u64::try_from(earned).unwrap_or(CREDIT_MAX).saturating_add(self.credit).min(CREDIT_MAX);
        }
        let may = self.credit >= WORD_BYTES;
        if may {
            self.credit -= WORD_BYTES;
        }
        may
    }

    /// When the next item may start.
    #[must_use]
    pub fn due(&self) -> Instant {
        let missing = WORD_BYTES.saturating_sub(self.credit);
        Instant(self.refilled_at.0 + missing * 1_000_000_000 / self.rate + 1)
    }

    fn judge(&mut self, now: Instant) {
        if now < self.judged_at.plus_ms(JUDGE_MS) {
            return;
        }
        self.judged_at = now;
        let mean = self.sum_ns.checked_div(self.samples);
        (self.samples, self.sum_ns) = (0, 0);
        let Some(mean) = mean else {
            // Nobody writes: nobody is in the way.
            self.rate = (self.rate * 2).min(RATE_MAX);
            return;
        };
        let quiet = self.quiet_ns.map_or(mean, |quiet| mean.min(quiet + quiet / 32 + 1));
        self.quiet_ns = Some(quiet);
        self.rate = if mean > 2 * quiet + SLACK_NS {
            (self.rate / 2).max(RATE_MIN)
        } else {
            (self.rate + self.rate / 4).min(RATE_MAX)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pace: &mut Pace, from_ms: u64, ms: u64, latency_us: Option<u64>) -> u64 {
        let mut bytes = 0;
        for step in 0..ms {
            let now = Instant((from_ms + step) * 1_000_000);
            if let Some(latency_us) = latency_us {
                pace.note_latency(latency_us * 1000);
            }
            while pace.may_start(now) {
                bytes += WORD_BYTES;
            }
        }
        bytes
    }

    #[test]
    fn it_speeds_up_alone_yields_to_clients_and_never_starves() {
        let mut pace = Pace::new(Instant(0));
        run(&mut pace, 0, 2000, None);
        assert_eq!(pace.rate(), RATE_MAX);
        run(&mut pace, 2000, 2000, Some(500));
        assert_eq!(pace.rate(), RATE_MAX, "clients as fast as ever are not disturbed");
        run(&mut pace, 4000, 3000, Some(20_000));
        assert_eq!(pace.rate(), RATE_MIN);
        let slow = run(&mut pace, 7000, 1000, Some(20_000));
        assert!((RATE_MIN / 2..=2 * RATE_MIN).contains(&slow), "the floor holds: {slow}");
        run(&mut pace, 8000, 3000, Some(500));
        assert!(pace.rate() > 64 << 20, "it recovers: {}", pace.rate());
    }

    #[test]
    fn when_it_says_that_it_is_due_it_is() {
        let mut pace = Pace::new(Instant(0));
        while pace.may_start(Instant(0)) {}
        let due = pace.due();
        assert!(due > Instant(0));
        assert!(pace.may_start(due));
    }
}
