//! One stack on one node, told as sentences, and two nodes that follow each other in a world of seeds: its programs hang,
//! fail and die, its orchestrators stop, its leases end. An address is never on both, steps stand on each other, and when
//! faults stop the stack runs.

use std::collections::BTreeMap;

use orchestrator_core::proof::Resource;
use orchestrator_core::stack::{
    ADDRESS_GRACE_MS, ADDRESS_SLACK_MS, Action, Order, Outcome, Permit, Phase, Runner, Stack, StepRule,
    address_lifetime_s,
};
use orchestrator_core::units::{Epoch, Instant};

const LEASE_MS: u64 = 1_000;

fn rule() -> Stack {
    let step = |name: &str, resource| StepRule {
        name: name.to_owned(),
        resource,
        start_timeout_ms: 1_000,
        stop_timeout_ms: 1_000,
        monitor_interval_ms: Some(500),
        monitor_timeout_ms: 500,
    };
    Stack {
        name: "db".to_owned(),
        volumes: Vec::new(),
        steps: vec![
            step("device", Resource::VolumeService),
            step("app", Resource::VolumeService),
            step("address", Resource::Address),
        ],
        prefers: Vec::new(),
        stays: true,
        with: Vec::new(),
        apart: Vec::new(),
        failures_max: 3,
        forget_after_ms: 60_000,
    }
}

/// A node on which orders are carried out at once, unless a test says otherwise.
struct Bench {
    rule: Stack,
    runner: Runner,
    now: u64,
    permit: Permit,
    paused: bool,
    running: BTreeMap<usize, bool>,
    /// Steps that answer nothing, or fail, by action.
    silent: Vec<(usize, Action)>,
    failing: Vec<(usize, Action)>,
    refusing: Vec<(usize, Action)>,
    story: Vec<String>,
}

impl Bench {
    fn new(rule: Stack) -> Self {
        let runner = Runner::new(&rule);
        let permit = Permit::Evict("it is elsewhere".to_owned());
        let (running, silent, failing, story) = (BTreeMap::new(), Vec::new(), Vec::new(), Vec::new());
        let refusing = Vec::new();
        Self { rule, runner, now: 100_000, permit, paused: false, running, silent, failing, refusing, story }
    }

    fn may_run(&mut self, is_sure: bool) {
        self.permit = Permit::Run { until: Instant(u64::MAX / 2), reign: Epoch(1), is_sure };
    }

    fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.now += 10;
            let at = Instant(self.now);
            for order in self.runner.turn(&self.rule, &self.permit, self.paused, at) {
                let (index, action) = (order.step, order.action);
                if !matches!(action, Action::Probe | Action::Monitor | Action::Refresh) {
                    self.story.push(format!("{action:?} {}", self.rule.steps[index].name).to_lowercase());
                }
                if self.silent.contains(&(index, action)) {
                    continue;
                }
                let outcome = if self.failing.contains(&(index, action)) {
                    Outcome::Failed("it fails".to_owned())
                } else if self.refusing.contains(&(index, action)) {
                    Outcome::Refused("it is not installed".to_owned())
                } else {
                    let running = self.running.entry(index).or_default();
                    match action {
                        Action::Start => *running = true,
                        Action::Stop | Action::Force => *running = false,
                        Action::Probe | Action::Monitor | Action::Refresh => {}
                    }
                    let is_look = matches!(action, Action::Probe | Action::Monitor);
                    if is_look && !*running { Outcome::NotRunning } else { Outcome::Done }
                };
                self.runner.answer(&self.rule, order.number, outcome, self.paused, at);
            }
        }
    }

    fn told(&mut self) -> String {
        std::mem::take(&mut self.story).join(", ")
    }

    fn phase(&self) -> Phase {
        self.runner.view(&self.rule).phase
    }

    /// A stack that runs.
    fn running() -> Self {
        let mut bench = Self::new(rule());
        bench.may_run(true);
        bench.pass(200);
        assert_eq!(bench.told(), "start device, start app, start address");
        bench
    }
}

#[test]
fn steps_start_from_the_bottom_and_stop_from_the_top() {
    let mut bench = Bench::running();
    assert_eq!(bench.phase(), Phase::Running);
    bench.permit = Permit::Stop("it is handed over".to_owned());
    bench.pass(200);
    assert_eq!(bench.told(), "stop address, stop app, stop device");
    assert!(bench.runner.is_stopped());
}

#[test]
fn what_runs_already_is_taken_over_and_not_started_again() {
    let mut bench = Bench::new(rule());
    bench.running = [(0, true), (1, true)].into_iter().collect();
    bench.may_run(true);
    bench.pass(200);
    assert_eq!(bench.told(), "start address");
}

#[test]
fn without_a_lease_the_address_goes_and_the_rest_waits() {
    let mut bench = Bench::running();
    bench.permit = Permit::Freeze("no lease".to_owned());
    bench.pass(5_000);
    assert_eq!(bench.told(), "force address");
    assert_eq!(bench.phase(), Phase::Frozen);
    bench.may_run(true);
    bench.pass(200);
    assert_eq!(bench.told(), "start address");
}

#[test]
fn whoever_has_lost_its_volume_is_gone_at_once_the_address_first() {
    let mut bench = Bench::running();
    bench.permit = Permit::Evict("b has it".to_owned());
    bench.pass(200);
    assert_eq!(bench.told(), "force address, force app, force device");
}

#[test]
fn an_address_waits_until_the_kernel_of_the_old_node_has_surely_taken_it_away() {
    let mut bench = Bench::new(rule());
    bench.may_run(false);
    bench.pass(ADDRESS_GRACE_MS - 10);
    assert_eq!(bench.told(), "start device, start app");
    bench.pass(50);
    assert_eq!(bench.told(), "start address");
}

#[test]
fn what_no_lease_takes_away_waits_for_proof() {
    let mut rule = rule();
    rule.steps[1].resource = Resource::Foreign;
    let mut bench = Bench::new(rule);
    bench.may_run(false);
    bench.pass(10_000);
    assert_eq!(bench.told(), "start device");
    assert!(bench.runner.view(&bench.rule).note.contains("not proven"));
    bench.may_run(true);
    bench.pass(200);
    assert_eq!(bench.told(), "start app, start address");
}

#[test]
fn a_step_that_fails_is_started_again_with_all_above_it_and_nothing_below() {
    let mut bench = Bench::running();
    bench.running.insert(1, false);
    bench.pass(2_000);
    assert_eq!(bench.told(), "stop address, stop app, start app, start address");
    assert_eq!(bench.runner.view(&bench.rule).failures, 1);
}

#[test]
fn one_that_fails_too_often_is_given_up_and_tried_again_when_that_is_forgotten() {
    let mut bench = Bench::running();
    bench.failing.push((1, Action::Monitor));
    bench.pass(20_000);
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(bench.runner.is_stopped());
    bench.failing.clear();
    bench.told();
    bench.pass(30_000);
    assert_eq!(bench.told(), "", "its failures count");
    bench.pass(40_000);
    assert_eq!(bench.phase(), Phase::Running);
}

#[test]
fn what_would_fail_again_is_not_tried_again_here() {
    let mut bench = Bench::new(rule());
    bench.may_run(true);
    bench.refusing.push((1, Action::Start));
    bench.pass(20_000);
    assert_eq!(bench.told(), "start device, start app, stop app, stop device");
    let view = bench.runner.view(&bench.rule);
    assert_eq!((view.phase, view.given_up, view.failures), (Phase::Failed, true, 1));
    assert_eq!(view.steps[1].words, "it is not installed");
    bench.refusing.clear();
    bench.runner.forgive();
    bench.pass(500);
    assert_eq!(bench.phase(), Phase::Running);
}

#[test]
fn an_operator_can_have_failures_forgotten() {
    let mut bench = Bench::running();
    bench.failing.push((1, Action::Monitor));
    bench.pass(20_000);
    bench.failing.clear();
    bench.runner.forgive();
    bench.pass(500);
    assert_eq!(bench.phase(), Phase::Running);
}

#[test]
fn what_does_not_stop_is_stopped_by_force() {
    let mut bench = Bench::running();
    bench.failing.push((1, Action::Stop));
    bench.permit = Permit::Stop("it is handed over".to_owned());
    bench.pass(500);
    assert_eq!(bench.told(), "stop address, stop app, force app, stop device");
}

#[test]
fn what_cannot_be_stopped_keeps_its_volume_and_is_tried_again() {
    let mut bench = Bench::running();
    bench.failing = vec![(1, Action::Stop), (1, Action::Force)];
    bench.permit = Permit::Stop("it is handed over".to_owned());
    bench.pass(500);
    // What is below is taken away from it.
    assert_eq!(bench.told(), "stop address, stop app, force app, stop device");
    assert_eq!((bench.phase(), bench.runner.is_stopped()), (Phase::Stuck, false));
    bench.failing.clear();
    bench.pass(11_000);
    assert_eq!(bench.told(), "force app");
    assert!(bench.runner.is_stopped());
}

#[test]
fn what_could_not_be_stopped_is_stopped_when_it_may_run_again() {
    let mut bench = Bench::running();
    bench.failing = vec![(1, Action::Stop), (1, Action::Force)];
    bench.permit = Permit::Stop("it is handed over".to_owned());
    bench.pass(500);
    bench.may_run(true);
    bench.failing.clear();
    bench.told();
    bench.pass(11_000);
    assert_eq!(bench.told(), "force app, start device, start app, start address");
}

#[test]
fn one_that_hangs_keeps_nobody_waiting() {
    let mut bench = Bench::running();
    bench.silent.push((1, Action::Stop));
    bench.permit = Permit::Stop("it is handed over".to_owned());
    bench.pass(5_000);
    assert_eq!(bench.told(), "stop address, stop app, force app, stop device");
}

#[test]
fn a_start_that_is_under_way_is_broken_off_when_somebody_else_has_the_volume() {
    let mut bench = Bench::new(rule());
    bench.silent.push((1, Action::Start));
    bench.may_run(true);
    bench.pass(200);
    assert!(bench.runner.broken_off().is_empty());
    bench.permit = Permit::Evict("b has it".to_owned());
    bench.pass(10);
    assert_eq!(bench.runner.broken_off().len(), 1);
    bench.pass(5_000);
    assert_eq!(bench.told(), "start device, start app, force app, force device");
    assert_eq!(bench.runner.view(&bench.rule).failures, 0, "it has not failed");
}

#[test]
fn while_paused_nothing_is_started_stopped_or_counted() {
    let mut bench = Bench::running();
    bench.paused = true;
    bench.running.insert(1, false);
    bench.permit = Permit::Stop("it is handed over".to_owned());
    bench.pass(2_000);
    bench.may_run(true);
    bench.pass(2_000);
    assert_eq!(bench.told(), "");
    assert_eq!(bench.runner.view(&bench.rule).failures, 0);
    bench.paused = false;
    bench.pass(2_000);
    assert_eq!(bench.phase(), Phase::Running);
}

/// A node of the world of seeds.
struct Machine {
    bench: Runner,
    up: bool,
    lease: Instant,
    running: [bool; 3],
    /// When the kernel surely has taken the address away.
    address_until: u64,
    under: Vec<(u64, Order)>,
}

/// Two machines, one lease, and whoever grants it.
struct Pair {
    rule: Stack,
    machines: [Machine; 2],
    primary: usize,
    epoch: u64,
    is_sure: bool,
    granted: u64,
    seed: u64,
    now: u64,
    moves: u32,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let rule = rule();
        let machine = || Machine {
            bench: Runner::new(&rule),
            up: true,
            lease: Instant(0),
            running: [false; 3],
            address_until: 0,
            under: Vec::new(),
        };
        let machines = [machine(), machine()];
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { rule, machines, primary: 0, epoch: 1, is_sure: true, granted: 0, seed, now: 0, moves: 0 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % bound
    }

    fn run(&mut self, ms: u64, faulty: bool) {
        let end = self.now + ms;
        while self.now < end {
            self.now += 10;
            if faulty && self.below(100) == 0 {
                let index = usize::try_from(self.below(2)).unwrap();
                match self.below(4) {
                    0 => self.machines[index].up = false,
                    1 => self.start(index),
                    2 => self.machines[index].running[1] = false,
                    _ => self.take_over(),
                }
            }
            if !faulty {
                (0..2).for_each(|index| self.start(index));
            }
            (0..2).for_each(|index| self.turn(index, faulty));
            self.check();
        }
    }

    /// Its orchestrator begins again and knows nothing but its lease.
    fn start(&mut self, index: usize) {
        if !self.machines[index].up {
            let machine = &mut self.machines[index];
            (machine.up, machine.bench) = (true, Runner::new(&self.rule));
            machine.under.clear();
        }
    }

    /// The other one is to serve; it is granted a lease when the old one has ended.
    fn take_over(&mut self) {
        (self.primary, self.epoch, self.is_sure) = (1 - self.primary, self.epoch + 1, false);
        self.moves += 1;
    }

    fn turn(&mut self, index: usize, faulty: bool) {
        let drawn = self.below(1_000);
        let (now, is_primary) = (self.now, self.primary == index);
        let other_ended = self.now >= self.machines[1 - index].lease.0;
        let machine = &mut self.machines[index];
        if machine.address_until <= now {
            machine.running[2] = false;
        }
        if !machine.up {
            return;
        }
        if is_primary && other_ended && machine.lease.0 < now + 750 {
            machine.lease = Instant(now + LEASE_MS);
            self.granted += 1;
        }
        let permit = match is_primary {
            false => Permit::Evict("the other has it".to_owned()),
            true if machine.lease.0 <= now => Permit::Freeze("no lease".to_owned()),
            true => Permit::Run { until: machine.lease, reign: Epoch(self.epoch), is_sure: self.is_sure },
        };
        let orders = machine.bench.turn(&self.rule, &permit, false, Instant(now));
        for order in orders {
            // Most answer soon, some late, some never.
            let late = if !faulty || drawn > 20 { 10 + drawn % 40 } else { drawn * 300 };
            // What takes longer than it may is killed, and answers nothing.
            if late < order.timeout_ms {
                machine.under.push((now + late, order));
            }
        }
        let (due, rest): (Vec<_>, Vec<_>) = machine.under.drain(..).partition(|(at, _)| *at <= now);
        machine.under = rest;
        for (_, order) in due {
            let outcome = Self::act(machine, &order, now);
            machine.bench.answer(&self.rule, order.number, outcome, false, Instant(now));
        }
    }

    fn act(machine: &mut Machine, order: &Order, now: u64) -> Outcome {
        let step = order.step;
        let lifetime = address_lifetime_s(Instant(now), order.until);
        match order.action {
            Action::Start | Action::Refresh if step == 2 => match lifetime {
                Some(seconds) => {
                    machine.running[2] = true;
                    machine.address_until = now + u64::from(seconds) * 1_000 + ADDRESS_SLACK_MS;
                    Outcome::Done
                }
                None => Outcome::Failed("the lease is nearly over".to_owned()),
            },
            Action::Start => {
                // The app in the middle may have died by itself.
                assert!(
                    machine.running[..step].iter().take(1).all(|running| *running),
                    "it stands on nothing"
                );
                machine.running[step] = true;
                Outcome::Done
            }
            Action::Stop | Action::Force => {
                machine.running[step] = false;
                Outcome::Done
            }
            Action::Probe | Action::Monitor if machine.running[step] => Outcome::Done,
            Action::Probe | Action::Monitor => Outcome::NotRunning,
            Action::Refresh => Outcome::Done,
        }
    }

    fn check(&self) {
        let holders = self.machines.iter().filter(|machine| machine.running[2]).count();
        assert!(holders < 2, "both have the address at {}", self.now);
    }
}

#[test]
fn an_address_is_never_on_both_nodes_and_in_the_end_the_stack_runs() {
    let mut moves = 0;
    for seed in 0..300 {
        let result = std::panic::catch_unwind(|| {
            let mut pair = Pair::new(seed);
            pair.run(60_000, true);
            pair.run(100_000, false);
            let machine = &pair.machines[pair.primary];
            assert_eq!(machine.bench.view(&pair.rule).phase, Phase::Running);
            assert!(machine.running.iter().all(|running| *running));
            assert!(pair.machines[1 - pair.primary].bench.is_stopped());
            pair.moves
        });
        moves += result.unwrap_or_else(|_| panic!("seed {seed} failed"));
    }
    assert!(moves > 300, "{moves} moves: a world in which nothing happens proves nothing");
}
