//! The clock of the data path: `CLOCK_BOOTTIME`, which goes on while the machine sleeps, so that a lease that ran
//! out during a suspend has run out. Not the time of day.

use std::time::Duration;

use replicator_core::units::Instant;
use rustix::time::{ClockId, clock_gettime};

/// This moment.
pub(crate) fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let part = |value: i64| u64::try_from(value).expect("the time since boot is never negative");
    Instant(part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec))
}

/// What the time of day was when the clock of the data path was 0, in milliseconds since 1970, as far as it is known now.
pub(crate) fn wall_zero_ms() -> u64 {
    wall_ms().saturating_sub(now().0 / 1_000_000)
}

/// The time of day in milliseconds since 1970; 0 if the clock is set to before that. It may be set at any time.
pub(crate) fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// How long from `now` until `then`; nothing if it has come.
pub(crate) fn until(now: Instant, then: Instant) -> Duration {
    Duration::from_nanos(then.since_ns(now))
}

/// Identity of this boot of the machine: another one means that volatile state may be gone. If the kernel does not
/// tell, the moment of this start stands for it, which equals no recorded one: the careful assumption.
pub(crate) fn boot_id() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).unwrap_or_else(|_| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_the_boot_stays() {
        let earlier = now();
        assert!(now() >= earlier);
        assert_eq!(until(earlier.plus_ms(5), earlier), Duration::ZERO);
        assert_eq!(until(earlier, earlier.plus_ms(5)), Duration::from_millis(5));
        assert_ne!(boot_id(), 0);
        assert_eq!(boot_id(), boot_id());
    }
}
