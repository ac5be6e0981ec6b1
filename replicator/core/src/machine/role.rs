//! The role: opening a reign, demotion, stepping down, and the ordered stop. What leads to a reign is in
//! [`promote`](super::promote), who is in sync in [`members`](super::members).
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

use super::Machine;
use super::gather::Gathered;
use super::greet::Place;
use super::promote::Attempt;
use crate::command::{AdminError, Command, Report};
use crate::disk::superblock::Record;
use crate::frame::{Entry, EntryKind};
use crate::history::Reign;
use crate::limits::{ENTRIES_UNAPPLIED_MAX, FRAME_HEADER_BYTES};
use crate::units::{AdminId, Instant, NodeId, Sequence};

/// How long a promotion waits for seals, a demotion for the members, a stop for everything.
pub(super) const PATIENCE_MS: u64 = 5_000;

/// The role, with what is under way.
#[derive(Debug)]
pub(super) enum RoleState {
    /// Follows, or waits.
    Secondary,
    /// Asks the members for their promise.
    Sealing(Attempt),
    /// Stores that it is Primary.
    Recording {
        /// Whom to answer when it serves.
        id: Option<AdminId>,
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

    /// Moves whatever change of role is under way.
    pub(super) fn advance_role(&mut self, arena: &mut [u8]) {
        self.answer_seals();
        self.answer_confirmations();
        self.advance_record();
        match &self.role {
            RoleState::Sealing(_) => self.advance_sealing(),
            RoleState::Recording { id, saved } if self.meta.is_saved(*saved) => {
                let (id, deadline) = (*id, self.now.plus_ms(PATIENCE_MS));
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
            && self.log.unapplied_entries() <= ENTRIES_UNAPPLIED_MAX / 2
            // Clients that saw the new size must not find the old one.
            && !self.is_growing();
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
        self.ring_place(FRAME_HEADER_BYTES as u64, true)?;
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
            // A record that is agreed on elsewhere changes there.
            if !self.is_managed() {
                self.meta.current.record = Record { version: record.version + 1, primary: None, ..record };
            }
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
        | RoleState::Recording { id: Some(id), .. }
        | RoleState::Opening { id: Some(id), .. } = self.role
        {
            self.refuse_admin(id, "it ended before it was Primary; see the log");
        }
        if self.role.is_serving() {
            self.push(Command::Serve { open: false });
        }
        if sequencing || (self.role.hurries() && !self.role.is_stopping()) {
            self.role = RoleState::Secondary;
        }
        if let Some(id) = self.shrink_answer.take() {
            self.refuse_admin(id, "it is no longer Primary; see `holdfast status` for the in-sync set");
        }
        self.void_lease();
        self.is_forced = false;
        if sequencing {
            self.fail_waiting();
            self.end_mends();
            self.end_growing(
                "this node is no longer Primary; `holdfast status` there says which size the volume has",
            );
            self.interrupt_verify("this node is no longer Primary");
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
        if matches!(self.role, RoleState::Stopping { .. } | RoleState::Demoting { stop: true, .. }) {
            return self.refuse_admin(id, "it stops already");
        }
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
        let bound = self.delay_bound().map_or(bound, |waits| waits.min(bound));
        let limit = Some(self.meta.current.apply_limit).filter(|limit| *limit > Sequence(0));
        let applied = self.log.applied.position.sequence >= limit.map_or(bound, |limit| limit.min(bound));
        let at_rest = still && applied && self.is_checkpointed() && self.meta.is_idle();
        if at_rest || late || self.is_failed() || self.apply.waits_for_space() {
            self.meta.current.clean = at_rest;
            let saved = Some(self.meta.change());
            self.role = RoleState::Stopping { id, saved, deadline };
        }
    }
}
