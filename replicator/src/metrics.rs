//! Figures for Prometheus, in its text format: families of samples, put together anew for each reader. What the figures are
//! is said where they are known.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::latency::{BOUNDS_US, Latency};

/// The type of the format, as HTTP says it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What a family of counters is called at its end.
const COUNTER_SUFFIX: &str = "_total";

/// All that is told.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<Family>,
}

/// Samples of one name.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Histogram,
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
struct Sample {
    labels: Labels,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Number(f64),
    Latency(Box<Latency>),
}

/// What a sample may be made of.
pub trait Figure {
    /// As it is told.
    fn figure(self) -> f64;
}

impl Figure for f64 {
    fn figure(self) -> f64 {
        self
    }
}

impl Figure for u64 {
    fn figure(self) -> f64 {
        // Beyond 2^53 the last digits are lost, which no graph shows.
        self as f64
    }
}

impl Figure for u32 {
    fn figure(self) -> f64 {
        f64::from(self)
    }
}

impl Figure for bool {
    fn figure(self) -> f64 {
        f64::from(u8::from(self))
    }
}

impl Page {
    /// The gauges called `name`: what goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(Kind::Gauge, name, help)
    }

    /// The counters called `name`, which ends with `_total`: what only goes up while the process runs.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        assert!(name.ends_with(COUNTER_SUFFIX), "a counter is called so: {name}");
        self.family(Kind::Counter, name, help)
    }

    /// The histograms called `name`, in seconds.
    pub fn latency(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(Kind::Histogram, name, help)
    }

    fn family(&mut self, kind: Kind, name: &'static str, help: &'static str) -> &mut Family {
        let place = self.families.iter().position(|family| family.name == name);
        let place = place.unwrap_or_else(|| {
            self.families.push(Family { name, help, kind, samples: Vec::new() });
            self.families.len() - 1
        });
        &mut self.families[place]
    }

    /// The whole text.
    #[must_use]
    pub fn text(self) -> String {
        let (mut text, mut registry) = (String::new(), Registry::default());
        registry.register_collector(Box::new(self));
        prometheus_text::encode(&mut text, &registry).expect("a string takes everything");
        text
    }
}

impl Family {
    /// Adds a sample.
    pub fn add(&mut self, labels: &[(&'static str, &str)], value: impl Figure) {
        self.push(labels, Value::Number(value.figure()));
    }

    /// Adds a sample of a histogram.
    pub fn add_latency(&mut self, labels: &[(&'static str, &str)], latency: Latency) {
        self.push(labels, Value::Latency(Box::new(latency)));
    }

    /// Adds a sample for each of the words that may be the case: 1 for the one that is, and 0 for the others.
    pub fn add_state(
        &mut self,
        labels: &[(&'static str, &str)],
        state: &'static str,
        words: &[&str],
        is: &str,
    ) {
        for word in words {
            let labels: Vec<_> = labels.iter().copied().chain([(state, *word)]).collect();
            self.add(&labels, *word == is);
        }
    }

    fn push(&mut self, labels: &[(&'static str, &str)], value: Value) {
        let labels = labels.iter().map(|(name, label)| (*name, (*label).to_owned())).collect();
        self.samples.push(Sample { labels, value });
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for family in &self.families {
            let (name, kind) = match family.kind {
                Kind::Gauge => (family.name, MetricType::Gauge),
                Kind::Histogram => (family.name, MetricType::Histogram),
                // The encoder puts it back.
                Kind::Counter => (family.name.trim_end_matches(COUNTER_SUFFIX), MetricType::Counter),
            };
            let mut metric = encoder.encode_descriptor(name, family.help, None, kind)?;
            for sample in &family.samples {
                let mut metric = metric.encode_family(&sample.labels)?;
                match (&sample.value, family.kind) {
                    (Value::Number(value), Kind::Counter) => {
                        metric.encode_counter::<Labels, f64, f64>(value, None)?;
                    }
                    (Value::Number(value), _) => metric.encode_gauge(value)?,
                    (Value::Latency(latency), _) => {
                        let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
                        let buckets: Vec<(f64, u64)> = bounds.zip(latency.counts).collect();
                        let count = latency.counts.iter().sum();
                        let sum_s = latency.sum_ns as f64 / 1e9;
                        metric.encode_histogram::<Labels>(sum_s, count, &buckets, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_together_with_help_and_type() {
        let mut page = Page::default();
        for volume in ["r0", "r\"1"] {
            page.gauge("holdfast_volume_epoch", "Reign.").add(&[("volume", volume)], 7_u64);
            page.counter("holdfast_replica_writes_total", "Writes.").add(&[("volume", volume)], 3_u64);
        }
        let mut latency = Latency::default();
        latency.counts[1] = 2;
        latency.sum_ns = 150_000;
        page.latency("holdfast_replica_flush_seconds", "Time.").add_latency(&[], latency);
        let text = page.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..8],
            [
                "# HELP holdfast_volume_epoch Reign.",
                "# TYPE holdfast_volume_epoch gauge",
                "holdfast_volume_epoch{volume=\"r0\"} 7.0",
                "holdfast_volume_epoch{volume=\"r\\\"1\"} 7.0",
                "# HELP holdfast_replica_writes_total Writes.",
                "# TYPE holdfast_replica_writes_total counter",
                "holdfast_replica_writes_total{volume=\"r0\"} 3.0",
                "holdfast_replica_writes_total{volume=\"r\\\"1\"} 3.0",
            ]
        );
        for line in [
            "# TYPE holdfast_replica_flush_seconds histogram",
            "holdfast_replica_flush_seconds_bucket{le=\"5e-05\"} 0",
            "holdfast_replica_flush_seconds_bucket{le=\"0.0001\"} 2",
            "holdfast_replica_flush_seconds_bucket{le=\"+Inf\"} 2",
            "holdfast_replica_flush_seconds_sum 0.00015",
            "holdfast_replica_flush_seconds_count 2",
        ] {
            assert!(lines.contains(&line), "{line} in {text}");
        }
        assert_eq!(lines.iter().filter(|line| line.contains("_bucket{")).count(), BOUNDS_US.len() + 1);
    }
}
