//! What clients were promised or shown, who held it then, and whether a new Primary may lack it.

use replicator_core::units::NodeSet;

use super::{Ledger, Level, id_of, nodes_of};
use crate::node::Node;
use crate::rule::broken;

/// What a client was promised, or shown.
pub(super) struct Obligation {
    pub(super) frame: usize,
    pub(super) write: u64,
    pub(super) holders: NodeSet,
    pub(super) flushed: bool,
    pub(super) told_at: u64,
    pub(super) node: usize,
}

impl Ledger {
    fn members_at(&self, p: usize) -> NodeSet {
        let reign = self.replicas[p].saved.record.reign;
        self.members.get(&reign).map_or(NodeSet(0), |(_, set)| *set)
    }

    fn holds_for_answer(&self, p: usize, node: &Node, frame: usize, durable: bool, rule: &'static str) {
        for r in nodes_of(self.members_at(p).with(id_of(p))) {
            let volatile =
                node.config.peers.iter().any(|peer| {
                    peer.node == id_of(r) && peer.protocol == replicator_core::config::Protocol::B
                });
            let need = match (durable, volatile) {
                (true, _) => Level::Durable,
                (false, true) => Level::Received,
                (false, false) => Level::Written,
            };
            let has = self.told(p, r, frame);
            if has < need && !self.replicas[r].void && !self.replicas[p].void {
                let last = self.frames[frame].last;
                broken(
                    rule,
                    format!("node {p} answers for entry {last}; member {r} has it {has:?}, not {need:?}"),
                );
            }
        }
    }

    fn oblige(&mut self, p: usize, write: u64, flushed: bool, now: u64) {
        let frame = self.writes[&write];
        let holders = self.members_at(p).with(id_of(p));
        if self.obliged.insert(write) {
            self.obligations.push(Obligation { frame, write, holders, flushed, told_at: now, node: p });
        } else if flushed {
            let known = self.obligations.iter_mut().rev().find(|other| other.write == write);
            known.expect("it is obliged").flushed = true;
        }
    }

    /// A write was answered by `p`.
    pub fn answered(&mut self, p: usize, node: &Node, write: u64, fua: bool, now: u64) {
        let Some(frame) = self.writes.get(&write).copied().filter(|frame| self.contains(p, *frame)) else {
            broken("answer-not-in-log", format!("node {p} answers write {write}, which its log lacks"));
        };
        self.holds_for_answer(p, node, frame, false, "answer-before-members");
        if fua {
            self.holds_for_answer(p, node, frame, true, "flush-before-durable");
        }
        self.oblige(p, write, fua, now);
    }

    /// A flush that began at `began` was answered by `p`: what was answered before is durable.
    pub fn flushed(&mut self, p: usize, node: &Node, began: u64) {
        for index in (0..self.obligations.len()).rev() {
            let obligation = &self.obligations[index];
            if obligation.node != p || obligation.told_at >= began {
                continue;
            }
            if obligation.flushed {
                // Older ones were covered before, except around writes with FUA.
                if index + 64 < self.obligations.len() {
                    break;
                }
                continue;
            }
            if self.contains(p, obligation.frame) {
                self.holds_for_answer(p, node, obligation.frame, true, "flush-before-durable");
                self.obligations[index].flushed = true;
            }
        }
    }

    /// A read at `p` showed write `write`: from now on it must stay, like an answered one.
    pub fn shown(&mut self, p: usize, node: &Node, write: u64, now: u64) {
        if self.obliged.contains(&write) {
            return;
        }
        let Some(frame) = self.writes.get(&write).copied() else { return };
        if self.contains(p, frame) {
            self.holds_for_answer(p, node, frame, false, "read-uncommitted");
            self.oblige(p, write, false, now);
        }
    }

    /// `p` opened its export: everything ever promised is there, or its loss is lawful. Returns who wrote each sector.
    pub fn opened(&mut self, p: usize) -> Vec<u64> {
        self.zeroings.retain(|(node, _, _)| *node != p);
        let id = self.replicas[p].saved.record.reign;
        let Some(reign) = self.reigns.iter().position(|reign| reign.id == id && reign.opener == p) else {
            broken("served-without-reign", format!("node {p} serves and never opened its epoch"));
        };
        let start = self.reigns[reign].start;
        for r in nodes_of(self.members_at(p)) {
            let has = self.told(p, r, start);
            if has < Level::Durable && !self.replicas[r].void {
                broken(
                    "served-before-stable",
                    format!("node {p} serves; member {r} has the epoch's start {has:?}"),
                );
            }
        }
        for index in 0..self.obligations.len() {
            let frame = self.obligations[index].frame;
            if !self.contains(p, frame) {
                self.excuse(p, reign, index);
            }
        }
        let mut image = self.replicas[p].base.clone();
        let log = &self.replicas[p].log;
        let from = log.partition_point(|frame| self.frames[*frame].last <= self.replicas[p].base_at);
        for frame in &log[from..] {
            for (sectors, id) in &self.frames[*frame].effects {
                image[sectors.clone()].fill(*id);
            }
        }
        image
    }

    /// Something promised is not in the log of the new Primary `p`.
    fn excuse(&mut self, p: usize, reign: usize, index: usize) {
        let obligation = &self.obligations[index];
        let (frame, flushed, holders) = (obligation.frame, obligation.flushed, obligation.holders);
        // The reign that first went on without it, and the one in which it went its own way, if it did. Where a later
        // reign went on from this one, which does not know it yet, only the later one parted from anybody.
        let (here, there) = self.parting(self.end_of(p).0, self.frames[frame].chain);
        // With a configuration manager an export that opens says nothing: each answer needs a lease, and `leases` sees that
        // none is given once a later reign has answered. A Primary that slept while the next one went on from its own
        // first entry opens late, and answers nobody.
        if self.managed && here.is_none() && there.is_some() {
            self.marks.push("opened in the past");
            return;
        }
        let lost_by = here.unwrap_or(reign);
        let opener = self.reigns[lost_by].opener;
        let forced = [here, there].into_iter().flatten().any(|reign| self.reigns[reign].forced);
        let not_held = !holders.contains(id_of(opener));
        let media = self.replicas[opener].void || nodes_of(holders).any(|r| self.replicas[r].void);
        if (forced && not_held) || self.reigns[lost_by].excused.contains(&frame) || media {
            self.marks.push("promised, and lost by force");
            return;
        }
        let obligation = &self.obligations[index];
        let what = if flushed { "flushed" } else { "answered or shown" };
        broken(
            if flushed { "flushed-lost" } else { "acknowledged-lost" },
            format!(
                "write {} (entry {}, {what} at node {} with members {holders:?}) is not in the log of node {p}, which \
                 serves epoch {}; lost by the promotion of {opener} to {}, forced: {forced}",
                obligation.write,
                self.frames[frame].last,
                obligation.node,
                self.reigns[reign].epoch,
                self.reigns[lost_by].epoch
            ),
        );
    }
}
