//! Decisions: pure functions of the committed state, what is observed, and the time. `plan` and `explain` are these
//! functions, asked with another view or read for their notes, so they cannot say something else than what is done.

mod candidate;
mod cluster;
mod explain;
mod fence;
mod grant;
mod lead;
mod moves;
mod node;
mod plan;
mod seal;
mod stack;

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::state::Command;

pub use cluster::cluster;
pub use explain::{Explanation, Finding, explain_node, explain_volume};
pub(crate) use fence::needs_off;
pub use fence::{Awaited, Need, executor, fed_until};
pub use grant::{Withheld, may_grant};
pub use lead::successor;
pub use node::{Local, Step, StepKind, node, wants_lease};
pub use plan::{Fault, Planned, plan};
pub use seal::Seal;

/// What the leader is to do, and why nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Entries to propose, in order; each is checked again when it is applied.
    pub proposals: Vec<Proposal>,
    /// Replicas that are to promise an epoch before something can be proposed; all can be asked at once.
    pub seals: Vec<Seal>,
    /// What is so, for people: why something is done or is not.
    pub notes: Vec<Note>,
    /// Nodes that something waits for to be off.
    pub needs: Vec<Need>,
}

/// An entry to propose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The entry.
    pub command: Command,
    /// Why.
    pub reason: String,
}

/// How much attention something needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It passes by itself.
    Note,
    /// Redundancy is affected.
    Warning,
    /// Clients or data are affected.
    Error,
}

/// Something worth saying about a volume, or about the power of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Name of the volume, or of the node.
    pub volume: String,
    /// How much attention it needs.
    pub severity: Severity,
    /// What is so.
    pub text: String,
}
