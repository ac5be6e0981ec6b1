//! The lease: until when a Primary may answer clients without renewal, and the answers that wait for one. What is
//! replicated needs none; an answer does, whatever it answers.

use alloc::format;
use alloc::string::String;

use super::Machine;
use crate::command::{Command, RequestError};
use crate::units::{AdminId, Epoch, Instant, RequestId};

impl Machine {
    /// Whether clients may be answered at this moment.
    pub(super) fn may_answer(&self) -> bool {
        !self.is_managed() || self.lease.is_some_and(|end| self.now < end)
    }

    /// Answers a client's request: what was done only within the lease, else when it is renewed. That nobody serves
    /// here, or that a request is none, may be said at any time.
    pub(super) fn complete(&mut self, request: RequestId, result: Result<(), RequestError>) {
        if result.is_ok() && !self.may_answer() {
            self.withheld.push_back(request);
        } else {
            self.push(Command::Complete { request, result });
        }
    }

    /// A lease for the reign under way. It never becomes shorter: whoever granted it keeps to the longest.
    pub(super) fn renew_lease(&mut self, id: AdminId, epoch: Epoch, end: Instant) -> Result<(), String> {
        let is_its = epoch == self.meta.current.record.epoch && self.reigns() && self.is_managed();
        if !is_its {
            return Err(format!("no reign of epoch {epoch} is under way here"));
        }
        self.lease = self.lease.max(Some(end));
        if self.may_answer() {
            while let Some(request) = self.withheld.pop_front() {
                self.push(Command::Complete { request, result: Ok(()) });
            }
        }
        self.answer_admin(id, Ok(String::from("renewed")));
        Ok(())
    }

    /// Ends the lease with its reign: those whose answers wait are told that nobody serves.
    pub(super) fn void_lease(&mut self) {
        self.lease = None;
        for request in core::mem::take(&mut self.withheld) {
            self.push(Command::Complete { request, result: Err(RequestError::NotServing) });
        }
    }

    /// When the lease ends, while that changes anything.
    pub(super) fn lease_due(&self) -> Option<Instant> {
        self.lease.filter(|end| self.is_managed() && self.role.is_serving() && self.now < *end)
    }
}
