//! The safety phase: clients, faults and operators, one random step after the other.

use replicator_core::disk::superblock::{DiskState, Record};
use replicator_core::event::{AdminAction, FreezeAt};
use replicator_core::recovery::RecoverError;

use super::{Run, node_id};
use crate::node::StartError;
use crate::rule::broken;
use crate::{bookmarks, delay, growth, scrub};

impl Run {
    pub(super) fn safety_step(&mut self) {
        let world = &mut self.world;
        if world.serving().is_none() && world.random.percent(8) && self.manager.is_none() {
            self.want_primary();
        }
        self.manage();
        if self.world.random.percent(self.plan.client_percent) {
            self.world.client();
        }
        self.chance_strikes();
        if let Some((node, action)) = scrub::wish(&mut self.world, self.plan.verify_chance) {
            self.ask(node, action);
        }
        if let Some((node, action)) = growth::wish(&mut self.world, self.plan.grow_chance) {
            self.ask(node, action);
        }
        if let Some((node, action)) = bookmarks::wish(&mut self.world, self.plan.bookmark_chance) {
            self.ask(node, action);
        }
        if let Some((node, action)) = delay::wish(&mut self.world) {
            self.ask(node, action);
        }
        self.freeze_or_resolve();
        self.bring_back();
        if self.world.random.percent(3) || !self.world.step() {
            self.world.pass_time();
        }
        self.hear_answers();
        self.moments_strike();
    }

    pub(super) fn manage(&mut self) {
        if let Some(manager) = &mut self.manager {
            manager.turn(&mut self.world);
        }
        if let Some(whole) = &mut self.whole {
            whole.turn(&mut self.world);
        }
    }

    /// In some runs secondaries are frozen now and then, and forks are resolved while faults go on.
    fn freeze_or_resolve(&mut self) {
        if self.plan.seed % 4 != 2 {
            return;
        }
        let node = self.world.random.index(self.world.nodes.len());
        let Some(status) = self.world.status(node) else { return };
        let fork = status.peers.iter().find(|peer| peer.fork.is_some()).map(|peer| peer.node);
        match fork {
            Some(other) if self.world.random.percent(3) => {
                let discard = if self.world.random.percent(50) { node_id(node) } else { other };
                self.ask(node, AdminAction::Resolve { discard });
            }
            _ if self.world.random.below(1000) < 4 => {
                let action = if status.freeze.is_some() {
                    AdminAction::Thaw
                } else {
                    AdminAction::FreezeApply { at: FreezeAt::Here }
                };
                self.ask(node, action);
            }
            _ => {}
        }
    }

    /// The newest record that anyone, alive or dead, remembers.
    pub(super) fn newest_record(&self) -> Record {
        let records = (0..self.world.nodes.len()).map(|n| self.world.ledger.saved(n).record);
        records.max_by_key(Record::order).expect("nodes")
    }

    fn want_primary(&mut self) {
        let up: Vec<usize> = (0..self.world.nodes.len()).filter(|n| self.world.is_up(*n)).collect();
        if !up.is_empty() {
            let node = up[self.world.random.index(up.len())];
            self.promote(node, false);
        }
    }

    /// The dead return and links heal, sooner or later.
    fn bring_back(&mut self) {
        let count = self.world.nodes.len();
        for node in 0..count {
            if !self.world.is_up(node) && self.world.random.below(1000) < 12 {
                self.start(node);
            }
            for other in 0..count {
                if self.world.routes[node][other].silent && self.world.random.below(1000) < 4 {
                    self.world.routes[node][other].silent = false;
                }
                if node < other && self.world.is_cut(node, other) && self.world.random.below(1000) < 4 {
                    self.world.set_cut(node, other, false);
                }
            }
        }
    }

    pub(super) fn start(&mut self, node: usize) {
        if self.lost[node] || self.whole.as_ref().is_some_and(|whole| whole.is_off(node)) {
            return;
        }
        // A journal whose sync failed may have lost what its kernel still shows, and the copy was to say Failed.
        let forgot = self.world.nodes[node]
            .read_superblock()
            .is_ok_and(|(superblock, _)| superblock.disk_state != DiskState::Failed);
        if forgot && std::mem::take(&mut self.devices.borrow_mut().unsynced[node]) {
            self.world.mark("a failed copy forgot");
            self.world.ledger.distrust(node);
        }
        // Nobody remembers what the process before was asked.
        self.asks.retain(|(other, _, _)| *other != node);
        match self.world.try_start(node) {
            Ok(()) => return,
            Err(StartError::Recover(RecoverError::Rot { .. }))
                if self.world.ledger.is_void(node) || self.devices.borrow().failed[node] =>
            {
                self.world.mark("rot found at a start");
            }
            Err(StartError::Recover(RecoverError::Device { .. })) if self.spoiled[node] => {
                self.world.mark("unreadable journal at a start");
            }
            Err(StartError::Superblock(_)) if self.world.ledger.is_void(node) => {
                self.world.mark("both superblock copies bad");
            }
            Err(error) => broken("start-refused", format!("node {node} does not start: {error}")),
        }
        self.lost[node] = true;
    }
}
