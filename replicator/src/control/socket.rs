//! The control socket as a file: one owner at a time, never readable by others, and a stale one replaced.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

/// Why the control socket cannot be had.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody else has it.
    #[error(
        "the control socket {} belongs to another process that is running; stop that one, or give this node \
         another `control` path", path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Its folder is missing.
    #[error("the folder of the control socket {} does not exist; make it first (systemd: RuntimeDirectory=holdfast)", path.display())]
    NoFolder {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket lies there.
    #[error("{} is not a socket; it is left alone: remove it, or choose another `control` path", path.display())]
    NotASocket {
        /// What lies there.
        path: PathBuf,
    },
    /// The system refused something.
    #[error("cannot {action} the control socket {}: {source}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound control socket; removed when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    /// Held for as long as the socket is: whoever has the lock owns the path.
    _lock: File,
}

impl ControlSocket {
    /// Binds `path`.
    ///
    /// # Errors
    /// If somebody else has it, or the system refuses.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let system = |action| move |source| SocketError::System { path: path.to_owned(), action, source };
        if path.parent().is_some_and(|folder| !folder.exists()) {
            return Err(SocketError::NoFolder { path: path.to_owned() });
        }
        // A lock beside the socket, since an unbound socket file says nothing about whether its owner lives.
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(beside(path, "lock"))
            .map_err(system("lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SocketError::InUse { path: path.to_owned() }),
            Err(error) => return Err(system("lock")(error.into())),
        }
        remove_stale(path)?;
        let listener = bind_private(path).map_err(system("bind"))?;
        Ok((Self { path: path.to_owned(), _lock: lock }, listener))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The lock file stays: removing it would let two owners lock two files of one name.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    use std::os::unix::fs::FileTypeExt;
    let system = |action| move |source| SocketError::System { path: path.to_owned(), action, source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(system("look at")(error)),
        Ok(metadata) if metadata.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(system("remove the stale file of"))
        }
        Ok(_) => Err(SocketError::NotASocket { path: path.to_owned() }),
    }
}

/// Binds under another name first, so that the socket is never there with a mode that lets others in.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let draft = beside(path, "new");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&draft)?;
    std::fs::set_permissions(&draft, Permissions::from_mode(0o600))?;
    std::fs::rename(&draft, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}
