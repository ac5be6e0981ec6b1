//! The words of the orchestrator's control interface. Core types are mapped here, so that a change inside does not change
//! what programs outside read.

pub use orchestrator_core::decide::{Explanation, Finding, Note, Planned, Severity};
pub use orchestrator_core::stack::{Phase, StackView, StepView};
use serde::{Deserialize, Serialize};

use crate::mind::Event;

/// Answer to `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the node that answers.
    pub node: String,
    /// Process id of its orchestrator.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// Who leads.
    pub leader: Option<String>,
    /// The election that leader won.
    pub term: u64,
    /// Entries applied here.
    pub applied: u64,
    /// Whether everything is paused.
    pub paused: bool,
    /// The nodes, as heard by this one.
    pub nodes: Vec<NodeReport>,
    /// The volumes, as agreed on.
    pub volumes: Vec<VolumeReport>,
    /// What runs above them.
    pub stacks: Vec<StackReport>,
    /// What the leader says; empty if nobody leads.
    pub notes: Vec<Note>,
    /// What came of switching nodes off, the newest last.
    pub power: Vec<PastReport>,
    /// Why this node is none of the cluster, if the leader says so.
    #[serde(default)]
    pub excluded: Option<String>,
    /// What happened here, the newest last.
    pub events: Vec<Event>,
}

/// Something that was about the power of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastReport {
    /// The node.
    pub node: String,
    /// When, in milliseconds since 1970, if anybody looked at a clock.
    pub at_unix_ms: Option<u64>,
    /// What.
    pub text: String,
}

/// A node as heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// `alive`, `quarantined` or `suspected`.
    pub health: String,
    /// Whether it votes.
    pub votes: bool,
    /// Suspicions that are not forgiven yet.
    pub suspicions: u32,
    /// Whether it is to be given nothing.
    pub standby: bool,
    /// Whether nothing is to be done about it.
    pub paused: bool,
    /// What is agreed on about its power, if it is not simply on.
    pub power: Option<String>,
    /// Timeout of the watchdog that it has armed.
    pub watchdog_ms: Option<u64>,
}

/// A stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackReport {
    /// Its name.
    pub name: String,
    /// Where its first volume is primary.
    pub node: Option<String>,
    /// How it is on each node of which this one knows: all of them at the leader, itself elsewhere.
    pub at: Vec<StackAt>,
}

/// A stack on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackAt {
    /// The node.
    pub node: String,
    /// How it is there, its steps included.
    #[serde(flatten)]
    pub view: StackView,
}

/// A volume as agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Its name.
    pub name: String,
    /// Whether nothing is to be done about it.
    pub paused: bool,
    /// Where an operator wants it.
    pub wanted: Option<String>,
    /// Its record, if it has one yet.
    pub record: Option<RecordReport>,
    /// How long this node may still serve it, if it may.
    pub lease_ms: Option<u64>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordReport {
    /// The reign.
    pub epoch: u64,
    /// Change of the record within the reign.
    pub version: u64,
    /// Who may write.
    pub primary: Option<String>,
    /// Whether it has begun to serve.
    pub opened: bool,
    /// Who holds every acknowledged write.
    pub in_sync: Vec<String>,
    /// What client sessions are bound to.
    pub generation: u64,
    /// Why the newest takeover was safe.
    pub proof: String,
}

/// Answer to `GET /v1/plan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What would happen, in order.
    pub steps: Vec<Planned>,
}

/// Answer to `GET /v1/explain/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// The volume or the node.
    pub about: String,
    /// Why it is so, by the leader.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// What was decided about it, the newest last.
    pub history: Vec<DecisionReport>,
}

/// Answer to `GET /v1/history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decisions {
    /// Decisions ever made; those that are not kept any more among them.
    pub count: u64,
    /// What is kept and was asked for, the newest last.
    pub decisions: Vec<DecisionReport>,
}

/// Something that was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionReport {
    /// Counts from 1.
    pub number: u64,
    /// When, in milliseconds since 1970, by the clock of whoever proposed it.
    pub at_unix_ms: u64,
    /// The volume that it is about, if it is about one.
    pub volume: Option<String>,
    /// The node, if it is about one.
    pub node: Option<String>,
    /// What.
    pub text: String,
    /// Why.
    pub reason: String,
}

/// Answer to `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Drawn when the process started: the numbers of another one are others.
    pub process: String,
    /// What happened, the newest last.
    pub events: Vec<Event>,
}

/// Body of `POST /v1/volumes/{volume}/move`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// Where to; absent: nowhere in particular any more.
    pub to: Option<String>,
}

/// Answer to `GET /v1/nodes/{node}/fence`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencePlan {
    /// The node that would be switched off.
    pub node: String,
    /// Who would do it; without one nobody can.
    pub by: Option<String>,
    /// How, in order.
    pub ways: Vec<String>,
    /// Volumes that it is primary of.
    pub primary_of: Vec<String>,
    /// What would be decided without it.
    pub steps: Vec<Planned>,
}

/// Body of `POST /v1/nodes/{node}/fence` and `POST /v1/nodes/{node}/confirm-off`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Word {
    /// Whose word it is.
    pub who: String,
}

/// Body of `POST /v1/nodes/{node}/standby` and `POST /v1/pause`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// Whether it is to be so.
    pub on: bool,
    /// Of a pause: only this volume.
    #[serde(default)]
    pub volume: Option<String>,
    /// Of a pause: only this node.
    #[serde(default)]
    pub node: Option<String>,
}

/// Body of `POST /v1/nodes/{node}/token`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// How long the token is good for.
    pub valid_ms: u64,
}

/// Answer to it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invited {
    /// What the machine that is to be this node is told.
    pub token: String,
    /// The node.
    pub node: String,
    /// How long the token is good for.
    pub valid_ms: u64,
}

/// Body of `POST /v1/keys/rotate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateKeys {
    /// Whether to stop before the old keys are dropped.
    #[serde(default)]
    pub keep_old: bool,
}
