//! The link to this node's replicator: what it says of its replicas, and what it is told to do, over its control socket.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestrator_core::decide::{Step, StepKind};
use orchestrator_core::record::Record;
use orchestrator_core::units::{Epoch, Instant, NodeId, NodeSet, Position, VolumeId};
use orchestrator_core::view::{Copy, Replica, ReplicaView, Role};
use replicator::config::{Cluster, parse_uuid};
use replicator::control::json::{Lease, OpenEpoch, ReplicaReport, Seal, TellRecord, VolumeReport};
use replicator::control::{Client, ClientError};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

/// How long a replicator may take to say how it is. One that takes longer hangs, and somebody else may have to serve.
const OBSERVE_WITHIN: Duration = Duration::from_secs(2);

/// How long it may take to take over keys.
const REKEY_WITHIN: Duration = Duration::from_secs(4);

/// Why a replicator did not do what it was told.
#[derive(Debug, Error)]
pub enum LinkError {
    /// It says no, or does not answer.
    #[error(transparent)]
    Replicator(#[from] ClientError),
    /// It was sealed, and is not any more: another epoch has begun there.
    #[error("another epoch began while it was sealed")]
    Unsealed,
    /// The configuration changed under a record.
    #[error("the configuration has no such volume or node")]
    Unknown,
}

/// A node's replicator, as the orchestrator needs it. Calls block.
pub trait Link: Send + Sync + 'static {
    /// What its replicas say of themselves; every configured one is in it.
    fn observe(&self) -> BTreeMap<VolumeId, ReplicaView>;

    /// Does one thing and waits until it is durable. A reign begins with `lease`, if there is one.
    ///
    /// # Errors
    /// If it was not done, or nobody knows.
    fn act(&self, step: &Step, lease: Option<Instant>) -> Result<String, LinkError>;

    /// Has a replica promise an epoch, and says how it is then.
    ///
    /// # Errors
    /// If it did not promise, or nobody knows.
    fn seal(&self, volume: VolumeId, epoch: Epoch) -> Result<Replica, LinkError>;

    /// Tells a replica until when it may answer clients, in the reign of `epoch`.
    ///
    /// # Errors
    /// If it does not reign, or nobody knows.
    fn lease(&self, volume: VolumeId, epoch: Epoch, end: Instant) -> Result<(), LinkError>;

    /// Has the replicator take over the cluster's keys; one that does not run reads them when it starts.
    ///
    /// # Errors
    /// If it runs and did not.
    fn rekey(&self) -> Result<(), LinkError>;
}

/// The replicator behind a control socket.
#[derive(Debug)]
pub struct ControlLink {
    client: Client,
    socket: PathBuf,
    nodes: BTreeMap<String, NodeId>,
    volumes: BTreeMap<VolumeId, String>,
}

impl ControlLink {
    /// The replicator of `node` in `cluster`.
    #[must_use]
    pub fn new(cluster: &Cluster, node: &replicator::config::Node) -> Self {
        Self {
            client: Client::new(&node.control),
            socket: node.control.clone(),
            nodes: cluster.nodes.iter().map(|node| (node.name.clone(), NodeId(node.id.0))).collect(),
            volumes: cluster
                .volumes_of(node.id)
                .map(|volume| (VolumeId(volume.id.0), volume.name.clone()))
                .collect(),
        }
    }

    fn name(&self, volume: VolumeId) -> Result<&str, LinkError> {
        self.volumes.get(&volume).map(String::as_str).ok_or(LinkError::Unknown)
    }

    fn names_of(&self, nodes: NodeSet) -> Vec<String> {
        let names = self.nodes.iter().filter(|(_, id)| nodes.contains(**id));
        names.map(|(name, _)| name.clone()).collect()
    }

    fn open(&self, volume: &str, record: &Record, lease: Option<Instant>) -> Result<String, LinkError> {
        let reign = OpenEpoch {
            epoch: record.epoch.0,
            version: record.version,
            reign: format!("{:032x}", record.reign.0),
            in_sync: self.names_of(record.in_sync),
            generation: record.generation,
            lease_end_ms: lease.map(|end| end.0),
        };
        Ok(self.client.open_epoch(volume, &reign)?.message)
    }

    fn tell(&self, volume: &str, record: &Record) -> Result<String, LinkError> {
        let in_sync = self.names_of(record.in_sync);
        let record = TellRecord { epoch: record.epoch.0, version: record.version, in_sync };
        Ok(self.client.record(volume, &record)?.message)
    }

    fn set_of<'n>(&self, names: impl Iterator<Item = &'n String>) -> NodeSet {
        names.filter_map(|name| self.nodes.get(name).copied()).collect()
    }

    fn replica(&self, report: &ReplicaReport) -> Replica {
        let following = report.peers.iter().filter(|peer| peer.answers && is_following(&peer.connection));
        let head = position(&report.head);
        Replica {
            role: match report.role.as_str() {
                "Secondary" => Role::Secondary,
                _ if report.serving => Role::Primary,
                _ => Role::Changing,
            },
            copy: match report.disk_state.as_str() {
                "UpToDate" if !report.suspect => Copy::UpToDate,
                "UpToDate" => Copy::Unusable("UpToDate and suspect".to_owned()),
                other => Copy::Unusable(other.to_owned()),
            },
            proven: report.proven,
            promised: Epoch(report.promised),
            committed: Position { sequence: report.committed, ..head },
            head,
            record: (Epoch(report.record.epoch), report.record.version),
            in_sync: self.set_of(report.record.in_sync.iter()),
            following: self.set_of(following.map(|peer| &peer.node)),
            pending: report.wish.as_ref().map(|wish| self.set_of(wish.add.iter())).unwrap_or_default(),
        }
    }
}

impl Link for ControlLink {
    fn observe(&self) -> BTreeMap<VolumeId, ReplicaView> {
        let volumes = match self.client.clone().within(OBSERVE_WITHIN).status() {
            Ok(status) => status.volumes,
            Err(ClientError::Unreachable { .. }) if is_ownerless(&self.socket) => {
                return self.volumes.keys().map(|volume| (*volume, ReplicaView::Stopped)).collect();
            }
            Err(error) => {
                let silent = ReplicaView::Silent(error.to_string());
                return self.volumes.keys().map(|volume| (*volume, silent.clone())).collect();
            }
        };
        let view = |volume: &VolumeId| {
            let is_it = |report: &&VolumeReport| parse_uuid(&report.uuid) == Some(volume.0);
            match volumes.iter().find(is_it) {
                Some(VolumeReport { replica: Some(replica), .. }) => {
                    ReplicaView::Running(self.replica(replica))
                }
                Some(report) => {
                    let why = report.problems.first().map(|problem| problem.text.clone());
                    ReplicaView::Silent(why.unwrap_or_else(|| "it says nothing of itself".to_owned()))
                }
                None => ReplicaView::Silent("its replicator has no such volume".to_owned()),
            }
        };
        self.volumes.keys().map(|volume| (*volume, view(volume))).collect()
    }

    fn act(&self, step: &Step, lease: Option<Instant>) -> Result<String, LinkError> {
        let name = self.name(step.volume)?;
        match step.kind {
            StepKind::Open(_) => self.open(name, &step.record, lease),
            StepKind::Release => Ok(self.client.release(name)?.message),
            StepKind::Tell(_) => self.tell(name, &step.record),
        }
    }

    fn seal(&self, volume: VolumeId, epoch: Epoch) -> Result<Replica, LinkError> {
        let sealed = self.client.seal(self.name(volume)?, &Seal { attempt: epoch.0, epoch: epoch.0 })?;
        let replica = self.replica(&sealed.replica);
        let is_sealed =
            replica.promised == epoch && replica.role == Role::Secondary && replica.record.0 < epoch;
        if is_sealed { Ok(replica) } else { Err(LinkError::Unsealed) }
    }

    fn lease(&self, volume: VolumeId, epoch: Epoch, end: Instant) -> Result<(), LinkError> {
        self.client.lease(self.name(volume)?, Lease { epoch: epoch.0, end_ms: end.0 })?;
        Ok(())
    }

    fn rekey(&self) -> Result<(), LinkError> {
        match self.client.clone().within(REKEY_WITHIN).rekey() {
            Err(ClientError::Unreachable { .. }) if is_ownerless(&self.socket) => Ok(()),
            answer => Ok(answer.map(drop)?),
        }
    }
}

fn is_following(connection: &str) -> bool {
    matches!(connection, "Established" | "CatchUp")
}

/// `epoch:sequence`; the beginning if it is not understood.
fn position(text: &str) -> Position {
    let parsed = text.split_once(':').and_then(|(epoch, sequence)| {
        Some(Position { epoch: Epoch(epoch.parse().ok()?), sequence: sequence.parse().ok()? })
    });
    parsed.unwrap_or_default()
}

/// Whether no process holds the control socket of a replicator: its lock, which the kernel lets go with the process, can
/// be had. Then nothing of it is left that could answer a client.
fn is_ownerless(socket: &Path) -> bool {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    match OpenOptions::new().write(true).open(&path) {
        // It never ran since the machine came up.
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions() {
        assert_eq!(position("3:41"), Position { epoch: Epoch(3), sequence: 41 });
        assert_eq!(position("x"), Position::default());
    }

    #[test]
    fn a_socket_is_ownerless_when_its_lock_can_be_had() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("a.ctl");
        assert!(is_ownerless(&socket));
        let lock = std::fs::File::create(folder.path().join("a.ctl.lock")).unwrap();
        assert!(is_ownerless(&socket));
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(!is_ownerless(&socket));
        drop(lock);
        assert!(is_ownerless(&socket));
    }
}
