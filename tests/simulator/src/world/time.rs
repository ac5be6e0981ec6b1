//! Time, and the next thing that happens in it: an I/O that completes, bytes that arrive, a timer.

use replicator_core::event::Event;
use replicator_core::machine::Machine;
use replicator_core::units::Instant;

use super::sight::describe;
use super::{Fate, MS, Moment, World};
use crate::ledger::Clocks;
use crate::node::Io;
use crate::rule::broken;

/// Steps at one instant after which nobody believes that there will be a last one. The most that a run needed is a
/// fifth of it.
const STEPS_MAX: u64 = 100_000;

/// The time of day when the world begins, in milliseconds since 1970.
const TIME_OF_DAY_MS: u64 = 1_790_000_000_000;

/// A node's clock beside the world's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    pub ahead: u64,
    /// How much faster it runs; may be negative.
    pub drift_permille: i64,
}

impl Clock {
    /// What it shows when the world's time is `now`.
    pub fn at(self, now: u64) -> u64 {
        let drift = i128::from(now) * i128::from(self.drift_permille) / 1000;
        u64::try_from(i128::from(now + self.ahead) + drift).unwrap()
    }

    /// The world's time when it shows `instant`.
    pub fn when(self, instant: u64) -> u64 {
        let passed = instant.saturating_sub(self.ahead);
        let rate = u64::try_from(1000 + self.drift_permille).unwrap();
        u64::try_from(u128::from(passed) * 1000 / u128::from(rate)).unwrap() + 1
    }
}

impl World {
    /// The time that `node` sees.
    pub fn instant(&self, node: usize) -> Instant {
        Instant(self.clocks[node].at(self.now))
    }

    /// Sets the clock of `node`, which never goes back. Its time of day goes on from it.
    pub fn set_clock(&mut self, node: usize, clock: Clock) {
        self.clocks[node] = clock;
    }

    /// Sets the time of day at `node`: so far ahead of the true one.
    pub fn set_wall(&mut self, node: usize, ahead_ms: u64) {
        let clock = self.clocks[node];
        self.nodes[node].set_wall_clock(TIME_OF_DAY_MS + ahead_ms - clock.ahead / MS);
    }

    /// What `node` takes for the time of day, in milliseconds since 1970.
    pub fn time_of_day(&self, node: usize) -> u64 {
        self.clocks_of(node).wall_ms
    }

    /// What the clocks of `node` show.
    pub(super) fn clocks_of(&self, node: usize) -> Clocks {
        let instant = self.instant(node).0;
        Clocks { instant, wall_ms: self.nodes[node].wall_zero_ms + instant / MS }
    }

    /// When `node` will see this time.
    pub(super) fn when(&self, node: usize, instant: Instant) -> u64 {
        self.clocks[node].when(instant.0)
    }

    /// One random thing that can happen happens. Returns false if only time can pass.
    pub fn step(&mut self) -> bool {
        self.settle_links();
        self.wake();
        let mut choices: Vec<(usize, usize)> = Vec::with_capacity(32);
        for (index, node) in self.nodes.iter().enumerate() {
            if self.paused_until[index] > self.now {
                continue;
            }
            choices.extend(node.ready().map(|io| (index, io)));
            if node.needs_turn {
                choices.push((index, usize::MAX));
            }
        }
        let first_wire = choices.len();
        for (index, wire) in self.wires.iter().enumerate() {
            choices.extend((0..2).filter(|way| self.can_deliver(wire, *way)).map(|way| (index, way)));
        }
        if choices.is_empty() {
            return false;
        }
        self.steps += 1;
        if self.steps > STEPS_MAX {
            let what = "nodes, disks and wires have more to do, and time cannot pass";
            broken("endless", format!("after {STEPS_MAX} steps at one instant {what}"));
        }
        let pick = self.random.index(choices.len());
        let (index, what) = choices[pick];
        if pick >= first_wire {
            self.deliver(index, what);
        } else if what == usize::MAX {
            let now = self.instant(index);
            self.nodes[index].turn(now);
        } else {
            self.finish_io(index, what);
        }
        self.collect();
        true
    }

    fn finish_io(&mut self, node: usize, index: usize) {
        let now = self.instant(node);
        self.ios += 1;
        let fate = (self.fates)(&self.nodes[node].ios[index], node, &mut self.random);
        if fate != Fate::Done {
            let io = format!("{:?}", self.nodes[node].ios[index]);
            self.note(|| format!("n{node} {fate:?}: {}", io.chars().take(90).collect::<String>()));
        }
        match fate {
            Fate::Done => {
                if self.trace.is_some() {
                    let line = describe(&self.nodes[node].ios[index]);
                    self.note(|| format!("n{node} {line}"));
                }
                if matches!(self.nodes[node].ios[index], Io::SyncJournal { .. }) {
                    self.moments.push((Moment::JournalSynced, node));
                }
                self.nodes[node].finish(index, now);
            }
            Fate::Fails(errno) => {
                if let Io::ReadDisk { offset, span, .. } = self.nodes[node].ios[index] {
                    self.unreadable(node, offset, span.len as u64);
                }
                self.nodes[node].fail(index, now, errno, &mut self.random);
            }
            Fate::Hangs(ns) => {
                let io = self.nodes[node].ios.remove(index);
                self.nodes[node].hung.push((self.now + ns, io));
            }
            Fate::Kill => self.kill(node),
            Fate::Power => self.lose_power(node),
            Fate::Blackout => (0..self.nodes.len()).for_each(|node| self.lose_power(node)),
        }
    }

    /// What hung long enough goes on.
    fn wake(&mut self) {
        let now = self.now;
        for node in &mut self.nodes {
            if !node.hung.is_empty() {
                let woken: Vec<_> = node.hung.extract_if(.., |(until, _)| *until <= now).collect();
                node.ios.extend(woken.into_iter().map(|(_, io)| io));
            }
        }
    }

    /// Ends all turns and moves time to whatever is due next.
    pub fn pass_time(&mut self) {
        self.steps = 0;
        for index in 0..self.nodes.len() {
            if !self.is_paused(index) {
                let now = self.instant(index);
                self.nodes[index].turn(now);
            }
        }
        self.collect();
        let mut due = self.alarm.min(self.now + 50 * MS);
        for (index, node) in self.nodes.iter().enumerate() {
            let timeout = node.machine.as_ref().and_then(Machine::next_timeout);
            if let Some(at) = timeout.filter(|_| !self.is_paused(index)) {
                due = due.min(self.when(index, at));
            }
            due = node.hung.iter().fold(due, |due, (until, _)| due.min(*until));
            if self.is_paused(index) {
                due = due.min(self.paused_until[index]);
            }
        }
        self.now = due.max(self.now + MS / 10);
        for index in 0..self.nodes.len() {
            if !self.is_paused(index) {
                let now = self.instant(index);
                self.nodes[index].handle(now, Event::Timeout);
            }
        }
        self.collect();
    }

    /// Runs until `done`, or fails.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = self.now + 120_000 * MS;
        while !done(self) {
            if !self.step() {
                self.pass_time();
            }
            if self.now >= deadline {
                let states: Vec<_> = (0..self.nodes.len()).map(|n| self.status(n)).collect();
                panic!("waited two minutes for: {what}\n{states:#?}");
            }
        }
    }

    /// Runs for `ms` of virtual time.
    pub fn run_ms(&mut self, ms: u64) {
        let until = self.now + ms * MS;
        while self.now < until {
            if !self.step() {
                self.pass_time();
            }
        }
    }
}
