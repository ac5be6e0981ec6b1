//! The backing disk of a replica: what may be written in place, and what must be there. The ring is in `frames`.

use std::collections::HashSet;

use super::{Ledger, Level, id_of, nodes_of};
use crate::checker::sector_id;
use crate::disk::{SECTOR, SimDisk};
use crate::rule::broken;

impl Ledger {
    /// What is applied anywhere, every member has durably.
    pub(super) fn disk_asked(&mut self, x: usize, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).unwrap() / SECTOR;
        let mut before = 0;
        for (sector, part) in (start..).zip(bytes.chunks(SECTOR)) {
            let Some(id) = sector_id(part, sector) else {
                broken("applied-garbage", format!("node {x} writes to sector {sector} what nobody wrote"));
            };
            // Blocks of a resync or a repair may hold zeros, too; a repair writes one block at a time.
            let is_block = bytes.len() == 4096 && offset.is_multiple_of(4096);
            if id == before || (id == 0 && (self.replicas[x].is_mixed || is_block)) {
                continue;
            }
            before = id;
            let Some(frame) = self.writes.get(&id).copied().filter(|frame| self.contains(x, *frame)) else {
                broken("applied-foreign", format!("node {x} applies write {id}, which its log lacks"));
            };
            // An operator gave up this copy: nobody's word is missing, and it is nobody's source.
            if self.replicas[x].saved.yields {
                continue;
            }
            if !is_block {
                self.check_mark(x, frame);
                self.check_delay(x, frame);
            }
            // Of the reign it follows, or of the one its log ends in, if it left that since.
            let end = self.replicas[x].log.last().expect("the frame is there");
            let reigns = [self.replicas[x].saved.record.reign, self.reigns[self.frames[*end].reign].id];
            let lacking = reigns.map(|reign| {
                let members = self.members.get(&reign).map(|(_, set)| *set);
                let mut members = nodes_of(members.unwrap_or_default().with(id_of(x)));
                members.find(|r| self.told(x, *r, frame) < Level::Durable && !self.replicas[*r].void)
            });
            if let [Some(r), Some(_)] = lacking {
                broken(
                    "applied-before-durable",
                    format!(
                        "node {x} applies write {id} (entry {}), which member {r} does not have durably",
                        self.frames[frame].last
                    ),
                );
            }
        }
    }

    /// What is in place here this replica knows to be stable, and will know after any crash: it is never cut.
    fn check_mark(&self, x: usize, frame: usize) {
        let (replica, last) = (&self.replicas[x], self.frames[frame].last);
        if !replica.void && !replica.is_mixed && last > replica.durable_mark {
            broken(
                "applied-beyond-mark",
                format!(
                    "node {x} applies entry {last}, and durably knows {} to be stable",
                    replica.durable_mark
                ),
            );
        }
    }

    /// Everything up to `applied_through` is on the medium.
    pub(super) fn checkpointed(&mut self, x: usize, disk: &SimDisk) {
        let through = self.replicas[x].saved.applied_through.position.sequence.0;
        if through <= self.replicas[x].base_at {
            return;
        }
        let touched = self.advance_base(x, through);
        if !self.replicas[x].is_mixed {
            self.check_medium(x, disk, touched);
        }
    }

    /// All blocks of a copy that says it is whole are on the medium.
    pub(super) fn check_whole(&mut self, x: usize, disk: &SimDisk) {
        self.check_medium(x, disk, (0..self.replicas[x].base.len()).collect());
    }

    /// The medium holds these sectors as of the checkpoint, or as some entry behind it left them.
    fn check_medium(&mut self, x: usize, disk: &SimDisk, touched: Vec<usize>) {
        let through = self.replicas[x].base_at;
        let later = self.written_after(x, through);
        let mut bytes = [0; SECTOR];
        for sector in touched {
            disk.read_durable((sector * SECTOR) as u64, &mut bytes);
            let id = sector_id(&bytes, sector);
            let fits =
                id.is_some_and(|id| id == self.replicas[x].base[sector] || later.contains(&(sector, id)));
            if !fits && !self.replicas[x].void {
                broken(
                    "checkpoint-before-sync",
                    format!(
                        "node {x} stored that {through} is applied; the medium has sector {sector} of {id:?}"
                    ),
                );
            }
        }
    }

    /// Moves the image of `x` up to entry `through`; returns the sectors that changed.
    pub(super) fn advance_base(&mut self, x: usize, through: u64) -> Vec<usize> {
        let replica = &mut self.replicas[x];
        let from = replica.log.partition_point(|frame| self.frames[*frame].last <= replica.base_at);
        let mut touched = Vec::new();
        for frame in &replica.log[from..] {
            let frame = &self.frames[*frame];
            if frame.last > through {
                break;
            }
            for (sectors, id) in &frame.effects {
                replica.base[sectors.clone()].fill(*id);
                touched.extend(sectors.clone());
            }
        }
        replica.base_at = through;
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    fn written_after(&self, x: usize, through: u64) -> HashSet<(usize, u64)> {
        let log = &self.replicas[x].log;
        let from = log.partition_point(|frame| self.frames[*frame].last <= through);
        let effects = log[from..].iter().flat_map(|frame| &self.frames[*frame].effects);
        effects.flat_map(|(sectors, id)| sectors.clone().map(|sector| (sector, *id))).collect()
    }

    /// The disk of `x` shows, sector by sector, what its log says up to the checkpoint or some entry behind it.
    pub fn check_disk(&mut self, x: usize, disk: &SimDisk) {
        if self.replicas[x].void || self.replicas[x].is_mixed {
            return;
        }
        let later = self.written_after(x, self.replicas[x].base_at);
        let mut bytes = vec![0; self.replicas[x].base.len() * SECTOR];
        disk.read(0, &mut bytes);
        for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
            let id = sector_id(bytes, sector);
            let fits =
                id.is_some_and(|id| id == self.replicas[x].base[sector] || later.contains(&(sector, id)));
            if !fits {
                broken(
                    "disk-is-no-state-of-the-log",
                    format!(
                        "node {x}, sector {sector}: the disk has {id:?}, the log {} at entry {} and nothing such after",
                        self.replicas[x].base[sector], self.replicas[x].base_at
                    ),
                );
            }
        }
    }

    /// The disk of `x` is offered as of one position: every sector shows what its log says up to there.
    pub(super) fn frozen(&mut self, x: usize, disk: &SimDisk) {
        self.marks.push("frozen");
        let (replica, limit) = (&self.replicas[x], self.replicas[x].saved.apply_limit.0);
        if replica.void || replica.is_mixed {
            return;
        }
        let mut image = replica.base.clone();
        for frame in replica.log.iter().map(|frame| &self.frames[*frame]) {
            if frame.last > replica.base_at && frame.last <= limit {
                frame.effects.iter().for_each(|(sectors, id)| image[sectors.clone()].fill(*id));
            }
        }
        let mut bytes = vec![0; image.len() * SECTOR];
        disk.read(0, &mut bytes);
        for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
            let id = sector_id(bytes, sector);
            if id != Some(image[sector]) {
                broken(
                    "frozen-elsewhere",
                    format!(
                        "node {x} is frozen at {limit}; sector {sector} is of {id:?}, not {}",
                        image[sector]
                    ),
                );
            }
        }
    }
}
