//! Reigns: who opened them, by what right, and where two logs left each other. Who may serve is in `promises`.

use std::collections::HashSet;

use replicator_core::disk::superblock::{DiskState, Superblock};
use replicator_core::frame::FrameHeader;
use replicator_core::units::{Chain, NodeSet, ReignId};

use super::promises::Obligation;
use super::{Ledger, Level, Recorded, Reign, id_of, nodes_of};
use crate::rule::broken;

impl Ledger {
    pub(super) fn open_reign(&mut self, x: usize, header: &FrameHeader, start: usize) -> usize {
        let replica = &self.replicas[x];
        let (epoch, id) = (header.epoch.0, header.reign);
        let stored = &replica.saved;
        if (stored.record.epoch.0, stored.record.reign) != (epoch, id) || stored.promised.0 > epoch {
            broken("reign-not-stored", format!("node {x} opens epoch {epoch}, which its superblock lacks"));
        }
        for other in &self.reigns {
            let forks = || self.left_by_force(header.chain_before, self.frames[other.start].chain);
            let void = self.replicas.iter().any(|replica| replica.void);
            let forced = other.forced || self.was_forced(id);
            if other.epoch == epoch && !(forced || void || forks()) {
                broken(
                    "one-primary-per-epoch",
                    format!("epoch {epoch} is opened by {x} and by {}, neither by force", other.opener),
                );
            }
        }
        let (process, forced) = (replica.process, self.was_forced(id));
        let excused = self.lost_with_power(x, forced);
        self.reigns.push(Reign { id, epoch, opener: x, process, forced, start, excused });
        self.reigns.len() - 1
    }

    /// What was promised and went with the power of `x` (or with a process that only had it in memory): a reign that
    /// begins there does without it, lawfully if no flush covered it and no member that was asked has it.
    pub(super) fn lost_with_power(&mut self, x: usize, forced: bool) -> HashSet<usize> {
        let gone = |obligation: &&Obligation| {
            let frame = obligation.frame;
            let was_volatile = !obligation.flushed && self.ever(x, frame) < Level::Durable;
            let has = |r: usize| {
                self.contains(r, frame) && self.replicas[r].saved.disk_state == DiskState::UpToDate
            };
            let asked = NodeSet(obligation.holders.0 & self.replicas[x].saved.record.in_sync.0);
            let elsewhere = nodes_of(asked).any(has);
            !self.contains(x, frame)
                && was_volatile
                && obligation.holders.contains(id_of(x))
                && (forced || !elsewhere)
        };
        let excused: HashSet<usize> = self.obligations.iter().filter(gone).map(|gone| gone.frame).collect();
        if !excused.is_empty() {
            self.marks.push("unflushed, and lost with the power");
        }
        excused
    }

    pub(super) fn reign_of(&self, x: usize, header: &FrameHeader) -> usize {
        let found = self.reigns.iter().position(|reign| reign.id == header.reign);
        let Some(index) = found else {
            broken("foreign-entries", format!("node {x} writes entries of a reign that never began"));
        };
        let (reign, replica) = (&self.reigns[index], &self.replicas[x]);
        if reign.opener != x || reign.process != replica.process || reign.epoch != header.epoch.0 {
            broken(
                "one-incarnation-per-epoch",
                format!("node {x} sequences in epoch {}, begun by another process", header.epoch),
            );
        }
        index
    }

    /// A promotion is stored. It inherits the force of one before it that was stored and never began.
    pub(super) fn note_reign(&mut self, x: usize, old: &Superblock, new: &Superblock) {
        let own = new.record.primary == Some(id_of(x)) && new.record.reign != old.record.reign;
        if own && !self.recorded.contains_key(&new.record.reign) {
            let began = self.reigns.iter().any(|reign| reign.id == old.record.reign);
            let forced = self.replicas[x].force || (!began && self.was_forced(old.record.reign));
            let behind = self.end_of(x).0;
            self.recorded.insert(new.record.reign, Recorded { forced, behind });
        }
    }

    fn was_forced(&self, reign: ReignId) -> bool {
        self.recorded.get(&reign).is_some_and(|recorded| recorded.forced)
    }

    pub(super) fn note_members(&mut self, x: usize, superblock: &Superblock) {
        let record = &superblock.record;
        let reign = self.reigns.iter().find(|reign| reign.id == record.reign);
        let owner = record.primary == Some(id_of(x)) || reign.is_some_and(|reign| reign.opener == x);
        if owner {
            let known = self.members.entry(record.reign).or_insert((0, record.in_sync));
            let joined = NodeSet(record.in_sync.0 & !known.1.0);
            if record.version >= known.0 {
                *known = (record.version, record.in_sync);
            }
            // Who joins holds what was promised before, too.
            if !joined.is_empty() {
                self.check_joined(joined);
                let log: HashSet<usize> = self.replicas[x].log.iter().copied().collect();
                for promised in self.obligations.iter_mut().filter(|promised| log.contains(&promised.frame)) {
                    promised.holders = NodeSet(promised.holders.0 | joined.0);
                }
            }
        }
    }

    /// The reigns of the log that ends at `chain`, oldest first.
    pub(super) fn path(&self, chain: Chain) -> Vec<usize> {
        let (mut path, mut chain) = (Vec::new(), chain);
        while let Some(frame) = self.by_chain.get(&chain) {
            let reign = self.frames[*frame].reign;
            path.push(reign);
            chain = self.frames[self.reigns[reign].start].parent;
        }
        path.reverse();
        path
    }

    /// Two logs end at `a` and `b`: the reigns in which each leaves the other.
    pub(super) fn parting(&self, a: Chain, b: Chain) -> (Option<usize>, Option<usize>) {
        let (x, y) = (self.path(a), self.path(b));
        let shared = x.iter().zip(&y).take_while(|(x, y)| x == y).count();
        (x.get(shared).copied(), y.get(shared).copied())
    }

    /// Whether the log of `b` goes on somewhere without that of `a`.
    pub fn goes_apart(&self, a: usize, b: usize) -> bool {
        let (x, y) = (&self.replicas[a].log, &self.replicas[b].log);
        let shared = x.iter().zip(y).take_while(|(x, y)| x == y).count();
        y.len() > shared
    }

    /// Whether the reign in which the log of `p` leaves that of `t`, or the other way round, was begun by force.
    pub fn parted_by_force(&self, p: usize, t: usize) -> bool {
        self.left_by_force(self.end_of(p).0, self.end_of(t).0)
    }

    fn left_by_force(&self, a: Chain, b: Chain) -> bool {
        let (x, y) = self.parting(a, b);
        [x, y].into_iter().flatten().any(|reign| self.reigns[reign].forced)
    }

    /// Whether `p` and `t` know different reigns of one epoch, and force was used: for one of them, or where the logs
    /// behind which they were stored left each other.
    pub fn named_twice_by_force(&self, p: usize, t: usize) -> bool {
        let (a, b) = (&self.replicas[p].saved.record, &self.replicas[t].saved.record);
        let stored = self.recorded.get(&a.reign).zip(self.recorded.get(&b.reign));
        let forced = self.was_forced(a.reign)
            || self.was_forced(b.reign)
            || stored.is_some_and(|(x, y)| self.left_by_force(x.behind, y.behind));
        a.epoch == b.epoch && a.reign != b.reign && forced
    }

    pub fn reigns(&self) -> usize {
        self.reigns.len()
    }
}
