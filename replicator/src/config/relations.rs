//! What the keys of the file say together: nothing twice, nothing that contradicts something else.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use replicator_core::config::Protocol;
use replicator_core::disk::layout::{Layout, LayoutError};
use replicator_core::limits::VOLUME_BYTES_MAX;

use super::cluster::list;
use super::orchestrator::{self, Orchestrator};
use super::problem::Problems;
use super::reader::{NodeDraft, ReplicaDraft, VolumeDraft};
use super::section::At;
use super::value::{format_duration_ms, format_size};

/// Checks all relations.
pub(super) fn check(
    nodes: &[NodeDraft],
    volumes: &[VolumeDraft],
    orchestrator: Option<&At<Orchestrator>>,
    problems: &mut Problems,
) {
    check_nodes(nodes, problems);
    if volumes.is_empty() {
        problems.warning(&(0..0), "the file has no [[volume]]: there is nothing to replicate", None);
    }
    let (mut names, mut ids) = (Seen::default(), Seen::default());
    for volume in volumes {
        names.check(&volume.name, "volume name", problems);
        let uuid = At { value: volume.id.value, span: volume.id.span.clone() };
        ids.check(&uuid, "uuid", problems);
        check_volume(volume, nodes, problems);
    }
    check_places(nodes, volumes, orchestrator.is_some(), problems);
    if let Some(orchestrator) = orchestrator {
        orchestrator::check(orchestrator, nodes, volumes, problems);
    }
}

fn check_nodes(nodes: &[NodeDraft], problems: &mut Problems) {
    let (mut names, mut ids) = (Seen::default(), Seen::default());
    for node in nodes {
        names.check(&node.name, "node name", problems);
        ids.check(&node.id, "node id", problems);
    }
}

fn check_volume(volume: &VolumeDraft, nodes: &[NodeDraft], problems: &mut Problems) {
    check_size(volume, problems);
    let mut seen = Seen::default();
    for replica in &volume.replicas {
        if !nodes.iter().any(|node| node.name.value == replica.node.value) {
            let message = format!("there is no node \"{}\"", replica.node.value);
            let known = list(nodes.iter().map(|node| &node.name.value));
            problems.error(&replica.node.span, message, format!("the nodes of this file are {known}"));
        }
        seen.check(&replica.node, "replica's node", problems);
        check_journal(volume, replica, problems);
        check_delay(replica, problems);
    }
    match volume.replicas.len() {
        0 => problems.error(
            &volume.span,
            format!("volume \"{}\" has no replica", volume.name.value),
            "write a [[volume.replica]] for each node that keeps a copy".to_owned(),
        ),
        1 => problems.warning(
            &volume.span,
            format!("volume \"{}\" has one replica: nothing is replicated", volume.name.value),
            "write a [[volume.replica]] on a second node".to_owned(),
        ),
        _ => {
            let protocol = |replica: &ReplicaDraft| replica.protocol_of(volume.protocol.value);
            if volume.replicas.iter().all(|replica| protocol(replica) == Protocol::A) {
                let message = format!(
                    "every replica of \"{}\" is fed with protocol A: a write is acknowledged when it is on one disk",
                    volume.name.value
                );
                let help =
                    "the others follow, and a failover may lose the newest writes; protocol \"C\" loses none"
                        .to_owned();
                problems.warning(&volume.protocol.span, message, help);
            }
        }
    }
}

/// The longest delay: no journal is there for more.
const DELAY_MS_MAX: u64 = 30 * 86_400_000;

fn check_delay(replica: &ReplicaDraft, problems: &mut Problems) {
    let Some(delay) = &replica.apply_delay else { return };
    if !(1000..=DELAY_MS_MAX).contains(&delay.value) {
        let message = format!("`apply-delay` is {}; it may be 1s to 720h", format_duration_ms(delay.value));
        problems.error(&delay.span, message, "leave it out to apply at once".to_owned());
    }
    if replica.protocol.is_some_and(|protocol| protocol != Protocol::A) {
        let message = "a replica with an `apply-delay` follows, and is fed with protocol A";
        let help = "leave `protocol` out here, or write \"A\"".to_owned();
        problems.error(&delay.span, message, help);
    }
}

fn check_size(volume: &VolumeDraft, problems: &mut Problems) {
    let (size, block_bytes) = (&volume.size_bytes, u64::from(volume.block_bytes.value));
    if !(1..=VOLUME_BYTES_MAX).contains(&size.value) {
        let message = format!("`size` is {} bytes; it must be above 0 and at most 1PiB", size.value);
        problems.error(&size.span, message, None);
    } else if !size.value.is_multiple_of(block_bytes) {
        let message =
            format!("`size` is {} bytes, not a multiple of the block size {block_bytes}", size.value);
        let help = format!("write {}", size.value.next_multiple_of(block_bytes));
        problems.error(&size.span, message, help);
    }
}

/// Whether such a journal could be one of a volume that was smaller when it was made.
fn may_have_grown(volume: &VolumeDraft, journal_bytes: u64) -> bool {
    let has_sums = volume.tuning.checksums;
    !has_sums && Layout::with_smallest_maps(volume.size_bytes.value, journal_bytes, false).is_ok()
}

fn check_journal(volume: &VolumeDraft, replica: &ReplicaDraft, problems: &mut Problems) {
    let journal = &replica.journal_bytes;
    let layout = match Layout::with(volume.size_bytes.value, journal.value, volume.tuning.checksums) {
        Ok(layout) => layout,
        // Reported at the size itself.
        Err(LayoutError::VolumeSize(_) | LayoutError::Maps { .. }) => return,
        Err(LayoutError::JournalTooSmall { needed_bytes, .. }) if may_have_grown(volume, journal.value) => {
            let message = format!(
                "a journal of {} is too small to create a replica of {}",
                format_size(journal.value),
                format_size(volume.size_bytes.value)
            );
            let enough = format_size(needed_bytes.next_multiple_of(1 << 20));
            let help = format!(
                "nothing to do if the volume has grown to that size and this replica is there; a new one needs journal-size = \
                 \"{enough}\" or more"
            );
            problems.warning(&journal.span, message, help);
            return;
        }
        Err(LayoutError::JournalTooSmall { journal_bytes, needed_bytes }) => {
            let message = format!(
                "a journal of {} is too small for a volume of {}",
                format_size(journal_bytes),
                format_size(volume.size_bytes.value)
            );
            let enough = format_size(needed_bytes.next_multiple_of(1 << 20));
            let help = format!("write journal-size = \"{enough}\" or more; \"1GiB\" is the default");
            problems.error(&journal.span, message, help);
            return;
        }
    };
    if let Some(checkpoint_bytes) = volume.tuning.checkpoint_bytes
        && checkpoint_bytes > layout.ring_bytes / 2
    {
        let message = format!(
            "`checkpoint` ({}) is more than half of this replica's journal ring ({} bytes): writes would wait for it",
            format_size(checkpoint_bytes),
            layout.ring_bytes
        );
        problems.error(&journal.span, message, "lower `checkpoint`, or raise `journal-size`".to_owned());
    }
}

/// Paths and ports must differ on one machine; nodes with one address are on one machine.
fn check_places(nodes: &[NodeDraft], volumes: &[VolumeDraft], orchestrated: bool, problems: &mut Problems) {
    let (mut paths, mut ports) = (Seen::<(IpAddr, PathBuf)>::default(), Seen::<(IpAddr, u16)>::default());
    for node in nodes {
        let address = node.address.value;
        let control = At { value: (address, node.control.value.clone()), span: node.control.span.clone() };
        paths.check_path(&control, problems);
        if orchestrated {
            let draft = &node.orchestrator;
            for path in [&draft.control, &draft.store] {
                paths.check_path(
                    &At { value: (address, path.value.clone()), span: path.span.clone() },
                    problems,
                );
            }
            let port = At { value: (address, draft.port.value), span: draft.port.span.clone() };
            ports.check_port(&port, problems);
        }
        let api_listen = node.orchestrator.api_listen.as_ref().filter(|_| orchestrated);
        for listen in node.metrics_listen.iter().chain(api_listen) {
            check_listen(listen, address, &mut ports, problems);
        }
    }
    for replica in volumes.iter().flat_map(|volume| &volume.replicas) {
        let Some(node) = nodes.iter().find(|node| node.name.value == replica.node.value) else { continue };
        let machine = node.address.value;
        for path in [&replica.disk, &replica.journal, &replica.nbd_socket] {
            paths.check_path(&At { value: (machine, path.value.clone()), span: path.span.clone() }, problems);
        }
        let address = replica.address.as_ref().map_or(machine, |address| address.value);
        let port = At { value: (address, replica.port.value), span: replica.port.span.clone() };
        ports.check_port(&port, problems);
        if let Some(listen) = &replica.nbd_listen {
            check_listen(listen, machine, &mut ports, problems);
        }
    }
}

/// An address to listen at that is given in full, on a machine.
fn check_listen(
    listen: &At<SocketAddr>,
    machine: IpAddr,
    ports: &mut Seen<(IpAddr, u16)>,
    problems: &mut Problems,
) {
    let ip = if listen.value.ip().is_unspecified() { machine } else { listen.value.ip() };
    // A loopback address belongs to each machine by itself, so it is told apart by the node.
    if ip.is_loopback() && !machine.is_loopback() {
        return;
    }
    let port = At { value: (ip, listen.value.port()), span: listen.span.clone() };
    ports.check_port(&port, problems);
}

/// Values seen so far.
struct Seen<T>(HashSet<T>);

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: Clone + Eq + Hash> Seen<T> {
    fn is_new(&mut self, at: &At<T>) -> bool {
        self.0.insert(at.value.clone())
    }

    fn check(&mut self, at: &At<T>, what: &str, problems: &mut Problems) {
        if !self.is_new(at) {
            let message = format!("this {what} was used before");
            problems.error(&at.span, message, "each must differ from the others".to_owned());
        }
    }
}

impl Seen<(IpAddr, PathBuf)> {
    fn check_path(&mut self, at: &At<(IpAddr, PathBuf)>, problems: &mut Problems) {
        if !self.is_new(at) {
            let (machine, path) = &at.value;
            let message = format!("the path {} is used twice on {machine}", path.display());
            let help = "control sockets, NBD sockets, disks and journals need a path each".to_owned();
            problems.error(&at.span, message, help);
        }
    }
}

impl Seen<(IpAddr, u16)> {
    fn check_port(&mut self, at: &At<(IpAddr, u16)>, problems: &mut Problems) {
        if !self.is_new(at) {
            let (address, port) = at.value;
            let message = format!("port {port} is used twice on {address}");
            problems.error(
                &at.span,
                message,
                "each replica and each NBD listener needs a port of its own".to_owned(),
            );
        }
    }
}
