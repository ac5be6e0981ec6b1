//! Raft as seen from outside: one log, at most one leader that a majority confirms, others that still believe they lead,
//! and entries of which nobody knows for a while whether they are agreed on.

use std::collections::VecDeque;

use orchestrator_core::record::Refused;
use orchestrator_core::state::{Command, State};

use crate::random::Random;

/// What came of a proposal.
pub(crate) enum Outcome {
    Applied(Result<(), Refused>),
    Unknown,
    NotLeader,
}

/// The log and who leads.
pub(crate) struct Raft {
    pub(crate) leader: Option<usize>,
    pub(crate) term: u64,
    /// The state after each entry; the first is the state before any.
    states: Vec<State>,
    /// Proposed, not agreed on, and not forgotten.
    limbo: VecDeque<Command>,
    limbo_until: u64,
    elect_at: u64,
}

impl Raft {
    pub(crate) fn new() -> Self {
        let states = vec![State::default()];
        Self { leader: None, term: 0, states, limbo: VecDeque::new(), limbo_until: 0, elect_at: 0 }
    }

    /// Number of entries agreed on.
    pub(crate) fn committed(&self) -> usize {
        self.states.len() - 1
    }

    pub(crate) fn state(&self, applied: usize) -> &State {
        &self.states[applied]
    }

    fn push(&mut self, command: &Command) -> Result<(), Refused> {
        let mut state = self.states.last().expect("there is a first").clone();
        let result = state.apply(command);
        self.states.push(state);
        result
    }

    /// Time goes on. `majorities` are the nodes that reach a majority, themselves included.
    pub(crate) fn turn(&mut self, now: u64, majorities: &[usize], random: &mut Random, faulty: bool) {
        let is_deposed = self.leader.is_none_or(|leader| !majorities.contains(&leader));
        if is_deposed && self.elect_at == 0 {
            self.elect_at = now + 150 + random.below(450);
        }
        if !is_deposed {
            self.elect_at = 0;
        }
        let is_due = is_deposed && now >= self.elect_at;
        if (is_due || faulty && random.once_in(800)) && !majorities.is_empty() {
            let place = usize::try_from(random.below(majorities.len() as u64)).expect("small");
            self.leader = Some(majorities[place]);
            self.term += 1;
            self.elect_at = 0;
            // The new leader has some of what was under way, from the beginning on.
            let kept = random.below(self.limbo.len() as u64 + 1);
            for _ in 0..kept {
                let command = self.limbo.pop_front().expect("counted");
                let _ = self.push(&command);
            }
            self.limbo.clear();
        }
        if !is_deposed && now >= self.limbo_until {
            while let Some(command) = self.limbo.pop_front() {
                let _ = self.push(&command);
            }
        }
    }

    /// Whether a majority confirms now that `node` leads.
    pub(crate) fn confirms(&self, node: usize, majorities: &[usize]) -> bool {
        self.leader == Some(node) && majorities.contains(&node)
    }

    pub(crate) fn propose(
        &mut self,
        node: usize,
        command: Command,
        majorities: &[usize],
        now: u64,
        random: &mut Random,
        faulty: bool,
    ) -> Outcome {
        if self.leader != Some(node) {
            return Outcome::NotLeader;
        }
        let is_slow = !majorities.contains(&node) || faulty && random.once_in(8);
        if is_slow || !self.limbo.is_empty() {
            // What is proposed later is never agreed on earlier.
            if self.limbo.is_empty() {
                self.limbo_until = now + random.below(1500);
            }
            self.limbo.push_back(command);
            return Outcome::Unknown;
        }
        Outcome::Applied(self.push(&command))
    }
}
