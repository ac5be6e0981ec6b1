//! Release: frames that lie in the journal and are not to be applied soon give up the memory they came in. Apply reads
//! them back when their time has come, at worst one after the other through its reserve: memory is never what a
//! replica waits for in vain.

use super::Machine;
use super::apply::give_back;
use crate::pool::Pool;
use crate::units::{Buffer, PAGE_BYTES};

impl Machine {
    /// All frames from `number` on have long to wait. What is being written is written from memory.
    pub(super) fn release_waiting(&mut self, number: u64) {
        let Self { log, pool, apply, .. } = self;
        let written = apply.batch_end().map_or(0, |end| end + 1);
        let from = self.released.max(number).max(written);
        let to = log.release_journaled(from, |buffer| give_back(pool, apply, buffer));
        if to > from {
            self.released = to;
            self.note_released();
        }
    }

    /// Memory for a frame of `bytes` that is about to come. What waits for a mark must not keep out the frame that
    /// brings it: if nothing here would make room by itself, the newest of what waits is read back later.
    pub(super) fn take_for_frame(&mut self, bytes: usize) -> Option<Buffer> {
        loop {
            if let Some(buffer) = take_if_roomy(&mut self.pool, bytes) {
                return Some(buffer);
            }
            if !self.waits_for_others() {
                return None;
            }
            let buffer = self.log.release_newest(self.released)?;
            give_back(&mut self.pool, &mut self.apply, buffer);
            self.note_released();
        }
    }

    /// Whether all there is is journaled for good, and what may be applied is.
    fn waits_for_others(&self) -> bool {
        let is_written = !self.log.has_unwritten() && !self.log.has_undurable();
        let is_applied = self.log.applied.position.sequence >= self.apply_bound();
        is_written && is_applied && self.apply.is_idle() && !self.role.is_sequencing()
    }

    /// Until all of it is applied, not everything unapplied is in memory.
    fn note_released(&mut self) {
        self.recovered_end = self.recovered_end.max(self.log.journaled());
    }
}

/// Some pages stay free for marks: without them nothing that came could be applied and freed.
fn take_if_roomy(pool: &mut Pool, bytes: usize) -> Option<Buffer> {
    let needed = bytes.div_ceil(PAGE_BYTES) + pool.pages() as usize / 16;
    if pool.free_pages() as usize > needed { pool.take(bytes) } else { None }
}
