//! Mending: a block that cannot be read here, or is known to be wrong, is fetched from another replica and written
//! anew. Reads of clients that met it wait for that, and are done again.
//!
//! ```text
//!            nothing unapplied overlaps it           answer in            on disk
//!  Waiting ---------------------------------> Asked ----------> Fetched ----------> Writing --> (mended)
//!     ^                                         |
//!     +---- it cannot, or its link is gone: ask another one
//! ```
//!
//! The peer answers at just the point that this replica has applied when it asks. From then on, until the block is
//! written, nothing that overlaps it is applied here.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::block_read::{BlockRead, Reader, each_bit, overlaps};
use super::greet::Place;
use super::peer::Peer;
use super::source::HOLD_AFTER_MS;
use super::{Io, Machine};
use crate::command::{Command, Report, RequestError};
use crate::dirty::{BLOCK_BYTES, WORD_BLOCKS, WORD_BYTES};
use crate::disk::superblock::DiskState;
use crate::event::IoResult;
use crate::sums::Sum;
use crate::units::{Buffer, Instant, LinkId, NodeId, NodeSet, PAGE_BYTES, RequestId, Span};
use crate::wire::message::Message;
use crate::wire::visit::{Fetch, Fetched};

/// Blocks that may be on their way at one time.
const UNDER_WAY_MAX: usize = 32;
/// How often a read is done again after its blocks were mended.
const TRIES_MAX: u32 = 3;

/// One block.
#[derive(Debug)]
struct Job {
    block: u64,
    /// Whose content it must be; `None` is anybody's.
    of: Option<NodeId>,
    stage: Stage,
    since: Instant,
    /// Memory to write it from.
    page: Option<Buffer>,
    /// Of what is being written.
    sum: Sum,
    /// What overlaps it is not sequenced.
    is_held: bool,
    /// Those that could not answer.
    asked: NodeSet,
}

#[derive(Debug)]
enum Stage {
    Waiting,
    Asked { link: LinkId, session: u64, node: NodeId, number: u64 },
    Fetched { node: NodeId, bytes: Box<[u8]> },
    Writing { node: NodeId },
}

/// A read of a client that met blocks which cannot be read.
#[derive(Debug)]
struct Wounded {
    request: RequestId,
    offset: u64,
    destination: Span,
    tries: u32,
    /// Words of which it is not known yet what is bad.
    unknown: Vec<u64>,
    /// Blocks that are being mended.
    blocks: Vec<u64>,
    is_lost: bool,
}

/// What is being mended, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Mends {
    jobs: Vec<Job>,
    wounded: Vec<Wounded>,
    /// Words to look through block by block: (word, bits).
    probes: VecDeque<(u64, u64)>,
    /// Number of the question asked last.
    number: u64,
}

impl Mends {
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}

fn range_of(block: u64) -> (u64, u64) {
    (block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
}

impl Machine {
    /// Whether blocks of this range are being mended, or about to be.
    pub(super) fn is_mending(&self, start: u64, end: u64) -> bool {
        self.mends.jobs.iter().any(|job| overlaps(range_of(job.block), (start, end)))
    }

    /// Whether a block of this range was asked for and is not written yet: what overlaps it is not applied.
    pub(super) fn is_exchanging(&self, start: u64, end: u64) -> bool {
        let asked = self.mends.jobs.iter().filter(|job| !matches!(job.stage, Stage::Waiting));
        asked.into_iter().any(|job| overlaps(range_of(job.block), (start, end)))
    }

    pub(super) fn blocks_held_for_mends(&self) -> impl Iterator<Item = (u64, u64)> {
        self.mends.jobs.iter().filter(|job| job.is_held).map(|job| range_of(job.block))
    }

    /// Has a block written anew with what `of` holds, or anybody whose copy is whole.
    pub(super) fn mend(&mut self, block: u64, of: Option<NodeId>) {
        if self.mends.jobs.iter().any(|job| job.block == block) {
            return;
        }
        let (stage, since, page, is_held, asked) = (Stage::Waiting, self.now, None, false, NodeSet(0));
        let sum = Sum::UNKNOWN;
        self.mends.jobs.push(Job { block, of, stage, since, page, sum, is_held, asked });
    }

    /// Blocks that are being mended.
    pub(super) fn mends_left(&self) -> usize {
        self.mends.jobs.len()
    }

    /// Whether another replica than `except` could say what a block holds.
    pub(super) fn can_mend(&self, except: Option<usize>) -> bool {
        let able = |(index, peer): (usize, &Peer)| Some(index) != except && can_answer(peer);
        self.role.is_serving() && self.peers.iter().enumerate().any(able)
    }

    /// Mends what a resync could not read, if somebody else has it.
    pub(super) fn mend_for_source(&mut self, target: usize, read: &BlockRead) -> bool {
        let able = self.can_mend(Some(target));
        if able {
            self.note_bad(read);
            each_bit(read.bad).for_each(|bit| self.mend(read.word * WORD_BLOCKS + u64::from(bit), None));
        }
        able
    }

    /// A client's read failed: what of it cannot be read is mended, then it is done again.
    pub(super) fn wound(&mut self, request: RequestId, offset: u64, destination: Span, tries: u32) {
        // A checksum may have been asked too early: then nothing is bad, and nobody else is needed.
        if tries >= TRIES_MAX || !(self.can_mend(None) || self.at_rest.is_some()) {
            return self.complete(request, Err(RequestError::Device));
        }
        let end = offset + destination.len as u64;
        let words = offset / WORD_BYTES..end.div_ceil(WORD_BYTES);
        for word in words.clone() {
            let (from, to) = (offset.max(word * WORD_BYTES), end.min((word + 1) * WORD_BYTES));
            let first = (from - word * WORD_BYTES) / BLOCK_BYTES;
            let count = (to - word * WORD_BYTES).div_ceil(BLOCK_BYTES) - first;
            self.mends.probes.push_back((word, u64::MAX >> (64 - count) << first));
        }
        let (unknown, blocks, is_lost) = (words.collect(), Vec::new(), false);
        let wounded = Wounded { request, offset, destination, tries, unknown, blocks, is_lost };
        self.mends.wounded.push(wounded);
    }

    /// It is known which blocks of a word cannot be read.
    pub(super) fn on_probed(&mut self, read: BlockRead) {
        self.pool.give(read.buffer);
        if !self.role.is_serving() {
            return;
        }
        self.note_bad(&read);
        let bad: Vec<u64> = each_bit(read.bad).map(|bit| read.word * WORD_BLOCKS + u64::from(bit)).collect();
        bad.iter().for_each(|block| self.mend(*block, None));
        for wounded in &mut self.mends.wounded {
            if let Some(at) = wounded.unknown.iter().position(|word| *word == read.word) {
                wounded.unknown.swap_remove(at);
                wounded.blocks.extend(&bad);
            }
        }
    }

    /// Looks for what cannot be read, or is not what it should be, when nothing is on its way to the disk.
    pub(super) fn pump_probes(&mut self) {
        while let Some((word, bits)) = self.mends.probes.front().copied() {
            let (from, to) = (word * WORD_BYTES, (word + 1) * WORD_BYTES);
            let is_open = self.apply.is_between_batches() && !self.is_mending(from, to);
            // What a checksum speaks against is looked at once nothing changes it.
            if self.at_rest.is_some() && !is_open {
                break;
            }
            let Some(buffer) = self.take_block_buffer() else { break };
            self.mends.probes.pop_front();
            self.begin_block_read(BlockRead::new(Reader::Probe, word, bits, buffer, self.volume_bytes()));
        }
    }

    pub(super) fn pump_mends(&mut self, arena: &mut [u8]) {
        if self.role.is_serving() {
            for at in (0..self.mends.jobs.len().min(UNDER_WAY_MAX)).rev() {
                self.advance_mend(at, arena);
            }
        }
        let done = |wounded: &mut Wounded| wounded.unknown.is_empty() && wounded.blocks.is_empty();
        let healed: Vec<Wounded> = self.mends.wounded.extract_if(.., done).collect();
        for Wounded { request, offset, destination, tries, is_lost, .. } in healed {
            if is_lost {
                self.complete(request, Err(RequestError::Device));
            } else {
                self.begin_read(request, offset, destination, tries + 1, arena);
            }
        }
    }

    fn advance_mend(&mut self, at: usize, arena: &mut [u8]) {
        let job = &mut self.mends.jobs[at];
        match &mut job.stage {
            Stage::Waiting => self.ask_for(at, arena),
            Stage::Asked { link, session, .. } => {
                let (link, session) = (*link, *session);
                let goes_on = self.peer_in_session(link, session).is_some();
                if !goes_on {
                    self.mends.jobs[at].stage = Stage::Waiting;
                }
            }
            Stage::Fetched { bytes, .. } => {
                let (block, sum) = (job.block, Sum::of(job.block, bytes));
                let (from, to) = range_of(block);
                if self.blocks_are_read(from, to)
                    || !self.may_bypass_bookmarks()
                    || !self.may_overwrite(block, sum)
                {
                    return;
                }
                let job = &mut self.mends.jobs[at];
                let Stage::Fetched { node, bytes } = &mut job.stage else { unreachable!("looked at") };
                let (node, bytes) = (*node, core::mem::take(bytes));
                job.sum = sum;
                job.stage = Stage::Writing { node };
                let (block, page) = (job.block, job.page.expect("it was taken before it was asked for"));
                let span = Span { start: page.start(), len: bytes.len() };
                arena[span.range()].copy_from_slice(&bytes);
                let offset = block * BLOCK_BYTES;
                self.note_bypass(offset, span.len as u64);
                self.push(Command::WriteDisk { token: Io::Mend.token(block), offset, span });
            }
            Stage::Writing { .. } => {}
        }
    }

    /// Asks for a block, when nothing is on its way to it.
    fn ask_for(&mut self, at: usize, arena: &[u8]) {
        let (now, applied) = (self.now, self.log.applied.position.sequence);
        let job = &self.mends.jobs[at];
        let (block, since, of, asked) = (job.block, job.since, job.of, job.asked);
        let fits = |peer: &&Peer| {
            let node = peer.config.node;
            can_answer(peer) && !asked.contains(node) && of.is_none_or(|of| of == node)
        };
        let able = self.peers.iter().filter(fits);
        // The one that is furthest is asked first.
        let Some(peer) = able.max_by_key(|peer| peer.ack().applied) else { return self.end_mend(at, false) };
        let link = peer.streaming().expect("it can answer");
        let (link, session, node, next) = (link.id, link.session, peer.config.node, link.next);
        if self.mends.jobs[at].page.is_none() {
            self.mends.jobs[at].page = self.pool.take(PAGE_BYTES);
        }
        let (from, to) = range_of(block);
        let is_level = next > applied && self.mends.jobs[at].page.is_some();
        if !is_level || self.has_unapplied(from, to, arena) {
            let late = now >= since.plus_ms(HOLD_AFTER_MS);
            self.mends.jobs[at].is_held = is_level && late;
            return;
        }
        self.mends.number += 1;
        let number = self.mends.number;
        let job = &mut self.mends.jobs[at];
        (job.stage, job.is_held) = (Stage::Asked { link, session, node, number }, false);
        let place = self.find_link(link).expect("it streams");
        self.send(place, Message::Fetch(Fetch { number, point: applied, block }), false);
    }

    pub(super) fn on_fetched(&mut self, index: usize, fetched: Fetched) {
        let node = self.peers[index].config.node;
        let is_it = |job: &Job| matches!(job.stage, Stage::Asked { node: of, number, .. } if of == node && number == fetched.number);
        let Some(at) = self.mends.jobs.iter().position(is_it) else { return };
        let length = self.block_length(self.mends.jobs[at].block);
        let (now, job) = (self.now, &mut self.mends.jobs[at]);
        match fetched.bytes {
            Some(bytes) if bytes.len() == length => job.stage = Stage::Fetched { node, bytes },
            Some(_) => {
                job.stage = Stage::Waiting;
                self.close(Place::Peer(index), "it sent a block of another length", true);
            }
            None => {
                job.asked = job.asked.with(node);
                (job.stage, job.since) = (Stage::Waiting, now);
            }
        }
    }

    pub(super) fn on_mended(&mut self, block: u64, result: IoResult) {
        let at = self.mends.jobs.iter().position(|job| job.block == block).expect("it was being written");
        let Stage::Writing { node } = self.mends.jobs[at].stage else { unreachable!("it was being written") };
        let is_short = result.is_err_and(|errno| errno.is_no_space());
        let is_done = !is_short && self.device_ok("writing the disk", result);
        if is_done {
            self.note_sum(block, self.mends.jobs[at].sum);
            self.counters.mended_blocks += 1;
            self.report(Report::Mended { block, from: node });
        }
        // The copy may just have failed, and its reads been told.
        if let Some(at) = self.mends.jobs.iter().position(|job| job.block == block) {
            self.end_mend(at, is_done);
        }
    }

    fn end_mend(&mut self, at: usize, is_done: bool) {
        let job = self.mends.jobs.swap_remove(at);
        self.end_overwrite(job.block);
        if is_done {
            self.push_to_all(job.asked, job.block);
        } else {
            self.drop_pushes(job.block);
        }
        job.page.into_iter().for_each(|page| self.pool.give(page));
        for wounded in &mut self.mends.wounded {
            let before = wounded.blocks.len();
            wounded.blocks.retain(|block| *block != job.block);
            wounded.is_lost |= wounded.blocks.len() < before && !is_done;
        }
    }

    /// This node serves no more. A block that is being written stays until that is done.
    pub(super) fn end_mends(&mut self) {
        self.mends.probes.clear();
        for Wounded { request, .. } in core::mem::take(&mut self.mends.wounded) {
            self.complete(request, Err(RequestError::NotServing));
        }
        for at in (0..self.mends.jobs.len()).rev() {
            if !matches!(self.mends.jobs[at].stage, Stage::Writing { .. }) {
                self.end_mend(at, false);
            }
        }
    }

    /// When mending wants to be looked at though nothing happened.
    pub(super) fn mend_due(&self) -> Option<Instant> {
        let waits = self.mends.jobs.iter().filter(|job| matches!(job.stage, Stage::Waiting));
        let due = waits.map(|job| job.since.plus_ms(HOLD_AFTER_MS)).min()?;
        Some(due.max(self.now.plus_ms(1)))
    }
}

/// Whether a peer follows and its copy is whole.
pub(super) fn can_answer(peer: &Peer) -> bool {
    peer.streaming().is_some_and(|link| {
        let hello = link.hello.as_ref();
        link.resync.is_none()
            && hello.is_some_and(|hello| hello.disk_state == DiskState::UpToDate && !hello.suspect)
    })
}
