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
use super::apply::give_back;
use super::role::RoleState;
use crate::command::{Command, Report};
use crate::disk::superblock::DiskState;
use crate::status::FreezeStatus;
use crate::units::{AdminId, Sequence};

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
    pub(super) fn on_freeze(&mut self, id: AdminId) {
        let limit = self.apply_end();
        let resyncs = self.peers.iter().filter_map(|peer| peer.link.as_ref()).any(|link| link.plan.is_some());
        let reason = if !matches!(self.role, RoleState::Secondary) {
            "only a Secondary can be frozen: it is Primary, or its role is changing"
        } else if self.freeze.is_some() {
            "it is frozen already; `holdfast thaw` ends that"
        } else if self.meta.current.disk_state != DiskState::UpToDate || resyncs {
            "the copy here is not UpToDate: wait for its resync"
        } else if self.discard.is_some() || self.meta.current.yields {
            "the data here is being given up"
        } else if limit == Sequence(0) {
            "nothing was ever written to this replica"
        } else {
            self.meta.current.apply_limit = limit;
            self.meta.current.frozen_ms = self.wall_ms();
            let saved = self.meta.change();
            self.freeze = Some(Freeze::Settling { id: Some(id), saved });
            return;
        };
        self.refuse_admin(id, reason);
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
        self.frozen_released = 0;
        self.meta.change();
        self.push(Command::ServeFrozen { open: false });
        self.report(Report::FreezeEnded(String::from(why)));
    }

    /// Opens what is settled; thaws when it must.
    pub(super) fn advance_freeze(&mut self) {
        let Some(freeze) = self.freeze else { return };
        let limit = self.meta.current.apply_limit;
        let (used, budget) = self.freeze_share();
        let resyncs = self.peers.iter().filter_map(|peer| peer.link.as_ref()).any(|link| link.plan.is_some());
        if used > budget {
            return self.thaw("its share of the journal is used up");
        }
        if resyncs {
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
            self.release_frozen();
        }
    }

    /// Frames beyond the limit lie in the journal; the memory they came in is others' again.
    fn release_frozen(&mut self) {
        let Self { log, pool, apply, .. } = self;
        let from = self.frozen_released;
        let to = log.release_journaled(from, |buffer| give_back(pool, apply, buffer));
        if to > from {
            self.frozen_released = to;
            // Until all of it is applied, not everything unapplied is in memory.
            self.recovered_end = self.recovered_end.max(self.log.journaled());
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
