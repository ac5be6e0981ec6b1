//! What a leader does: it decides, proposes, and asks for promises.

use orchestrator_core::decide::{self, Seal};
use orchestrator_core::record::{ChangeKind, Order, Refused};
use orchestrator_core::state::Command;
use orchestrator_core::view::Report;

use super::consensus::Outcome;
use super::queue::{AskSeal, What};
use super::{Whole, index_of};
use crate::world::{MS, World};

/// How long a replica may take to give its promise.
const SEAL_WITHIN_MS: u64 = 2000;
/// How long one that did not is done without, before it is asked again.
const UNSEALED_FOR_MS: u64 = 2000;
/// The least time between two attempts to give the lead to another.
const HAND_OVER_EVERY_MS: u64 = 5000;

/// The record on which a change of the primary was decided.
fn changes_primary(command: &Command) -> Option<Order> {
    match command {
        Command::Change { change, .. } => {
            matches!(change.kind, ChangeKind::Takeover(_) | ChangeKind::Release).then_some(change.expected)
        }
        _ => None,
    }
}

impl Whole {
    pub(super) fn decide(&mut self, world: &mut World, m: usize) {
        let state = self.state(m).clone();
        let now = self.now(world, m);
        self.give_up_seals(world, m);
        if let Some(leading) = &mut self.mind(m).leading {
            leading.note_evidence(&state);
        }
        // What comes next is decided on what is under way, once that is known.
        if self.raft.leader == Some(m) && !self.raft.is_settled() {
            return;
        }
        let Some(view) = self.view(world, m) else { return };
        let me = self.machines[m].id;
        if let Some(next) = decide::successor(&state, &self.policy, &view, me) {
            self.hand_over(world, m, index_of(next));
        }
        let decision = decide::cluster(&state, &self.policy, &view);
        let Some(leading) = &mut self.mind(m).leading else { return };
        leading.awaited.note(&decision.needs, &state.power, now);
        for proposal in &decision.proposals {
            if let Some(decided_on) = changes_primary(&proposal.command) {
                leading.closing = Some(decided_on);
            }
        }
        for seal in decision.seals {
            self.ask_seal(world, m, seal);
        }
        for proposal in decision.proposals {
            self.propose(world, m, proposal.command, &proposal.reason);
        }
    }

    /// Proposes an entry as a leader, or as somebody who takes itself for one.
    pub(super) fn propose(&mut self, world: &mut World, m: usize, command: Command, reason: &str) {
        let majorities = self.majorities(world);
        let changes = changes_primary(&command).is_some();
        let text = format!("{command}");
        let (now, rough) = (world.now / MS, self.rough);
        let below = &mut |end| world.random.below(end);
        let outcome = self.raft.propose(m, command, &majorities, now, below, rough);
        let committed = self.raft.committed();
        match outcome {
            Outcome::Applied(result) => {
                let machine = &mut self.machines[m];
                machine.applied = committed;
                if let Some(leading) = machine.mind.as_mut().and_then(|mind| mind.leading.as_mut()) {
                    leading.closing = leading.closing.filter(|_| !changes);
                }
                match result {
                    Ok(()) => {
                        world.note(|| format!("m{m} decides: {text}, since {reason}"));
                        world.mark(if changes { "takeovers and releases" } else { "other decisions" });
                    }
                    Err(Refused::Stale(_)) => {}
                    Err(refused) => world.note(|| format!("m{m} is refused: {text}: {refused}")),
                }
            }
            Outcome::Unknown => world.note(|| format!("m{m} does not know what comes of: {text}")),
            Outcome::NotLeader => {}
        }
    }

    /// Has another lead, once in a while.
    fn hand_over(&mut self, world: &mut World, m: usize, next: usize) {
        let now = self.now(world, m);
        let majorities = self.majorities(world);
        let Some(leading) = &mut self.mind(m).leading else { return };
        if now.since_ms(leading.handed_over_at) < HAND_OVER_EVERY_MS {
            return;
        }
        leading.handed_over_at = now;
        if self.raft.confirms(m, &majorities) && majorities.contains(&next) {
            world.note(|| format!("m{m} gives the lead to m{next}"));
            self.raft.elect(next, &mut |end| world.random.below(end));
        }
    }

    fn ask_seal(&mut self, world: &mut World, m: usize, seal: Seal) {
        let until = self.now(world, m).plus_ms(SEAL_WITHIN_MS);
        let attempt = world.random.bits();
        let mind = self.mind(m);
        let process = mind.process;
        let Some(leading) = &mut mind.leading else { return };
        if leading.sealing.contains_key(&seal.node) {
            return;
        }
        leading.sealing.insert(seal.node, (attempt, until));
        let ask = AskSeal { seal, leader: m, leader_process: process, attempt };
        self.send(world, m, index_of(seal.node), What::Seal(ask));
    }

    /// Promises that were not given in time.
    fn give_up_seals(&mut self, world: &World, m: usize) {
        let now = self.now(world, m);
        let volume = self.policy.volumes[0].id;
        let Some(leading) = &mut self.mind(m).leading else { return };
        let late = leading.sealing.extract_if(.., |_, (_, until)| now >= *until);
        for (node, _) in late {
            leading.unsealed.insert((volume, node), now.plus_ms(UNSEALED_FOR_MS));
        }
    }

    /// What came of it: how the node is now, or nothing.
    pub(super) fn end_seal(
        &mut self,
        world: &mut World,
        m: usize,
        seal: Seal,
        attempt: u64,
        report: Option<Report>,
    ) {
        let now = self.now(world, m);
        let Some(leading) = &mut self.mind(m).leading else { return };
        if leading.sealing.get(&seal.node).is_none_or(|(known, _)| *known != attempt) {
            return;
        }
        leading.sealing.remove(&seal.node);
        match (report, leading.reports.get_mut(&seal.node)) {
            (Some(report), Some(known)) => (known.0, known.3) = (now, report),
            (Some(_), None) => {}
            (None, _) => {
                leading.unsealed.insert((seal.volume, seal.node), now.plus_ms(UNSEALED_FOR_MS));
            }
        }
        self.wake(world, m);
    }
}
