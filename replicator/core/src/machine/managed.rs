//! What a configuration manager asks of a replica: a seal, a reign, the record as it was committed, the end of a reign.
//! It decides who writes and who is in sync; a Primary only makes replicas pending and says what it wishes. A replica
//! without one is its operator's, see [`promote`](super::promote).

use alloc::format;
use alloc::string::String;

use super::Machine;
use super::role::RoleState;
use crate::command::{AdminError, Report};
use crate::disk::superblock::{DiskState, Record};
use crate::event::{AdminAction, Reign};
use crate::status::Wish;
use crate::units::{AdminId, Epoch, NodeId, NodeSet};

/// Where the configuration manager's count of broken sessions stands in an export generation. What is counted here
/// stays below.
const GENERATION_SHIFT: u32 = 32;

/// An answer that waits until what it says is durable.
#[derive(Debug)]
pub(super) struct Confirmation {
    id: AdminId,
    /// Superblock sequence that holds it.
    saved: u64,
    /// Whether the log must be written and synced, too.
    drained: bool,
    text: String,
}

impl Machine {
    /// Whether a configuration manager decides here. A reign that an operator forced is the operator's.
    pub(super) fn is_managed(&self) -> bool {
        self.config.managed && !self.is_forced
    }

    /// The configuration manager's part of the export generation, in a reign of its.
    pub(super) fn sessions(&self) -> Option<u64> {
        let reigns = self.is_managed() && self.role.is_sequencing();
        reigns.then_some(self.meta.saved.export_generation >> GENERATION_SHIFT)
    }

    /// Whether a reign has begun here, or is being stored.
    pub(super) fn reigns(&self) -> bool {
        self.role.is_sequencing() || matches!(self.role, RoleState::Recording { .. })
    }

    pub(super) fn on_managed(&mut self, id: AdminId, action: AdminAction) {
        if !self.config.managed {
            return self.refuse_admin(id, "no orchestrator is configured here: the operator decides");
        }
        if matches!(self.role, RoleState::Stopping { .. } | RoleState::Stopped) {
            return self.refuse_admin(id, "this replica stops");
        }
        let result = match action {
            AdminAction::Seal { epoch } => self.seal(id, epoch),
            AdminAction::OpenEpoch(reign) => self.open_reign(id, &reign),
            AdminAction::Record { epoch, version, in_sync } => self.tell_record(id, epoch, version, in_sync),
            AdminAction::Lease { epoch, end } => self.renew_lease(id, epoch, end),
            _ if self.reigns() => {
                self.on_demote(id);
                Ok(())
            }
            _ => {
                self.answer_admin(id, Ok(String::from("Secondary")));
                Ok(())
            }
        };
        if let Err(reason) = result {
            self.refuse_admin(id, reason);
        }
    }

    /// Refuses every lower epoch from here on, ends a reign that this is the end of, and brings what was acknowledged to
    /// rest. The position does not move any more until a reign of this epoch, or of a higher one, begins.
    fn seal(&mut self, id: AdminId, epoch: Epoch) -> Result<(), String> {
        let (promised, record) = (self.meta.current.promised, self.meta.current.record);
        self.may_change_role()?;
        if epoch < promised || epoch <= record.epoch {
            return Err(format!(
                "this replica has promised epoch {promised} and knows a record of epoch {}: seal it above both",
                record.epoch
            ));
        }
        if self.reigns() {
            self.report(Report::Role(format!("sealed at epoch {epoch}: this reign is over")));
            self.leave_primary();
        }
        self.promise(epoch, None);
        self.persist.want_sync(self.log.last());
        let saved = self.meta.change();
        let text = format!("sealed at epoch {epoch}");
        self.confirmations.push(Confirmation { id, saved, drained: true, text });
        Ok(())
    }

    fn may_change_role(&self) -> Result<(), String> {
        if self.is_failed() {
            return Err(String::from("the copy here is Failed"));
        }
        if self.discard.is_some() {
            return Err(String::from("the data here is being discarded"));
        }
        if self.role.is_sealing() {
            return Err(String::from("a forced promotion is under way"));
        }
        if self.meta.current.yields {
            return Err(String::from("what this copy has past the common point of a fork is given up"));
        }
        Ok(())
    }

    /// Begins exactly this reign, once.
    fn open_reign(&mut self, id: AdminId, reign: &Reign) -> Result<(), String> {
        let (epoch, me) = (reign.epoch, self.config.node);
        let record = self.meta.current.record;
        let text = format!("the reign of epoch {epoch} has begun");
        if epoch == record.epoch && reign.reign == record.reign && record.primary == Some(me) {
            let saved = match self.role {
                RoleState::Recording { saved, .. } => saved,
                RoleState::Opening { .. } | RoleState::Primary => 0,
                _ => {
                    return Err(format!(
                        "the reign of epoch {epoch} has ended here, and none is continued: it takes a new epoch"
                    ));
                }
            };
            self.confirmations.push(Confirmation { id, saved, drained: false, text });
            return Ok(());
        }
        self.may_change_role()?;
        if epoch < self.meta.current.promised {
            return Err(format!("this replica has promised epoch {}", self.meta.current.promised));
        }
        if epoch <= record.epoch {
            return Err(format!("epoch {} has begun already, by another reign", record.epoch));
        }
        if self.meta.current.disk_state != DiskState::UpToDate || self.meta.current.suspect {
            return Err(String::from("the copy here is not UpToDate, or suspect"));
        }
        let is_known = |node| node == me || self.peer_index(node).is_some();
        if !reign.in_sync.contains(me) || !reign.in_sync.iter().all(is_known) {
            return Err(String::from(
                "the in-sync set must be of replicas of this volume, this one among them",
            ));
        }
        self.leave_primary();
        self.thaw("a reign begins here");
        self.promise(epoch, None);
        let current = &mut self.meta.current;
        // What may have been lost breaks the sessions of clients, whoever knows of it.
        let local = current.export_generation + u64::from(!current.proven);
        current.export_generation = local.max(reign.generation << GENERATION_SHIFT);
        let primary = Some(me);
        current.record =
            Record { epoch, version: reign.version, primary, reign: reign.reign, in_sync: reign.in_sync };
        let saved = self.meta.change();
        self.is_forced = false;
        self.lease = reign.lease_end;
        self.role = RoleState::Recording { id: None, saved };
        self.confirmations.push(Confirmation { id, saved, drained: false, text });
        Ok(())
    }

    /// Takes in the record as it was read back. A set is dropped only for that of a later version; until that is saved,
    /// whoever is in either counts. The set that is known here has who is pending, too.
    fn tell_record(
        &mut self,
        id: AdminId,
        epoch: Epoch,
        version: u64,
        in_sync: NodeSet,
    ) -> Result<(), String> {
        let record = self.meta.current.record;
        if (epoch, version) < record.order() {
            let (known, at) = record.order();
            return Err(format!("epoch {known} version {at} is known here: what was told is older"));
        }
        if epoch > record.epoch {
            if self.reigns() {
                self.report(Report::Role(format!("stepping down: epoch {epoch} has begun elsewhere")));
                self.leave_primary();
            }
            self.answer_admin(id, Ok(String::from("Secondary")));
            return Ok(());
        }
        if !self.role.is_sequencing() || self.is_forced {
            return Err(format!("the reign of epoch {epoch} is not one of this replica's, or not begun"));
        }
        let agreed = NodeSet(record.in_sync.0 & !self.pending_nodes().0);
        if version == record.version && in_sync != agreed || !in_sync.contains(self.config.node) {
            return Err(format!(
                "the set of epoch {epoch} version {version} is another one, or without this replica"
            ));
        }
        if version > record.version {
            // Who was pending is a member now, or cannot become one by what was asked for.
            self.peers.iter_mut().for_each(|peer| peer.pending = false);
            self.meta.current.record = Record { version, in_sync, ..record };
            self.record_change = Some(self.meta.change());
        }
        let saved = self.record_change.unwrap_or(0);
        let text = format!("epoch {epoch} version {version} is known");
        self.confirmations.push(Confirmation { id, saved, drained: false, text });
        Ok(())
    }

    /// Answers what has become durable.
    pub(super) fn answer_confirmations(&mut self) {
        if self.confirmations.is_empty() {
            return;
        }
        let is_drained = !self.log.has_unwritten() && !self.log.has_undurable();
        for confirmation in core::mem::take(&mut self.confirmations) {
            let Confirmation { id, saved, drained, .. } = confirmation;
            if self.is_failed() {
                let text = String::from("the disk or the journal failed on the way");
                self.answer_admin(id, Err(AdminError::Device(text)));
            } else if self.meta.is_saved(saved) && (is_drained || !drained) {
                self.answer_admin(id, Ok(confirmation.text));
            } else {
                self.confirmations.push(confirmation);
            }
        }
    }

    /// What this Primary would have in and out of its set.
    pub(super) fn wish(&self) -> Option<Wish> {
        if !self.is_managed() || !self.role.is_sequencing() {
            return None;
        }
        let (stored, current) = (self.meta.saved.record, self.meta.current.record);
        let pending = self.pending_nodes();
        let is_stored = |node: &NodeId| stored.order() == current.order() && stored.in_sync.contains(*node);
        let add = pending.iter().filter(is_stored).fold(NodeSet(0), NodeSet::with);
        let lost =
            current.in_sync.iter().filter(|node| !pending.contains(*node) && !self.is_streaming_to(*node));
        let remove = lost.fold(NodeSet(0), NodeSet::with);
        let is_something = !add.is_empty() || !remove.is_empty();
        is_something.then_some(Wish { add, remove, committed: self.committed })
    }
}
