//! What the configuration file says, as the orchestrator needs it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use orchestrator_core::fence::{Mode, Rules};
use orchestrator_core::lease::Terms;
use orchestrator_core::policy::{Detection, Node, Policy, Volume};
use orchestrator_core::units::{NodeId, VolumeId};
use replicator::config::{Cluster, FenceMode};
use replicator::options::Secret;
use thiserror::Error;

use crate::fence::{Fencer, devices_of};

/// How much longer than its usual patience a detector may be made by unsteady links.
const PATIENCE_FACTOR_MAX: u64 = 7;

/// Why there is no orchestrator in a configuration.
#[derive(Debug, Error)]
pub enum OptionsError {
    /// It has no section.
    #[error("the configuration has no [orchestrator] section; write one, or promote and demote by hand")]
    NoSection,
    /// It was read without its secret.
    #[error("the cluster's secret was not read")]
    NoSecret,
}

/// What one node's orchestrator is started with.
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) cluster: String,
    pub(crate) me: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) secret: Secret,
    pub(crate) policy: Policy,
    pub(crate) election_ms: u64,
    pub(crate) nodes: BTreeMap<NodeId, NodeAddress>,
    pub(crate) control: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) fencer: Fencer,
    pub(crate) watchdog: Option<replicator::config::Watchdog>,
}

/// Where a node is reached.
#[derive(Clone, Debug)]
pub(crate) struct NodeAddress {
    pub(crate) listen: SocketAddr,
    pub(crate) links: Vec<IpAddr>,
}

impl Options {
    /// The options of `node`.
    ///
    /// # Errors
    /// If the configuration has no orchestrator, or was read without its secret.
    pub fn new(cluster: &Cluster, node: &replicator::config::Node) -> Result<Self, OptionsError> {
        let section = cluster.orchestrator.as_ref().ok_or(OptionsError::NoSection)?;
        let own = node.orchestrator.as_ref().ok_or(OptionsError::NoSection)?;
        let secret = cluster.secret.clone().ok_or(OptionsError::NoSecret)?;
        let addresses = cluster.nodes.iter().filter_map(|node| {
            let orchestrator = node.orchestrator.as_ref()?;
            let links = [orchestrator.listen.ip()].into_iter().chain(orchestrator.links.iter().copied());
            let address = NodeAddress { listen: orchestrator.listen, links: links.collect() };
            Some((NodeId(node.id.0), address))
        });
        let detection = Detection {
            heartbeat_ms: section.heartbeat_ms,
            suspect_after_ms: section.suspect_after_ms,
            suspect_at_most_ms: section.suspect_after_ms * PATIENCE_FACTOR_MAX,
            ..Detection::default()
        };
        let fencer = devices_of(cluster);
        let policy = Policy {
            nodes: cluster
                .nodes
                .iter()
                .map(|node| Node { id: NodeId(node.id.0), name: node.name.clone() })
                .collect(),
            volumes: cluster.volumes.iter().map(volume).collect(),
            lease: Terms { duration_ms: section.lease_ms, drift_ppm: section.drift_ppm },
            detection,
            unproven_grace_ms: section.unproven_grace_ms,
            member_patience_ms: section.member_patience_ms,
            fence: rules(cluster, section, &fencer),
        };
        Ok(Self {
            cluster: cluster.name.clone(),
            me: NodeId(node.id.0),
            incarnation: cluster.incarnation.0,
            secret,
            policy,
            election_ms: section.election_ms,
            nodes: addresses.collect(),
            control: own.control.clone(),
            store: own.store.clone(),
            fencer,
            watchdog: own.watchdog.clone(),
        })
    }
}

fn rules(cluster: &Cluster, section: &replicator::config::Orchestrator, fencer: &Fencer) -> Rules {
    let needs_off = cluster.volumes.iter().filter(|volume| volume.takeover_needs_off);
    Rules {
        mode: match section.fence {
            FenceMode::WhenNeeded => Mode::WhenNeeded,
            FenceMode::Always => Mode::Always,
            FenceMode::Never => Mode::Never,
        },
        stop_patience_ms: section.stop_patience_ms,
        fenceable: fencer.targets(),
        surely_off: needs_off.map(|volume| VolumeId(volume.id.0)).collect(),
    }
}

fn volume(volume: &replicator::config::Volume) -> Volume {
    Volume {
        id: VolumeId(volume.id.0),
        name: volume.name.clone(),
        replicas: volume.replicas.iter().map(|replica| NodeId(replica.node.0)).collect(),
    }
}
