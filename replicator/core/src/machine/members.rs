//! The in-sync set: who is taken out and taken in, and what is said of it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Machine;
use super::greet::Place;
use super::peer::LinkState;
use super::replicas::Presence;
use super::role::RoleState;
use crate::command::{AdminError, Report};
use crate::config::{OnPeerLoss, Protocol};
use crate::disk::superblock::Record;
use crate::units::{AdminId, Epoch, Instant, NodeId, NodeSet};
use crate::wire::message::Message;

impl Machine {
    pub(super) fn on_shrink(&mut self, id: AdminId, node: NodeId) {
        let record = self.meta.saved.record;
        if self.is_managed() {
            let text = "an orchestrator decides who is in the in-sync set of this volume; it takes a member that is gone \
                        out by itself";
            self.answer_admin(id, Err(AdminError::Managed(String::from(text))));
        } else if !self.role.is_sequencing() {
            self.refuse_admin(id, "only the Primary can shrink the in-sync set");
        } else if node == self.config.node || !record.in_sync.contains(node) {
            self.refuse_admin(id, format!("{node} is no other member of the in-sync set"));
        } else if self.is_streaming_to(node) {
            self.refuse_admin(id, format!("{node} is connected and follows; stop its replicator first"));
        } else if self.record_change.is_some() {
            self.refuse_admin(id, "another change of the in-sync set is under way; try again");
        } else {
            self.change_members(record.in_sync.without(node));
            self.shrink_answer = Some(id);
        }
    }

    /// Stores a new in-sync set. Until that is saved, whoever is in the old or in the new one counts.
    pub(super) fn change_members(&mut self, in_sync: NodeSet) {
        assert!(self.record_change.is_none(), "one change of the record at a time");
        assert!(in_sync.contains(self.config.node), "the Primary is a member");
        let record = self.meta.current.record;
        self.meta.current.record = Record { version: record.version + 1, in_sync, ..record };
        self.record_change = Some(self.meta.change());
    }

    /// Settles changes of the in-sync set: finishes the one under way, then shrinks, then grows.
    pub(super) fn advance_record(&mut self) {
        if !self.role.is_sequencing() {
            return;
        }
        if self.record_change.is_some_and(|saved| self.meta.is_saved(saved)) {
            self.record_change = None;
            self.publish_record();
        }
        if self.is_managed() {
            if self.role.is_serving() {
                self.make_pending();
            }
            return self.note_frozen();
        }
        if self.record_change.is_none() && !matches!(self.role, RoleState::Demoting { .. }) {
            self.shrink_lost();
        }
        if self.record_change.is_none() && self.role.is_serving() {
            self.grow();
        }
        self.note_frozen();
    }

    fn publish_record(&mut self) {
        let record = self.meta.saved.record;
        if !self.is_managed() {
            for peer in &mut self.peers {
                peer.pending &= !record.in_sync.contains(peer.config.node);
            }
        }
        for index in 0..self.peers.len() {
            if self.peers[index].streaming().is_some() {
                self.send(Place::Peer(index), Message::Record(record), false);
            }
        }
        let names: Vec<_> = record.in_sync.iter().map(|node| format!("{node}")).collect();
        let text =
            format!("in-sync set {} at epoch {} version {}", names.join(","), record.epoch, record.version);
        if let Some(id) = self.shrink_answer.take() {
            self.answer_admin(id, Ok(text.clone()));
        }
        self.report(Report::Record(text));
    }

    /// When the next member that is gone is taken out of the set, by policy.
    pub(super) fn shrink_due(&self) -> Option<Instant> {
        let is_policy = self.config.on_peer_loss == OnPeerLoss::Continue && !self.is_managed();
        if !self.role.is_sequencing() || !is_policy {
            return None;
        }
        let record = &self.meta.saved.record;
        let lost = |peer: &&super::peer::Peer| {
            record.in_sync.contains(peer.config.node) && peer.streaming().is_none()
        };
        let since = self.peers.iter().filter(lost).map(|peer| peer.lost_since).min()?;
        Some(since.plus_ms(self.config.peer_timeout_ms).max(self.now.plus_ms(1)))
    }

    fn shrink_lost(&mut self) {
        if self.config.on_peer_loss != OnPeerLoss::Continue {
            return;
        }
        let record = self.meta.saved.record;
        let mut in_sync = record.in_sync;
        for peer in &self.peers {
            let due = peer.lost_since.plus_ms(self.config.peer_timeout_ms) <= self.now;
            if due && peer.streaming().is_none() {
                in_sync = in_sync.without(peer.config.node);
            }
        }
        if in_sync != record.in_sync {
            self.change_members(in_sync);
        }
    }

    /// Whether peer `index` has everything, durably where others have it durably, and nobody counts it yet.
    fn may_join(&self, index: usize) -> bool {
        let peer = &self.peers[index];
        let is_level = peer
            .streaming()
            .is_some_and(|link| link.ack.journaled >= self.committed && link.ack.durable >= self.stable);
        let is_whole = peer.link.as_ref().is_some_and(|link| link.resync.is_none());
        // One that applies late has everything, and would take long to serve it.
        let is_follower = peer.config.protocol == Protocol::A || peer.is_delayed();
        let is_wanted = !is_follower && peer.presence == Presence::Present;
        let is_counted = peer.pending || self.meta.current.record.in_sync.contains(peer.config.node);
        is_wanted && is_level && is_whole && !is_counted
    }

    /// Takes in a replica that has everything.
    fn grow(&mut self) {
        if let Some(index) = (0..self.peers.len()).find(|index| self.may_join(*index)) {
            self.peers[index].pending = true;
            self.change_members(self.meta.saved.record.in_sync.with(self.peers[index].config.node));
        }
    }

    /// Counts replicas that have everything: whoever decides may take them in once the set that is stored here has them.
    /// Were that left until it is told, a Primary that is lost before would take for acknowledged what it asked them for.
    fn make_pending(&mut self) {
        for index in 0..self.peers.len() {
            if self.may_join(index) {
                self.peers[index].pending = true;
                let node = self.peers[index].config.node;
                let in_sync = self.meta.current.record.in_sync.with(node);
                self.meta.current.record.in_sync = in_sync;
                self.meta.change();
                self.report(Report::Peer {
                    node,
                    text: String::from("pending: counted, and to be taken in"),
                });
            }
        }
    }

    /// Says so when I/O waits for a member, and when it goes on.
    fn note_frozen(&mut self) {
        if !self.role.is_serving() {
            return;
        }
        let why = if self.may_answer() {
            let missing = self.counted().iter().find(|node| !self.is_streaming_to(*node));
            missing
                .map(|node| format!("waiting for {node}, a member of the in-sync set that is not connected"))
        } else {
            Some(String::from("its lease has ended, and a majority of the orchestrators has not renewed it"))
        };
        if why == self.frozen {
            return;
        }
        self.report(why.clone().map_or(Report::Thawed, Report::Frozen));
        self.frozen = why;
    }

    /// Whether the peer said that what it has past the common point of a fork was given up.
    pub(super) fn yields(&self, node: NodeId) -> bool {
        let peer = self.peers.iter().find(|peer| peer.config.node == node);
        let hello = peer.and_then(|peer| peer.link.as_ref()?.hello.as_ref());
        hello.is_some_and(|hello| hello.yields)
    }

    /// Remembers a record that a connected replica knows and this one does not: nobody acts on an older one.
    pub(super) fn learn_records(&mut self) {
        let follows = |peer: &super::peer::Peer| {
            let state = peer.link.as_ref().map(|link| link.state);
            state.is_some_and(LinkState::is_target)
        };
        // Whoever follows a Primary is told by it.
        let yields = self.meta.current.yields;
        if yields || !matches!(self.role, RoleState::Secondary) || self.peers.iter().any(follows) {
            return;
        }
        let hellos = self.peers.iter().filter_map(|peer| {
            let link = peer.link.as_ref().filter(|link| link.state == LinkState::Idle)?;
            link.hello.as_ref().filter(|hello| !hello.yields).map(|hello| hello.record)
        });
        // By its record a replica knows who was asked before the end of its log was answered. Until that end is stable
        // it forgets this for no set with strangers in it: they would have it cut.
        let mine = self.meta.current.record;
        let settled = mine.epoch == Epoch(0) || self.log.last() <= self.stable;
        let knows_all = |record: &Record| record.in_sync.iter().all(|node| mine.in_sync.contains(node));
        let learns = |record: &Record| record.is_later_than(&mine) && (settled || knows_all(record));
        if let Some(record) = hellos.filter(learns).max_by_key(Record::order) {
            self.replace_record(record);
            self.meta.current.promised = self.meta.current.promised.max(record.epoch);
            self.meta.change();
        }
    }

    /// Takes over a record that another replica told. If it is of another reign, somebody else has written since
    /// clients were last served here: what they hold is of the past.
    pub(super) fn replace_record(&mut self, record: Record) {
        let current = &mut self.meta.current;
        if record.reign != current.record.reign {
            current.export_generation += 1;
        }
        current.record = record;
    }
}
