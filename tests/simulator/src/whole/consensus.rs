//! Consensus as seen from outside: one log, at most one leader that a majority confirms, others that still believe they
//! lead, and entries of which nobody knows for a while whether they are agreed on. A model, not an algorithm: how nodes
//! vote is openraft's matter, and tested with it.

use std::collections::VecDeque;

use orchestrator_core::record::Refused;
use orchestrator_core::state::{Command, State};

/// A number below its argument, drawn from the seed.
pub type Below<'r> = &'r mut dyn FnMut(u64) -> u64;

/// What came of a proposal.
pub enum Outcome {
    Applied(Result<(), Refused>),
    Unknown,
    NotLeader,
}

/// The log and who leads.
pub struct Raft {
    pub leader: Option<usize>,
    pub term: u64,
    /// The state after each entry; the first is the state before any.
    states: Vec<State>,
    /// Proposed, not agreed on, and not forgotten.
    limbo: VecDeque<Command>,
    limbo_until: u64,
    elect_at: u64,
}

impl Default for Raft {
    fn default() -> Self {
        Self::new()
    }
}

impl Raft {
    pub fn new() -> Self {
        let states = vec![State::default()];
        Self { leader: None, term: 0, states, limbo: VecDeque::new(), limbo_until: 0, elect_at: 0 }
    }

    /// Number of entries agreed on.
    pub fn committed(&self) -> usize {
        self.states.len() - 1
    }

    pub fn state(&self, applied: usize) -> &State {
        &self.states[applied]
    }

    /// What was agreed on after each entry, the oldest first.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    fn push(&mut self, command: &Command) -> Result<(), Refused> {
        let mut state = self.states.last().expect("there is a first").clone();
        let result = state.apply(command);
        self.states.push(state);
        result
    }

    /// Time goes on, in milliseconds. `majorities` are the nodes that reach a majority, themselves included.
    pub fn turn(&mut self, now: u64, majorities: &[usize], below: Below<'_>, faulty: bool) {
        let is_deposed = self.leader.is_none_or(|leader| !majorities.contains(&leader));
        if is_deposed && self.elect_at == 0 {
            self.elect_at = now + 150 + below(450);
        }
        if !is_deposed {
            self.elect_at = 0;
        }
        let is_due = is_deposed && now >= self.elect_at;
        if (is_due || faulty && below(800) == 0) && !majorities.is_empty() {
            let place = usize::try_from(below(majorities.len() as u64)).expect("small");
            self.elect(majorities[place], below);
        }
        if !is_deposed && now >= self.limbo_until {
            while let Some(command) = self.limbo.pop_front() {
                let _ = self.push(&command);
            }
        }
    }

    /// `node` leads from now on, chosen by a majority.
    pub fn elect(&mut self, node: usize, below: Below<'_>) {
        self.leader = Some(node);
        self.term += 1;
        self.elect_at = 0;
        // The new leader has some of what was under way, from the beginning on.
        let kept = below(self.limbo.len() as u64 + 1);
        for _ in 0..kept {
            let command = self.limbo.pop_front().expect("counted");
            let _ = self.push(&command);
        }
        self.limbo.clear();
    }

    /// Whether everything that was proposed is agreed on, or forgotten.
    pub fn is_settled(&self) -> bool {
        self.limbo.is_empty()
    }

    /// Whether a majority confirms now that `node` leads.
    pub fn confirms(&self, node: usize, majorities: &[usize]) -> bool {
        self.leader == Some(node) && majorities.contains(&node)
    }

    pub fn propose(
        &mut self,
        node: usize,
        command: Command,
        majorities: &[usize],
        now: u64,
        below: Below<'_>,
        faulty: bool,
    ) -> Outcome {
        if self.leader != Some(node) {
            return Outcome::NotLeader;
        }
        let is_slow = !majorities.contains(&node) || faulty && below(8) == 0;
        if is_slow || !self.limbo.is_empty() {
            // What is proposed later is never agreed on earlier.
            if self.limbo.is_empty() {
                self.limbo_until = now + below(1500);
            }
            self.limbo.push_back(command);
            return Outcome::Unknown;
        }
        Outcome::Applied(self.push(&command))
    }
}
