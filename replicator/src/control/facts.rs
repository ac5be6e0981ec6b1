//! What the configuration adds to a replica's picture of itself: names for numbers, addresses, the kind of feed.

use replicator_core::config::Protocol;
use replicator_core::units::{NodeId, NodeSet};

use crate::config::{Cluster, Replica, Volume};

/// The cluster as the configuration describes it, seen from one node.
#[derive(Clone, Debug)]
pub struct Facts {
    cluster: Cluster,
    node: NodeId,
}

impl Facts {
    /// Facts for the replicator on `node`.
    #[must_use]
    pub fn new(mut cluster: Cluster, node: NodeId) -> Self {
        // Nothing here needs the secret, so it is not kept where a dump of the server's memory would show it.
        cluster.secret = None;
        Self { cluster, node }
    }

    pub(super) fn cluster_name(&self) -> &str {
        &self.cluster.name
    }

    pub(super) fn name(&self) -> String {
        self.cluster.node_name(self.node)
    }

    pub(super) fn name_of(&self, node: NodeId) -> String {
        self.cluster.node_name(node)
    }

    pub(super) fn names_of(&self, nodes: NodeSet) -> Vec<String> {
        nodes.iter().map(|node| self.cluster.node_name(node)).collect()
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

    /// `text` of the core, which knows nodes by number, with the numbers (`n0`) replaced by names.
    pub(super) fn with_names(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| c.is_ascii_alphanumeric()) {
            let (before, word_on) = rest.split_at(at);
            let is_inner = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            let end = word_on.find(|c| !is_inner(c)).unwrap_or(word_on.len());
            let (word, after) = word_on.split_at(end);
            out.push_str(before);
            match self.numbered(word) {
                Some(name) => out.push_str(&name),
                None => out.push_str(word),
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }

    fn numbered(&self, word: &str) -> Option<String> {
        let id = NodeId(word.strip_prefix('n')?.parse().ok()?);
        self.cluster.nodes.iter().find(|node| node.id == id).map(|node| node.name.clone())
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
