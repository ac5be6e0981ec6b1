//! The whole stack: beside each replica an orchestrator with the real decisions, a witness where that makes an odd number,
//! consensus between them, what runs above the volume, devices that switch machines off, and watchdogs. They decide who
//! is Primary instead of operators, in the same world and by the same seed.
//!
//! ```text
//!   draw       what a seed draws for such a run     consensus  one log, leaders, lost leadership
//!   machine    power, kernel, memory of a process   queue      what is on its way, and when it is there
//!   reports    to the leader and back, leases       local      between an orchestrator and its replica
//!   lead       the leader decides, promises         steps      a node about itself, its stack
//!   power      devices, watchdogs, evidence         checks     nobody has what another has
//!   strikes    what goes wrong with all of it
//! ```
//!
//! What is carried out here is what the orchestrator's shell carries out, with its delays and with processes that die
//! between any two of its steps. A pause within one of them is not played.

mod checks;
pub mod consensus;
pub mod draw;
mod lead;
mod local;
mod machine;
mod power;
mod queue;
mod reports;
mod steps;
mod strikes;

use consensus::Raft;
pub use draw::{Draw, Strike};
use draw::{LEASE_MS, VOLUME, node_id};
use machine::{Machine, Mind};
use orchestrator_core::policy::Policy;
use orchestrator_core::state::State;
use orchestrator_core::units::{Instant, NodeId};
use power::Fencing;
use queue::{Queue, What};

use crate::world::{MS, World};

/// How often an orchestrator turns, is heard, and looks at its replica.
const TURN_MS: u64 = 50;
/// How often the model of consensus goes on.
const CONSENSUS_MS: u64 = 10;

/// All orchestrators, and what is on its way between them.
pub struct Whole {
    draw: Draw,
    policy: Policy,
    raft: Raft,
    machines: Vec<Machine>,
    queue: Queue,
    /// Orchestrators that are not heard: from, to.
    cut: Vec<Vec<bool>>,
    fencings: Vec<Fencing>,
    /// Whether things go wrong.
    rough: bool,
    consensus_at: u64,
    next_process: u64,
    strike_at: u64,
    return_at: u64,
}

fn index_of(node: NodeId) -> usize {
    usize::from(node.0)
}

impl Whole {
    /// Orchestrators of a world whose replicas have just started.
    pub fn new(draw: &Draw, world: &mut World) -> Self {
        let count = draw.machines;
        let machine = |index: usize| Machine {
            id: node_id(index),
            clock: world.clocks.get(index).copied().unwrap_or(draw.witness_clock),
            on: true,
            boot: 1,
            feeds: [true; 2],
            seen_boot: world.nodes.get(index).map_or(0, |node| node.boot_id),
            mind: None,
            paused_until: 0,
            applied: 0,
            lease_file: Default::default(),
            steps: Vec::new(),
            watchdog: None,
            served: None,
        };
        let machines: Vec<Machine> = (0..count).map(machine).collect();
        let mut whole = Self {
            draw: draw.clone(),
            policy: draw.policy(world.nodes.len()),
            raft: Raft::new(),
            machines,
            queue: Queue::default(),
            cut: vec![vec![false; count]; count],
            fencings: Vec::new(),
            rough: true,
            consensus_at: 0,
            next_process: 0,
            strike_at: world.now,
            return_at: world.now,
        };
        for index in 0..count {
            whole.boot(world, index);
        }
        whole
    }

    /// Does what is due.
    pub fn turn(&mut self, world: &mut World) {
        self.note_machines(world);
        self.fire_watchdogs(world);
        self.note_serving(world);
        if world.now >= self.consensus_at {
            self.consensus_at = world.now + CONSENSUS_MS * MS;
            self.consent(world);
        }
        while let Some((machine, process, what)) = self.queue.due(world.now) {
            let target = &self.machines[machine];
            if !target.is_process(process) {
                continue;
            }
            if target.paused_until > world.now {
                let at = target.paused_until;
                self.queue.put(at, machine, process, what);
                continue;
            }
            self.happen(world, machine, what);
        }
        let fires = self.machines.iter().filter_map(|machine| Some(machine.watchdog?.fires_at));
        let next = fires.chain(self.queue.next()).chain([self.consensus_at]).min();
        world.alarm = next.unwrap_or(u64::MAX);
    }

    fn happen(&mut self, world: &mut World, m: usize, what: What) {
        match what {
            What::Turn => {
                self.orchestrate(world, m);
                self.later(world, m, TURN_MS, What::Turn);
            }
            What::Wake => {
                self.mind(m).wakes = false;
                self.orchestrate(world, m);
            }
            What::Heartbeat { from, process, beat } => {
                let now = self.now(world, m);
                let detector = self.mind(m).detectors.get_mut(&from).expect("all are watched");
                detector.heard(0, process, beat, now);
            }
            What::Letter(letter) => self.on_letter(world, m, *letter),
            What::Answer(answer) => self.take_answer(world, m, &answer),
            What::Observe { since } => self.observe(world, m, since),
            What::Observed(view) => {
                self.mind(m).local.replicas.insert(VOLUME, *view);
                self.later(world, m, TURN_MS, What::Observe { since: None });
            }
            What::Act { step, lease } => self.act(world, m, &step, lease),
            What::Lease { epoch, end } => self.lease(world, m, epoch, end),
            What::Hear(waiting) => self.hear(world, m, *waiting),
            What::StepDone { kind, view } => self.step_done(world, m, kind, *view),
            What::Seal(ask) => self.on_seal(world, m, ask),
            What::Sealed { seal, attempt, report } => {
                self.end_seal(world, m, seal, attempt, report.map(|report| *report));
            }
            What::Done { order, outcome } => self.step_carried_out(world, m, &order, outcome),
            What::Fence { number } => self.fence(world, m, number),
            What::Feed => self.feed(world, m),
        }
    }

    /// One turn of an orchestrator, as the shell takes it.
    fn orchestrate(&mut self, world: &mut World, m: usize) {
        self.beat(world, m);
        self.own_steps(world, m);
        self.take_orders(world, m);
        self.decide(world, m);
        self.turn_stack(world, m);
        self.report(world, m);
    }

    fn mind(&mut self, m: usize) -> &mut Mind {
        self.machines[m].mind.as_mut().expect("its process runs")
    }

    fn now(&self, world: &World, m: usize) -> Instant {
        self.machines[m].now(world.now)
    }

    /// What is agreed on, as far as machine `m` has applied it.
    fn state(&self, m: usize) -> &State {
        self.raft.state(self.machines[m].applied)
    }

    /// Whether `m` knows as much as it was told that there is.
    fn is_current(&self, m: usize) -> bool {
        let machine = &self.machines[m];
        machine.mind.as_ref().and_then(|mind| mind.told).is_some_and(|told| machine.applied >= told)
    }

    /// Something of the process of `m` goes on that much later, and a little.
    fn later(&mut self, world: &mut World, m: usize, ms: u64, what: What) {
        let process = self.mind(m).process;
        let at = world.now + ms * MS + world.random.below(MS);
        self.queue.put(at, m, process, what);
    }

    fn wake(&mut self, world: &mut World, m: usize) {
        if !std::mem::replace(&mut self.mind(m).wakes, true) {
            self.later(world, m, 0, What::Wake);
        }
    }

    /// How long something within a machine takes.
    fn moment_ms(&self, world: &mut World) -> u64 {
        match world.random.below(if self.rough { 100 } else { 90 }) {
            0..=89 => world.random.below(4),
            90..=97 => world.random.below(60),
            _ => world.random.below(1000),
        }
    }

    /// Sends something to the process that runs on `to` now, unless a cable is cut.
    fn send(&mut self, world: &mut World, from: usize, to: usize, what: What) {
        let Some(mind) = &self.machines[to].mind else { return };
        let process = mind.process;
        let Some(mut at) = self.passes(world, from, to) else { return };
        at += match world.random.below(if self.rough { 100 } else { 90 }) {
            0..=89 => world.random.below(3 * MS),
            90..=97 => world.random.below(80 * MS),
            _ => world.random.below(1500 * MS),
        };
        self.queue.put(at, to, process, what);
    }

    /// When what is sent now may be there; never, if nothing passes.
    fn passes(&self, world: &World, from: usize, to: usize) -> Option<u64> {
        if from == to {
            return Some(world.now);
        }
        if self.cut[from][to] {
            return None;
        }
        let shared = !self.draw.own_cables && from.max(to) < world.nodes.len();
        let route = shared.then(|| world.routes[from][to]);
        match route {
            Some(route) if route.refused || route.silent => None,
            Some(route) => Some(world.now.max(route.delayed_until)),
            None => Some(world.now),
        }
    }

    /// Whether two orchestrators reach each other.
    fn talk(&self, world: &World, a: usize, b: usize) -> bool {
        let runs = |m: usize| self.machines[m].runs(world.now);
        runs(a) && runs(b) && self.passes(world, a, b).is_some() && self.passes(world, b, a).is_some()
    }

    /// Those that reach a majority.
    fn majorities(&self, world: &World) -> Vec<usize> {
        let count = self.machines.len();
        let reaches = |m: &usize| 2 * (0..count).filter(|other| self.talk(world, *m, *other)).count() > count;
        (0..count).filter(reaches).collect()
    }

    /// Consensus goes on. Whoever wins an election learns of it at once; whoever has lost one, when it hears of the winner.
    fn consent(&mut self, world: &mut World) {
        let majorities = self.majorities(world);
        let before = self.raft.term;
        let rough = self.rough;
        self.raft.turn(world.now / MS, &majorities, &mut |end| world.random.below(end), rough);
        if self.raft.term != before {
            let (leader, term) = (self.raft.leader, self.raft.term);
            world.note(|| format!("m{} leads in term {term}", leader.unwrap_or_default()));
            world.mark("leaders elected");
        }
        for m in 0..self.machines.len() {
            self.note_leader(world, m, &majorities);
        }
        // A leader whose process has ended leads no more.
        let leads = |m: usize| self.machines[m].mind.as_ref().is_some_and(|mind| mind.leading.is_some());
        self.raft.leader = self.raft.leader.filter(|leader| leads(*leader) || !majorities.contains(leader));
        self.check_evidence();
    }

    fn note_leader(&mut self, world: &mut World, m: usize, majorities: &[usize]) {
        let (leader, term, committed) = (self.raft.leader, self.raft.term, self.raft.committed());
        if !self.machines[m].runs(world.now) {
            return;
        }
        let now = self.now(world, m);
        let hears = leader.is_some_and(|leader| self.talk(world, m, leader));
        let mind = self.mind(m);
        if leader == Some(m) && majorities.contains(&m) {
            if mind.leading.as_ref().is_none_or(|leading| leading.term != term) {
                mind.leading = Some(machine::Leading { term, since: now, ..Default::default() });
            }
            self.machines[m].applied = committed;
        } else if hears && leader != Some(m) {
            if world.random.percent(10) {
                mind.leading = None;
            }
            if world.random.percent(if self.rough { 20 } else { 80 }) {
                self.machines[m].applied = committed;
            }
        }
    }
}
