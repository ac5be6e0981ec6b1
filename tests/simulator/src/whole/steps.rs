//! What a node does about itself: its replica follows the record, its stack is started and stopped. Steps of stacks are
//! fakes that take their time and sometimes fail.

use orchestrator_core::decide::{self, StepKind};
use orchestrator_core::proof::Resource;
use orchestrator_core::stack::{self, ADDRESS_SLACK_MS, Action, Order, Outcome};
use orchestrator_core::units::Instant;

use super::queue::What;
use super::{VOLUME, Whole};
use crate::world::World;

impl Whole {
    /// What the record asks of the replica here.
    pub(super) fn own_steps(&mut self, world: &mut World, m: usize) {
        if !self.is_current(m) {
            return;
        }
        let now = self.now(world, m);
        let (state, me) = (self.state(m).clone(), self.machines[m].id);
        let mind = self.machines[m].mind.as_mut().expect("it runs");
        let detectors = mind.detectors.iter_mut();
        mind.local.suspected = detectors
            .filter_map(|(id, detector)| (!detector.advance(now).is_heard()).then_some(*id))
            .collect();
        let local = &mut mind.local;
        local.now = now;
        local.settle(&state, me);
        local.ask(&state, &self.policy, me);
        let steps = decide::node(&state, &self.policy, me, local);
        let is_safe = self.watch_over(world, m, &state, &steps);
        for step in steps {
            let promotes = matches!(step.kind, StepKind::Open(_));
            if (is_safe || !promotes) && self.mind(m).begin(step.kind) {
                let lease = self.mind(m).local.leases.get(&VOLUME).copied();
                let ms = self.moment_ms(world);
                self.later(world, m, ms, What::Act { step: Box::new(step), lease });
            }
        }
    }

    /// Has the stack here make its next step.
    pub(super) fn turn_stack(&mut self, world: &mut World, m: usize) {
        let now = self.now(world, m);
        let (is_current, me) = (self.is_current(m), self.machines[m].id);
        let state = self.raft.state(self.machines[m].applied);
        let mind = self.machines[m].mind.as_mut().expect("it runs");
        let (Some(running), Some(rule)) = (&mut mind.stack, self.policy.stacks.first()) else { return };
        mind.local.now = now;
        running.permit = match is_current {
            true => stack::permit(state, &self.policy, me, &mind.local, rule),
            false => running.permit.at(now),
        };
        let orders = running.runner.turn(rule, &running.permit, false, now);
        for order in orders {
            self.begin_order(world, m, order);
        }
    }

    fn begin_order(&mut self, world: &mut World, m: usize, order: Order) {
        let rule = &self.policy.stacks[0].steps[order.step];
        let text = format!("m{m}: {:?} of {}", order.action, rule.name);
        world.note(|| text);
        self.check_order(world, m, &order);
        let most = order.timeout_ms;
        let (fails, ms) = match (self.rough, order.action) {
            (false, _) => (false, world.random.below(20)),
            (true, Action::Start) => (world.random.percent(8), world.random.below(most)),
            (true, Action::Stop) => (world.random.percent(10), world.random.below(most)),
            (true, Action::Force) => (world.random.percent(4), world.random.below(most / 4)),
            (true, _) => (world.random.percent(2), world.random.below(most / 8)),
        };
        let outcome = if fails { Outcome::Failed("it was to fail".to_owned()) } else { Outcome::Done };
        self.later(world, m, ms, What::Done { order, outcome });
    }

    /// An order has taken its time: what it does is done now, and its stack goes on.
    pub(super) fn step_carried_out(&mut self, world: &mut World, m: usize, order: &Order, outcome: Outcome) {
        let outcome = self.carry_out(world, m, order, outcome);
        let now = self.now(world, m);
        let mind = self.machines[m].mind.as_mut().expect("it runs");
        let (Some(running), Some(rule)) = (&mut mind.stack, self.policy.stacks.first()) else { return };
        running.runner.answer(rule, order.number, outcome, false, now);
        self.turn_stack(world, m);
    }

    /// What an order does to the machine.
    pub(super) fn carry_out(
        &mut self,
        world: &mut World,
        m: usize,
        order: &Order,
        outcome: Outcome,
    ) -> Outcome {
        if self.policy.stacks[0].steps[order.step].resource == Resource::Address {
            return self.carry_out_address(world, m, order, outcome);
        }
        let fails = outcome != Outcome::Done;
        let runs = self.machines[m].steps[order.step].runs;
        match order.action {
            Action::Probe | Action::Monitor if !fails && !runs => {
                self.machines[m].steps[order.step].crashed = false;
                return Outcome::NotRunning;
            }
            Action::Probe | Action::Monitor | Action::Refresh => {}
            // Part of it may run.
            Action::Start if fails && world.random.percent(50) => {}
            Action::Start => self.begins_to_run(world, m, order.step),
            Action::Stop | Action::Force if fails => {}
            Action::Stop | Action::Force => {
                let held = &mut self.machines[m].steps[order.step];
                (held.runs, held.crashed) = (false, false);
            }
        }
        outcome
    }

    fn carry_out_address(&mut self, world: &mut World, m: usize, order: &Order, outcome: Outcome) -> Outcome {
        let now = self.now(world, m);
        let is_there = self.machines[m].steps[order.step].until > world.now;
        match order.action {
            Action::Probe | Action::Monitor if !is_there => Outcome::NotRunning,
            Action::Refresh if !is_there => Outcome::NotRunning,
            Action::Probe | Action::Monitor => Outcome::Done,
            Action::Start | Action::Refresh if outcome != Outcome::Done => outcome,
            Action::Start | Action::Refresh => {
                let Some(seconds) = stack::address_lifetime_s(now, order.until) else {
                    return Outcome::Failed("the lease is nearly over".to_owned());
                };
                let slack_ms = world.random.below(ADDRESS_SLACK_MS + 1);
                let end = Instant(now.0 + u64::from(seconds) * 1000 + slack_ms);
                self.hold_address(world, m, order.step, end);
                Outcome::Done
            }
            Action::Stop | Action::Force => {
                if outcome == Outcome::Done {
                    self.machines[m].steps[order.step].until = 0;
                }
                outcome
            }
        }
    }

    /// The process of `m` ends: what its threads were doing is done or not, and nobody hears of it.
    pub(super) fn abandon(&mut self, world: &mut World, m: usize, orders: &[Order]) {
        for order in orders {
            if world.random.percent(50) {
                self.carry_out(world, m, order, Outcome::Done);
            }
        }
    }
}
