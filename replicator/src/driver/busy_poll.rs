//! How long the reactor looks for completions before it sleeps. Being woken costs tens of microseconds, on virtual
//! machines more; under load the next completion is nearer than that. Decided as the kernel's haltpoll governor does,
//! from how long the last sleeps were: nothing is looked for on an idle volume. Looking itself is the ring's.
//!
//! ```text
//!               short sleep              short sleep
//!   span 0  ------------------->  ... ---------------->  span = limit
//!           <-------------------      <----------------
//!               long sleep               long sleep
//! ```

use std::time::Duration;

/// The shortest span that is worth it, as a part of the limit.
const STEPS: u32 = 4;

/// How long to look before sleeping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BusyPoll {
    limit: Duration,
    span: Duration,
}

impl BusyPoll {
    /// Looks for `limit` at most; zero is never.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, span: Duration::ZERO }
    }

    /// How long to look now.
    pub(crate) fn span(&self) -> Duration {
        self.span
    }

    /// After looking in vain for [`Self::span`], the reactor slept so long.
    pub(crate) fn slept(&mut self, slept: Duration) {
        let step = self.limit / STEPS;
        // Waking up takes about as long again as what is waited for at the limit.
        self.span = if slept <= 2 * self.limit {
            (self.span * 2).clamp(step, self.limit)
        } else {
            let half = self.span / 2;
            if half < step { Duration::ZERO } else { half }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    fn after(sleeps_us: &[u64]) -> Duration {
        let mut poll = BusyPoll::new(LIMIT);
        sleeps_us.iter().for_each(|us| poll.slept(Duration::from_micros(*us)));
        poll.span()
    }

    #[test]
    fn an_idle_volume_sleeps_at_once() {
        assert_eq!(after(&[]), Duration::ZERO);
        assert_eq!(after(&[500_000, 500_000]), Duration::ZERO);
    }

    #[test]
    fn short_sleeps_are_looked_through() {
        assert_eq!(after(&[50]), LIMIT / 4);
        assert_eq!(after(&[50, 150]), LIMIT / 2);
        assert_eq!(after(&[50, 150, 50, 50]), LIMIT);
    }

    #[test]
    fn long_sleeps_end_it_soon() {
        assert_eq!(after(&[50, 50, 50, 10_000, 10_000, 10_000]), Duration::ZERO);
    }

    #[test]
    fn a_limit_of_zero_is_never() {
        let mut poll = BusyPoll::new(Duration::ZERO);
        poll.slept(Duration::ZERO);
        assert_eq!(poll.span(), Duration::ZERO);
    }
}
