//! What a replica remembers in its superblock: it only grows, and a log is cut only by what is stored first.

use std::collections::HashSet;

use replicator_core::disk::superblock::{DiskState, LogPoint, Superblock};

use super::promises::Obligation;
use super::{Ledger, Level, fresh_sectors, id_of};
use crate::disk::SimDisk;
use crate::rule::broken;

impl Ledger {
    pub(super) fn superblock_saved(&mut self, x: usize, superblock: &Superblock, disk: &SimDisk) {
        let old = self.replicas[x].saved;
        let discards = superblock.discards > old.discards;
        let sound = superblock.sequence > old.sequence
            && superblock.promised >= old.promised
            && (superblock.record.order() >= old.record.order() || discards)
            && superblock.applied_through.ring_offset >= old.applied_through.ring_offset
            && superblock.tail.ring_offset >= old.tail.ring_offset
            && (superblock.stable >= old.stable || discards)
            && superblock.cut.count >= old.cut.count;
        if !sound {
            broken("superblock-went-back", format!("node {x}: {old:?} became {superblock:?}"));
        }
        self.note_cut(x, &old, superblock);
        self.replicas[x].saved = *superblock;
        self.replicas[x].durable_mark = self.replicas[x].durable_mark.max(superblock.stable.0);
        self.note_reign(x, &old, superblock);
        self.note_members(x, superblock);
        self.checkpointed(x, disk);
        if self.replicas[x].is_mixed && superblock.disk_state == DiskState::UpToDate {
            self.replicas[x].is_mixed = false;
            self.check_whole(x, disk);
        }
    }

    pub(super) fn note_cut(&mut self, x: usize, old: &Superblock, new: &Superblock) {
        if new.discards > old.discards {
            self.let_go(x);
        }
        if new.cut.count == old.cut.count {
            return;
        }
        if new.gathered.is_some() && new.gathered != old.gathered {
            return self.switched(x, new);
        }
        self.replicas[x].gathered.clear();
        let first = new.cut.first.0;
        if first == 0 {
            self.marks.push("log begun anew");
            let log = self.log_to(new.tail.chain);
            let kept: HashSet<usize> = log.iter().copied().collect();
            let cut = self.replicas[x].log.iter().filter(|frame| !kept.contains(frame)).copied().collect();
            self.check_cut(x, new, &cut);
            self.restart_log(x, log, &new.tail);
        } else {
            self.marks.push("tail cut");
            let log = &self.replicas[x].log;
            let from = log.partition_point(|frame| self.frames[*frame].last < first);
            let cut = log[from..].iter().copied().collect();
            self.check_cut(x, new, &cut);
            self.drop_beyond(x, first);
        }
    }

    /// The log of `x` begins anew behind `point`. What its source has up to there counts as held: it is in the blocks
    /// of `x`, or it will be before they count.
    pub(super) fn restart_log(&mut self, x: usize, log: Vec<usize>, point: &LogPoint) {
        let through = point.position.sequence.0;
        let replica = &mut self.replicas[x];
        replica.has.fill(Level::None);
        replica.ever.fill(Level::None);
        replica.acked = (replica.acked.0.min(through), replica.acked.1.min(through));
        (replica.is_mixed, replica.base_at) = (true, 0);
        replica.base = fresh_sectors(replica.first_end, replica.base.len());
        replica.log.clone_from(&log);
        for frame in log {
            self.raise(x, frame, Level::Durable);
        }
        self.advance_base(x, through);
    }

    /// What clients were promised is never cut, but where the Primary that is followed lawfully does without it.
    pub(super) fn check_cut(&mut self, x: usize, new: &Superblock, cut: &HashSet<usize>) {
        let promised = self
            .obligations
            .iter()
            .find(|promised| cut.contains(&promised.frame))
            .map(|promised| promised.frame);
        let (Some(_), Some(primary)) = (promised, new.record.primary) else { return };
        let primary = usize::from(primary.0);
        let mut excused = self.lost_with_power(primary, true);
        for reign in self.path(self.end_of(primary).0) {
            excused.extend(&self.reigns[reign].excused);
        }
        let void = self.replicas[x].void || self.replicas[primary].void;
        // Others count on who holds it; who only happened to have it may let go.
        let lets_go = |lost: &&Obligation| {
            cut.contains(&lost.frame) && !excused.contains(&lost.frame) && lost.holders.contains(id_of(x))
        };
        let lost = self.obligations.iter().find(lets_go);
        if let Some(lost) = lost.filter(|_| !void) {
            broken(
                "promised-cut",
                format!(
                    "node {x} cuts its log from entry {} on to follow {primary} in epoch {}; write {} (entry {}) was \
                     answered or shown at node {} with members {:?}",
                    new.cut.first,
                    new.record.epoch,
                    lost.write,
                    self.frames[lost.frame].last,
                    lost.node,
                    lost.holders
                ),
            );
        }
    }
}
