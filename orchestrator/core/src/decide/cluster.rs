//! What the Raft leader proposes: first records, takeovers, changes of in-sync sets. One volume at a time; none of them
//! depends on another.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::candidate::{best, knows_itself_out, reasons, spared};
use super::fence;
use super::seal::{Sealing, beyond, sealing};
use super::{Decision, Need, Note, Proposal, Severity};
use crate::fence::Mode;
use crate::lease::Terms;
use crate::policy::{Policy, Volume};
use crate::power::Off;
use crate::proof::{Proof, Resource, is_fencing};
use crate::record::{Change, ChangeKind, Record, Takeover};
use crate::state::{Command, State};
use crate::units::{Instant, NodeId, NodeSet, ReignId};
use crate::view::{Copy, Health, Replica, ReplicaView, Role, View};

/// What is to be proposed now, and what is to be said.
#[must_use]
pub fn cluster(state: &State, policy: &Policy, view: &View) -> Decision {
    let mut out = Decision::default();
    for (index, volume) in policy.volumes.iter().enumerate() {
        // Identities differ between the volumes of one decision, too.
        let reign = ReignId(view.entropy.wrapping_add(index as u128));
        let mut one = One { state, policy, view, volume, reign, out: &mut out };
        match state.records.get(&volume.id) {
            None => one.first(),
            Some(record) => one.reigned(record),
        }
    }
    fence::decide(state, policy, view, &mut out);
    out
}

/// One volume in one decision.
pub(super) struct One<'a> {
    pub(super) state: &'a State,
    pub(super) policy: &'a Policy,
    pub(super) view: &'a View,
    pub(super) volume: &'a Volume,
    reign: ReignId,
    pub(super) out: &'a mut Decision,
}

/// Whether somebody other than the next primary may still answer clients.
enum Others {
    /// Everybody else runs nothing, or says that it serves nobody, or is off.
    Quiet(Vec<Off>),
    /// One that is heard has not stopped yet.
    Stopping(NodeId),
    /// Nothing is known of some, but their leases have surely ended, or their watchdogs have surely fired where an ended
    /// lease is not enough.
    Expired(Proof),
    /// Some may, until then.
    Until(Instant),
    /// Some may, until they are surely off.
    Unsure(NodeSet),
}

impl One<'_> {
    pub(super) fn name(&self, node: NodeId) -> String {
        self.policy.node_name(node)
    }

    pub(super) fn say(&mut self, severity: Severity, text: String) {
        self.out.notes.push(Note { volume: self.volume.name.clone(), severity, text });
    }

    pub(super) fn propose(&mut self, record: &Record, kind: ChangeKind, reason: String) {
        let change = Change { expected: record.order(), kind };
        self.out
            .proposals
            .push(Proposal { command: Command::Change { volume: self.volume.id, change }, reason });
    }

    fn is_paused(&self) -> bool {
        self.state.paused.cluster || self.state.paused.volumes.contains(&self.volume.id)
    }

    /// A volume without a record: its replicas know best, and all of them must have been asked.
    fn first(&mut self) {
        let missing =
            self.volume.replicas.iter().filter(|node| self.view.replica(self.volume.id, **node).is_none());
        let missing: NodeSet = missing.copied().collect();
        if !missing.is_empty() {
            let names = self.policy.names(missing.iter());
            let text =
                format!("has no record yet: waiting for the replicas on {names} to say what they know");
            return self.say(Severity::Error, text);
        }
        let replicas = || {
            self.volume
                .replicas
                .iter()
                .filter_map(|node| Some((*node, self.view.replica(self.volume.id, *node)?)))
        };
        // A primary knows those as members, too, who are pending: its set of that version is the larger one, and it alone has it.
        let newest = replicas().max_by_key(|(_, replica)| (replica.record, replica.in_sync.len()));
        let Some((_, newest)) = newest else { return };
        let is_whole =
            |replica: &Replica| replica.copy == Copy::UpToDate && replica.in_sync == newest.in_sync;
        let in_sync: NodeSet = replicas()
            .filter(|(node, replica)| newest.in_sync.contains(*node) && is_whole(replica))
            .map(|(node, _)| node)
            .collect();
        let serving: NodeSet =
            replicas().filter(|(_, replica)| replica.role == Role::Primary).map(|(node, _)| node).collect();
        if serving.len() > 1 {
            let names = self.policy.names(serving.iter());
            let text = format!("{names} are primary at the same time: demote one");
            return self.say(Severity::Error, text);
        }
        if in_sync.is_empty() {
            let text = "no replica is UpToDate and in sync: nothing can be promoted";
            return self.say(Severity::Error, String::from(text));
        }
        let (epoch, in_sync) = match sealing(self.view, self.volume, in_sync, newest.record.0) {
            Sealing::Done(epoch, sealed) => (epoch, sealed),
            Sealing::Ask(seals) => {
                self.out.seals.extend(seals);
                let text = "has no record yet: its replicas are asked to promise the first epoch";
                return self.say(Severity::Error, String::from(text));
            }
        };
        let sealed = replicas().enumerate().filter(|(_, (node, _))| in_sync.contains(*node));
        let best = sealed
            .max_by_key(|(place, (_, replica))| (replica.proven, replica.head, core::cmp::Reverse(*place)));
        let Some((_, (primary, _))) = best else {
            return self
                .say(Severity::Error, String::from("has no record yet: no replica gives its promise"));
        };
        let reason = format!("all replicas have reported, {} has everything", self.name(primary));
        let command = Command::Create { volume: self.volume.id, epoch, primary, reign: self.reign, in_sync };
        self.out.proposals.push(Proposal { command, reason });
    }

    fn reigned(&mut self, record: &Record) {
        if self.is_paused() {
            return self.say(Severity::Warning, String::from("is paused: nothing is done about it"));
        }
        let Some(primary) = record.primary else {
            return self.take_over(record, "nobody is primary");
        };
        if let Some(why) = self.ended(record, primary) {
            return self.take_over(record, &why);
        }
        if let Some((node, epoch)) = beyond(self.view, self.volume, record.epoch) {
            let why = format!("{} has promised epoch {epoch} and follows no lower one", self.name(node));
            return self.take_over(record, &why);
        }
        let Some(replica) = self.view.replica(self.volume.id, primary) else {
            // Heard, but nothing of its replica is known: not before it has reported.
            let name = self.name(primary);
            return self.say(Severity::Note, format!("waiting for {name} to report"));
        };
        self.relay(record, primary);
        if record.opened {
            self.note_members(record, primary, replica);
            self.consider_moving(record, primary);
        } else {
            let name = self.name(primary);
            self.say(Severity::Error, format!("{name} is being promoted to epoch {}", record.epoch));
        }
    }

    /// Why the reign of `primary` has ended, if it has.
    fn ended(&self, record: &Record, primary: NodeId) -> Option<String> {
        let name = self.name(primary);
        if let Some(Health::Suspected { since }) = self.view.nodes.get(&primary).map(|node| node.health) {
            return Some(format!("{name} is not heard since {} ms", self.view.now.since_ms(since)));
        }
        match self.view.replica_view(self.volume.id, primary)? {
            ReplicaView::Stopped => Some(format!("{name} does not run its replicator")),
            ReplicaView::Silent(reason) => {
                Some(format!("{name} has a replicator that does not answer: {reason}"))
            }
            ReplicaView::Running(replica) => match (&replica.copy, replica.role) {
                (Copy::Unusable(state), _) => Some(format!("the copy on {name} is {state}")),
                // One that was opened is never continued: the process has restarted, or was demoted by hand.
                (Copy::UpToDate, Role::Secondary) if record.opened || replica.record.0 >= record.epoch => {
                    Some(format!("{name} serves no more"))
                }
                _ => None,
            },
        }
    }

    fn take_over(&mut self, record: &Record, why: &str) {
        // Whoever does not answer cannot follow itself; one whose process is back can, in a new reign.
        let Some((node, replica)) = best(self.state, self.policy, self.view, self.volume, record) else {
            let reasons = reasons(self.state, self.view, self.policy, self.volume, record, None);
            let text = format!("{why}, and nobody can follow: {reasons}");
            return self.say(Severity::Error, text);
        };
        // What an operator wants is no reason to lose what was acknowledged.
        let spared = spared(self.state, self.view, self.volume, record, replica);
        if let Some((other, _)) = spared.filter(|(other, _)| self.state.paused.nodes.contains(other)) {
            let (name, other) = (self.name(node), self.name(other));
            let text = format!("{why}; {name} may have lost what {other} has, which is paused");
            return self.say(Severity::Error, text);
        }
        let (node, replica) = spared.unwrap_or((node, replica));
        let name = self.name(node);
        if !replica.proven
            && let Some(others) = self.worth_waiting_for(record, node)
        {
            let text = format!(
                "{why}; {name} may have lost what it had in memory, so {} may come first, for {} ms at most",
                self.policy.names(others.iter()),
                self.policy.unproven_grace_ms
            );
            return self.say(Severity::Error, text);
        }
        let needs_off = fence::needs_off(self.policy, self.volume);
        let is_fenced = is_fencing(record, node) && !needs_off;
        let proof = match self.others(record, node) {
            Others::Quiet(off) if off.is_empty() => Proof::Released,
            Others::Quiet(off) => Proof::of_power(off),
            Others::Expired(proof) => proof,
            Others::Until(_) if is_fenced => Proof::EpochFenced,
            // Where nobody is primary it is on its way, and refuses whoever would be promoted beside it.
            Others::Stopping(_) if is_fenced && record.primary.is_some() => Proof::EpochFenced,
            Others::Stopping(other) => {
                let reason = format!("{} does not stop serving {}", self.name(other), self.volume.name);
                self.need(other, self.policy.fence.stop_patience_ms, reason);
                let text = format!("{why}; {name} follows when {} has stopped serving", self.name(other));
                return self.say(Severity::Error, text);
            }
            Others::Until(until) => {
                let ms = until.since_ms(self.view.now);
                let what = if needs_off { "watchdog has surely fired" } else { "lease has surely ended" };
                let text = format!("{why}; {name} follows when the old {what}, in {ms} ms");
                return self.say(Severity::Error, text);
            }
            Others::Unsure(others) => {
                let names = self.policy.names(others.iter());
                for other in others.iter() {
                    // One that is heard may come to say that it serves nobody.
                    let is_heard = self.view.report(other).is_some();
                    let patience_ms = if is_heard { self.policy.fence.stop_patience_ms } else { 0 };
                    self.need(other, patience_ms, format!("{name} is to follow it on {}", self.volume.name));
                }
                let text = format!("{why}; {name} follows when {names} is surely off");
                return self.say(Severity::Error, text);
            }
        };
        let (epoch, sealed) = match sealing(self.view, self.volume, record.in_sync, record.epoch) {
            Sealing::Done(epoch, sealed) => (epoch, sealed),
            Sealing::Ask(seals) => {
                let asked = self.policy.names(seals.iter().map(|seal| seal.node));
                self.out.seals.extend(seals);
                return self
                    .say(Severity::Error, format!("{why}; {asked} are asked to promise another epoch"));
            }
        };
        // Who knows itself that others went on without it does not come back into the set by this.
        let knows_itself = |other: &NodeId| {
            let replica = self.view.replica(self.volume.id, *other);
            replica.is_some_and(|replica| !knows_itself_out(replica, record, *other))
        };
        let takeover = Takeover {
            epoch,
            primary: node,
            reign: self.reign,
            in_sync: sealed.iter().filter(knows_itself).collect(),
            proof,
            breaks_sessions: !replica.proven,
        };
        let text = format!("{why}; {name} follows");
        self.say(Severity::Error, text.clone());
        self.propose(record, ChangeKind::Takeover(takeover), text);
    }

    pub(super) fn need(&mut self, node: NodeId, patience_ms: u64, reason: String) {
        self.out.needs.push(Need { node, patience_ms, reason });
    }

    /// What may still answer clients beside `node`.
    fn others(&self, record: &Record, node: NodeId) -> Others {
        let (mut until, mut off) = (None, Vec::new());
        let (mut silent, mut unsure) = (NodeSet::default(), NodeSet::default());
        let needs_off = fence::needs_off(self.policy, self.volume);
        for other in self.volume.replicas.iter().filter(|other| **other != node) {
            if self.view.is_quiet(self.volume.id, *other) {
                continue;
            }
            if let Some(evidence) = fence::off(self.state, self.view, *other) {
                off.push(evidence.clone());
                continue;
            }
            let role = self.view.replica(self.volume.id, *other).map(|replica| replica.role);
            if matches!(role, Some(Role::Primary | Role::Changing)) {
                return Others::Stopping(*other);
            }
            // Whoever else had it was surely stopped before the primary got it.
            if needs_off
                && record.primary.is_some_and(|primary| primary != *other)
                && record.proof.suffices_for(Resource::Foreign)
            {
                continue;
            }
            silent = silent.with(*other);
            let over_at = if needs_off {
                let watchdog =
                    fence::watchdog_over_at(self.state, self.policy, self.view, self.volume, *other);
                // Whoever wants power used wants it now.
                watchdog.filter(|at| self.policy.fence.mode != Mode::Always || self.view.now >= *at)
            } else {
                Some(lease_over_at(self.policy.lease, self.view, self.volume, *other))
            };
            match over_at {
                Some(at) => until = until.max(Some(at)),
                None => unsure = unsure.with(*other),
            }
        }
        match until {
            _ if !unsure.is_empty() => Others::Unsure(unsure),
            Some(until) if self.view.now < until => Others::Until(until),
            // What rests on evidence is judged again when it is applied, so that comes first.
            _ if !off.is_empty() || until.is_none() => Others::Quiet(off),
            Some(_) if needs_off => Others::Expired(Proof::WatchdogExpired { nodes: silent }),
            Some(_) | None => Others::Expired(Proof::LeaseExpired),
        }
    }

    /// Other members that could come back proven, while the grace for them lasts.
    fn worth_waiting_for(&self, record: &Record, node: NodeId) -> Option<NodeSet> {
        // One that is here and unproven, too, will not become better by waiting.
        let members = record.in_sync.without(node).iter();
        let absent: NodeSet =
            members.filter(|other| self.view.replica(self.volume.id, *other).is_none()).collect();
        let suspected = absent.iter().filter_map(|other| match self.view.nodes.get(&other)?.health {
            Health::Suspected { since } => Some(since),
            _ => None,
        });
        // This leader knows of no suspicion before its own election.
        let since = suspected.max().unwrap_or_default().max(self.view.leader_since);
        let is_over = self.view.now.since_ms(since) >= self.policy.unproven_grace_ms;
        if is_over || absent.is_empty() { None } else { Some(absent) }
    }

    /// Proposes what the primary asks for. It knows what it waits for, and asks for one thing at a time.
    fn relay(&mut self, record: &Record, primary: NodeId) {
        let report = self.view.nodes.get(&primary).and_then(|node| node.report.as_ref());
        let request = report.and_then(|report| report.requests.get(&self.volume.id));
        let is_its = |kind: &ChangeKind| {
            matches!(kind, ChangeKind::Opened | ChangeKind::Shrink { .. } | ChangeKind::Grow { .. })
        };
        if let Some(request) = request.filter(|request| request.change.expected == record.order())
            && is_its(&request.change.kind)
        {
            let (kind, reason) = (request.change.kind.clone(), request.reason.clone());
            self.propose(record, kind, reason);
        }
    }

    /// Says which members are missed.
    fn note_members(&mut self, record: &Record, primary: NodeId, replica: &Replica) {
        let missing = record.in_sync.without(primary).difference(replica.following);
        if !missing.is_empty() {
            let names = self.policy.names(missing.iter());
            let patience_ms = self.policy.member_patience_ms;
            let text = format!("waits for {names}, which may come back, for {patience_ms} ms at most");
            self.say(Severity::Error, text);
        }
        let absent = self.volume.replicas.iter().copied().filter(|node| !record.in_sync.contains(*node));
        let absent: NodeSet = absent.collect();
        if !absent.is_empty() {
            let names = self.policy.names(absent.iter());
            self.say(Severity::Warning, format!("is not on all its nodes: {names} not in sync"));
        }
    }
}

/// From when `holder` surely holds no lease of a volume.
pub(super) fn lease_over_at(terms: Terms, view: &View, volume: &Volume, holder: NodeId) -> Instant {
    terms.surely_over_at(view.grants.get(&(volume.id, holder)).copied(), view.leader_since)
}
