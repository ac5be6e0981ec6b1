//! What must hold whatever goes wrong: nobody has what another has, steps run in their order and once, and evidence is
//! true. Judged by what was done, not by what anybody decided.

use orchestrator_core::power::Means;
use orchestrator_core::proof::Resource;
use orchestrator_core::stack::{Action, Order};
use orchestrator_core::units::{Epoch, Instant};

use super::{VOLUME, Whole, index_of};
use crate::rule::broken;
use crate::world::World;

impl Whole {
    /// Takes note of who serves in which reign, and that no two could answer clients now.
    pub(super) fn note_serving(&mut self, world: &World) {
        let mut able = None;
        for m in 0..world.nodes.len() {
            if !world.nodes[m].serving {
                continue;
            }
            self.machines[m].served = Some(Epoch(world.ledger.saved(m).record.epoch.0));
            if world.may_answer(m)
                && let Some(other) = able.replace(m)
            {
                broken(
                    "two-able-to-answer",
                    format!("nodes {other} and {m} both serve, and each has a lease"),
                );
            }
        }
    }

    /// An order of a stack begins.
    pub(super) fn check_order(&self, world: &World, m: usize, order: &Order) {
        let machine = &self.machines[m];
        let (steps, rules) = (&machine.steps, &self.policy.stacks[0].steps);
        let name = &rules[order.step].name;
        let is_address = |step: usize| rules[step].resource == Resource::Address;
        let runs = |step: usize| {
            steps[step].runs || steps[step].crashed || is_address(step) && steps[step].until > world.now
        };
        match order.action {
            Action::Start => {
                let record = self.state(m).records.get(&VOLUME);
                let epoch = record.map(|record| record.epoch);
                if epoch.is_none() || machine.served != epoch {
                    broken(
                        "stack-before-volume",
                        format!(
                            "m{m} starts {name} in epoch {epoch:?}, and served last in {:?}",
                            machine.served
                        ),
                    );
                }
                let lease = machine.lease_file.get(&VOLUME).copied().unwrap_or_default();
                if machine.now(world.now) >= lease {
                    broken("stack-without-lease", format!("m{m} starts {name} after the end of its lease"));
                }
                // An address below may go by its lifetime at any time; a look finds that.
                if let Some(below) = (0..order.step).find(|step| !is_address(*step) && !runs(*step)) {
                    let below = &rules[below].name;
                    broken("stack-out-of-order", format!("m{m} starts {name}, and {below} does not run"));
                }
                if !is_address(order.step) && steps[order.step].runs {
                    broken("stack-started-twice", format!("m{m} starts {name}, which runs"));
                }
            }
            Action::Stop => {
                let above = (order.step + 1..rules.len()).find(|step| steps[*step].runs);
                // What cannot be stopped does not keep what is below.
                if let Some(above) = above.filter(|_| !self.is_stuck(m)) {
                    let above = &rules[above].name;
                    broken("stack-out-of-order", format!("m{m} stops {name}, and {above} still runs"));
                }
            }
            _ => {}
        }
    }

    fn is_stuck(&self, m: usize) -> bool {
        let running = self.machines[m].mind.as_ref().and_then(|mind| mind.stack.as_ref());
        running.is_some_and(|running| {
            let view = running.runner.view(&self.policy.stacks[0]);
            view.phase == orchestrator_core::stack::Phase::Stuck
        })
    }

    /// Something of a stack begins to run. What nothing takes away is nowhere else.
    pub(super) fn begins_to_run(&mut self, world: &mut World, m: usize, step: usize) {
        let rule = &self.policy.stacks[0].steps[step];
        let others = (0..world.nodes.len()).filter(|other| *other != m && self.machines[*other].on);
        let other = others.clone().find(|other| self.machines[*other].steps[step].runs);
        if let Some(other) = other.filter(|_| rule.resource == Resource::Foreign) {
            broken("runs-twice", format!("{} runs on m{other} and on m{m}", rule.name));
        }
        let held = &mut self.machines[m].steps[step];
        (held.runs, held.crashed) = (true, false);
        world.mark("steps started");
    }

    /// The kernel of `m` has an address until then. Nobody else has it.
    pub(super) fn hold_address(&mut self, world: &mut World, m: usize, step: usize, end: Instant) {
        let until = self.machines[m].when(end);
        for other in (0..world.nodes.len()).filter(|other| *other != m) {
            let held = self.machines[other].steps[step];
            if self.machines[other].on && held.until > world.now {
                let ms = (held.until - world.now) as f64 / 1e6;
                broken(
                    "address-held-twice",
                    format!("m{m} takes the address, m{other} has it for {ms:.1} ms"),
                );
            }
        }
        if self.machines[m].steps[step].until <= world.now {
            world.mark("address taken");
        }
        self.machines[m].steps[step].until = until;
        world.note(|| format!("m{m} has the address until {:.6}", until as f64 / 1e9));
    }

    /// What is agreed on to be off has ended.
    pub(super) fn check_evidence(&self) {
        let state = self.raft.state(self.raft.committed());
        for (node, one) in &state.power.nodes {
            let machine = &self.machines[index_of(*node)];
            let Some(off) = one.off.as_ref().filter(|off| matches!(off.means, Means::Agent { .. })) else {
                continue;
            };
            if machine.on && off.boot.is_some_and(|boot| boot.0 == machine.boot) {
                broken("off-and-running", format!("m{} is said to be off, and its boot goes on", node.0));
            }
        }
    }

    /// Whether all is as it is to be at rest: the record's primary serves, what stands on its volume runs there alone.
    pub fn is_well(&self, world: &World) -> bool {
        let state = self.raft.state(self.raft.committed());
        let Some(record) = state.records.get(&VOLUME) else { return false };
        let Some(primary) = record.primary.map(index_of).filter(|_| record.opened) else { return false };
        let all_run = self.machines.iter().all(|machine| machine.runs(world.now));
        if !all_run || world.serving() != Some(primary) {
            return false;
        }
        let Some(rule) = self.policy.stacks.first() else { return true };
        (0..world.nodes.len()).all(|m| {
            let mut held = rule.steps.iter().zip(&self.machines[m].steps);
            held.all(|(rule, held)| {
                let has = match rule.resource {
                    Resource::Address => held.until > world.now,
                    _ => held.runs,
                };
                has == (m == primary)
            })
        })
    }

    /// Whether it was agreed on, in that reign and after that version, that somebody holds what is acknowledged of whom a
    /// replica that followed was never told. It does not know that the end of its log waits for that one, too, so it takes
    /// for acknowledged what was not.
    pub fn was_not_told(&self, epoch: u64, version: u64) -> bool {
        let records = self.raft.states().iter().filter_map(|state| state.records.get(&VOLUME));
        let mut of_reign = records.filter(|record| record.epoch.0 == epoch);
        let told = of_reign.clone().find(|record| record.version == version).map(|record| record.in_sync);
        of_reign.any(|record| {
            record.version > version && told.is_some_and(|told| !record.in_sync.is_subset(told))
        })
    }

    /// How things stand, for whoever reads a failure.
    pub fn story(&self, world: &World) -> String {
        let state = self.raft.state(self.raft.committed());
        let mut lines = vec![
            format!("record {:?}", state.records.get(&VOLUME)),
            format!("power {:?}, leader {:?}", state.power.nodes, self.raft.leader),
        ];
        for (m, machine) in self.machines.iter().enumerate() {
            let mind = machine.mind.as_ref();
            let notes = mind.and_then(|mind| mind.stack.as_ref()).map(|running| &running.permit);
            lines.push(format!(
                "m{m} on {} runs {} boot {} applied {} of {} told {:?} steps {:?} permit {notes:?} leases {:?} view {:?}",
                machine.on,
                machine.runs(world.now),
                machine.boot,
                machine.applied,
                self.raft.committed(),
                mind.and_then(|mind| mind.told),
                machine.steps,
                machine.lease_file,
                mind.map(|mind| &mind.local.replicas),
            ));
        }
        lines.join("\n")
    }
}
