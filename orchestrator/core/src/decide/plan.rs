//! What would happen: the decisions themselves, asked again and again with a copy of the state and a clock of its own.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Local, Seal, Severity, cluster, may_grant};
use crate::policy::Policy;
use crate::power::PowerChange;
use crate::state::{Command, State};
use crate::units::{Instant, NodeId, NodeSet, VolumeId};
use crate::view::{Copy, Health, ReplicaView, Role, View};

/// Looks at the clock this often.
const STEP_MS: u64 = 50;
/// Looks no further than this beyond the last moment at which something changed.
const HORIZON_MS: u64 = 60_000;

/// Something that would happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// How long from now.
    pub after_ms: u64,
    /// What, and why.
    pub text: String,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: what is under way goes on.
    Nothing,
    /// A node dies, and is not heard any more.
    Dies(NodeId),
    /// Two nodes hear each other no more, while both are heard by the others.
    Cut(NodeId, NodeId),
    /// A node loses its copies of all volumes, or of one.
    DiskFails(NodeId, Option<VolumeId>),
}

impl Fault {
    fn dead(self) -> Option<NodeId> {
        if let Self::Dies(node) = self { Some(node) } else { None }
    }
}

/// What would be decided if `fault` happened now. Whoever is to be promoted is taken to serve as soon
/// as it may; what that takes on its disk is not known here.
#[must_use]
pub fn plan(state: &State, policy: &Policy, view: &View, fault: Fault) -> Vec<Planned> {
    let dead = fault.dead();
    let (mut state, mut view) = (state.clone(), view.clone());
    let began = view.now;
    let mut planned = Vec::new();
    let mut changed_at = began.plus_ms(policy.detection.suspect_after_ms);
    while view.now <= changed_at.plus_ms(HORIZON_MS) {
        if let Some(dead) = dead {
            die(policy, &mut view, dead, began);
        }
        fail_disk(&mut view, fault);
        serve(&state, policy, &mut view, fault, began);
        let before = planned.len();
        if let Some(dead) = dead {
            planned.extend(switch_off(&mut state, policy, &mut view, dead, began));
        }
        let decision = cluster(&state, policy, &view);
        for seal in &decision.seals {
            promise(&mut view, *seal);
        }
        for proposal in decision.proposals {
            if state.apply(&proposal.command).is_ok() {
                stop_stacks(&mut view, &proposal.command);
                planned.push(Planned { after_ms: view.now.since_ms(began), text: proposal.reason });
            }
        }
        if planned.len() > before {
            changed_at = view.now;
        }
        view.now = view.now.plus_ms(STEP_MS);
    }
    let stuck = cluster(&state, policy, &view).notes.into_iter();
    let stuck = stuck.filter(|note| note.severity == Severity::Error);
    planned.extend(stuck.map(|note| {
        let text = format!("{} {}", note.volume, note.text);
        Planned { after_ms: view.now.since_ms(began), text: format!("and it stays so: {text}") }
    }));
    planned
}

/// A replica that is asked for a promise gives it.
fn promise(view: &mut View, seal: Seal) {
    let report = view.nodes.get_mut(&seal.node).and_then(|node| node.report.as_mut());
    let Some(report) = report else { return };
    report.leases.remove(&seal.volume);
    if let Some(ReplicaView::Running(replica)) = report.replicas.get_mut(&seal.volume) {
        (replica.role, replica.promised) = (Role::Secondary, seal.epoch);
    }
}

/// Stacks that are to be stopped are taken to stop at once; how long that takes is not known here.
fn stop_stacks(view: &mut View, command: &Command) {
    if let Command::Leave { volume, on: true, .. } = command {
        for report in view.nodes.values_mut().filter_map(|node| node.report.as_mut()) {
            report.occupied.remove(volume);
        }
    }
}

/// A node that died at `began`, as the others see it now.
fn die(policy: &Policy, view: &mut View, dead: NodeId, began: Instant) {
    let is_suspected = view.now >= began.plus_ms(policy.detection.suspect_after_ms);
    if let Some(node) = view.nodes.get_mut(&dead)
        && is_suspected
        && node.health.is_heard()
    {
        node.health = Health::Suspected { since: began };
    }
}

/// Copies that were lost, as their nodes say. A primary without its copy serves no more.
fn fail_disk(view: &mut View, fault: Fault) {
    let Fault::DiskFails(node, which) = fault else { return };
    let Some(report) = view.nodes.get_mut(&node).and_then(|node| node.report.as_mut()) else { return };
    for (volume, replica) in &mut report.replicas {
        if which.is_none_or(|which| which == *volume)
            && let ReplicaView::Running(replica) = replica
        {
            replica.copy = Copy::Unusable(String::from("Failed"));
            replica.role = Role::Secondary;
            replica.following = NodeSet::default();
            report.leases.remove(volume);
        }
    }
}

/// Members that a primary has lost by the fault.
fn lost(fault: Fault, primary: NodeId, volume: VolumeId) -> NodeSet {
    match fault {
        Fault::Dies(node) => NodeSet::only(node),
        Fault::Cut(one, other) if one == primary => NodeSet::only(other),
        Fault::Cut(one, other) if other == primary => NodeSet::only(one),
        Fault::DiskFails(node, which) if which.is_none_or(|which| which == volume) => NodeSet::only(node),
        Fault::Cut(..) | Fault::DiskFails(..) | Fault::Nothing => NodeSet::default(),
    }
}

/// Whoever is asked to switch the dead node off is taken to do it at once; how long its agents take is not known here.
fn switch_off(
    state: &mut State,
    policy: &Policy,
    view: &mut View,
    dead: NodeId,
    began: Instant,
) -> Option<Planned> {
    let number = state.power.order(dead)?.number;
    let change = PowerChange::Fenced { number, outcome: Ok(String::from("its agents")), at_unix_ms: 0 };
    state.power.apply(dead, &change).ok()?;
    view.nodes.get_mut(&dead)?.report = None;
    let text = format!("{} is off, if its fence agents succeed", policy.node_name(dead));
    Some(Planned { after_ms: view.now.since_ms(began), text })
}

/// The primaries as they would be: whoever is named by a record and may have a lease serves, and asks for what follows.
fn serve(state: &State, policy: &Policy, view: &mut View, fault: Fault, began: Instant) {
    for volume in &policy.volumes {
        let Some(record) = state.records.get(&volume.id) else { continue };
        let Some(primary) = record.primary.filter(|primary| Some(*primary) != fault.dead()) else { continue };
        let may_serve = record.opened || may_grant(state, policy, view, volume, primary).is_ok();
        let now = view.now;
        let node = view.nodes.get_mut(&primary).filter(|node| node.health.is_heard());
        let Some(report) = node.and_then(|node| node.report.as_mut()) else { continue };
        let Some(ReplicaView::Running(replica)) = report.replicas.get_mut(&volume.id) else { continue };
        if replica.copy != Copy::UpToDate {
            continue;
        }
        if !may_serve || record.opened && replica.role != Role::Primary {
            continue;
        }
        if !record.opened {
            (replica.role, replica.promised) = (Role::Primary, record.epoch);
            replica.following = record.in_sync.without(primary);
        }
        (replica.record, replica.in_sync) = (record.order(), record.in_sync);
        let lost = lost(fault, primary, volume.id);
        replica.following = replica.following.difference(lost);
        replica.pending = replica.pending.difference(lost);
        let unfollowed = lost.iter().map(|node| ((volume.id, node), began)).collect();
        let leases = [(volume.id, now.plus_ms(1))].into_iter().collect();
        let (replicas, requests) = (report.replicas.clone(), BTreeMap::new());
        let mut local = Local { now, replicas, leases, requests, unfollowed, suspected: NodeSet::default() };
        local.ask(state, policy, primary);
        report.requests = local.requests;
    }
}
