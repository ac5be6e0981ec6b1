//! What a replica gathers behind its log in a staged resync: it is no part of the log before the superblock says so,
//! and must be durable then.

use std::collections::HashSet;

use replicator_core::disk::superblock::Superblock;

use super::{Ledger, Level};
use crate::rule::broken;

/// An item of blocks or a frame that was gathered.
pub(super) struct Piece {
    offset: u64,
    /// `None` for an item.
    frame: Option<usize>,
    is_durable: bool,
}

impl Ledger {
    /// `x` writes an item, or a frame that its superblock calls cut already.
    pub(super) fn gather(&mut self, x: usize, offset: u64, frame: Option<usize>) {
        self.replicas[x].gathered.push(Piece { offset, frame, is_durable: false });
    }

    /// What lies there is durable.
    pub(super) fn gathered_durable(&mut self, x: usize, offset: u64) {
        for piece in &mut self.replicas[x].gathered {
            piece.is_durable |= piece.offset == offset;
        }
    }

    /// The superblock of `x` says that what was gathered is its copy now.
    pub(super) fn switched(&mut self, x: usize, new: &Superblock) {
        self.marks.push("switched to what was gathered");
        let pieces = std::mem::take(&mut self.replicas[x].gathered);
        if pieces.iter().any(|piece| !piece.is_durable) && !self.replicas[x].void {
            broken(
                "switched-before-durable",
                format!("node {x} switches to blocks and a stream that are not all durable in its journal"),
            );
        }
        let log = self.log_to(new.tail.chain);
        let frames: Vec<(usize, u64)> =
            pieces.iter().filter_map(|piece| Some((piece.frame?, piece.offset))).collect();
        let kept: HashSet<usize> =
            log.iter().copied().chain(frames.iter().map(|(frame, _)| *frame)).collect();
        let cut = self.replicas[x].log.iter().filter(|frame| !kept.contains(frame)).copied().collect();
        self.check_cut(x, new, &cut);
        self.restart_log(x, log, &new.tail);
        for (frame, offset) in frames {
            let replica = &mut self.replicas[x];
            replica.log.push(frame);
            replica.place_of.insert(frame, offset);
            if let Some(place) = replica.places.get_mut(&offset) {
                place.frame = Some(frame);
            }
            self.raise(x, frame, Level::Durable);
        }
    }

    /// What waits in the ring of `x` to be put in place is not written over.
    pub(super) fn keeps_gathered(&self, x: usize, ring_offset: u64, len: u64) {
        let gathered = self.replicas[x].saved.gathered;
        if gathered.is_some_and(|gathered| ring_offset + len > gathered.from.0 + self.ring_bytes) {
            broken(
                "gathered-overwritten",
                format!("node {x} writes over blocks in its ring that are not in place yet"),
            );
        }
    }
}
