//! All machines together, the links between them, and what is done to them.

use std::collections::BTreeMap;

use orchestrator_core::decide::{self, Local, StepKind};
use orchestrator_core::fence::{Mode, Rules};
use orchestrator_core::health::Detector;
use orchestrator_core::lease::Terms;
use orchestrator_core::policy::{Detection, Node, Policy, Volume};
use orchestrator_core::proof::Proof;
use orchestrator_core::record::{ChangeKind, Refused};
use orchestrator_core::state::Command;
use orchestrator_core::units::{BootId, Epoch, NodeId, NodeSet};
use orchestrator_core::view::{self, Health, NodeView, Report, Role, View};

use crate::fencing::Fencing;
use crate::machine::{Leading, Machine, Outstanding, Rep, Under, VOLUME, WRITES_MAX, Writes};
use crate::raft::{Outcome, Raft};
use crate::random::Random;

/// A step of the model.
const STEP_MS: u64 = 10;
const TURN_MS: u64 = 50;
/// How long a report waits for its answer.
const CALL_MS: u64 = 1000;
const LEASE_MS: u64 = 1000;
const DRIFT_PPM: u64 = 20_000;
/// A report older than this says nothing.
const REPORT_AGE_MAX_MS: u64 = 2_000;
/// Without faults, a machine that was switched off is switched on again at the next multiple of this.
const REBOOT_MS: u64 = 3_000;
/// Happenings kept for a failure.
const STORY_MAX: usize = 60;

/// A request on its way to a leader, or waiting there for its turn.
struct Letter {
    from: usize,
    to: usize,
    at: u64,
    process: u64,
    sequence: u64,
    report: Report,
    asks: bool,
    /// Whether a majority has confirmed the leader since it came in.
    confirmed: bool,
}

/// An answer on its way back.
struct Answer {
    to: usize,
    at: u64,
    process: u64,
    sequence: u64,
    applied: usize,
    granted: bool,
}

/// The world.
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) random: Random,
    policy: Policy,
    pub(crate) raft: Raft,
    pub(crate) machines: Vec<Machine>,
    /// Broken links between orchestrators, and between replicas.
    talk_cut: Vec<Vec<bool>>,
    data_cut: Vec<Vec<bool>>,
    letters: Vec<Letter>,
    answers: Vec<Answer>,
    pub(crate) fencings: Vec<Fencing>,
    /// What was asked of a device that did not answer, and comes to be nevertheless.
    pub(crate) late: Vec<(u64, usize)>,
    acknowledged: Writes,
    next_write: usize,
    takeovers: u32,
    /// Those for which a machine was switched off.
    powered: u32,
    story: Vec<String>,
}

fn set(machines: impl Iterator<Item = usize>) -> NodeSet {
    machines.map(|index| NodeId(u8::try_from(index).expect("few"))).collect()
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        // Two replicas and a witness, or three replicas.
        let replicas = if seed.is_multiple_of(3) { 3 } else { 2 };
        let ids = || (0..3u8).map(NodeId);
        let mode = if seed.is_multiple_of(2) { Mode::WhenNeeded } else { Mode::Always };
        let members: NodeSet = ids().take(replicas).collect();
        let machine = |id: NodeId, random: &mut Random| Machine {
            id,
            offset: random.below(1_000_000),
            rate_ppm: 1_000_000 - DRIFT_PPM + random.below(2 * DRIFT_PPM + 1),
            up: true,
            boot: 1,
            orchestrator_up: true,
            process: 1,
            applied: 0,
            told: None,
            leases: BTreeMap::new(),
            requests: BTreeMap::new(),
            unfollowed: BTreeMap::new(),
            detectors: BTreeMap::new(),
            beat: 0,
            sequence: 0,
            outstanding: None,
            under: None,
            leading: None,
            replica: members.contains(id).then(|| Rep {
                up: true,
                role: Role::Secondary,
                epoch: 0,
                promised: (0, 0),
                writes: Writes::new(),
                in_sync: members,
                record: (Epoch(0), 1),
                length: 0,
            }),
        };
        let mut machines: Vec<Machine> = ids().map(|id| machine(id, &mut random)).collect();
        for machine in &mut machines {
            let (me, at) = (machine.id, machine.clock(0));
            let others = ids().filter(|id| *id != me);
            machine.detectors = others.map(|id| (id, Detector::new(Detection::default(), 1, at))).collect();
        }
        let policy = Policy {
            nodes: ids().map(|id| Node { id, name: format!("n{}", id.0) }).collect(),
            volumes: vec![Volume { id: VOLUME, name: "r0".to_owned(), replicas: members.iter().collect() }],
            lease: Terms { duration_ms: LEASE_MS, drift_ppm: DRIFT_PPM },
            detection: Detection::default(),
            unproven_grace_ms: 5_000,
            member_patience_ms: 1_000,
            fence: Rules { mode, fenceable: ids().collect(), ..Rules::default() },
        };
        let uncut = || vec![vec![false; 3]; 3];
        let (talk_cut, data_cut) = (uncut(), uncut());
        Self {
            now: 0,
            random,
            policy,
            raft: Raft::new(),
            machines,
            talk_cut,
            data_cut,
            letters: Vec::new(),
            answers: Vec::new(),
            fencings: Vec::new(),
            late: Vec::new(),
            acknowledged: Writes::new(),
            next_write: 0,
            takeovers: 0,
            powered: 0,
            story: Vec::new(),
        }
    }

    pub(crate) fn acknowledged(&self) -> u32 {
        self.acknowledged.count()
    }

    pub(crate) fn takeovers(&self) -> u32 {
        self.takeovers
    }

    pub(crate) fn powered(&self) -> u32 {
        self.powered
    }

    /// What happened last, and how things stand.
    pub(crate) fn story(&self) -> String {
        let mut lines = self.story.clone();
        lines.push(format!("record: {:?}", self.raft.state(self.raft.committed()).records.get(&VOLUME)));
        lines.push(format!("leader: {:?}", self.raft.leader));
        for machine in &self.machines {
            let Some(replica) = &machine.replica else { continue };
            lines.push(format!(
                "{}: {:?}, up {}, epoch {}, promised {:?}, in sync {:?}, record {:?}, applied {}, told {:?}, leases {:?}",
                machine.id,
                replica.role,
                replica.up,
                replica.epoch,
                replica.promised,
                replica.in_sync.iter().collect::<Vec<_>>(),
                replica.record,
                machine.applied,
                machine.told,
                machine.leases
            ));
        }
        lines.join("\n")
    }

    pub(crate) fn tell(&mut self, text: &str) {
        if self.story.last().is_some_and(|last| last.ends_with(text)) {
            return;
        }
        if self.story.len() == STORY_MAX {
            self.story.remove(0);
        }
        self.story.push(format!("{:>6} {text}", self.now));
    }

    /// All is repaired and started again.
    pub(crate) fn heal(&mut self) {
        let uncut = || vec![vec![false; 3]; 3];
        (self.talk_cut, self.data_cut) = (uncut(), uncut());
        for index in 0..self.machines.len() {
            self.start(index);
        }
        self.tell("all is repaired");
    }

    pub(crate) fn start(&mut self, index: usize) {
        let now = self.now;
        let machine = &mut self.machines[index];
        machine.boot += u128::from(!machine.up);
        machine.up = true;
        if !machine.orchestrator_up {
            machine.start_orchestrator(now);
        }
        if let Some(replica) = &mut machine.replica {
            replica.up = true;
        }
    }

    pub(crate) fn run(&mut self, ms: u64, faulty: bool) {
        let end = self.now + ms;
        while self.now < end {
            self.now += STEP_MS;
            if faulty {
                self.break_something();
            } else if self.now.is_multiple_of(REBOOT_MS) {
                (0..self.machines.len()).for_each(|index| self.start(index));
            }
            let majorities = self.majorities();
            self.raft.turn(self.now, &majorities, &mut self.random, faulty);
            self.note_leaders(&majorities);
            self.follow_log();
            self.heartbeats();
            self.deliver(faulty, &majorities);
            for index in 0..self.machines.len() {
                self.finish_step(index);
                if (self.now / STEP_MS + index as u64).is_multiple_of(TURN_MS / STEP_MS) {
                    self.turn(index, faulty, &majorities);
                }
            }
            self.switch_off(faulty, &majorities);
            self.replicate();
            self.serve();
        }
    }

    pub(crate) fn talks(&self, a: usize, b: usize) -> bool {
        let runs = |index: usize| self.machines[index].up && self.machines[index].orchestrator_up;
        runs(a) && runs(b) && (a == b || !self.talk_cut[a][b])
    }

    fn majorities(&self) -> Vec<usize> {
        let count = self.machines.len();
        let reaches =
            |index: &usize| 2 * (0..count).filter(|other| self.talks(*index, *other)).count() > count;
        (0..count).filter(reaches).collect()
    }

    fn break_something(&mut self) {
        if !self.random.once_in(60) {
            return;
        }
        let index = usize::try_from(self.random.below(3)).expect("small");
        let other = (index + 1 + usize::try_from(self.random.below(2)).expect("small")) % 3;
        let both = |links: &mut Vec<Vec<bool>>, cut| (links[index][other], links[other][index]) = (cut, cut);
        match self.random.below(12) {
            0 => {
                self.tell(&format!("machine {index} dies"));
                self.machines[index].die();
            }
            1 => {
                self.tell(&format!("replicator {index} dies"));
                self.machines[index].stop_replica();
            }
            2 => {
                self.tell(&format!("orchestrator {index} dies"));
                self.machines[index].stop_orchestrator();
            }
            3 | 4 => both(&mut self.talk_cut, true),
            5 => both(&mut self.data_cut, true),
            6 => {
                self.tell(&format!("{index} is cut off from everybody"));
                for other in (0..3).filter(|other| *other != index) {
                    for links in [&mut self.talk_cut, &mut self.data_cut] {
                        (links[index][other], links[other][index]) = (true, true);
                    }
                }
            }
            7 | 8 => {
                both(&mut self.talk_cut, false);
                both(&mut self.data_cut, false);
            }
            9 => {
                let uncut = || vec![vec![false; 3]; 3];
                (self.talk_cut, self.data_cut) = (uncut(), uncut());
            }
            _ => {
                self.tell(&format!("machine {index} is started"));
                self.start(index);
            }
        }
    }

    /// Whoever wins an election learns of it at once; whoever has lost one, when it hears of the winner.
    fn note_leaders(&mut self, majorities: &[usize]) {
        let (leader, term) = (self.raft.leader, self.raft.term);
        for index in 0..self.machines.len() {
            let hears = leader.is_some_and(|leader| self.talks(index, leader));
            let now = self.machines[index].clock(self.now);
            let machine = &mut self.machines[index];
            if leader == Some(index) && machine.orchestrator_up && majorities.contains(&index) {
                if machine.leading.as_ref().is_none_or(|leading| leading.term != term) {
                    machine.leading = Some(Leading { term, since: now, ..Leading::default() });
                    machine.applied = self.raft.committed();
                }
            } else if hears && leader != Some(index) && self.random.once_in(10) {
                machine.leading = None;
            }
        }
        // A leader whose process has ended leads no more.
        if leader.is_some_and(|leader| self.machines[leader].leading.is_none()) {
            self.raft.leader = None;
        }
    }

    fn follow_log(&mut self) {
        let Some(leader) = self.raft.leader else { return };
        for index in 0..self.machines.len() {
            if index == leader || self.talks(index, leader) && self.random.once_in(5) {
                self.machines[index].applied = self.raft.committed();
            }
        }
    }

    fn heartbeats(&mut self) {
        if !(self.now / STEP_MS).is_multiple_of(TURN_MS / STEP_MS) {
            return;
        }
        for from in 0..self.machines.len() {
            self.machines[from].beat += 1;
            let (beat, process, id) =
                (self.machines[from].beat, self.machines[from].process, self.machines[from].id);
            for to in (0..self.machines.len()).filter(|to| *to != from) {
                if self.talks(from, to) {
                    let at = self.machines[to].clock(self.now);
                    let detector = self.machines[to].detectors.get_mut(&id).expect("it is watched");
                    detector.heard(0, process, beat, at);
                }
            }
        }
    }

    /// What node `index` sees of the cluster, if it believes that it leads.
    fn view(&mut self, index: usize) -> Option<View> {
        let entropy = u128::from(self.random.next());
        let now = self.machines[index].clock(self.now);
        let machine = &mut self.machines[index];
        let me = machine.id;
        let health: Vec<(NodeId, Health)> =
            machine.detectors.iter_mut().map(|(id, detector)| (*id, detector.advance(now))).collect();
        let applied = machine.applied;
        let leading = machine.leading.as_mut()?;
        let state = self.raft.state(applied);
        leading.note_evidence(state);
        let leading = &*leading;
        let nodes = health.into_iter().chain([(me, Health::Alive)]).map(|(id, health)| {
            let reported =
                leading.reports.get(&id).filter(|(at, ..)| now.0.saturating_sub(*at) < REPORT_AGE_MAX_MS);
            (id, NodeView { health, report: reported.map(|(_, _, report)| report.clone()) })
        });
        Some(View {
            now,
            leader_since: leading.since,
            nodes: nodes.collect(),
            grants: leading.grants.clone(),
            awaited: leading.awaited.since(),
            entropy,
        })
    }

    fn deliver(&mut self, faulty: bool, majorities: &[usize]) {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.letters).into_iter().partition(|letter| letter.at <= now);
        self.letters = later;
        let due: Vec<Letter> = due;
        for mut letter in due {
            if !self.talks(letter.from, letter.to) {
                continue;
            }
            if !letter.confirmed && letter.asks {
                if self.raft.confirms(letter.to, majorities) {
                    // Much may happen between the round and the answer.
                    let delay = if faulty { self.random.below(60) } else { 0 };
                    (letter.confirmed, letter.at) = (true, now + delay);
                    self.letters.push(letter);
                }
                continue;
            }
            self.receive(&letter);
        }
        let (due, later): (Vec<Answer>, Vec<Answer>) =
            std::mem::take(&mut self.answers).into_iter().partition(|answer| answer.at <= now);
        self.answers = later;
        for answer in due {
            self.take_answer(&answer);
        }
    }

    /// A report at somebody who believes that it leads.
    fn receive(&mut self, letter: &Letter) {
        let from = self.machines[letter.from].id;
        let now = self.machines[letter.to].clock(self.now);
        let Some(leading) = &mut self.machines[letter.to].leading else { return };
        let key = letter.process << 32 | letter.sequence;
        if leading.reports.get(&from).is_some_and(|(_, known, _)| *known >= key) {
            return;
        }
        leading.reports.insert(from, (now.0, key, letter.report.clone()));
        let Some(view) = self.view(letter.to) else { return };
        let applied = self.machines[letter.to].applied;
        let state = self.raft.state(applied);
        let volume = &self.policy.volumes[0];
        let may = letter.asks && decide::may_grant(state, &self.policy, &view, volume, from).is_ok();
        let leading = self.machines[letter.to].leading.as_mut().expect("it leads");
        let order = state.records.get(&VOLUME).map(orchestrator_core::record::Record::order);
        let granted = may && leading.closing != order;
        if granted {
            leading.grants.insert((VOLUME, from), now);
        }
        let at = self.now + self.random.below(80);
        let (process, sequence) = (letter.process, letter.sequence);
        self.answers.push(Answer { to: letter.from, at, process, sequence, applied, granted });
    }

    fn take_answer(&mut self, answer: &Answer) {
        let machine = &mut self.machines[answer.to];
        if !machine.orchestrator_up || machine.process != answer.process {
            return;
        }
        let Some(outstanding) = machine.outstanding.take_if(|call| call.sequence == answer.sequence) else {
            return;
        };
        machine.told = Some(machine.told.unwrap_or(0).max(answer.applied));
        if answer.granted {
            machine.leases.insert(VOLUME, self.policy.lease.held_until(outstanding.sent));
        }
    }

    /// One turn of an orchestrator, as the shell takes it.
    fn turn(&mut self, index: usize, faulty: bool, majorities: &[usize]) {
        if !self.machines[index].up || !self.machines[index].orchestrator_up {
            return;
        }
        self.own_steps(index, faulty);
        self.take_orders(index);
        self.report(index, faulty);
        self.decide(index, faulty, majorities);
    }

    fn own_steps(&mut self, index: usize, faulty: bool) {
        let following = self.following(index);
        let machine = &mut self.machines[index];
        if machine.told.is_none_or(|told| machine.applied < told) {
            return;
        }
        let state = self.raft.state(machine.applied);
        let (me, now) = (machine.id, machine.clock(self.now));
        let mut local = Local {
            now,
            replicas: machine.views(following),
            leases: std::mem::take(&mut machine.leases),
            process: machine.process << 8 | u64::from(me.0),
            requests: std::mem::take(&mut machine.requests),
            unfollowed: std::mem::take(&mut machine.unfollowed),
        };
        local.settle(state, me);
        local.ask(state, &self.policy, me);
        let steps = decide::node(state, &self.policy, me, &local);
        (machine.leases, machine.requests, machine.unfollowed) =
            (local.leases, local.requests, local.unfollowed);
        for step in steps {
            let is_demotion = step.kind == StepKind::Demote;
            if self.machines[index]
                .under
                .as_ref()
                .is_some_and(|under| !is_demotion || under.kind == step.kind)
            {
                continue;
            }
            let takes = if is_demotion {
                self.random.below(30)
            } else {
                self.random.below(if faulty { 400 } else { 100 })
            };
            // A demotion closes the export before it is answered, and no promotion under way opens it again.
            self.machines[index].under = Some(Under { kind: step.kind, done_at: self.now + takes });
            if is_demotion {
                self.demote(index);
            }
        }
    }

    fn report(&mut self, index: usize, faulty: bool) {
        let Some(leader) = self.raft.leader else { return };
        let following = self.following(index);
        let delay =
            if faulty && self.random.once_in(10) { self.random.below(1500) } else { self.random.below(40) };
        let machine = &mut self.machines[index];
        let now = machine.clock(self.now);
        if machine.outstanding.as_ref().is_some_and(|call| self.now < call.gives_up_at) {
            return;
        }
        let replicas = machine.views(following);
        let record = self.raft.state(machine.applied).records.get(&VOLUME);
        let is_wanted =
            record.is_some_and(|record| decide::wants_lease(record, machine.id, replicas.get(&VOLUME)));
        let is_due = machine.leases.get(&VOLUME).is_none_or(|until| until.since_ms(now) <= LEASE_MS * 3 / 4);
        let asks = is_wanted && is_due;
        let fences = (0..3).map(NodeId).filter(|node| *node != machine.id).collect();
        let report = Report {
            replicas,
            leases: machine.held(now, asks),
            requests: machine.requests.clone(),
            machine: view::Machine { boot: BootId(machine.boot), watchdog_ms: None, fences },
        };
        machine.sequence += 1;
        let (sequence, process) = (machine.sequence, machine.process);
        machine.outstanding = Some(Outstanding { sequence, sent: now, gives_up_at: self.now + CALL_MS });
        let at = self.now + delay;
        self.letters.push(Letter {
            from: index,
            to: leader,
            at,
            process,
            sequence,
            report,
            asks,
            confirmed: false,
        });
    }

    fn decide(&mut self, index: usize, faulty: bool, majorities: &[usize]) {
        let state = self.raft.state(self.machines[index].applied).clone();
        let Some(view) = self.view(index) else { return };
        let decision = decide::cluster(&state, &self.policy, &view);
        if let Some(leading) = &mut self.machines[index].leading {
            leading.awaited.note(&decision.needs, &state.power, view.now);
        }
        for proposal in decision.proposals {
            let is_takeover =
                |kind: &ChangeKind| matches!(kind, ChangeKind::Takeover(_) | ChangeKind::Release);
            let expected = match &proposal.command {
                Command::Change { change, .. } if is_takeover(&change.kind) => Some(change.expected),
                _ => None,
            };
            let changes_primary = expected.is_some();
            let is_powered = matches!(&proposal.command, Command::Change { change, .. }
                if matches!(&change.kind, ChangeKind::Takeover(takeover)
                    if matches!(takeover.proof, Proof::PowerOff { .. })));
            if let Some(leading) = self.machines[index].leading.as_mut().filter(|_| changes_primary) {
                leading.closing = expected;
            }
            let (raft, random) = (&mut self.raft, &mut self.random);
            let outcome = raft.propose(index, proposal.command.clone(), majorities, self.now, random, faulty);
            let Some(leading) = self.machines[index].leading.as_mut() else { return };
            match outcome {
                Outcome::Applied(result) => {
                    leading.closing = leading.closing.filter(|_| !changes_primary);
                    self.machines[index].applied = self.raft.committed();
                    if result.is_ok() {
                        self.takeovers += u32::from(changes_primary);
                        self.powered += u32::from(is_powered);
                        self.tell(&format!("{index} decides: {}", proposal.reason));
                    } else if !matches!(result, Err(Refused::Stale(_))) {
                        self.tell(&format!("{index} is refused: {} {result:?}", proposal.reason));
                    }
                }
                Outcome::Unknown => self.tell(&format!("{index} does not know what comes of its proposals")),
                Outcome::NotLeader => {}
            }
        }
    }

    fn finish_step(&mut self, index: usize) {
        let now = self.now;
        let Some(under) = self.machines[index].under.take_if(|under| under.done_at <= now) else { return };
        if !self.machines[index].replica.as_ref().is_some_and(|replica| replica.up) {
            return;
        }
        match under.kind {
            StepKind::Promote { alone, .. } => self.promote(index, alone),
            StepKind::Demote => self.demote(index),
            StepKind::Shrink(node) => {
                let following = self.following(index);
                let replica = self.machines[index].replica.as_mut().expect("looked at above");
                if replica.role == Role::Primary && !following.contains(node) {
                    replica.in_sync = replica.in_sync.without(node);
                    replica.record.1 += 1;
                }
            }
        }
    }

    fn demote(&mut self, index: usize) {
        if let Some(replica) = &mut self.machines[index].replica {
            if replica.role == Role::Primary {
                self.story.push(format!("{:>6} {index} stops serving", self.now));
            }
            replica.role = Role::Secondary;
        }
    }

    fn is_linked(&self, a: usize, b: usize) -> bool {
        let runs = |index: usize| {
            self.machines[index].up && self.machines[index].replica.as_ref().is_some_and(|replica| replica.up)
        };
        runs(a) && runs(b) && !self.data_cut[a][b]
    }

    /// The operator's promotion, forced where a member does not answer, as the link to the replicator does it.
    fn promote(&mut self, index: usize, alone: bool) {
        let linked: Vec<usize> =
            (0..3).filter(|other| *other != index && self.is_linked(index, *other)).collect();
        let replica = |index: usize| self.machines[index].replica.as_ref().expect("it has one");
        let own = replica(index);
        let me = self.machines[index].id;
        let is_refused = own.role != Role::Secondary
            || !own.in_sync.contains(me)
            || !alone
                && own.in_sync.without(me).iter().any(|member| !linked.contains(&usize::from(member.0)))
            || linked.iter().any(|other| replica(*other).role == Role::Primary);
        if is_refused {
            return;
        }
        let seen = linked.iter().map(|other| replica(*other).promised.0).max().unwrap_or(0);
        let epoch = seen.max(own.promised.0).max(own.record.0.0) + 1;
        let in_sync = own.in_sync.intersection(set(linked.iter().copied())).with(me);
        for sealed in linked.iter().chain([&index]) {
            self.machines[*sealed].replica.as_mut().expect("it has one").promised = (epoch, index);
        }
        let own = self.machines[index].replica.as_mut().expect("it has one");
        (own.role, own.epoch, own.in_sync, own.record) = (Role::Primary, epoch, in_sync, (Epoch(epoch), 1));
        self.tell(&format!("{index} serves in epoch {epoch}"));
    }

    /// Who follows primary `index` now.
    fn following(&self, index: usize) -> NodeSet {
        let Some(own) = self.machines[index].replica.as_ref().filter(|own| own.role == Role::Primary) else {
            return NodeSet::default();
        };
        let follows = |other: &usize| {
            let replica = self.machines[*other].replica.as_ref();
            *other != index
                && self.is_linked(index, *other)
                && replica.is_some_and(|replica| {
                    replica.role == Role::Secondary && replica.promised == (own.epoch, index)
                })
        };
        set((0..3).filter(follows))
    }

    /// Replicas that may follow a primary do, are brought level, and come into its set.
    fn replicate(&mut self) {
        for index in 0..self.machines.len() {
            let Some(own) = self.machines[index].replica.as_ref().filter(|own| own.role == Role::Primary)
            else {
                continue;
            };
            let (epoch, writes, length) = (own.epoch, own.writes.clone(), own.length);
            for other in (0..3).filter(|other| *other != index) {
                if !self.is_linked(index, other) || self.random.once_in(3) {
                    continue;
                }
                let replica = self.machines[other].replica.as_mut().expect("it is linked");
                let is_fenced =
                    replica.promised.0 > epoch || replica.promised.0 == epoch && replica.promised.1 != index;
                if replica.role != Role::Secondary || is_fenced {
                    continue;
                }
                replica.promised = (epoch, index);
                (replica.writes, replica.length) = (writes.clone(), length);
                let id = self.machines[other].id;
                let own = self.machines[index].replica.as_mut().expect("it is primary");
                if !own.in_sync.contains(id) {
                    own.in_sync = own.in_sync.with(id);
                    own.record.1 += 1;
                }
                let (in_sync, record) = (own.in_sync, own.record);
                let replica = self.machines[other].replica.as_mut().expect("it is linked");
                (replica.in_sync, replica.record) = (in_sync, record);
            }
        }
    }

    /// Clients write and read at everybody who serves.
    fn serve(&mut self) {
        for index in 0..self.machines.len() {
            let Some(own) = self.machines[index].replica.as_ref() else { continue };
            // The replica itself answers nobody without a lease, whether its orchestrator lives or not.
            let machine = &self.machines[index];
            let has_lease = machine.leases.get(&VOLUME).is_some_and(|until| machine.clock(self.now) < *until);
            if !own.up || own.role != Role::Primary || !has_lease {
                continue;
            }
            if let Some(missing) = own.writes.first_missing(&self.acknowledged) {
                panic!("{index} serves without write {missing}, which was acknowledged\n{}", self.story());
            }
            let (me, members) = (self.machines[index].id, own.in_sync);
            if self.next_write == WRITES_MAX || !self.random.once_in(3) {
                continue;
            }
            let write = self.next_write;
            self.next_write += 1;
            let following = self.following(index);
            for holder in [index].into_iter().chain(following.iter().map(|node| usize::from(node.0))) {
                let replica = self.machines[holder].replica.as_mut().expect("it follows");
                replica.writes.insert(write);
                replica.length += 1;
            }
            if members.without(me).is_subset(following) {
                self.acknowledged.insert(write);
            }
        }
    }
}
