//! The link to this node's replicator: what it says of its replicas, and what it is told to do. Over its control socket,
//! with the operator's own requests; decision 0020 says what is wanted instead, and why.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use orchestrator_core::decide::StepKind;
use orchestrator_core::units::{Epoch, NodeId, NodeSet, Position, VolumeId};
use orchestrator_core::view::{Copy, Replica, ReplicaView, Role};
use replicator::config::{Cluster, parse_uuid};
use replicator::control::json::{ReplicaReport, VolumeReport};
use replicator::control::{Client, ClientError};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

/// Why a replicator did not do what it was told.
#[derive(Debug, Error)]
pub enum LinkError {
    /// It says no, or does not answer.
    #[error(transparent)]
    Replicator(#[from] ClientError),
    /// It knows itself that it lacks acknowledged writes.
    #[error("the replica is out of the in-sync set by its own record, so it is not promoted")]
    NotMember,
    /// The configuration changed under a record.
    #[error("the configuration has no such volume or node")]
    Unknown,
}

/// A node's replicator, as the orchestrator needs it. Calls block.
pub trait Link: Send + Sync + 'static {
    /// What its replicas say of themselves; every configured one is in it.
    fn observe(&self) -> BTreeMap<VolumeId, ReplicaView>;

    /// Does one thing and waits for it.
    ///
    /// # Errors
    /// If it was not done, or nobody knows.
    fn act(&self, volume: VolumeId, step: StepKind) -> Result<String, LinkError>;
}

/// The replicator behind a control socket.
#[derive(Debug)]
pub struct ControlLink {
    client: Client,
    socket: PathBuf,
    me: String,
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
            me: node.name.clone(),
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

    fn promote(&self, volume: &str, alone: bool) -> Result<String, LinkError> {
        match self.client.promote(volume, false) {
            // A record that names this replica alone stands for the word of those that cannot be reached: none of them can
            // come to serve, nor could anything be acknowledged without this replica since the record was written.
            Err(ClientError::Refused(reason)) if reason.code == "needs-force" && alone => {
                let report = self.client.volume(volume)?;
                let members = report.replica.map(|replica| replica.record.in_sync).unwrap_or_default();
                if !members.contains(&self.me) {
                    return Err(LinkError::NotMember);
                }
                Ok(self.client.promote(volume, true)?.message)
            }
            answer => Ok(answer?.message),
        }
    }

    fn set_of<'n>(&self, names: impl Iterator<Item = &'n String>) -> NodeSet {
        names.filter_map(|name| self.nodes.get(name).copied()).collect()
    }

    fn replica(&self, report: &ReplicaReport) -> Replica {
        let following = report.peers.iter().filter(|peer| is_following(&peer.connection));
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
        }
    }
}

impl Link for ControlLink {
    fn observe(&self) -> BTreeMap<VolumeId, ReplicaView> {
        let volumes = match self.client.status() {
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

    fn act(&self, volume: VolumeId, step: StepKind) -> Result<String, LinkError> {
        let name = self.name(volume)?;
        match step {
            StepKind::Promote { alone, .. } => self.promote(name, alone),
            StepKind::Demote => Ok(self.client.demote(name)?.message),
            StepKind::Shrink(node) => {
                let found = self.nodes.iter().find(|(_, id)| **id == node);
                let (node, _) = found.ok_or(LinkError::Unknown)?;
                Ok(self.client.shrink(name, node)?.message)
            }
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
