//! Reigns that could go on and are to end: an operator wants the volume elsewhere, its node is in standby, or what stands on it
//! is better elsewhere. What stands on it is stopped first.

use alloc::format;
use alloc::string::String;

use super::candidate::{best, fit, reasons};
use super::cluster::One;
use super::stack::{self, Move};
use super::{Proposal, Severity};
use crate::record::{ChangeKind, Record};
use crate::stack::Phase;
use crate::state::Command;
use crate::units::NodeId;
use crate::view::Health;

impl One<'_> {
    /// A reign that could go on ends only because an operator wants it elsewhere, or what stands on the volume does not run
    /// here.
    pub(super) fn consider_moving(&mut self, record: &Record, primary: NodeId) {
        let wanted = self.state.wanted.get(&self.volume.id).copied();
        let leaves = self.state.standby.contains(&primary);
        let move_to = match wanted {
            Some(wanted) if wanted != primary => self.wanted_on(record, wanted),
            // In standby the primary itself is no candidate.
            _ if leaves => best(self.state, self.policy, self.view, self.volume, record)
                .map(|(node, _)| Move { to: node, reason: format!("{} is in standby", self.name(primary)) }),
            _ => stack::better_place(self.state, self.policy, self.view, self.volume, record, primary),
        };
        if let Some(Move { to, reason }) = move_to {
            self.hand_over(record, primary, to, &reason);
            return;
        }
        if self.is_leaving(record) {
            let reason = format!("{} stays on {} after all", self.volume.name, self.name(primary));
            self.leave(record, false, reason);
        }
        if leaves {
            let why = reasons(self.state, self.view, self.policy, self.volume, record, Some(primary));
            let text = format!(
                "stays on {}, which is in standby, since nobody can follow: {why}",
                self.name(primary)
            );
            self.say(Severity::Warning, text);
        }
    }

    /// Where an operator wants it, if it can go there.
    fn wanted_on(&mut self, record: &Record, wanted: NodeId) -> Option<Move> {
        let is_steady = self.view.nodes.get(&wanted).is_some_and(|node| node.health == Health::Alive);
        match fit(self.state, self.view, self.volume, record, wanted) {
            // Somebody else would be preferred, and it would move for nothing.
            Ok(_) if !is_steady => {
                let text = format!("is wanted on {}, which is in quarantine", self.name(wanted));
                self.say(Severity::Warning, text);
                None
            }
            Ok(_) => Some(Move { to: wanted, reason: String::from("an operator wants it there") }),
            Err(unfit) => {
                let text = format!("is wanted on {}, which {}", self.name(wanted), unfit.text());
                self.say(Severity::Warning, text);
                None
            }
        }
    }

    /// Ends a reign in order: what stands on the volume is stopped first, then it is released.
    fn hand_over(&mut self, record: &Record, primary: NodeId, to: NodeId, reason: &str) {
        let is_occupied =
            self.view.report(primary).is_some_and(|report| report.occupied.contains(&self.volume.id));
        let what = format!("{} is to follow {}, since {reason}", self.name(to), self.name(primary));
        if !is_occupied {
            return self.propose(record, ChangeKind::Release, what);
        }
        if !self.is_leaving(record) {
            return self.leave(record, true, format!("{what}: stacks are stopped first"));
        }
        let policy = self.policy;
        for stack in policy.stacks_on(self.volume.id) {
            let phase = self.view.stack(&stack.name, primary).map(|view| view.phase);
            if phase == Some(Phase::Stuck) {
                let name = self.name(primary);
                let reason = format!("{} cannot be stopped there", stack.name);
                self.need(primary, self.policy.fence.stop_patience_ms, reason);
                let text = format!("{what}; but {} cannot be stopped on {name}", stack.name);
                return self.say(Severity::Error, text);
            }
        }
        self.say(Severity::Warning, format!("{what}; what stands on it is being stopped"));
    }

    fn is_leaving(&self, record: &Record) -> bool {
        self.state.leaving.get(&self.volume.id) == Some(&record.epoch)
    }

    fn leave(&mut self, record: &Record, on: bool, reason: String) {
        let command = Command::Leave { volume: self.volume.id, epoch: record.epoch, on };
        self.out.proposals.push(Proposal { command, reason });
    }
}
