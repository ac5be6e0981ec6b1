//! What this node's orchestrator knows and has under way, apart from what is agreed on. Changed under one lock, never held
//! across anything that waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use orchestrator_core::decide::{Awaited, Local, Note, Seal, StepKind};
use orchestrator_core::policy::Policy;
use orchestrator_core::power::{NodePower, Off};
use orchestrator_core::record::{Order, Record};
use orchestrator_core::stack::StackView;
use orchestrator_core::state::State;
use orchestrator_core::units::{BootId, Instant, NodeId, VolumeId};
use orchestrator_core::view::{Health, Machine, NodeView, Report, View};
use serde::{Deserialize, Serialize};

use crate::consensus::Leadership;
use crate::consensus::machine::Applied;
use crate::happening::Watch;
use crate::stack::Running;
use crate::transport::message::ReportRequest;

/// Happenings remembered for people.
const EVENTS_MAX: usize = 200;
/// A report older than this says nothing about now.
const REPORT_AGE_MAX_MS: u64 = 2_000;
/// How long a replica that did not give its promise is done without, before it is asked again.
const UNSEALED_FOR_MS: u64 = 2_000;
/// The least time between two attempts of a leader to give that to another.
const HAND_OVER_EVERY_MS: u64 = 5_000;

/// Something that happened, as this node saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1 since this process began.
    pub number: u64,
    /// What kind of thing it is.
    pub kind: EventKind,
    /// The volume or the node that it is about, if it is about one.
    pub about: Option<String>,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What.
    pub text: String,
}

/// What kind of thing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// Something was agreed on.
    Decision,
    /// Somebody else leads, or nobody.
    Leader,
    /// A node is heard or is not heard any more.
    Node,
    /// This node does something, or has tried to.
    Step,
}

impl EventKind {
    /// Its word in everything that programs read.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::Leader => "leader",
            Self::Node => "node",
            Self::Step => "step",
        }
    }
}

/// What a node said of itself last.
struct Reported {
    process: u64,
    sequence: u64,
    voter: u64,
    at: Instant,
    report: Report,
}

/// The memory of one orchestrator.
#[derive(Default)]
pub(crate) struct Mind {
    /// The election this is about; another one, and everything about being leader begins anew.
    term: u64,
    leader_since: Option<Instant>,
    /// Who was last seen to lead, for people.
    leader: Option<NodeId>,
    /// The others that this node heard at its last look, and those that it did not.
    heard: BTreeMap<NodeId, bool>,
    /// When it was last tried to have another lead.
    handed_over_at: Instant,
    reports: BTreeMap<NodeId, Reported>,
    grants: BTreeMap<(VolumeId, NodeId), Instant>,
    /// Records on which a change of the primary was decided that may yet come to be: no lease is granted while the record
    /// is still that one. Once it is another, the change cannot be made any more.
    closing: BTreeMap<VolumeId, Order>,
    /// This node's own part: its replicas, its leases, what it has asked for.
    pub(crate) local: Local,
    /// The highest entry that any leader has told this process to be applied: nobody acts on less.
    pub(crate) told: Option<u64>,
    /// Replicas that are being asked for a promise, and those that did not give one, until when that counts.
    sealing: BTreeSet<(VolumeId, NodeId)>,
    unsealed: BTreeMap<(VolumeId, NodeId), Instant>,
    /// Volumes whose lease is on its way to the replica here.
    pub(crate) leasing: BTreeSet<VolumeId>,
    /// Steps under way.
    busy: BTreeSet<(VolumeId, StepKind)>,
    /// Whether proposals are under way: the next are decided on what these lead to.
    pub(crate) proposing: bool,
    /// Whether it is being agreed on who votes.
    pub(crate) changing_voters: bool,
    /// Another node, if it says that this one is none of its cluster.
    pub(crate) excluded_by: Option<NodeId>,
    pub(crate) notes: Vec<Note>,
    /// What this node says of its machine.
    pub(crate) machine: Machine,
    /// Nodes that something waits for to be off.
    pub(crate) awaited: Awaited,
    /// The stacks here, by name.
    pub(crate) stacks: BTreeMap<String, Running>,
    /// Evidence that nodes are off which this leader has taken note of.
    known_off: BTreeMap<NodeId, Off>,
    /// Orders to switch nodes off that are carried out here, and whether each is still wanted.
    orders: BTreeMap<u64, Arc<AtomicBool>>,
    events: VecDeque<Event>,
    /// Number of the newest event, for those who wait for it.
    newest: tokio::sync::watch::Sender<u64>,
    /// What others want to know.
    pub(crate) watch: Watch,
    /// Decisions up to this one were told, or were made before this process knew what is agreed on.
    decisions_told: u64,
}

impl Mind {
    /// The mind of a process that was given these leases before it knew anything else.
    pub(crate) fn new(leases: BTreeMap<VolumeId, Instant>, boot: BootId) -> Self {
        let machine = Machine { boot, ..Machine::default() };
        Self { machine, local: Local { leases, ..Local::default() }, ..Self::default() }
    }

    /// Takes note of who leads. Says whether it is another.
    pub(crate) fn note_leadership(&mut self, leadership: Leadership, now: Instant) -> bool {
        let leads = leadership.is_me;
        let is_other = leadership.leader.is_some() && leadership.leader != self.leader;
        self.leader = leadership.leader.or(self.leader);
        if leadership.term == self.term && leads == self.leader_since.is_some() {
            return is_other;
        }
        self.term = leadership.term;
        self.leader_since = leads.then_some(now);
        self.reports.clear();
        self.grants.clear();
        self.closing.clear();
        self.unsealed.clear();
        self.notes.clear();
        self.awaited = Awaited::default();
        self.known_off.clear();
        is_other
    }

    /// Takes note of who is heard. Gives back those for whom that is another than before.
    pub(crate) fn note_health(&mut self, health: &BTreeMap<NodeId, (Health, u32)>) -> Vec<(NodeId, bool)> {
        let now = health.iter().map(|(node, (health, _))| (*node, health.is_heard()));
        let changed =
            now.filter(|(node, is_heard)| self.heard.get(node).copied().unwrap_or(false) != *is_heard);
        let changed: Vec<(NodeId, bool)> = changed.collect();
        self.heard.extend(changed.iter().copied());
        changed
    }

    /// Whether this node leads, in the very election that is given.
    pub(crate) fn leads_in(&self, leadership: Leadership) -> bool {
        leadership.is_me && leadership.term == self.term && self.leader_since.is_some()
    }

    /// Takes a report. Says no to one that is older than what was taken before: it says nothing, and asks for nothing any
    /// more.
    pub(crate) fn take_report(&mut self, from: NodeId, request: &ReportRequest, now: Instant) -> bool {
        let old = self.reports.get(&from);
        if old.is_some_and(|old| old.process == request.process && old.sequence >= request.sequence) {
            return false;
        }
        let (process, sequence, voter) = (request.process, request.sequence, request.voter);
        let reported = Reported { process, sequence, voter, at: now, report: request.report.clone() };
        self.reports.insert(from, reported);
        true
    }

    /// Whether a report says something else than what its node said before.
    pub(crate) fn is_news(&self, from: NodeId, report: &Report) -> bool {
        self.reports.get(&from).is_none_or(|reported| reported.report != *report)
    }

    /// Whether it may be tried now to have another node lead: once in a while.
    pub(crate) fn may_hand_over(&mut self, now: Instant) -> bool {
        let may = now.since_ms(self.handed_over_at) >= HAND_OVER_EVERY_MS;
        if may {
            self.handed_over_at = now;
        }
        may
    }

    /// The voter that a node says it is.
    pub(crate) fn voter_of(&self, node: NodeId) -> Option<u64> {
        self.reports.get(&node).map(|reported| reported.voter)
    }

    /// The voters that nodes say they are.
    pub(crate) fn reported_voters(&self) -> impl Iterator<Item = u64> {
        self.reports.values().map(|reported| reported.voter)
    }

    /// What other nodes said of their stacks; nothing where this one does not lead.
    pub(crate) fn reported_stacks(&self) -> BTreeMap<NodeId, &BTreeMap<String, StackView>> {
        self.reports.iter().map(|(node, reported)| (*node, &reported.report.stacks)).collect()
    }

    /// The cluster as this leader sees it; `None` if it does not lead.
    pub(crate) fn view(
        &self,
        me: NodeId,
        health: &BTreeMap<NodeId, (Health, u32)>,
        now: Instant,
    ) -> Option<View> {
        let leader_since = self.leader_since?;
        let mine = (me, Health::Alive);
        let all = health.iter().map(|(node, (health, _))| (*node, *health)).chain([mine]);
        let fresh = |node: &NodeId| {
            let reported = self.reports.get(node)?;
            (now.since_ms(reported.at) < REPORT_AGE_MAX_MS).then(|| reported.report.clone())
        };
        let nodes = all.map(|(node, health)| (node, NodeView { health, report: fresh(&node) })).collect();
        let entropy = u128::from_le_bytes(crate::random());
        let unsealed = self.unsealed.iter().filter(|(_, until)| now < **until).map(|(at, _)| *at).collect();
        let (grants, awaited) = (self.grants.clone(), self.awaited.since());
        Some(View { now, leader_since, nodes, grants, awaited, unsealed, entropy })
    }

    /// Takes note of evidence that nodes are off, and forgets what they said before: only what they say after it speaks
    /// against it.
    pub(crate) fn note_evidence(&mut self, state: &State) {
        let off = |(node, one): (&NodeId, &NodePower)| Some((*node, one.off.clone()?));
        let known: BTreeMap<NodeId, Off> = state.power.nodes.iter().filter_map(off).collect();
        for (node, off) in &known {
            if self.known_off.get(node) != Some(off) {
                self.reports.remove(node);
            }
        }
        self.known_off = known;
    }

    /// Of the orders that this node is given, those that are not carried out yet; the others are given up where they are
    /// given no more.
    pub(crate) fn new_orders(&mut self, state: &State, me: NodeId) -> Vec<(NodeId, u64, Arc<AtomicBool>)> {
        let order = |(node, one): (&NodeId, &NodePower)| {
            one.order.as_ref().filter(|order| order.by == me).map(|order| (order.number, *node))
        };
        let given: BTreeMap<u64, NodeId> = state.power.nodes.iter().filter_map(order).collect();
        self.orders.retain(|number, is_wanted| {
            let is_given = given.contains_key(number);
            is_wanted.store(is_given, Ordering::Relaxed);
            is_given
        });
        let mut new = Vec::new();
        for (number, node) in given {
            if let btree_map::Entry::Vacant(vacant) = self.orders.entry(number) {
                let is_wanted = Arc::new(AtomicBool::new(true));
                vacant.insert(Arc::clone(&is_wanted));
                new.push((node, number, is_wanted));
            }
        }
        new
    }

    /// Begins to ask for a promise; says no while that is under way.
    pub(crate) fn begin_seal(&mut self, seal: Seal) -> bool {
        self.sealing.insert((seal.volume, seal.node))
    }

    /// What came of it: how the node is now, or nothing. One that did not promise is done without for a while.
    pub(crate) fn end_seal(&mut self, seal: Seal, answer: Option<Report>, now: Instant) {
        self.sealing.remove(&(seal.volume, seal.node));
        match (answer, self.reports.get_mut(&seal.node)) {
            (Some(report), Some(reported)) => (reported.report, reported.at) = (report, now),
            (Some(_), None) => {}
            (None, _) => {
                self.unsealed.insert((seal.volume, seal.node), now.plus_ms(UNSEALED_FOR_MS));
            }
        }
    }

    pub(crate) fn grant(&mut self, volume: VolumeId, to: NodeId, now: Instant) {
        self.grants.insert((volume, to), now);
    }

    pub(crate) fn close(&mut self, volume: VolumeId, decided_on: Order) {
        self.closing.insert(volume, decided_on);
    }

    pub(crate) fn reopen(&mut self, volume: VolumeId) {
        self.closing.remove(&volume);
    }

    pub(crate) fn is_closing(&self, volume: VolumeId, state: &State) -> bool {
        let order = state.records.get(&volume).map(Record::order);
        order.is_some() && self.closing.get(&volume).copied() == order
    }

    /// Begins a step; says no if it is under way. A reign begins when all others of the volume are done; what ends one
    /// waits for nothing.
    pub(crate) fn begin(&mut self, volume: VolumeId, step: StepKind) -> bool {
        let is_under_way = match step {
            StepKind::Open(_) => self.busy.iter().any(|(busy, _)| *busy == volume),
            _ => self.busy.contains(&(volume, step)),
        };
        !is_under_way && self.busy.insert((volume, step))
    }

    pub(crate) fn end(&mut self, volume: VolumeId, step: StepKind) {
        self.busy.remove(&(volume, step));
    }

    /// Remembers what this node does, unless it was the last thing that happened.
    pub(crate) fn remember(&mut self, text: String) {
        self.happen(EventKind::Step, None, text);
    }

    /// Takes note of what was agreed on since the last time. What was decided before this process knew what is agreed on is
    /// history, and nothing that happens.
    pub(crate) fn note_decisions(&mut self, applied: &Applied, policy: &Policy) {
        let history = &applied.state.history;
        if self.told.is_none_or(|told| applied.index < told) {
            self.decisions_told = history.count();
            self.watch.know(&applied.state);
            return;
        }
        let told = self.decisions_told;
        for decided in history.iter().filter(|decided| decided.number > told) {
            let about =
                decided.volume().and_then(|volume| policy.volume(volume)).map(|volume| volume.name.clone());
            let about = about.or_else(|| decided.node().map(|node| policy.node_name(node)));
            let text = format!("decided: {}, since {}", decided.text(policy), decided.entry.reason);
            self.happen(EventKind::Decision, about, text);
            self.watch.decided(decided, policy);
        }
        self.decisions_told = history.count();
    }

    /// Remembers something for people and programs, unless it was the last thing that happened.
    pub(crate) fn happen(&mut self, kind: EventKind, about: Option<String>, text: String) {
        if self.events.back().is_some_and(|last| last.text == text) {
            return;
        }
        eprintln!("{text}");
        let at_unix_ms = crate::power::unix_ms();
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        let number = *self.newest.borrow() + 1;
        self.events.push_back(Event { number, kind, about, at_unix_ms, text });
        self.newest.send_replace(number);
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.iter().cloned().collect()
    }

    /// What happened after the event of that number, as far as it is remembered.
    pub(crate) fn events_after(&self, number: u64) -> Vec<Event> {
        self.events.iter().filter(|event| event.number > number).cloned().collect()
    }

    /// The number of the newest event, and word of each newer one.
    pub(crate) fn newest(&self) -> tokio::sync::watch::Receiver<u64> {
        self.newest.subscribe()
    }
}
