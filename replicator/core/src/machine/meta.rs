//! The superblock's writer: one write at a time, each with everything that changed until it began. What others
//! rely on is read from `saved`, never from `current`.

use alloc::boxed::Box;

use super::{Io, Machine};
use crate::command::Command;
use crate::disk::superblock::Superblock;
use crate::event::IoResult;

/// The superblock in memory and on disk.
#[derive(Debug)]
pub(super) struct Meta {
    /// As it should be.
    pub(super) current: Superblock,
    /// As it surely is, in both copies.
    pub(super) saved: Superblock,
    submitted: Option<Box<Superblock>>,
    changed: bool,
}

impl Meta {
    pub(super) fn new(superblock: Superblock) -> Self {
        Self { current: superblock, saved: superblock, submitted: None, changed: false }
    }

    /// Notes a change; returns the superblock sequence that will contain it.
    pub(super) fn change(&mut self) -> u64 {
        self.changed = true;
        self.current.sequence.max(self.submitted.as_ref().map_or(0, |sb| sb.sequence)) + 1
    }

    /// Whether the change that [`Self::change`] numbered is on disk.
    pub(super) fn is_saved(&self, sequence: u64) -> bool {
        self.saved.sequence >= sequence
    }

    /// Whether nothing is under way or waiting.
    pub(super) fn is_idle(&self) -> bool {
        !self.changed && self.submitted.is_none()
    }
}

impl Machine {
    pub(super) fn pump_meta(&mut self) {
        if !self.meta.changed || self.meta.submitted.is_some() {
            return;
        }
        let (stable, durable) = (self.stable.min(self.log.last()), self.log.durable());
        let current = &mut self.meta.current;
        current.sequence += 1;
        // A stable mark in the superblock is as good as one in the ring. It never goes back, nor does `durable`
        // but by a cut, which set it.
        current.stable = current.stable.max(stable);
        current.durable = current.durable.max(durable);
        current.history = self.persist.history;
        if self.log.head_ms > 0 {
            current.head_ms = self.log.head_ms;
        }
        self.meta.changed = false;
        self.meta.submitted = Some(Box::new(self.meta.current));
        let superblock = Box::new(self.meta.current);
        let token = Io::Superblock.token(superblock.sequence);
        self.push(Command::WriteSuperblock { token, superblock });
    }

    pub(super) fn on_superblock_written(&mut self, result: IoResult) {
        let submitted = self.meta.submitted.take().expect("one superblock write was under way");
        if !self.device_ok("writing the superblock", result) {
            // Nothing that waits for it may go on; the old copies stay what others were told.
            return;
        }
        let saved = &self.meta.saved;
        assert!(submitted.sequence > saved.sequence && submitted.promised >= saved.promised);
        let is_later = submitted.record.order() >= saved.record.order();
        assert!(is_later || submitted.discards > saved.discards, "a record is replaced only by a later one");
        let old_bytes = saved.volume_bytes;
        self.meta.saved = *submitted;
        let bytes = self.meta.saved.volume_bytes;
        if bytes != old_bytes {
            self.push(Command::VolumeSize { bytes });
        }
        self.persist.saved_mark = self.persist.saved_mark.max(self.meta.saved.stable);
    }
}
