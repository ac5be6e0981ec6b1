//! What a sound configuration file means.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use replicator_core::config::{Config, PeerConfig, Protocol};
use replicator_core::disk::layout::Layout;
use replicator_core::units::{Incarnation, NodeId, PAGE_BYTES, VolumeId};
use thiserror::Error;

use super::fence::FenceDevice;
use super::hook::Hook;
use super::orchestrator::{NodeOrchestrator, Orchestrator};
use super::stack::Stack;
use super::tuning::Tuning;
use crate::names::NodeNames;
use crate::options::{PeerAddress, RingOptions, VolumeOptions};
use crate::secrets::Secrets;

/// Bytes applied after which a checkpoint is taken, where the ring is large enough.
const CHECKPOINT_BYTES: u64 = 64 << 20;

/// A cluster: what all its nodes know.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Number of its incarnation.
    pub incarnation: Incarnation,
    /// What peers prove to each other; `None` if it was not asked for.
    pub secrets: Option<Secrets>,
    /// Where that lies; `None` if it stands in the configuration itself.
    pub secret_file: Option<PathBuf>,
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// Its volumes.
    pub volumes: Vec<Volume>,
    /// How its orchestrators behave, if it has any.
    pub orchestrator: Option<Orchestrator>,
    /// How its nodes are switched off.
    pub fence: Vec<FenceDevice>,
    /// What runs above volumes.
    pub stacks: Vec<Stack>,
    /// What is run when something happens.
    pub hooks: Vec<Hook>,
}

/// A machine, or rather one replicator process on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number in everything stored and sent.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where its peers reach it.
    pub address: IpAddr,
    /// Its control socket.
    pub control: PathBuf,
    /// Where its replicator tells anybody its figures, if it does.
    pub metrics_listen: Option<SocketAddr>,
    /// Where its orchestrator is found, if the cluster has any.
    pub orchestrator: Option<NodeOrchestrator>,
}

/// A replicated block device.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its name; also the name of its NBD export.
    pub name: String,
    /// Its identity.
    pub id: VolumeId,
    /// Its size.
    pub size_bytes: u64,
    /// Smallest unit a client may address.
    pub block_bytes: u32,
    /// How its replicas are fed unless one says otherwise.
    pub protocol: Protocol,
    /// How it behaves.
    pub tuning: Tuning,
    /// Whether another node may have it only when the old one is surely off.
    pub takeover_needs_off: bool,
    /// Its copies.
    pub replicas: Vec<Replica>,
}

/// One node's copy of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// On which node.
    pub node: NodeId,
    /// The backing disk.
    pub disk: PathBuf,
    /// The journal.
    pub journal: PathBuf,
    /// Folder for branches.
    pub branches: PathBuf,
    /// Bytes of the journal when it is created as a file.
    pub journal_bytes: u64,
    /// Where it listens for its peers.
    pub listen: SocketAddr,
    /// Unix socket for NBD clients.
    pub nbd_socket: PathBuf,
    /// TCP address for NBD clients.
    pub nbd_listen: Option<SocketAddr>,
    /// How it is fed.
    pub protocol: Protocol,
    /// How old an entry is when it applies it; 0 is at once.
    pub apply_delay_ms: u64,
}

/// Why there are no options for a volume on a node.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OptionsError {
    /// The cluster has no such node.
    #[error("no node \"{name}\" in the configuration; it has {known}")]
    UnknownNode {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The cluster has no such volume.
    #[error("no volume \"{name}\" in the configuration; it has {known}")]
    UnknownVolume {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The node has no copy of the volume.
    #[error("volume \"{volume}\" has no replica on node \"{node}\"; it has replicas on {known}")]
    NoReplica {
        /// The volume.
        volume: String,
        /// The node.
        node: String,
        /// Where there are copies.
        known: String,
    },
    /// The file was read without its secret.
    #[error("the cluster's secret was not read")]
    NoSecret,
}

impl Volume {
    /// Whether everything between its replicas is in TLS.
    #[must_use]
    pub fn speaks_tls(&self) -> bool {
        let is_local = || self.replicas.iter().all(|replica| replica.listen.ip().is_loopback());
        self.tuning.tls.unwrap_or_else(|| !is_local())
    }

    /// Whether NBD clients of a replica must speak TLS where they come over TCP.
    #[must_use]
    pub fn requires_nbd_tls(&self, replica: &Replica) -> bool {
        let is_local = |listen: SocketAddr| listen.ip().is_loopback();
        replica.nbd_listen.is_some_and(|listen| self.tuning.nbd_tls.unwrap_or_else(|| !is_local(listen)))
    }
}

impl Cluster {
    /// The node called `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, name: &str) -> Result<&Node, OptionsError> {
        let known = || list(self.nodes.iter().map(|node| node.name.as_str()));
        let found = self.nodes.iter().find(|node| node.name == name);
        found.ok_or_else(|| OptionsError::UnknownNode { name: name.to_owned(), known: known() })
    }

    /// The volume called `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn volume(&self, name: &str) -> Result<&Volume, OptionsError> {
        let known = || list(self.volumes.iter().map(|volume| volume.name.as_str()));
        let found = self.volumes.iter().find(|volume| volume.name == name);
        found.ok_or_else(|| OptionsError::UnknownVolume { name: name.to_owned(), known: known() })
    }

    /// The volumes of which `node` has a copy.
    pub fn volumes_of(&self, node: NodeId) -> impl Iterator<Item = &Volume> {
        self.volumes.iter().filter(move |volume| volume.replicas.iter().any(|replica| replica.node == node))
    }

    /// The name of the node `id`.
    #[must_use]
    pub fn node_name(&self, id: NodeId) -> String {
        self.names().of(id)
    }

    /// The names of all nodes.
    #[must_use]
    pub fn names(&self) -> NodeNames {
        self.nodes.iter().map(|node| (node.id, node.name.clone())).collect()
    }

    /// What the replica of `volume` on `node` is started with.
    ///
    /// # Errors
    /// If there is no such replica, or the secret was not read.
    pub fn volume_options(&self, node: &str, volume: &str) -> Result<VolumeOptions, OptionsError> {
        let (node, volume) = (self.node(node)?, self.volume(volume)?);
        let replica = volume.replicas.iter().find(|replica| replica.node == node.id).ok_or_else(|| {
            let known = list(volume.replicas.iter().map(|replica| self.node_name(replica.node)));
            OptionsError::NoReplica { volume: volume.name.clone(), node: node.name.clone(), known }
        })?;
        let secrets = self.secrets.clone().ok_or(OptionsError::NoSecret)?;
        let tuning = &volume.tuning;
        let others = || volume.replicas.iter().filter(|other| other.node != node.id);
        Ok(VolumeOptions {
            name: volume.name.clone(),
            node_name: node.name.clone(),
            core: self.core_config(node.id, volume, replica),
            size_bytes: volume.size_bytes,
            block_bytes: volume.block_bytes,
            disk: replica.disk.clone(),
            journal: replica.journal.clone(),
            branches: replica.branches.clone(),
            journal_bytes: replica.journal_bytes,
            direct_io: tuning.direct_io,
            checksums: tuning.checksums,
            listen: replica.listen,
            peers: others().map(|peer| self.peer_address(peer)).collect(),
            secrets,
            tls: volume.speaks_tls(),
            nbd_unix: Some(replica.nbd_socket.clone()),
            nbd_tcp: replica.nbd_listen,
            nbd_tls: volume.requires_nbd_tls(replica),
            nbd_names: names_of(node, replica.nbd_listen),
            nbd_connections_max: tuning.nbd_connections_max,
            ring: RingOptions { defer_taskrun: tuning.defer_taskrun },
            busy_poll: tuning.busy_poll,
            lock_memory: tuning.lock_memory,
        })
    }

    fn core_config(&self, node: NodeId, volume: &Volume, replica: &Replica) -> Config {
        let tuning = &volume.tuning;
        let others = volume.replicas.iter().filter(|other| other.node != node);
        Config {
            node,
            peers: others.map(|peer| PeerConfig { node: peer.node, protocol: peer.protocol }).collect(),
            volume: volume.id,
            incarnation: self.incarnation,
            on_peer_loss: tuning.on_peer_loss,
            managed: self.orchestrator.is_some(),
            // Measured at the start.
            disk_bytes: volume.size_bytes,
            arena_bytes: usize::try_from(tuning.buffer_bytes).expect("checked against a limit"),
            frames_in_flight_max: tuning.frames_in_flight_max,
            sync_interval_ms: tuning.sync_interval_ms,
            ping_interval_ms: tuning.ping_interval_ms,
            peer_timeout_ms: tuning.peer_timeout_ms,
            disk_timeout_ms: tuning.disk_timeout_ms,
            checkpoint_bytes: checkpoint_bytes(volume, replica),
            sum_pages_max: usize::try_from(tuning.checksum_memory_bytes).expect("checked against a limit")
                / PAGE_BYTES,
            scrub_interval_ms: tuning.scrub_interval_ms,
            apply_delay_ms: replica.apply_delay_ms,
            send_window_bytes: tuning.send_window_bytes,
        }
    }

    fn peer_address(&self, replica: &Replica) -> PeerAddress {
        PeerAddress { node: replica.node, name: self.node_name(replica.node), address: replica.listen }
    }
}

/// Names and addresses by which clients find what listens there on a node.
#[must_use]
pub fn names_of(node: &Node, listen: Option<SocketAddr>) -> Vec<String> {
    let listen = listen.map(|listen| listen.ip()).filter(|ip| !ip.is_unspecified());
    let mut addresses = vec![node.address];
    addresses.extend(listen.filter(|ip| *ip != node.address));
    // A name that is none in a network is left out.
    let is_name = rustls::pki_types::DnsName::try_from(node.name.as_str()).is_ok();
    is_name.then(|| node.name.clone()).into_iter().chain(addresses.iter().map(IpAddr::to_string)).collect()
}

/// The interval asked for, or one that leaves most of a small ring free at every moment.
fn checkpoint_bytes(volume: &Volume, replica: &Replica) -> u64 {
    let (size_bytes, journal_bytes) = (volume.size_bytes, replica.journal_bytes);
    let layout = Layout::with(size_bytes, journal_bytes, volume.tuning.checksums)
        .or_else(|_| Layout::with_smallest_maps(size_bytes, journal_bytes, false));
    let ring_bytes = layout.map_or(0, |layout| layout.ring_bytes);
    volume.tuning.checkpoint_bytes.unwrap_or_else(|| CHECKPOINT_BYTES.min(ring_bytes / 4).max(1 << 20))
}

/// `path` as the file means it: relative paths start where the file lies.
pub(super) fn resolve(file: &Path, path: &str) -> PathBuf {
    let folder = file.parent().unwrap_or(Path::new(""));
    let joined = folder.join(path);
    std::path::absolute(&joined).unwrap_or(joined)
}

/// Names as they stand in a message.
pub(super) fn list(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("\"{}\"", name.as_ref())).collect();
    if quoted.is_empty() { "none".to_owned() } else { quoted.join(", ") }
}
