//! One stack on one node: what is started, stopped, looked at and stopped by force, and in which order. Whoever carries
//! out an order answers with its number; one that is not answered in time is taken to have failed, so nothing waits for
//! ever.
//!
//! ```text
//!            it runs not                  start                 done
//!  Unknown --------------> Stopped --------------> Starting --------------> Running
//!     | it runs                 ^                     | failed              |    ^
//!     +----------------------+  | done                v                     |    | look: it runs
//!                            |  +---- Stopping <--- (Running) --------------+----+
//!                            v  |        | failed        stop, or a look failed
//!                         Running |      v                          failed
//!                               +--- Unclean --force--> Forcing --------------> Stuck, forced again later
//! ```

mod answers;
mod view;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{ADDRESS_GRACE_MS, Permit, Stack, StepRule};
use crate::proof::Resource;
use crate::units::{Epoch, Instant};

/// How much longer than its timeout an order may stay without an answer.
const ANSWER_GRACE_MS: u64 = 2_000;
/// Pause after the first failure; doubled with each that counts.
const BACKOFF_MS: u64 = 500;
/// The longest pause.
const BACKOFF_MAX_MS: u64 = 30_000;
/// What cannot be stopped is tried again after this.
const STUCK_RETRY_MS: u64 = 10_000;
/// Failures remembered.
const FAILURES_MAX: usize = 64;

/// What is to be done with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Look whether it runs, knowing nothing.
    Probe,
    /// Start it. What holds a lifetime may hold it until the end of the lease.
    Start,
    /// Look whether it still runs.
    Monitor,
    /// Let it hold what has a lifetime until the new end of the lease.
    Refresh,
    /// Stop it in order.
    Stop,
    /// Stop it by whatever means there are.
    Force,
}

/// An order to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its number; the answer has the same.
    pub number: u64,
    /// The step.
    pub step: usize,
    /// What to do.
    pub action: Action,
    /// How long it may take.
    pub timeout_ms: u64,
    /// End of the lease, for what has a lifetime.
    pub until: Instant,
}

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; of a look: it runs.
    Done,
    /// Of a look: it surely does not run.
    NotRunning,
    /// It failed, and why.
    Failed(String),
    /// It failed, and will do so here until somebody changes something.
    Refused(String),
}

/// A step as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Stopped,
    Starting,
    Running,
    Stopping,
    /// It was told to stop and did not.
    Unclean,
    Forcing,
    Stuck {
        since: Instant,
    },
}

/// An order under way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Under {
    number: u64,
    action: Action,
    overdue_at: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    state: State,
    under: Option<Under>,
    look_at: Instant,
    until: Instant,
    words: String,
}

/// A step for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: String,
    /// What was last wrong with it.
    pub words: String,
}

/// A stack while it is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runner {
    steps: Vec<Step>,
    permit: Permit,
    /// The reign in which the stack may run, and since when this node has had a lease in it.
    reign: Option<(Epoch, Instant)>,
    /// Steps from this one up are stopped before anything else is done.
    down_to: Option<usize>,
    failures: VecDeque<Instant>,
    given_up: bool,
    wait_until: Instant,
    waits_for: String,
    number: u64,
}

impl Runner {
    /// A stack of which nothing is known.
    #[must_use]
    pub fn new(rule: &Stack) -> Self {
        let step = Step {
            state: State::Unknown,
            under: None,
            look_at: Instant(0),
            until: Instant(0),
            words: String::new(),
        };
        Self {
            steps: rule.steps.iter().map(|_| step.clone()).collect(),
            permit: Permit::Freeze(String::from("nothing is known yet")),
            reign: None,
            down_to: None,
            failures: VecDeque::new(),
            given_up: false,
            wait_until: Instant(0),
            waits_for: String::new(),
            number: 0,
        }
    }

    /// Whether surely nothing of it runs here.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.steps.iter().all(|step| step.state == State::Stopped)
    }

    /// Forgets its failures.
    pub fn forgive(&mut self) {
        self.failures.clear();
        (self.given_up, self.wait_until) = (false, Instant(0));
    }

    /// Numbers of orders that are to be broken off: what they begin is to be gone at once.
    #[must_use]
    pub fn broken_off(&self) -> Vec<u64> {
        if !matches!(self.permit, Permit::Evict(_)) {
            return Vec::new();
        }
        let starts = self.steps.iter().filter_map(|step| step.under.as_ref());
        starts.filter(|under| under.action == Action::Start).map(|under| under.number).collect()
    }

    /// What is to be done now. While `paused`, what runs is looked at and left alone, unless it may not run.
    pub fn turn(&mut self, rule: &Stack, permit: &Permit, paused: bool, now: Instant) -> Vec<Order> {
        self.permit = permit.clone();
        self.note_reign(now);
        self.expire(rule, paused, now);
        self.forget(rule, now);
        let mut orders = Vec::new();
        self.withdraw_addresses(rule, now, &mut orders);
        self.probe(rule, now, &mut orders);
        self.look(rule, now, &mut orders);
        self.refresh(rule, now, &mut orders);
        let changes = |step: &Step| matches!(&step.under, Some(under) if !matches!(under.action, Action::Monitor | Action::Refresh));
        if !self.steps.iter().any(changes) {
            self.advance(rule, paused, now, &mut orders);
        }
        orders
    }

    /// Takes the answer to an order. One that comes too late is not heard.
    pub fn answer(&mut self, rule: &Stack, number: u64, outcome: Outcome, paused: bool, now: Instant) {
        let is_it = |step: &Step| step.under.as_ref().is_some_and(|under| under.number == number);
        let Some(index) = self.steps.iter().position(is_it) else { return };
        let under = self.steps[index].under.take().expect("it was found by this");
        self.take(rule, index, under.action, outcome, paused, now);
    }

    fn note_reign(&mut self, now: Instant) {
        if let Permit::Run { reign, .. } = &self.permit
            && self.reign.is_none_or(|(known, _)| known != *reign)
        {
            self.reign = Some((*reign, now));
        }
    }

    /// Orders that nobody answers have failed.
    fn expire(&mut self, rule: &Stack, paused: bool, now: Instant) {
        for index in 0..self.steps.len() {
            let is_over = self.steps[index].under.as_ref().is_some_and(|under| now >= under.overdue_at);
            if is_over {
                let under = self.steps[index].under.take().expect("it is there");
                let outcome = Outcome::Failed(String::from("it does not answer"));
                self.take(rule, index, under.action, outcome, paused, now);
            }
        }
    }

    fn forget(&mut self, rule: &Stack, now: Instant) {
        self.failures.retain(|at| now.since_ms(*at) < rule.forget_after_ms);
        let count = u32::try_from(self.failures.len()).unwrap_or(u32::MAX);
        // Given up at the limit, tried again when all is forgotten: not at every failure that ages.
        if count >= rule.failures_max {
            self.given_up = true;
        } else if count == 0 {
            self.given_up = false;
        }
    }

    fn fail(&mut self, now: Instant) {
        if self.failures.len() == FAILURES_MAX {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        let doublings = u32::try_from(self.failures.len() - 1).unwrap_or(u32::MAX).min(16);
        self.wait_until = now.plus_ms((BACKOFF_MS << doublings).min(BACKOFF_MAX_MS));
    }

    /// A failure, and perhaps one that trying again does not cure.
    fn fail_with(&mut self, outcome: &Outcome, now: Instant) {
        self.fail(now);
        self.given_up |= matches!(outcome, Outcome::Refused(_));
    }

    fn bring_down_to(&mut self, index: usize) {
        self.down_to = Some(self.down_to.map_or(index, |before| before.min(index)));
    }

    fn order(&mut self, rule: &StepRule, index: usize, action: Action, now: Instant) -> Order {
        self.number += 1;
        let timeout_ms = match action {
            Action::Start => rule.start_timeout_ms,
            Action::Stop | Action::Force => rule.stop_timeout_ms,
            Action::Probe | Action::Monitor | Action::Refresh => rule.monitor_timeout_ms,
        };
        let until = match &self.permit {
            Permit::Run { until, .. } => *until,
            _ => now,
        };
        let overdue_at = now.plus_ms(timeout_ms).plus_ms(ANSWER_GRACE_MS);
        let step = &mut self.steps[index];
        step.under = Some(Under { number: self.number, action, overdue_at });
        match action {
            Action::Start => (step.state, step.until) = (State::Starting, until),
            Action::Refresh => step.until = until,
            Action::Stop => step.state = State::Stopping,
            Action::Force => step.state = State::Forcing,
            Action::Probe | Action::Monitor => {}
        }
        Order { number: self.number, step: index, action, timeout_ms, until }
    }

    /// An address is nobody's without a lease: it goes first, whatever stands above it.
    fn withdraw_addresses(&mut self, rule: &Stack, now: Instant, orders: &mut Vec<Order>) {
        if matches!(self.permit, Permit::Run { .. } | Permit::Stop(_)) {
            return;
        }
        for (index, step_rule) in rule.steps.iter().enumerate() {
            let step = &self.steps[index];
            let waits = step.under.as_ref().is_some_and(|under| {
                !matches!(under.action, Action::Monitor | Action::Refresh | Action::Probe)
            });
            let is_held = matches!(step.state, State::Running | State::Unknown | State::Unclean);
            if step_rule.resource == Resource::Address && is_held && !waits {
                orders.push(self.order(step_rule, index, Action::Force, now));
            }
        }
    }

    fn probe(&mut self, rule: &Stack, now: Instant, orders: &mut Vec<Order>) {
        for (index, step_rule) in rule.steps.iter().enumerate() {
            if self.steps[index].state == State::Unknown && self.steps[index].under.is_none() {
                orders.push(self.order(step_rule, index, Action::Probe, now));
            }
        }
    }

    fn look(&mut self, rule: &Stack, now: Instant, orders: &mut Vec<Order>) {
        if !matches!(self.permit, Permit::Run { .. }) || self.down_to.is_some() {
            return;
        }
        for (index, step_rule) in rule.steps.iter().enumerate() {
            let Some(interval_ms) = step_rule.monitor_interval_ms else { continue };
            let step = &mut self.steps[index];
            if step.state == State::Running && step.under.is_none() && now >= step.look_at {
                step.look_at = now.plus_ms(interval_ms);
                orders.push(self.order(step_rule, index, Action::Monitor, now));
            }
        }
    }

    /// What has a lifetime is given more of it with each renewal of the lease.
    fn refresh(&mut self, rule: &Stack, now: Instant, orders: &mut Vec<Order>) {
        let Permit::Run { until, .. } = self.permit else { return };
        for (index, step_rule) in rule.steps.iter().enumerate() {
            let step = &self.steps[index];
            let is_due = step.state == State::Running && step.until < until && step.under.is_none();
            if step_rule.resource == Resource::Address && is_due {
                orders.push(self.order(step_rule, index, Action::Refresh, now));
            }
        }
    }

    /// One step up or down.
    fn advance(&mut self, rule: &Stack, paused: bool, now: Instant, orders: &mut Vec<Order>) {
        if self.steps.iter().any(|step| step.state == State::Unknown) {
            return;
        }
        let is_running = |step: &Step| step.state != State::Stopped;
        let (floor, by_force) = match &self.permit {
            Permit::Evict(_) => (0, true),
            Permit::Freeze(_) => return,
            _ if paused => return,
            Permit::Stop(_) => (0, false),
            Permit::Run { .. } if self.given_up => (0, false),
            Permit::Run { .. } => (self.base(), false),
        };
        let above = (floor..self.steps.len()).rev();
        if let Some(top) = above.clone().find(|index| self.can_go_down(*index, now)) {
            let is_late = self.steps[top].state != State::Running;
            let action = if by_force || is_late { Action::Force } else { Action::Stop };
            return orders.push(self.order(&rule.steps[top], top, action, now));
        }
        let mut above = above;
        if above.any(|index| is_running(&self.steps[index])) {
            return;
        }
        self.down_to = None;
        if matches!(self.permit, Permit::Run { .. }) && !self.given_up {
            self.go_up(rule, now, orders);
        }
    }

    /// From where on steps are to be stopped before others are started: what did not stop when it was told, too.
    fn base(&self) -> usize {
        let is_left = |step: &Step| matches!(step.state, State::Unclean | State::Stuck { .. });
        let left = self.steps.iter().position(is_left);
        left.into_iter().chain(self.down_to).min().unwrap_or(self.steps.len())
    }

    fn can_go_down(&self, index: usize, now: Instant) -> bool {
        // What stands above and cannot be stopped does not keep what is below: that is taken away from it.
        match self.steps[index].state {
            State::Running | State::Unclean => true,
            State::Stuck { since } => now.since_ms(since) >= STUCK_RETRY_MS,
            _ => false,
        }
    }

    fn go_up(&mut self, rule: &Stack, now: Instant, orders: &mut Vec<Order>) {
        self.waits_for.clear();
        let Some(next) = self.steps.iter().position(|step| step.state != State::Running) else { return };
        if self.steps[next].state != State::Stopped || now < self.wait_until {
            return;
        }
        let step_rule = &rule.steps[next];
        if let Err(why) = self.may_hold(step_rule, now) {
            self.waits_for = format!("{} waits: {why}", step_rule.name);
            return;
        }
        orders.push(self.order(step_rule, next, Action::Start, now));
    }

    /// Whether the lease or the proof of the reign is enough for what a step holds.
    fn may_hold(&self, rule: &StepRule, now: Instant) -> Result<(), String> {
        let Permit::Run { is_sure, .. } = self.permit else { return Err(String::from("it may not run")) };
        let since = self.reign.map_or(now, |(_, since)| since);
        match rule.resource {
            _ if is_sure => Ok(()),
            Resource::Volume | Resource::VolumeService => Ok(()),
            Resource::Address if now.since_ms(since) >= ADDRESS_GRACE_MS => Ok(()),
            Resource::Address => Err(String::from("the kernel of the old node may still hold the address")),
            Resource::Foreign => Err(String::from("it is not proven that the old node is off")),
        }
    }
}
