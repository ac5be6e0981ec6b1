//! The clock of leases and suspicion: `CLOCK_BOOTTIME`, which goes on while the machine sleeps. Not the time of day.

use orchestrator_core::units::Instant;
use rustix::time::{ClockId, clock_gettime};

/// This moment.
pub(crate) fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let part = |value: i64| u64::try_from(value).expect("the time since boot is never negative");
    Instant(part(time.tv_sec) * 1000 + part(time.tv_nsec) / 1_000_000)
}
