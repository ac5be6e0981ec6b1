//! Latencies in buckets of about 1.6 %: bounded memory, however long a run is.

/// Buckets for each power of two.
const FINE: u64 = 64;
const FINE_BITS: u32 = FINE.trailing_zeros();

/// Counts of nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let buckets = (64 - FINE_BITS as usize + 1) * FINE as usize;
        Self { counts: vec![0; buckets], total: 0, max: 0 }
    }

    /// Counts one.
    pub fn add(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.max = self.max.max(ns);
    }

    /// How many were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The largest.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that `permille` of a thousand do not exceed (by more than a bucket); 0 if nothing was counted.
    #[must_use]
    pub fn permille(&self, permille: u64) -> u64 {
        let rank = (self.total * permille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(index).min(self.max);
            }
        }
        0
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

fn bucket(ns: u64) -> usize {
    if ns < FINE {
        return ns as usize;
    }
    let shift = 63 - FINE_BITS - ns.leading_zeros();
    ((u64::from(shift) + 1) * FINE + (ns >> shift) - FINE) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < FINE {
        return bucket;
    }
    let shift = bucket / FINE - 1;
    let end = u128::from(bucket % FINE + FINE + 1) << shift;
    u64::try_from(end - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_its_bucket() {
        for ns in
            (0..63).flat_map(|bit| [1u64 << bit, (1 << bit) + 1, (1 << bit) * 2 - 1]).chain([0, u64::MAX])
        {
            let index = bucket(ns);
            assert!(upper(index) >= ns, "{ns}");
            assert!(index == 0 || upper(index - 1) < ns, "{ns}");
        }
    }

    #[test]
    fn percentiles_are_near() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|us| histogram.add(us * 1000));
        let near = |permille, ns: u64| histogram.permille(permille).abs_diff(ns) <= ns / 50;
        assert!(near(500, 500_000) && near(990, 990_000) && near(999, 999_000));
        assert_eq!(histogram.max(), 1_000_000);
    }
}
