//! The world: nodes, the network between them, clients and time. One random thing after the other happens; what is
//! seen goes to the ledger and to the checkers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use replicator_core::chain;
use replicator_core::command::{AdminError, Report};
use replicator_core::config::{Config, OnPeerLoss, PeerConfig, Protocol};
use replicator_core::disk::layout::Layout;
use replicator_core::disk::superblock::{DiskState, LogPoint, Record, Superblock};
use replicator_core::event::{AdminAction, Event, ZeroKind};
use replicator_core::frame::{self, EntryKind};
use replicator_core::machine::Machine;
use replicator_core::status::{Connection, Role, Status};
use replicator_core::units::{
    AdminId, Buffer, Incarnation, Instant, LinkId, NodeId, NodeSet, ReignId, RequestId, RingOffset, Span,
    VolumeId,
};
use replicator_core::wire::envelope::{Envelope, MessageKind};

use crate::checker::{Checker, stamp};
use crate::disk::SECTOR;
use crate::leases::Leases;
use crate::ledger::Ledger;
use crate::network::{Route, Wire};
use crate::node::{Io, Node, Out, Seen, StartError};
use crate::random::Random;
use crate::rule::broken;

/// Nanoseconds of a millisecond.
pub const MS: u64 = 1_000_000;

/// Reports of resyncs by how they begin, and what is counted then.
const RESYNCS: [(&str, &str); 3] = [
    ("resync begins: dirty", "resync of dirty blocks"),
    ("resync begins: full", "resync by comparison"),
    ("resync is done", "resync done"),
];

/// Lines of a trace that are kept.
const TRACE_LINES: usize = 100_000;

/// What a client is waiting for.
struct Request {
    node: usize,
    id: RequestId,
    kind: RequestKind,
    began: u64,
}

enum RequestKind {
    Write { sectors: Range<usize>, write: u64, fua: bool },
    Read { sectors: Range<usize>, span: Span },
    Flush,
}

/// A large write whose payload is still arriving.
struct Upload {
    node: usize,
    payload: Span,
    sectors: Range<usize>,
}

/// How a world is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    pub nodes: usize,
    pub protocol: Protocol,
    /// How each node is fed, where that is not `protocol`.
    pub protocols: Vec<Protocol>,
    pub on_peer_loss: OnPeerLoss,
    /// Whether a configuration manager decides, and grants leases.
    pub managed: bool,
    pub sectors: usize,
    pub journal_bytes: u64,
    /// Bytes of the ring that are behind the log already when it begins: how far the first lap still goes.
    pub ring_start: u64,
    pub arena_bytes: usize,
    pub checkpoint_bytes: u64,
    pub sync_interval_ms: u64,
    pub send_window_bytes: u64,
    pub frames_in_flight_max: u32,
    /// In how many of a hundred requests a client writes a large piece.
    pub bulk_percent: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 2,
            protocol: Protocol::C,
            protocols: Vec::new(),
            on_peer_loss: OnPeerLoss::Freeze,
            managed: false,
            sectors: 128,
            journal_bytes: (1 << 20) + (17 << 20),
            ring_start: 0,
            arena_bytes: 8 << 20,
            checkpoint_bytes: 256 << 10,
            sync_interval_ms: 10,
            send_window_bytes: 2 << 20,
            frames_in_flight_max: 2,
            bulk_percent: 0,
        }
    }
}

impl Setup {
    /// How `node` is fed.
    pub fn protocol_of(&self, node: usize) -> Protocol {
        self.protocols.get(node).copied().unwrap_or(self.protocol)
    }
}

/// A node's clock beside the world's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    pub ahead: u64,
    /// How much faster it runs; may be negative.
    pub drift_permille: i64,
}

/// When a fault hurts most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// An acknowledgement is on its way.
    Acked,
    /// One copy of a superblock is written.
    SuperblockCopy,
    /// Both are.
    SuperblockSaved,
    /// A log was cut.
    Cut,
    /// A seal was granted.
    Sealed,
    /// An export opened.
    Opened,
    /// An epoch's first entry is being written.
    EpochBegins,
    /// Half a frame has arrived.
    HalfFrame,
    /// A sync of a journal is done.
    JournalSynced,
    /// Writing in place began.
    Applying,
    /// A process started and has not settled.
    Started,
    /// A client was answered.
    Answered,
    /// The in-sync set changed.
    RecordChanged,
}

/// What becomes of an I/O that would complete now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Done,
    Fails(i32),
    /// It hangs for so many nanoseconds.
    Hangs(u64),
    /// The process dies instead.
    Kill,
    /// The node loses power instead.
    Power,
    /// All nodes lose power instead.
    Blackout,
}

/// Decides what becomes of each I/O.
pub type Fates = Box<dyn FnMut(&Io, usize, &mut Random) -> Fate>;

/// The world.
pub struct World {
    pub setup: Setup,
    pub nodes: Vec<Node>,
    pub random: Random,
    pub now: u64,
    pub ledger: Ledger,
    pub sectors: usize,
    pub routes: Vec<Vec<Route>>,
    pub clocks: Vec<Clock>,
    pub paused_until: Vec<u64>,
    /// Whether frames arrive in pieces and the dead say nothing.
    pub rough: bool,
    pub fates: Fates,
    pub moments: Vec<(Moment, usize)>,
    /// Rare things that happened, and how often.
    pub marks: BTreeMap<&'static str, u64>,
    pub trace: Option<VecDeque<String>>,
    pub acknowledged: u64,
    pub reads: u64,
    pub flushes: u64,
    /// Completed I/O.
    pub ios: u64,
    /// What leases allow, in a world with a configuration manager.
    leases: Leases,
    checkers: Vec<Checker>,
    wires: Vec<Wire>,
    requests: Vec<Request>,
    uploads: Vec<Upload>,
    next_id: u64,
    next_write: u64,
    dial_after: Vec<Vec<u64>>,
}

fn node_id(node: usize) -> NodeId {
    NodeId(u8::try_from(node).unwrap())
}

fn config(setup: &Setup, node: usize) -> Config {
    let others = (0..setup.nodes).filter(|n| *n != node);
    let peers = others.map(|n| PeerConfig { node: node_id(n), protocol: setup.protocol_of(n) }).collect();
    Config {
        node: node_id(node),
        peers,
        volume: VolumeId(0x1234_5678),
        incarnation: Incarnation(1),
        on_peer_loss: setup.on_peer_loss,
        managed: setup.managed,
        arena_bytes: setup.arena_bytes,
        frames_in_flight_max: setup.frames_in_flight_max,
        sync_interval_ms: setup.sync_interval_ms,
        ping_interval_ms: 500,
        peer_timeout_ms: 3000,
        checkpoint_bytes: setup.checkpoint_bytes,
        send_window_bytes: setup.send_window_bytes,
    }
}

fn fresh(setup: &Setup, node: usize) -> Superblock {
    let volume = VolumeId(0x1234_5678);
    let ring_offset = RingOffset(setup.ring_start);
    let start = LogPoint { chain: chain::genesis(volume), ring_offset, ..LogPoint::default() };
    let fed = (0..setup.nodes).filter(|n| *n == 0 || setup.protocol_of(*n) != Protocol::A);
    let members = fed.fold(NodeSet(0), |set, n| set.with(node_id(n)));
    Superblock {
        sequence: 1,
        volume,
        incarnation: Incarnation(1),
        node: node_id(node),
        replica: 77 + node as u128,
        volume_bytes: (setup.sectors * SECTOR) as u64,
        journal_bytes: setup.journal_bytes,
        block_bytes: 512,
        window_bytes: setup.arena_bytes as u64,
        disk_state: DiskState::UpToDate,
        proven: true,
        clean: true,
        record: Record { in_sync: members, ..Record::default() },
        tail: start,
        applied_through: start,
        ..Superblock::default()
    }
}

impl World {
    /// A world with all nodes started and no one Primary.
    pub fn new(seed: u64, setup: &Setup) -> Self {
        let superblocks: Vec<Superblock> = (0..setup.nodes).map(|n| fresh(setup, n)).collect();
        let nodes: Vec<Node> =
            superblocks.iter().enumerate().map(|(n, sb)| Node::new(config(setup, n), sb)).collect();
        let volume_bytes = (setup.sectors * SECTOR) as u64;
        let layout = Layout::new(volume_bytes, setup.journal_bytes).expect("the sizes go together");
        let zeros = vec![0; setup.sectors];
        let mut world = Self {
            setup: setup.clone(),
            random: Random::new(seed),
            now: MS,
            ledger: Ledger::new(setup.sectors, layout.ring_bytes, &superblocks),
            sectors: setup.sectors,
            routes: vec![vec![Route::default(); setup.nodes]; setup.nodes],
            clocks: vec![Clock::default(); setup.nodes],
            paused_until: vec![0; setup.nodes],
            rough: false,
            fates: Box::new(|_, _, _| Fate::Done),
            moments: Vec::new(),
            marks: BTreeMap::new(),
            trace: None,
            acknowledged: 0,
            reads: 0,
            flushes: 0,
            ios: 0,
            leases: Leases::new(setup.nodes, setup.managed),
            checkers: (0..setup.nodes).map(|_| Checker::new(&zeros)).collect(),
            wires: Vec::new(),
            requests: Vec::new(),
            uploads: Vec::new(),
            next_id: 1,
            next_write: 0,
            dial_after: vec![vec![0; setup.nodes]; setup.nodes],
            nodes,
        };
        for node in 0..setup.nodes {
            world.start(node);
        }
        world
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Adds a line to the trace, if one is wanted.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LINES {
                trace.pop_front();
            }
            trace.push_back(format!("{:>12.6} {}", self.now as f64 / 1e9, line()));
        }
    }

    pub fn mark(&mut self, what: &'static str) {
        *self.marks.entry(what).or_default() += 1;
    }

    /// The time that `node` sees.
    pub fn instant(&self, node: usize) -> Instant {
        let clock = self.clocks[node];
        let drift = i128::from(self.now) * i128::from(clock.drift_permille) / 1000;
        Instant(u64::try_from(i128::from(self.now + clock.ahead) + drift).unwrap())
    }

    /// Sets the clock of `node`, which never goes back.
    pub fn set_clock(&mut self, node: usize, clock: Clock) {
        self.clocks[node] = clock;
    }

    /// When `node` will see this time.
    fn when(&self, node: usize, instant: Instant) -> u64 {
        let clock = self.clocks[node];
        let passed = instant.0.saturating_sub(clock.ahead);
        let rate = u64::try_from(1000 + clock.drift_permille).unwrap();
        u64::try_from(u128::from(passed) * 1000 / u128::from(rate)).unwrap() + 1
    }

    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].machine.is_some()
    }

    pub fn is_paused(&self, node: usize) -> bool {
        self.paused_until[node] > self.now
    }

    pub fn start(&mut self, node: usize) {
        self.try_start(node).expect("recovery finds no damage");
    }

    /// Starts the process of `node`.
    ///
    /// # Errors
    /// If what lies on its disks cannot be believed.
    pub fn try_start(&mut self, node: usize) -> Result<(), StartError> {
        let now = self.instant(node);
        let found = self.nodes[node].read_superblock();
        let outcome = self.nodes[node].start(now);
        self.note(|| format!("n{node} starts: {outcome:?}"));
        outcome?;
        let status = self.status(node).expect("it started");
        let head = (status.chain, status.head.sequence.0);
        let (superblock, repaired) = found.expect("it started from it");
        if repaired {
            self.mark("superblock copy repaired");
        }
        self.ledger.started(node, &self.nodes[node], &superblock, head);
        self.moments.push((Moment::Started, node));
        self.collect();
        Ok(())
    }

    /// A node that is down gets new disks and is created anew.
    pub fn recreate(&mut self, node: usize) {
        assert!(!self.is_up(node), "its process has its disks");
        self.note(|| format!("n{node} is created anew"));
        let old = &self.nodes[node];
        let replica = self.ledger.saved(node).replica + 1000;
        let superblock = Superblock { replica, ..fresh(&self.setup, node) };
        let (config, boot_id, starts) = (old.config.clone(), old.boot_id, old.starts);
        self.nodes[node] = Node::new(config, &superblock);
        (self.nodes[node].boot_id, self.nodes[node].starts) = (boot_id, starts);
        self.ledger.recreated(node, &superblock);
    }

    pub fn kill(&mut self, node: usize) {
        self.note(|| format!("n{node} is killed"));
        self.die(node, false);
    }

    pub fn lose_power(&mut self, node: usize) {
        self.note(|| format!("n{node} loses power"));
        self.die(node, true);
    }

    fn die(&mut self, node: usize, power: bool) {
        self.collect();
        let silent = self.rough && power && self.random.percent(70);
        for wire in &mut self.wires {
            for end in 0..2 {
                if wire.ends[end].node == node && wire.ends[end].up {
                    wire.ends[end].up = false;
                    let pipe = &mut wire.pipes[end];
                    (pipe.closed, pipe.dead) = (!silent, silent);
                    if !self.rough || power || self.random.percent(50) {
                        pipe.queue.clear();
                    }
                    wire.pipes[1 - end].half = None;
                }
            }
        }
        if power {
            self.nodes[node].lose_power(&mut self.random);
        } else {
            self.nodes[node].kill(&mut self.random);
        }
        self.nodes[node].seen.clear();
        self.paused_until[node] = 0;
        self.ledger.died(node, power);
        self.requests.retain(|request| request.node != node);
        self.uploads.retain(|upload| upload.node != node);
        self.drop_gone_wires();
    }

    /// Cuts or heals the link between two nodes; both hear of it.
    pub fn set_cut(&mut self, a: usize, b: usize, cut: bool) {
        (self.routes[a][b].refused, self.routes[b][a].refused) = (cut, cut);
        if cut {
            self.reset(a, b);
        }
    }

    pub fn is_cut(&self, a: usize, b: usize) -> bool {
        self.routes[a][b].refused
    }

    /// Ends the connections between two nodes.
    pub fn reset(&mut self, a: usize, b: usize) {
        for wire in &mut self.wires {
            let nodes = (wire.ends[0].node, wire.ends[1].node);
            if nodes == (a, b) || nodes == (b, a) {
                for pipe in &mut wire.pipes {
                    pipe.queue.clear();
                    (pipe.closed, pipe.dead) = (true, false);
                }
            }
        }
        while let Some((index, end)) = self.find_end(|wire, end| {
            let nodes = (wire.ends[0].node, wire.ends[1].node);
            (nodes == (a, b) || nodes == (b, a)) && wire.ends[end].up
        }) {
            self.take_down(index, end);
            self.drop_gone_wires();
        }
        self.collect();
    }

    fn find_end(&self, which: impl Fn(&Wire, usize) -> bool) -> Option<(usize, usize)> {
        let ends = |index: usize| [(index, 0), (index, 1)];
        (0..self.wires.len()).flat_map(ends).find(|(index, end)| which(&self.wires[*index], *end))
    }

    pub fn status(&self, node: usize) -> Option<Status> {
        self.nodes[node].machine.as_ref().map(Machine::status)
    }

    pub fn serving(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|node| self.nodes[*node].serving)
    }

    /// One random thing that can happen happens. Returns false if only time can pass.
    pub fn step(&mut self) -> bool {
        self.settle_links();
        self.wake();
        let mut choices: Vec<(usize, usize)> = Vec::with_capacity(32);
        for (index, node) in self.nodes.iter().enumerate() {
            if self.paused_until[index] > self.now {
                continue;
            }
            choices.extend(node.ready().map(|io| (index, io)));
            if node.needs_turn {
                choices.push((index, usize::MAX));
            }
        }
        let first_wire = choices.len();
        for (index, wire) in self.wires.iter().enumerate() {
            choices.extend((0..2).filter(|way| self.can_deliver(wire, *way)).map(|way| (index, way)));
        }
        if choices.is_empty() {
            return false;
        }
        let pick = self.random.index(choices.len());
        let (index, what) = choices[pick];
        if pick >= first_wire {
            self.deliver(index, what);
        } else if what == usize::MAX {
            let now = self.instant(index);
            self.nodes[index].turn(now);
        } else {
            self.finish_io(index, what);
        }
        self.collect();
        true
    }

    fn can_deliver(&self, wire: &Wire, way: usize) -> bool {
        let (from, to) = (wire.ends[way].node, wire.ends[1 - way].node);
        let route = &self.routes[from][to];
        wire.has_news(way) && !route.silent && route.delayed_until <= self.now && !self.is_paused(to)
    }

    fn finish_io(&mut self, node: usize, index: usize) {
        let now = self.instant(node);
        self.ios += 1;
        let fate = (self.fates)(&self.nodes[node].ios[index], node, &mut self.random);
        if fate != Fate::Done {
            let io = format!("{:?}", self.nodes[node].ios[index]);
            self.note(|| format!("n{node} {fate:?}: {}", io.chars().take(90).collect::<String>()));
        }
        match fate {
            Fate::Done => {
                if self.trace.is_some() {
                    let line = describe(&self.nodes[node].ios[index]);
                    self.note(|| format!("n{node} {line}"));
                }
                if matches!(self.nodes[node].ios[index], Io::SyncJournal { .. }) {
                    self.moments.push((Moment::JournalSynced, node));
                }
                self.nodes[node].finish(index, now);
            }
            Fate::Fails(errno) => self.nodes[node].fail(index, now, errno, &mut self.random),
            Fate::Hangs(ns) => {
                let io = self.nodes[node].ios.remove(index);
                self.nodes[node].hung.push((self.now + ns, io));
            }
            Fate::Kill => self.kill(node),
            Fate::Power => self.lose_power(node),
            Fate::Blackout => (0..self.nodes.len()).for_each(|node| self.lose_power(node)),
        }
    }

    /// What hung long enough goes on.
    fn wake(&mut self) {
        let now = self.now;
        for node in &mut self.nodes {
            if !node.hung.is_empty() {
                let woken: Vec<_> = node.hung.extract_if(.., |(until, _)| *until <= now).collect();
                node.ios.extend(woken.into_iter().map(|(_, io)| io));
            }
        }
    }

    /// Ends all turns and moves time to whatever is due next.
    pub fn pass_time(&mut self) {
        for index in 0..self.nodes.len() {
            if !self.is_paused(index) {
                let now = self.instant(index);
                self.nodes[index].turn(now);
            }
        }
        self.collect();
        let mut due = self.now + 50 * MS;
        for (index, node) in self.nodes.iter().enumerate() {
            let timeout = node.machine.as_ref().and_then(Machine::next_timeout);
            if let Some(at) = timeout.filter(|_| !self.is_paused(index)) {
                due = due.min(self.when(index, at));
            }
            due = node.hung.iter().fold(due, |due, (until, _)| due.min(*until));
            if self.is_paused(index) {
                due = due.min(self.paused_until[index]);
            }
        }
        self.now = due.max(self.now + MS / 10);
        for index in 0..self.nodes.len() {
            if !self.is_paused(index) {
                let now = self.instant(index);
                self.nodes[index].handle(now, Event::Timeout);
            }
        }
        self.collect();
    }

    /// Runs until `done`, or fails.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = self.now + 120_000 * MS;
        while !done(self) {
            if !self.step() {
                self.pass_time();
            }
            if self.now >= deadline {
                let states: Vec<_> = (0..self.nodes.len()).map(|n| self.status(n)).collect();
                panic!("waited two minutes for: {what}\n{states:#?}");
            }
        }
    }

    /// Runs for `ms` of virtual time.
    pub fn run_ms(&mut self, ms: u64) {
        let until = self.now + ms * MS;
        while self.now < until {
            if !self.step() {
                self.pass_time();
            }
        }
    }

    /// The next thing that pipe `way` of a wire brings.
    fn deliver(&mut self, index: usize, way: usize) {
        let wire = &mut self.wires[index];
        let (target, link) = (wire.ends[1 - way].node, wire.ends[1 - way].link);
        let now = self.instant(target);
        let pipe = &mut self.wires[index].pipes[way];
        if let Some((envelope, body, buffer)) = pipe.half.take() {
            return self.arrive(target, link, &envelope, &body, buffer);
        }
        let Some((envelope, body)) = pipe.queue.pop_front() else {
            self.take_down(index, 1 - way);
            return self.drop_gone_wires();
        };
        // Through the bytes, as on a real wire.
        let envelope = Envelope::decode(&envelope.encode()).expect("what is sent can be read");
        if !envelope.kind.is_bulk() {
            self.note(|| format!("n{target} hears {:?} in epoch {}", envelope.kind, envelope.epoch));
            return self.nodes[target].handle(now, Event::Message { link, envelope, body: &body });
        }
        match self.nodes[target].place(link, &envelope) {
            Some(buffer) if self.rough && self.random.percent(20) => {
                self.wires[index].pipes[way].half = Some((envelope, body, buffer));
                self.moments.push((Moment::HalfFrame, target));
            }
            Some(buffer) => self.arrive(target, link, &envelope, &body, buffer),
            None => {
                self.mark("a frame waits for memory");
                self.wires[index].pipes[way].queue.push_front((envelope, body));
                self.nodes[target].turn(now);
                if self.nodes.iter().all(|node| node.ios.is_empty()) {
                    self.pass_time();
                }
            }
        }
    }

    fn arrive(&mut self, node: usize, link: LinkId, envelope: &Envelope, body: &[u8], buffer: Buffer) {
        let now = self.instant(node);
        self.note(|| {
            format!(
                "n{node} receives {:?} of {} bytes in epoch {}",
                envelope.kind,
                body.len(),
                envelope.epoch
            )
        });
        self.nodes[node].fill(buffer, body);
        self.collect();
        if envelope.kind == MessageKind::Frame {
            self.ledger.received(node, envelope, body);
        }
        self.nodes[node].handle(now, Event::Frame { link, envelope: *envelope, buffer });
    }

    /// Moves what nodes sent onto the wires, and dials where nobody is connected.
    fn settle_links(&mut self) {
        for index in 0..self.nodes.len() {
            while let Some(out) = self.nodes[index].out.pop_front() {
                let link = match &out {
                    Out::Message { link, .. } | Out::Close { link, .. } => *link,
                };
                let found = self
                    .wires
                    .iter()
                    .enumerate()
                    .find_map(|(at, wire)| wire.end_of(index, link).map(|end| (at, end)));
                let Some((at, end)) = found else { continue };
                match out {
                    Out::Message { envelope, body, .. } => {
                        self.wires[at].pipes[end].queue.push_back((envelope, body));
                    }
                    Out::Close { reason, retry, .. } => {
                        self.note(|| format!("n{index} closes a connection: {reason}"));
                        // What was sent before the close still arrives.
                        let (a, b) = (self.wires[at].ends[0].node, self.wires[at].ends[1].node);
                        let wait = if retry { 10 } else { 1000 };
                        self.dial_after[a.min(b)][a.max(b)] = self.now + wait * MS;
                        self.take_down(at, end);
                    }
                }
            }
        }
        self.drop_gone_wires();
        self.dial();
    }

    /// One end of a wire is gone, for the node there; the other end hears of it behind what was sent.
    fn take_down(&mut self, index: usize, end: usize) {
        let wire = &mut self.wires[index];
        if !std::mem::take(&mut wire.ends[end].up) {
            return;
        }
        let (node, link) = (wire.ends[end].node, wire.ends[end].link);
        wire.pipes[end].closed = true;
        let incoming = &mut wire.pipes[1 - end];
        incoming.queue.clear();
        let half = incoming.half.take();
        let now = self.instant(node);
        let of = |io: &Io| matches!(io, Io::Sent { link: of, .. } if *of == link);
        self.nodes[node].ios.retain(|io| !of(io));
        self.nodes[node].hung.retain(|(_, io)| !of(io));
        if let Some((_, _, buffer)) = half {
            self.mark("half a frame abandoned");
            self.nodes[node].handle(now, Event::FrameAbandoned { buffer });
        }
        self.note(|| format!("n{node} loses a connection"));
        self.nodes[node].handle(now, Event::LinkDown { link, reason: "closed".into() });
    }

    fn drop_gone_wires(&mut self) {
        self.wires.retain(|wire| wire.ends[0].up || wire.ends[1].up);
    }

    fn dial(&mut self) {
        let count = self.nodes.len();
        for a in 0..count {
            for b in a + 1..count {
                let connected = self
                    .wires
                    .iter()
                    .any(|wire| wire.ends[0].node == a && wire.ends[1].node == b && wire.ends[0].up);
                let (there, back) = (&self.routes[a][b], &self.routes[b][a]);
                let closed = there.refused || back.refused || there.silent || back.silent;
                let busy = self.is_paused(a) || self.is_paused(b) || self.now < self.dial_after[a][b];
                if connected || closed || busy || !self.is_up(a) || !self.is_up(b) {
                    continue;
                }
                let (x, y) = (LinkId(self.id()), LinkId(self.id()));
                self.wires.push(Wire::new((a, x), (b, y)));
                self.note(|| format!("n{a} and n{b} are connected"));
                let (now_a, now_b) = (self.instant(a), self.instant(b));
                self.nodes[a].handle(now_a, Event::LinkUp { link: x, peer: Some(node_id(b)) });
                // The listener does not know who called until it says so.
                self.nodes[b].handle(now_b, Event::LinkUp { link: y, peer: None });
            }
        }
    }

    /// Takes in what nodes were seen to do, and what they answered.
    fn collect(&mut self) {
        for index in 0..self.nodes.len() {
            for seen in std::mem::take(&mut self.nodes[index].seen) {
                self.ledger.see(index, &seen, &self.nodes[index]);
                self.look(index, &seen);
            }
            for report in std::mem::take(&mut self.nodes[index].reports) {
                self.note(|| format!("n{index} reports {report:?}"));
                match report {
                    Report::Frozen(_) => self.mark("frozen"),
                    Report::Record(_) => self.moments.push((Moment::RecordChanged, index)),
                    Report::Cut { .. } => self.moments.push((Moment::Cut, index)),
                    Report::Peer { text, .. } => {
                        let known = RESYNCS.iter().find(|(begin, _)| text.starts_with(begin));
                        known.into_iter().for_each(|(_, mark)| self.mark(mark));
                    }
                    _ => {}
                }
            }
            for (id, result) in std::mem::take(&mut self.nodes[index].completed) {
                let Some(at) = self.requests.iter().position(|request| request.id == id) else { continue };
                let request = self.requests.swap_remove(at);
                if result.is_ok() {
                    let (now, epoch) = (self.instant(index), self.ledger.saved(index).record.epoch);
                    self.leases.answered(index, now, epoch);
                }
                self.finish_request(index, request, result.is_ok());
            }
        }
        for mark in std::mem::take(&mut self.ledger.marks) {
            self.mark(mark);
        }
    }

    fn look(&mut self, index: usize, seen: &Seen) {
        let moment = match seen {
            Seen::Acked(..) => Moment::Acked,
            Seen::SuperblockCopy => Moment::SuperblockCopy,
            Seen::SuperblockSaved(_) => Moment::SuperblockSaved,
            Seen::Sealed(_) => Moment::Sealed,
            Seen::DiskAsked { .. } => Moment::Applying,
            Seen::Refused(reason) => {
                let reason = reason.clone();
                self.note(|| format!("n{index} refuses: {reason}"));
                self.mark(kind_of_refusal(&reason));
                return;
            }
            Seen::Serve(open) => {
                self.note(|| format!("n{index} {}", if *open { "serves" } else { "serves no more" }));
                if !open {
                    return;
                }
                let image = self.ledger.opened(index);
                self.checkers[index] = Checker::new(&image);
                self.mark("promotions");
                Moment::Opened
            }
            Seen::JournalAsked { bytes, .. } if begins_epoch(bytes) => Moment::EpochBegins,
            _ => return,
        };
        self.moments.push((moment, index));
    }

    fn finish_request(&mut self, node: usize, request: Request, ok: bool) {
        self.now += 1;
        match request.kind {
            RequestKind::Write { sectors, write, fua } if ok => {
                self.acknowledged += 1;
                self.note(|| format!("n{node} answers write {write} of sectors {sectors:?}"));
                let open = self.requests.iter().map(|request| request.began);
                let horizon = open.min().unwrap_or(self.now);
                self.checkers[node].acknowledge(sectors, write, self.now, horizon);
                self.ledger.answered(node, &self.nodes[node], write, fua, self.now);
                self.moments.push((Moment::Answered, node));
            }
            RequestKind::Flush if ok => {
                self.flushes += 1;
                self.note(|| format!("n{node} answers a flush"));
                self.ledger.flushed(node, &self.nodes[node], request.began);
                self.moments.push((Moment::Answered, node));
            }
            RequestKind::Read { sectors, span } => {
                if ok {
                    self.reads += 1;
                    self.check_read(node, sectors, span, request.began);
                }
                let page = u32::try_from(span.start / 4096).unwrap();
                let pages = u32::try_from(span.len.div_ceil(4096)).unwrap();
                if let Some(machine) = self.nodes[node].machine.as_mut() {
                    machine.give_buffer(Buffer { page, pages });
                }
            }
            _ => {}
        }
    }

    fn check_read(&mut self, node: usize, sectors: Range<usize>, span: Span, began: u64) {
        if self.ledger.is_void(node) {
            return;
        }
        let mut last = 0;
        for (index, sector) in sectors.enumerate() {
            let start = span.start + index * SECTOR;
            let bytes = &self.nodes[node].arena[start..start + SECTOR];
            let shown = self.checkers[node].read(sector, bytes, began, self.now);
            if shown != last && shown != 0 {
                self.ledger.shown(node, &self.nodes[node], shown, self.now);
            }
            last = shown;
        }
    }

    fn range(&mut self, most: usize) -> Range<usize> {
        let length = 1 + self.random.index(most.min(self.sectors));
        let start = self.random.index(self.sectors - length + 1);
        // Half of the writes meet in a few places.
        let start = if self.random.percent(50) { start % 24 % (self.sectors - length + 1) } else { start };
        start..start + length
    }

    fn request(&mut self, node: usize, kind: RequestKind) -> RequestId {
        let id = RequestId(self.id());
        self.now += 1;
        self.requests.push(Request { node, id, kind, began: self.now });
        id
    }

    /// A client writes some sectors at `node`.
    pub fn write(&mut self, node: usize, sectors: Range<usize>, fua: bool) -> bool {
        let Some(machine) = self.nodes[node].machine.as_mut() else { return false };
        let Some(payload) = machine.place_write(sectors.len() * SECTOR) else { return false };
        self.submit(node, payload, sectors, fua);
        true
    }

    fn submit(&mut self, node: usize, payload: Span, sectors: Range<usize>, fua: bool) {
        self.next_write += 1;
        let write = self.next_write;
        self.checkers[node].begin(sectors.clone(), write, false, self.now);
        for (index, sector) in sectors.clone().enumerate() {
            let start = payload.start + index * SECTOR;
            self.nodes[node].arena[start..start + SECTOR].copy_from_slice(&stamp(write, sector));
        }
        let offset = (sectors.start * SECTOR) as u64;
        self.note(|| format!("n{node} is asked to write {write} to sectors {sectors:?}, fua {fua}"));
        let request = self.request(node, RequestKind::Write { sectors, write, fua });
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::Write { request, offset, payload, fua });
        self.collect();
    }

    /// A client begins a large write at `node`, whose payload takes its time.
    fn begin_upload(&mut self, node: usize, sectors: Range<usize>) {
        let machine = self.nodes[node].machine.as_mut().expect("it serves");
        if let Some(payload) = machine.place_write(sectors.len() * SECTOR) {
            self.uploads.push(Upload { node, payload, sectors });
        }
    }

    /// A payload is complete, or its client is gone.
    fn end_upload(&mut self) {
        if self.uploads.is_empty() {
            return;
        }
        let at = self.random.index(self.uploads.len());
        let Upload { node, payload, sectors } = self.uploads.swap_remove(at);
        if self.random.percent(80) {
            return self.submit(node, payload, sectors, false);
        }
        self.mark("a client vanished in a write");
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::WriteAbandoned { payload });
        self.collect();
    }

    /// Clients with half a write are gone.
    pub fn drop_uploads(&mut self) {
        for Upload { node, payload, .. } in std::mem::take(&mut self.uploads) {
            let now = self.instant(node);
            self.nodes[node].handle(now, Event::WriteAbandoned { payload });
        }
        self.collect();
    }

    /// A client zeroes some sectors at `node`.
    pub fn zero(&mut self, node: usize, sectors: Range<usize>, kind: ZeroKind) {
        self.next_write += 1;
        let (write, fua) = (self.next_write, self.random.percent(5));
        self.checkers[node].begin(sectors.clone(), write, true, self.now);
        self.ledger.zeroing(node, write, sectors.clone());
        let (offset, length) = ((sectors.start * SECTOR) as u64, (sectors.len() * SECTOR) as u64);
        self.note(|| format!("n{node} is asked to zero ({write}) sectors {sectors:?}"));
        let request = self.request(node, RequestKind::Write { sectors, write, fua });
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::Zero { request, offset, length, kind, fua });
        self.collect();
    }

    /// A client flushes at `node`.
    pub fn flush(&mut self, node: usize) {
        let request = self.request(node, RequestKind::Flush);
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::Flush { request });
        self.collect();
    }

    /// A client reads some sectors at `node`.
    pub fn read(&mut self, node: usize, sectors: Range<usize>) {
        let length = sectors.len() * SECTOR;
        let Some(machine) = self.nodes[node].machine.as_mut() else { return };
        let Some(buffer) = machine.take_buffer(length) else { return };
        let destination = Span { start: buffer.start(), len: length };
        let offset = (sectors.start * SECTOR) as u64;
        let request = self.request(node, RequestKind::Read { sectors, span: destination });
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::Read { request, offset, destination });
        self.collect();
    }

    /// A client of a serving node does something.
    pub fn client(&mut self) {
        let serving: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].serving).collect();
        if serving.is_empty() || self.requests.len() > 40 {
            return;
        }
        let node = serving[self.random.index(serving.len())];
        if self.is_paused(node) {
            return;
        }
        if self.random.percent(20) {
            self.end_upload();
        }
        if self.random.percent(self.setup.bulk_percent) {
            let length = 129 + self.random.index(self.sectors.min(2048) - 129);
            let start = self.random.index(self.sectors - length + 1);
            return self.begin_upload(node, start..start + length);
        }
        match self.random.below(100) {
            0..=57 => {
                let most = if self.random.percent(5) { self.sectors.min(256) } else { 9 };
                let (range, fua) = (self.range(most), self.random.percent(8));
                self.write(node, range, fua);
            }
            58..=64 => {
                let kind = if self.random.percent(50) { ZeroKind::Trim } else { ZeroKind::Zeroes };
                let range = self.range(16);
                self.zero(node, range, kind);
            }
            65..=71 => self.flush(node),
            _ => {
                let range = self.range(16);
                self.read(node, range);
            }
        }
    }

    /// Requests that wait for an answer.
    pub fn waiting(&self) -> usize {
        self.requests.len()
    }

    /// Asks `node` for something and waits for the answer.
    ///
    /// # Errors
    /// What the node says.
    pub fn admin(&mut self, node: usize, action: AdminAction) -> Result<String, AdminError> {
        let id = self.ask(node, action);
        self.run_until(&format!("the answer to {action:?}"), |world| {
            world.nodes[node].answers.iter().any(|(other, _)| *other == id) || !world.is_up(node)
        });
        self.answer(node, id).unwrap_or_else(|| Err(AdminError::Device("the node is down".into())))
    }

    /// Asks `node` for something.
    pub fn ask(&mut self, node: usize, action: AdminAction) -> AdminId {
        let id = AdminId(self.id());
        self.note(|| format!("n{node} is told to {action:?}"));
        if let AdminAction::Promote { force, .. } = action {
            self.ledger.promoting(node, force);
        }
        self.leases.told(node, action);
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::Admin { id, action });
        self.collect();
        id
    }

    /// The answer to what `node` was asked, once it is there.
    pub fn answer(&mut self, node: usize, id: AdminId) -> Option<Result<String, AdminError>> {
        let at = self.nodes[node].answers.iter().position(|(other, _)| *other == id)?;
        let answer = self.nodes[node].answers.swap_remove(at).1;
        self.note(|| format!("n{node} answers {answer:?}"));
        Some(answer)
    }

    /// A fresh identity for a reign.
    pub fn reign_id(&mut self) -> ReignId {
        ReignId(u128::from(self.random.bits()) << 64 | u128::from(self.random.bits()))
    }

    /// Promotes `node`.
    ///
    /// # Errors
    /// What the node says.
    pub fn promote(&mut self, node: usize, force: bool) -> Result<String, AdminError> {
        let reign = self.reign_id();
        self.admin(node, AdminAction::Promote { force, reign })
    }

    /// Whether every node is up, level with the Primary, and at rest.
    pub fn is_quiet(&self) -> bool {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.is_level(&all)
    }

    /// Whether these nodes are up, level with the Primary among them, and at rest.
    pub fn is_level(&self, group: &[usize]) -> bool {
        let Some(primary) = group.iter().copied().find(|n| self.nodes[*n].serving) else { return false };
        let Some(status) = self.status(primary) else { return false };
        let head = status.head.sequence;
        let peers =
            status.peers.iter().filter(|peer| group.contains(&usize::from(peer.node.0))).all(|peer| {
                peer.connection == Connection::Established
                    && peer.ack.durable == head
                    && (peer.member || peer.protocol == Protocol::A)
            });
        let applied = group.iter().all(|n| {
            self.status(*n)
                .is_some_and(|status| status.applied == head && status.disk_state == DiskState::UpToDate)
        });
        peers && applied && self.requests.is_empty()
    }

    /// All disks hold the same bytes, and the Primary reads what clients may expect.
    pub fn check_equal(&mut self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.check_equal_among(&all);
    }

    /// The disks of these nodes hold the same bytes, and the Primary among them what clients may expect.
    pub fn check_equal_among(&mut self, group: &[usize]) {
        let length = self.sectors * SECTOR;
        let image = |node: &Node| {
            let mut bytes = vec![0; length];
            node.disk.read(0, &mut bytes);
            bytes
        };
        let primary = group.iter().copied().find(|n| self.nodes[*n].serving).expect("one serves");
        let expected = image(&self.nodes[primary]);
        let status = self.status(primary).expect("it serves");
        for n in group {
            let differs = image(&self.nodes[*n]).iter().zip(&expected).position(|(a, b)| a != b);
            // A copy whose device lied is found by its positions only: there are no checksums at rest.
            let lied = self.ledger.is_void(*n) || self.ledger.is_void(primary);
            if differs.is_some() && lied {
                self.mark("a lie went unnoticed");
                continue;
            }
            if let Some(byte) = differs {
                let sector = byte / SECTOR;
                broken(
                    "replicas-differ",
                    format!("nodes {primary} and {n} differ at rest, in sector {sector}"),
                );
            }
            let other = self.status(*n).expect("it is level");
            if (other.head, other.chain) != (status.head, status.chain) {
                broken("replicas-differ", format!("the logs of nodes {primary} and {n} differ at rest"));
            }
            let lone = other.role == Role::Primary && *n != primary;
            if lone {
                broken("one-primary-per-epoch", format!("nodes {primary} and {n} both serve at rest"));
            }
        }
        self.now += 1;
        let now = self.now;
        let sound = !self.ledger.is_void(primary);
        for (sector, bytes) in expected.chunks(SECTOR).enumerate().filter(|_| sound) {
            self.checkers[primary].read(sector, bytes, now, now);
        }
        for n in group {
            let disk = self.nodes[*n].disk.clone();
            self.ledger.check_disk(*n, &disk);
        }
    }
}

fn begins_epoch(bytes: &[u8]) -> bool {
    let header = frame::decode(bytes).expect("the ledger read it");
    let first = frame::entries(bytes, &header).flatten().next();
    first.is_some_and(|entry| entry.kind == EntryKind::EpochStart)
}

fn kind_of_refusal(reason: &str) -> &'static str {
    let kinds = [
        ("split brain", "fork refused"),
        ("its epoch history", "histories too short"),
        ("has promised epoch", "older promise refused"),
        ("is over", "older promise refused"),
        ("disk is", "failed copy refused"),
        ("below entry", "restored disk refused"),
    ];
    kinds.iter().find(|(text, _)| reason.contains(text)).map_or("other refusal", |(_, kind)| kind)
}

fn describe(io: &Io) -> String {
    match io {
        Io::WriteJournal { offset, bytes, map: true, .. } => {
            format!("wrote {} bytes of a dirty map at {offset} of its journal", bytes.len())
        }
        Io::WriteJournal { offset, bytes, .. } => {
            let header = frame::decode(bytes).expect("it was encoded");
            let what = format!("{}..={} of epoch {}", header.first, header.last(), header.epoch);
            format!("wrote entries {what} at {offset} of its journal")
        }
        Io::SyncJournal { covered, .. } => format!("synced its journal ({covered} writes)"),
        Io::ReadJournal { offset, span, .. } => format!("read {} bytes at {offset} of its journal", span.len),
        Io::ReadDisk { offset, span, .. } => format!("read {} bytes at {offset} of its disk", span.len),
        Io::WriteDisk { offset, bytes, .. } => format!("wrote {} bytes at {offset} of its disk", bytes.len()),
        Io::ZeroDisk { offset, length, .. } => format!("zeroed {length} bytes at {offset} of its disk"),
        Io::SyncDisk { covered, .. } => format!("synced its disk ({covered} writes)"),
        Io::Superblock { copy, bytes, .. } => {
            let superblock = Superblock::decode(bytes).expect("it was encoded");
            format!(
                "wrote copy {copy} of superblock {}: {}, promised {}, record {:?}, applied {}, cut {:?}",
                superblock.sequence,
                superblock.disk_state,
                superblock.promised,
                superblock.record.in_sync,
                superblock.applied_through.position.sequence,
                superblock.cut
            )
        }
        Io::Sent { .. } => "sent a frame".to_string(),
    }
}
