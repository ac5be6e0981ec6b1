//! Death and start of a replica: what the ring holds afterwards, computed here, is what recovery must find.

use std::collections::{BTreeMap, HashMap};

use replicator_core::disk::superblock::{DiskState, Superblock};
use replicator_core::frame;
use replicator_core::units::Chain;

use super::{Ledger, Level, Place, fresh_sectors};
use crate::node::Node;
use crate::rule::broken;

impl Ledger {
    /// The process of `x` is gone, and with the power what was not synced.
    pub fn died(&mut self, x: usize, power: bool) {
        let replica = &mut self.replicas[x];
        // What is durable behind a gap is out of reach.
        let reach = replica.log.iter().position(|frame| replica.has[*frame] < Level::Durable);
        for frame in &replica.log[reach.unwrap_or(replica.log.len())..] {
            replica.has[*frame] = replica.has[*frame].min(Level::Written);
            replica.ever[*frame] = replica.ever[*frame].min(Level::Written);
        }
        for level in &mut replica.has {
            let keep = match *level {
                Level::Received | Level::Asked => false,
                Level::Written => !power,
                Level::None | Level::Durable => true,
            };
            if !keep {
                *level = Level::None;
            }
        }
        self.zeroings.retain(|(node, _, _)| *node != x);
    }

    /// A process of `x` started on these disks, with this superblock, and found a log that ends so.
    pub fn started(&mut self, x: usize, node: &Node, superblock: &Superblock, head: (Chain, u64)) {
        let old = self.replicas[x].saved;
        if !self.replicas[x].void {
            self.note_cut(x, &old, superblock);
        }
        self.replicas[x].saved = *superblock;
        self.replicas[x].is_mixed &= superblock.disk_state != DiskState::UpToDate;
        self.note_reign(x, &old, superblock);
        self.replicas[x].process += 1;
        self.replicas[x].is_resynced = false;
        // Without a word on that it may show all there was.
        self.replicas[x].may_show = superblock.apply_reach.map_or(head.1, |reach| reach.0);
        (self.replicas[x].acked, self.replicas[x].envelopes) = ((0, 0), HashMap::new());
        if self.replicas[x].void {
            self.adopt(x, head);
            return;
        }
        let expected = self.recoverable(x, node, superblock);
        if expected != head {
            broken(
                "recovery-differs",
                format!(
                    "node {x} recovers a log that ends at {}; its ring holds one up to {}",
                    head.1, expected.1
                ),
            );
        }
        self.adopt(x, head);
        self.set_dues(x);
        let stale = superblock.applied_through.ring_offset.0;
        self.replicas[x]
            .ghosts
            .retain(|(offset, place)| place.ring_offset >= stale && lies_there(node, *offset, place));
        let through = superblock.applied_through.position.sequence.0;
        self.checkpointed(x, &node.disk);
        if through >= self.replicas[x].base_at {
            self.check_disk(x, &node.disk);
        }
    }

    /// The end of the log that lies in the ring of `x`.
    fn recoverable(&self, x: usize, node: &Node, superblock: &Superblock) -> (Chain, u64) {
        let start = superblock.applied_through;
        let (mut at, mut end) = (start.ring_offset.0, (start.chain, start.position.sequence.0));
        let replica = &self.replicas[x];
        let ghosts = replica.ghosts.iter().map(|(offset, place)| (*offset, place));
        let mut places: BTreeMap<u64, Vec<(u64, &Place)>> = BTreeMap::new();
        for (offset, place) in replica.places.iter().map(|(offset, place)| (*offset, place)).chain(ghosts) {
            places.entry(place.ring_offset).or_default().push((offset, place));
        }
        loop {
            let lap = at.next_multiple_of(self.ring_bytes);
            let candidates = [at, lap].into_iter().flat_map(|at| places.get(&at).into_iter().flatten());
            let found = candidates.copied().find(|(offset, place)| {
                let cut = place.cuts < superblock.cut.count && place.last >= superblock.cut.first.0;
                !cut && is_whole(node, *offset, place, end)
            });
            let found = found.map(|(_, place)| (place.ring_offset, place));
            let Some((place_at, place)) = found else { return end };
            end = (place.chain, place.last);
            at = place_at + place.len;
        }
    }

    /// The whole log that ends at `chain`, oldest frame first.
    pub(super) fn log_to(&self, mut chain: Chain) -> Vec<usize> {
        let mut log = Vec::new();
        while let Some(frame) = self.by_chain.get(&chain).copied() {
            log.push(frame);
            chain = self.frames[frame].parent;
        }
        log.reverse();
        log
    }

    /// The log of `x` is the one that ends at `head`.
    fn adopt(&mut self, x: usize, head: (Chain, u64)) {
        let log = self.log_to(head.0);
        let replica = &mut self.replicas[x];
        replica.has.fill(Level::None);
        if replica.void {
            (replica.base_at, replica.places, replica.ghosts) = (0, BTreeMap::new(), Vec::new());
            replica.base = fresh_sectors(replica.first_end, replica.base.len());
        }
        // A start syncs what it finds.
        let marks = replica.places.values().map(|place| place.mark);
        replica.durable_mark = marks.fold(replica.durable_mark.max(replica.saved.stable.0), u64::max);
        replica.log = log.clone();
        for frame in log {
            self.raise(x, frame, Level::Durable);
        }
    }
}

/// Whether the frame of `place` lies at `offset` in full and continues a log that ends at `end`.
fn is_whole(node: &Node, offset: u64, place: &Place, end: (Chain, u64)) -> bool {
    let mut bytes = vec![0; usize::try_from(place.len).unwrap()];
    node.journal.read(offset, &mut bytes);
    let (Ok(header), Ok(local)) = (frame::decode(&bytes), frame::decode_local(&bytes)) else { return false };
    header.chain_before == end.0
        && header.first.0 == end.1 + 1
        && header.chain_after == place.chain
        && local.ring_offset.0 == place.ring_offset
        && frame::check_payloads(&bytes, &header).is_ok()
}

/// Whether the header of this frame is still there.
fn lies_there(node: &Node, offset: u64, place: &Place) -> bool {
    let mut bytes = vec![0; 4096];
    node.journal.read(offset, &mut bytes);
    frame::decode(&bytes)
        .is_ok_and(|header| header.chain_after == place.chain && header.last().0 == place.last)
}
