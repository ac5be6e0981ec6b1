//! The replicator's side of an attachment: who serves the volume, and connections to it, ready for the kernel.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use replicator::control::Client;
use replicator::control::json::{NodeStatus, ReplicaReport, VolumeReport};

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
        let (identity, path) = served(&client.status()?, volume)?;
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
        let (afterwards, _) = served(&client.status()?, volume)?;
        if afterwards != identity {
            bail!("another node became primary of {volume} just now; try again");
        }
        Ok(Self { identity, export, sockets })
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

/// The volume's identity on a node, and where it is served; an error if it is not.
fn served(status: &NodeStatus, volume: &str) -> Result<(Identity, PathBuf)> {
    let Some(report) = status.volumes.iter().find(|report| report.name == volume) else {
        bail!("node {} has no replica of a volume called {volume}", status.node);
    };
    let Some(replica) = &report.replica else {
        bail!("the replica of {volume} has stopped: see holdfast status")
    };
    if !replica.serving {
        bail!("{}", why_not_served(status, report, replica));
    }
    let identity = Identity {
        volume: volume.to_owned(),
        uuid: report.uuid.clone(),
        node: status.node.clone(),
        generation: replica.export_generation,
    };
    Ok((identity, socket_of(report)?))
}

fn why_not_served(status: &NodeStatus, report: &VolumeReport, replica: &ReplicaReport) -> String {
    let (volume, node) = (&report.name, &status.node);
    match &replica.record.primary {
        Some(primary) if primary != node => {
            format!("{volume} is not served on node {node} but on {primary}: attach it there")
        }
        _ => format!(
            "{volume} is not served on node {node}: make it primary first (holdfast promote {volume})"
        ),
    }
}

fn socket_of(report: &VolumeReport) -> Result<PathBuf> {
    let path =
        report.nbd.iter().find_map(|uri| Some(uri.strip_prefix("nbd+unix:")?.split_once("?socket=")?.1));
    path.map(PathBuf::from).with_context(|| format!("{} has no unix socket for NBD", report.name))
}
