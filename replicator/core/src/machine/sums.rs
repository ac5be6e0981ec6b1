//! Checksums of blocks at rest while the machine runs: pages come and go, blocks that were read are checked, and what is
//! written is noted. The rules, and why they hold after a crash, are in `docs/decisions`.
//!
//! - What entries change is noted when it is on the disk, before the batch counts as applied; a checkpoint waits until all
//!   of it is durable. Until then the journal has it, and applies it again.
//! - What comes from elsewhere than the log has no such safety: the sum of a block that is written anew says `UNKNOWN`,
//!   durably, before the write begins. Only the target of a resync goes without: what it has not confirmed is sent again.
//! - A block that was read is checked against what the disk should hold. Where a batch is on its way to a part of it, apply
//!   itself has looked at it just before.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::block_read::{BlockRead, each_bit};
use super::{Io, Machine, index_of};
use crate::command::{Command, Report};
use crate::dirty::{BLOCK_BYTES, WORD_BLOCKS};
use crate::event::IoResult;
use crate::pool::Pool;
use crate::sums::{Sum, Sums, Ticket};
use crate::units::{Buffer, PAGE_BYTES, Span, Token};

/// Pages that may be read or written at one time.
const IO_PAGES: usize = 32;

/// Rotten blocks that are remembered, so that each is told of once.
const KNOWN_BAD_MAX: usize = 1 << 16;

/// The checksums of the backing disk here, and what waits for them.
#[derive(Debug)]
pub(super) struct AtRest {
    pub(super) sums: Sums,
    /// Memory for pages on their way. It is never anybody else's: what makes room needs it.
    buffer: Buffer,
    /// Which page lies in each part of it.
    slots: [Option<u64>; IO_PAGES],
    /// What is to be noted once its page is here.
    late: Vec<(u64, Sum)>,
    /// Blocks that are about to be written anew.
    unknown: BTreeMap<u64, Ticket>,
    /// Blocks that were found rotten, and not written anew since.
    known_bad: BTreeSet<u64>,
}

impl AtRest {
    pub(super) fn new(sums: Sums, pool: &mut Pool) -> Self {
        let buffer = pool.take(IO_PAGES * PAGE_BYTES).expect("the arena is new");
        Self {
            sums,
            buffer,
            slots: [None; IO_PAGES],
            late: Vec::new(),
            unknown: BTreeMap::new(),
            known_bad: BTreeSet::new(),
        }
    }

    /// Whether a block is about to be written anew, and so nothing is known of it on purpose.
    pub(super) fn is_set_aside(&self, block: u64) -> bool {
        self.unknown.contains_key(&block) || self.late.iter().any(|(other, _)| *other == block)
    }

    fn span(&self, slot: usize) -> Span {
        Span { start: self.buffer.start() + slot * PAGE_BYTES, len: PAGE_BYTES }
    }

    fn take_slot(&mut self, page: u64) -> Option<usize> {
        let slot = self.slots.iter().position(Option::is_none)?;
        self.slots[slot] = Some(page);
        Some(slot)
    }
}

impl Machine {
    /// Notes what came with the pages, and whoever waited for them goes on.
    pub(super) fn pump_sums(&mut self, arena: &mut [u8]) {
        let Some(at_rest) = self.at_rest.as_deref_mut() else { return };
        let AtRest { sums, late, .. } = at_rest;
        late.retain(|(block, sum)| !sums.set(*block, *sum));
        self.check_waiting_reads(arena);
        self.check_waiting_blocks(arena);
        self.pump_batch(arena);
        self.pump_placing(arena);
        if let Some(at_rest) = self.at_rest.as_deref_mut() {
            at_rest.sums.end_of_pass();
        }
    }

    /// Reads and writes pages as they are wanted.
    pub(super) fn move_sums(&mut self, arena: &mut [u8]) {
        if self.is_failed() {
            return;
        }
        let Self { at_rest, commands, log, .. } = self;
        let Some(at_rest) = at_rest.as_deref_mut() else { return };
        // Reads leave room for writes: pages that are written make room for those that are read.
        while at_rest.slots.iter().flatten().count() < IO_PAGES / 2 {
            let Some(page) = at_rest.sums.next_load() else { break };
            let slot = at_rest.take_slot(page).expect("counted");
            let (token, span) = (Io::SumsRead.token(slot as u64), at_rest.span(slot));
            commands.push_back(Command::ReadJournal { token, device_offset: log.layout.sums_at(page), span });
        }
        while at_rest.slots.iter().any(Option::is_none) {
            let Some(page) = at_rest.sums.next_write() else { break };
            let slot = at_rest.take_slot(page).expect("looked at");
            let (token, span) = (Io::SumsWrite.token(slot as u64), at_rest.span(slot));
            at_rest.sums.encode(page, &mut arena[span.range()]);
            commands.push_back(Command::WriteJournal {
                token,
                device_offset: log.layout.sums_at(page),
                span,
            });
        }
        if at_rest.sums.begin_sync() {
            commands.push_back(Command::SyncJournal { token: Io::SumsSync.token(0) });
        }
    }

    /// A page of sums was read. If it cannot be, nothing is known of its blocks.
    pub(super) fn on_sums_read(&mut self, token: Token, result: IoResult, arena: &[u8]) {
        let at_rest = self.at_rest.as_deref_mut().expect("a page was being read");
        let slot = usize::try_from(index_of(token)).expect("a slot");
        let page = at_rest.slots[slot].take().expect("it was being read");
        let bytes = &arena[at_rest.span(slot).range()];
        let before = at_rest.sums.damaged_sectors();
        at_rest.sums.loaded(page, result.is_ok().then_some(bytes));
        let damaged = at_rest.sums.damaged_sectors() - before;
        if damaged > 0 {
            self.report(Report::SumsLost { block: page * crate::sums::PAGE_SUMS as u64, sectors: damaged });
        }
    }

    pub(super) fn on_sums_written(&mut self, token: Token, result: IoResult) {
        let at_rest = self.at_rest.as_deref_mut().expect("a page was being written");
        let slot = usize::try_from(index_of(token)).expect("a slot");
        let page = at_rest.slots[slot].take().expect("it was being written");
        at_rest.sums.written(page);
        self.device_ok("writing checksums", result);
    }

    pub(super) fn on_sums_synced(&mut self, result: IoResult) {
        if self.device_ok("syncing checksums", result) {
            self.at_rest.as_deref_mut().expect("they were being synced").sums.synced();
        }
    }

    /// Asks that all that is noted becomes durable; `None` if there is nothing to note.
    pub(super) fn want_sums(&mut self) -> Option<Ticket> {
        self.at_rest.as_deref_mut().map(|at_rest| at_rest.sums.want())
    }

    /// Whether it is.
    pub(super) fn sums_are_done(&self, ticket: Option<Ticket>) -> bool {
        let (Some(at_rest), Some(ticket)) = (self.at_rest.as_deref(), ticket) else { return true };
        at_rest.sums.is_done(ticket)
    }

    /// Notes what a block holds now, at once or when its page is here; what is stored of it says `UNKNOWN`.
    pub(super) fn note_sum(&mut self, block: u64, sum: Sum) {
        if let Some(at_rest) = self.at_rest.as_deref_mut() {
            at_rest.unknown.remove(&block);
            at_rest.known_bad.remove(&block);
            if !at_rest.sums.set(block, sum) {
                at_rest.late.push((block, sum));
            }
        }
    }

    /// Whether a block may be written with something that is not in the log and has this sum: after a crash what is
    /// stored must not speak against it.
    pub(super) fn may_overwrite(&mut self, block: u64, sum: Sum) -> bool {
        let Some(at_rest) = self.at_rest.as_deref_mut() else { return true };
        let AtRest { sums, unknown, late, .. } = at_rest;
        late.retain(|(other, _)| *other != block);
        match sums.get(block) {
            None => false,
            Some(known) if known == sum && !unknown.contains_key(&block) => true,
            Some(_) => {
                if let Some(ticket) = unknown.get(&block) {
                    return sums.is_done(*ticket);
                }
                assert!(sums.set(block, Sum::UNKNOWN), "its page is here");
                let ticket = sums.want();
                unknown.insert(block, ticket);
                sums.is_done(ticket)
            }
        }
    }

    /// A block is not written anew after all.
    pub(super) fn end_overwrite(&mut self, block: u64) {
        if let Some(at_rest) = self.at_rest.as_deref_mut() {
            at_rest.unknown.remove(&block);
        }
    }

    /// Whether a rotten block is told of now: once, until it is written anew or all is looked through again.
    pub(super) fn is_newly_bad(&mut self, block: u64) -> bool {
        let Some(at_rest) = self.at_rest.as_deref_mut() else { return false };
        at_rest.known_bad.len() >= KNOWN_BAD_MAX || at_rest.known_bad.insert(block)
    }

    pub(super) fn forget_known_bad(&mut self) {
        if let Some(at_rest) = self.at_rest.as_deref_mut() {
            at_rest.known_bad.clear();
        }
    }

    /// The disk holds what was applied, and no part of anything else.
    pub(super) fn disk_is_settled(&self) -> bool {
        self.apply.is_settled(self.log.applied.position.sequence)
    }

    /// Whether a block that was read is what it should be; `None` if that cannot be said yet.
    pub(super) fn is_right(&mut self, block: u64, bytes: &[u8]) -> Option<bool> {
        let Some(at_rest) = self.at_rest.as_deref_mut() else { return Some(true) };
        let sum = at_rest.sums.get(block)?;
        let (start, end) = (block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
        Some(
            sum.admits(block, bytes)
                || (sum != Sum::BAD && !self.disk_is_settled() && self.overlay.overlaps(start, end)),
        )
    }

    /// Looks through the blocks of a word that were read. Says whether that is done.
    pub(super) fn check_blocks(&mut self, read: &mut BlockRead, arena: &[u8]) -> bool {
        if self.at_rest.is_none() {
            return true;
        }
        for bit in each_bit(read.bits & !read.bad & !read.checked) {
            let block = read.word * WORD_BLOCKS + u64::from(bit);
            let bytes = &arena[read.block(bit).range()];
            let Some(is_right) = self.is_right(block, bytes) else { return false };
            read.checked |= 1 << bit;
            if !is_right {
                read.bad |= 1 << bit;
                read.rotten |= 1 << bit;
            }
        }
        true
    }
}
