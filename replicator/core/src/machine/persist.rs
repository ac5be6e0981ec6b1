//! Durability of the journal: when it is synced, what a sync covered, and marks, the frames without entries that
//! make a newer `stable` durable when no other frame does.

use super::{Io, Machine, index_of};
use crate::command::Command;
use crate::event::IoResult;
use crate::frame::{self, FrameHeader};
use crate::history::History;
use crate::limits::FRAME_HEADER_BYTES;
use crate::log::Log;
use crate::units::{Instant, Sequence, Token};

/// What is known of the journal's durability.
#[derive(Debug)]
pub(super) struct Persist {
    /// The reigns of the log, up to its head.
    pub(super) history: History,
    /// Stable mark in the saved superblock.
    pub(super) saved_mark: Sequence,
    /// Frames that the sync under way covers.
    syncing: Option<u64>,
    /// Somebody waits for this entry to be durable.
    wanted: Sequence,
    /// When journaled entries or a newer stable mark are synced though nobody asked.
    due: Option<Instant>,
}

impl Persist {
    pub(super) fn new(saved_mark: Sequence, history: History) -> Self {
        Self { history, saved_mark, syncing: None, wanted: Sequence(0), due: None }
    }

    /// The newest stable mark that is durable here: the bound of what may be applied.
    pub(super) fn durable_mark(&self, log: &Log) -> Sequence {
        self.saved_mark.max(log.durable_mark())
    }

    /// Asks for a sync as soon as everything up to `sequence` is journaled.
    pub(super) fn want_sync(&mut self, sequence: Sequence) {
        self.wanted = self.wanted.max(sequence);
    }

    /// Whether somebody waits for just this entry to be durable: its frame carries the wish.
    pub(super) fn wants(&self, last: Sequence) -> bool {
        self.wanted == last
    }

    /// Forgets a wish for what was cut.
    pub(super) fn limit_wish(&mut self, last: Sequence) {
        self.wanted = self.wanted.min(last);
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The log begins anew behind `sequence`.
    pub(super) fn restart(&mut self, sequence: Sequence) {
        (self.history, self.saved_mark, self.wanted, self.due) =
            (History::default(), sequence, sequence, None);
    }

    pub(super) fn is_syncing(&self) -> bool {
        self.syncing.is_some()
    }
}

impl Machine {
    pub(super) fn on_journal_written(&mut self, token: Token, result: IoResult) {
        if Io::MapWrite.is(token) {
            self.on_map_written(result);
        } else if Io::StageWrite.is(token) {
            self.on_stage_written(token, result);
        } else if self.device_ok("writing the journal", result) {
            self.log.mark_written(index_of(token));
        }
    }

    pub(super) fn on_journal_synced(&mut self, result: IoResult) {
        let covered = self.persist.syncing.take().expect("one sync was under way");
        self.counters.journal_syncs += 1;
        // A failed sync is never retried and believed: the copy is out.
        if self.device_ok("syncing the journal", result) {
            self.log.mark_durable(covered);
        }
    }

    /// Whether a newer stable mark than any frame carries would let more be applied.
    fn needs_mark(&self) -> bool {
        let known = self.stable.min(self.log.last());
        known > self.log.newest_mark().max(self.persist.saved_mark)
            && self.log.applied.position.sequence < known
    }

    /// Writes a mark if one is due: nothing else carried the newest stable position into the journal.
    pub(super) fn write_mark(&mut self, arena: &mut [u8]) {
        let due = self.persist.due.is_some_and(|due| due <= self.now);
        let hurry = self.role.hurries() || self.resolve_hurries();
        if self.is_failed() || !(due || hurry) || !self.needs_mark() || self.log.has_unwritten() {
            return;
        }
        // It would lie where entries lay that were cut: until that is stored they are durable, and would be missed.
        if self.meta.saved.cut != self.meta.current.cut {
            return;
        }
        if self.ring_place(FRAME_HEADER_BYTES as u64, true).is_none() {
            return;
        }
        let Some(buffer) = self.pool.take(FRAME_HEADER_BYTES) else { return };
        let header = FrameHeader {
            volume: self.config.volume,
            epoch: self.log.head.position.epoch,
            reign: self.meta.saved.record.reign,
            first: self.log.last().next(),
            entries: 0,
            total_bytes: FRAME_HEADER_BYTES as u32,
            chain_before: self.log.head.chain,
            chain_after: self.log.head.chain,
            committed: self.stable,
            stable: self.stable.min(self.log.last()),
            closed_ms: 0,
        };
        let header = frame::encode(&mut arena[buffer.span().range()], header, [].iter());
        self.write_frame(&header, buffer, true, arena);
    }

    /// Starts a sync if somebody waits for one or the interval is over.
    pub(super) fn pump_persist(&mut self) {
        if self.is_failed() {
            self.persist.due = None;
            return;
        }
        let undurable = self.log.has_undurable();
        if !undurable && !self.log.has_unwritten() && !self.needs_mark() {
            self.persist.due = None;
            return;
        }
        let interval_ms = self.config.sync_interval_ms;
        let due = *self.persist.due.get_or_insert(self.now.plus_ms(interval_ms));
        if self.persist.is_syncing() || !undurable {
            if due <= self.now {
                // Not now; look again soon, not in a busy loop.
                self.persist.due = Some(self.now.plus_ms(interval_ms.max(1)));
            }
            return;
        }
        let durable = self.log.durable();
        let asked = self.persist.wanted > durable && self.log.journaled() >= self.persist.wanted;
        let hurry = self.role.hurries() && !self.log.has_unwritten();
        if asked || hurry || due <= self.now {
            self.persist.due = Some(self.now.plus_ms(interval_ms));
            self.persist.syncing = Some(self.log.written_number());
            self.push(Command::SyncJournal { token: Io::Sync.token(0) });
        }
    }
}
