//! A request: its header as it arrives, and what is left of it once it has been judged.

use crate::bytes::{HELD_BYTES_MAX, field};
use crate::error::{NbdError, SessionError};
use crate::reply::ReplyTag;
use crate::spec;

/// A request that may be carried out: known command, offered by the export, range inside it and aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it, opaque, repeated in the reply.
    pub cookie: u64,
    /// What to do.
    pub command: Command,
    /// Where the range begins; zero for a flush.
    pub offset: u64,
    /// How long it is; zero for a flush and for nothing else.
    pub length_bytes: u64,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Data is to be returned.
    Read {
        /// In one chunk. Every reply here has one, so this is for the record.
        dont_fragment: bool,
    },
    /// `length_bytes` of payload follow the header in the stream; the driver takes them.
    Write {
        /// Durable before the reply.
        fua: bool,
    },
    /// All that was acknowledged becomes durable before the reply.
    Flush,
    /// The range is no longer needed.
    Trim {
        /// Durable before the reply.
        fua: bool,
    },
    /// The range shall read as zeroes.
    WriteZeroes {
        /// Durable before the reply.
        fua: bool,
        /// The range stays allocated.
        no_hole: bool,
        /// Answer `NotSupported` at once if it would be no faster than a write.
        fast: bool,
    },
    /// The range will be wanted soon.
    Cache,
    /// What the range is made of; answered by `ReplyFormat::encode_block_status`.
    BlockStatus {
        /// One extent only.
        one: bool,
    },
}

/// A request that is not carried out. The driver drops `drain_bytes` from the stream, then replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The client's name for it.
    pub cookie: u64,
    /// The offset it gave, which an extended reply repeats.
    pub offset: u64,
    /// What to answer.
    pub error: NbdError,
    /// For people, in the message of a structured error.
    pub reason: &'static str,
    /// The payload that still follows in the stream.
    pub drain_bytes: u64,
}

impl Request {
    /// What its reply must repeat.
    #[must_use]
    pub const fn tag(&self) -> ReplyTag {
        ReplyTag { cookie: self.cookie, offset: self.offset }
    }
}

impl Reject {
    /// What its reply must repeat.
    #[must_use]
    pub const fn tag(&self) -> ReplyTag {
        ReplyTag { cookie: self.cookie, offset: self.offset }
    }
}

/// A request header, decoded and not judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawRequest {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    /// Of the payload or of the range, see `payload_bytes`.
    pub(crate) length_bytes: u64,
}

impl RawRequest {
    /// Decodes the header of the form that was negotiated; `bytes` begins with it whole.
    pub(crate) fn decode(bytes: &[u8], is_extended: bool) -> Result<Self, SessionError> {
        let (magic_expected, header_bytes) = if is_extended {
            (spec::NBD_EXTENDED_REQUEST_MAGIC, spec::EXTENDED_REQUEST_BYTES)
        } else {
            (spec::NBD_REQUEST_MAGIC, spec::REQUEST_BYTES)
        };
        assert!(bytes.len() >= header_bytes);
        let magic = u32::from_be_bytes(field(bytes, 0));
        if magic != magic_expected {
            return Err(SessionError::RequestMagic(magic));
        }
        let length_bytes = if is_extended {
            u64::from_be_bytes(field(bytes, 24))
        } else {
            u64::from(u32::from_be_bytes(field(bytes, 24)))
        };
        Ok(Self {
            flags: u16::from_be_bytes(field(bytes, 4)),
            kind: u16::from_be_bytes(field(bytes, 6)),
            cookie: u64::from_be_bytes(field(bytes, 8)),
            offset: u64::from_be_bytes(field(bytes, 16)),
            length_bytes,
        })
    }

    /// How many bytes of payload follow the header in the stream, whether they belong there or not.
    ///
    /// With extended headers `NBD_CMD_FLAG_PAYLOAD_LEN` says so and a write must have it; but the client of
    /// qemu (seen in 10.0) leaves it out and sends the payload all the same. A write without payload would
    /// mean nothing, so every write has one.
    pub(crate) const fn payload_bytes(&self, is_extended: bool) -> u64 {
        let is_flagged = is_extended && self.has(spec::NBD_CMD_FLAG_PAYLOAD_LEN);
        if is_flagged || self.kind == spec::NBD_CMD_WRITE { self.length_bytes } else { 0 }
    }

    pub(crate) const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// The payload of a block status request that names its contexts, when it names one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatusPayload {
    pub(crate) length_bytes: u64,
    pub(crate) context_id: u32,
}

impl StatusPayload {
    /// Effect length and one id. There is one context and ids must not repeat, so no other is valid.
    pub(crate) const BYTES: usize = 8 + 4;

    /// Decodes what follows the header.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        Self {
            length_bytes: u64::from_be_bytes(field(bytes, 0)),
            context_id: u32::from_be_bytes(field(bytes, 8)),
        }
    }
}

const _: () = assert!(spec::EXTENDED_REQUEST_BYTES + StatusPayload::BYTES == HELD_BYTES_MAX);
