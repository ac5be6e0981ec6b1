//! The transmission phase: cuts the stream into requests and judges each one once. Moves no payload.

use crate::bytes::Held;
use crate::error::{NbdError, SessionError};
use crate::export::ExportFlags;
use crate::meta::BASE_ALLOCATION_ID;
use crate::reply::ReplyFormat;
use crate::request::{Command, RawRequest, Reject, Request, StatusPayload};
use crate::session::{Negotiated, Step};
use crate::{PAYLOAD_BYTES_MAX, spec};

/// A session after its handshake.
pub(crate) struct Transmission {
    held: Held,
    negotiated: Negotiated,
}

/// Why a request is not carried out.
type Refusal = (NbdError, &'static str);

impl Transmission {
    pub(crate) const fn new(negotiated: Negotiated) -> Self {
        Self { held: Held::new(), negotiated }
    }

    pub(crate) const fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    pub(crate) fn grow(&mut self, size_bytes: u64) {
        self.negotiated.size_bytes = self.negotiated.size_bytes.max(size_bytes);
    }

    /// Takes the next request header off the front of `input`.
    pub(crate) fn advance(&mut self, input: &mut &[u8]) -> Result<Step, SessionError> {
        let is_extended = self.negotiated.format == ReplyFormat::Extended;
        let header_bytes = if is_extended { spec::EXTENDED_REQUEST_BYTES } else { spec::REQUEST_BYTES };
        if !self.held.fill(input, header_bytes) {
            return Ok(Step::NeedInput);
        }
        let raw = RawRequest::decode(self.held.bytes(), is_extended)?;
        let mut status = None;
        if self.has_status_payload(&raw) {
            // Few and fixed bytes that decide what the request means, so not the driver's to take.
            if !self.held.fill(input, header_bytes + StatusPayload::BYTES) {
                return Ok(Step::NeedInput);
            }
            status = Some(StatusPayload::decode(&self.held.bytes()[header_bytes..]));
        }
        self.held.clear();
        self.judge(&raw, status)
    }

    /// Whether the payload is of the one form that is understood. Any other is drained and rejected.
    fn has_status_payload(&self, raw: &RawRequest) -> bool {
        self.negotiated.takes_status_payload()
            && raw.kind == spec::NBD_CMD_BLOCK_STATUS
            && raw.has(spec::NBD_CMD_FLAG_PAYLOAD_LEN)
            && raw.length_bytes == StatusPayload::BYTES as u64
    }

    fn judge(&self, raw: &RawRequest, status: Option<StatusPayload>) -> Result<Step, SessionError> {
        if raw.kind == spec::NBD_CMD_DISC {
            // Whatever its other fields say: there is no reply and nothing may follow it.
            return Ok(Step::Disconnect);
        }
        let payload_bytes = raw.payload_bytes(self.negotiated.format == ReplyFormat::Extended);
        if payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(SessionError::PayloadTooLarge { length_bytes: payload_bytes });
        }
        let RawRequest { cookie, offset, .. } = *raw;
        Ok(match self.check(raw, status) {
            Ok((command, length_bytes)) => Step::Request(Request { cookie, command, offset, length_bytes }),
            Err((error, reason)) => {
                let drain_bytes = if status.is_some() { 0 } else { payload_bytes };
                Step::Reject(Reject { cookie, offset, error, reason, drain_bytes })
            }
        })
    }

    /// The command and its effect length, or why not.
    fn check(&self, raw: &RawRequest, status: Option<StatusPayload>) -> Result<(Command, u64), Refusal> {
        let command = self.check_command(raw)?;
        self.check_flags(raw)?;
        if raw.kind == spec::NBD_CMD_BLOCK_STATUS && raw.has(spec::NBD_CMD_FLAG_PAYLOAD_LEN) {
            let status = status.ok_or((NbdError::Invalid, "payload must be a length and one context id"))?;
            if status.context_id != BASE_ALLOCATION_ID {
                return Err((NbdError::Invalid, "context id was not negotiated"));
            }
            return self.check_range(raw, command, status.length_bytes);
        }
        self.check_range(raw, command, raw.length_bytes)
    }

    /// Whether the command exists, is permitted and was offered.
    fn check_command(&self, raw: &RawRequest) -> Result<Command, Refusal> {
        let ExportFlags { read_only, flush, trim, write_zeroes, cache, .. } = self.negotiated.flags;
        let fua = raw.has(spec::NBD_CMD_FLAG_FUA);
        let (command, is_write, is_offered) = match raw.kind {
            spec::NBD_CMD_READ => {
                (Command::Read { dont_fragment: raw.has(spec::NBD_CMD_FLAG_DF) }, false, true)
            }
            spec::NBD_CMD_WRITE => (Command::Write { fua }, true, true),
            spec::NBD_CMD_FLUSH => (Command::Flush, false, flush),
            spec::NBD_CMD_TRIM => (Command::Trim { fua }, true, trim),
            spec::NBD_CMD_CACHE => (Command::Cache, false, cache),
            spec::NBD_CMD_WRITE_ZEROES => {
                let no_hole = raw.has(spec::NBD_CMD_FLAG_NO_HOLE);
                let fast = raw.has(spec::NBD_CMD_FLAG_FAST_ZERO);
                (Command::WriteZeroes { fua, no_hole, fast }, true, write_zeroes)
            }
            spec::NBD_CMD_BLOCK_STATUS => {
                let one = raw.has(spec::NBD_CMD_FLAG_REQ_ONE);
                (Command::BlockStatus { one }, false, !self.negotiated.contexts.is_empty())
            }
            _ => return Err((NbdError::Invalid, "unknown command")),
        };
        if is_write && read_only {
            return Err((NbdError::Permission, "export is read-only"));
        }
        if !is_offered {
            return Err((NbdError::Invalid, "command was not offered"));
        }
        Ok(command)
    }

    /// Whether every flag is valid for the command and was offered.
    fn check_flags(&self, raw: &RawRequest) -> Result<(), Refusal> {
        let Negotiated { format, flags, .. } = &self.negotiated;
        let is_extended = *format == ReplyFormat::Extended;
        let mut allowed = match raw.kind {
            spec::NBD_CMD_READ if *format != ReplyFormat::Simple => spec::NBD_CMD_FLAG_DF,
            spec::NBD_CMD_WRITE if is_extended => spec::NBD_CMD_FLAG_PAYLOAD_LEN,
            spec::NBD_CMD_WRITE_ZEROES if flags.fast_zero => {
                spec::NBD_CMD_FLAG_NO_HOLE | spec::NBD_CMD_FLAG_FAST_ZERO
            }
            spec::NBD_CMD_WRITE_ZEROES => spec::NBD_CMD_FLAG_NO_HOLE,
            spec::NBD_CMD_BLOCK_STATUS if is_extended => {
                spec::NBD_CMD_FLAG_REQ_ONE | spec::NBD_CMD_FLAG_PAYLOAD_LEN
            }
            spec::NBD_CMD_BLOCK_STATUS => spec::NBD_CMD_FLAG_REQ_ONE,
            _ => 0,
        };
        if flags.fua {
            // Clients are known to set it on everything; it must be accepted everywhere.
            allowed |= spec::NBD_CMD_FLAG_FUA;
        }
        if raw.flags & !allowed != 0 {
            return Err((NbdError::Invalid, "flag is not valid for this command"));
        }
        Ok(())
    }

    /// Whether the range is one this command can have.
    fn check_range(
        &self,
        raw: &RawRequest,
        command: Command,
        length_bytes: u64,
    ) -> Result<(Command, u64), Refusal> {
        let Negotiated { size_bytes, block, format, .. } = self.negotiated;
        if command == Command::Flush {
            let is_empty = raw.offset == 0 && length_bytes == 0;
            return if is_empty { Ok((command, 0)) } else { Err((NbdError::Invalid, "flush with a range")) };
        }
        if length_bytes == 0 {
            // Unspecified by the protocol. Refused, so that nothing behind has to think of it.
            return Err((NbdError::Invalid, "length is zero"));
        }
        let data_bytes_max = u64::from(block.max_bytes).min(PAYLOAD_BYTES_MAX);
        match command {
            Command::Read { .. } if length_bytes > data_bytes_max && format == ReplyFormat::Simple => {
                return Err((NbdError::Invalid, "read is longer than the maximum"));
            }
            Command::Read { .. } if length_bytes > data_bytes_max => {
                return Err((NbdError::Overflow, "read is longer than the maximum"));
            }
            Command::Write { .. } if length_bytes > data_bytes_max => {
                return Err((NbdError::Invalid, "write is longer than the maximum"));
            }
            _ => {}
        }
        if raw.offset.checked_add(length_bytes).is_none_or(|end| end > size_bytes) {
            let error = match command {
                Command::Write { .. } | Command::WriteZeroes { .. } => NbdError::NoSpace,
                _ => NbdError::Invalid,
            };
            return Err((error, "range is beyond the end of the export"));
        }
        if !block.is_aligned(raw.offset) || !block.is_aligned(length_bytes) {
            return Err((NbdError::Invalid, "range is not aligned to the minimum block size"));
        }
        Ok((command, length_bytes))
    }
}
