//! The role: promotion with seals, demotion, stepping down, changes of the in-sync set, and the ordered stop.
//!
//! ```text
//!                promote                members sealed          record saved
//!   Secondary -----------> Sealing ------------------> Recording -----------> Opening
//!       ^  ^                  | refused, late                                    | epoch start stable,
//!       |  +------------------+                                                  v old tail applied
//!       |      stepped down, device failed (from Opening, Primary, Demoting)   Primary
//!       +----------------------------------------------------------+             | demote, stop
//!                                                                  +-- Demoting <+
//!   Secondary -- stop --> Stopping --> Stopped
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Machine;
use super::gather::Gathered;
use super::greet::Place;
use super::peer::LinkState;
use crate::command::{AdminError, Command, Report};
use crate::config::{OnPeerLoss, Protocol};
use crate::disk::superblock::{DiskState, Record};
use crate::frame::{Entry, EntryKind};
use crate::history::Reign;
use crate::limits::{ENTRIES_UNAPPLIED_MAX, FRAME_HEADER_BYTES};
use crate::units::{AdminId, Epoch, Instant, NodeId, NodeSet, ReignId, Sequence};
use crate::wire::message::{Message, Seal, Sealed};

/// How long a promotion waits for seals, a demotion for the members, a stop for everything.
const PATIENCE_MS: u64 = 5_000;

/// How long a peer that is refused counts as alive after its last word; it is dialed every few seconds.
const STAND_ALONE_MEMORY_MS: u64 = 15_000;

/// An attempt at promotion.
#[derive(Debug)]
pub(super) struct Attempt {
    id: AdminId,
    force: bool,
    reign: ReignId,
    epoch: Epoch,
    waiting: NodeSet,
    answers: Vec<(NodeId, Sealed)>,
    /// Superblock sequence that holds my own promise.
    saved: u64,
    deadline: Instant,
}

/// The role, with what is under way.
#[derive(Debug)]
pub(super) enum RoleState {
    /// Follows, or waits.
    Secondary,
    /// Asks the members for their promise.
    Sealing(Attempt),
    /// Stores that it is Primary.
    Recording {
        /// Whom to answer.
        id: AdminId,
        /// Superblock sequence that holds the record.
        saved: u64,
    },
    /// Its epoch start is under way; nobody is served yet.
    Opening {
        /// Whom to answer, until that is done.
        id: Option<AdminId>,
        /// The epoch start; `None` until it found its place in the ring.
        start: Option<Sequence>,
        /// When the operator is told that it takes long.
        deadline: Instant,
    },
    /// Serves.
    Primary,
    /// Serves nobody any more; brings the members level.
    Demoting {
        /// Whom to answer.
        id: AdminId,
        /// Whether to stop afterwards.
        stop: bool,
        /// Superblock sequence that holds the end of the reign, once it is written.
        saved: Option<u64>,
        deadline: Instant,
    },
    /// Brings its disks to rest.
    Stopping {
        /// Whom to answer.
        id: AdminId,
        /// Superblock sequence that says so.
        saved: Option<u64>,
        deadline: Instant,
    },
    /// At rest.
    Stopped,
}

impl RoleState {
    /// Whether this node's log grows by its own decision.
    pub(super) fn is_sequencing(&self) -> bool {
        matches!(self, Self::Opening { .. } | Self::Primary | Self::Demoting { .. })
    }

    pub(super) fn is_serving(&self) -> bool {
        matches!(self, Self::Primary)
    }

    pub(super) fn is_sealing(&self) -> bool {
        matches!(self, Self::Sealing(_))
    }

    pub(super) fn is_stopping(&self) -> bool {
        matches!(self, Self::Stopping { .. })
    }

    /// Whether syncs and marks should not wait for their intervals.
    pub(super) fn hurries(&self) -> bool {
        !matches!(self, Self::Secondary | Self::Primary | Self::Stopped)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Sealing(attempt) => Some(attempt.deadline),
            Self::Opening { deadline, id: Some(_), .. } => Some(*deadline),
            Self::Demoting { deadline, .. } | Self::Stopping { deadline, .. } => Some(*deadline),
            _ => None,
        }
    }
}

impl Machine {
    pub(super) fn answer_admin(&mut self, id: AdminId, result: Result<String, AdminError>) {
        self.push(Command::Answer { id, result });
    }

    pub(super) fn refuse_admin(&mut self, id: AdminId, reason: impl Into<String>) {
        self.answer_admin(id, Err(AdminError::Refused(reason.into())));
    }

    pub(super) fn on_promote(&mut self, id: AdminId, force: bool, reign: ReignId) {
        match self.role {
            RoleState::Primary => return self.answer_admin(id, Ok(String::from("it is Primary already"))),
            RoleState::Secondary => {}
            _ => return self.refuse_admin(id, "another change of role is under way; see `holdfast status`"),
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
        let reigns = self.role.is_sequencing() || matches!(self.role, RoleState::Recording { .. });
        let refused = reigns || self.is_failed() || seal.epoch <= self.meta.current.promised;
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
    fn answer_seals(&mut self) {
        if self.log.has_unwritten() || self.log.has_undurable() {
            return;
        }
        for (node, attempt, saved) in core::mem::take(&mut self.seal_answers) {
            if !self.meta.is_saved(saved) {
                self.seal_answers.push((node, attempt, saved));
                continue;
            }
            let index = self.peer_index(node).expect("a peer asked");
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

    /// Moves whatever change of role is under way.
    pub(super) fn advance_role(&mut self, arena: &mut [u8]) {
        self.answer_seals();
        self.advance_record();
        match &self.role {
            RoleState::Sealing(_) => self.advance_sealing(),
            RoleState::Recording { id, saved } if self.meta.is_saved(*saved) => {
                let (id, deadline) = (Some(*id), self.now.plus_ms(PATIENCE_MS));
                self.role = RoleState::Opening { id, start: None, deadline };
                self.greet_all();
                self.advance_opening(arena);
            }
            RoleState::Opening { .. } => self.advance_opening(arena),
            RoleState::Demoting { .. } => self.advance_demoting(),
            RoleState::Stopping { .. } => self.advance_stopping(),
            _ => {}
        }
    }

    fn advance_sealing(&mut self) {
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
                self.role = RoleState::Recording { id: attempt.id, saved };
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
            if answer.record.order() > record.order() {
                record = answer.record;
            }
            // A failed copy promises nothing any more, and takes nothing from anybody either: it has no veto.
            if answer.disk_state == DiskState::Failed {
                continue;
            }
            if !answer.granted {
                return refused(format!("{node} has promised epoch {} already; try again", answer.promised));
            }
            if answer.applied > self.log.last() {
                return refused(format!(
                    "{node} has applied entries up to {}, this replica ends at {}: promote {node}",
                    answer.applied,
                    self.log.last()
                ));
            }
        }
        let usable = |answer: &Sealed| answer.disk_state == DiskState::UpToDate && !answer.suspect;
        if !attempt.force {
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
        let better = attempt.answers.iter().find(|(node, answer)| {
            let more = answer.proven || answer.head.position > self.log.head.position;
            record.in_sync.contains(*node)
                && usable(answer)
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
            if record.in_sync.contains(*node) && usable(answer) {
                in_sync = in_sync.with(*node);
            }
        }
        let primary = Some(self.config.node);
        Ok(Record { epoch: attempt.epoch, version: 1, primary, reign: attempt.reign, in_sync })
    }

    fn advance_opening(&mut self, arena: &mut [u8]) {
        let RoleState::Opening { id, start, deadline } = self.role else { return };
        let Some(start) = start else {
            let start = self.open_epoch(arena);
            self.role = RoleState::Opening { id, start, deadline };
            return;
        };
        let applied = self.log.applied.position.sequence;
        let ready = self.stable >= start
            && applied >= self.recovered_end
            && self.log.unapplied_entries() <= ENTRIES_UNAPPLIED_MAX / 2;
        if ready {
            self.overlay.clear();
            self.overlay_through = applied;
            self.role = RoleState::Primary;
            if !self.meta.current.proven {
                self.meta.current.proven = true;
                self.meta.change();
            }
            let record = self.meta.saved.record;
            self.report(Report::Role(format!("Primary in epoch {}", record.epoch)));
            self.push(Command::Serve { open: true });
            if let Some(id) = id {
                self.answer_admin(id, Ok(format!("Primary in epoch {}", record.epoch)));
            }
        } else if let (Some(id), true) = (id, self.now >= deadline) {
            let text = format!("it is Primary, but I/O waits: {}", self.why_opening(applied));
            self.refuse_admin(id, text);
            self.role = RoleState::Opening { id: None, start: Some(start), deadline };
        }
    }

    /// What a reign that has begun still lacks to serve clients.
    fn why_opening(&self, applied: Sequence) -> String {
        if self.apply.waits_for_space() {
            return String::from("the disk here has no space for the rest of the log; free some");
        }
        let absent = self.counted().iter().find(|node| !self.is_streaming_to(*node));
        let peer = self.peers.iter().find(|peer| Some(peer.config.node) == absent);
        match (absent, peer.and_then(|peer| peer.standalone.as_ref())) {
            (Some(node), Some(reason)) => format!("{node} of the in-sync set is refused: {reason}"),
            (Some(node), None) => format!(
                "{node} of the in-sync set does not answer: bring it back, or `holdfast shrink` the set"
            ),
            (None, _) if applied < self.recovered_end => {
                String::from("the rest of the log is still being written to the disk here")
            }
            (None, _) => String::from("the members have not stored the start of the reign yet"),
        }
    }

    /// Appends the entry that begins the reign; `None` if there is no memory for it yet.
    fn open_epoch(&mut self, arena: &mut [u8]) -> Option<Sequence> {
        let record = self.meta.saved.record;
        let tail = self.meta.saved.tail.ring_offset;
        self.log.place(tail, FRAME_HEADER_BYTES as u64, true)?;
        let buffer = self.pool.take(FRAME_HEADER_BYTES)?;
        let first = self.log.last().next();
        let chain_before = self.log.head.chain;
        self.meta.current.reign_ms = self.wall_ms();
        self.persist.history.push(Reign { epoch: record.epoch, reign: record.reign, first, chain_before });
        let (kind, fua, payload_crc) = (EntryKind::EpochStart, true, 0);
        let entry = Entry { kind, fua, payload_crc, offset: 0, length: 0, payload_at: 0 };
        self.append(buffer, &[Gathered { entry, request: None }], true, arena);
        Some(first)
    }

    pub(super) fn on_demote(&mut self, id: AdminId) {
        if !self.role.is_sequencing() || matches!(self.role, RoleState::Demoting { .. }) {
            return self.refuse_admin(id, "it is not Primary");
        }
        self.begin_demotion(id, false);
    }

    fn begin_demotion(&mut self, id: AdminId, stop: bool) {
        if let RoleState::Opening { id: Some(waiting), .. } = self.role {
            self.refuse_admin(waiting, "demoted meanwhile");
        }
        self.push(Command::Serve { open: false });
        self.drop_gathered();
        let deadline = self.now.plus_ms(PATIENCE_MS);
        self.role = RoleState::Demoting { id, stop, saved: None, deadline };
    }

    fn advance_demoting(&mut self) {
        let RoleState::Demoting { id, stop, saved, deadline } = self.role else { return };
        if let Some(saved) = saved {
            if self.meta.is_saved(saved) {
                self.report(Report::Role(String::from("Secondary")));
                self.leave_primary();
            }
            return;
        }
        let (last, told) = (self.log.last(), (self.committed, self.stable));
        let links = self.peers.iter().filter_map(super::peer::Peer::streaming);
        let level =
            self.stable >= last && links.into_iter().all(|link| link.told == told && link.is_level(last));
        let alone = self.counted().iter().any(|node| !self.is_streaming_to(node));
        if self.record_change.is_none() && (level || alone || self.now >= deadline) {
            let record = self.meta.current.record;
            self.meta.current.record = Record { version: record.version + 1, primary: None, ..record };
            let saved = Some(self.meta.change());
            self.role = RoleState::Demoting { id, stop, saved, deadline };
        }
    }

    pub(super) fn is_streaming_to(&self, node: NodeId) -> bool {
        node == self.config.node
            || self.peers.iter().any(|peer| peer.config.node == node && peer.streaming().is_some())
    }

    /// Ends the reign here, at once: what waits is told that nobody serves.
    pub(super) fn leave_primary(&mut self) {
        let sequencing = self.role.is_sequencing();
        let demotion = match self.role {
            RoleState::Demoting { id, stop, .. } => Some((id, stop)),
            _ => None,
        };
        if let RoleState::Sealing(Attempt { id, .. })
        | RoleState::Recording { id, .. }
        | RoleState::Opening { id: Some(id), .. } = self.role
        {
            self.refuse_admin(id, "it ended before it was Primary; see the log");
        }
        if self.role.is_serving() {
            self.push(Command::Serve { open: false });
        }
        if sequencing || self.role.hurries() {
            self.role = RoleState::Secondary;
        }
        if let Some(id) = self.shrink_answer.take() {
            self.refuse_admin(id, "it is no longer Primary; see `holdfast status` for the in-sync set");
        }
        if sequencing {
            self.fail_waiting();
            self.overlay.clear();
            self.frozen = None;
            self.record_change = None;
            self.peers.iter_mut().for_each(|peer| peer.pending = false);
            self.greet_all();
        }
        // However the reign ended, it ended: who asked for that is answered.
        match demotion {
            Some((id, true)) => self.on_stop(id),
            Some((id, false)) => self.answer_admin(id, Ok(String::from("Secondary"))),
            None => {}
        }
    }

    pub(super) fn on_stop(&mut self, id: AdminId) {
        if self.role.is_sequencing() && !matches!(self.role, RoleState::Demoting { .. }) {
            return self.begin_demotion(id, true);
        }
        self.leave_primary();
        for index in 0..self.peers.len() {
            if self.peers[index].link.is_some() {
                self.close(Place::Peer(index), "this node stops", false);
            }
        }
        let deadline = self.now.plus_ms(PATIENCE_MS);
        self.role = RoleState::Stopping { id, saved: None, deadline };
    }

    fn advance_stopping(&mut self) {
        let RoleState::Stopping { id, saved, deadline } = self.role else { return };
        let late = self.now >= deadline;
        if let Some(saved) = saved {
            if self.meta.is_saved(saved) || late {
                self.role = RoleState::Stopped;
                self.answer_admin(id, Ok(String::from("stopped")));
                self.push(Command::Stopped);
            }
            return;
        }
        let still = !self.log.has_unwritten() && !self.log.has_undurable() && self.apply.is_idle();
        let bound = self.stable.min(self.log.last());
        let limit = Some(self.meta.current.apply_limit).filter(|limit| *limit > Sequence(0));
        let applied = self.log.applied.position.sequence >= limit.map_or(bound, |limit| limit.min(bound));
        let at_rest = still && applied && self.is_checkpointed() && self.meta.is_idle();
        if at_rest || late || self.is_failed() || self.apply.waits_for_space() {
            self.meta.current.clean = at_rest;
            let saved = Some(self.meta.change());
            self.role = RoleState::Stopping { id, saved, deadline };
        }
    }

    pub(super) fn on_shrink(&mut self, id: AdminId, node: NodeId) {
        let record = self.meta.saved.record;
        if !self.role.is_sequencing() {
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
    fn change_members(&mut self, in_sync: NodeSet) {
        assert!(self.record_change.is_none(), "one change of the record at a time");
        assert!(in_sync.contains(self.config.node), "the Primary is a member");
        let record = self.meta.current.record;
        self.meta.current.record = Record { version: record.version + 1, in_sync, ..record };
        self.record_change = Some(self.meta.change());
    }

    /// Settles changes of the in-sync set: finishes the one under way, then shrinks, then grows.
    fn advance_record(&mut self) {
        if !self.role.is_sequencing() {
            return;
        }
        if self.record_change.is_some_and(|saved| self.meta.is_saved(saved)) {
            self.record_change = None;
            self.publish_record();
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
        for peer in &mut self.peers {
            peer.pending &= !record.in_sync.contains(peer.config.node);
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
        if !self.role.is_sequencing() || self.config.on_peer_loss != OnPeerLoss::Continue {
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

    /// Takes in a replica that has everything, durably where others have it durably.
    fn grow(&mut self) {
        let record = self.meta.saved.record;
        let (committed, stable) = (self.committed, self.stable);
        let ready = self.peers.iter_mut().find(|peer| {
            let level = peer
                .streaming()
                .is_some_and(|link| link.ack.journaled >= committed && link.ack.durable >= stable);
            let whole = peer.link.as_ref().is_some_and(|link| link.resync.is_none());
            let wanted = peer.config.protocol != Protocol::A;
            !record.in_sync.contains(peer.config.node) && wanted && level && whole
        });
        if let Some(peer) = ready {
            peer.pending = true;
            let in_sync = record.in_sync.with(peer.config.node);
            self.change_members(in_sync);
        }
    }

    /// Says so when I/O waits for a member, and when it goes on.
    fn note_frozen(&mut self) {
        if !self.role.is_serving() {
            return;
        }
        let missing = self.counted().iter().find(|node| !self.is_streaming_to(*node));
        match (missing, &self.frozen) {
            (Some(node), None) => {
                let text = format!("waiting for {node}, a member of the in-sync set that is not connected");
                self.frozen = Some(text.clone());
                self.report(Report::Frozen(text));
            }
            (None, Some(_)) => {
                self.frozen = None;
                self.report(Report::Thawed);
            }
            _ => {}
        }
    }

    /// Whether the peer said that what it has past the common point of a fork was given up.
    fn yields(&self, node: NodeId) -> bool {
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
        let newest = hellos.max_by_key(Record::order);
        // By its record a replica knows who was asked before the end of its log was answered. Until that end is stable
        // it forgets this for no set with strangers in it: they would have it cut.
        let mine = self.meta.current.record;
        let settled = mine.epoch == Epoch(0) || self.log.last() <= self.stable;
        let knows_all = |record: &Record| record.in_sync.iter().all(|node| mine.in_sync.contains(node));
        let learns = |record: &Record| record.order() > mine.order() && (settled || knows_all(record));
        if let Some(record) = newest.filter(learns) {
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

fn needs_word(node: NodeId) -> AdminError {
    AdminError::NeedsForce(format!(
        "{node} is a member of the in-sync set and does not answer: if it is surely dead or cut off for good, use \
         --force. In protocol C every write acknowledged while this replica was in the set is here; whether others \
         took it out of the set and went on, it cannot know"
    ))
}
