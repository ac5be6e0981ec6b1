//! A volume on the node behind the control socket, as far as an attachment must know it.

use anyhow::{Context, Result, bail};
use replicator::control::Client;
use replicator::control::json::{NodeStatus, ReplicaReport, UblkReport, VolumeReport};

use super::identity::Identity;

/// What the replicator says of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exported {
    pub(crate) identity: Identity,
    /// Process of the replicator.
    pub(crate) pid: u32,
    pub(crate) size_bytes: u64,
    /// Bytes of the volume's blocks.
    pub(crate) block_bytes: u32,
    /// Where NBD clients find it.
    pub(crate) nbd: Vec<String>,
    /// The ublk device that the replicator serves.
    pub(crate) ublk: Option<UblkReport>,
    /// Why it is not served, and what to do; nothing if it is.
    pub(crate) refusal: Option<String>,
}

impl Exported {
    /// Asks for the volume, served or not.
    pub(crate) fn ask(client: &Client, volume: &str) -> Result<Self> {
        let status = client.status()?;
        let Some(report) = status.volumes.iter().find(|report| report.name == volume) else {
            bail!("node {} has no replica of a volume called {volume}", status.node);
        };
        let replica = report.replica.as_ref();
        let replica =
            replica.with_context(|| format!("the replica of {volume} has stopped: see holdfast status"))?;
        let identity = Identity {
            volume: volume.to_owned(),
            uuid: report.uuid.clone(),
            node: status.node.clone(),
            generation: replica.export_generation,
        };
        let refusal = (!replica.serving).then(|| why_not_served(&status, report, replica));
        Ok(Self {
            identity,
            pid: status.pid,
            size_bytes: replica.size_bytes,
            block_bytes: replica.block_bytes,
            nbd: report.nbd.clone(),
            ublk: replica.ublk,
            refusal,
        })
    }

    /// Bytes of the volume that `identity` is attached to, if it is served and has more than `device_bytes`.
    pub(crate) fn grown(client: &Client, identity: &Identity, device_bytes: Option<u64>) -> Option<u64> {
        // What cannot be asked now is asked again.
        let exported = Self::ask(client, &identity.volume).ok()?;
        let is_same = exported.refusal.is_none() && exported.identity == *identity;
        (is_same && exported.size_bytes > device_bytes?).then_some(exported.size_bytes)
    }

    /// Asks for the volume; an error if it is not served.
    pub(crate) fn served(client: &Client, volume: &str) -> Result<Self> {
        let exported = Self::ask(client, volume)?;
        match &exported.refusal {
            Some(refusal) => bail!("{refusal}"),
            None => Ok(exported),
        }
    }
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
