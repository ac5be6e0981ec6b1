//! How long requests of clients took: counted in buckets, nothing allocated. From the turn of the reactor in which a request
//! was read to the one in which it was answered.

use replicator_core::units::Instant;

/// Upper bounds of the buckets, in microseconds. What took longer is counted by itself.
pub const BOUNDS_US: [u64; 17] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 10_000_000, 60_000_000,
];

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A read.
    Read,
    /// A write, or one of zeroes.
    Write,
    /// A flush.
    Flush,
}

/// How long requests of one kind took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many took at most as long as the bound at the same place, and longer than the one before; at the end those that
    /// took longer than the last.
    pub counts: [u64; BOUNDS_US.len() + 1],
    /// Nanoseconds of all together.
    pub sum_ns: u64,
}

impl Latency {
    fn note(&mut self, ns: u64) {
        let place = BOUNDS_US.partition_point(|bound| bound * 1_000 < ns);
        self.counts[place] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }
}

/// How long requests took that were done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Reads.
    pub reads: Latency,
    /// Writes.
    pub writes: Latency,
    /// Flushes.
    pub flushes: Latency,
}

impl Latencies {
    /// A request is done.
    pub(crate) fn note(&mut self, kind: Kind, began: Instant, now: Instant) {
        let latency = match kind {
            Kind::Read => &mut self.reads,
            Kind::Write => &mut self.writes,
            Kind::Flush => &mut self.flushes,
        };
        latency.note(now.since_ns(began));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_in_the_first_bucket_that_holds_it() {
        let mut latency = Latency::default();
        for ns in [0, 50_000, 50_001, 59_999_000_000, 61_000_000_000] {
            latency.note(ns);
        }
        assert_eq!((latency.counts[0], latency.counts[1]), (2, 1));
        assert_eq!((latency.counts[BOUNDS_US.len() - 1], latency.counts[BOUNDS_US.len()]), (1, 1));
        assert_eq!(latency.counts.iter().sum::<u64>(), 5);
    }
}
