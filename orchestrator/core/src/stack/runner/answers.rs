//! What follows from what came of an order.

use alloc::string::String;

use super::super::{Permit, Stack};
use super::{Action, Outcome, Runner, State};
use crate::units::Instant;

impl Runner {
    pub(super) fn take(
        &mut self,
        rule: &Stack,
        index: usize,
        action: Action,
        outcome: Outcome,
        paused: bool,
        now: Instant,
    ) {
        let interval_ms = rule.steps[index].monitor_interval_ms;
        let step = &mut self.steps[index];
        if let Outcome::Failed(words) | Outcome::Refused(words) = &outcome {
            step.words.clone_from(words);
        }
        match (action, outcome) {
            (Action::Probe, Outcome::NotRunning) => step.state = State::Stopped,
            // What cannot be told may run.
            (Action::Probe, Outcome::Done) => step.state = State::Running,
            (Action::Probe, Outcome::Failed(_) | Outcome::Refused(_)) => {
                step.state = State::Running;
                self.bring_down_to(index);
            }
            (Action::Start, Outcome::Done) => {
                step.state = State::Running;
                step.words.clear();
                step.look_at = now.plus_ms(interval_ms.unwrap_or(0));
            }
            // Part of it may run.
            (Action::Start, outcome) => {
                step.state = State::Running;
                // What was broken off has not failed.
                if matches!(self.permit, Permit::Run { .. }) {
                    self.fail_with(&outcome, now);
                }
                self.bring_down_to(index);
            }
            (Action::Monitor, Outcome::Done) => {}
            (Action::Monitor, outcome) => {
                if outcome == Outcome::NotRunning {
                    step.words = String::from("it runs no more");
                }
                // While its volume stands still, it may have no other choice.
                if !paused && step.state == State::Running && matches!(self.permit, Permit::Run { .. }) {
                    self.fail_with(&outcome, now);
                    self.bring_down_to(index);
                }
            }
            // It is removed by its lifetime; a look will tell.
            (Action::Refresh, _) => {}
            (Action::Stop | Action::Force, Outcome::Done | Outcome::NotRunning) => {
                step.state = State::Stopped;
            }
            (Action::Stop, Outcome::Failed(_) | Outcome::Refused(_)) => step.state = State::Unclean,
            (Action::Force, Outcome::Failed(_) | Outcome::Refused(_)) => {
                step.state = State::Stuck { since: now }
            }
        }
    }
}
