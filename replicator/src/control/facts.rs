//! What the configuration adds to a replica's picture of itself: names for numbers, addresses, the kind of feed.

use std::sync::{Arc, PoisonError, RwLock};

use replicator_core::config::Protocol;
use replicator_core::units::{NodeId, NodeSet};

use crate::config::{Cluster, Replica, Volume};
use crate::names::NodeNames;

/// The cluster as the configuration describes it, seen from one node.
#[derive(Clone, Debug)]
pub struct Facts {
    cluster: Cluster,
    names: NodeNames,
    node: NodeId,
}

/// Facts that a reload replaces, for all who look at them.
#[derive(Clone, Debug)]
pub struct LiveFacts(Arc<RwLock<Arc<Facts>>>);

impl LiveFacts {
    /// These, until others come.
    #[must_use]
    pub fn new(facts: Facts) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(facts))))
    }

    /// What the configuration says now.
    pub(super) fn get(&self) -> Arc<Facts> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set(&self, facts: Facts) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(facts);
    }
}

impl Facts {
    /// Facts for the replicator on `node`.
    #[must_use]
    pub fn new(mut cluster: Cluster, node: NodeId) -> Self {
        // Nothing here needs the secret, so it is not kept where a dump of the server's memory would show it.
        cluster.secrets = None;
        let names = cluster.names();
        Self { cluster, names, node }
    }

    pub(super) fn cluster_name(&self) -> &str {
        &self.cluster.name
    }

    pub(super) fn name(&self) -> String {
        self.names.of(self.node)
    }

    pub(super) fn name_of(&self, node: NodeId) -> String {
        self.names.of(node)
    }

    pub(super) fn names_of(&self, nodes: NodeSet) -> Vec<String> {
        self.names.of_set(nodes)
    }

    pub(super) fn id_of(&self, name: &str) -> Option<NodeId> {
        self.cluster.nodes.iter().find(|node| node.name == name).map(|node| node.id)
    }

    pub(super) fn node_names(&self) -> Vec<&str> {
        self.cluster.nodes.iter().map(|node| node.name.as_str()).collect()
    }

    pub(super) fn volume(&self, name: &str) -> Option<&Volume> {
        self.cluster.volumes.iter().find(|volume| volume.name == name)
    }

    pub(super) fn replica(&self, volume: &str, node: NodeId) -> Option<&Replica> {
        self.volume(volume)?.replicas.iter().find(|replica| replica.node == node)
    }

    pub(super) fn own_replica(&self, volume: &str) -> Option<&Replica> {
        self.replica(volume, self.node)
    }

    /// Where clients find the volume on this node, as libnbd writes it.
    pub(super) fn nbd_uris(&self, volume: &str) -> Vec<String> {
        let Some(replica) = self.own_replica(volume) else { return Vec::new() };
        let unix = format!("nbd+unix:///{volume}?socket={}", replica.nbd_socket.display());
        let is_tls = self.volume(volume).is_some_and(|volume| volume.requires_nbd_tls(replica));
        let scheme = if is_tls { "nbds" } else { "nbd" };
        let tcp = replica.nbd_listen.map(|address| format!("{scheme}://{address}/{volume}"));
        std::iter::once(unix).chain(tcp).collect()
    }

    /// `text` of the core with names.
    pub(super) fn with_names(&self, text: &str) -> String {
        self.names.in_text(text)
    }
}

/// The letter of a protocol.
pub(super) fn protocol_letter(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::A => "A",
        Protocol::B => "B",
        Protocol::C => "C",
    }
}
