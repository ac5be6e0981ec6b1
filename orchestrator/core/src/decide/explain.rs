//! Why it is so: the decision functions read for what they say of one volume or one node, with the evidence and with what
//! can be done. Nothing here is judged a second time: whether a replica is fit, what is waited for and what comes next are
//! the answers of the functions that decide.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::candidate::{Unfit, fit};
use super::{Severity, cluster, fence};
use crate::policy::{Policy, Volume};
use crate::record::Record;
use crate::state::State;
use crate::units::{NodeId, VolumeId};
use crate::view::{Copy, Health, Replica, ReplicaView, Role, View};

/// Why something is as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// How it is, in a sentence.
    pub summary: String,
    /// What that follows from.
    pub findings: Vec<Finding>,
    /// What is about to be decided, if nothing changes.
    pub next: Vec<String>,
    /// What could be done about it; each begins with what to type, if there is something.
    pub cures: Vec<String>,
}

/// A fact that matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much attention it needs.
    pub severity: Severity,
    /// What is so.
    pub text: String,
}

impl Explanation {
    fn find(&mut self, severity: Severity, text: String) {
        self.findings.push(Finding { severity, text });
    }

    fn cure(&mut self, text: String) {
        if !self.cures.contains(&text) {
            self.cures.push(text);
        }
    }

    /// Takes in what the decision function says of `name`.
    fn note(&mut self, state: &State, policy: &Policy, view: &View, name: &str) {
        let decision = cluster(state, policy, view);
        for note in decision.notes.into_iter().filter(|note| note.volume == name) {
            self.find(note.severity, note.text);
        }
    }
}

/// Why a volume is served where it is, or is not; `None` if there is no such volume.
#[must_use]
pub fn explain_volume(state: &State, policy: &Policy, view: &View, id: VolumeId) -> Option<Explanation> {
    let volume = policy.volume(id)?;
    let mut out = Explanation { summary: summary(state, policy, view, volume), ..Explanation::default() };
    if let Some(record) = state.records.get(&id) {
        let proof = record.proof.text(policy);
        let text = format!("epoch {} was safe to begin by {proof}: {}", record.epoch, record.proof.meaning());
        out.find(Severity::Note, text);
    }
    out.note(state, policy, view, &volume.name);
    for node in &volume.replicas {
        replica(state, policy, view, volume, *node, &mut out);
    }
    let decision = cluster(state, policy, view);
    let is_its = |command: &crate::state::Command| match command {
        crate::state::Command::Create { volume, .. } | crate::state::Command::Change { volume, .. } => {
            *volume == id
        }
        _ => false,
    };
    out.next
        .extend(decision.proposals.iter().filter(|one| is_its(&one.command)).map(|one| one.reason.clone()));
    for seal in decision.seals.iter().filter(|seal| seal.volume == id) {
        out.next.push(format!("{} is asked to promise epoch {}", policy.node_name(seal.node), seal.epoch));
    }
    if state.paused.cluster {
        out.cure("holdfast cluster pause --off: everything is paused".to_string());
    }
    if state.paused.volumes.contains(&id) {
        out.cure(format!("holdfast cluster pause --volume {} --off: it is paused", volume.name));
    }
    for need in decision.needs.iter().filter(|need| volume.replicas.contains(&need.node)) {
        let name = policy.node_name(need.node);
        out.cure(format!("holdfast confirm-off {name}: if you have seen that {name} is off"));
    }
    Some(out)
}

/// How a volume is, in a sentence.
fn summary(state: &State, policy: &Policy, view: &View, volume: &Volume) -> String {
    let name = &volume.name;
    let Some(record) = state.records.get(&volume.id) else {
        return format!("{name} has no record yet: it was never served under this cluster's orchestrators");
    };
    let order = format!("epoch {}, version {}", record.epoch, record.version);
    let Some(primary) = record.primary else { return format!("{name} is served by nobody, {order}") };
    let primary_name = policy.node_name(primary);
    let Some(replica) = view.replica(volume.id, primary) else {
        return format!(
            "{primary_name} is the primary of {name}, {order}, and does not say whether it serves"
        );
    };
    match (record.opened, replica.role == Role::Primary) {
        (true, true) => format!("{name} is served by {primary_name}, {order}"),
        (true, false) => {
            format!("{name} is served by nobody: {primary_name} is its primary, {order}, and does not serve")
        }
        (false, _) => format!("{name} is served by nobody yet: {primary_name} is being promoted, {order}"),
    }
}

/// What is so of one replica, and why it is not primary if it is not.
fn replica(
    state: &State,
    policy: &Policy,
    view: &View,
    volume: &Volume,
    node: NodeId,
    out: &mut Explanation,
) {
    let name = policy.node_name(node);
    let Some(record) = state.records.get(&volume.id) else { return };
    if record.primary == Some(node) {
        let lease = view.grants.get(&(volume.id, node));
        let lease = lease.map_or_else(
            || "was granted no lease by this leader".to_string(),
            |at| format!("was granted its lease {} ms ago", view.now.since_ms(*at)),
        );
        let what = match view.replica_view(volume.id, node) {
            Some(ReplicaView::Running(replica)) => running(policy, record, node, replica),
            Some(ReplicaView::Stopped) => "runs no replicator".to_string(),
            Some(ReplicaView::Silent(why)) => format!("has a replicator that does not answer: {why}"),
            None => heard(view, node),
        };
        return out
            .find(Severity::Note, format!("{name} is the primary of the record: it {what}, and {lease}"));
    }
    match fit(state, view, volume, record, node) {
        Ok(replica) => {
            let proven = if replica.proven { "" } else { ", but may have lost what it had in memory" };
            out.find(
                Severity::Note,
                format!("{name} could follow at once: it is in sync, at {}{proven}", replica.head),
            );
        }
        Err(unfit) => {
            let text = match (&unfit, view.replica(volume.id, node)) {
                (Unfit::NotMember, Some(replica)) => lag(policy, record, view, volume, node, replica),
                _ => String::new(),
            };
            out.find(Severity::Warning, format!("{name} cannot follow: it {}{text}", unfit.text()));
            cure_of(policy, node, &unfit, view, volume, out);
        }
    }
}

fn running(policy: &Policy, record: &Record, node: NodeId, replica: &Replica) -> String {
    let followers = replica.following.without(node);
    let does = match replica.role {
        Role::Primary => "serves",
        Role::Changing => "is changing its role",
        Role::Secondary => "serves nobody",
    };
    let missing = record.in_sync.without(node).difference(followers);
    let waits = if missing.is_empty() {
        String::new()
    } else {
        format!(", waiting for {}", policy.names(missing.iter()))
    };
    format!("{does} at {}, followed by {}{waits}", replica.head, policy.names(followers.iter()))
}

fn heard(view: &View, node: NodeId) -> String {
    match view.nodes.get(&node).map(|node| node.health) {
        Some(Health::Suspected { since }) => format!("is not heard since {} ms", view.now.since_ms(since)),
        Some(_) => "has not reported yet".to_string(),
        None => "is not heard".to_string(),
    }
}

/// How far a replica outside the set is.
fn lag(
    policy: &Policy,
    record: &Record,
    view: &View,
    volume: &Volume,
    node: NodeId,
    replica: &Replica,
) -> String {
    let primary = record.primary.and_then(|primary| Some((primary, view.replica(volume.id, primary)?)));
    match (primary, &replica.copy) {
        (_, Copy::Unusable(state)) => format!(". Its copy is {state}"),
        (Some((primary, _)), _) if primary == node => String::new(),
        (Some((primary, other)), Copy::UpToDate) => {
            let follows = if other.following.contains(node) { "follows" } else { "does not follow" };
            format!(
                ". It is at {}, {} is at {}, which it {follows}",
                replica.head,
                policy.node_name(primary),
                other.head
            )
        }
        (None, Copy::UpToDate) => format!(". It is at {}", replica.head),
    }
}

fn cure_of(
    policy: &Policy,
    node: NodeId,
    unfit: &Unfit,
    view: &View,
    volume: &Volume,
    out: &mut Explanation,
) {
    let name = policy.node_name(node);
    let is_heard = view.nodes.get(&node).is_some_and(|node| node.health.is_heard());
    match (unfit, view.replica_view(volume.id, node)) {
        (Unfit::Unwanted("is in standby"), _) => {
            out.cure(format!("holdfast cluster standby {name} --off: it may be given things again"));
        }
        (Unfit::Unwanted(_), _) => {
            out.cure(format!("holdfast cluster pause --node {name} --off: it is paused"));
        }
        _ if !is_heard => {
            out.cure(format!("look at {name}: is it on, does its orchestrator run, do its links carry?"));
        }
        (_, Some(ReplicaView::Stopped)) => out.cure(format!("start the replicator on {name}")),
        (_, Some(ReplicaView::Silent(_))) => out.cure(format!("look at the replicator on {name}: it hangs")),
        _ => out.cure(format!("holdfast status {}: on {name}, says what its replica waits for", volume.name)),
    }
}

/// Why a node does what it does, is given nothing, or is switched off.
#[must_use]
pub fn explain_node(state: &State, policy: &Policy, view: &View, node: NodeId) -> Explanation {
    let name = policy.node_name(node);
    let how = match view.nodes.get(&node).map(|node| node.health) {
        Some(Health::Alive) => "is heard".to_string(),
        Some(Health::Quarantined { until }) => {
            format!(
                "is heard again, and is given nothing new for {} ms: it went missing before",
                until.since_ms(view.now)
            )
        }
        Some(Health::Suspected { .. }) | None => heard(view, node),
    };
    let mut out = Explanation { summary: format!("{name} {how}"), ..Explanation::default() };
    out.note(state, policy, view, &name);
    if state.standby.contains(&node) {
        out.find(
            Severity::Warning,
            "is in standby: it is given nothing, and gives away what it has".to_string(),
        );
        out.cure(format!("holdfast cluster standby {name} --off: it may be given things again"));
    }
    if state.paused.nodes.contains(&node) {
        out.find(
            Severity::Warning,
            "is paused: it is not promoted, not switched off, and switches nobody off".to_string(),
        );
        out.cure(format!("holdfast cluster pause --node {name} --off: it goes on"));
    }
    if let Some(off) = fence::off(state, view, node) {
        out.find(
            Severity::Error,
            format!("is off {}: what it had may be taken over", off.means.text(policy)),
        );
        out.cure(format!("start {name} when you know why it was switched off: it comes back by itself"));
    }
    let report = view.report(node);
    if report.is_none() && view.nodes.get(&node).is_some_and(|view| view.health.is_heard()) {
        out.find(Severity::Warning, "has told this leader nothing yet".to_string());
    }
    for volume in policy.volumes.iter().filter(|volume| volume.replicas.contains(&node)) {
        let mut one = Explanation::default();
        replica(state, policy, view, volume, node, &mut one);
        for finding in one.findings {
            out.find(finding.severity, format!("{}: {}", volume.name, finding.text));
        }
        one.cures.into_iter().for_each(|cure| out.cure(cure));
    }
    if let Some(report) = report.filter(|report| !report.machine.fences.is_empty()) {
        let names = policy.names(report.machine.fences.iter());
        out.find(Severity::Note, format!("can switch off {names}"));
    }
    out
}
