//! Heartbeats and suspicion: who is heard over any link, how steady the links are, and who flaps. One detector for each
//! other node.
//!
//! ```text
//!            silence on all links           heard again               quarantine over
//!   Alive ------------------------> Suspected ----------> Quarantined ----------------> Alive
//!                                       ^                      |
//!                                       +----- silence --------+
//! ```

use alloc::vec::Vec;

use crate::policy::Detection;
use crate::units::Instant;
use crate::view::Health;

/// How much of the deviation seen so far a silence may be longer than the mean.
const DEVIATIONS: u64 = 6;
/// The share of a new interval in mean and deviation: one part in so many.
const SMOOTHING: u64 = 8;
/// Heartbeats that one link has missed and another has brought, after which what is not a heartbeat goes over the other.
const MISSED_MAX: u64 = 3;
/// Doublings of a quarantine; more would overflow nothing and help nobody.
const DOUBLINGS_MAX: u32 = 20;

/// What is known of one link from one node.
#[derive(Clone, Debug)]
struct Link {
    heard: Instant,
    /// Highest sequence heard: an older one is a replay or came late.
    sequence: u64,
    /// Mean interval and mean deviation from it, in microseconds so that smoothing does not round away.
    mean_us: u64,
    deviation_us: u64,
}

/// Watches one node.
#[derive(Clone, Debug)]
pub struct Detector {
    detection: Detection,
    links: Vec<Option<Link>>,
    /// When watching began: a node that was never heard is suspected from here.
    began: Instant,
    /// The process heard: another one numbers its heartbeats from the beginning.
    process: u64,
    /// The link over which it is best reached.
    preferred: usize,
    state: Health,
    /// Suspicions not yet forgiven.
    suspicions: u32,
    alive_since: Instant,
}

impl Detector {
    /// A detector that begins to listen on so many links.
    #[must_use]
    pub fn new(detection: Detection, links: usize, now: Instant) -> Self {
        let links = (0..links).map(|_| None).collect();
        let state = Health::Suspected { since: now };
        Self {
            detection,
            links,
            began: now,
            process: 0,
            preferred: 0,
            state,
            suspicions: 0,
            alive_since: now,
        }
    }

    /// A heartbeat came in over a link. Says whether it was new.
    pub fn heard(&mut self, link: usize, process: u64, sequence: u64, now: Instant) -> bool {
        let Some(slot) = self.links.get_mut(link) else { return false };
        let is_other_process = self.process != process;
        match slot {
            Some(known) if !is_other_process => {
                if sequence <= known.sequence {
                    return false;
                }
                known.sequence = sequence;
                known.note(now);
            }
            _ => {
                let mean_us = self.detection.heartbeat_ms * 1000;
                *slot = Some(Link { heard: now, sequence, mean_us, deviation_us: 0 });
            }
        }
        if is_other_process {
            // The other links' numbers belong to the old process.
            for (_, other) in self.links.iter_mut().enumerate().filter(|(index, _)| *index != link) {
                *other = None;
            }
            self.process = process;
        }
        self.prefer(link, now);
        self.advance(now);
        true
    }

    /// The link over which the node is best reached: the first, until that misses what another one brings. What slows
    /// down a node slows down all its links, so only a link that is lost is left.
    #[must_use]
    pub fn preferred(&self) -> usize {
        self.preferred
    }

    fn prefer(&mut self, link: usize, now: Instant) {
        let heard =
            self.links.get(self.preferred).and_then(Option::as_ref).map_or(self.began, |link| link.heard);
        if link != self.preferred && now.since_ms(heard) > MISSED_MAX * self.detection.heartbeat_ms {
            self.preferred = link;
        }
    }

    /// The state at this moment.
    pub fn advance(&mut self, now: Instant) -> Health {
        let silent = now >= self.suspected_at();
        self.state = match self.state {
            Health::Suspected { .. } if !silent => {
                self.alive_since = now;
                // The first time it is heard at all is no return.
                if self.suspicions == 0 {
                    Health::Alive
                } else {
                    Health::Quarantined { until: now.plus_ms(self.quarantine_ms()) }
                }
            }
            Health::Alive | Health::Quarantined { .. } if silent => {
                self.suspicions = self.suspicions.saturating_add(1);
                Health::Suspected { since: now }
            }
            Health::Quarantined { until } if now >= until => Health::Alive,
            state => state,
        };
        if self.state == Health::Alive && now.since_ms(self.alive_since) >= self.detection.forgive_after_ms {
            self.suspicions = 0;
        }
        self.state
    }

    /// When the node is suspected if nothing more is heard.
    #[must_use]
    pub fn suspected_at(&self) -> Instant {
        let deadlines = self.links.iter().flatten().map(|link| link.heard.plus_ms(self.patience_ms(link)));
        deadlines.max().unwrap_or(self.began)
    }

    /// Suspicions that are not forgiven yet.
    #[must_use]
    pub fn suspicions(&self) -> u32 {
        self.suspicions
    }

    fn patience_ms(&self, link: &Link) -> u64 {
        let steady_ms = (link.mean_us + DEVIATIONS * link.deviation_us).div_ceil(1000);
        steady_ms.clamp(self.detection.suspect_after_ms, self.detection.suspect_at_most_ms)
    }

    fn quarantine_ms(&self) -> u64 {
        let doublings = (self.suspicions.saturating_sub(1)).min(DOUBLINGS_MAX);
        (self.detection.quarantine_ms << doublings).min(self.detection.quarantine_at_most_ms)
    }
}

impl Link {
    fn note(&mut self, now: Instant) {
        let interval_us = now.since_ms(self.heard) * 1000;
        self.heard = now;
        let difference_us = interval_us.abs_diff(self.mean_us);
        self.mean_us = (self.mean_us * (SMOOTHING - 1) + interval_us) / SMOOTHING;
        self.deviation_us = (self.deviation_us * (SMOOTHING - 1) + difference_us) / SMOOTHING;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(detector: &mut Detector, from: u64, until: u64) {
        for (sequence, at) in (from..until).step_by(50).enumerate() {
            detector.heard(0, 1, from + sequence as u64, Instant(at));
        }
    }

    #[test]
    fn a_node_that_was_never_heard_is_suspected() {
        let mut detector = Detector::new(Detection::default(), 1, Instant(1000));
        assert_eq!(detector.advance(Instant(1000)), Health::Suspected { since: Instant(1000) });
    }

    #[test]
    fn a_steady_link_is_suspected_after_the_configured_silence() {
        let mut detector = Detector::new(Detection::default(), 1, Instant(0));
        steady(&mut detector, 0, 1000);
        assert_eq!(detector.advance(Instant(950 + 299)), Health::Alive);
        assert_eq!(detector.advance(Instant(950 + 300)), Health::Suspected { since: Instant(1250) });
    }

    #[test]
    fn an_unsteady_link_is_given_more_time_and_no_more_than_the_most() {
        let mut detector = Detector::new(Detection::default(), 1, Instant(0));
        let mut at = 0;
        for sequence in 0..200 {
            at += if sequence % 2 == 0 { 10 } else { 250 };
            detector.heard(0, 1, sequence + 1, Instant(at));
        }
        assert_eq!(detector.advance(Instant(at + 300)), Health::Alive);
        assert!(!detector.advance(Instant(at + 2000)).is_heard());
    }

    #[test]
    fn one_link_is_enough() {
        let mut detector = Detector::new(Detection::default(), 2, Instant(0));
        for at in (0..5000).step_by(50) {
            detector.heard(1, 1, at + 1, Instant(at));
        }
        assert_eq!(detector.advance(Instant(5000)), Health::Alive);
    }

    #[test]
    fn a_link_that_misses_what_another_brings_is_left_and_a_pause_of_the_node_changes_nothing() {
        let mut detector = Detector::new(Detection::default(), 2, Instant(0));
        let mut hear = |links: &[usize], at: u64| {
            for link in links {
                detector.heard(*link, 1, at + 1, Instant(at));
            }
            detector.preferred()
        };
        assert!((0..1000).step_by(50).all(|at| hear(&[0, 1], at) == 0));
        // It slept, and is heard over both again.
        assert_eq!(hear(&[0, 1], 1250), 0);
        assert!((1300..1450).step_by(50).all(|at| hear(&[1], at) == 0));
        assert_eq!(hear(&[1], 1450), 1);
        // The first is back. There is no need to go back to it.
        assert_eq!(hear(&[0, 1], 1500), 1);
    }

    #[test]
    fn a_heartbeat_that_was_heard_before_counts_for_nothing() {
        let mut detector = Detector::new(Detection::default(), 1, Instant(0));
        steady(&mut detector, 0, 1000);
        for at in (1000..2000).step_by(50) {
            assert!(!detector.heard(0, 1, 5, Instant(at)));
        }
        assert!(!detector.advance(Instant(2000)).is_heard());
    }

    #[test]
    fn a_node_that_flaps_is_kept_away_longer_each_time() {
        let mut detector = Detector::new(Detection::default(), 1, Instant(0));
        let mut quarantines = Vec::new();
        for round in 0..4u64 {
            let at = round * 10_000;
            steady(&mut detector, at, at + 100);
            if let Health::Quarantined { until } = detector.state {
                quarantines.push(until.since_ms(Instant(at)));
            }
            detector.advance(Instant(at + 5000));
        }
        assert_eq!(quarantines, [1000, 2000, 4000]);
    }

    #[test]
    fn a_new_process_begins_its_numbers_again() {
        let mut detector = Detector::new(Detection::default(), 1, Instant(0));
        detector.heard(0, 1, 1_000_000, Instant(0));
        assert!(detector.heard(0, 2, 1, Instant(50)));
    }
}
