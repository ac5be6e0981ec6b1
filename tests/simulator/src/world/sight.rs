//! What nodes are seen to do, told to the ledger, to the checkers and to whoever reads the trace.

use replicator_core::command::Report;
use replicator_core::disk::superblock::{DiskState, Superblock};
use replicator_core::frame::{self, EntryKind};

use super::{Moment, World};
use crate::checker::Checker;
use crate::disk::SECTOR;
use crate::node::{Io, Seen};
use crate::rule::broken;

/// Reports of resyncs by how they begin, and what is counted then.
const RESYNCS: [(&str, &str); 3] = [
    ("resync begins: dirty", "resync of dirty blocks"),
    ("resync begins: full", "resync by comparison"),
    ("resync is done", "resync done"),
];

impl World {
    /// Takes in what nodes were seen to do, and what they answered.
    pub(super) fn collect(&mut self) {
        for index in 0..self.nodes.len() {
            self.bookmarks.look(index, &self.nodes[index], self.sectors);
            let clocks = self.clocks_of(index);
            self.ledger.tell_time(index, clocks);
            for seen in std::mem::take(&mut self.nodes[index].seen) {
                self.ledger.see(index, &seen, &self.nodes[index]);
                self.look(index, &seen);
                if matches!(seen, Seen::Frozen) {
                    self.check_bookmarks(index);
                }
            }
            for report in std::mem::take(&mut self.nodes[index].reports) {
                self.note(|| format!("n{index} reports {report:?}"));
                match report {
                    Report::Frozen(_) => self.mark("frozen"),
                    Report::Record(_) => self.moments.push((Moment::RecordChanged, index)),
                    Report::Cut { .. } => self.moments.push((Moment::Cut, index)),
                    Report::Rotten { block } => self.found_rotten(index, block),
                    Report::Peer { text, .. } => {
                        let known = RESYNCS.iter().find(|(begin, _)| text.starts_with(begin));
                        known.into_iter().for_each(|(_, mark)| self.mark(mark));
                    }
                    _ => {}
                }
            }
            for (id, result) in std::mem::take(&mut self.nodes[index].completed) {
                let Some(at) = self.requests.iter().position(|request| request.id == id) else { continue };
                let request = self.requests.swap_remove(at);
                if result.is_ok() {
                    let (now, epoch) = (self.instant(index), self.ledger.saved(index).record.epoch);
                    self.leases.answered(index, now, epoch);
                }
                self.finish_request(index, request, result.is_ok());
            }
        }
        for mark in std::mem::take(&mut self.ledger.marks) {
            self.mark(mark);
        }
    }

    /// The volume has `bytes` for the clients of node `index`.
    fn grown(&mut self, index: usize, bytes: u64) {
        let sectors = usize::try_from(bytes).unwrap() / SECTOR;
        self.note(|| format!("n{index} has {sectors} sectors"));
        if self.nodes[index].serving {
            self.mark("grown");
            self.checkers[index].grown(self.sectors.min(sectors)..sectors);
            self.sectors = self.sectors.max(sectors);
        }
    }

    /// A copy that is whole has nothing rotten but what was made so.
    fn found_rotten(&mut self, index: usize, block: u64) {
        self.mark("rot found");
        let is_whole = self.status(index).is_some_and(|status| status.disk_state == DiskState::UpToDate);
        if is_whole && !self.ledger.is_void(index) && !self.rotten.contains(&(index, block)) {
            broken("rot-found-nothing", format!("node {index} says that its block {block} is rotten"));
        }
    }

    /// Every block of a node's disk that is otherwise than at a bookmark is in its map. Nothing may be on its way there.
    pub(super) fn check_bookmarks(&mut self, index: usize) {
        if self.ledger.is_void(index) {
            return self.bookmarks.forget(index);
        }
        for mark in self.bookmarks.check(index, &self.nodes[index]) {
            self.mark(mark);
        }
    }

    /// A bit of a node's disk flips.
    pub fn rot(&mut self, node: usize, offset: u64) {
        self.note(|| format!("n{node}: a bit rots at byte {offset}"));
        self.nodes[node].disk.rot(offset);
        self.rotten.insert((node, offset / 4096));
    }

    /// A sector of a node's disk cannot be read any more.
    pub fn spoil(&mut self, node: usize, offset: u64) {
        self.nodes[node].disk.spoil(offset);
        self.unreadable(node, offset, 1);
    }

    /// A read failed, or will. If a part of such a block is written then, nobody knows the rest of it, and its checksum
    /// says so until it is written as a whole: until then it is called rotten, lawfully.
    pub(super) fn unreadable(&mut self, node: usize, offset: u64, length: u64) {
        self.rotten.extend((offset / 4096..(offset + length).div_ceil(4096)).map(|block| (node, block)));
    }

    /// Whether some block of a node was made rotten, or could not be read.
    pub fn has_bad_blocks(&self, node: usize) -> bool {
        self.rotten.iter().any(|(of, _)| *of == node)
    }

    fn look(&mut self, index: usize, seen: &Seen) {
        let moment = match seen {
            Seen::Acked(..) => Moment::Acked,
            Seen::SuperblockCopy => Moment::SuperblockCopy,
            Seen::SuperblockSaved(_) => Moment::SuperblockSaved,
            Seen::Sealed(_) => Moment::Sealed,
            Seen::DiskAsked { .. } => Moment::Applying,
            Seen::Refused(reason) => {
                let reason = reason.clone();
                self.note(|| format!("n{index} refuses: {reason}"));
                self.mark(kind_of_refusal(&reason));
                return;
            }
            Seen::VolumeSize(bytes) => return self.grown(index, *bytes),
            Seen::Serve(open) => {
                self.note(|| format!("n{index} {}", if *open { "serves" } else { "serves no more" }));
                if !open {
                    return;
                }
                let image = self.ledger.opened(index);
                self.checkers[index] = Checker::new(&image);
                self.mark("promotions");
                Moment::Opened
            }
            Seen::JournalAsked { bytes, .. } if begins_epoch(bytes) => Moment::EpochBegins,
            _ => return,
        };
        self.moments.push((moment, index));
    }
}

fn begins_epoch(bytes: &[u8]) -> bool {
    // What is no frame is an item of blocks: the ledger looked.
    let Ok(header) = frame::decode(bytes) else { return false };
    let first = frame::entries(bytes, &header).flatten().next();
    first.is_some_and(|entry| entry.kind == EntryKind::EpochStart)
}

fn kind_of_refusal(reason: &str) -> &'static str {
    let kinds = [
        ("split brain", "fork refused"),
        ("its epoch history", "histories too short"),
        ("has promised epoch", "older promise refused"),
        ("is over", "older promise refused"),
        ("disk is", "failed copy refused"),
        ("below entry", "restored disk refused"),
    ];
    kinds.iter().find(|(text, _)| reason.contains(text)).map_or("other refusal", |(_, kind)| kind)
}

pub(super) fn describe(io: &Io) -> String {
    match io {
        Io::WriteJournal { offset, bytes, map: true, .. } => {
            format!("wrote {} bytes of a dirty map at {offset} of its journal", bytes.len())
        }
        Io::WriteJournal { offset, bytes, .. } => {
            let Ok(header) = frame::decode(bytes) else {
                return format!("wrote an item of blocks at {offset} of its journal");
            };
            let what = format!("{}..={} of epoch {}", header.first, header.last(), header.epoch);
            format!("wrote entries {what} at {offset} of its journal")
        }
        Io::SyncJournal { covered, .. } => format!("synced its journal ({covered} writes)"),
        Io::ReadJournal { offset, span, .. } => format!("read {} bytes at {offset} of its journal", span.len),
        Io::ReadDisk { offset, span, .. } => format!("read {} bytes at {offset} of its disk", span.len),
        Io::WriteDisk { offset, bytes, .. } => format!("wrote {} bytes at {offset} of its disk", bytes.len()),
        Io::ZeroDisk { offset, length, .. } => format!("zeroed {length} bytes at {offset} of its disk"),
        Io::SyncDisk { covered, .. } => format!("synced its disk ({covered} writes)"),
        Io::GrowDisk { bytes, .. } => format!("was to make its disk hold {bytes} bytes"),
        Io::Superblock { copy, bytes, .. } => {
            let superblock = Superblock::decode(bytes).expect("it was encoded");
            format!(
                "wrote copy {copy} of superblock {}: {}, promised {}, record {:?}, applied {}, cut {:?}",
                superblock.sequence,
                superblock.disk_state,
                superblock.promised,
                superblock.record.in_sync,
                superblock.applied_through.position.sequence,
                superblock.cut
            )
        }
        Io::Branch { branch, .. } => format!("kept a branch of {} blocks", branch.blocks.len()),
        Io::Sent { .. } => "sent a frame".to_string(),
    }
}
