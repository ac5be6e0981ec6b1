//! The server side of the NBD protocol: bytes in, requests out. Owns no socket, file, clock or thread.
//!
//! ```text
//!              bytes received                               requests, rejections
//!  driver ---- Session::advance(input, exports) ----------> driver
//!         <--- Session::output()   bytes of the handshake
//!         <--- ReplyFormat::encode_*   headers of replies
//! ```
//!
//! # Duties of a driver
//!
//! 1. Check every [`Export`] with [`Export::check`] when it is configured.
//! 2. Make one [`Session`] per connection and send its greeting, which is in [`Session::output`] at once.
//! 3. Give [`Session::advance`] the bytes of the stream in order. What it did not consume is given again
//!    first; after [`Step::NeedInput`] nothing is left over. Any slicing has the same result.
//! 4. After [`Step::SendOutput`], [`Step::StartTls`], [`Step::Negotiated`] and [`Step::Disconnect`], take everything out of the
//!    output and send it in order, before any reply.
//! 5. After a [`Step::Request`] of [`Command::Write`] take its payload off the stream itself, into whatever
//!    buffer it likes; after a [`Step::Reject`] drop `drain_bytes` from the stream, then send the error.
//! 6. Answer every request exactly once, in any order, with the [`ReplyFormat`] of
//!    [`Session::negotiated`] and the tag of the request. Have the data of a read in hand before its header is sent.
//! 7. Give a session that [requires TLS](Session::requiring_tls) only what TLS carried once it has said
//!    [`Step::StartTls`], and cut off whoever sent anything in the clear behind that.
//! 8. After an error, or when done with a [`Step::Disconnect`], close the connection.
//! 9. Bound the time a handshake may take and the requests in flight: this crate has no clock and counts none.
//!
//! Requests are judged here, once: command, flags, bounds, alignment and length are right when they come out.
//! No byte from the network makes this crate panic, and no length from the network makes it allocate: option
//! data is kept up to [`OPTION_BYTES_MAX`], as it arrives, and in the transmission phase nothing is allocated.

#![no_std]
#![forbid(unsafe_code)]
#![allow(clippy::big_endian_bytes, reason = "the protocol is big-endian")]

extern crate alloc;

mod bytes;
mod error;
mod export;
pub mod fuzz;
mod handshake;
mod meta;
mod option;
mod reply;
mod request;
mod session;
pub mod spec;
mod transmission;

pub use error::{NbdError, SessionError};
pub use export::{Availability, BlockSizes, Export, ExportError, ExportFlags};
pub use meta::{BASE_ALLOCATION, BASE_ALLOCATION_ID, Context, ContextKind, DIRTY};
pub use reply::{
    ERROR_BYTES_MAX, ERROR_MESSAGE_BYTES_MAX, EXTENTS_MAX, Extent, OK_BYTES_MAX, READ_HEADER_BYTES_MAX,
    ReplyFormat, ReplyTag,
};
pub use request::{Command, Reject, Request};
pub use session::{Advance, Negotiated, Session, Step};

/// The longest payload, of a request or an option, that is drained to keep the stream in step. More than
/// the specification calls tolerable (32 MiB), less than a gigabit link carries in three seconds; a
/// client that announces more is cut off.
pub const PAYLOAD_BYTES_MAX: u64 = 256 << 20;

/// The most option data that is kept. More is drained and answered with `NBD_REP_ERR_TOO_BIG`.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
