//! Where a volume listens: for NBD clients on a unix socket and on TCP, for its peers on TCP. Only the sockets; who
//! comes in is the business of `clients` and `links`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::error::StartError;
use crate::options::VolumeOptions;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// How long an address in use is waited for.
const PATIENCE: Duration = Duration::from_millis(300);

/// Who comes in at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// NBD clients on this machine.
    ClientUnix,
    /// NBD clients anywhere.
    ClientTcp,
    /// Peers.
    Peer,
}

/// The listening sockets, and the name of the unix one, removed in the end.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) sockets: Vec<(Door, OwnedFd)>,
    pub(crate) unix: Option<UnixName>,
}

/// The name of a unix socket in the file system.
#[derive(Debug)]
pub(crate) struct UnixName(PathBuf);

impl Drop for UnixName {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listeners {
    /// Listens wherever the options say.
    pub(crate) fn open(options: &VolumeOptions) -> Result<Self, StartError> {
        let mut sockets = Vec::new();
        let mut unix = None;
        sockets.push((Door::Peer, tcp("peers", options.listen)?));
        if let Some(address) = options.nbd_tcp {
            sockets.push((Door::ClientTcp, tcp("NBD clients", address)?));
        }
        if let Some(path) = &options.nbd_unix {
            let listen = patiently(|| listen_unix(path));
            let socket = listen.map_err(|reason| StartError::ListenUnix { path: path.clone(), reason })?;
            sockets.push((Door::ClientUnix, socket));
            unix = Some(UnixName(path.clone()));
        }
        Ok(Self { sockets, unix })
    }
}

/// Tries again for a moment: the sockets of a process that was killed are gone only when the kernel has taken its
/// ring apart.
fn patiently<T, E>(mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            result => return result,
        }
    }
}

fn tcp(what: &'static str, address: SocketAddr) -> Result<OwnedFd, StartError> {
    let listen = || -> io::Result<OwnedFd> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    patiently(listen).map_err(|source| StartError::Listen { what, address, source })
}

/// Takes the place of a socket nobody answers on, and of nothing else.
fn listen_unix(path: &Path) -> Result<OwnedFd, String> {
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err("there is a file of that name that is no socket".to_owned());
        }
        match UnixStream::connect(path) {
            Ok(_) => return Err("another process answers there".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)
                    .map_err(|error| format!("cannot remove the stale socket: {error}"))?;
            }
            Err(error) => return Err(format!("cannot tell whether another process answers there: {error}")),
        }
    }
    let listen = || -> io::Result<OwnedFd> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Before `listen` nobody gets in, so there is no moment with wider permissions.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let first = listen_unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(listen_unix(&path).unwrap_err(), "another process answers there");
        drop(first);
        let _second = listen_unix(&path).unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(listen_unix(&path).unwrap_err().contains("no socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = tcp("peers", address).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("in use"), "{error}");
    }
}
