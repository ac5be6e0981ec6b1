//! The `[orchestrator]` section and each node's `[node.orchestrator]`: who votes, how failures are noticed, how long a
//! lease lasts. A file without them has no orchestrator, and the operator decides.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use replicator_core::config::OnPeerLoss;

use super::cluster::resolve;
use super::problem::Problems;
use super::reader::{NodeDraft, VolumeDraft, checked_address, checked_listen, checked_socket};
use super::section::{At, Section};
use super::value::format_duration_ms;

const CONTROL_SOCKET: &str = "/run/holdfast/orchestrator.sock";
const STORE: &str = "/var/lib/holdfast/orchestrator";
const PORT: u16 = 7787;
const WATCHDOG_TIMEOUT_MS: u64 = 5_000;
/// Heartbeats between which a link may be silent at least: fewer, and one lost packet is a failover.
const HEARTBEATS_MIN: u64 = 3;

/// How the orchestrators of a cluster behave, the same on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orchestrator {
    /// Interval of heartbeats on each link.
    pub heartbeat_ms: u64,
    /// Silence on all links after which a node is suspected.
    pub suspect_after_ms: u64,
    /// How long a lease lasts on its holder's clock.
    pub lease_ms: u64,
    /// How far a clock may be from the true rate, in parts per million.
    pub drift_ppm: u64,
    /// How long a takeover waits for a member that cannot have lost anything.
    pub unproven_grace_ms: u64,
    /// How long a member that is gone stays in the set.
    pub member_patience_ms: u64,
    /// Silence of a leader after which the others elect another one, at least; twice that at most.
    pub election_ms: u64,
    /// When nodes are switched off.
    pub fence: FenceMode,
    /// How long a node that is heard may take to stop serving before it is switched off.
    pub stop_patience_ms: u64,
    /// How much longer whoever switches off a node waits if that node is primary of something.
    pub priority_delay_ms: u64,
}

/// When nodes are switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceMode {
    /// Where nothing else can prove what must be proven.
    WhenNeeded,
    /// Before every takeover from a node that cannot say that it serves nobody.
    Always,
    /// By operators only.
    Never,
}

/// A node's watchdog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watchdog {
    /// The device.
    pub device: PathBuf,
    /// After how long without being fed it resets the machine.
    pub timeout_ms: u64,
}

/// Where a node's orchestrator is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOrchestrator {
    /// Where the others reach it: TCP for consensus, UDP for heartbeats.
    pub listen: SocketAddr,
    /// Further addresses for heartbeats, on links of their own, with the same port.
    pub links: Vec<IpAddr>,
    /// Its control socket.
    pub control: PathBuf,
    /// The folder of its votes and its log.
    pub store: PathBuf,
    /// Where it answers load balancers, monitoring and operators over HTTP, if it does.
    pub api_listen: Option<SocketAddr>,
    /// What resets the node when it may not serve any more and cannot be stopped.
    pub watchdog: Option<Watchdog>,
}

/// A `[node.orchestrator]` with the places of its values.
pub(super) struct NodeOrchestratorDraft {
    pub(super) port: At<u16>,
    pub(super) links: Vec<At<IpAddr>>,
    pub(super) control: At<PathBuf>,
    pub(super) store: At<PathBuf>,
    pub(super) api_listen: Option<At<SocketAddr>>,
    pub(super) watchdog: Option<Watchdog>,
}

/// Reads `[orchestrator]`, if it is there.
pub(super) fn read(top: &mut Section<'_>, problems: &mut Problems) -> Option<At<Orchestrator>> {
    let mut section = top.table("orchestrator", "[orchestrator]", problems)?;
    let span = section.span.clone();
    let mut duration = |key: &'static str, default_ms: u64, problems: &mut Problems| {
        section.duration_ms(key, problems).unwrap_or(At { value: default_ms, span: span.clone() })
    };
    let heartbeat = duration("heartbeat", 50, problems);
    let suspect_after = duration("suspect-after", 300, problems);
    let lease = duration("lease", 600, problems);
    let unproven_grace = duration("unproven-grace", 10_000, problems);
    let member_patience = duration("member-patience", 2_000, problems);
    let election = duration("election", 300, problems);
    let stop_patience = duration("stop-patience", 20_000, problems);
    let priority_delay = duration("fence-priority-delay", 0, problems);
    let modes =
        [("when-needed", FenceMode::WhenNeeded), ("always", FenceMode::Always), ("never", FenceMode::Never)];
    let mode = section.choice("fence", &modes, problems).map_or(FenceMode::WhenNeeded, |at| at.value);
    let drift = section.integer("clock-drift-ppm", 0..=100_000, problems).map_or(1_000, |at| at.value);
    section.finish(problems);
    if heartbeat.value == 0 {
        problems.error(
            &heartbeat.span,
            "`heartbeat` must be above 0",
            "write heartbeat = \"50ms\"".to_owned(),
        );
    }
    for (key, at) in [("suspect-after", &suspect_after), ("lease", &lease), ("election", &election)] {
        let least_ms = heartbeat.value * HEARTBEATS_MIN;
        if at.value < least_ms {
            let message = format!(
                "`{key}` is shorter than {HEARTBEATS_MIN} heartbeats: one lost packet would be a failure"
            );
            let help = format!("write {key} = \"{}\" or more", format_duration_ms(least_ms));
            problems.error(&at.span, message, help);
        }
    }
    let value = Orchestrator {
        heartbeat_ms: heartbeat.value,
        suspect_after_ms: suspect_after.value,
        lease_ms: lease.value,
        drift_ppm: drift,
        unproven_grace_ms: unproven_grace.value,
        member_patience_ms: member_patience.value,
        election_ms: election.value,
        fence: mode,
        stop_patience_ms: stop_patience.value,
        priority_delay_ms: priority_delay.value,
    };
    Some(At { value, span })
}

/// Reads a node's `[node.orchestrator]`; without one, everything has its default.
pub(super) fn read_node(
    node: &mut Section<'_>,
    path: &Path,
    problems: &mut Problems,
) -> Option<NodeOrchestratorDraft> {
    let header = node.span.clone();
    let mut section = node.table("orchestrator", "[node.orchestrator]", problems);
    let mut text = |key: &'static str, default: &str, problems: &mut Problems| {
        let found = section.as_mut().and_then(|section| section.text(key, problems));
        found.unwrap_or(At { value: default.to_owned(), span: header.clone() })
    };
    let control = text("control", CONTROL_SOCKET, problems);
    let store = text("store", STORE, problems).map(|store| resolve(path, &store));
    let port = section.as_mut().and_then(|section| section.integer("port", 1..=65535, problems));
    let port = port.unwrap_or(At { value: u64::from(PORT), span: header });
    let links = section.as_mut().map(|section| section.texts("links", problems)).unwrap_or_default();
    let api_listen = section.as_mut().and_then(|section| section.text("api-listen", problems));
    let api_listen = api_listen.and_then(|text| checked_listen(text, "api-listen", problems));
    let watchdog = section.as_mut().and_then(|section| read_watchdog(section, path, problems));
    if let Some(section) = section {
        section.finish(problems);
    }
    let links: Option<Vec<_>> =
        links.into_iter().map(|text| checked_address(text, "links", problems)).collect();
    let control = checked_socket(control, "control", path, problems)?;
    let port = port.map(|port| u16::try_from(port).expect("in range"));
    Some(NodeOrchestratorDraft { port, links: links?, control, store, api_listen, watchdog })
}

fn read_watchdog(section: &mut Section<'_>, path: &Path, problems: &mut Problems) -> Option<Watchdog> {
    let device = section.text("watchdog", problems);
    let timeout = section.duration_ms("watchdog-timeout", problems);
    let timeout_ms = timeout.as_ref().map_or(WATCHDOG_TIMEOUT_MS, |at| at.value);
    if let Some(timeout) = &timeout {
        if device.is_none() {
            problems.error(&timeout.span, "`watchdog-timeout` without `watchdog`", None);
        }
        if timeout_ms < 1_000 || !timeout_ms.is_multiple_of(1_000) {
            let message = "`watchdog-timeout`: watchdogs count in whole seconds, from 1 on";
            problems.error(&timeout.span, message, "\"5s\" is the default".to_owned());
        }
    }
    device.map(|device| Watchdog { device: resolve(path, &device.value), timeout_ms })
}

/// What the section says together with the rest of the file.
pub(super) fn check(
    orchestrator: &At<Orchestrator>,
    nodes: &[NodeDraft],
    volumes: &[VolumeDraft],
    problems: &mut Problems,
) {
    if nodes.len() == 2 {
        let message = "two nodes without a witness are not supported: neither may go on alone when it does not hear the \
             other, since the other may be going on as well, and both must agree on anything";
        let help = "add a [[node]] without replicas as a witness, any small machine will do; or leave [orchestrator] out, \
             and promote by hand"
            .to_owned();
        problems.error(&orchestrator.span, message, help);
    } else if nodes.len() < 3 {
        let message = format!("{} nodes cannot outvote a dead one: no failover is automatic", nodes.len());
        let help = "add a [[node]] without replicas as a witness; any small machine will do".to_owned();
        problems.warning(&orchestrator.span, message, help);
    } else if nodes.len().is_multiple_of(2) {
        let message = format!("{} nodes vote: one more than an odd number helps no one", nodes.len());
        problems.warning(&orchestrator.span, message, "add or remove a witness".to_owned());
    }
    for volume in volumes {
        if volume.tuning.on_peer_loss == OnPeerLoss::Continue {
            let message = format!(
                "volume \"{}\" goes on alone by itself, and the orchestrator could promote the other side meanwhile",
                volume.name.value
            );
            let help =
                "write on-peer-loss = \"freeze\": the orchestrator lets it go on, with a majority".to_owned();
            problems.error(&volume.span, message, help);
        }
    }
}
