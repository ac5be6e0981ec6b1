//! Replicas that apply late: nothing reaches a disk before its time, and a frozen copy stands where an operator said.

use replicator_core::event::FreezeAt;
use replicator_core::units::NodeSet;

use super::{Ledger, id_of};
use crate::rule::broken;

/// What a node's clocks show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clocks {
    /// The one that never goes back, in nanoseconds.
    pub instant: u64,
    /// The time of day, in milliseconds since 1970.
    pub wall_ms: u64,
}

impl Ledger {
    /// What the clocks of `x` show now.
    pub fn tell_time(&mut self, x: usize, clocks: Clocks) {
        self.replicas[x].clocks = clocks;
    }

    /// The Primary that `x` follows brings it level by blocks: until another stream begins nothing has to wait there.
    pub fn hears_resync(&mut self, x: usize, begins: bool) {
        self.replicas[x].is_resynced = begins;
    }

    /// A frame reached the journal of `x`, or was found there: by the clocks there it is old enough then.
    pub(super) fn set_due(&mut self, x: usize, frame: usize) {
        let (replica, closed_ms) = (&mut self.replicas[x], self.frames[frame].closed_ms);
        let age_ms = replica.clocks.wall_ms.saturating_sub(closed_ms);
        let wait_ms = replica.delay_ms.saturating_sub(age_ms);
        replica.due.insert(frame, replica.clocks.instant + wait_ms * 1_000_000);
    }

    /// Times do not outlive a process.
    pub(super) fn set_dues(&mut self, x: usize) {
        for frame in self.replicas[x].log.clone() {
            self.set_due(x, frame);
        }
    }

    /// A delayed Secondary applies what is old enough, or finds no room in its part of the ring.
    pub(super) fn check_delay(&self, x: usize, frame: usize) {
        let (replica, last) = (&self.replicas[x], self.frames[frame].last);
        let saved = &replica.saved;
        let counts = replica.delay_ms > 0 && !replica.void && !replica.is_mixed && !replica.is_resynced;
        let reigns = saved.record.primary == Some(id_of(x));
        if !counts || reigns || saved.yields || last <= saved.apply_limit.0 {
            return;
        }
        // What the superblock says that the disk may show need not wait again.
        if last <= replica.may_show {
            return;
        }
        let is_early = replica.due.get(&frame).is_some_and(|due| replica.clocks.instant < *due);
        let place = replica.place_of.get(&frame).and_then(|at| replica.places.get(at));
        let head = replica.places.values().map(|place| place.ring_offset + place.len).max();
        let waiting = head.zip(place).map_or(0, |(head, place)| head - place.ring_offset);
        if is_early && waiting <= self.ring_bytes / 8 * 3 {
            broken(
                "applied-early",
                format!("node {x} applies entry {last} before its time, with room for it"),
            );
        }
    }

    /// A replica that applies late is taken into no set.
    pub(super) fn check_joined(&self, joined: NodeSet) {
        if let Some(node) = joined.iter().find(|node| self.replicas[usize::from(node.0)].delay_ms > 0) {
            broken("delayed-member", format!("{node} applies late, and is taken into the set"));
        }
    }

    /// The frozen copy of `x` stands where it was told to.
    pub fn check_frozen_at(&mut self, x: usize, at: FreezeAt) {
        let (replica, limit) = (&self.replicas[x], self.replicas[x].saved.apply_limit.0);
        if limit == 0 || replica.void {
            return;
        }
        let late = |ms: u64| {
            let shown = replica.log.iter().map(|frame| &self.frames[*frame]);
            shown.into_iter().find(|frame| frame.last <= limit && frame.closed_ms > ms)
        };
        let is_there = match at {
            FreezeAt::Here => true,
            FreezeAt::Position(position) => position.sequence.0 == limit,
            FreezeAt::Time { ms } => late(ms).is_none(),
        };
        if !is_there {
            broken("frozen-elsewhere", format!("node {x} was to be frozen at {at:?} and is at {limit}"));
        }
        self.marks.push("frozen at a chosen position");
    }
}
