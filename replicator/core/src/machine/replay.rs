//! Replay: blocks that were gathered in the ring are put in place, right after the switch or at the next start. It needs
//! nobody else. Nothing is applied, and nobody is greeted, before it has ended.
//!
//! ```text
//! Idle --item left--> Reading --sound--> Writing --written--> Idle ... --none left--> Syncing --> Saving --> (none)
//! ```

use alloc::boxed::Box;
use alloc::string::String;

use super::apply::SPACE_RETRY_MS;
use super::target::put_in_place;
use super::{Io, Machine};
use crate::command::{Command, Report};
use crate::dirty::WORD_BYTES;
use crate::disk::superblock::{DiskState, Gathered};
use crate::event::IoResult;
use crate::pool::Pool;
use crate::units::{Buffer, Instant, PAGE_BYTES, RingOffset, Span};
use crate::wire::blocks::BlocksHeader;

/// Bytes of the largest item.
const ITEM_BYTES_MAX: usize = PAGE_BYTES + WORD_BYTES as usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// So many bytes of the ring are being read.
    Reading(usize),
    /// So many writes are under way; whether one found no space.
    Writing(u32, bool),
    Syncing,
    /// Superblock sequence that says UpToDate.
    Saving(u64),
}

/// Blocks on their way from the ring to their place.
#[derive(Debug)]
pub(super) struct Replay {
    at: RingOffset,
    end: RingOffset,
    items_left: u64,
    /// Bytes of the item being written.
    item_bytes: usize,
    buffer: Buffer,
    stage: Stage,
    retry_at: Option<Instant>,
}

impl Replay {
    pub(super) fn new(gathered: Gathered, buffer: Buffer) -> Self {
        let Gathered { from, to, items } = gathered;
        Self {
            at: from,
            end: to,
            items_left: items,
            item_bytes: 0,
            buffer,
            stage: Stage::Idle,
            retry_at: None,
        }
    }

    /// Memory for one item. It is taken before anything comes that only the replay's end gives back.
    pub(super) fn take_buffer(pool: &mut Pool) -> Option<Buffer> {
        pool.take(ITEM_BYTES_MAX)
    }

    pub(super) fn items_left(&self) -> u64 {
        self.items_left
    }
}

impl Machine {
    /// Moves the replay, if there is one and the switch is stored.
    pub(super) fn pump_replay(&mut self) {
        let is_stored = self.meta.saved.gathered.is_some();
        let Some(replay) = self.replay.as_mut() else { return };
        if let Stage::Saving(saved) = replay.stage {
            if self.meta.is_saved(saved) {
                self.finish_replay();
            }
            return;
        }
        let waits = replay.retry_at.is_some_and(|due| due > self.now);
        if replay.stage != Stage::Idle || waits || !is_stored || self.is_failed() {
            return;
        }
        if self.replay.as_ref().is_some_and(|replay| replay.items_left == 0) {
            self.replay_stage(Stage::Syncing);
            return self.push(Command::SyncDisk { token: Io::ReplaySync.token(0) });
        }
        self.read_gathered();
    }

    fn replay_stage(&mut self, stage: Stage) {
        self.replay.as_mut().expect("a replay is under way").stage = stage;
    }

    fn read_gathered(&mut self) {
        let replay = self.replay.as_mut().expect("a replay is under way");
        let left = replay.end.0.saturating_sub(replay.at.0).min(self.log.layout.bytes_to_end(replay.at));
        let len = left.min(ITEM_BYTES_MAX as u64);
        if len < PAGE_BYTES as u64 {
            return self.lose_gathered();
        }
        let len = usize::try_from(len).expect("bounded by an item");
        replay.stage = Stage::Reading(len);
        let device_offset = self.log.layout.device_offset(replay.at);
        let span = Span { start: replay.buffer.start(), len };
        self.push(Command::ReadJournal { token: Io::ReplayRead.token(0), device_offset, span });
    }

    pub(super) fn on_gathered_read(&mut self, result: IoResult, arena: &[u8]) {
        let volume_bytes = self.meta.saved.volume_bytes;
        let replay = self.replay.as_mut().expect("it was reading");
        let Stage::Reading(len) = replay.stage else { unreachable!("one read was under way") };
        replay.stage = Stage::Idle;
        let bytes = &arena[replay.buffer.start()..replay.buffer.start() + len];
        let total =
            BlocksHeader::item_bytes(bytes, volume_bytes).filter(|total| result.is_ok() && *total <= len);
        let item = total.and_then(|total| BlocksHeader::decode(&bytes[..total], volume_bytes).ok());
        match (item, total) {
            (Some(item), Some(total)) if item.volume == self.config.volume => {
                replay.item_bytes = total;
                self.write_gathered(&item);
            }
            _ if result.is_ok()
                && !self.log.layout.bytes_to_end(replay.at).eq(&self.log.layout.ring_bytes) =>
            {
                // It may not have fitted before the end of the lap. What is looked for there is the same item.
                replay.at = replay.at.plus(self.log.layout.bytes_to_end(replay.at));
                self.read_gathered();
            }
            _ => self.lose_gathered(),
        }
    }

    fn write_gathered(&mut self, item: &BlocksHeader) {
        let volume_bytes = self.meta.saved.volume_bytes;
        let Self { replay, commands, bookmarks, .. } = self;
        let replay = replay.as_mut().expect("the caller has it");
        let writes = put_in_place(item, replay.buffer, Io::ReplayWrite, volume_bytes, commands, bookmarks);
        replay.stage = Stage::Writing(writes, false);
        if writes == 0 {
            self.end_item();
        }
    }

    pub(super) fn on_gathered_written(&mut self, result: IoResult) {
        let replay = self.replay.as_mut().expect("it was writing");
        let Stage::Writing(left, was_short) = replay.stage else { unreachable!("writes were under way") };
        let is_short = result.is_err_and(crate::event::Errno::is_no_space);
        replay.stage = Stage::Writing(left - 1, was_short || is_short);
        let is_fine = is_short || self.device_ok("writing the disk", result);
        if left > 1 || !is_fine || self.is_failed() {
            return;
        }
        if was_short || is_short {
            let due = self.now.plus_ms(SPACE_RETRY_MS);
            let replay = self.replay.as_mut().expect("as above");
            replay.stage = Stage::Idle;
            if replay.retry_at.replace(due).is_none() {
                self.report(Report::DiskFull);
            }
            return;
        }
        self.end_item();
    }

    fn end_item(&mut self) {
        let replay = self.replay.as_mut().expect("an item was written");
        replay.at = replay.at.plus(replay.item_bytes as u64);
        (replay.items_left, replay.stage) = (replay.items_left - 1, Stage::Idle);
        if replay.retry_at.take().is_some() {
            self.report(Report::DiskHasSpace);
        }
    }

    /// The ring does not give back what was gathered. The copy stays Inconsistent, and a Primary goes on from what its
    /// blocks were complete for before.
    fn lose_gathered(&mut self) {
        let text = "blocks that were gathered in the journal cannot be read back: they are fetched again";
        self.report(Report::Role(String::from(text)));
        let replay = self.replay.take().expect("a replay was under way");
        self.pool.give(replay.buffer);
        self.meta.current.gathered = None;
        self.meta.change();
        if let Some(id) = self.intake.as_ref().map(|intake| intake.link) {
            let place = self.find_link(id).expect("the intake ends with its link");
            self.close(place, "what was gathered cannot be read back", true);
        }
    }

    pub(super) fn on_replay_synced(&mut self, result: IoResult) {
        if !self.device_ok("syncing the disk", result) || self.is_failed() {
            return;
        }
        let current = &mut self.meta.current;
        (current.disk_state, current.suspect, current.data_base) = (DiskState::UpToDate, false, None);
        current.gathered = None;
        let saved = self.meta.change();
        self.replay_stage(Stage::Saving(saved));
    }

    fn finish_replay(&mut self) {
        let replay: Box<Replay> = self.replay.take().expect("a replay was under way");
        self.pool.give(replay.buffer);
        self.report(Report::Role(String::from("the gathered blocks are in place: this copy is UpToDate")));
        let saved = self.meta.saved.sequence;
        if let Some(intake) = self.intake.as_mut() {
            (intake.durable, intake.saved) = (intake.received, Some(saved));
        }
    }

    /// When a disk that had no space is tried again.
    pub(super) fn replay_due(&self) -> Option<Instant> {
        let replay = self.replay.as_ref().filter(|replay| replay.stage == Stage::Idle)?;
        Some(replay.retry_at?.max(self.now.plus_ms(1)))
    }
}
