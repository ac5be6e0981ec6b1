//! Reads the sections of the file into drafts: types, ranges and defaults of each key by itself. What keys say
//! together is checked in `relations`.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use replicator_core::config::Protocol;
use replicator_core::limits::NODES_MAX;
use replicator_core::units::{Incarnation, NodeId, VolumeId};
use toml::de::DeTable;

use super::cluster::{Cluster, Node, Replica, Volume, resolve};
use super::orchestrator::{self, NodeOrchestrator, NodeOrchestratorDraft, Orchestrator};
use super::problem::Problems;
use super::section::{At, Section};
use super::tuning::Tuning;
use super::uuid::{format_uuid, fresh_uuid, parse_uuid};
use super::{WithSecret, fence, hook, relations, secret, stack};
use crate::secrets::Secrets;

const CONTROL_SOCKET: &str = "/run/holdfast/control.sock";
const SOCKET_PATH_BYTES_MAX: usize = 107;
const NAME_BYTES_MAX: usize = 64;
const JOURNAL_BYTES: u64 = 1 << 30;
const PROTOCOLS: [(&str, Protocol); 3] = [("A", Protocol::A), ("B", Protocol::B), ("C", Protocol::C)];

/// What `[cluster]` says.
struct Head {
    name: String,
    incarnation: Incarnation,
    secrets: Option<Secrets>,
    secret_file: Option<PathBuf>,
}

/// A `[[node]]` with the places of its values.
pub(super) struct NodeDraft {
    pub(super) id: At<NodeId>,
    pub(super) name: At<String>,
    pub(super) address: At<IpAddr>,
    pub(super) control: At<PathBuf>,
    pub(super) metrics_listen: Option<At<SocketAddr>>,
    pub(super) orchestrator: NodeOrchestratorDraft,
}

/// A `[[volume]]` with the places of its values.
pub(super) struct VolumeDraft {
    pub(super) span: Range<usize>,
    pub(super) name: At<String>,
    pub(super) id: At<u128>,
    pub(super) size_bytes: At<u64>,
    pub(super) block_bytes: At<u32>,
    pub(super) protocol: At<Protocol>,
    pub(super) tuning: Tuning,
    pub(super) takeover_needs_off: bool,
    pub(super) replicas: Vec<ReplicaDraft>,
}

/// A `[[volume.replica]]` with the places of its values.
pub(super) struct ReplicaDraft {
    pub(super) node: At<String>,
    pub(super) disk: At<PathBuf>,
    pub(super) journal: At<PathBuf>,
    pub(super) branches: PathBuf,
    pub(super) journal_bytes: At<u64>,
    pub(super) address: Option<At<IpAddr>>,
    pub(super) port: At<u16>,
    pub(super) nbd_socket: At<PathBuf>,
    pub(super) nbd_listen: Option<At<SocketAddr>>,
    pub(super) protocol: Option<Protocol>,
    pub(super) apply_delay: Option<At<u64>>,
}

impl ReplicaDraft {
    /// How it is fed in a volume of this protocol. One that applies late follows.
    pub(super) fn protocol_of(&self, volume: Protocol) -> Protocol {
        if self.apply_delay.is_some() { Protocol::A } else { self.protocol.unwrap_or(volume) }
    }
}

/// Reads the whole file; `None` if what is wrong leaves nothing to look at.
pub(super) fn read(
    text: &str,
    path: &Path,
    with_secret: WithSecret,
    problems: &mut Problems,
) -> Option<Cluster> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        problems.error(&span, error.message().trim().replace('\n', ", "), None);
    }
    if !errors.is_empty() {
        return None;
    }
    let mut top = Section::new("the file", document.get_ref(), 0..0);
    let head = read_cluster(&mut top, path, with_secret, problems);
    let orchestrator = orchestrator::read(&mut top, problems);
    let nodes = read_nodes(&mut top, path, problems);
    let devices = fence::read(&mut top, path, with_secret, problems);
    let mut sections = top.tables("volume", "[[volume]]", problems);
    let volumes: Option<Vec<_>> =
        sections.drain(..).map(|section| read_volume(section, path, problems)).collect();
    let stacks = stack::read(&mut top, path, problems);
    let hooks = hook::read(&mut top, path, problems);
    top.finish(problems);
    // Relations are checked as far as there is something to relate, so that one run shows all mistakes.
    let (nodes, volumes) = (nodes?, volumes?);
    relations::check(&nodes, &volumes, orchestrator.as_ref(), problems);
    fence::check(devices.as_deref().unwrap_or_default(), &nodes, &volumes, orchestrator.as_ref(), problems);
    stack::check(stacks.as_deref().unwrap_or_default(), &nodes, &volumes, orchestrator.as_ref(), problems);
    hook::check(&hooks, orchestrator.as_ref(), problems);
    if problems.has_errors() {
        return None;
    }
    let head = head?;
    let orchestrator = orchestrator.map(|at| at.value);
    let mut cluster = build(head, nodes, volumes, orchestrator);
    let id_of =
        |name: &str| cluster.nodes.iter().find(|node| node.name == name).expect("checked in relations").id;
    let volume_of =
        |name: &str| cluster.volumes.iter().find(|volume| volume.name == name).expect("checked above").id;
    let stacks = stack::build(stacks?, id_of, volume_of);
    cluster.fence = fence::build(devices?, id_of);
    cluster.stacks = stacks;
    cluster.hooks = hooks.into_iter().map(|at| at.value).collect();
    Some(cluster)
}

fn read_cluster(
    top: &mut Section<'_>,
    path: &Path,
    with_secret: WithSecret,
    problems: &mut Problems,
) -> Option<Head> {
    let section = top.table("cluster", "[cluster]", problems);
    let help = "begin with: [cluster], then name = \"...\" and secret-file = \"secret\"".to_owned();
    let mut section = top.require("cluster", section, help, problems)?;
    let name = section.text("name", problems);
    let name = section.require("name", name, "write name = \"...\"".to_owned(), problems);
    let name = name.and_then(|name| checked_name(name, problems));
    let incarnation = section.integer("incarnation", 1..=u64::MAX / 2, problems).map_or(1, |at| at.value);
    let (inline, file) = (section.text("secret", problems), section.text("secret-file", problems));
    let secret_file = file.as_ref().map(|file| resolve(path, &file.value));
    let secrets = match (inline, file) {
        (Some(inline), Some(_)) => {
            problems.error(&inline.span, "both `secret` and `secret-file` are given", "keep one".to_owned());
            None
        }
        (Some(inline), None) => secret::inline(&inline, problems),
        (None, Some(file)) if with_secret == WithSecret::Yes => {
            secret::from_file(&resolve(path, &file.value), &file, problems)
        }
        (None, Some(_)) => None,
        (None, None) => {
            if !section.has("secret") && !section.has("secret-file") {
                let help = format!("write secret = \"{}\", freshly drawn", secret::fresh_secret());
                problems.error(
                    &section.span,
                    "the cluster has no secret: its nodes could not tell each other from strangers",
                    help,
                );
            }
            None
        }
    };
    section.finish(problems);
    Some(Head { name: name?.value, incarnation: Incarnation(incarnation), secrets, secret_file })
}

fn read_nodes(top: &mut Section<'_>, path: &Path, problems: &mut Problems) -> Option<Vec<NodeDraft>> {
    let sections = top.tables("node", "[[node]]", problems);
    if sections.is_empty() && !top.has("node") {
        problems.error(
            &(0..0),
            "the file has no [[node]]",
            "write one for each machine, with `name` and `address`".to_owned(),
        );
        return None;
    }
    if let Some(extra) = sections.get(NODES_MAX) {
        problems.error(&extra.span, format!("a cluster has at most {NODES_MAX} nodes"), None);
        return None;
    }
    let nodes: Vec<_> = sections
        .into_iter()
        .enumerate()
        .map(|(index, section)| read_node(index, section, path, problems))
        .collect();
    nodes.into_iter().collect()
}

fn read_node(
    index: usize,
    mut section: Section<'_>,
    path: &Path,
    problems: &mut Problems,
) -> Option<NodeDraft> {
    let header = section.span.clone();
    let name = section.text("name", problems);
    let name = section.require("name", name, "write name = \"a\"".to_owned(), problems);
    let name = name.and_then(|name| checked_name(name, problems));
    let address = section.text("address", problems);
    let address = section.require("address", address, "write address = \"10.0.0.1\"".to_owned(), problems);
    let address = address.and_then(|text| checked_address(text, "address", problems));
    let id = section.integer("id", 0..=NODES_MAX as u64 - 1, problems);
    let id = id.unwrap_or(At { value: index as u64, span: header.clone() });
    let id = id.map(|id| NodeId(u8::try_from(id).expect("below the limit")));
    let control = section.text("control", problems);
    let control = control.unwrap_or(At { value: CONTROL_SOCKET.to_owned(), span: header });
    let control = checked_socket(control, "control", path, problems);
    let metrics_listen = section.text("metrics-listen", problems);
    let metrics_listen = metrics_listen.and_then(|text| checked_listen(text, "metrics-listen", problems));
    let orchestrator = orchestrator::read_node(&mut section, path, problems);
    section.finish(problems);
    Some(NodeDraft {
        id,
        name: name?,
        address: address?,
        control: control?,
        metrics_listen,
        orchestrator: orchestrator?,
    })
}

fn read_volume(mut section: Section<'_>, path: &Path, problems: &mut Problems) -> Option<VolumeDraft> {
    let header = section.span.clone();
    let name = section.text("name", problems);
    let name = section.require("name", name, "write name = \"r0\"".to_owned(), problems);
    let name = name.and_then(|name| checked_name(name, problems));
    let fresh = || format!("uuid = \"{}\"", format_uuid(fresh_uuid()));
    let uuid = section.text("uuid", problems);
    let help =
        format!("it is how replicas know that they belong together; a fresh one to paste: {}", fresh());
    let uuid = section.require("uuid", uuid, help, problems).and_then(|text| {
        let number = parse_uuid(&text.value);
        if number.is_none() {
            let message = format!("`uuid`: \"{}\" is not a UUID", text.value);
            problems.error(&text.span, message, format!("a fresh one to paste: {}", fresh()));
        }
        number.map(|value| At { value, span: text.span })
    });
    let size = section.size("size", problems);
    let size_bytes = section.require("size", size, "write size = \"1GiB\"".to_owned(), problems);
    let block_bytes = section.integer("block-size", 0..=u64::MAX / 2, problems);
    let block_bytes = block_bytes.unwrap_or(At { value: 512, span: header.clone() });
    if ![512, 4096].contains(&block_bytes.value) {
        let help = "512 works with everything; 4096 where every client can do it".to_owned();
        problems.error(&block_bytes.span, "`block-size` may be 512 or 4096", help);
    }
    let block_bytes = block_bytes.map(|bytes| u32::try_from(bytes).unwrap_or(512));
    let protocol = section.choice("protocol", &PROTOCOLS, problems);
    let protocol = protocol.unwrap_or(At { value: Protocol::C, span: header.clone() });
    let tuning = Tuning::read(&mut section, problems);
    let needs = [("lease", false), ("off", true)];
    let takeover_needs_off = section.choice("takeover-needs", &needs, problems).is_some_and(|at| at.value);
    let volume_name = name.as_ref().map_or("volume", |name| name.value.as_str()).to_owned();
    let sections = section.tables("replica", "[[volume.replica]]", problems);
    let replicas: Vec<_> =
        sections.into_iter().map(|section| read_replica(section, &volume_name, path, problems)).collect();
    section.finish(problems);
    let replicas = replicas.into_iter().collect::<Option<Vec<_>>>()?;
    Some(VolumeDraft {
        span: header,
        name: name?,
        id: uuid?,
        size_bytes: size_bytes?,
        block_bytes,
        protocol,
        tuning,
        takeover_needs_off,
        replicas,
    })
}

fn read_replica(
    mut section: Section<'_>,
    volume: &str,
    path: &Path,
    problems: &mut Problems,
) -> Option<ReplicaDraft> {
    let header = section.span.clone();
    let mut need = |key: &'static str, help: &str, problems: &mut Problems| {
        let value = section.text(key, problems);
        section.require(key, value, help.to_owned(), problems)
    };
    let node = need("node", "write node = \"...\", the name of a [[node]]", problems);
    let disk = need("disk", "write disk = \"/var/lib/holdfast/r0.disk\": a file or a block device", problems);
    let help = "write journal = \"/var/lib/holdfast/r0.journal\": a file or a block device";
    let journal = need("journal", help, problems);
    let branches = section.text("branches", problems).map(|folder| resolve(path, &folder.value));
    let journal_bytes = section.size("journal-size", problems);
    let journal_bytes = journal_bytes.unwrap_or(At { value: JOURNAL_BYTES, span: header.clone() });
    let port = section.integer("port", 1..=65535, problems);
    let port =
        section.require("port", port, "write port = 7788: where the peers connect".to_owned(), problems);
    let address = section.text("address", problems);
    let address = address.and_then(|text| checked_address(text, "address", problems));
    let nbd_socket = section.text("nbd-socket", problems);
    let nbd_socket = nbd_socket.unwrap_or(At { value: format!("/run/holdfast/{volume}.sock"), span: header });
    let nbd_socket = checked_socket(nbd_socket, "nbd-socket", path, problems);
    let nbd_listen = section.text("nbd-listen", problems);
    let nbd_listen = nbd_listen.and_then(|text| checked_listen(text, "nbd-listen", problems));
    let protocol = section.choice("protocol", &PROTOCOLS, problems).map(|choice| choice.value);
    let apply_delay = section.duration_ms("apply-delay", problems).filter(|delay| delay.value > 0);
    section.finish(problems);
    let journal = journal?.map(|journal| resolve(path, &journal));
    Some(ReplicaDraft {
        node: node?,
        disk: disk?.map(|disk| resolve(path, &disk)),
        branches: branches.unwrap_or_else(|| default_branches(&journal.value)),
        journal,
        journal_bytes,
        address,
        port: port?.map(|port| u16::try_from(port).expect("in range")),
        nbd_socket: nbd_socket?,
        nbd_listen,
        protocol,
        apply_delay,
    })
}

/// Beside the journal; a journal that is a device has no room beside it.
fn default_branches(journal: &Path) -> PathBuf {
    match journal.parent() {
        Some(folder) if !journal.starts_with("/dev") => folder.join("branches"),
        _ => PathBuf::from("/var/lib/holdfast/branches"),
    }
}

pub(super) fn checked_name(name: At<String>, problems: &mut Problems) -> Option<At<String>> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let text = &name.value;
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        let message = format!("a name has 1 to {NAME_BYTES_MAX} characters, this one has {}", text.len());
        problems.error(&name.span, message, None);
        return None;
    }
    if !text.chars().all(is_allowed) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        let meant: String =
            text.to_lowercase().chars().map(|c| if is_allowed(c) { c } else { '-' }).collect();
        let meant = meant.trim_start_matches(['-', '_', '.']).to_owned();
        let message =
            format!("\"{text}\" is not a name: lower-case letters, digits, - _ . and no mark in front");
        problems.error(&name.span, message, (!meant.is_empty()).then(|| format!("for example \"{meant}\"")));
        return None;
    }
    Some(name)
}

pub(super) fn checked_address(text: At<String>, key: &str, problems: &mut Problems) -> Option<At<IpAddr>> {
    let parsed = text.value.parse::<IpAddr>();
    if parsed.is_err() {
        let message = format!("`{key}`: \"{}\" is not an IP address", text.value);
        let help = "write it as in \"10.0.0.1\" or \"fd00::1\", without a port; names are not looked up, so that replication does not wait for DNS".to_owned();
        problems.error(&text.span, message, help);
    }
    parsed.ok().map(|value| At { value, span: text.span })
}

pub(super) fn checked_listen(text: At<String>, key: &str, problems: &mut Problems) -> Option<At<SocketAddr>> {
    let parsed = text.value.parse::<SocketAddr>();
    if parsed.is_err() {
        let message = format!("`{key}`: \"{}\" is not an address with a port", text.value);
        problems.error(
            &text.span,
            message,
            "write it as in \"127.0.0.1:10809\" or \"[::1]:10809\"".to_owned(),
        );
    }
    parsed.ok().map(|value| At { value, span: text.span })
}

pub(super) fn checked_socket(
    text: At<String>,
    key: &str,
    file: &Path,
    problems: &mut Problems,
) -> Option<At<PathBuf>> {
    let path = resolve(file, &text.value);
    let length_bytes = path.as_os_str().len();
    if length_bytes > SOCKET_PATH_BYTES_MAX {
        let message = format!(
            "`{key}`: {} has {length_bytes} bytes; the kernel takes {SOCKET_PATH_BYTES_MAX} for a unix socket",
            path.display()
        );
        problems.error(&text.span, message, "use a shorter folder, as in /run/holdfast".to_owned());
        return None;
    }
    Some(At { value: path, span: text.span })
}

fn build(
    head: Head,
    nodes: Vec<NodeDraft>,
    volumes: Vec<VolumeDraft>,
    orchestrator: Option<Orchestrator>,
) -> Cluster {
    let build_orchestrator = |address: IpAddr, draft: NodeOrchestratorDraft| NodeOrchestrator {
        listen: SocketAddr::new(address, draft.port.value),
        links: draft.links.into_iter().map(|link| link.value).collect(),
        control: draft.control.value,
        store: draft.store.value,
        api_listen: draft.api_listen.map(|listen| listen.value),
        watchdog: draft.watchdog,
    };
    let nodes: Vec<Node> = nodes
        .into_iter()
        .map(|node| Node {
            id: node.id.value,
            name: node.name.value,
            address: node.address.value,
            control: node.control.value,
            metrics_listen: node.metrics_listen.map(|listen| listen.value),
            orchestrator: orchestrator.map(|_| build_orchestrator(node.address.value, node.orchestrator)),
        })
        .collect();
    let volumes = volumes.into_iter().map(|volume| build_volume(volume, &nodes)).collect();
    Cluster {
        name: head.name,
        incarnation: head.incarnation,
        secrets: head.secrets,
        secret_file: head.secret_file,
        nodes,
        volumes,
        orchestrator,
        fence: Vec::new(),
        stacks: Vec::new(),
        hooks: Vec::new(),
    }
}

fn build_volume(volume: VolumeDraft, nodes: &[Node]) -> Volume {
    let protocol = volume.protocol.value;
    let build_replica = |replica: ReplicaDraft| {
        let node = nodes.iter().find(|node| node.name == replica.node.value).expect("checked in relations");
        let protocol = replica.protocol_of(protocol);
        let address = replica.address.map_or(node.address, |address| address.value);
        Replica {
            node: node.id,
            disk: replica.disk.value,
            journal: replica.journal.value,
            branches: replica.branches,
            journal_bytes: replica.journal_bytes.value,
            listen: SocketAddr::new(address, replica.port.value),
            nbd_socket: replica.nbd_socket.value,
            nbd_listen: replica.nbd_listen.map(|listen| listen.value),
            protocol,
            apply_delay_ms: replica.apply_delay.map_or(0, |delay| delay.value),
        }
    };
    Volume {
        name: volume.name.value,
        id: VolumeId(volume.id.value),
        size_bytes: volume.size_bytes.value,
        block_bytes: volume.block_bytes.value,
        protocol,
        tuning: volume.tuning,
        takeover_needs_off: volume.takeover_needs_off,
        replicas: volume.replicas.into_iter().map(build_replica).collect(),
    }
}
