//! Nodes that start, die, lose power and get new disks.

use replicator_core::disk::superblock::Superblock;

use super::setup::fresh;
use super::{Moment, World};
use crate::node::{Node, StartError};

impl World {
    pub fn start(&mut self, node: usize) {
        self.try_start(node).expect("recovery finds no damage");
    }

    /// Starts the process of `node`.
    ///
    /// # Errors
    /// If what lies on its disks cannot be believed.
    pub fn try_start(&mut self, node: usize) -> Result<(), StartError> {
        let now = self.instant(node);
        let found = self.nodes[node].read_superblock();
        let outcome = self.nodes[node].start(now);
        self.note(|| format!("n{node} starts: {outcome:?}"));
        outcome?;
        let status = self.status(node).expect("it started");
        let head = (status.chain, status.head.sequence.0);
        let (superblock, repaired) = found.expect("it started from it");
        if repaired {
            self.mark("superblock copy repaired");
        }
        self.ledger.tell_time(node, self.clocks_of(node));
        self.ledger.started(node, &self.nodes[node], &superblock, head);
        self.moments.push((Moment::Started, node));
        self.collect();
        Ok(())
    }

    /// A node that is down gets new disks and is created anew.
    pub fn recreate(&mut self, node: usize) {
        assert!(!self.is_up(node), "its process has its disks");
        self.note(|| format!("n{node} is created anew"));
        let old = &self.nodes[node];
        let replica = self.ledger.saved(node).replica + 1000;
        let superblock = Superblock { replica, ..fresh(&self.setup, node) };
        let (config, boot_id, starts) = (old.config.clone(), old.boot_id, old.starts);
        let wall_zero_ms = old.wall_zero_ms;
        self.nodes[node] = Node::new(config, &superblock);
        (self.nodes[node].boot_id, self.nodes[node].starts) = (boot_id, starts);
        self.nodes[node].set_wall_clock(wall_zero_ms);
        self.ledger.recreated(node, &superblock);
    }

    /// Its configuration has another delay.
    pub fn set_delay(&mut self, node: usize, delay_ms: u64) {
        assert!(!self.is_up(node), "it is read at the start");
        self.nodes[node].config.apply_delay_ms = delay_ms;
        self.ledger.set_delay(node, delay_ms);
    }

    pub fn kill(&mut self, node: usize) {
        self.note(|| format!("n{node} is killed"));
        self.die(node, false);
    }

    pub fn lose_power(&mut self, node: usize) {
        self.note(|| format!("n{node} loses power"));
        self.die(node, true);
    }

    fn die(&mut self, node: usize, power: bool) {
        self.collect();
        let silent = self.rough && power && self.random.percent(70);
        for wire in &mut self.wires {
            for end in 0..2 {
                if wire.ends[end].node == node && wire.ends[end].up {
                    wire.ends[end].up = false;
                    let pipe = &mut wire.pipes[end];
                    (pipe.closed, pipe.dead) = (!silent, silent);
                    if !self.rough || power || self.random.percent(50) {
                        pipe.queue.clear();
                    }
                    wire.pipes[1 - end].half = None;
                }
            }
        }
        if power {
            self.nodes[node].lose_power(&mut self.random);
        } else {
            self.nodes[node].kill(&mut self.random);
        }
        self.nodes[node].seen.clear();
        self.paused_until[node] = 0;
        self.ledger.died(node, power);
        self.requests.retain(|request| request.node != node);
        self.uploads.retain(|upload| upload.node != node);
        self.drop_gone_wires();
    }
}
