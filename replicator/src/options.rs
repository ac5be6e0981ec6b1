//! What one volume's replica on this node is started with: already validated, units in types. The configuration
//! file becomes this in `config`; the reactor takes it as it is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use replicator_core::config::{Config, PeerConfig};
use replicator_core::units::NodeId;

use crate::names::NodeNames;
use crate::secrets::Secrets;

/// Whether the disk and journal are opened with `O_DIRECT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectIo {
    /// Where the device can do it with the volume's block size, else through the page cache.
    #[default]
    Auto,
    /// Or not at all: starting fails where it cannot be done.
    On,
    /// Never.
    Off,
}

/// Flags of the ring; measured per host, see `docs/decisions/`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingOptions {
    /// `IORING_SETUP_DEFER_TASKRUN` instead of `IORING_SETUP_COOP_TASKRUN`.
    pub defer_taskrun: bool,
}

/// Where a peer listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Which node.
    pub node: NodeId,
    /// Its name in the configuration.
    pub name: String,
    /// Where its replica of this volume listens.
    pub address: SocketAddr,
}

/// The secret that all nodes of a cluster share. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// One volume's replica on this node.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// The volume's name; also the name of its NBD export.
    pub name: String,
    /// This node's name.
    pub node_name: String,
    /// Options of the machine.
    pub core: Config,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Smallest unit a client may address: 512 or 4096.
    pub block_bytes: u32,
    /// The backing disk: a file or a block device.
    pub disk: PathBuf,
    /// The journal: a file or a block device.
    pub journal: PathBuf,
    /// Folder for branches: what this replica held when it lost a fork.
    pub branches: PathBuf,
    /// Bytes of the journal when it is created as a file.
    pub journal_bytes: u64,
    /// Whether disk and journal are opened with `O_DIRECT`.
    pub direct_io: DirectIo,
    /// Whether a replica that is made keeps checksums of its blocks at rest; one that is there is as it was made.
    pub checksums: bool,
    /// Where this replica listens for its peers.
    pub listen: SocketAddr,
    /// Where the peers listen.
    pub peers: Vec<PeerAddress>,
    /// What peers prove to each other.
    pub secrets: Secrets,
    /// Whether everything between them is in TLS.
    pub tls: bool,
    /// Unix socket for NBD clients.
    pub nbd_unix: Option<PathBuf>,
    /// TCP address for NBD clients.
    pub nbd_tcp: Option<SocketAddr>,
    /// Whether NBD clients over TCP must speak TLS, and have a certificate.
    pub nbd_tls: bool,
    /// Names and addresses by which NBD clients find this replica.
    pub nbd_names: Vec<String>,
    /// NBD connections at one time.
    pub nbd_connections_max: u32,
    /// Flags of the ring.
    pub ring: RingOptions,
    /// How long the reactor looks for completions before it sleeps, at most.
    pub busy_poll: Duration,
    /// Whether the process locks its memory and says `PR_SET_IO_FLUSHER`.
    pub lock_memory: bool,
}

impl VolumeOptions {
    /// The keys whose values differ in `new`, other than the size and which replicas there are.
    #[must_use]
    pub fn changed_keys(&self, new: &Self) -> Vec<String> {
        let (a, b) = (&self.core, &new.core);
        let keys = [
            ("uuid", a.volume == b.volume),
            ("id", a.node == b.node),
            ("incarnation", a.incarnation == b.incarnation),
            ("on-peer-loss", a.on_peer_loss == b.on_peer_loss),
            ("orchestrator", a.managed == b.managed),
            ("buffer-memory", a.arena_bytes == b.arena_bytes),
            ("frames-in-flight", a.frames_in_flight_max == b.frames_in_flight_max),
            ("sync-interval", a.sync_interval_ms == b.sync_interval_ms),
            ("ping-interval", a.ping_interval_ms == b.ping_interval_ms),
            ("peer-timeout", a.peer_timeout_ms == b.peer_timeout_ms),
            ("disk-timeout", a.disk_timeout_ms == b.disk_timeout_ms),
            ("checksum-memory", a.sum_pages_max == b.sum_pages_max),
            ("scrub-interval", a.scrub_interval_ms == b.scrub_interval_ms),
            ("apply-delay", a.apply_delay_ms == b.apply_delay_ms),
            ("send-window", a.send_window_bytes == b.send_window_bytes),
            ("checkpoint", a.checkpoint_bytes == b.checkpoint_bytes || self.has_other_sizes(new)),
            ("block-size", self.block_bytes == new.block_bytes),
            ("disk", self.disk == new.disk),
            ("journal", self.journal == new.journal),
            ("branches", self.branches == new.branches),
            ("direct-io", self.direct_io == new.direct_io),
            ("port", self.listen == new.listen),
            ("secret", self.secrets == new.secrets),
            ("tls", self.tls == new.tls),
            ("nbd-socket", self.nbd_unix == new.nbd_unix),
            ("nbd-listen", self.nbd_tcp == new.nbd_tcp),
            ("nbd-tls", self.nbd_tls == new.nbd_tls),
            ("nbd-connections", self.nbd_connections_max == new.nbd_connections_max),
            ("ring", self.ring == new.ring),
            ("busy-poll-us", self.busy_poll == new.busy_poll),
            ("lock-memory", self.lock_memory == new.lock_memory),
        ];
        let own = keys.into_iter().filter(|(_, is_same)| !is_same).map(|(key, _)| format!("`{key}`"));
        own.chain(self.changed_peers(new)).collect()
    }

    /// Whether what is made has another size: the default of some keys follows from that, and nothing that runs does.
    fn has_other_sizes(&self, new: &Self) -> bool {
        (self.size_bytes, self.journal_bytes, self.checksums)
            != (new.size_bytes, new.journal_bytes, new.checksums)
    }

    /// What differs in replicas that are in both.
    fn changed_peers(&self, new: &Self) -> Vec<String> {
        let mut changed = Vec::new();
        for peer in &self.peers {
            let Some(other) = new.peers.iter().find(|other| other.node == peer.node) else { continue };
            if other != peer {
                changed.push(format!("name, address or port of {}", peer.name));
            }
        }
        for peer in &self.core.peers {
            let is_other = |other: &&PeerConfig| other.node == peer.node && other.protocol != peer.protocol;
            if new.core.peers.iter().any(|other| is_other(&other)) {
                changed.push(format!("`protocol` of {}", self.names().of(peer.node)));
            }
        }
        changed
    }

    /// The names of this node and its peers.
    #[must_use]
    pub fn names(&self) -> NodeNames {
        let peers = self.peers.iter().map(|peer| (peer.node, peer.name.clone()));
        std::iter::once((self.core.node, self.node_name.clone())).chain(peers).collect()
    }
}
