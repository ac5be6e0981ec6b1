//! Discarding: an operator says that the data here may go, and the copy is written anew by whoever is, or becomes,
//! Primary. That is how the loser of a split brain comes back, and a copy that is no longer believed.

use alloc::string::String;

use super::Machine;
use super::apply::give_back;
use super::role::RoleState;
use crate::disk::superblock::{DiskState, Record};
use crate::tracker::Base;
use crate::units::{AdminId, Position};

/// What is under way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Discard {
    /// I/O that is under way has to end first.
    Waiting(AdminId),
    /// The superblock with this sequence says it.
    Saving(AdminId, u64),
}

impl Machine {
    pub(super) fn on_invalidate(&mut self, id: AdminId) {
        let reason = if !matches!(self.role, RoleState::Secondary) {
            "it is Primary, or its role is changing: demote it first, and promote the replica whose data stays"
        } else if self.discard.is_some() {
            "its data is being discarded already"
        } else if self.is_branching() {
            "a branch of its data is being kept, and then it follows: see `holdfast status`"
        } else if self.has_failed {
            "a device failed since the replicator started: see to the device, restart the replicator, then try again"
        } else {
            self.close_all("the data here is discarded");
            self.thaw("the data here is discarded");
            self.resolve = None;
            self.discard = Some(Discard::Waiting(id));
            return;
        };
        self.refuse_admin(id, reason);
    }

    /// Discards when nothing is under way. The log is empty then, and knows no reign; promises stay promises.
    pub(super) fn advance_discard(&mut self) {
        match self.discard {
            Some(Discard::Waiting(id)) if self.has_failed => {
                self.discard = None;
                self.refuse_admin(
                    id,
                    "a device failed meanwhile: see to it, restart the replicator, then try again",
                );
            }
            Some(Discard::Waiting(id)) if self.is_at_rest() => {
                let chain = crate::chain::genesis(self.config.volume);
                let Self { log, pool, apply, .. } = self;
                log.forget(|buffer| give_back(pool, apply, buffer));
                self.restart_log(Base { position: Position::default(), chain });
                let current = &mut self.meta.current;
                (current.disk_state, current.data_base) = (DiskState::Inconsistent, None);
                current.discards += 1;
                (current.yields, current.diverges) = (false, false);
                self.diverged = None;
                let current = &mut self.meta.current;
                current.record = Record { in_sync: current.record.in_sync, ..Record::default() };
                self.discard = Some(Discard::Saving(id, self.meta.change()));
            }
            Some(Discard::Saving(id, saved)) if self.meta.is_saved(saved) => {
                self.discard = None;
                let text = "the data here is discarded; it is written anew when a Primary is connected";
                self.answer_admin(id, Ok(String::from(text)));
            }
            _ => {}
        }
    }

    pub(super) fn is_at_rest(&self) -> bool {
        let log = !self.log.has_unwritten() && !self.log.has_undurable() && self.meta.is_idle();
        let io = self.apply.is_idle() && self.checkpoint.is_idle() && !self.persist.is_syncing();
        let links = self.peers.iter().all(|peer| peer.link.is_none()) && self.spare_links.is_empty();
        log && io
            && links
            && self.placing.is_none()
            && self.mending.is_none()
            && self.mends.is_empty()
            && !self.visit_sync
            && self.drain_sync.is_none()
            && self.intake_sync.is_none()
            && self.stage_io.is_idle()
            && self.replay.is_none()
    }
}
