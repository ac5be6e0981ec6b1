//! Replies of the transmission phase: headers and small bodies. The data of a read is the driver's to send.

use alloc::vec::Vec;

use crate::bytes::clip;
use crate::error::NbdError;
use crate::meta::Context;
use crate::request::{Command, Request};
use crate::{PAYLOAD_BYTES_MAX, spec};

/// What a reply looks like, by what was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyFormat {
    /// Nothing negotiated: 16 bytes, then the data of a read.
    Simple,
    /// `NBD_OPT_STRUCTURED_REPLY`: chunks that say themselves what they are.
    Structured,
    /// `NBD_OPT_EXTENDED_HEADERS`: chunks of 64-bit lengths; requests are longer too.
    Extended,
}

/// What every reply repeats of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTag {
    /// The client's name for the request.
    pub cookie: u64,
    /// The offset the client gave; only extended replies carry it.
    pub offset: u64,
}

/// A run of blocks of one state, for block status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long it is.
    pub length_bytes: u64,
    /// Its state, in the flags of the context.
    flags: u32,
}

impl Extent {
    /// For `base:allocation`: whether the run is not allocated, so that a write may need room, and whether it is known
    /// to read as zeroes.
    #[must_use]
    pub const fn allocation(length_bytes: u64, hole: bool, zero: bool) -> Self {
        let hole = if hole { spec::NBD_STATE_HOLE } else { 0 };
        let zero = if zero { spec::NBD_STATE_ZERO } else { 0 };
        Self { length_bytes, flags: hole | zero }
    }

    /// For a bookmark: whether the run has changed since.
    #[must_use]
    pub const fn change(length_bytes: u64, is_changed: bool) -> Self {
        Self { length_bytes, flags: if is_changed { spec::HOLDFAST_STATE_DIRTY } else { 0 } }
    }
}

/// Room for a success without payload.
pub const OK_BYTES_MAX: usize = spec::EXTENDED_REPLY_BYTES;

/// Room for what stands before the data of a read.
pub const READ_HEADER_BYTES_MAX: usize = spec::EXTENDED_REPLY_BYTES + OFFSET_BYTES;

/// Room for an error with its message.
pub const ERROR_BYTES_MAX: usize = 256;

/// A longer message is cut.
pub const ERROR_MESSAGE_BYTES_MAX: usize = ERROR_BYTES_MAX - spec::EXTENDED_REPLY_BYTES - ERROR_BODY_BYTES;

/// The most extents one block status reply tells; the client asks again for the rest.
pub const EXTENTS_MAX: usize = 4096;

const OFFSET_BYTES: usize = 8;
const ERROR_BODY_BYTES: usize = 4 + 2;

// A status chunk must not be longer than the smallest maximum payload an export may have.
const _: () = assert!(8 + 16 * EXTENTS_MAX <= (1 << 16) + 8);
// The length of a structured data chunk has 32 bits.
const _: () = assert!(PAYLOAD_BYTES_MAX + OFFSET_BYTES as u64 <= u32::MAX as u64);

impl ReplyFormat {
    /// A success without payload, for every command but read and block status. Returns its length.
    pub fn encode_ok(self, tag: ReplyTag, out: &mut [u8; OK_BYTES_MAX]) -> usize {
        match self {
            Self::Simple => put_simple(tag, 0, out),
            Self::Structured | Self::Extended => self.put_chunk(tag, spec::NBD_REPLY_TYPE_NONE, 0, out),
        }
    }

    /// What stands before the data of a successful read; the driver sends exactly `length_bytes` after
    /// it, from memory: with this header sent there is no way left to report an error. Returns its length.
    ///
    /// # Panics
    /// If the length is beyond `PAYLOAD_BYTES_MAX`, which no request of a session is.
    pub fn encode_read_header(
        self,
        tag: ReplyTag,
        length_bytes: u64,
        out: &mut [u8; READ_HEADER_BYTES_MAX],
    ) -> usize {
        assert!(length_bytes <= PAYLOAD_BYTES_MAX);
        if self == Self::Simple {
            return put_simple(tag, 0, out);
        }
        if length_bytes == 0 {
            // A data chunk must describe at least one byte.
            return self.put_chunk(tag, spec::NBD_REPLY_TYPE_NONE, 0, out);
        }
        let body_bytes = OFFSET_BYTES as u64 + length_bytes;
        let at = self.put_chunk(tag, spec::NBD_REPLY_TYPE_OFFSET_DATA, body_bytes, out);
        out[at..at + OFFSET_BYTES].copy_from_slice(&tag.offset.to_be_bytes());
        at + OFFSET_BYTES
    }

    /// An error, for any command. The message is for people and is lost in simple replies. Returns the length.
    pub fn encode_error(
        self,
        tag: ReplyTag,
        error: NbdError,
        message: &str,
        out: &mut [u8; ERROR_BYTES_MAX],
    ) -> usize {
        if self == Self::Simple {
            return put_simple(tag, error.code(), out);
        }
        let message = clip(message, ERROR_MESSAGE_BYTES_MAX).as_bytes();
        let body_bytes = (ERROR_BODY_BYTES + message.len()) as u64;
        let at = self.put_chunk(tag, spec::NBD_REPLY_TYPE_ERROR, body_bytes, out);
        out[at..at + 4].copy_from_slice(&error.code().to_be_bytes());
        out[at + 4..at + 6].copy_from_slice(&(message.len() as u16).to_be_bytes());
        let end = at + ERROR_BODY_BYTES + message.len();
        out[at + ERROR_BODY_BYTES..end].copy_from_slice(message);
        end
    }

    /// The part of the answer to a block status request that is of one context; there is one for each that was
    /// selected, and the last says so. `extents` tell, in order and without gaps, what begins at its
    /// offset. They may go on beyond its end or stop before it; neighbours of one state become one. Where
    /// they tell nothing, the whole range is reported as allocated data, or as changed, which is always true enough.
    pub fn encode_block_status(
        self,
        request: &Request,
        context: &Context,
        is_last: bool,
        extents: impl IntoIterator<Item = Extent>,
        out: &mut Vec<u8>,
    ) {
        let begin = out.len();
        let mut header = [0; OK_BYTES_MAX];
        let (kind, context_bytes) = match self {
            // Cannot be asked for: contexts need structured replies.
            Self::Simple => {
                let length = put_simple(request.tag(), NbdError::Invalid.code(), &mut header);
                return out.extend_from_slice(&header[..length]);
            }
            Self::Structured => (spec::NBD_REPLY_TYPE_BLOCK_STATUS, 4),
            Self::Extended => (spec::NBD_REPLY_TYPE_BLOCK_STATUS_EXT, 8),
        };
        // The body is written first, behind room for the header, which tells its length.
        let header_bytes = self.chunk_header_bytes();
        let body_begin = begin + header_bytes + context_bytes;
        out.resize(body_begin, 0);
        let count = self.put_extents(request, context, extents, out);
        let body_bytes = (out.len() - begin - header_bytes) as u64;
        self.put_chunk(request.tag(), kind, body_bytes, &mut header);
        if !is_last {
            header[4..6].fill(0);
        }
        out[begin..begin + header_bytes].copy_from_slice(&header[..header_bytes]);
        let named = &mut out[begin + header_bytes..body_begin];
        named[..4].copy_from_slice(&context.id.to_be_bytes());
        if self == Self::Extended {
            named[4..].copy_from_slice(&count.to_be_bytes());
        }
    }

    /// Appends at least one descriptor and says how many.
    fn put_extents(
        self,
        request: &Request,
        context: &Context,
        extents: impl IntoIterator<Item = Extent>,
        out: &mut Vec<u8>,
    ) -> u32 {
        let count_max = match request.command {
            Command::BlockStatus { one: true } => 1,
            _ => EXTENTS_MAX,
        };
        let mut count = 0;
        let mut left_bytes = request.length_bytes;
        let mut run: Option<Extent> = None;
        for extent in extents {
            let length_bytes = extent.length_bytes.min(left_bytes);
            let extent = Extent { length_bytes, ..extent };
            match &mut run {
                _ if length_bytes == 0 => continue,
                Some(run) if run.flags == extent.flags => {
                    run.length_bytes += length_bytes;
                }
                Some(_) if count + 1 == count_max => break,
                _ => {
                    if let Some(done) = run.replace(extent) {
                        self.put_extent(done, out);
                        count += 1;
                    }
                }
            }
            left_bytes -= length_bytes;
            if left_bytes == 0 {
                break;
            }
        }
        let nothing_told = Extent { length_bytes: request.length_bytes, flags: context.flags_unknown() };
        self.put_extent(run.unwrap_or(nothing_told), out);
        (count + 1) as u32
    }

    fn put_extent(self, extent: Extent, out: &mut Vec<u8>) {
        if self == Self::Extended {
            out.extend_from_slice(&extent.length_bytes.to_be_bytes());
            out.extend_from_slice(&u64::from(extent.flags).to_be_bytes());
        } else {
            // No longer than the request, whose length had 32 bits.
            let length_bytes = u32::try_from(extent.length_bytes).unwrap_or(u32::MAX);
            out.extend_from_slice(&length_bytes.to_be_bytes());
            out.extend_from_slice(&extent.flags.to_be_bytes());
        }
    }

    const fn chunk_header_bytes(self) -> usize {
        match self {
            Self::Simple => spec::SIMPLE_REPLY_BYTES,
            Self::Structured => spec::STRUCTURED_REPLY_BYTES,
            Self::Extended => spec::EXTENDED_REPLY_BYTES,
        }
    }

    /// The header of the last chunk of a reply; returns its length.
    fn put_chunk(self, tag: ReplyTag, kind: u16, body_bytes: u64, out: &mut [u8]) -> usize {
        out[4..6].copy_from_slice(&spec::NBD_REPLY_FLAG_DONE.to_be_bytes());
        out[6..8].copy_from_slice(&kind.to_be_bytes());
        out[8..16].copy_from_slice(&tag.cookie.to_be_bytes());
        if self == Self::Extended {
            out[0..4].copy_from_slice(&spec::NBD_EXTENDED_REPLY_MAGIC.to_be_bytes());
            out[16..24].copy_from_slice(&tag.offset.to_be_bytes());
            out[24..32].copy_from_slice(&body_bytes.to_be_bytes());
        } else {
            // Bodies are bounded by PAYLOAD_BYTES_MAX and EXTENTS_MAX, see the assertions above.
            out[0..4].copy_from_slice(&spec::NBD_STRUCTURED_REPLY_MAGIC.to_be_bytes());
            out[16..20].copy_from_slice(&(body_bytes as u32).to_be_bytes());
        }
        self.chunk_header_bytes()
    }
}

fn put_simple(tag: ReplyTag, error: u32, out: &mut [u8]) -> usize {
    out[0..4].copy_from_slice(&spec::NBD_SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.to_be_bytes());
    out[8..16].copy_from_slice(&tag.cookie.to_be_bytes());
    spec::SIMPLE_REPLY_BYTES
}
