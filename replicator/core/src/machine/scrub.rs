//! Scrub: a replica reads every block of its disk, whatever its role, and checks it. What is bad is written anew: a Primary
//! fetches it, a Secondary asks its Primary for it. It needs no other replica to find what is bad.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use super::Machine;
use super::block_read::{BlockRead, Reader, each_bit, valid_bits};
use crate::command::Report;
use crate::dirty::{BLOCK_BYTES, WORD_BLOCKS, WORD_BYTES};
use crate::disk::superblock::{DiskState, ScrubRecord};
use crate::status::{Progress, ScrubEnd, ScrubStatus, SumsStatus};
use crate::sums::Sum;
use crate::units::{AdminId, Instant, PAGE_BYTES};

/// Words that may be read at one time.
const READING_MAX: usize = 4;

/// A scrub, under way or ended.
#[derive(Debug)]
pub(super) struct Scrub {
    /// How and when it ended.
    ended: Option<(ScrubEnd, Instant)>,
    began: Instant,
    cursor: u64,
    checked_blocks: u64,
    bad_blocks: u64,
    learnt_blocks: u64,
}

impl Machine {
    fn is_scrubbing(&self) -> bool {
        self.scrub.as_ref().is_some_and(|scrub| scrub.ended.is_none())
    }

    pub(super) fn on_scrub(&mut self, id: AdminId) {
        let reason = if self.at_rest.is_none() {
            "this replica was created without checksums of blocks at rest: `holdfast verify` compares it with the others"
        } else if self.is_scrubbing() {
            "a scrub is under way; see `holdfast status`, or end it with --stop"
        } else if !self.may_scrub() {
            "the copy here is not UpToDate: it is being written anew, or has to be"
        } else {
            self.begin_scrub();
            return self
                .answer_admin(id, Ok(String::from("the scrub begins; `holdfast status` shows how it goes")));
        };
        self.refuse_admin(id, reason);
    }

    pub(super) fn on_stop_scrub(&mut self, id: AdminId) {
        if !self.is_scrubbing() {
            return self.refuse_admin(id, "no scrub is under way");
        }
        self.end_scrub(ScrubEnd::Stopped);
        self.answer_admin(id, Ok(String::from("the scrub is ended")));
    }

    fn may_scrub(&self) -> bool {
        self.meta.current.disk_state == DiskState::UpToDate
            && self.intake.is_none()
            && !self.role.is_stopping()
    }

    fn begin_scrub(&mut self) {
        self.forget_known_bad();
        let (ended, began) = (None, self.now);
        let (cursor, checked_blocks, bad_blocks, learnt_blocks) = (0, 0, 0, 0);
        self.scrub =
            Some(Box::new(Scrub { ended, began, cursor, checked_blocks, bad_blocks, learnt_blocks }));
        self.report(Report::Scrub(String::from("a scrub begins: every block here is read and checked")));
    }

    fn end_scrub(&mut self, how: ScrubEnd) {
        let (now, wall_ms) = (self.now, self.wall_ms());
        let scrub = self.scrub.as_deref_mut().expect("the caller looked");
        scrub.ended = Some((how, now));
        let (blocks, bad_blocks) = (scrub.checked_blocks, scrub.bad_blocks);
        let text = match how {
            ScrubEnd::Done => format!("the scrub is done: {blocks} blocks read, {bad_blocks} bad"),
            ScrubEnd::Stopped => format!("the scrub was stopped after {blocks} blocks, {bad_blocks} bad"),
            ScrubEnd::Interrupted => {
                format!(
                    "the scrub was interrupted after {blocks} blocks, {bad_blocks} bad: the copy is not UpToDate"
                )
            }
        };
        self.report(Report::Scrub(text));
        if how == ScrubEnd::Done {
            // A clock that is not known counts as the least that says that there was one.
            let ended_ms = wall_ms.max(1);
            self.meta.current.scrub = ScrubRecord { ended_ms, blocks, bad_blocks };
            self.meta.change();
        }
    }

    /// When the next scrub begins by itself.
    fn next_scrub(&self) -> Option<Instant> {
        let interval_ms = self.config.scrub_interval_ms;
        if self.at_rest.is_none() || interval_ms == 0 || self.is_scrubbing() || !self.may_scrub() {
            return None;
        }
        let due_ms = self.meta.current.scrub.ended_ms.saturating_add(interval_ms);
        let ended = self.scrub.as_ref().and_then(|scrub| scrub.ended);
        // One that did not go through to its end is not begun again at once.
        let after = ended.filter(|(how, _)| *how != ScrubEnd::Done).map(|(_, at)| at.plus_ms(interval_ms));
        let due = self.now.plus_ms(due_ms.saturating_sub(self.wall_ms()));
        Some(after.map_or(due, |after| due.max(after)))
    }

    /// Reads on, when nothing is on its way to the disk.
    pub(super) fn pump_scrub(&mut self) {
        if self.next_scrub().is_some_and(|due| due <= self.now) {
            self.begin_scrub();
        }
        if !self.is_scrubbing() {
            return;
        }
        if !self.may_scrub() {
            return self.end_scrub(ScrubEnd::Interrupted);
        }
        let (now, volume_bytes) = (self.now, self.volume_bytes());
        loop {
            let reading = self.count_reads(|reader| matches!(reader, Reader::Scrub));
            let word = self.scrub.as_ref().expect("looked at").cursor;
            if word >= volume_bytes.div_ceil(WORD_BYTES) {
                if reading == 0 {
                    self.end_scrub(ScrubEnd::Done);
                }
                return;
            }
            let range = (word * WORD_BYTES, (word + 1) * WORD_BYTES);
            if self.mending.is_some() || self.is_mending(range.0, range.1) {
                return;
            }
            if reading == READING_MAX || !self.disk_is_settled() || !self.pace.may_start(now) {
                return;
            }
            let Some(buffer) = self.take_block_buffer() else { return };
            self.scrub.as_mut().expect("looked at").cursor += 1;
            let bits = valid_bits(word, volume_bytes);
            self.begin_block_read(BlockRead::new(Reader::Scrub, word, bits, buffer, volume_bytes));
        }
    }

    pub(super) fn on_scrubbed(&mut self, read: BlockRead, arena: &[u8]) {
        self.pool.give(read.buffer);
        if !self.is_scrubbing() || !self.may_scrub() {
            return;
        }
        let mut learnt = 0;
        for bit in each_bit(read.bits & !read.bad) {
            let block = read.word * WORD_BLOCKS + u64::from(bit);
            let at_rest = self.at_rest.as_deref_mut().expect("it is being scrubbed");
            let (start, end) = (block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
            let is_unknown = at_rest.sums.get(block) == Some(Sum::UNKNOWN);
            // What is about to be written from elsewhere stays unknown.
            if is_unknown && !at_rest.is_set_aside(block) && !self.is_mending(start, end) {
                let sum = Sum::of(block, &arena[read.block(bit).range()]);
                self.note_sum(block, sum);
                learnt += 1;
            }
        }
        let scrub = self.scrub.as_deref_mut().expect("looked at");
        scrub.checked_blocks += u64::from(read.bits.count_ones());
        scrub.bad_blocks += u64::from(read.bad.count_ones());
        scrub.learnt_blocks += learnt;
        self.note_bad(&read);
        if self.role.is_serving() {
            each_bit(read.bad).for_each(|bit| self.mend(read.word * WORD_BLOCKS + u64::from(bit), None));
        }
    }

    /// When a scrub wants to be looked at though nothing happened.
    pub(super) fn scrub_due(&self) -> Option<Instant> {
        let starts = self.is_scrubbing().then(|| self.pace.due().max(self.now.plus_ms(1)));
        starts.into_iter().chain(self.next_scrub()).min()
    }

    pub(super) fn scrub_status(&self) -> Option<ScrubStatus> {
        let scrub = self.scrub.as_deref()?;
        let blocks = self.volume_bytes().div_ceil(BLOCK_BYTES);
        let until = scrub.ended.map_or(self.now, |(_, at)| at);
        Some(ScrubStatus {
            ended: scrub.ended.map(|(how, _)| how),
            progress: Progress {
                blocks,
                left_blocks: blocks.saturating_sub(scrub.checked_blocks),
                elapsed_ms: until.0.saturating_sub(scrub.began.0) / 1_000_000,
                allowed_rate: self.pace.rate(),
                is_staged: false,
            },
            bad_blocks: scrub.bad_blocks,
            learnt_blocks: scrub.learnt_blocks,
        })
    }

    pub(super) fn sums_status(&self) -> Option<SumsStatus> {
        let at_rest = self.at_rest.as_deref()?;
        let last = self.meta.current.scrub;
        Some(SumsStatus {
            memory_bytes: (at_rest.sums.pages() * PAGE_BYTES) as u64,
            area_bytes: self.log.layout.sums_bytes,
            damaged_sectors: at_rest.sums.damaged_sectors(),
            last: (last.ended_ms > 0).then_some(last),
        })
    }
}
