//! The same work through three ways into the kernel.

pub(crate) mod memory;
pub(crate) mod plain;
pub(crate) mod raw;
pub(crate) mod tokio;

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

/// Both ends of a connection, with room for every message in flight.
pub(crate) fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (a, b) = UnixStream::pair()?;
    for socket in [&a, &b] {
        let bytes: libc::c_int = 1 << 20;
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        let (fd, level, name) = (socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF);
        // SAFETY: the option is a number, which outlives the call.
        let result = unsafe { libc::setsockopt(fd, level, name, (&raw const bytes).cast(), length) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok((a, b))
}
