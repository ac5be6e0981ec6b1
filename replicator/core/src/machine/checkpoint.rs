//! Checkpoints: what is applied becomes durable on the disk, the superblock says so, and only then may ring space
//! be used again. The order is: sync the disk, write the checksums of its blocks and sync them, write the dirty
//! maps and sync them, write the superblock, reuse.

use super::{Io, Machine};
use crate::command::Command;
use crate::disk::superblock::LogPoint;
use crate::event::IoResult;
use crate::sums::Ticket;
use crate::units::RingOffset;

#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    /// The disk is being synced; what was applied before is this.
    Syncing(LogPoint),
    /// The checksums of what was applied are becoming durable.
    Summing(LogPoint, Option<Ticket>),
    /// The dirty maps are being saved.
    Mapping(LogPoint),
    /// The superblock with this sequence says it.
    Saving(u64),
}

/// The checkpoint under way, if any.
#[derive(Debug)]
pub(super) struct Checkpoint {
    phase: Phase,
    /// Ring bytes applied since the last one.
    pub(super) applied_bytes: u64,
    /// What the last one covered.
    covered: LogPoint,
}

impl Checkpoint {
    pub(super) fn new(covered: LogPoint) -> Self {
        Self { phase: Phase::Idle, applied_bytes: 0, covered }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }
}

impl Machine {
    /// Whether everything applied is covered by a checkpoint that is saved.
    pub(super) fn is_checkpointed(&self) -> bool {
        self.checkpoint.is_idle() && self.checkpoint.covered.ring_offset == self.log.applied.ring_offset
    }

    pub(super) fn pump_checkpoint(&mut self, arena: &mut [u8]) {
        if let Phase::Summing(applied, ticket) = self.checkpoint.phase
            && self.sums_are_done(ticket)
        {
            self.map_checkpoint(applied);
        }
        if let Phase::Mapping(applied) = self.checkpoint.phase {
            self.pump_saving(arena);
            if self.take_saved_maps() {
                self.save_checkpoint(applied);
            }
        }
        if let Phase::Saving(sequence) = self.checkpoint.phase {
            if !self.meta.is_saved(sequence) {
                return;
            }
            self.checkpoint.phase = Phase::Idle;
            self.counters.checkpoints += 1;
            self.log.set_tail(self.meta.saved.tail);
        }
        if !self.checkpoint.is_idle() || self.is_failed() {
            return;
        }
        let applied = self.log.applied;
        let behind = applied.ring_offset > self.checkpoint.covered.ring_offset;
        let due = self.checkpoint.applied_bytes >= self.config.checkpoint_bytes;
        let tight = self.ring_is_tight()
            && (behind || self.next_tail(applied).ring_offset > self.log.tail().ring_offset);
        let marks = self.want_bookmarks_saved();
        if tight || marks || (behind && (due || self.role.is_stopping() || self.is_draining())) {
            self.checkpoint.phase = Phase::Syncing(applied);
            self.checkpoint.applied_bytes = 0;
            self.push(Command::SyncDisk { token: Io::CheckpointSync.token(0) });
        }
    }

    fn ring_is_tight(&self) -> bool {
        self.log.used_bytes() > self.log.layout.ring_bytes / 4 * 3
    }

    /// Where the tail goes when everything up to `applied` is on the disk: the ring keeps as much of the past as
    /// fits in half of it, for peers that return; and longer what is being sent to one.
    fn next_tail(&self, applied: LogPoint) -> LogPoint {
        if !self.ring_is_tight() {
            return self.log.tail();
        }
        let ring_bytes = self.log.layout.ring_bytes;
        let head = self.log.head.ring_offset.0;
        let mut keep_from = RingOffset(head.saturating_sub(ring_bytes / 2));
        let reader = self.peers.iter().filter_map(super::peer::Peer::reads_from).min();
        if let Some(reader) = reader.filter(|_| self.log.used_bytes() < ring_bytes / 8 * 7) {
            keep_from = keep_from.min(reader);
        }
        let candidate = self.log.tail_candidate(keep_from, applied);
        if candidate.ring_offset < self.log.tail().ring_offset { self.log.tail() } else { candidate }
    }

    pub(super) fn on_disk_synced(&mut self, result: IoResult) {
        let Phase::Syncing(applied) = self.checkpoint.phase else {
            unreachable!("one sync of the disk was under way");
        };
        self.checkpoint.phase = Phase::Idle;
        if !self.device_ok("syncing the disk", result) {
            return;
        }
        let ticket = self.want_sums();
        if self.sums_are_done(ticket) {
            self.map_checkpoint(applied);
        } else {
            self.checkpoint.phase = Phase::Summing(applied, ticket);
        }
    }

    fn map_checkpoint(&mut self, applied: LogPoint) {
        if self.begin_saving_maps() {
            self.checkpoint.phase = Phase::Mapping(applied);
        } else {
            self.save_checkpoint(applied);
        }
    }

    fn save_checkpoint(&mut self, applied: LogPoint) {
        let tail = self.next_tail(applied);
        assert!(tail.ring_offset <= applied.ring_offset, "nothing unapplied is given up");
        self.checkpoint.covered = applied;
        self.meta.current.applied_through = applied;
        self.meta.current.tail = tail;
        self.checkpoint.phase = Phase::Saving(self.meta.change());
    }
}
