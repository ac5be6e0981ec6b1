//! What one volume's replica on this node is started with: already validated, units in types. The configuration
//! file becomes this in `config`; the reactor takes it as it is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use replicator_core::config::Config;
use replicator_core::units::NodeId;

use crate::names::NodeNames;

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
    /// Bytes of the journal when it is created as a file.
    pub journal_bytes: u64,
    /// Whether disk and journal are opened with `O_DIRECT`.
    pub direct_io: DirectIo,
    /// Where this replica listens for its peers.
    pub listen: SocketAddr,
    /// Where the peers listen.
    pub peers: Vec<PeerAddress>,
    /// What peers prove to each other.
    pub secret: Secret,
    /// Whether everything between them is in TLS.
    pub tls: bool,
    /// Unix socket for NBD clients.
    pub nbd_unix: Option<PathBuf>,
    /// TCP address for NBD clients.
    pub nbd_tcp: Option<SocketAddr>,
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
    /// The names of this node and its peers.
    #[must_use]
    pub fn names(&self) -> NodeNames {
        let peers = self.peers.iter().map(|peer| (peer.node, peer.name.clone()));
        std::iter::once((self.core.node, self.node_name.clone())).chain(peers).collect()
    }
}
