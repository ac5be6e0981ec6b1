//! How a stack is on this node: for the others, who decide by it, and for people.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::super::{Permit, Phase, Stack, StackView};
use super::{Runner, State, StepView};

impl Runner {
    /// How it is, for the others and for people.
    #[must_use]
    pub fn view(&self, rule: &Stack) -> StackView {
        let steps = rule.steps.iter().zip(&self.steps).map(|(rule, step)| StepView {
            name: rule.name.clone(),
            state: word(step.state).to_string(),
            words: step.words.clone(),
        });
        let steps: Vec<StepView> = steps.collect();
        let note = match &self.permit {
            Permit::Run { .. } => self.waits_for.clone(),
            Permit::Freeze(why) | Permit::Stop(why) | Permit::Evict(why) => why.clone(),
        };
        let failures = u32::try_from(self.failures.len()).unwrap_or(u32::MAX);
        StackView { phase: self.phase(), failures, given_up: self.given_up, note, steps }
    }

    fn phase(&self) -> Phase {
        let any = |state: fn(State) -> bool| self.steps.iter().any(|step| state(step.state));
        match &self.permit {
            _ if any(|state| matches!(state, State::Stuck { .. })) => Phase::Stuck,
            _ if any(|state| state == State::Unknown) => Phase::Unknown,
            Permit::Run { .. } if self.given_up => Phase::Failed,
            Permit::Run { .. } if self.down_to.is_some() => Phase::Stopping,
            Permit::Run { .. } if self.steps.iter().all(|step| step.state == State::Running) => {
                Phase::Running
            }
            Permit::Run { .. } => Phase::Starting,
            _ if self.is_stopped() => Phase::Stopped,
            Permit::Freeze(_) => Phase::Frozen,
            Permit::Stop(_) | Permit::Evict(_) => Phase::Stopping,
        }
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Unknown => "unknown",
        State::Stopped => "stopped",
        State::Starting => "starting",
        State::Running => "running",
        State::Stopping => "stopping",
        State::Unclean => "not stopped",
        State::Forcing => "stopping by force",
        State::Stuck { .. } => "stuck",
    }
}
