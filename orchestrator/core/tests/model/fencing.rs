//! Switching machines off, as the shell does it: orders of the record are carried out with devices that are not to be
//! trusted, and what came of them goes to whoever leads.

use orchestrator_core::fence::{Device, Next, Outcome, Run, STATUS_OFF};
use orchestrator_core::power::{Order, PowerChange};
use orchestrator_core::state::Command;
use orchestrator_core::units::NodeId;

use crate::world::World;

/// How long a result waits to be sent again.
const SEND_MS: u64 = 500;

/// An order being carried out.
pub(crate) struct Fencing {
    executor: usize,
    process: u64,
    target: usize,
    number: u64,
    run: Run,
    due: u64,
}

impl World {
    fn order(&self, executor: usize, target: usize) -> Option<&Order> {
        let state = self.raft.state(self.machines[executor].applied);
        let target = NodeId(u8::try_from(target).expect("few"));
        state.power.order(target).filter(|order| usize::from(order.by.0) == executor)
    }

    /// Begins what this machine is asked to do.
    pub(crate) fn take_orders(&mut self, index: usize) {
        if self.machines[index].told.is_none_or(|told| self.machines[index].applied < told) {
            return;
        }
        for target in 0..self.machines.len() {
            let Some(number) = self.order(index, target).map(|order| order.number) else { continue };
            let process = self.machines[index].process;
            let is_under_way = |fencing: &Fencing| {
                (fencing.executor, fencing.process, fencing.number) == (index, process, number)
            };
            if self.fencings.iter().any(is_under_way) {
                continue;
            }
            let device = Device { name: "ipmi".to_owned(), level: 1, retries: 1, delay_ms: 0 };
            let run = Run::new(vec![device], 0);
            self.fencings.push(Fencing { executor: index, process, target, number, run, due: self.now });
        }
    }

    /// What is under way goes on.
    pub(crate) fn switch_off(&mut self, faulty: bool, majorities: &[usize]) {
        for (_, target) in self.late.extract_if(.., |(at, _)| *at <= self.now).collect::<Vec<_>>() {
            self.cut_power(target);
        }
        for mut fencing in std::mem::take(&mut self.fencings) {
            let machine = &self.machines[fencing.executor];
            let is_wanted = self
                .order(fencing.executor, fencing.target)
                .is_some_and(|order| order.number == fencing.number);
            if !machine.orchestrator_up || machine.process != fencing.process || !is_wanted {
                continue;
            }
            if fencing.due <= self.now {
                self.advance(&mut fencing, faulty, majorities);
            }
            self.fencings.push(fencing);
        }
    }

    fn advance(&mut self, fencing: &mut Fencing, faulty: bool, majorities: &[usize]) {
        fencing.due = self.now + self.random.below(if faulty { 400 } else { 100 });
        match fencing.run.next() {
            Next::Wait { .. } => fencing.run.waited(),
            Next::Off(_) => {
                let outcome = self.ask_off(fencing.target, faulty);
                fencing.run.came_to(&outcome);
            }
            Next::Status(_) => {
                let is_on = self.machines[fencing.target].up;
                let outcome = match self.random.below(if faulty { 6 } else { u64::MAX }) {
                    0 => Outcome::TimedOut,
                    1 => Outcome::Exited(1),
                    _ => Outcome::Exited(if is_on { 0 } else { STATUS_OFF }),
                };
                fencing.run.came_to(&outcome);
            }
            Next::Done(outcome) => {
                fencing.due = self.now + SEND_MS;
                let Some(leader) = self.raft.leader.filter(|leader| self.talks(fencing.executor, *leader))
                else {
                    return;
                };
                let change = PowerChange::Fenced { number: fencing.number, outcome, at_unix_ms: self.now };
                let node = NodeId(u8::try_from(fencing.target).expect("few"));
                let command = Command::Power { node, change };
                let below = &mut |end| self.random.below(end);
                let _ = self.raft.propose(leader, command, majorities, self.now, below, faulty);
            }
        }
    }

    /// A device is asked to switch a machine off.
    fn ask_off(&mut self, target: usize, faulty: bool) -> Outcome {
        match self.random.below(if faulty { 8 } else { u64::MAX }) {
            0 => Outcome::Exited(1),
            1 => Outcome::TimedOut,
            // It says that it did, and did nothing.
            2 => Outcome::Exited(0),
            // It did it, and nobody heard.
            3 => {
                self.cut_power(target);
                Outcome::TimedOut
            }
            // It does it later.
            4 => {
                let at = self.now + self.random.below(3000);
                self.late.push((at, target));
                Outcome::TimedOut
            }
            _ => {
                self.cut_power(target);
                // Whoever stands beside it switches it on again.
                if faulty && self.random.once_in(4) {
                    self.start(target);
                }
                Outcome::Exited(0)
            }
        }
    }

    fn cut_power(&mut self, target: usize) {
        self.tell(&format!("machine {target} is switched off"));
        self.machines[target].die();
    }
}
