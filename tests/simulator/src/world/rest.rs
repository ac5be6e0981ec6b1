//! A world at rest: whether it is, and that all copies are equal then.

use replicator_core::config::Protocol;
use replicator_core::disk::superblock::DiskState;
use replicator_core::status::{Connection, Role};

use super::World;
use crate::disk::SECTOR;
use crate::node::Node;
use crate::rule::broken;

impl World {
    /// Whether every node is up, level with the Primary, and at rest.
    pub fn is_quiet(&self) -> bool {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.is_level(&all)
    }

    /// Whether these nodes are up, level with the Primary among them, and at rest.
    pub fn is_level(&self, group: &[usize]) -> bool {
        let Some(primary) = group.iter().copied().find(|n| self.nodes[*n].serving) else { return false };
        let Some(status) = self.status(primary) else { return false };
        let head = status.head.sequence;
        let peers =
            status.peers.iter().filter(|peer| group.contains(&usize::from(peer.node.0))).all(|peer| {
                peer.connection == Connection::Established
                    && peer.ack.durable == head
                    && (peer.member || peer.protocol == Protocol::A || peer.delayed)
            });
        let applied = group.iter().all(|n| {
            self.status(*n)
                .is_some_and(|status| status.applied == head && status.disk_state == DiskState::UpToDate)
        });
        peers && applied && self.requests.is_empty()
    }

    /// Whether the disks of all nodes hold the same bytes.
    pub fn disks_are_equal(&self) -> bool {
        let images = self.nodes.iter().map(|node| {
            let mut bytes = vec![0; self.sectors * SECTOR];
            node.disk.read(0, &mut bytes);
            bytes
        });
        let images: Vec<Vec<u8>> = images.collect();
        images.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// All disks hold the same bytes, and the Primary reads what clients may expect.
    pub fn check_equal(&mut self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.check_equal_among(&all);
    }

    /// The disks of these nodes hold the same bytes, and the Primary among them what clients may expect.
    pub fn check_equal_among(&mut self, group: &[usize]) {
        let length = self.sectors * SECTOR;
        let image = |node: &Node| {
            let mut bytes = vec![0; length];
            node.disk.read(0, &mut bytes);
            bytes
        };
        let primary = group.iter().copied().find(|n| self.nodes[*n].serving).expect("one serves");
        let expected = image(&self.nodes[primary]);
        let status = self.status(primary).expect("it serves");
        for n in group {
            let differs = image(&self.nodes[*n]).iter().zip(&expected).position(|(a, b)| a != b);
            // A copy whose device lied is found by its positions only: there are no checksums at rest.
            let lied = self.ledger.is_void(*n) || self.ledger.is_void(primary);
            if differs.is_some() && lied {
                self.mark("a lie went unnoticed");
                continue;
            }
            if let Some(byte) = differs {
                let sector = byte / SECTOR;
                broken(
                    "replicas-differ",
                    format!("nodes {primary} and {n} differ at rest, in sector {sector}"),
                );
            }
            let other = self.status(*n).expect("it is level");
            if (other.head, other.chain) != (status.head, status.chain) {
                broken("replicas-differ", format!("the logs of nodes {primary} and {n} differ at rest"));
            }
            let lone = other.role == Role::Primary && *n != primary;
            if lone {
                broken("one-primary-per-epoch", format!("nodes {primary} and {n} both serve at rest"));
            }
        }
        self.now += 1;
        let now = self.now;
        let sound = !self.ledger.is_void(primary);
        for (sector, bytes) in expected.chunks(SECTOR).enumerate().filter(|_| sound) {
            self.checkers[primary].read(sector, bytes, now, now);
        }
        for n in group {
            let disk = self.nodes[*n].disk.clone();
            self.ledger.check_disk(*n, &disk);
            self.check_bookmarks(*n);
        }
    }
}
