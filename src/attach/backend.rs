//! The replicator's side of an attachment over NBD: connections to the volume, ready for the kernel.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use replicator::control::Client;

use super::exported::Exported;
use super::identity::Identity;
use crate::nbd_negotiation::{Export, negotiate};

/// How long one step of a negotiation may take.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections to a volume that is served, negotiated up to where requests may be sent.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) identity: Identity,
    pub(crate) export: Export,
    pub(crate) sockets: Vec<UnixStream>,
}

impl Backend {
    /// Connects to the volume on the node behind `client`.
    pub(crate) fn connect(client: &Client, volume: &str, connections: u8) -> Result<Self> {
        let exported = Exported::served(client, volume)?;
        let path = socket_of(&exported)?;
        let mut sockets = Vec::new();
        let mut export = Export::default();
        for _ in 0..connections {
            let (socket, said) = connect(&path, volume)
                .with_context(|| format!("cannot connect to {volume} on {}", path.display()))?;
            sockets.push(socket);
            export = said;
        }
        // The connections end with the reign that they were made in. So if the generation is the same afterwards,
        // they either belong to it or are dead.
        if Exported::served(client, volume)?.identity != exported.identity {
            bail!("another node became primary of {volume} just now; try again");
        }
        Ok(Self { identity: exported.identity, export, sockets })
    }
}

fn connect(path: &Path, volume: &str) -> io::Result<(UnixStream, Export)> {
    let mut socket = UnixStream::connect(path)?;
    socket.set_read_timeout(Some(NEGOTIATION_TIMEOUT))?;
    socket.set_write_timeout(Some(NEGOTIATION_TIMEOUT))?;
    let export = negotiate(&mut socket, volume)?;
    // The kernel would take a pause of the server for its death.
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)?;
    Ok((socket, export))
}

fn socket_of(exported: &Exported) -> Result<PathBuf> {
    let mut uris = exported.nbd.iter();
    let path = uris.find_map(|uri| Some(uri.strip_prefix("nbd+unix:")?.split_once("?socket=")?.1));
    path.map(PathBuf::from)
        .with_context(|| format!("{} has no unix socket for NBD", exported.identity.volume))
}
