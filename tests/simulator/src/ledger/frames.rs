//! Frames as they reach a ring: the log they continue, what they do to the disk, and the space they take.

use std::ops::Range;

use replicator_core::frame::{self, EntryKind, FrameHeader};
use replicator_core::wire::blocks::BlocksHeader;
use replicator_core::wire::envelope::Envelope;

use super::{Frame, Ledger, Level, Place, sectors_of};
use crate::checker::sector_id;
use crate::disk::SECTOR;
use crate::rule::broken;

impl Ledger {
    /// A frame arrived at `x`.
    pub fn received(&mut self, x: usize, envelope: &Envelope, bytes: &[u8]) {
        let Ok(header) = frame::decode(bytes) else { return };
        if let Some(frame) = self.by_chain.get(&header.chain_after).copied().filter(|_| header.entries > 0) {
            self.raise(x, frame, Level::Received);
            self.replicas[x].envelopes.insert(frame, envelope.epoch.0);
        }
    }

    pub(super) fn journal_asked(&mut self, x: usize, offset: u64, bytes: &[u8]) {
        let volume_bytes = (self.replicas[x].base.len() * SECTOR) as u64;
        if BlocksHeader::item_bytes(bytes, volume_bytes).is_some() {
            self.reuse(x, offset, bytes.len() as u64);
            return self.gather(x, offset, None);
        }
        let Ok(header) = frame::decode(bytes) else {
            broken("frame-undecodable", format!("node {x} writes what is no frame to its ring"));
        };
        let local = frame::decode_local(bytes).expect("the local part is written with the frame");
        self.reuse(x, offset, bytes.len() as u64);
        if offset < self.replicas[x].last_offset {
            self.marks.push("ring wrapped");
        }
        self.replicas[x].last_offset = offset;
        let frame = if header.entries == 0 { None } else { Some(self.frame(x, &header, bytes)) };
        let place = Place {
            len: bytes.len() as u64,
            ring_offset: local.ring_offset.0,
            frame,
            chain: header.chain_after,
            last: header.last().0,
            cuts: local.cuts,
            mark: local.stable.0,
        };
        self.keeps_gathered(x, place.ring_offset, place.len);
        let cut = self.replicas[x].saved.cut;
        if frame.is_some() && frame::is_cut(&header, &local, cut) {
            self.replicas[x].places.insert(offset, Place { frame: None, ..place });
            return self.gather(x, offset, frame);
        }
        self.replicas[x].places.insert(offset, place);
        let Some(frame) = frame else { return };
        let end = self.end_of(x);
        if end != (header.chain_before, header.first.0 - 1) {
            broken(
                "cut-before-stored",
                format!(
                    "node {x} writes entries from {} on, though its log ends at {} by all it stored",
                    header.first, end.1
                ),
            );
        }
        self.replicas[x].log.push(frame);
        self.replicas[x].place_of.insert(frame, offset);
        self.set_due(x, frame);
        self.raise(x, frame, Level::Asked);
        let (saved, replica) = (self.replicas[x].saved.promised.0, &self.replicas[x]);
        if replica.envelopes.get(&frame).is_some_and(|epoch| *epoch < saved) {
            broken("fenced-frame-taken", format!("node {x} promised epoch {saved} and took a frame of less"));
        }
    }

    /// Ring space is used again only when nothing needs what lies there.
    fn reuse(&mut self, x: usize, offset: u64, len: u64) {
        let from = offset.saturating_sub(2 << 20);
        let overlaps = |(at, place): &(&u64, &Place)| **at + place.len > offset;
        let replica = &self.replicas[x];
        let gone: Vec<u64> =
            replica.places.range(from..offset + len).filter(overlaps).map(|(at, _)| *at).collect();
        for at in gone {
            let place = self.replicas[x].places.remove(&at).expect("just found");
            let frame = place.frame;
            self.replicas[x].ghosts.push((at, place));
            let lives =
                |frame: &usize| self.contains(x, *frame) && self.replicas[x].place_of.get(frame) == Some(&at);
            let Some(frame) = frame.filter(lives) else { continue };
            self.marks.push("ring space used again");
            let (last, saved) = (self.frames[frame].last, &self.replicas[x].saved);
            if last > saved.applied_through.position.sequence.0 || last > saved.tail.position.sequence.0 {
                broken(
                    "ring-reused-early",
                    format!(
                        "node {x} overwrites entry {last}; its superblock says applied {}, tail {}",
                        saved.applied_through.position.sequence, saved.tail.position.sequence
                    ),
                );
            }
        }
    }

    /// The frame with this header, made if it is new.
    pub(super) fn frame(&mut self, x: usize, header: &FrameHeader, bytes: &[u8]) -> usize {
        let (first, last) = (header.first.0, header.last().0);
        if let Some(known) = self.by_chain.get(&header.chain_after).copied() {
            let frame = &self.frames[known];
            let reign = &self.reigns[frame.reign];
            let same = (frame.first, frame.last, frame.parent) == (first, last, header.chain_before)
                && (reign.epoch, reign.id) == (header.epoch.0, header.reign);
            if !same {
                broken("equal-chain-unequal-log", format!("two frames end in one chain value, at {last}"));
            }
            return known;
        }
        let parent_end = match self.by_chain.get(&header.chain_before) {
            Some(parent) => self.frames[*parent].last,
            None if header.chain_before == self.genesis => 0,
            None => broken("unknown-parent", format!("node {x} continues a log that nobody wrote")),
        };
        if parent_end + 1 != first {
            broken("unknown-parent", format!("node {x} writes entry {first} behind entry {parent_end}"));
        }
        let index = self.frames.len();
        let effects = self.effects(x, index, header, bytes);
        let entries = frame::entries(bytes, header);
        let opens = entries.flatten().any(|entry| entry.kind == EntryKind::EpochStart);
        let reign = if opens { self.open_reign(x, header, index) } else { self.reign_of(x, header) };
        self.frames.push(Frame {
            closed_ms: header.closed_ms,
            parent: header.chain_before,
            chain: header.chain_after,
            first,
            last,
            reign,
            effects,
        });
        self.by_chain.insert(header.chain_after, index);
        index
    }

    pub(super) fn effects(
        &mut self,
        x: usize,
        index: usize,
        header: &FrameHeader,
        bytes: &[u8],
    ) -> Vec<(Range<usize>, u64)> {
        let mut effects = Vec::new();
        for entry in frame::entries(bytes, header) {
            let entry = entry.unwrap_or_else(|error| broken("frame-undecodable", format!("{error}")));
            let sectors = sectors_of(entry.offset, entry.length);
            match entry.kind {
                EntryKind::Write => {
                    let payload = &bytes[entry.payload_at as usize..][..entry.payload_bytes()];
                    let id = u64::from_le_bytes(payload[..8].try_into().unwrap());
                    for (sector, part) in sectors.clone().zip(payload.chunks(SECTOR)) {
                        if sector_id(part, sector) != Some(id) {
                            broken("journal-payload", format!("write {id} is not in its entry as it came"));
                        }
                    }
                    self.sequenced(x, id, index);
                    effects.push((sectors, id));
                }
                EntryKind::Zeroes | EntryKind::Trim => {
                    let of = |(node, _, range): &(usize, u64, Range<usize>)| *node == x && *range == sectors;
                    if let Some(at) = self.zeroings.iter().position(of) {
                        let (_, id, _) = self.zeroings.remove(at);
                        self.sequenced(x, id, index);
                    }
                    effects.push((sectors, 0));
                }
                EntryKind::Resize => effects.push((sectors, 0)),
                EntryKind::EpochStart => {}
            }
        }
        effects
    }

    pub(super) fn sequenced(&mut self, x: usize, id: u64, index: usize) {
        if self.writes.insert(id, index).is_some_and(|before| before != index) {
            broken("sequenced-twice", format!("write {id} is in two frames, the second by node {x}"));
        }
    }
}
