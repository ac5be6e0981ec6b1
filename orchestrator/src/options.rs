//! What the configuration file says, as the orchestrator needs it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use orchestrator_core::fence::{Mode, Rules};
use orchestrator_core::lease::Terms;
use orchestrator_core::policy::{Detection, Node, Policy, Volume};
use orchestrator_core::timing::{self, Worst};
use orchestrator_core::units::{NodeId, VolumeId};
use replicator::config::{Cluster, FenceMode, SecretFiles, names_of};
use replicator::secrets::Secrets;
use thiserror::Error;

use crate::fence::{Fencer, devices_of};
use crate::stack::{Executors, Places, executors};

/// How much longer than its usual patience a detector may be made by unsteady links.
const PATIENCE_FACTOR_MAX: u64 = 7;
/// The longest that a voter waits before it asks for votes, in the shortest.
pub(crate) const ELECTION_FACTOR_MAX: u64 = 2;

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
    /// The file that all this stands in.
    pub(crate) configuration: PathBuf,
    pub(crate) me: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) secrets: Secrets,
    /// Where they lie; `None` if that is the configuration itself.
    pub(crate) secret_files: Option<SecretFiles>,
    pub(crate) policy: Policy,
    pub(crate) election_ms: u64,
    /// Where each node is reached: an address on each link, the first being the node's own.
    pub(crate) nodes: BTreeMap<NodeId, Vec<SocketAddr>>,
    pub(crate) control: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) fencer: Fencer,
    pub(crate) executors: Executors,
    pub(crate) watchdog: Option<replicator::config::Watchdog>,
    /// Where load balancers and operators are answered over TCP, and by which names and addresses they find it.
    pub(crate) api: Option<(SocketAddr, Vec<String>)>,
    pub(crate) hooks: Vec<replicator::config::Hook>,
}

impl Options {
    /// The options of `node`, from the file at `configuration`.
    ///
    /// # Errors
    /// If the configuration has no orchestrator, or was read without its secret.
    pub fn new(
        configuration: &Path,
        cluster: &Cluster,
        node: &replicator::config::Node,
    ) -> Result<Self, OptionsError> {
        let section = cluster.orchestrator.as_ref().ok_or(OptionsError::NoSection)?;
        let own = node.orchestrator.as_ref().ok_or(OptionsError::NoSection)?;
        let secrets = cluster.secrets.clone().ok_or(OptionsError::NoSecret)?;
        let addresses = cluster.nodes.iter().filter_map(|node| {
            let orchestrator = node.orchestrator.as_ref()?;
            let links = [orchestrator.listen.ip()].into_iter().chain(orchestrator.links.iter().copied());
            let port = orchestrator.listen.port();
            Some((NodeId(node.id.0), links.map(|link| SocketAddr::new(link, port)).collect()))
        });
        let fencer = devices_of(cluster);
        let policy = Policy {
            nodes: cluster
                .nodes
                .iter()
                .map(|node| Node { id: NodeId(node.id.0), name: node.name.clone() })
                .collect(),
            volumes: cluster.volumes.iter().map(volume).collect(),
            lease: terms(section),
            detection: detection(section),
            unproven_grace_ms: section.unproven_grace_ms,
            member_patience_ms: section.member_patience_ms,
            fence: rules(cluster, section, &fencer),
            stacks: cluster.stacks.iter().map(crate::stack::rule).collect(),
        };
        let places = Places {
            node: node.name.clone(),
            program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("holdfast")),
            replicator: node.control.clone(),
            store: own.store.clone(),
        };
        let executors = executors(&cluster.stacks, &places);
        Ok(Self {
            cluster: cluster.name.clone(),
            configuration: configuration.to_owned(),
            me: NodeId(node.id.0),
            incarnation: cluster.incarnation.0,
            secrets,
            secret_files: cluster.secret_file.as_deref().map(SecretFiles::at),
            policy,
            election_ms: section.election_ms,
            nodes: addresses.collect(),
            control: own.control.clone(),
            store: own.store.clone(),
            fencer,
            executors,
            watchdog: own.watchdog.clone(),
            api: own.api_listen.map(|listen| (listen, names_of(node, Some(listen)))),
            hooks: cluster.hooks.clone(),
        })
    }
}

/// How long a failover takes at most, if the cluster has orchestrators.
#[must_use]
pub fn worst(cluster: &Cluster) -> Option<Worst> {
    let section = cluster.orchestrator.as_ref()?;
    let election_at_most_ms = section.election_ms * ELECTION_FACTOR_MAX;
    Some(timing::worst(&detection(section), terms(section), election_at_most_ms))
}

fn detection(section: &replicator::config::Orchestrator) -> Detection {
    Detection {
        heartbeat_ms: section.heartbeat_ms,
        suspect_after_ms: section.suspect_after_ms,
        suspect_at_most_ms: section.suspect_after_ms * PATIENCE_FACTOR_MAX,
        ..Detection::default()
    }
}

fn terms(section: &replicator::config::Orchestrator) -> Terms {
    Terms { duration_ms: section.lease_ms, drift_ppm: section.drift_ppm }
}

fn rules(cluster: &Cluster, section: &replicator::config::Orchestrator, fencer: &Fencer) -> Rules {
    let by_stack = |volume: &replicator::config::Volume| {
        let on_it = cluster.stacks.iter().filter(|stack| stack.volumes.contains(&volume.id));
        on_it.flat_map(|stack| &stack.steps).any(|step| step.needs_off)
    };
    let needs_off = cluster.volumes.iter().filter(|volume| volume.takeover_needs_off || by_stack(volume));
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
