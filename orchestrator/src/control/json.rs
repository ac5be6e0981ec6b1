//! The words of the orchestrator's control interface. Core types are mapped here, so that a change inside does not change
//! what programs outside read.

use orchestrator_core::decide::{Note, Planned};
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
    /// What the leader says about volumes; empty elsewhere.
    pub notes: Vec<Note>,
    /// What came of switching nodes off, the newest last.
    pub power: Vec<PastReport>,
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
