//! Telling systemd that the service is ready or stopping (`Type=notify`); nothing happens elsewhere.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state`, as in `READY=1`. Nobody listening is no failure.
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound().map(|socket| (socket, address)))
        .and_then(|(socket, address)| socket.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        crate::output::say(&format!("cannot tell systemd {state}: {error}"));
    }
}
