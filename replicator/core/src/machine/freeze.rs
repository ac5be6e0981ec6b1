//! Freezing: apply stops at one exact position, and what the disk then holds can be read while the journal goes on
//! taking what the Primary sends. A freeze has a budget of the ring; near it the replica thaws, so that it never
//! stalls the volume.
//!
//! ```text
//!         freeze-apply                  stored, and applied exactly to it
//! (none) --------------> Settling(limit) --------------------------------> Open
//!    ^                        |                                              |
//!    +--- thaw, the budget, a resync, a promotion; then it is stored <-------+
//! ```

use alloc::format;
use alloc::string::String;

use super::Machine;
use super::peer::LinkState;
use super::role::RoleState;
use crate::command::{Command, Report};
use crate::disk::superblock::DiskState;
use crate::event::FreezeAt;
use crate::status::FreezeStatus;
use crate::units::{AdminId, Position, Sequence};

/// What is under way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Freeze {
    /// The limit is being stored, or entries up to it are still being applied.
    Settling {
        /// Whom to answer; nobody after a restart.
        id: Option<AdminId>,
        /// Superblock sequence that holds the limit.
        saved: u64,
    },
    /// The disk holds what the volume held at the limit, and is served.
    Open,
}

impl Machine {
    /// Has apply stand still. One that does already may be moved on to a chosen position, never back.
    pub(super) fn on_freeze(&mut self, id: AdminId, at: FreezeAt) {
        let reason = if !matches!(self.role, RoleState::Secondary) {
            "only a Secondary can be frozen: it is Primary, or its role is changing"
        } else if self.freeze.is_some() && (at == FreezeAt::Here || !self.is_frozen_open()) {
            "it is frozen already; `holdfast thaw` ends that"
        } else if self.meta.current.disk_state != DiskState::UpToDate || self.is_resynced() {
            "the copy here is not UpToDate: wait for its resync"
        } else if self.discard.is_some() || self.meta.current.yields {
            "the data here is being given up"
        } else if self.apply_end() == Sequence(0) && at == FreezeAt::Here {
            "nothing was ever written to this replica"
        } else {
            return match self.freeze_limit(at) {
                Ok(limit) => self.begin_freeze(id, limit),
                Err(reason) => self.refuse_admin(id, reason),
            };
        };
        self.refuse_admin(id, reason);
    }

    fn begin_freeze(&mut self, id: AdminId, limit: Sequence) {
        if self.freeze.is_some() {
            self.push(Command::ServeFrozen { open: false });
        }
        self.meta.current.apply_limit = limit;
        self.meta.current.frozen_ms = self.wall_ms();
        let saved = self.meta.change();
        self.freeze = Some(Freeze::Settling { id: Some(id), saved });
    }

    /// The last entry that the disk is to show: one with which a frame ends, which the disk does not show anything beyond,
    /// and which nobody will cut.
    fn freeze_limit(&self, at: FreezeAt) -> Result<Sequence, String> {
        let (shown, sure) = (self.apply_end(), self.persist.durable_mark(&self.log).min(self.log.durable()));
        let position = |sequence| self.persist.history.position_of(sequence);
        let limit = match at {
            FreezeAt::Here => return Ok(shown),
            FreezeAt::Position(wanted) => {
                if wanted.sequence > self.log.last() || position(wanted.sequence) != wanted {
                    return Err(format!(
                        "the log here, which ends at {}, has no entry {wanted}",
                        self.log.head.position
                    ));
                }
                self.check_frame_end(wanted)?;
                wanted.sequence
            }
            FreezeAt::Time { ms } => self.last_closed_by(ms, sure)?,
        };
        if limit < shown {
            return Err(format!(
                "the disk here shows entries up to {} already: nothing older can be had",
                position(shown)
            ));
        }
        if limit > sure {
            return Err(self.not_sure(sure));
        }
        if limit == Sequence(0) {
            return Err(String::from("nothing was written by then"));
        }
        Ok(limit)
    }

    fn not_sure(&self, sure: Sequence) -> String {
        let sure = self.persist.history.position_of(sure);
        format!("only entries up to {sure} are known stable here; ask again in a moment")
    }

    fn is_following(&self) -> bool {
        let mut links = self.peers.iter().filter_map(|peer| peer.link.as_ref());
        links.any(|link| link.state == LinkState::Following)
    }

    /// Frames are applied as a whole.
    fn check_frame_end(&self, wanted: Position) -> Result<(), String> {
        let number = self.log.find(wanted.sequence).and_then(|number| self.log.frame(number));
        let Some(frame) = number.filter(|frame| frame.last() != wanted.sequence) else { return Ok(()) };
        let ends =
            [Sequence(frame.first.0 - 1), frame.last()].map(|end| self.persist.history.position_of(end));
        Err(format!(
            "entry {wanted} was written together with others, and they are applied together: choose {} or {}",
            ends[0], ends[1]
        ))
    }

    /// The last entry before the first one that was closed after that time, as far as entries are `sure`.
    fn last_closed_by(&self, ms: u64, sure: Sequence) -> Result<Sequence, String> {
        if self.wall_ms() > 0 && ms > self.wall_ms() {
            return Err(String::from("that time has not come, by the clock here"));
        }
        let log = &self.log;
        let unknown =
            "when entries were written is not known here; `holdfast status` names positions: choose one";
        if log.applied_ms > ms {
            let shown = log.applied.position;
            return Err(format!(
                "the disk here shows entries up to {shown} already, which is later than that"
            ));
        }
        let frames = (log.first_unapplied()..).map_while(|number| log.frame(number));
        let mut limit = (log.applied_ms > 0).then_some(log.applied.position.sequence);
        for frame in frames.filter(|frame| frame.entries > 0) {
            match frame.closed_ms {
                0 => return Err(String::from(unknown)),
                closed_ms if closed_ms > ms => return limit.ok_or_else(|| String::from(unknown)),
                _ if frame.last() > sure => return Err(self.not_sure(sure)),
                _ => limit = Some(frame.last()),
            }
        }
        if !self.is_following() {
            return Err(format!(
                "no primary is connected, and what was written by then may be missing here: the log here ends at {}; \
                 choose a position",
                log.head.position
            ));
        }
        limit.ok_or_else(|| String::from(unknown))
    }

    pub(super) fn on_thaw(&mut self, id: AdminId) {
        if self.freeze.is_none() {
            return self.refuse_admin(id, "it is not frozen");
        }
        self.thaw("an operator ended it");
        self.answer_admin(id, Ok(String::from("apply goes on; the frozen export has ended")));
    }

    /// Ends a freeze. Apply goes on when the superblock no longer has the limit: after a crash before that, the disk
    /// must still hold nothing beyond it.
    pub(super) fn thaw(&mut self, why: &str) {
        let Some(freeze) = self.freeze.take() else { return };
        if let Freeze::Settling { id: Some(id), .. } = freeze {
            self.refuse_admin(id, format!("the freeze ended before it began: {why}"));
        }
        self.meta.current.apply_limit = Sequence(0);
        self.meta.current.frozen_ms = 0;
        self.released = 0;
        self.meta.change();
        self.push(Command::ServeFrozen { open: false });
        self.report(Report::FreezeEnded(String::from(why)));
    }

    /// Opens what is settled; thaws when it must.
    pub(super) fn advance_freeze(&mut self) {
        let Some(freeze) = self.freeze else { return };
        let limit = self.meta.current.apply_limit;
        let (used, budget) = self.freeze_share();
        if used > budget {
            return self.thaw("its share of the journal is used up");
        }
        if self.is_resynced() {
            return self.thaw("this copy is being resynced");
        }
        if self.is_failed() {
            return self.thaw("a device failed");
        }
        if let Freeze::Settling { id, saved } = freeze {
            let at = self.log.applied.position.sequence;
            if self.meta.is_saved(saved) && at == limit && self.apply.is_idle() {
                self.freeze = Some(Freeze::Open);
                self.push(Command::ServeFrozen { open: true });
                let position = self.log.applied.position;
                self.report(Report::FreezeBegan(position));
                if let Some(id) = id {
                    let text = format!("apply is frozen at {position}; read it as the frozen export");
                    self.answer_admin(id, Ok(text));
                }
            }
        }
        if self.is_frozen_open() {
            self.release_waiting(self.log.first_unapplied());
        }
    }

    pub(super) fn is_frozen_open(&self) -> bool {
        matches!(self.freeze, Some(Freeze::Open))
    }

    /// Bytes of the ring that wait because of the freeze, and how many may.
    fn freeze_share(&self) -> (u64, u64) {
        let used = self.log.head.ring_offset.0 - self.log.applied.ring_offset.0;
        (used, self.log.layout.ring_bytes / 2)
    }

    pub(super) fn freeze_status(&self) -> Option<FreezeStatus> {
        self.freeze?;
        let (used_bytes, budget_bytes) = self.freeze_share();
        let limit = self.meta.current.apply_limit;
        let since_ms = self.meta.current.frozen_ms;
        Some(FreezeStatus {
            position: self.persist.history.position_of(limit),
            is_open: self.is_frozen_open(),
            since_ms: (since_ms > 0).then_some(since_ms),
            used_bytes,
            budget_bytes,
        })
    }
}
