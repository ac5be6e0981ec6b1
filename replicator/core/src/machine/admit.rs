//! Admission: what clients ask, checked once, and either put on its way or answered at once.

use super::{Machine, Pending};
use crate::command::RequestError;
use crate::event::ZeroKind;
use crate::frame::{Entry, EntryKind};
use crate::units::{RequestId, Span};

impl Machine {
    fn check_range(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        let block = u64::from(self.meta.saved.block_bytes);
        let end = offset.checked_add(length).ok_or(RequestError::Range)?;
        let sound = length > 0 && end <= self.meta.saved.volume_bytes;
        if sound && offset.is_multiple_of(block) && length.is_multiple_of(block) {
            Ok(())
        } else {
            Err(RequestError::Range)
        }
    }

    fn check_request(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        if !self.role.is_serving() {
            return Err(RequestError::NotServing);
        }
        self.check_range(offset, length)
    }

    pub(super) fn on_write(
        &mut self,
        request: RequestId,
        offset: u64,
        payload: Span,
        fua: bool,
        arena: &mut [u8],
    ) {
        let length = payload.len as u64;
        if let Err(error) = self.check_request(offset, length) {
            self.drop_placed(payload);
            self.complete(request, Err(error));
            return;
        }
        self.counters.written_bytes += length;
        let payload_crc = crc32fast::hash(&arena[payload.range()]);
        let entry = Entry { kind: EntryKind::Write, fua, payload_crc, offset, length, payload_at: 0 };
        self.gather_write(entry, request, payload);
    }

    pub(super) fn on_write_abandoned(&mut self, payload: Span) {
        self.drop_placed(payload);
    }

    pub(super) fn on_zero(
        &mut self,
        request: RequestId,
        offset: u64,
        length: u64,
        kind: ZeroKind,
        fua: bool,
    ) {
        if let Err(error) = self.check_request(offset, length) {
            self.complete(request, Err(error));
            return;
        }
        let kind = match kind {
            ZeroKind::Trim => EntryKind::Trim,
            ZeroKind::Zeroes => EntryKind::Zeroes,
        };
        let entry = Entry { kind, fua, payload_crc: 0, offset, length, payload_at: 0 };
        self.zeros_waiting.push_back((entry, request));
        self.admit_zeros();
    }

    /// Gathers the zeroing requests that found no room before.
    pub(super) fn admit_zeros(&mut self) {
        while let Some((entry, request)) = self.zeros_waiting.front().copied() {
            if !self.gather_plain(entry, request) {
                break;
            }
            self.zeros_waiting.pop_front();
        }
    }

    pub(super) fn on_flush(&mut self, request: RequestId) {
        if !self.role.is_serving() {
            self.complete(request, Err(RequestError::NotServing));
            return;
        }
        // What is committed now covers every write that was answered on any connection before this flush came.
        let sequence = self.committed;
        if self.stable >= sequence {
            self.counters.flushes += 1;
            self.complete(request, Ok(()));
            return;
        }
        self.flushes.push_back(Pending { sequence, request, fua: false });
        self.persist.want_sync(sequence);
        self.want_peer_sync(sequence);
    }
}
