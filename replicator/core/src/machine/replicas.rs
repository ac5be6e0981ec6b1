//! Which replicas there are: one is taken in, or let go, while the volume runs. Not who of them is in sync.
//!
//! ```text
//!              asked             out of the in-sync set, its connection gone
//!   Present ----------> Leaving ------------------------------------------> Gone
//!      ^  ^                | this node is no longer Primary                   |
//!      |  +----------------+                                                  |
//!      +----------------------------- taken in again -------------------------+
//! ```
//!
//! A Primary takes a member that leaves out of the set itself, and stores that first: from then on it counts for
//! nothing. Others let nobody go whom the record still names, since they may be asked to promote by it. A peer that is
//! gone keeps its place in the list, so that whoever remembers a place in it is right.

use alloc::format;
use alloc::string::String;

use super::Machine;
use super::greet::Place;
use super::peer::{LinkState, Peer};
use crate::command::{Command, Report};
use crate::config::PeerConfig;
use crate::dirty::DirtyMap;
use crate::tracker::{Base, Tracker};
use crate::units::{AdminId, NodeId};

/// Whether a peer takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It does.
    Present,
    /// It is being let go.
    Leaving {
        /// Who asked for that.
        id: AdminId,
    },
    /// It was let go.
    Gone,
}

impl Machine {
    /// The peers that take part.
    pub(super) fn present(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.presence == Presence::Present)
    }

    /// Takes in a replica that this one has not known.
    pub(super) fn on_add_replica(&mut self, id: AdminId, config: PeerConfig) {
        let node = config.node;
        let known = self.peers.iter().position(|peer| peer.config.node == node);
        let presence = known.map(|index| self.peers[index].presence);
        if node == self.config.node {
            return self.refuse_admin(id, format!("{node} is this node"));
        }
        match presence {
            Some(Presence::Present) => {
                return self.refuse_admin(id, format!("{node} is a replica of the volume here already"));
            }
            Some(Presence::Leaving { .. }) => {
                return self
                    .refuse_admin(id, format!("{node} is being let go just now; ask again in a moment"));
            }
            Some(Presence::Gone) | None => {}
        }
        // What it lacks is everything up to here, and from here on it is noted.
        let peer = Peer::new(config, self.fresh_tracker(), self.now);
        match known {
            Some(index) => self.peers[index] = peer,
            None => self.peers.push(peer),
        }
        self.config.peers.push(config);
        self.push(Command::Replicas);
        self.report(Report::Peer { node, text: String::from("is a replica of the volume from now on") });
        self.answer_admin(id, Ok(format!("{node} is a replica of the volume here from now on")));
    }

    fn fresh_tracker(&self) -> Tracker {
        let map = DirtyMap::new(self.meta.current.volume_bytes, self.log.layout.map_bytes);
        Tracker::new(map, Base { position: self.log.applied.position, chain: self.log.applied.chain })
    }

    /// Lets a replica go for good.
    pub(super) fn on_remove_replica(&mut self, id: AdminId, node: NodeId) {
        match self.why_not_remove(node) {
            Ok(index) => self.peers[index].presence = Presence::Leaving { id },
            Err(reason) => self.refuse_admin(id, reason),
        }
    }

    fn why_not_remove(&self, node: NodeId) -> Result<usize, String> {
        let index =
            self.peer_index(node).ok_or_else(|| format!("{node} is no other replica of the volume here"))?;
        let state = self.peers[index].link.as_ref().map(|link| link.state);
        let counts = self.counted().contains(node);
        if state.is_some_and(LinkState::is_target) {
            Err(format!(
                "{node} is the Primary that this replica follows: hand over first, with `holdfast demote` there and \
                 `holdfast promote` elsewhere, or with `holdfast cluster move`"
            ))
        } else if counts && self.is_managed() {
            Err(format!(
                "{node} is in the in-sync set: stop its replicator; the orchestrators take it out of the set when it \
                 does not follow, and then it can be let go"
            ))
        } else if counts && !self.role.is_serving() {
            Err(format!(
                "{node} is in the in-sync set as this replica knows it: reload the configuration where the volume is \
                 Primary first, which takes it out"
            ))
        } else if self.is_verifying() {
            Err(String::from(
                "a verify is under way: wait for its end, or end it with `holdfast verify --stop`",
            ))
        } else if self.is_growing() {
            Err(String::from("the volume is growing just now; ask again in a moment"))
        } else {
            Ok(index)
        }
    }

    /// Moves those that leave.
    pub(super) fn advance_replicas(&mut self) {
        for index in 0..self.peers.len() {
            if let Presence::Leaving { id } = self.peers[index].presence {
                self.advance_leaving(index, id);
            }
        }
    }

    fn advance_leaving(&mut self, index: usize, id: AdminId) {
        let node = self.peers[index].config.node;
        if self.counted().contains(node) {
            if !self.role.is_serving() {
                self.peers[index].presence = Presence::Present;
                return self.refuse_admin(id, format!("{node} stays: this node is no longer Primary"));
            }
            if self.record_change.is_none() {
                self.change_members(self.meta.saved.record.in_sync.without(node));
            }
            return;
        }
        if let Some(link) = &self.peers[index].link {
            if link.state != LinkState::Closing {
                self.refuse(Place::Peer(index), "it is no replica of this volume any more");
            }
            return;
        }
        let (config, tracker, now) = (self.peers[index].config, self.fresh_tracker(), self.now);
        self.peers[index] = Peer { presence: Presence::Gone, ..Peer::new(config, tracker, now) };
        self.config.peers.retain(|peer| peer.node != node);
        self.push(Command::Replicas);
        self.pushes.retain(|push| !push.is_for(index));
        self.report(Report::Peer { node, text: String::from("is no replica of the volume any more") });
        self.answer_admin(id, Ok(format!("{node} is no replica of the volume here any more")));
    }
}
