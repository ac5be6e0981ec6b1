//! All machines together, the links between them, and what is done to them.

use std::collections::BTreeMap;

use holdfast_simulator::whole::consensus::{Outcome, Raft};
use orchestrator_core::decide::{self, Local, StepKind};
use orchestrator_core::fence::{Mode, Rules};
use orchestrator_core::health::Detector;
use orchestrator_core::lease::Terms;
use orchestrator_core::policy::{Detection, Node, Policy, Volume};
use orchestrator_core::proof::Proof;
use orchestrator_core::record::{ChangeKind, Record, Refused};
use orchestrator_core::state::Command;
use orchestrator_core::units::{Epoch, NodeId, NodeSet};
use orchestrator_core::view::{Health, NodeView, Report, Role, View};

use crate::fencing::Fencing;
use crate::machine::{Leading, Machine, Outstanding, Rep, Under, VOLUME, WRITES_MAX, Writes};
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
                promised: 0,
                writes: Writes::new(),
                in_sync: members,
                pending: NodeSet::default(),
                record: (Epoch(0), 1),
                lease: None,
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
            stacks: Vec::new(),
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
                "{}: {:?}, up {}, epoch {}, promised {}, in sync {:?}, record {:?}, applied {}, told {:?}, leases {:?}",
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
            self.raft.turn(self.now, &majorities, &mut |end| self.random.below(end), faulty);
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
            unsealed: leading.unsealed.iter().filter(|(_, until)| now < **until).map(|(at, _)| *at).collect(),
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
            let until = self.policy.lease.held_until(outstanding.sent);
            machine.leases.insert(VOLUME, until);
            let record = self.raft.state(machine.applied).records.get(&VOLUME);
            let replica = machine.replica.as_mut().filter(|replica| replica.up);
            // It goes down to the replica, for the reign of the record and no other.
            if let Some((replica, record)) = replica.zip(record)
                && replica.role != Role::Secondary
                && replica.record.0 == record.epoch
            {
                replica.lease = replica.lease.max(Some(until));
            }
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
        let detectors = machine.detectors.iter_mut();
        let suspected = detectors
            .filter_map(|(id, detector)| (!detector.advance(now).is_heard()).then_some(*id))
            .collect();
        let mut local = Local {
            now,
            replicas: machine.views(following),
            leases: std::mem::take(&mut machine.leases),
            requests: std::mem::take(&mut machine.requests),
            unfollowed: std::mem::take(&mut machine.unfollowed),
            suspected,
        };
        local.settle(state, me);
        local.ask(state, &self.policy, me);
        let steps = decide::node(state, &self.policy, me, &local);
        (machine.leases, machine.requests, machine.unfollowed) =
            (local.leases, local.requests, local.unfollowed);
        for step in steps {
            let is_opening = matches!(step.kind, StepKind::Open(_));
            let under = self.machines[index].under.as_ref();
            if under.is_some_and(|under| is_opening || under.kind == step.kind) {
                continue;
            }
            let takes = self.random.below(if faulty && is_opening { 400 } else { 50 });
            let under = Under { kind: step.kind, record: step.record, done_at: self.now + takes };
            self.machines[index].under = Some(under);
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
        let report = Report {
            replicas,
            leases: machine.held(now, asks),
            requests: machine.requests.clone(),
            machine: machine.said(),
            ..Report::default()
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
        for seal in &decision.seals {
            self.seal(index, *seal, faulty);
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
            let below = &mut |end| self.random.below(end);
            let command = proposal.command.clone();
            let outcome = self.raft.propose(index, command, majorities, self.now, below, faulty);
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
            StepKind::Open(_) => self.open(index, &under.record),
            StepKind::Release => self.demote(index),
            StepKind::Tell(_) => self.tell_record(index, &under.record),
        }
    }

    /// The leader asks for a promise, and hears of it or does not.
    fn seal(&mut self, leader: usize, seal: decide::Seal, faulty: bool) {
        let index = usize::from(seal.node.0);
        let is_lost = faulty && self.random.once_in(10);
        let answer =
            if self.talks(leader, index) && !is_lost { self.promise(index, seal.epoch) } else { None };
        let is_heard = !(faulty && self.random.once_in(10));
        let now = self.machines[leader].clock(self.now);
        let Some(leading) = self.machines[leader].leading.as_mut() else { return };
        match answer.filter(|_| is_heard) {
            Some(report) => {
                let key = leading.reports.get(&seal.node).map_or(0, |(_, key, _)| *key);
                leading.reports.insert(seal.node, (now.0, key, report));
            }
            None => drop(leading.unsealed.insert((seal.volume, seal.node), now.plus_ms(1000))),
        }
    }

    /// A replica promises an epoch: it takes nothing of a lower one, and its node says at once how it is.
    fn promise(&mut self, index: usize, epoch: Epoch) -> Option<Report> {
        let state = self.raft.state(self.machines[index].applied);
        let machine = &mut self.machines[index];
        let (me, now) = (machine.id, machine.clock(self.now));
        let replica = machine.replica.as_mut().filter(|replica| replica.up)?;
        if epoch.0 < replica.promised || epoch <= replica.record.0 {
            return None;
        }
        replica.promised = epoch.0;
        replica.step_down();
        let mut local = Local {
            now,
            replicas: machine.views(NodeSet::default()),
            leases: std::mem::take(&mut machine.leases),
            ..Local::default()
        };
        local.settle(state, me);
        machine.leases = local.leases;
        let leases = machine.held(now, false);
        let requests = machine.requests.clone();
        Some(Report {
            replicas: local.replicas,
            leases,
            requests,
            machine: machine.said(),
            ..Report::default()
        })
    }

    /// Begins the reign of a record, as the replica does it.
    fn open(&mut self, index: usize, record: &Record) {
        let machine = &mut self.machines[index];
        let lease = machine.leases.get(&VOLUME).copied();
        let replica = machine.replica.as_mut().expect("it runs");
        let is_refused = replica.role != Role::Secondary
            || record.epoch.0 < replica.promised
            || record.epoch <= replica.record.0;
        if is_refused {
            return;
        }
        (replica.promised, replica.epoch) = (record.epoch.0, record.epoch.0);
        (replica.role, replica.in_sync, replica.record) =
            (Role::Changing, record.in_sync, (record.epoch, record.version));
        replica.lease = lease;
        self.tell(&format!("{index} begins epoch {}", record.epoch));
    }

    /// The record as read back: who was pending counts no more unless it is in it.
    fn tell_record(&mut self, index: usize, record: &Record) {
        let replica = self.machines[index].replica.as_mut().expect("it runs");
        if replica.role == Role::Secondary || record.order() <= replica.record {
            return;
        }
        if record.epoch > replica.record.0 {
            return replica.step_down();
        }
        (replica.in_sync, replica.record) = (record.in_sync, record.order());
        replica.pending = NodeSet::default();
    }

    fn demote(&mut self, index: usize) {
        if let Some(replica) = &mut self.machines[index].replica {
            if replica.role == Role::Primary {
                self.story.push(format!("{:>6} {index} stops serving", self.now));
            }
            replica.step_down();
        }
    }

    fn is_linked(&self, a: usize, b: usize) -> bool {
        let runs = |index: usize| {
            self.machines[index].up && self.machines[index].replica.as_ref().is_some_and(|replica| replica.up)
        };
        runs(a) && runs(b) && !self.data_cut[a][b]
    }

    /// Who follows the reign of `index` now.
    fn following(&self, index: usize) -> NodeSet {
        let own = self.machines[index].replica.as_ref().filter(|own| own.role != Role::Secondary);
        let Some(own) = own else { return NodeSet::default() };
        let follows = |other: &usize| {
            let replica = self.machines[*other].replica.as_ref();
            *other != index
                && self.is_linked(index, *other)
                && replica.is_some_and(|replica| {
                    let is_its = (replica.record.0.0, replica.promised) == (own.epoch, own.epoch);
                    replica.role == Role::Secondary && is_its
                })
        };
        set((0..3).filter(follows))
    }

    /// Replicas that may follow a reign do, are brought level, and become pending. A reign with all its members at hand
    /// is opened.
    fn replicate(&mut self) {
        for index in 0..self.machines.len() {
            let own = self.machines[index].replica.as_ref().filter(|own| own.role != Role::Secondary);
            let Some(own) = own.filter(|own| own.up) else { continue };
            let (epoch, writes, length) = (own.epoch, own.writes.clone(), own.length);
            let (in_sync, record) = (own.in_sync, own.record);
            for other in (0..3).filter(|other| *other != index) {
                if !self.is_linked(index, other) || self.random.once_in(3) {
                    continue;
                }
                let replica = self.machines[other].replica.as_mut().expect("it is linked");
                let is_fenced = replica.promised > epoch || replica.record.0.0 > epoch;
                if is_fenced || replica.role != Role::Secondary && replica.record.0.0 == epoch {
                    continue;
                }
                // One that reigned in a lower epoch steps down when it hears of this one.
                replica.step_down();
                (replica.promised, replica.in_sync, replica.record) = (epoch, in_sync, record);
                (replica.writes, replica.length) = (writes.clone(), length);
                let id = self.machines[other].id;
                let own = self.machines[index].replica.as_mut().expect("it reigns");
                if own.role == Role::Primary && !own.in_sync.contains(id) {
                    own.pending = own.pending.with(id);
                }
            }
            let (me, following) = (self.machines[index].id, self.following(index));
            let own = self.machines[index].replica.as_mut().expect("it reigns");
            if own.role == Role::Changing && own.in_sync.without(me).is_subset(following) {
                own.role = Role::Primary;
                self.tell(&format!("{index} serves in epoch {epoch}"));
            }
        }
    }

    /// Clients write and read at everybody who serves.
    fn serve(&mut self) {
        for index in 0..self.machines.len() {
            let Some(own) = self.machines[index].replica.as_ref() else { continue };
            // The replica itself answers nobody without a lease, whether its orchestrator lives or not.
            let machine = &self.machines[index];
            let has_lease = own.lease.is_some_and(|until| machine.clock(self.now) < until);
            if !own.up || own.role != Role::Primary || !has_lease {
                continue;
            }
            if let Some(missing) = own.writes.first_missing(&self.acknowledged) {
                panic!("{index} serves without write {missing}, which was acknowledged\n{}", self.story());
            }
            let me = self.machines[index].id;
            let members = own.pending.iter().fold(own.in_sync, NodeSet::with);
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
