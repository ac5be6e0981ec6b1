//! What a server offers: exports, their limits and what they can do. Not where their bytes are.

use alloc::string::String;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use crate::PAYLOAD_BYTES_MAX;
use crate::reply::ReplyFormat;
use crate::spec;

/// One volume as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// What clients ask for; compared byte by byte. The empty name is the protocol's default export and
    /// is matched like any other: no client is ever given a volume that it did not name.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Its size, a multiple of the minimum block.
    pub size_bytes: u64,
    /// What it can do.
    pub flags: ExportFlags,
    /// The sizes requests must keep to.
    pub block: BlockSizes,
    /// Whether it can be used now.
    pub availability: Availability,
    /// Names of bookmarks: each has a context that tells what changed since.
    pub bookmarks: Vec<String>,
}

/// What an export can do. `Default` can do nothing but be read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportFlags {
    /// Writes are answered with `NBD_EPERM`.
    pub read_only: bool,
    /// The medium has seek costs.
    pub rotational: bool,
    /// `NBD_CMD_FLUSH` is offered.
    pub flush: bool,
    /// `NBD_CMD_FLAG_FUA` is offered.
    pub fua: bool,
    /// `NBD_CMD_TRIM` is offered.
    pub trim: bool,
    /// `NBD_CMD_WRITE_ZEROES` is offered.
    pub write_zeroes: bool,
    /// `NBD_CMD_FLAG_FAST_ZERO` is offered; needs `write_zeroes`.
    pub fast_zero: bool,
    /// `NBD_CMD_CACHE` is offered.
    pub cache: bool,
    /// A flush on one connection covers the writes acknowledged on all.
    pub multi_conn: bool,
}

/// The sizes requests must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this power of two; at most 64 KiB.
    pub min_bytes: u32,
    /// Requests in multiples of this power of two are efficient; at least 512.
    pub preferred_bytes: u32,
    /// The longest read or write; from 64 KiB to [`PAYLOAD_BYTES_MAX`].
    pub max_bytes: u32,
}

/// Whether an export can be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It can.
    Ready,
    /// It is listed, but whoever asks for it is told why not.
    Refused {
        /// For people: what is the matter and where to go instead.
        message: String,
    },
}

/// What is wrong with an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportError {
    /// A string is longer than the protocol allows or has a NUL in it.
    String,
    /// The size is not a multiple of the minimum block, or beyond 2^63.
    Size,
    /// The block sizes are not as the specification wants them.
    BlockSizes,
}

impl Export {
    /// Whether the protocol can carry this export. A session never panics on one that it cannot,
    /// but clients would be told nonsense, so the driver checks when its configuration is read.
    ///
    /// # Errors
    /// What is wrong first.
    pub fn check(&self) -> Result<(), ExportError> {
        let message = match &self.availability {
            Availability::Ready => "",
            Availability::Refused { message } => message,
        };
        let is_string = |text: &str| text.len() <= spec::STRING_BYTES_MAX && !text.contains('\0');
        let texts = [&self.name, &self.description, message].into_iter();
        if !texts.chain(self.bookmarks.iter().map(String::as_str)).all(is_string) {
            return Err(ExportError::String);
        }
        self.block.check()?;
        // Offsets are signed in most clients.
        if self.size_bytes > i64::MAX as u64 || !self.block.is_aligned(self.size_bytes) {
            return Err(ExportError::Size);
        }
        Ok(())
    }

    /// The transmission flags a client with these choices is told.
    pub(crate) fn transmission_flags(&self, format: ReplyFormat, status_payload: bool) -> u16 {
        let flags = self.flags.offered();
        let bits = [
            (true, spec::NBD_FLAG_HAS_FLAGS),
            (flags.read_only, spec::NBD_FLAG_READ_ONLY),
            (flags.flush, spec::NBD_FLAG_SEND_FLUSH),
            (flags.fua, spec::NBD_FLAG_SEND_FUA),
            (flags.rotational, spec::NBD_FLAG_ROTATIONAL),
            (flags.trim, spec::NBD_FLAG_SEND_TRIM),
            (flags.write_zeroes, spec::NBD_FLAG_SEND_WRITE_ZEROES),
            (format != ReplyFormat::Simple, spec::NBD_FLAG_SEND_DF),
            (flags.multi_conn, spec::NBD_FLAG_CAN_MULTI_CONN),
            (flags.cache, spec::NBD_FLAG_SEND_CACHE),
            (flags.fast_zero, spec::NBD_FLAG_SEND_FAST_ZERO),
            (status_payload, spec::NBD_FLAG_BLOCK_STATUS_PAYLOAD),
        ];
        bits.into_iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, bit)| all | bit)
    }
}

impl ExportFlags {
    /// The flags without those that contradict each other: a read-only export offers no way to change
    /// it, and a fast zero is a kind of write zeroes.
    pub(crate) const fn offered(self) -> Self {
        let writable = !self.read_only;
        let write_zeroes = self.write_zeroes && writable;
        Self { trim: self.trim && writable, write_zeroes, fast_zero: self.fast_zero && write_zeroes, ..self }
    }
}

impl BlockSizes {
    fn check(self) -> Result<(), ExportError> {
        let min_is_good = self.min_bytes.is_power_of_two() && self.min_bytes <= 1 << 16;
        let preferred_is_good =
            self.preferred_bytes.is_power_of_two() && self.preferred_bytes >= self.min_bytes.max(512);
        // Unfragmented reads of 64 KiB must be possible, and a chunk of block status must fit.
        let max_is_good = self.max_bytes >= self.preferred_bytes.max(1 << 16)
            && u64::from(self.max_bytes) <= PAYLOAD_BYTES_MAX;
        if min_is_good && preferred_is_good && max_is_good { Ok(()) } else { Err(ExportError::BlockSizes) }
    }

    /// Whether an offset or a length is a multiple of the minimum block.
    pub(crate) const fn is_aligned(self, value_bytes: u64) -> bool {
        value_bytes & (self.min_bytes as u64).wrapping_sub(1) == 0
    }
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "a name or text is longer than 4096 bytes or contains a NUL",
            Self::Size => "the size is not a multiple of the minimum block or is too large",
            Self::BlockSizes => "the block sizes are outside what the protocol allows",
        })
    }
}

impl Error for ExportError {}
