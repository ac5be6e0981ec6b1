//! Machines that go on and off, devices that switch them off and are not to be trusted, and watchdogs. A machine has two
//! cables for power. The devices of the first level each switch one; the device of the second level switches the machine.

use orchestrator_core::decide::{self, Step, StepKind};
use orchestrator_core::fence::{Device, Next, Outcome, Run, STATUS_OFF};
use orchestrator_core::power::PowerChange;
use orchestrator_core::stack;
use orchestrator_core::state::{Command, State};
use orchestrator_core::units::Instant;

use super::machine::{Armed, Held, Mind};
use super::queue::What;
use super::{Whole, index_of, node_id};
use crate::world::{MS, World};

/// How long a result waits to be told again.
const TELL_MS: u64 = 500;
/// A watchdog is fed this often within its timeout.
const FEEDINGS: u64 = 5;

/// An order that is carried out.
pub(super) struct Fencing {
    executor: usize,
    process: u64,
    target: usize,
    number: u64,
    run: Run,
    /// A device that was asked something and has not answered.
    asked: Option<(Next, Outcome)>,
}

fn device(name: &str, level: u8) -> Device {
    Device { name: name.to_owned(), level, retries: 1, delay_ms: 0 }
}

impl Whole {
    /// A machine has power again, and starts what belongs on it; the replicator is started by whoever starts those.
    pub(super) fn boot(&mut self, world: &mut World, m: usize) {
        let steps = self.policy.stacks.first().map_or(0, |rule| rule.steps.len());
        let machine = &mut self.machines[m];
        (machine.on, machine.feeds) = (true, [true; 2]);
        machine.steps = vec![Held::default(); steps];
        world.note(|| format!("m{m} has power"));
        self.start_orchestrator(world, m);
    }

    pub(super) fn start_orchestrator(&mut self, world: &mut World, m: usize) {
        if self.machines[m].mind.is_some() || !self.machines[m].on {
            return;
        }
        self.next_process += 1;
        // Processes draw their numbers.
        let process = world.random.bits() << 16 | self.next_process;
        let machine = &mut self.machines[m];
        let (now, leases) = (machine.now(world.now), machine.lease_file.clone());
        machine.mind = Some(Mind::new(&self.policy, machine.id, process, now, leases));
        machine.paused_until = 0;
        world.note(|| format!("m{m}: an orchestrator starts"));
        let delay = world.random.below(super::TURN_MS);
        self.later(world, m, delay, What::Turn);
        if m < world.nodes.len() {
            self.later(world, m, delay, What::Observe { since: None });
        }
        if self.draw.watchdog_ms.is_some() {
            self.later(world, m, delay, What::Feed);
        }
    }

    /// The process of an orchestrator ends: what it had in memory is gone, the file of its leases is not.
    pub(super) fn stop_orchestrator(&mut self, world: &mut World, m: usize) {
        let Some(mind) = self.machines[m].mind.take() else { return };
        world.note(|| format!("m{m}: the orchestrator dies"));
        let orders = self.queue.end(m, mind.process);
        if self.machines[m].on {
            self.abandon(world, m, &orders);
        }
    }

    /// A machine is without power.
    pub(super) fn die(&mut self, world: &mut World, m: usize) {
        if !self.machines[m].on {
            return;
        }
        world.note(|| format!("m{m} is off"));
        self.machines[m].on = false;
        self.stop_orchestrator(world, m);
        let machine = &mut self.machines[m];
        machine.boot += 1;
        machine.lease_file.clear();
        machine.steps.fill(Held::default());
        (machine.watchdog, machine.served, machine.paused_until) = (None, None, 0);
        if m < world.nodes.len() && machine.seen_boot == world.nodes[m].boot_id {
            world.lose_power(m);
        }
        if let Some(node) = world.nodes.get(m) {
            self.machines[m].seen_boot = node.boot_id;
        }
    }

    /// Machines that lost their power by what happened to their replicas.
    pub(super) fn note_machines(&mut self, world: &mut World) {
        for m in 0..world.nodes.len() {
            if self.machines[m].seen_boot != world.nodes[m].boot_id {
                self.die(world, m);
                self.machines[m].seen_boot = world.nodes[m].boot_id;
            }
        }
    }

    /// Whether nothing can be started there.
    pub fn is_off(&self, m: usize) -> bool {
        !self.machines[m].on
    }

    /// Feeds the watchdog, or begins to; says whether something may be promoted here.
    pub(super) fn watch_over(&mut self, world: &mut World, m: usize, state: &State, steps: &[Step]) -> bool {
        let Some(timeout_ms) = self.draw.watchdog_ms else { return true };
        let me = self.machines[m].id;
        let mind = self.machines[m].mind.as_mut().expect("it runs");
        let stacks = self.policy.stacks.iter().zip(&mind.stack);
        let occupied = stack::occupied(stacks.map(|(rule, running)| (rule, &running.runner)));
        let fed_until = decide::fed_until(state, me, &mind.local, &occupied);
        let promotes = steps.iter().any(|step| matches!(step.kind, StepKind::Open(_)));
        let may_serve = fed_until != Instant(u64::MAX) || promotes;
        if mind.feeds_until.is_none() && !may_serve {
            return true;
        }
        if mind.feeds_until.replace(fed_until).is_none() {
            let fires_at = self.fires_at(world, m, timeout_ms);
            self.machines[m].watchdog = Some(Armed { timeout_ms, fires_at });
            world.note(|| format!("m{m} arms its watchdog"));
        }
        true
    }

    fn fires_at(&self, world: &World, m: usize, timeout_ms: u64) -> u64 {
        self.machines[m].when(self.now(world, m).plus_ms(timeout_ms))
    }

    /// The watchdog is fed while that is allowed.
    pub(super) fn feed(&mut self, world: &mut World, m: usize) {
        let now = self.now(world, m);
        let timeout_ms = self.draw.watchdog_ms.expect("there is one");
        if self.mind(m).feeds_until.is_some_and(|until| now < until) {
            let fires_at = self.fires_at(world, m, timeout_ms);
            self.machines[m].watchdog = Some(Armed { timeout_ms, fires_at });
        }
        self.later(world, m, timeout_ms / FEEDINGS, What::Feed);
    }

    /// Watchdogs that nobody has fed reset their machines.
    pub(super) fn fire_watchdogs(&mut self, world: &mut World) {
        for m in 0..self.machines.len() {
            if self.machines[m].watchdog.is_some_and(|armed| armed.fires_at <= world.now) {
                world.note(|| format!("the watchdog of m{m} fires"));
                world.mark("watchdog fired");
                self.die(world, m);
            }
        }
    }

    /// Begins what this machine is asked to do.
    pub(super) fn take_orders(&mut self, world: &mut World, m: usize) {
        if !self.is_current(m) {
            return;
        }
        let process = self.mind(m).process;
        for target in 0..world.nodes.len() {
            let order = self.state(m).power.order(node_id(target)).filter(|order| index_of(order.by) == m);
            let Some(number) = order.map(|order| order.number) else { continue };
            let is_it = |known: &Fencing| (known.process, known.number) == (process, number);
            if self.fencings.iter().any(is_it) {
                continue;
            }
            let devices = vec![device("left", 1), device("right", 1), device("board", 2)];
            let run = Run::new(devices, 0);
            world.note(|| format!("m{m} is to switch off m{target}, order {number}"));
            world.mark("orders to switch off");
            self.fencings.push(Fencing { executor: m, process, target, number, run, asked: None });
            self.later(world, m, 1, What::Fence { number });
        }
    }

    /// An order goes on: what was asked is answered, and the next thing is asked.
    pub(super) fn fence(&mut self, world: &mut World, m: usize, number: u64) {
        let process = self.mind(m).process;
        let is_it = |known: &Fencing| (known.executor, known.process, known.number) == (m, process, number);
        let Some(place) = self.fencings.iter().position(is_it) else { return };
        let mut fencing = self.fencings.swap_remove(place);
        let target = fencing.target;
        if let Some((asked, outcome)) = fencing.asked.take() {
            fencing.run.came_to(&self.answered_by_device(world, target, &asked, outcome));
        }
        let is_wanted =
            self.state(m).power.order(node_id(target)).is_some_and(|order| order.number == number);
        if !is_wanted {
            return;
        }
        let mut ms = world.random.below(if self.rough { 600 } else { 50 });
        match fencing.run.next() {
            Next::Wait { .. } => fencing.run.waited(),
            Next::Done(outcome) => {
                self.tell_fenced(world, m, target, number, outcome);
                ms = TELL_MS;
            }
            asked => {
                let outcome = self.device_outcome(world, target, &asked);
                fencing.asked = Some((asked, outcome));
            }
        }
        self.fencings.push(fencing);
        self.later(world, m, ms, What::Fence { number });
    }

    fn tell_fenced(
        &mut self,
        world: &mut World,
        m: usize,
        target: usize,
        number: u64,
        outcome: Result<String, String>,
    ) {
        let Some(leader) = self.raft.leader.filter(|leader| self.talk(world, m, *leader)) else { return };
        let change = PowerChange::Fenced { number, outcome, at_unix_ms: world.now / MS };
        let command = Command::Power { node: node_id(target), change };
        self.propose(world, leader, command, "its devices were asked");
    }

    /// What a device makes of being asked, before anything has happened.
    fn device_outcome(&mut self, world: &mut World, target: usize, asked: &Next) -> Outcome {
        let luck = world.random.below(if self.rough { 10 } else { u64::MAX });
        match (asked, luck) {
            (_, 0) => Outcome::TimedOut,
            (_, 1) => Outcome::Exited(1),
            // It did it, and nobody heard.
            (Next::Off(place), 2) => {
                self.cut_feed(world, target, *place);
                Outcome::TimedOut
            }
            // It says that it did, and did nothing.
            (Next::Off(_), 3) => Outcome::Failed("a lie".to_owned()),
            _ => Outcome::Exited(0),
        }
    }

    /// What it has done when it answers, and what it says.
    fn answered_by_device(
        &mut self,
        world: &mut World,
        target: usize,
        asked: &Next,
        outcome: Outcome,
    ) -> Outcome {
        match (asked, outcome) {
            (Next::Off(_), Outcome::Failed(_)) => Outcome::Exited(0),
            (Next::Off(place), Outcome::Exited(0)) => {
                self.cut_feed(world, target, *place);
                // Whoever stands beside it switches it on again.
                if self.rough && self.is_off(target) && world.random.percent(20) {
                    self.boot(world, target);
                }
                Outcome::Exited(0)
            }
            (Next::Status(place), Outcome::Exited(0)) => {
                let machine = &self.machines[target];
                let is_off = if *place < 2 { !machine.feeds[*place] } else { !machine.on };
                Outcome::Exited(if is_off { STATUS_OFF } else { 0 })
            }
            (_, outcome) => outcome,
        }
    }

    fn cut_feed(&mut self, world: &mut World, target: usize, place: usize) {
        let machine = &mut self.machines[target];
        match machine.feeds.get_mut(place) {
            Some(feed) => *feed = false,
            None => machine.feeds = [false; 2],
        }
        if self.machines[target].feeds == [false; 2] && self.machines[target].on {
            world.note(|| format!("m{target} is switched off"));
            world.mark("switched off");
            self.die(world, target);
        }
    }
}
