//! The options the machine takes, already validated by whoever read them.

use alloc::vec::Vec;

use crate::units::{Incarnation, NodeId, VolumeId};

/// DRBD's replication protocols: when a write may be acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// When it is in the local journal; the peer is a follower and never a member of the in-sync set.
    A,
    /// When the peers have received it into memory.
    B,
    /// When the peers have it in their journals.
    #[default]
    C,
}

/// What a primary does when a member of the in-sync set is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPeerLoss {
    /// I/O waits until the member is back or the operator shrinks the set.
    #[default]
    Freeze,
    /// The set is shrunk, stored, and I/O goes on alone.
    Continue,
}

/// Another replica of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Which node.
    pub node: NodeId,
    /// How writes are replicated to it.
    pub protocol: Protocol,
}

/// Options of one replica of one volume.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The other replicas.
    pub peers: Vec<PeerConfig>,
    /// The volume.
    pub volume: VolumeId,
    /// The cluster's incarnation.
    pub incarnation: Incarnation,
    /// What to do when a member is gone.
    pub on_peer_loss: OnPeerLoss,
    /// Whether a configuration manager decides who is Primary and who is in sync, and grants leases; else the operator
    /// does, and there are none.
    pub managed: bool,
    /// Bytes that the backing disk holds; no fewer than the volume has.
    pub disk_bytes: u64,
    /// Bytes of the arena, a multiple of 64 pages.
    pub arena_bytes: usize,
    /// Frames that may be closed and not yet committed; more lets latency hide, fewer lets writes gather.
    pub frames_in_flight_max: u32,
    /// How long journaled entries may wait for a sync when nobody asks for one.
    pub sync_interval_ms: u64,
    /// How often an idle link is probed.
    pub ping_interval_ms: u64,
    /// A peer from which nothing came for so long is gone.
    pub peer_timeout_ms: u64,
    /// A disk or journal that answers nothing for so long counts as failed; 0 waits for ever.
    pub disk_timeout_ms: u64,
    /// Bytes applied after which a checkpoint is taken.
    pub checkpoint_bytes: u64,
    /// Pages of checksums of blocks at rest that may be in memory: each is 4 KiB, for 1,008 blocks.
    pub sum_pages_max: usize,
    /// How long after a scrub the next one begins by itself; 0 if none does.
    pub scrub_interval_ms: u64,
    /// How old an entry is when a Secondary applies it, by the clock of the Primary that closed it and the clock here; 0
    /// applies at once. Such a replica is never taken into the in-sync set.
    pub apply_delay_ms: u64,
    /// Bytes that may be under way to one peer.
    pub send_window_bytes: u64,
}
