//! Checksums of what a batch writes. Where an extent begins or ends within a block, the rest of the block is read first,
//! checked, and the sum it will have is computed; what was bad stays bad. When the batch is on the disk, the sums of all
//! its blocks are noted, and only then does it count as applied.
//!
//! ```text
//!  Edges --the rests of blocks are read--> Writing --on the disk--> Noting --> (applied)
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Io, Machine, index_of};
use crate::command::Command;
use crate::dirty::BLOCK_BYTES;
use crate::event::IoResult;
use crate::extents::{Content, Extent};
use crate::sums::Sum;
use crate::units::{Buffer, PAGE_BYTES, Span, Token};

/// Rests of blocks that may be read at one time.
pub(super) const EDGE_PAGES: usize = 16;
/// Pages of sums that are wanted ahead.
const AHEAD: usize = 8;

/// A block of which the batch writes a part.
#[derive(Clone, Copy, Debug)]
struct Edge {
    block: u64,
    sum: Sum,
}

/// The read of such a block.
#[derive(Clone, Copy, Debug)]
struct EdgeRead {
    edge: usize,
    /// It is read: whether that went well.
    result: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Edges,
    Writing,
    /// Which extent, and which of its blocks, is noted next.
    Noting(usize, u64),
}

/// The sums of the batch under way.
#[derive(Debug)]
pub(super) struct BatchSums {
    stage: Stage,
    /// Nothing of the batch was ever written before: what is on the disk can be checked.
    is_new: bool,
    edges: Vec<Edge>,
    begun: usize,
    reads: [Option<EdgeRead>; EDGE_PAGES],
}

impl BatchSums {
    fn edge(&self, block: u64) -> Option<Sum> {
        let at = self.edges.binary_search_by_key(&block, |edge| edge.block).ok()?;
        Some(self.edges[at].sum)
    }
}

/// The blocks that an extent covers in whole or in part.
fn blocks_of(extent: &Extent) -> core::ops::Range<u64> {
    extent.start / BLOCK_BYTES..extent.end().div_ceil(BLOCK_BYTES)
}

impl Machine {
    /// Looks at what the batch writes in part. Says whether it can be written at once.
    pub(super) fn begin_batch_sums(&mut self, is_new: bool) -> bool {
        if self.at_rest.is_none() {
            return true;
        }
        let volume_bytes = self.volume_bytes();
        let mut edges: Vec<Edge> = Vec::new();
        for extent in self.apply.extents() {
            let (from, to) = (extent.start, extent.end());
            let first = (!from.is_multiple_of(BLOCK_BYTES)).then_some(from / BLOCK_BYTES);
            let last = (!to.is_multiple_of(BLOCK_BYTES) && to != volume_bytes).then_some(to / BLOCK_BYTES);
            for block in first.into_iter().chain(last) {
                if edges.last().is_none_or(|edge| edge.block != block) {
                    edges.push(Edge { block, sum: Sum::UNKNOWN });
                }
            }
        }
        let is_whole = edges.is_empty();
        let stage = if is_whole { Stage::Writing } else { Stage::Edges };
        let reads = [None; EDGE_PAGES];
        self.apply.batch_sums = Some(Box::new(BatchSums { stage, is_new, edges, begun: 0, reads }));
        self.want_pages_of_batch(0);
        if !is_whole {
            self.read_edges();
        }
        is_whole
    }

    /// The pages of the extents from `first` on will be wanted soon.
    fn want_pages_of_batch(&mut self, first: usize) {
        let Self { apply, at_rest, .. } = self;
        let at_rest = at_rest.as_deref_mut().expect("there are sums");
        for extent in apply.extents().iter().skip(first).take(8 * AHEAD) {
            at_rest.sums.get(extent.start / BLOCK_BYTES);
        }
    }

    fn read_edges(&mut self) {
        let volume_bytes = self.volume_bytes();
        let Self { apply, commands, edge_pages, .. } = self;
        let sums = apply.batch_sums.as_deref_mut().expect("there are sums");
        for slot in 0..EDGE_PAGES {
            if sums.reads[slot].is_some() || sums.begun == sums.edges.len() {
                continue;
            }
            let edge = sums.begun;
            sums.begun += 1;
            sums.reads[slot] = Some(EdgeRead { edge, result: None });
            let offset = sums.edges[edge].block * BLOCK_BYTES;
            let (token, span) =
                (Io::Edge.token(slot as u64), edge_span(edge_pages, slot, offset, volume_bytes));
            commands.push_back(Command::ReadDisk { token, offset, span });
        }
    }

    pub(super) fn on_edge_read(&mut self, token: Token, result: IoResult, arena: &mut [u8]) {
        let slot = usize::try_from(index_of(token)).expect("a slot");
        let sums = self.apply.batch_sums.as_deref_mut().expect("an edge was being read");
        sums.reads[slot].as_mut().expect("it was being read").result = Some(result.is_ok());
        self.pump_batch(arena);
    }

    /// Goes on with what waited for pages of sums, or for the disk.
    pub(super) fn pump_batch(&mut self, arena: &mut [u8]) {
        if self.is_failed() {
            return;
        }
        match self.apply.batch_sums.as_deref().map(|sums| sums.stage) {
            Some(Stage::Edges) => self.pump_edges(arena),
            Some(Stage::Noting(..)) => self.note_batch(arena),
            Some(Stage::Writing) | None => {}
        }
    }

    fn pump_edges(&mut self, arena: &mut [u8]) {
        for slot in 0..EDGE_PAGES {
            let sums = self.apply.batch_sums.as_deref_mut().expect("the caller looked");
            if let Some(EdgeRead { edge, result: Some(is_read) }) = sums.reads[slot]
                && self.judge_edge(slot, edge, is_read, arena)
            {
                self.apply.batch_sums.as_deref_mut().expect("as above").reads[slot] = None;
            }
        }
        self.read_edges();
        let sums = self.apply.batch_sums.as_deref_mut().expect("the caller looked");
        if sums.begun == sums.edges.len() && sums.reads.iter().all(Option::is_none) {
            sums.stage = Stage::Writing;
            self.write_batch();
        }
    }

    /// Computes the sum that a block will have; says whether that could be done.
    fn judge_edge(&mut self, slot: usize, edge: usize, is_read: bool, arena: &mut [u8]) -> bool {
        let volume_bytes = self.volume_bytes();
        let sums = self.apply.batch_sums.as_deref().expect("the caller looked");
        let (block, is_new) = (sums.edges[edge].block, sums.is_new);
        let at_rest = self.at_rest.as_deref_mut().expect("there are sums");
        let Some(known) = at_rest.sums.get(block) else { return false };
        let span = edge_span(&self.edge_pages, slot, block * BLOCK_BYTES, volume_bytes);
        // What a crash, or a disk without space, left half written cannot be checked. It is written again whole.
        let is_right = is_read && known != Sum::BAD && (!is_new || known.admits(block, &arena[span.range()]));
        let sum = if is_right {
            self.merge_batch(block, span, arena);
            Sum::of(block, &arena[span.range()])
        } else {
            if known != Sum::BAD {
                assert!(at_rest.sums.set(block, Sum::BAD), "its page is here");
                if is_read {
                    self.note_rotten(block);
                } else {
                    self.note_unreadable(block);
                }
            }
            Sum::BAD
        };
        self.apply.batch_sums.as_deref_mut().expect("as above").edges[edge].sum = sum;
        true
    }

    /// Puts what the batch writes of a block into what was read of it.
    fn merge_batch(&self, block: u64, span: Span, arena: &mut [u8]) {
        let (start, end) = (block * BLOCK_BYTES, block * BLOCK_BYTES + span.len as u64);
        let extents = self.apply.extents();
        let first = extents.partition_point(|extent| extent.end() <= start);
        for extent in extents[first..].iter().take_while(|extent| extent.start < end) {
            let part = extent.clip(start, end);
            let to = span.start + usize::try_from(part.start - start).expect("within a block");
            let len = usize::try_from(part.len).expect("within a block");
            match part.content {
                Content::Bytes { at } => arena.copy_within(at..at + len, to),
                Content::Zero(_) => arena[to..to + len].fill(0),
            }
        }
    }

    /// The batch is on the disk.
    pub(super) fn begin_noting(&mut self) {
        if self.apply.extents().is_empty() {
            return self.finish_batch();
        }
        self.apply.batch_sums.as_deref_mut().expect("the caller looked").stage = Stage::Noting(0, 0);
    }

    /// Notes the sums of its blocks, as far as their pages are here.
    fn note_batch(&mut self, arena: &[u8]) {
        let Self { apply, at_rest, meta, .. } = self;
        let volume_bytes = meta.saved.volume_bytes;
        let sums = apply.batch_sums.as_deref().expect("the caller looked");
        let Stage::Noting(mut index, mut block) = sums.stage else { unreachable!("the caller looked") };
        let at_rest = at_rest.as_deref_mut().expect("there are sums");
        let mut is_done = true;
        'batch: while let Some(extent) = apply.extents().get(index) {
            let blocks = blocks_of(extent);
            block = block.max(blocks.start);
            while block < blocks.end {
                let (start, end) = (block * BLOCK_BYTES, ((block + 1) * BLOCK_BYTES).min(volume_bytes));
                let sum = sums.edge(block).unwrap_or_else(|| match extent.clip(start, end).content {
                    Content::Bytes { at } => {
                        let len = usize::try_from(end - start).expect("a block");
                        Sum::of(block, &arena[at..at + len])
                    }
                    Content::Zero(_) => Sum::ZEROS,
                });
                if !at_rest.sums.set(block, sum) {
                    is_done = false;
                    break 'batch;
                }
                block += 1;
            }
            index += 1;
            block = 0;
        }
        self.apply.batch_sums.as_deref_mut().expect("as above").stage = Stage::Noting(index, block);
        if is_done {
            self.finish_batch();
        } else {
            self.want_pages_of_batch(index);
        }
    }
}

fn edge_span(pages: &Option<Buffer>, slot: usize, offset: u64, volume_bytes: u64) -> Span {
    let start = pages.as_ref().expect("there are sums").start() + slot * PAGE_BYTES;
    Span { start, len: usize::try_from(BLOCK_BYTES.min(volume_bytes - offset)).expect("a block") }
}
