//! How a world is set up: sizes, protocols, and the superblocks that nodes begin with.

use replicator_core::chain;
use replicator_core::config::{Config, OnPeerLoss, PeerConfig, Protocol};
use replicator_core::disk::layout::map_bytes_of;
use replicator_core::disk::superblock::{DiskState, LogPoint, Record, Superblock};
use replicator_core::sums::Sums;
use replicator_core::units::{Incarnation, NodeSet, RingOffset, VolumeId};

use super::node_id;
use crate::disk::SECTOR;

/// How a world is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    pub nodes: usize,
    pub protocol: Protocol,
    /// How each node is fed, where that is not `protocol`.
    pub protocols: Vec<Protocol>,
    pub on_peer_loss: OnPeerLoss,
    /// Whether a configuration manager decides, and grants leases.
    pub managed: bool,
    pub sectors: usize,
    /// Sectors that the disks have behind the volume, for it to grow.
    pub spare_sectors: usize,
    pub journal_bytes: u64,
    /// Bytes of the ring that are behind the log already when it begins: how far the first lap still goes.
    pub ring_start: u64,
    pub arena_bytes: usize,
    pub checkpoint_bytes: u64,
    pub disk_timeout_ms: u64,
    pub sync_interval_ms: u64,
    pub send_window_bytes: u64,
    pub frames_in_flight_max: u32,
    /// Which nodes keep checksums of blocks at rest; those beyond the list do not.
    pub sums: Vec<bool>,
    /// How old an entry is when a node applies it; those beyond the list apply at once.
    pub delays_ms: Vec<u64>,
    /// In how many of a hundred requests a client writes a large piece.
    pub bulk_percent: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 2,
            protocol: Protocol::C,
            protocols: Vec::new(),
            on_peer_loss: OnPeerLoss::Freeze,
            managed: false,
            sectors: 128,
            spare_sectors: 256,
            journal_bytes: (1 << 20) + (17 << 20),
            ring_start: 0,
            arena_bytes: 8 << 20,
            checkpoint_bytes: 256 << 10,
            disk_timeout_ms: 30_000,
            sync_interval_ms: 10,
            send_window_bytes: 2 << 20,
            frames_in_flight_max: 2,
            sums: Vec::new(),
            delays_ms: Vec::new(),
            bulk_percent: 0,
        }
    }
}

impl Setup {
    /// Sectors of each backing disk.
    pub fn disk_sectors(&self) -> usize {
        self.sectors + self.spare_sectors
    }

    /// Whether `node` keeps checksums of blocks at rest.
    pub fn sums_of(&self, node: usize) -> bool {
        self.sums.get(node).copied().unwrap_or_default()
    }

    /// How old an entry is when `node` applies it.
    pub fn delay_of(&self, node: usize) -> u64 {
        self.delays_ms.get(node).copied().unwrap_or_default()
    }

    /// How `node` is fed.
    pub fn protocol_of(&self, node: usize) -> Protocol {
        self.protocols.get(node).copied().unwrap_or(self.protocol)
    }
}

pub(super) fn config(setup: &Setup, node: usize) -> Config {
    let others = (0..setup.nodes).filter(|n| *n != node);
    let peers = others.map(|n| PeerConfig { node: node_id(n), protocol: setup.protocol_of(n) }).collect();
    Config {
        node: node_id(node),
        peers,
        volume: VolumeId(0x1234_5678),
        incarnation: Incarnation(1),
        on_peer_loss: setup.on_peer_loss,
        managed: setup.managed,
        disk_bytes: (setup.disk_sectors() * SECTOR) as u64,
        arena_bytes: setup.arena_bytes,
        frames_in_flight_max: setup.frames_in_flight_max,
        sync_interval_ms: setup.sync_interval_ms,
        ping_interval_ms: 500,
        peer_timeout_ms: 3000,
        disk_timeout_ms: setup.disk_timeout_ms,
        checkpoint_bytes: setup.checkpoint_bytes,
        sum_pages_max: 4,
        scrub_interval_ms: 0,
        apply_delay_ms: setup.delay_of(node),
        send_window_bytes: setup.send_window_bytes,
    }
}

pub(super) fn fresh(setup: &Setup, node: usize) -> Superblock {
    let (volume_bytes, sums) = ((setup.sectors * SECTOR) as u64, setup.sums_of(node));
    let volume = VolumeId(0x1234_5678);
    let ring_offset = RingOffset(setup.ring_start);
    let start = LogPoint { chain: chain::genesis(volume), ring_offset, ..LogPoint::default() };
    let follows = |n: usize| setup.protocol_of(n) == Protocol::A || setup.delay_of(n) > 0;
    let fed = (0..setup.nodes).filter(|n| *n == 0 || !follows(*n));
    let members = fed.fold(NodeSet(0), |set, n| set.with(node_id(n)));
    Superblock {
        sequence: 1,
        volume,
        incarnation: Incarnation(1),
        node: node_id(node),
        replica: 77 + node as u128,
        volume_bytes,
        map_bytes: map_bytes_of(volume_bytes),
        // So that all rings have one size.
        journal_bytes: setup.journal_bytes + if sums { Sums::area_bytes(volume_bytes) } else { 0 },
        sums,
        bookmark_room: true,
        block_bytes: 512,
        window_bytes: setup.arena_bytes as u64,
        disk_state: DiskState::UpToDate,
        proven: true,
        clean: true,
        record: Record { in_sync: members, ..Record::default() },
        tail: start,
        applied_through: start,
        ..Superblock::default()
    }
}
