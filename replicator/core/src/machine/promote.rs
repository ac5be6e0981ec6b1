//! Promotion by an operator: the members' promises, and the record that follows from them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Machine;
use super::greet::Place;
use super::peer::LinkState;
use super::role::{PATIENCE_MS, RoleState};
use crate::command::AdminError;
use crate::disk::superblock::{DiskState, Record};
use crate::units::{AdminId, Epoch, Instant, NodeId, NodeSet, ReignId};
use crate::wire::message::{Message, Seal, Sealed};

/// How long a peer that is refused counts as alive after its last word; it is dialed every few seconds.
const STAND_ALONE_MEMORY_MS: u64 = 15_000;

/// An attempt at promotion.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) id: AdminId,
    force: bool,
    reign: ReignId,
    epoch: Epoch,
    waiting: NodeSet,
    answers: Vec<(NodeId, Sealed)>,
    /// Superblock sequence that holds my own promise.
    saved: u64,
    pub(super) deadline: Instant,
}

impl Machine {
    pub(super) fn on_promote(&mut self, id: AdminId, force: bool, reign: ReignId) {
        match self.role {
            RoleState::Primary => return self.answer_admin(id, Ok(String::from("it is Primary already"))),
            RoleState::Secondary => {}
            _ => return self.refuse_admin(id, "another change of role is under way; see `holdfast status`"),
        }
        if self.config.managed && !force {
            let text = "an orchestrator decides who is Primary of this volume";
            return self.answer_admin(id, Err(AdminError::Managed(String::from(text))));
        }
        if let Err(error) = self.may_promote(force) {
            return self.answer_admin(id, Err(error));
        }
        self.thaw("this replica is being promoted");
        if self.meta.current.yields {
            self.meta.current.yields = false;
            self.resolve = None;
        }
        let hellos = self.peers.iter().filter_map(|peer| peer.link.as_ref()?.hello.as_ref());
        let seen = hellos.map(|hello| hello.promised.max(hello.record.epoch)).max().unwrap_or_default();
        let epoch = seen.max(self.meta.current.promised).next();
        self.promise(epoch, None);
        let saved = self.meta.change();
        let mut waiting = NodeSet(0);
        let attempt = epoch.0 << 8 | u64::from(self.config.node.0);
        for index in 0..self.peers.len() {
            if self.peers[index].link.as_ref().is_some_and(|link| link.state == LinkState::Idle) {
                waiting = waiting.with(self.peers[index].config.node);
                self.send(Place::Peer(index), Message::Seal(Seal { attempt, epoch }), false);
            }
        }
        let (answers, deadline) = (Vec::new(), self.now.plus_ms(PATIENCE_MS));
        self.role =
            RoleState::Sealing(Attempt { id, force, reign, epoch, waiting, answers, saved, deadline });
    }

    /// Whether this replica may become Primary, as far as it can tell alone.
    fn may_promote(&self, force: bool) -> Result<(), AdminError> {
        let current = &self.meta.current;
        if current.disk_state != DiskState::UpToDate || current.suspect {
            let suspect = if current.suspect { " and suspect" } else { "" };
            let text = format!("the copy here is {}{suspect}: promote another replica", current.disk_state);
            return Err(AdminError::Refused(text));
        }
        if current.yields && (!force || self.is_branching()) {
            let text = "what this copy has past the common point of a fork is given up: promote the other one; as long as \
                        no branch is being kept, --force takes that back";
            return Err(AdminError::Refused(String::from(text)));
        }
        for peer in &self.peers {
            // One that is refused says hello again and again, on connections that end at once.
            let recent = |at: Instant| at.plus_ms(STAND_ALONE_MEMORY_MS) > self.now;
            if peer.standalone.is_some() && peer.seen_primary.is_some_and(recent) {
                let text = format!(
                    "{} is Primary and answers, though the two replicas refuse each other: demote or stop it there first",
                    peer.config.node
                );
                return Err(AdminError::Refused(text));
            }
            let connected = peer.link.as_ref().filter(|link| link.state != LinkState::Closing);
            if connected.and_then(|link| link.hello.as_ref()).is_some_and(|hello| hello.primary) {
                let text = format!(
                    "{} is Primary and connected: demote it there first; if it is dead, its connection ends within \
                     {} ms, then try again",
                    peer.config.node, self.config.peer_timeout_ms
                );
                return Err(AdminError::Refused(text));
            }
        }
        if force {
            return Ok(());
        }
        let members = self.meta.saved.record.in_sync;
        if !members.contains(self.config.node) {
            let text = "this replica is not in the in-sync set: it may lack acknowledged writes; promote a member, or \
                        use --force to go on without them";
            return Err(AdminError::NeedsForce(String::from(text)));
        }
        let idle = |node| {
            let peer = self.peers.iter().find(|peer| peer.config.node == node);
            peer.and_then(|peer| peer.link.as_ref()).is_some_and(|link| link.state == LinkState::Idle)
        };
        match members.iter().find(|node| *node != self.config.node && !idle(*node)) {
            Some(node) => Err(needs_word(node)),
            None => Ok(()),
        }
    }

    /// Promises an epoch: no stream but that of `except` is followed from here on.
    pub(super) fn promise(&mut self, epoch: Epoch, except: Option<usize>) {
        assert!(epoch >= self.meta.current.promised, "promises grow");
        self.meta.current.promised = epoch;
        for index in (0..self.peers.len()).filter(|index| Some(*index) != except) {
            let state = self.peers[index].link.as_ref().map(|link| link.state);
            if state.is_some_and(LinkState::is_target) {
                self.close(Place::Peer(index), &format!("this replica has promised epoch {epoch}"), true);
            }
        }
    }

    pub(super) fn on_seal(&mut self, index: usize, seal: Seal) {
        // A reign that is being stored begins: its epoch is promised, and none above it.
        let refused = self.reigns() || self.is_failed() || seal.epoch <= self.meta.current.promised;
        if refused {
            self.send_sealed(index, seal.attempt, false);
            return;
        }
        self.promise(seal.epoch, None);
        self.persist.want_sync(self.log.last());
        let saved = self.meta.change();
        self.seal_answers.push((self.peers[index].config.node, seal.attempt, saved));
    }

    fn send_sealed(&mut self, index: usize, attempt: u64, granted: bool) {
        let saved = &self.meta.saved;
        let sealed = Sealed {
            attempt,
            granted,
            promised: saved.promised.max(self.meta.current.promised),
            record: saved.record,
            disk_state: self.meta.current.disk_state,
            proven: saved.proven,
            suspect: self.meta.current.suspect,
            head: self.log.head,
            applied: self.log.applied.position.sequence,
        };
        self.send(Place::Peer(index), Message::Sealed(sealed), false);
    }

    /// Answers the seals whose promise is stored, when nothing is in flight and the journal is synced.
    pub(super) fn answer_seals(&mut self) {
        if self.log.has_unwritten() || self.log.has_undurable() {
            return;
        }
        for (node, attempt, saved) in core::mem::take(&mut self.seal_answers) {
            if !self.meta.is_saved(saved) {
                self.seal_answers.push((node, attempt, saved));
                continue;
            }
            // Whoever asked may have been let go meanwhile.
            let Some(index) = self.peer_index(node) else { continue };
            if self.peers[index].link.as_ref().is_some_and(|link| link.state == LinkState::Idle) {
                self.send_sealed(index, attempt, true);
            }
        }
    }

    pub(super) fn on_sealed(&mut self, index: usize, sealed: &Sealed) {
        let node = self.peers[index].config.node;
        let RoleState::Sealing(attempt) = &mut self.role else { return };
        if sealed.attempt == attempt.epoch.0 << 8 | u64::from(self.config.node.0)
            && attempt.waiting.contains(node)
        {
            attempt.waiting = attempt.waiting.without(node);
            attempt.answers.push((node, *sealed));
        }
    }

    /// A connection ended: a promotion no longer waits for that peer.
    pub(super) fn role_link_lost(&mut self, node: NodeId) {
        if let RoleState::Sealing(attempt) = &mut self.role {
            attempt.waiting = attempt.waiting.without(node);
        }
    }

    pub(super) fn advance_sealing(&mut self) {
        let drained = !self.log.has_unwritten() && !self.log.has_undurable();
        let RoleState::Sealing(attempt) = &self.role else { return };
        let ready = attempt.waiting.is_empty() && drained && self.meta.is_saved(attempt.saved);
        if !ready && self.now < attempt.deadline {
            return;
        }
        let RoleState::Sealing(attempt) = core::mem::replace(&mut self.role, RoleState::Secondary) else {
            unreachable!("looked at above");
        };
        if !ready {
            let text = format!("the replicas did not answer within {PATIENCE_MS} ms; nothing was changed");
            return self.refuse_admin(attempt.id, text);
        }
        match self.elect(&attempt) {
            Ok(record) => {
                let current = &mut self.meta.current;
                current.record = record;
                if attempt.force || !current.proven {
                    // A client's session may not go on as if nothing had been lost.
                    current.export_generation += 1;
                }
                let saved = self.meta.change();
                self.is_forced = self.config.managed;
                self.role = RoleState::Recording { id: Some(attempt.id), saved };
            }
            Err(error) => self.answer_admin(attempt.id, Err(error)),
        }
    }

    /// The record of the new reign, if the answers allow one.
    fn elect(&self, attempt: &Attempt) -> Result<Record, AdminError> {
        let refused = |text| Err(AdminError::Refused(text));
        let current = &self.meta.current;
        // A stream of this very epoch may have begun here, too, before this attempt did.
        if current.promised != attempt.epoch || current.record.epoch >= attempt.epoch {
            return refused(String::from("another promotion began meanwhile; nothing was changed"));
        }
        let mut record = self.meta.saved.record;
        for (node, answer) in &attempt.answers {
            if self.yields(*node) && answer.granted {
                // What it has and knows past the common point was given up.
                continue;
            }
            if answer.record.is_later_than(&record) {
                record = answer.record;
            }
            // A failed copy promises nothing any more, and takes nothing from anybody either: it has no veto.
            if answer.disk_state == DiskState::Failed {
                continue;
            }
            if !answer.granted {
                return refused(format!("{node} has promised epoch {} already; try again", answer.promised));
            }
            // By force, nor has one that is not whole: it cannot be promoted itself.
            let is_whole = answer.disk_state != DiskState::Inconsistent;
            if answer.applied > self.log.last() && (is_whole || !attempt.force) {
                return refused(format!(
                    "{node} has applied entries up to {}, this replica ends at {}: promote {node}",
                    answer.applied,
                    self.log.last()
                ));
            }
        }
        let usable = |answer: &Sealed| answer.disk_state == DiskState::UpToDate && !answer.suspect;
        if !attempt.force {
            if let Some((node, _)) =
                attempt.answers.iter().find(|(_, answer)| answer.record.is_of_rival(&record))
            {
                return Err(AdminError::NeedsForce(format!(
                    "split brain: epoch {} was opened twice, by two promotions, and {node} followed the other one; promote \
                     the side that is to stay with --force",
                    record.epoch
                )));
            }
            let me = self.config.node;
            let sealed =
                |node: NodeId| attempt.answers.iter().any(|(other, answer)| *other == node && answer.granted);
            if !record.in_sync.contains(me) {
                let text = "a connected replica knows a newer in-sync set, without this one; promote a member of it, or \
                            use --force";
                return Err(AdminError::NeedsForce(String::from(text)));
            }
            if let Some(node) = record.in_sync.iter().find(|node| *node != me && !sealed(*node)) {
                return Err(needs_word(node));
            }
        }
        // Members first, then proven ones, then the longest log; a connected better one is never passed over, force
        // or not. Who was taken out of the set lacks writes since, however proven it was before.
        let is_member = record.in_sync.contains(self.config.node);
        // What is applied anywhere, every member has: one that lacks it has lost what it promised.
        let applied = self.log.applied.position.sequence;
        let keeps = |answer: &Sealed| answer.head.position.sequence >= applied;
        // Who gives up what it has follows nobody before it is told what changed here, which only a Primary that serves
        // does: as a member it would be waited for, and wait.
        let stays = |node: NodeId| !self.yields(node);
        let better = attempt.answers.iter().find(|(node, answer)| {
            let more = answer.proven || answer.head.position > self.log.head.position;
            record.in_sync.contains(*node)
                && stays(*node)
                && usable(answer)
                && keeps(answer)
                && (!is_member || (more && !self.meta.saved.proven))
        });
        if let Some((node, _)) = better {
            return refused(if is_member {
                format!(
                    "this replica may have lost what it had in memory, and {node} has more: promote {node}"
                )
            } else {
                format!("this replica was taken out of the in-sync set, and {node} is in it: promote {node}")
            });
        }
        let mut in_sync = NodeSet::only(self.config.node);
        for (node, answer) in &attempt.answers {
            if record.in_sync.contains(*node) && stays(*node) && usable(answer) && keeps(answer) {
                in_sync = in_sync.with(*node);
            }
        }
        let primary = Some(self.config.node);
        Ok(Record { epoch: attempt.epoch, version: 1, primary, reign: attempt.reign, in_sync })
    }
}

fn needs_word(node: NodeId) -> AdminError {
    AdminError::NeedsForce(format!(
        "{node} is a member of the in-sync set and does not answer: if it is surely dead or cut off for good, use \
         --force. In protocol C every write acknowledged while this replica was in the set is here; whether others \
         took it out of the set and went on, it cannot know"
    ))
}
