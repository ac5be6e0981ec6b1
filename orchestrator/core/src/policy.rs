//! What the configuration tells the core: the same on all nodes, and never changed by a decision.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::fence::Rules;
use crate::lease::Terms;
use crate::stack::Stack;
use crate::units::{NodeId, VolumeId};

/// A cluster as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its nodes, witnesses among them.
    pub nodes: Vec<Node>,
    /// Its volumes.
    pub volumes: Vec<Volume>,
    /// How leases are given.
    pub lease: Terms,
    /// How failures are noticed.
    pub detection: Detection,
    /// How long a takeover waits for a proven member before it takes an unproven one.
    pub unproven_grace_ms: u64,
    /// How long a primary waits for a member that does not follow before it asks for a set without it.
    pub member_patience_ms: u64,
    /// When nodes are switched off.
    pub fence: Rules,
    /// What runs above volumes.
    pub stacks: Vec<Stack>,
}

/// A machine with a vote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
}

/// A replicated volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its identity.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// The nodes with a replica, the preferred one first.
    pub replicas: Vec<NodeId>,
}

/// How failures are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detection {
    /// Interval of heartbeats on each link.
    pub heartbeat_ms: u64,
    /// Silence on all links after which a node is suspected, on links as steady as they should be.
    pub suspect_after_ms: u64,
    /// Silence after which it is suspected however unsteady the links were.
    pub suspect_at_most_ms: u64,
    /// How long a node that was suspected must be heard before it may be given anything again; doubled each time.
    pub quarantine_ms: u64,
    /// The longest quarantine.
    pub quarantine_at_most_ms: u64,
    /// How long a node must be heard without a break for its suspicions to be forgotten.
    pub forgive_after_ms: u64,
}

impl Default for Detection {
    fn default() -> Self {
        Self {
            heartbeat_ms: 50,
            suspect_after_ms: 300,
            suspect_at_most_ms: 2_000,
            quarantine_ms: 1_000,
            quarantine_at_most_ms: 300_000,
            forgive_after_ms: 600_000,
        }
    }
}

impl Policy {
    /// The name of a node, or its number if it is not configured.
    #[must_use]
    pub fn node_name(&self, id: NodeId) -> String {
        let found = self.nodes.iter().find(|node| node.id == id);
        found.map_or_else(|| id.to_string(), |node| node.name.clone())
    }

    /// The volume with that identity.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    /// The stacks that stand on a volume.
    pub fn stacks_on(&self, volume: VolumeId) -> impl Iterator<Item = &Stack> {
        self.stacks.iter().filter(move |stack| stack.uses(volume))
    }

    /// The stacks that can run on a node: it has a replica of each of their volumes.
    pub fn stacks_of(&self, node: NodeId) -> impl Iterator<Item = &Stack> {
        let has = move |id: &VolumeId| self.volume(*id).is_some_and(|volume| volume.replicas.contains(&node));
        self.stacks.iter().filter(move |stack| stack.volumes.iter().all(has))
    }

    /// The names of nodes, as they stand in a text.
    #[must_use]
    pub fn names(&self, nodes: impl IntoIterator<Item = NodeId>) -> String {
        let names: Vec<String> = nodes.into_iter().map(|node| self.node_name(node)).collect();
        if names.is_empty() { "nobody".to_string() } else { names.join(", ") }
    }
}
