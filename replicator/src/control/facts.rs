//! What the configuration adds to a replica's picture of itself: names for numbers, addresses, the kind of feed.

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

impl Facts {
    /// Facts for the replicator on `node`.
    #[must_use]
    pub fn new(mut cluster: Cluster, node: NodeId) -> Self {
        // Nothing here needs the secret, so it is not kept where a dump of the server's memory would show it.
        cluster.secret = None;
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
        let tcp = replica.nbd_listen.map(|address| format!("nbd://{address}/{volume}"));
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
