//! The two kinds of failure: an error value sent to the client, and an end of the session. Not about I/O.

use core::error::Error;
use core::fmt;

use crate::spec;

/// An error value of a reply, the closed list of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NbdError {
    /// `NBD_EPERM`: a write to a read-only export.
    Permission,
    /// `NBD_EIO`: the device failed.
    Io,
    /// `NBD_ENOMEM`: the specification asks to avoid it.
    NoMemory,
    /// `NBD_EINVAL`: the request is malformed, unaligned or not offered.
    Invalid,
    /// `NBD_ENOSPC`: a write beyond the end, or no room.
    NoSpace,
    /// `NBD_EOVERFLOW`: a read too long for one reply.
    Overflow,
    /// `NBD_ENOTSUP`: only for a fast zero that would not be fast.
    NotSupported,
    /// `NBD_ESHUTDOWN`: the server is going away; the client must disconnect.
    Shutdown,
}

impl NbdError {
    /// The value on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Permission => spec::NBD_EPERM,
            Self::Io => spec::NBD_EIO,
            Self::NoMemory => spec::NBD_ENOMEM,
            Self::Invalid => spec::NBD_EINVAL,
            Self::NoSpace => spec::NBD_ENOSPC,
            Self::Overflow => spec::NBD_EOVERFLOW,
            Self::NotSupported => spec::NBD_ENOTSUP,
            Self::Shutdown => spec::NBD_ESHUTDOWN,
        }
    }

    /// The error of the protocol for a Linux `errno`. What the protocol has no word for is `Io`:
    /// the client must not take a failure of the device for a mistake of its own.
    #[must_use]
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            1 | 13 | 30 => Self::Permission, // EPERM, EACCES, EROFS
            12 => Self::NoMemory,            // ENOMEM
            22 => Self::Invalid,             // EINVAL
            27 | 28 | 122 => Self::NoSpace,  // EFBIG, ENOSPC, EDQUOT
            75 => Self::Overflow,            // EOVERFLOW
            95 => Self::NotSupported,        // EOPNOTSUPP
            108 => Self::Shutdown,           // ESHUTDOWN
            _ => Self::Io,
        }
    }
}

impl fmt::Display for NbdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permission => "operation not permitted",
            Self::Io => "input/output error",
            Self::NoMemory => "out of memory",
            Self::Invalid => "invalid request",
            Self::NoSpace => "no space left on device",
            Self::Overflow => "request too long",
            Self::NotSupported => "operation not supported",
            Self::Shutdown => "server is shutting down",
        })
    }
}

impl Error for NbdError {}

/// Why a session cannot go on: the stream is out of step, hostile, or the client asked by an option
/// that has no error reply. The driver closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionError {
    /// The client set flags that were not offered.
    ClientFlags(u32),
    /// An option did not begin with `IHAVEOPT`.
    OptionMagic(u64),
    /// An option announced more data than a session is willing to drain.
    OptionTooLarge {
        /// The length the client announced.
        length_bytes: u32,
    },
    /// `NBD_OPT_EXPORT_NAME` with a name longer than a string may be.
    NameTooLong,
    /// `NBD_OPT_EXPORT_NAME` of an export that does not exist.
    ExportUnknown,
    /// `NBD_OPT_EXPORT_NAME` of an export that is not to be had now.
    ExportRefused,
    /// `NBD_OPT_EXPORT_NAME` before TLS, where nothing is to be had without.
    TlsRequired,
    /// `NBD_OPT_EXPORT_NAME` after extended headers, which need `NBD_OPT_GO`.
    ExportNameWithExtendedHeaders,
    /// A request did not begin with the magic that was negotiated.
    RequestMagic(u32),
    /// A request announced more payload than a session is willing to drain.
    PayloadTooLarge {
        /// The length the client announced.
        length_bytes: u64,
    },
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientFlags(flags) => write!(f, "client flags {flags:#x} were not offered"),
            Self::OptionMagic(magic) => write!(f, "option begins with {magic:#018x}, not IHAVEOPT"),
            Self::OptionTooLarge { length_bytes } => write!(f, "option announces {length_bytes} bytes"),
            Self::NameTooLong => f.write_str("export name is too long"),
            Self::ExportUnknown => f.write_str("NBD_OPT_EXPORT_NAME asks for an unknown export"),
            Self::ExportRefused => {
                f.write_str("NBD_OPT_EXPORT_NAME asks for an export that is not available")
            }
            Self::TlsRequired => {
                f.write_str("NBD_OPT_EXPORT_NAME before NBD_OPT_STARTTLS, which is required")
            }
            Self::ExportNameWithExtendedHeaders => {
                f.write_str("NBD_OPT_EXPORT_NAME cannot follow extended headers")
            }
            Self::RequestMagic(magic) => write!(f, "request begins with {magic:#010x}"),
            Self::PayloadTooLarge { length_bytes } => {
                write!(f, "request announces {length_bytes} bytes of payload")
            }
        }
    }
}

impl Error for SessionError {}
