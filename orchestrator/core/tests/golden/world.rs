//! A state, a view and local knowledge that are changed by sentences, and the decisions about them as sentences.

use std::collections::{BTreeMap, BTreeSet};

use orchestrator_core::decide::{self, Fault, Local, StepKind};
use orchestrator_core::fence::{Mode, Rules};
use orchestrator_core::lease::Terms;
use orchestrator_core::policy::{Detection, Node, Policy, Volume};
use orchestrator_core::power::{Off, Power, PowerChange};
use orchestrator_core::proof::{Proof, Resource};
use orchestrator_core::record::{Change, ChangeKind, Record};
use orchestrator_core::stack::{Permit, Phase, Stack, StackView, StepRule, permit};
use orchestrator_core::state::{Command, State};
use orchestrator_core::units::{BootId, Epoch, Instant, NodeId, NodeSet, Position, ReignId, VolumeId};
use orchestrator_core::view::{
    Copy, Health, Machine, NodeView, Replica, ReplicaView, Report, Request, Role, View,
};

const VOLUME: VolumeId = VolumeId(0xf0);
/// The boot under which every node runs.
const BOOT: BootId = BootId(1);
const NOW: Instant = Instant(1_000_000);

/// What is to be explained.
#[derive(Clone, Copy)]
enum Why {
    Volume,
    Node(NodeId),
}

/// What a case is about.
pub(crate) struct World {
    policy: Policy,
    state: State,
    view: View,
    leases: BTreeMap<NodeId, Instant>,
    /// Nodes that ask for a lease in this case.
    asking: Vec<NodeId>,
    /// The leader, where it is shown who is to lead.
    leading: Option<NodeId>,
    /// Nodes whose own steps are shown.
    acting: Vec<NodeId>,
    planned: Option<Fault>,
    /// What is explained in this case.
    asked_why: Option<Why>,
    unfollowed: BTreeMap<(VolumeId, NodeId), Instant>,
    /// Whether something that the primary asked for may still come to be.
    asked: bool,
    /// A node of which it is shown whether the stack may run there.
    permitted: Option<NodeId>,
}

fn node_of(name: &str) -> Result<NodeId, String> {
    match name.trim_end_matches(',') {
        "a" => Ok(NodeId(0)),
        "b" => Ok(NodeId(1)),
        "c" => Ok(NodeId(2)),
        "w" => Ok(NodeId(3)),
        other => Err(format!("there is no node {other:?}")),
    }
}

fn set_of(names: &[&str]) -> Result<NodeSet, String> {
    names.iter().filter(|name| **name != "nobody").map(|name| node_of(name)).collect()
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn position(text: &str) -> Result<Position, String> {
    let (epoch, sequence) = text.split_once(':').ok_or(format!("{text:?} is no position"))?;
    Ok(Position { epoch: Epoch(number(epoch)?), sequence: number(sequence)? })
}

impl World {
    pub(crate) fn usual() -> Self {
        let nodes = [(0, "a"), (1, "b"), (3, "w")];
        let policy = Policy {
            nodes: nodes.map(|(id, name)| Node { id: NodeId(id), name: name.to_owned() }).to_vec(),
            volumes: vec![Volume { id: VOLUME, name: "r0".to_owned(), replicas: vec![NodeId(0), NodeId(1)] }],
            lease: Terms { duration_ms: 1000, drift_ppm: 1000 },
            detection: Detection::default(),
            unproven_grace_ms: 10_000,
            member_patience_ms: 2_000,
            fence: Rules::default(),
            stacks: Vec::new(),
        };
        let members: NodeSet = [NodeId(0), NodeId(1)].into_iter().collect();
        let record = Record {
            epoch: Epoch(1),
            version: 2,
            primary: Some(NodeId(0)),
            reign: ReignId(1),
            opened: true,
            in_sync: members,
            generation: 1,
            proof: Proof::First,
            shrunk_at: None,
        };
        let mut power = Power::default();
        for (id, _) in nodes {
            let runs = PowerChange::Runs { boot: BOOT, watchdog_ms: None };
            power.apply(NodeId(id), &runs).expect("a node may run");
        }
        let state = State { records: BTreeMap::from([(VOLUME, record)]), power, ..State::default() };
        let mut world = Self {
            policy,
            state,
            view: View {
                now: NOW,
                leader_since: Instant(NOW.0 - 100_000),
                nodes: BTreeMap::new(),
                grants: BTreeMap::from([((VOLUME, NodeId(0)), Instant(NOW.0 - 100))]),
                awaited: BTreeMap::new(),
                unsealed: BTreeSet::new(),
                entropy: 0,
            },
            leases: BTreeMap::from([(NodeId(0), Instant(NOW.0 + 900))]),
            asking: Vec::new(),
            leading: None,
            acting: Vec::new(),
            planned: None,
            asked_why: None,
            unfollowed: BTreeMap::new(),
            asked: false,
            permitted: None,
        };
        world.add(NodeId(0), Some(Role::Primary));
        world.add(NodeId(1), Some(Role::Secondary));
        world.add(NodeId(3), None);
        world.replica(NodeId(0)).unwrap().following = NodeSet::only(NodeId(1));
        world
    }

    fn add(&mut self, node: NodeId, role: Option<Role>) {
        let members = [NodeId(0), NodeId(1)].into_iter().collect();
        let at = Position { epoch: Epoch(1), sequence: 100 };
        let replica = |role| Replica {
            role,
            copy: Copy::UpToDate,
            proven: true,
            promised: Epoch(1),
            head: at,
            committed: at,
            record: (Epoch(1), 2),
            in_sync: members,
            following: NodeSet::default(),
            pending: NodeSet::default(),
        };
        let replicas = role.map(|role| (VOLUME, ReplicaView::Running(replica(role)))).into_iter().collect();
        let machine = Machine { boot: BOOT, ..Machine::default() };
        self.view.nodes.insert(
            node,
            NodeView {
                health: Health::Alive,
                report: Some(Report { replicas, machine, ..Report::default() }),
            },
        );
    }

    fn replica(&mut self, node: NodeId) -> Result<&mut Replica, String> {
        let view =
            self.view.nodes.get_mut(&node).and_then(|node| node.report.as_mut()?.replicas.get_mut(&VOLUME));
        match view {
            Some(ReplicaView::Running(replica)) => Ok(replica),
            _ => Err("no replica runs there".to_owned()),
        }
    }

    fn record(&mut self) -> Result<&mut Record, String> {
        self.state.records.get_mut(&VOLUME).ok_or_else(|| "there is no record".to_owned())
    }

    fn set_view(&mut self, node: NodeId, view: ReplicaView) {
        let report = self.view.nodes.get_mut(&node).and_then(|node| node.report.as_mut());
        report.expect("it reports").replicas.insert(VOLUME, view);
    }

    /// Takes a sentence of a case.
    pub(crate) fn given(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["no", "record"] => drop(self.state.records.remove(&VOLUME)),
            ["a", "third", "replica", "on", "c"] => self.third(),
            ["the", "record", "names", "nobody"] => self.record()?.primary = None,
            ["the", "record", "names", node] => self.record()?.primary = Some(node_of(node)?),
            ["the", "record", "is", "not", "opened"] => self.record()?.opened = false,
            ["the", "record", "is", "by", proof] => self.record()?.proof = proof_of(proof)?,
            ["the", "record", "has", "members", names @ ..] => self.record()?.in_sync = set_of(names)?,
            ["the", "record", "has", "epoch", epoch] => self.record()?.epoch = Epoch(number(epoch)?),
            ["the", "leader", "leads", "for", ms, "ms"] => {
                self.view.leader_since = Instant(NOW.0 - number(ms)?);
                self.view.grants.clear();
            }
            ["something", "was", "asked", "for"] => self.asked = true,
            ["everything", "is", "paused"] => self.state.paused.cluster = true,
            ["r0", "is", "paused"] => drop(self.state.paused.volumes.insert(VOLUME)),
            ["r0", "is", "wanted", "on", node] => drop(self.state.wanted.insert(VOLUME, node_of(node)?)),
            ["power", "is", "used", mode @ ..] => self.policy.fence.mode = mode_of(mode)?,
            ["r0", "needs", "its", "old", "node", "surely", "off"] => {
                self.policy.fence.surely_off.insert(VOLUME);
            }
            ["nothing", "is", "granted"] => self.view.grants.clear(),
            ["if", "nothing", "happens"] => self.planned = Some(Fault::Nothing),
            ["if", node, "dies"] => self.planned = Some(Fault::Dies(node_of(node)?)),
            ["if", one, "and", other, "lose", "their", "link"] => {
                self.planned = Some(Fault::Cut(node_of(one)?, node_of(other)?));
            }
            ["if", "the", "disk", "of", node, "fails"] => {
                self.planned = Some(Fault::DiskFails(node_of(node)?, Some(VOLUME)));
            }
            ["asked", "why", "r0"] => self.asked_why = Some(Why::Volume),
            ["asked", "why", node] => self.asked_why = Some(Why::Node(node_of(node)?)),
            ["r0", "is", "being", "left"] => {
                let epoch = self.record()?.epoch;
                self.stack();
                self.state.leaving.insert(VOLUME, epoch);
            }
            ["db", rest @ ..] => return self.given_of_stack(rest),
            [node, rest @ ..] => return self.given_of(node_of(node)?, rest),
            [] => return Err("an empty line".to_owned()),
        }
        Ok(())
    }

    /// The stack, which is there from when it is first spoken of.
    fn stack(&mut self) -> &mut Stack {
        if self.policy.stacks.is_empty() {
            let step = |name: &str, resource| StepRule {
                name: name.to_owned(),
                resource,
                start_timeout_ms: 1_000,
                stop_timeout_ms: 1_000,
                monitor_interval_ms: Some(1_000),
                monitor_timeout_ms: 1_000,
            };
            self.policy.stacks.push(Stack {
                name: "db".to_owned(),
                volumes: vec![VOLUME],
                steps: vec![
                    step("device", Resource::VolumeService),
                    step("app", Resource::VolumeService),
                    step("address", Resource::Address),
                ],
                prefers: Vec::new(),
                stays: true,
                with: Vec::new(),
                apart: Vec::new(),
                failures_max: 3,
                forget_after_ms: 600_000,
            });
        }
        &mut self.policy.stacks[0]
    }

    fn given_of_stack(&mut self, words: &[&str]) -> Result<(), String> {
        self.stack();
        match words {
            ["runs", "on", node] => drop(self.stack_at(node, Phase::Running)?),
            ["is", "stuck", "on", node] => drop(self.stack_at(node, Phase::Stuck)?),
            ["is", "given", "up", "on", node] => self.stack_at(node, Phase::Failed)?.given_up = true,
            ["prefers", names @ ..] => {
                self.stack().prefers = names.iter().map(|name| node_of(name)).collect::<Result<_, _>>()?;
            }
            ["does", "not", "stay"] => self.stack().stays = false,
            ["may", "run", "on", node] => self.permitted = Some(node_of(node)?),
            _ => return Err(format!("not understood: {}", words.join(" "))),
        }
        Ok(())
    }

    /// What a node says of the stack; something of it is there unless it is given up.
    fn stack_at(&mut self, node: &str, phase: Phase) -> Result<&mut StackView, String> {
        let report = self.view.nodes.get_mut(&node_of(node)?).and_then(|node| node.report.as_mut());
        let report = report.ok_or("it has not reported")?;
        if phase != Phase::Failed {
            report.occupied.insert(VOLUME);
        }
        let view = StackView { phase, failures: 0, given_up: false, note: String::new(), steps: Vec::new() };
        report.stacks.insert("db".to_owned(), view);
        Ok(report.stacks.get_mut("db").expect("it was put there"))
    }

    fn given_of(&mut self, node: NodeId, words: &[&str]) -> Result<(), String> {
        let health =
            |world: &mut Self, health| world.view.nodes.get_mut(&node).expect("it is there").health = health;
        match words {
            ["is", "not", "heard", "for", ms, "ms"] => {
                health(self, Health::Suspected { since: Instant(NOW.0 - number(ms)?) });
            }
            ["is", "in", "quarantine"] => health(self, Health::Quarantined { until: Instant(NOW.0 + 500) }),
            ["has", "not", "reported"] => self.view.nodes.get_mut(&node).expect("it is there").report = None,
            ["runs", "no", "replicator"] => self.set_view(node, ReplicaView::Stopped),
            ["does", "not", "answer"] => self.set_view(node, ReplicaView::Silent("it hangs".to_owned())),
            ["is", "secondary"] => {
                let replica = self.replica(node)?;
                (replica.role, replica.following) = (Role::Secondary, NodeSet::default());
            }
            ["serves"] => self.replica(node)?.role = Role::Primary,
            ["changes", "its", "role"] => self.replica(node)?.role = Role::Changing,
            ["is", "at", at] => {
                let at = position(at)?;
                let replica = self.replica(node)?;
                (replica.head, replica.committed) = (at, at);
            }
            ["is", "unproven"] => self.replica(node)?.proven = false,
            ["has", "a", "copy", "that", "is", state] => {
                self.replica(node)?.copy = Copy::Unusable((*state).to_owned());
            }
            ["does", "not", "give", "its", "promise"] => drop(self.view.unsealed.insert((VOLUME, node))),
            ["counts", "pending", names @ ..] => self.replica(node)?.pending = set_of(names)?,
            ["knows", "version", version] => self.replica(node)?.record.1 = number(version)?,
            ["has", "promised", epoch] => self.replica(node)?.promised = Epoch(number(epoch)?),
            ["knows", "epoch", epoch] => self.replica(node)?.record.0 = Epoch(number(epoch)?),
            ["knows", "members", names @ ..] => self.replica(node)?.in_sync = set_of(names)?,
            ["is", "followed", "by", names @ ..] => self.replica(node)?.following = set_of(names)?,
            ["does", "not", "follow", "for", ms, "ms"] => {
                self.unfollowed.insert((VOLUME, node), Instant(NOW.0 - number(ms)?));
                let NodeView { report: Some(report), .. } =
                    self.view.nodes.get_mut(&NodeId(0)).expect("a is there")
                else {
                    return Err("a has not reported".to_owned());
                };
                if let Some(ReplicaView::Running(replica)) = report.replicas.get_mut(&VOLUME) {
                    replica.following = replica.following.without(node);
                }
            }
            ["has", "a", "lease"] => {
                let report = self.view.nodes.get_mut(&node).and_then(|node| node.report.as_mut());
                report.ok_or("it has not reported")?.leases.insert(VOLUME);
            }
            ["was", "granted", "a", "lease", ms, "ms", "ago"] => {
                self.view.grants.insert((VOLUME, node), Instant(NOW.0 - number(ms)?));
            }
            ["holds", "no", "lease"] => drop(self.leases.remove(&node)),
            ["holds", "a", "lease"] => drop(self.leases.insert(node, Instant(NOW.0 + 500))),
            ["is", "in", "standby"] => drop(self.state.standby.insert(node)),
            ["is", "paused"] => drop(self.state.paused.nodes.insert(node)),
            ["can", "switch", "off", target] => {
                let target = node_of(target)?;
                self.policy.fence.fenceable = self.policy.fence.fenceable.with(target);
                let machine = self.machine(node)?;
                machine.fences = machine.fences.with(target);
            }
            ["has", "armed", "a", "watchdog", "of", ms, "ms"] => {
                let watchdog_ms = Some(number(ms)?);
                self.machine(node)?.watchdog_ms = watchdog_ms;
                self.power(node, &PowerChange::Runs { boot: BOOT, watchdog_ms });
            }
            ["runs", "under", "another", "boot"] => self.machine(node)?.boot = BootId(2),
            ["is", "off", rest @ ..] => {
                let change = match rest {
                    [] => {
                        self.power(node, &ordered());
                        let (number, outcome) = (self.state.power.orders, Ok("ipmi".to_owned()));
                        PowerChange::Fenced { number, outcome, at_unix_ms: 0 }
                    }
                    ["by", "the", "word", "of", who] => {
                        let who = (*who).to_owned();
                        PowerChange::ConfirmOff { boot: Some(BOOT), who, at_unix_ms: 0 }
                    }
                    _ => return Err(format!("not understood: {}", words.join(" "))),
                };
                self.power(node, &change);
                self.view.nodes.get_mut(&node).expect("it is there").report = None;
            }
            ["reports", "again"] => self.add(node, Some(Role::Secondary)),
            ["was", "to", "be", "switched", "off", "and", "was", "not"] => {
                self.power(node, &ordered());
                let (number, outcome) = (self.state.power.orders, Err("no answer".to_owned()));
                self.power(node, &PowerChange::Fenced { number, outcome, at_unix_ms: 0 });
            }
            ["is", "being", "switched", "off"] => self.power(node, &ordered()),
            ["is", "being", "switched", "off", "for", who] => {
                let PowerChange::Fence { by, boot, reason, .. } = ordered() else { unreachable!() };
                let asked_by = Some((*who).to_owned());
                self.power(node, &PowerChange::Fence { by, boot, asked_by, reason });
            }
            ["is", "awaited", "for", ms, "ms"] => {
                self.view.awaited.insert(node, Instant(NOW.0 - number(ms)?));
            }
            ["asks", "for", "a", "lease"] => self.asking.push(node),
            ["acts"] => self.acting.push(node),
            ["leads"] => self.leading = Some(node),
            _ => return Err(format!("not understood: {}", words.join(" "))),
        }
        Ok(())
    }

    fn machine(&mut self, node: NodeId) -> Result<&mut Machine, String> {
        let report = self.view.nodes.get_mut(&node).and_then(|node| node.report.as_mut());
        report.map(|report| &mut report.machine).ok_or_else(|| "it has not reported".to_owned())
    }

    fn power(&mut self, node: NodeId, change: &PowerChange) {
        self.state.power.apply(node, change).expect("it can be so");
    }

    /// A replica gives its promise, and its node says so.
    fn promise(&mut self, node: NodeId, epoch: Epoch) {
        let report = self.view.nodes.get_mut(&node).and_then(|node| node.report.as_mut());
        report.expect("it was asked").leases.remove(&VOLUME);
        let replica = self.replica(node).expect("it was asked");
        (replica.role, replica.promised) = (Role::Secondary, epoch);
    }

    fn third(&mut self) {
        let c = NodeId(2);
        self.policy.nodes[2] = Node { id: c, name: "c".to_owned() };
        self.policy.volumes[0].replicas.push(c);
        self.view.nodes.remove(&NodeId(3));
        self.add(c, Some(Role::Secondary));
        self.power(c, &PowerChange::Runs { boot: BOOT, watchdog_ms: None });
        let all: NodeSet = [NodeId(0), NodeId(1), c].into_iter().collect();
        self.state.records.get_mut(&VOLUME).expect("the usual record").in_sync = all;
        for node in [NodeId(0), NodeId(1), c] {
            self.replica(node).expect("it runs").in_sync = all;
        }
        self.replica(NodeId(0)).expect("it runs").following = all.without(NodeId(0));
    }

    fn name(&self, node: NodeId) -> String {
        self.policy.node_name(node)
    }

    fn names(&self, nodes: NodeSet) -> String {
        nodes.iter().map(|node| self.name(node)).collect::<Vec<_>>().join(" ")
    }

    fn explained(&self, why: Why) -> Vec<String> {
        let (state, policy, view) = (&self.state, &self.policy, &self.view);
        let explained = match why {
            Why::Volume => decide::explain_volume(state, policy, view, VOLUME).expect("r0 is configured"),
            Why::Node(node) => decide::explain_node(state, policy, view, node),
        };
        let mut lines = vec![explained.summary];
        lines.extend(explained.findings.iter().map(|finding| {
            format!("{}: {}", format!("{:?}", finding.severity).to_lowercase(), finding.text)
        }));
        lines.extend(explained.next.iter().map(|next| format!("next: {next}")));
        lines.extend(explained.cures.iter().map(|cure| format!("cure: {cure}")));
        lines
    }

    /// Everything that is decided.
    pub(crate) fn decided(&mut self) -> Vec<String> {
        self.ask();
        if let Some(why) = self.asked_why {
            return self.explained(why);
        }
        if let Some(dead) = self.planned {
            let plan = decide::plan(&self.state, &self.policy, &self.view, dead);
            return plan.iter().map(|step| format!("after {} ms: {}", step.after_ms, step.text)).collect();
        }
        if let Some(node) = self.permitted {
            let report = self.view.nodes[&node].report.clone().unwrap_or_default();
            let local = self.local(node, report.replicas);
            let permit = permit(&self.state, &self.policy, node, &local, &self.policy.stacks[0]);
            return vec![match permit {
                Permit::Run { until, is_sure, .. } => {
                    let sure = if is_sure { "surely alone" } else { "alone as far as leases go" };
                    format!("db may run on {} for {} ms, {sure}", self.name(node), until.since_ms(NOW))
                }
                Permit::Freeze(why) => format!("db waits, since {why}"),
                Permit::Stop(why) => format!("db stops, since {why}"),
                Permit::Evict(why) => format!("db is to be gone, since {why}"),
            }];
        }
        if let Some(leader) = self.leading {
            let next = decide::successor(&self.state, &self.policy, &self.view, leader);
            let text = |next| format!("{} is to lead", self.name(next));
            return vec![next.map_or_else(|| format!("{} leads on", self.name(leader)), text)];
        }
        let mut lines = Vec::new();
        for node in &self.asking {
            let volume = &self.policy.volumes[0];
            let answer = decide::may_grant(&self.state, &self.policy, &self.view, volume, *node);
            let answer = answer
                .map_or_else(|why| format!("not granted, {}", why.text(NOW)), |()| "granted".to_owned());
            lines.push(format!("lease of {}: {answer}", self.name(*node)));
        }
        for node in &self.acting {
            lines.extend(self.steps(*node));
        }
        if self.asking.is_empty() && self.acting.is_empty() {
            let mut decision = decide::cluster(&self.state, &self.policy, &self.view);
            if !decision.seals.is_empty() {
                let (epoch, asked) =
                    (decision.seals[0].epoch, decision.seals.iter().map(|seal| seal.node).collect());
                lines.push(format!("ask {} to promise epoch {epoch}, then", self.names(asked)));
                decision.seals.iter().for_each(|seal| self.promise(seal.node, epoch));
                decision = decide::cluster(&self.state, &self.policy, &self.view);
                assert!(decision.seals.is_empty(), "a promise is asked for once");
            }
            lines.extend(decision.proposals.iter().map(|proposal| {
                format!("propose {}, since {}", self.command(&proposal.command), proposal.reason)
            }));
            let word = |note: &decide::Note| format!("{:?}", note.severity).to_lowercase();
            lines.extend(decision.needs.iter().filter(|_| !self.policy.stacks.is_empty()).map(|need| {
                format!(
                    "{} is to be off within {} ms, since {}",
                    self.name(need.node),
                    need.patience_ms,
                    need.reason
                )
            }));
            lines.extend(
                decision.notes.iter().map(|note| format!("{}: {} {}", word(note), note.volume, note.text)),
            );
        }
        if lines.is_empty() {
            lines.push("nothing".to_owned());
        }
        lines
    }

    fn local(&self, node: NodeId, replicas: BTreeMap<VolumeId, ReplicaView>) -> Local {
        let leases = self.leases.get(&node).map(|until| (VOLUME, *until)).into_iter().collect();
        let mut requests = BTreeMap::new();
        if let Some(record) = self.state.records.get(&VOLUME).filter(|_| self.asked) {
            let change = Change { expected: record.order(), kind: ChangeKind::Opened };
            requests.insert(VOLUME, Request { change, reason: "it was asked for before".to_owned() });
        }
        let nodes = self.view.nodes.iter();
        let suspected = nodes.filter(|(_, node)| !node.health.is_heard()).map(|(id, _)| *id).collect();
        Local { now: NOW, replicas, leases, requests, unfollowed: self.unfollowed.clone(), suspected }
    }

    /// Every node asks for what it asks for.
    fn ask(&mut self) {
        for node in self.policy.nodes.clone() {
            let Some(report) = self.view.nodes.get(&node.id).and_then(|view| view.report.clone()) else {
                continue;
            };
            let mut local = self.local(node.id, report.replicas);
            local.ask(&self.state, &self.policy, node.id);
            let report = self.view.nodes.get_mut(&node.id).and_then(|view| view.report.as_mut());
            report.expect("looked at above").requests = local.requests;
        }
    }

    fn steps(&self, node: NodeId) -> Vec<String> {
        let report = self.view.nodes[&node].report.clone().unwrap_or_default();
        let local = self.local(node, report.replicas);
        let steps = decide::node(&self.state, &self.policy, node, &local);
        let text = |kind| match kind {
            StepKind::Open(epoch) => format!("opens epoch {epoch}"),
            StepKind::Release => "releases".to_owned(),
            StepKind::Tell((epoch, version)) => format!("tells its replica epoch {epoch} version {version}"),
        };
        let name = self.name(node);
        steps.iter().map(|step| format!("{name} {}, since {}", text(step.kind), step.reason)).collect()
    }

    fn power_text(&self, node: NodeId, change: &PowerChange) -> String {
        let name = self.name(node);
        match change {
            PowerChange::Runs { boot, watchdog_ms: None } => {
                format!("that {name} runs under boot {}", boot.0)
            }
            PowerChange::Runs { boot, watchdog_ms: Some(ms) } => {
                format!("that {name} runs under boot {}, with a watchdog of {ms} ms", boot.0)
            }
            PowerChange::Fence { by, .. } => format!("that {} switches {name} off", self.name(*by)),
            PowerChange::Spare { number, .. } => format!("that {name} is spared order {number}"),
            PowerChange::Fenced { .. } | PowerChange::ConfirmOff { .. } => {
                panic!("a leader does not decide what others find out")
            }
        }
    }

    /// The proof of a takeover in short.
    fn proof_text(&self, proof: &Proof) -> String {
        let names = |off: &[Off]| off.iter().map(|off| self.name(off.node)).collect::<Vec<_>>().join(" ");
        match proof {
            Proof::PowerOff { off } => format!("PowerOff of {}", names(off)),
            Proof::Operator { who, off } => format!("Operator {who} for {}", names(off)),
            Proof::WatchdogExpired { nodes } => format!("WatchdogExpired of {}", self.names(*nodes)),
            other => format!("{other:?}"),
        }
    }

    fn command(&self, command: &Command) -> String {
        let change = match command {
            Command::Create { epoch, primary, in_sync, .. } => {
                let (primary, members) = (self.name(*primary), self.names(*in_sync));
                return format!("the first record: epoch {epoch}, primary {primary}, members {members}");
            }
            Command::Change { change, .. } => change,
            Command::Power { node, change } => return self.power_text(*node, change),
            other => return other.to_string(),
        };
        match &change.kind {
            ChangeKind::Shrink { remove, committed } => {
                format!("a set without {}, at {committed}", self.names(*remove))
            }
            ChangeKind::Grow { add } => format!("a set with {}", self.name(*add)),
            ChangeKind::Opened => "that it is opened".to_owned(),
            ChangeKind::Release => "that nobody is primary".to_owned(),
            ChangeKind::Takeover(takeover) => {
                let broken = if takeover.breaks_sessions { ", sessions broken" } else { "" };
                let (primary, members) = (self.name(takeover.primary), self.names(takeover.in_sync));
                let (epoch, proof) = (takeover.epoch, self.proof_text(&takeover.proof));
                format!("primary {primary}, epoch {epoch}, members {members}, by {proof}{broken}")
            }
        }
    }
}

/// The order to switch a node off, as w was given it.
fn ordered() -> PowerChange {
    let (by, boot, reason) = (NodeId(3), Some(BOOT), "it was needed".to_owned());
    PowerChange::Fence { by, boot, asked_by: None, reason }
}

fn mode_of(words: &[&str]) -> Result<Mode, String> {
    match words {
        ["always"] => Ok(Mode::Always),
        ["never"] => Ok(Mode::Never),
        ["when", "needed"] => Ok(Mode::WhenNeeded),
        _ => Err(format!("{} is no mode", words.join(" "))),
    }
}

fn proof_of(word: &str) -> Result<Proof, String> {
    Ok(match word {
        "EpochFenced" => Proof::EpochFenced,
        "LeaseExpired" => Proof::LeaseExpired,
        "Released" => Proof::Released,
        "WatchdogExpired" => Proof::WatchdogExpired { nodes: NodeSet::only(NodeId(1)) },
        "PowerOff" => Proof::PowerOff { off: Vec::new() },
        "Operator" => Proof::Operator { who: "root".to_owned(), off: Vec::new() },
        other => return Err(format!("{other} is no proof")),
    })
}
