//! What the machine says of itself.

use super::Machine;
use super::peer::LinkState;
use super::replicas::Presence;
use super::role::RoleState;
use crate::bookmarks::BookmarkStatus;
use crate::status::{Connection, PeerStatus, Role, Status};
use crate::units::PAGE_BYTES;

impl Machine {
    /// What an operator may know.
    #[must_use]
    pub fn status(&self) -> Status {
        let (meta, log) = (&self.meta, &self.log);
        let present = |index: &usize| self.peers[*index].presence != Presence::Gone;
        Status {
            node: self.config.node,
            replica: meta.saved.replica,
            role: if self.has_begun() { Role::Primary } else { Role::Secondary },
            serving: self.is_serving(),
            frozen: self.frozen.clone(),
            managed: self.config.managed,
            lease_end: self.lease,
            wish: self.wish(),
            disk_state: meta.current.disk_state,
            suspect: meta.current.suspect,
            disk_full: self.apply.waits_for_space()
                || self.intake_waits_for_space()
                || self.replay_due().is_some(),
            proven: meta.current.proven,
            export_generation: meta.saved.export_generation,
            sessions: self.sessions(),
            volume_bytes: meta.saved.volume_bytes,
            block_bytes: meta.saved.block_bytes,
            record: meta.saved.record,
            promised: meta.saved.promised,
            head: log.head.position,
            chain: log.head.chain,
            journaled: log.journaled(),
            durable: log.durable(),
            committed: self.committed,
            stable: self.stable,
            applied: log.applied.position.sequence,
            ring_bytes: log.layout.ring_bytes,
            ring_used_bytes: log.used_bytes(),
            arena_used_bytes: u64::from(self.pool.used_pages()) * PAGE_BYTES as u64,
            arena_bytes: self.config.arena_bytes as u64,
            superblock_repairs: meta.current.repairs,
            verify: self.verify_status(),
            sums: self.sums_status(),
            scrub: self.scrub_status(),
            found_blocks: self.found_blocks(),
            branching: self.branching(),
            branch_failure: self.branch_failure(),
            discards_of: self.discards_of,
            freeze: self.freeze_status(),
            delay: self.delay_status(),
            bookmarks: self.bookmarks.list().iter().map(BookmarkStatus::from).collect(),
            staged: self.staged_status(),
            peers: (0..self.peers.len()).filter(present).map(|index| self.peer_status(index)).collect(),
            counters: self.counters,
        }
    }

    /// Whether its reign has begun. One that is stored is opened next, and a configuration manager must not take it for
    /// one that has ended.
    fn has_begun(&self) -> bool {
        let is_stored = matches!(self.role, RoleState::Recording { saved, .. } if self.meta.is_saved(saved));
        self.role.is_sequencing() || self.is_managed() && is_stored
    }

    fn peer_status(&self, index: usize) -> PeerStatus {
        let peer = &self.peers[index];
        let hello = peer.link.as_ref().and_then(|link| link.hello.as_ref());
        let ping_ms = self.config.ping_interval_ms;
        let role = |primary| if primary { Role::Primary } else { Role::Secondary };
        PeerStatus {
            node: peer.config.node,
            protocol: peer.config.protocol,
            connection: self.connection(index),
            reason: peer.standalone.clone(),
            role: hello.map(|hello| role(hello.primary)),
            disk_state: hello.map(|hello| hello.disk_state),
            member: self.meta.saved.record.in_sync.contains(peer.config.node) && !peer.pending,
            answers: peer.link.as_ref().is_some_and(|link| self.now < link.heard_at.plus_ms(2 * ping_ms)),
            delayed: peer.is_delayed(),
            ack: peer.ack(),
            lag_bytes: peer.streaming().and_then(|link| self.log.bytes_behind(link.ack.journaled)),
            resync: self.progress(index),
            dirty_blocks: peer.tracker.map().dirty_blocks(),
            fork: peer.fork.as_ref().map(|fork| fork.status),
        }
    }

    fn connection(&self, index: usize) -> Connection {
        let peer = &self.peers[index];
        match peer.link.as_ref().map(|link| (link.state, link)) {
            _ if peer.standalone.is_some() => Connection::StandAlone,
            None | Some((LinkState::Greeting | LinkState::Closing, _)) => Connection::Connecting,
            Some((LinkState::Idle, _)) => Connection::Connected,
            Some((LinkState::Starting | LinkState::Streaming, link)) if link.resync.is_some() => {
                Connection::SyncSource
            }
            Some((_, link)) if link.plan.is_some() => Connection::SyncTarget,
            Some((
                LinkState::Starting
                | LinkState::Awaiting
                | LinkState::Cutting { .. }
                | LinkState::Draining { .. }
                | LinkState::Staging { .. }
                | LinkState::Jumping { .. },
                _,
            )) => Connection::CatchUp,
            Some((LinkState::Streaming, link)) => {
                let level = link.ack.journaled >= self.committed;
                if level { Connection::Established } else { Connection::CatchUp }
            }
            Some((LinkState::Following, _)) => {
                let level = self.log.journaled() >= self.committed;
                if level { Connection::Established } else { Connection::CatchUp }
            }
        }
    }
}
