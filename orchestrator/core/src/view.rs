//! What is observed and not agreed on: who is heard, and what each node says of its replicas. It may be wrong or old;
//! decisions made of it are checked against the record when they are applied.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::record::{Change, Order};
use crate::stack::StackView;
use crate::units::{BootId, Epoch, Instant, NodeId, NodeSet, Position, VolumeId};

/// The cluster as the Raft leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Now.
    pub now: Instant,
    /// When this node became leader: nobody before it has granted a lease after that.
    pub leader_since: Instant,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// The newest lease granted by this leader, for each volume and holder.
    pub grants: BTreeMap<(VolumeId, NodeId), Instant>,
    /// Nodes that something has been waiting for to be off, and since when.
    pub awaited: BTreeMap<NodeId, Instant>,
    /// Replicas that were asked for a promise a short while ago and did not give it.
    pub unsealed: BTreeSet<(VolumeId, NodeId)>,
    /// Fresh random bits, for the identities of reigns.
    pub entropy: u128,
}

/// One node as seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Whether it is heard.
    pub health: Health,
    /// What it said last.
    pub report: Option<Report>,
}

/// Whether a node is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It is heard.
    Alive,
    /// It is heard again after it was suspected, and is given nothing before that time.
    Quarantined {
        /// Until when.
        until: Instant,
    },
    /// It has not been heard for too long.
    Suspected {
        /// Since when.
        since: Instant,
    },
}

impl Health {
    /// Its word for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Quarantined { .. } => "quarantined",
            Self::Suspected { .. } => "suspected",
        }
    }

    /// Whether the node is heard.
    #[must_use]
    pub fn is_heard(self) -> bool {
        !matches!(self, Self::Suspected { .. })
    }
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its replicas.
    pub replicas: BTreeMap<VolumeId, ReplicaView>,
    /// Volumes whose lease it holds or has asked for. One that is not in here is not served by this node, and will not be
    /// without a new grant.
    pub leases: BTreeSet<VolumeId>,
    /// Changes of records that it asks for as their primary.
    pub requests: BTreeMap<VolumeId, Request>,
    /// The machine itself.
    #[serde(default)]
    pub machine: Machine,
    /// Volumes that something of a stack may still use there.
    #[serde(default)]
    pub occupied: BTreeSet<VolumeId>,
    /// Its stacks, by name.
    #[serde(default)]
    pub stacks: BTreeMap<String, StackView>,
}

/// What a node says of its machine.
#[derive(Clone, core::marker::Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its boot.
    pub boot: BootId,
    /// Timeout of the watchdog that it has armed, and feeds only while what runs here may.
    pub watchdog_ms: Option<u64>,
    /// Nodes that it could switch off: agents are here, and take what the configuration gives them.
    pub fences: NodeSet,
}

/// A change that a primary asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The change. While the record is what it was decided on, nothing else is asked for.
    pub change: Change,
    /// Why.
    pub reason: String,
}

/// A replica as its node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaView {
    /// It runs and says this.
    Running(Replica),
    /// Its process has surely ended: nothing of it can answer anybody.
    Stopped,
    /// It does not answer, and may yet serve.
    Silent(String),
}

/// What a running replica says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// What it does.
    pub role: Role,
    /// Whether its copy is usable: UpToDate and not suspect.
    pub copy: Copy,
    /// Whether it cannot have lost volatile state since it last acknowledged.
    pub proven: bool,
    /// Highest epoch promised.
    pub promised: Epoch,
    /// End of its log.
    pub head: Position,
    /// What it knows committed.
    pub committed: Position,
    /// The newest record it was told.
    pub record: Order,
    /// The in-sync set in that record.
    pub in_sync: NodeSet,
    /// Replicas that follow it now, if it is primary.
    pub following: NodeSet,
    /// Replicas that it would have in its set, if it is primary: it counts them already, until it is told a later record
    /// that is without them.
    pub pending: NodeSet,
}

/// What a replica does.
#[derive(Clone, core::marker::Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It serves nobody.
    Secondary,
    /// It is on its way to serve, or to stop serving.
    Changing,
    /// It serves.
    Primary,
}

/// What a copy is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copy {
    /// An exact earlier state of the primary's, or its present one.
    UpToDate,
    /// Not to be promoted, and why, in DRBD's words.
    Unusable(String),
}

impl View {
    /// Whether a node that is heard says that it neither serves a volume nor may, and that nothing above it runs.
    #[must_use]
    pub fn is_quiet(&self, volume: VolumeId, node: NodeId) -> bool {
        let report = self.nodes.get(&node).filter(|node| node.health.is_heard());
        let report = report.and_then(|node| node.report.as_ref());
        report.is_some_and(|report| {
            let quiet = match report.replicas.get(&volume) {
                Some(ReplicaView::Stopped) => true,
                Some(ReplicaView::Running(replica)) => replica.role == Role::Secondary,
                Some(ReplicaView::Silent(_)) | None => false,
            };
            quiet && !report.leases.contains(&volume) && !report.occupied.contains(&volume)
        })
    }

    /// What a node says of itself, if it is heard.
    #[must_use]
    pub fn report(&self, node: NodeId) -> Option<&Report> {
        let view = self.nodes.get(&node)?;
        if view.health.is_heard() { view.report.as_ref() } else { None }
    }

    /// What a node says of a stack, if it is heard.
    #[must_use]
    pub fn stack(&self, name: &str, node: NodeId) -> Option<&StackView> {
        self.report(node)?.stacks.get(name)
    }

    /// What a replica says, if its node is heard and it runs.
    #[must_use]
    pub fn replica(&self, volume: VolumeId, node: NodeId) -> Option<&Replica> {
        match self.replica_view(volume, node)? {
            ReplicaView::Running(replica) => Some(replica),
            _ => None,
        }
    }

    /// What a node says of its replica, if it is heard.
    #[must_use]
    pub fn replica_view(&self, volume: VolumeId, node: NodeId) -> Option<&ReplicaView> {
        let view = self.nodes.get(&node)?;
        if view.health.is_heard() { view.report.as_ref()?.replicas.get(&volume) } else { None }
    }
}
