//! What would happen: the decisions themselves, asked again and again with a copy of the state and a clock of its own.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Severity, cluster};
use crate::policy::Policy;
use crate::state::State;
use crate::units::{Instant, NodeId};
use crate::view::{Health, View};

/// Looks at the clock this often.
const STEP_MS: u64 = 50;
/// Looks no further than this beyond the last moment at which something changed.
const HORIZON_MS: u64 = 60_000;

/// Something that would happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// How long from now.
    pub after_ms: u64,
    /// What, and why.
    pub text: String,
}

/// What would be decided if `dead` were not heard any more from now on. Nothing that others observe changes in the
/// meantime, so this says what the first decisions would be, not how long opening takes.
#[must_use]
pub fn plan(state: &State, policy: &Policy, view: &View, dead: Option<NodeId>) -> Vec<Planned> {
    let (mut state, mut view) = (state.clone(), view.clone());
    let began = view.now;
    let suspected_at = began.plus_ms(policy.detection.suspect_after_ms);
    let mut planned = Vec::new();
    let mut changed_at = suspected_at;
    while view.now <= changed_at.plus_ms(HORIZON_MS) {
        if let Some(node) = dead.and_then(|dead| view.nodes.get_mut(&dead))
            && view.now >= suspected_at
            && node.health.is_heard()
        {
            node.health = Health::Suspected { since: began };
        }
        let decision = cluster(&state, policy, &view);
        let before = planned.len();
        for proposal in decision.proposals {
            if state.apply(&proposal.command).is_ok() {
                planned.push(Planned { after_ms: view.now.since_ms(began), text: proposal.reason });
            }
        }
        if planned.len() > before {
            changed_at = view.now;
        }
        view.now = next(view.now);
    }
    let last = cluster(&state, policy, &view);
    let stuck = last.notes.into_iter().filter(|note| note.severity == Severity::Error);
    planned.extend(
        stuck
            .map(|note| Planned { after_ms: view.now.since_ms(began), text: note.volume + " " + &note.text }),
    );
    planned
}

fn next(now: Instant) -> Instant {
    now.plus_ms(STEP_MS)
}
