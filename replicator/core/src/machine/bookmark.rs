//! Bookmarks while the machine runs. Apply notes what it has put in place, and a checkpoint saves the maps before it
//! counts: what a crash takes from a map is behind the checkpoint in the log, and is noted when it is applied again.
//!
//! What no entry of the log says must not be lost with the process either: blocks of a resync, and blocks that are
//! written anew. Before the first of them the superblock says that the stored maps are *behind*; a start that finds
//! that counts every block as changed. A checkpoint that saves the maps takes it back.
//!
//! ```text
//!            a resync begins, a block is to be written anew; then it is stored
//!   (level) ------------------------------------------------------------------> behind
//!      ^                                                                          |
//!      +--- the copy is UpToDate, the maps are saved, nothing was written since --+
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Machine;
use crate::bookmarks::{Bookmark, BookmarkName};
use crate::command::{Command, Report};
use crate::dirty::DirtyMap;
use crate::disk::superblock::{DiskState, Maps};
use crate::units::{AdminId, Sequence};

/// Why nothing is changed now.
const NOT_LEVEL: &str =
    "the copy here is not UpToDate, or is about to be written anew: wait until that is over";

/// An operator who waits for a change of the bookmarks to be saved.
#[derive(Debug)]
pub(super) struct BookmarkAsk {
    id: AdminId,
    text: String,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has it yet.
    Waiting,
    /// The images that are being written have it.
    Written,
    /// The superblock with this sequence names them.
    Saving(u64),
}

/// What the superblock will say of the bookmarks.
#[derive(Clone, Copy, Debug)]
pub(super) struct SavedBookmarks {
    is_any: bool,
    /// How many blocks had been written outside the log when the images were made; `None` if more may come.
    bypasses: Option<u64>,
}

impl Machine {
    pub(super) fn on_add_bookmark(&mut self, id: AdminId, name: BookmarkName) {
        let reason = if !self.meta.current.bookmark_room {
            "the journal of this replica was created without room for bookmarks: `holdfast create` it anew"
        } else if !self.is_level() {
            NOT_LEVEL
        } else {
            let (position, made_ms) = (self.log.applied.position, self.wall_ms());
            let empty = DirtyMap::new(self.meta.current.volume_bytes, self.log.layout.map_bytes);
            match self.bookmarks.add(name, position, made_ms, empty) {
                Ok(()) => {
                    let text =
                        format!("bookmark {name} is at {position}; what changes here from now on is noted");
                    return self.expect_bookmarks_saved(id, text);
                }
                Err(reason) => reason,
            }
        };
        self.refuse_admin(id, reason);
    }

    pub(super) fn on_delete_bookmark(&mut self, id: AdminId, name: BookmarkName) {
        if !self.is_level() {
            return self.refuse_admin(id, NOT_LEVEL);
        }
        if !self.bookmarks.delete(name.as_str()) {
            return self.refuse_admin(id, format!("there is no bookmark {name} of the copy here"));
        }
        if self.is_frozen_open() {
            // Who reads with it must not go on with another one of that name.
            self.push(Command::ServeFrozen { open: false });
        }
        self.expect_bookmarks_saved(id, format!("bookmark {name} is deleted"));
    }

    fn expect_bookmarks_saved(&mut self, id: AdminId, text: String) {
        self.bookmark_asks.push(BookmarkAsk { id, text, stage: Stage::Waiting });
        if self.is_frozen_open() {
            self.push(Command::ServeFrozen { open: true });
        }
    }

    /// Answers those whose change is saved.
    pub(super) fn answer_bookmarks(&mut self) {
        if self.bookmark_asks.is_empty() {
            return;
        }
        let is_failed = self.is_failed();
        for ask in core::mem::take(&mut self.bookmark_asks) {
            match ask.stage {
                _ if is_failed => self.refuse_admin(ask.id, "a device failed before that was stored"),
                Stage::Saving(saved) if self.meta.is_saved(saved) => self.answer_admin(ask.id, Ok(ask.text)),
                _ => self.bookmark_asks.push(ask),
            }
        }
    }

    /// Which ones there were cannot be told any more.
    pub(super) fn lose_bookmarks(&mut self) {
        self.meta.current.bookmarks = false;
        self.meta.change();
        let text = "the bookmarks of this copy are lost: their table in the journal is damaged";
        self.report(Report::Role(String::from(text)));
    }

    /// Whether a checkpoint is wanted though nothing was applied: somebody waits, or the stored maps are behind.
    pub(super) fn want_bookmarks_saved(&self) -> bool {
        let waits = self.bookmark_asks.iter().any(|ask| ask.stage == Stage::Waiting);
        let is_behind = self.meta.current.bookmarks_behind && !self.bookmarks.is_empty();
        // Once the disk is synced for it the log begins anew, and no checkpoint may be under way.
        (waits || (is_behind && self.is_level())) && self.drain_sync.is_none()
    }

    /// Whether the log here goes on as it is: no block of a resync is, or will soon be, put in place.
    fn is_level(&self) -> bool {
        let is_whole = self.meta.saved.disk_state == DiskState::UpToDate
            && self.meta.current.disk_state == DiskState::UpToDate;
        let gives_up = self.discard.is_some() || self.resolve.is_some() || self.drain_sync.is_some();
        let comes_in = self.intake.is_some() || self.replay.is_some() || self.placing.is_some();
        is_whole && !self.is_resynced() && !gives_up && !comes_in
    }

    /// The bookmark of this name.
    #[must_use]
    pub fn bookmark(&self, name: &str) -> Option<&Bookmark> {
        self.bookmarks.find(name)
    }

    /// The log begins anew: blocks are put in place that it does not tell of.
    pub(super) fn restart_bookmarks(&mut self, sequence: Sequence) {
        self.bookmarks.restart(sequence);
        self.say_bookmarks_behind();
    }

    fn say_bookmarks_behind(&mut self) {
        self.meta.current.bookmarks_behind = true;
        self.bookmarks_behind_at = self.meta.change();
    }

    /// Whether a block may be written anew: not before it is stored that the maps are behind.
    pub(super) fn may_bypass_bookmarks(&mut self) -> bool {
        // One that was deleted is there again after a crash, as long as what is stored still names it.
        let is_any = !self.bookmarks.is_empty() || self.meta.current.bookmarks || self.meta.saved.bookmarks;
        if !is_any {
            return true;
        }
        if !self.meta.current.bookmarks_behind {
            self.say_bookmarks_behind();
        }
        // The word that they are level may still be on its way to the disk.
        self.meta.is_saved(self.bookmarks_behind_at)
    }

    /// A block is about to be written anew.
    pub(super) fn note_bypass(&mut self, offset: u64, length: u64) {
        self.bypasses += 1;
        self.bookmarks.note_outside(offset, length);
    }

    /// Adds the table and the images to what is about to be written.
    pub(super) fn begin_saving_bookmarks(
        &mut self,
        maps: &Maps,
        images: &mut Vec<(u64, Vec<u8>)>,
    ) -> SavedBookmarks {
        for ask in self.bookmark_asks.iter_mut().filter(|ask| ask.stage == Stage::Waiting) {
            ask.stage = Stage::Written;
        }
        let is_any = !self.bookmarks.is_empty();
        let bypasses = self.is_level().then_some(self.bypasses);
        if is_any {
            let layout = &self.log.layout;
            let (table, maps_of) = self.bookmarks.encode(maps.generation);
            images.push((layout.bookmarks_at(maps.copy), table));
            let placed = maps_of.into_iter().enumerate();
            let placed = placed.map(|(index, image)| (layout.bookmark_map_at(maps.copy, index), image));
            images.extend(placed.filter(|(_, image)| !image.is_empty()));
        }
        self.bookmarks.changed = false;
        SavedBookmarks { is_any, bypasses }
    }

    /// The images are durable: the superblock that names them comes next.
    pub(super) fn end_saving_bookmarks(&mut self, saved: SavedBookmarks) {
        let current = &mut self.meta.current;
        current.bookmarks = saved.is_any;
        if saved.bypasses == Some(self.bypasses) && current.disk_state == DiskState::UpToDate {
            current.bookmarks_behind = false;
        }
        let sequence = self.meta.change();
        for ask in self.bookmark_asks.iter_mut().filter(|ask| ask.stage == Stage::Written) {
            ask.stage = Stage::Saving(sequence);
        }
    }
}
