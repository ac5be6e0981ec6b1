//! One replica of a pair: a machine, its memory, its disk, and what is under way.

use std::collections::VecDeque;

use replicator_core::chain;
use replicator_core::config::{Config, OnPeerLoss, PeerConfig, Protocol};
use replicator_core::disk::layout::map_bytes_of;
use replicator_core::disk::superblock::{DiskState, LogPoint, Record, Superblock};
use replicator_core::event::Errno;
use replicator_core::machine::Machine;
use replicator_core::recovery::{JournalReader, recover};
use replicator_core::units::{Incarnation, Instant, NodeId, NodeSet, Span, Token, VolumeId};
use replicator_core::wire::envelope::Envelope;

use super::tally::{STAGES, Spent};
use super::{BLOCK_BYTES, BLOCKS};

const ARENA_BYTES: usize = 64 << 20;
const JOURNAL_BYTES: u64 = 128 << 20;
const CHECKPOINT_BYTES: u64 = 32 << 20;
/// Bytes of a message that is sent often.
pub(super) const SHORT_BYTES: usize = 64;

/// A completion that waits for the next turn.
#[derive(Clone, Copy)]
pub(super) enum Done {
    JournalWritten(Token),
    JournalSynced(Token),
    DiskRead(Token),
    DiskWritten(Token),
    DiskSynced(Token),
    SuperblockWritten(Token),
    FrameSent(Token),
}

/// What travels on the link.
pub(super) enum Sent {
    Short { envelope: Envelope, body: [u8; SHORT_BYTES] },
    Long { envelope: Envelope, body: Vec<u8> },
    Frame { envelope: Envelope, token: Token, span: Span },
}

pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) arena: Vec<u8>,
    pub(super) disk: Vec<u8>,
    pub(super) done: VecDeque<Done>,
    /// What was sent and not received.
    pub(super) sent: VecDeque<Sent>,
    pub(super) spent: [Spent; STAGES.len()],
    pub(super) is_serving: bool,
}

struct Blank;

impl JournalReader for Blank {
    fn read_at(&mut self, _device_offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        bytes.fill(0);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

const VOLUME: VolumeId = VolumeId(0x686f_6c64_6661_7374);

fn config(node: u8) -> Config {
    Config {
        node: NodeId(node),
        peers: vec![PeerConfig { node: NodeId(1 - node), protocol: Protocol::C }],
        volume: VOLUME,
        incarnation: Incarnation(1),
        on_peer_loss: OnPeerLoss::Freeze,
        managed: false,
        disk_bytes: BLOCKS * BLOCK_BYTES as u64,
        arena_bytes: ARENA_BYTES,
        frames_in_flight_max: 2,
        sync_interval_ms: 10,
        ping_interval_ms: 500,
        peer_timeout_ms: 3000,
        disk_timeout_ms: 30_000,
        checkpoint_bytes: CHECKPOINT_BYTES,
        sum_pages_max: 64,
        scrub_interval_ms: 0,
        apply_delay_ms: 0,
        send_window_bytes: 8 << 20,
    }
}

fn fresh(node: u8) -> Superblock {
    let start = LogPoint { chain: chain::genesis(VOLUME), ..LogPoint::default() };
    Superblock {
        sequence: 1,
        volume: VOLUME,
        incarnation: Incarnation(1),
        node: NodeId(node),
        replica: 1 + u128::from(node),
        volume_bytes: BLOCKS * BLOCK_BYTES as u64,
        map_bytes: map_bytes_of(BLOCKS * BLOCK_BYTES as u64),
        journal_bytes: JOURNAL_BYTES,
        block_bytes: 512,
        window_bytes: ARENA_BYTES as u64,
        disk_state: DiskState::UpToDate,
        proven: true,
        clean: true,
        record: Record { in_sync: NodeSet::only(NodeId(0)).with(NodeId(1)), ..Record::default() },
        tail: start,
        applied_through: start,
        ..Superblock::default()
    }
}

impl Node {
    pub(super) fn new(node: u8, now: Instant) -> Self {
        let recovered = recover(&fresh(node), false, 1, &mut Blank).expect("a blank journal is sound");
        Self {
            machine: Machine::new(config(node), recovered, now),
            arena: vec![0; ARENA_BYTES],
            disk: vec![0; usize::try_from(BLOCKS).expect("fits in memory") * BLOCK_BYTES],
            done: VecDeque::with_capacity(1 << 16),
            sent: VecDeque::with_capacity(1 << 10),
            spent: [Spent::default(); STAGES.len()],
            is_serving: false,
        }
    }
}
