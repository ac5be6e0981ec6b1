//! A world of simulated nodes: real machines, simulated disks, links and clocks, all moved by one seed. No thread,
//! no real time.

use std::collections::VecDeque;

use replicator_core::chain;
use replicator_core::command::AdminError;
use replicator_core::config::{Config, OnPeerLoss, PeerConfig, Protocol};
use replicator_core::disk::superblock::{DiskState, LogPoint, Record, Superblock};
use replicator_core::event::{AdminAction, Event, ZeroKind};
use replicator_core::status::{Connection, Role, Status};
use replicator_core::units::{
    AdminId, Incarnation, Instant, LinkId, NodeId, NodeSet, Position, ReignId, RequestId, Span, VolumeId,
};
use replicator_core::wire::envelope::{Envelope, MessageKind};

use crate::checker::{Checker, SECTOR, stamp};
use crate::node::{Io, Node, Out};
use crate::random::Random;

/// What travels one way on a link.
type Pipe = VecDeque<(Envelope, Vec<u8>)>;

/// A connection between two nodes.
struct Wire {
    ends: [(usize, LinkId); 2],
    pipes: [Pipe; 2],
    /// An end closed it: no more is delivered.
    closed: bool,
}

/// What a client is waiting for.
struct Request {
    node: usize,
    id: RequestId,
    kind: RequestKind,
    began: u64,
}

enum RequestKind {
    Write { sectors: std::ops::Range<usize>, write: u64 },
    Read { sectors: std::ops::Range<usize>, span: Span },
    Flush,
}

/// How a world is set up.
#[derive(Clone)]
pub struct Setup {
    pub nodes: usize,
    pub protocol: Protocol,
    pub on_peer_loss: OnPeerLoss,
    pub sectors: usize,
    pub journal_bytes: u64,
    pub arena_bytes: usize,
    pub checkpoint_bytes: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 2,
            protocol: Protocol::C,
            on_peer_loss: OnPeerLoss::Freeze,
            sectors: 128,
            journal_bytes: (1 << 20) + (17 << 20),
            arena_bytes: 8 << 20,
            checkpoint_bytes: 256 << 10,
        }
    }
}

/// The world.
pub struct World {
    pub nodes: Vec<Node>,
    pub random: Random,
    pub now: u64,
    pub checker: Checker,
    pub sectors: usize,
    /// Whether two nodes can reach each other.
    pub cut: Vec<Vec<bool>>,
    wires: Vec<Wire>,
    requests: Vec<Request>,
    next_id: u64,
    zeroes: Vec<u64>,
    pub acknowledged: u64,
    dial_after: Vec<Vec<u64>>,
}

const MS: u64 = 1_000_000;

fn config(setup: &Setup, node: usize) -> Config {
    let id = |n: usize| NodeId(u8::try_from(n).unwrap());
    let others = (0..setup.nodes).filter(|n| *n != node);
    let peers = others.map(|n| PeerConfig { node: id(n), protocol: setup.protocol }).collect();
    Config {
        node: id(node),
        peers,
        volume: VolumeId(0x1234_5678),
        incarnation: Incarnation(1),
        on_peer_loss: setup.on_peer_loss,
        arena_bytes: setup.arena_bytes,
        frames_in_flight_max: 2,
        sync_interval_ms: 10,
        ping_interval_ms: 500,
        peer_timeout_ms: 3000,
        checkpoint_bytes: setup.checkpoint_bytes,
        send_window_bytes: 2 << 20,
    }
}

fn fresh(setup: &Setup, node: usize) -> Superblock {
    let volume = VolumeId(0x1234_5678);
    let start = LogPoint { chain: chain::genesis(volume), ..LogPoint::default() };
    let members = match setup.protocol {
        Protocol::A => NodeSet::only(NodeId(0)),
        _ => (0..setup.nodes).fold(NodeSet(0), |set, n| set.with(NodeId(u8::try_from(n).unwrap()))),
    };
    Superblock {
        sequence: 1,
        volume,
        incarnation: Incarnation(1),
        node: NodeId(u8::try_from(node).unwrap()),
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
        data_base: Position::default(),
        ..Superblock::default()
    }
}

impl World {
    /// A world with all nodes started and no one Primary.
    pub fn new(seed: u64, setup: &Setup) -> Self {
        let nodes = (0..setup.nodes).map(|n| Node::new(config(setup, n), &fresh(setup, n))).collect();
        let mut world = Self {
            nodes,
            random: Random::new(seed),
            now: MS,
            checker: Checker::new(setup.sectors),
            sectors: setup.sectors,
            cut: vec![vec![false; setup.nodes]; setup.nodes],
            wires: Vec::new(),
            requests: Vec::new(),
            next_id: 1,
            zeroes: Vec::new(),
            acknowledged: 0,
            dial_after: vec![vec![0; setup.nodes]; setup.nodes],
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

    pub fn instant(&self) -> Instant {
        Instant(self.now)
    }

    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].machine.is_some()
    }

    pub fn start(&mut self, node: usize) {
        let now = self.instant();
        self.nodes[node].start(now).expect("recovery finds no damage");
    }

    pub fn kill(&mut self, node: usize) {
        self.sever(|a, b| a == node || b == node);
        self.nodes[node].kill(&mut self.random);
        self.requests.retain(|request| request.node != node);
    }

    pub fn lose_power(&mut self, node: usize) {
        self.sever(|a, b| a == node || b == node);
        self.nodes[node].lose_power(&mut self.random);
        self.requests.retain(|request| request.node != node);
    }

    /// Cuts or heals the link between two nodes.
    pub fn set_cut(&mut self, a: usize, b: usize, cut: bool) {
        (self.cut[a][b], self.cut[b][a]) = (cut, cut);
        if cut {
            self.sever(|x, y| (x, y) == (a, b) || (x, y) == (b, a));
        }
    }

    fn sever(&mut self, which: impl Fn(usize, usize) -> bool) {
        for wire in &mut self.wires {
            if which(wire.ends[0].0, wire.ends[1].0) {
                wire.closed = true;
            }
        }
    }

    pub fn status(&self, node: usize) -> Option<Status> {
        self.nodes[node].machine.as_ref().map(replicator_core::machine::Machine::status)
    }

    pub fn serving(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|node| self.nodes[*node].serving)
    }

    /// One random thing that can happen happens. Returns false if only time can pass.
    pub fn step(&mut self) -> bool {
        self.settle_links();
        let mut choices: Vec<(usize, usize)> = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            choices.extend(node.ready().map(|io| (index, io)));
            if node.needs_turn {
                choices.push((index, usize::MAX));
            }
        }
        let first_wire = choices.len();
        for (index, wire) in self.wires.iter().enumerate() {
            choices.extend((0..2).filter(|way| !wire.pipes[*way].is_empty()).map(|way| (index, way)));
        }
        if choices.is_empty() {
            return false;
        }
        let pick = self.random.index(choices.len());
        let (index, what) = choices[pick];
        let now = self.instant();
        if pick >= first_wire {
            self.deliver(index, what);
        } else if what == usize::MAX {
            self.nodes[index].turn(now);
        } else {
            self.nodes[index].finish(what, now);
        }
        self.collect();
        true
    }

    /// Ends all turns and moves time to whatever is due next.
    pub fn pass_time(&mut self) {
        for index in 0..self.nodes.len() {
            let now = self.instant();
            self.nodes[index].turn(now);
        }
        self.collect();
        let machines = self.nodes.iter().filter_map(|node| node.machine.as_ref());
        let due = machines.filter_map(|machine| machine.next_timeout()).map(|at| at.0).min();
        let next = due.unwrap_or(self.now + 5 * MS).clamp(self.now + MS / 10, self.now + 50 * MS);
        self.now = next;
        for index in 0..self.nodes.len() {
            let now = self.instant();
            self.nodes[index].handle(now, Event::Timeout);
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

    fn deliver(&mut self, index: usize, way: usize) {
        let now = self.instant();
        let (target, link) = self.wires[index].ends[1 - way];
        let (envelope, body) = self.wires[index].pipes[way].pop_front().unwrap();
        // Through the bytes, as on a real wire.
        let envelope = Envelope::decode(&envelope.encode()).expect("what is sent can be read");
        let node = &mut self.nodes[target];
        if envelope.kind == MessageKind::Frame {
            match node.place(link, &envelope, &body) {
                Some(buffer) => node.handle(now, Event::Frame { link, envelope, buffer }),
                None => {
                    self.wires[index].pipes[way].push_front((envelope, body));
                    self.nodes[target].turn(now);
                    if self.nodes.iter().all(|node| node.ios.is_empty()) {
                        self.pass_time();
                    }
                }
            }
        } else {
            node.handle(now, Event::Message { link, envelope, body: &body });
        }
    }

    /// Moves what nodes sent onto the wires, ends closed wires, dials where nobody is connected.
    fn settle_links(&mut self) {
        for index in 0..self.nodes.len() {
            while let Some(out) = self.nodes[index].out.pop_front() {
                let (link, retry) = match &out {
                    Out::Message { link, .. } => (*link, true),
                    Out::Close { link, retry } => (*link, *retry),
                };
                let Some(wire) = self.wires.iter_mut().find(|wire| wire.ends.contains(&(index, link))) else {
                    continue;
                };
                let way = usize::from(wire.ends[1] == (index, link));
                match out {
                    Out::Message { envelope, body, .. } => wire.pipes[way].push_back((envelope, body)),
                    Out::Close { .. } => {
                        // What was sent before the close still arrives.
                        wire.closed = true;
                        let (a, b) = (wire.ends[0].0, wire.ends[1].0);
                        let wait = if retry { 10 } else { 1000 };
                        self.dial_after[a.min(b)][a.max(b)] = self.now + wait * MS;
                        self.flush_wire(index, link);
                    }
                }
            }
        }
        self.drop_closed();
        self.dial();
    }

    /// Delivers what the closing end had sent: a close is orderly unless a node died.
    fn flush_wire(&mut self, node: usize, link: LinkId) {
        let found = self.wires.iter().position(|wire| wire.ends.contains(&(node, link)));
        let Some(index) = found else { return };
        let way = usize::from(self.wires[index].ends[1] == (node, link));
        while self.wires[index].pipes[way]
            .front()
            .is_some_and(|(envelope, _)| envelope.kind != MessageKind::Frame)
        {
            self.deliver(index, way);
        }
    }

    fn drop_closed(&mut self) {
        let now = self.instant();
        while let Some(index) = self.wires.iter().position(|wire| wire.closed) {
            let wire = self.wires.swap_remove(index);
            for (node, link) in wire.ends {
                let node = &mut self.nodes[node];
                node.ios.retain(|io| !matches!(io, Io::Sent { link: of, .. } if *of == link));
                node.handle(now, Event::LinkDown { link, reason: "closed".into() });
            }
        }
    }

    fn dial(&mut self) {
        let count = self.nodes.len();
        for a in 0..count {
            for b in a + 1..count {
                let connected = self.wires.iter().any(|wire| wire.ends[0].0 == a && wire.ends[1].0 == b);
                let wait = self.now < self.dial_after[a][b];
                if connected || wait || self.cut[a][b] || !self.is_up(a) || !self.is_up(b) {
                    continue;
                }
                let (x, y) = (LinkId(self.id()), LinkId(self.id()));
                self.wires.push(Wire {
                    ends: [(a, x), (b, y)],
                    pipes: [Pipe::new(), Pipe::new()],
                    closed: false,
                });
                let now = self.instant();
                let peer = |n: usize| Some(NodeId(u8::try_from(n).unwrap()));
                self.nodes[a].handle(now, Event::LinkUp { link: x, peer: peer(b) });
                // The listener does not know who called until it says so.
                self.nodes[b].handle(now, Event::LinkUp { link: y, peer: None });
            }
        }
    }

    /// Checks what has been answered.
    fn collect(&mut self) {
        for index in 0..self.nodes.len() {
            for (id, result) in std::mem::take(&mut self.nodes[index].completed) {
                let Some(at) = self.requests.iter().position(|request| request.id == id) else { continue };
                let request = self.requests.swap_remove(at);
                self.finish_request(index, request, result.is_ok());
            }
        }
    }

    fn finish_request(&mut self, node: usize, request: Request, ok: bool) {
        self.now += 1;
        match request.kind {
            RequestKind::Write { sectors, write } if ok => {
                self.acknowledged += 1;
                self.checker.acknowledge(sectors, write, self.now);
            }
            RequestKind::Flush if ok => self.checker.flushed(request.began),
            RequestKind::Read { sectors, span } => {
                if ok {
                    for (index, sector) in sectors.enumerate() {
                        let start = span.start + index * SECTOR;
                        let bytes = &self.nodes[node].arena[start..start + SECTOR];
                        let context = format!("a read at node {node}");
                        self.checker.read(sector, bytes, &self.zeroes, request.began, self.now, &context);
                    }
                }
                let page = u32::try_from(span.start / 4096).unwrap();
                let pages = u32::try_from(span.len.div_ceil(4096)).unwrap();
                let buffer = replicator_core::units::Buffer { page, pages };
                if let Some(machine) = self.nodes[node].machine.as_mut() {
                    machine.give_buffer(buffer);
                }
            }
            _ => {}
        }
    }

    fn range(&mut self, most: usize) -> std::ops::Range<usize> {
        let length = 1 + self.random.index(most);
        let start = self.random.index(self.sectors - length + 1);
        start..start + length
    }

    fn request(&mut self, node: usize, kind: RequestKind) -> RequestId {
        let id = RequestId(self.id());
        self.now += 1;
        self.requests.push(Request { node, id, kind, began: self.now });
        id
    }

    /// A client writes some sectors at `node`.
    pub fn write(&mut self, node: usize, sectors: std::ops::Range<usize>, fua: bool) -> bool {
        let Some(machine) = self.nodes[node].machine.as_mut() else { return false };
        let Some(payload) = machine.place_write(sectors.len() * SECTOR) else { return false };
        let write = self.checker.begin(sectors.clone(), self.now);
        for (index, sector) in sectors.clone().enumerate() {
            let start = payload.start + index * SECTOR;
            self.nodes[node].arena[start..start + SECTOR].copy_from_slice(&stamp(write, sector));
        }
        let offset = (sectors.start * SECTOR) as u64;
        let request = self.request(node, RequestKind::Write { sectors, write });
        let now = self.instant();
        self.nodes[node].handle(now, Event::Write { request, offset, payload, fua });
        self.collect();
        true
    }

    /// A client zeroes some sectors at `node`.
    pub fn zero(&mut self, node: usize, sectors: std::ops::Range<usize>, kind: ZeroKind) {
        let write = self.checker.begin(sectors.clone(), self.now);
        self.zeroes.push(write);
        let (offset, length) = ((sectors.start * SECTOR) as u64, (sectors.len() * SECTOR) as u64);
        let request = self.request(node, RequestKind::Write { sectors, write });
        let now = self.instant();
        self.nodes[node].handle(now, Event::Zero { request, offset, length, kind, fua: false });
        self.collect();
    }

    /// A client flushes at `node`.
    pub fn flush(&mut self, node: usize) {
        let request = self.request(node, RequestKind::Flush);
        let now = self.instant();
        self.nodes[node].handle(now, Event::Flush { request });
        self.collect();
    }

    /// A client reads some sectors at `node`.
    pub fn read(&mut self, node: usize, sectors: std::ops::Range<usize>) {
        let length = sectors.len() * SECTOR;
        let Some(machine) = self.nodes[node].machine.as_mut() else { return };
        let Some(buffer) = machine.take_buffer(length) else { return };
        let destination = Span { start: buffer.start(), len: length };
        let offset = (sectors.start * SECTOR) as u64;
        let request = self.request(node, RequestKind::Read { sectors, span: destination });
        let now = self.instant();
        self.nodes[node].handle(now, Event::Read { request, offset, destination });
        self.collect();
    }

    /// A client of the serving node does something.
    pub fn client(&mut self) {
        let Some(node) = self.serving() else { return };
        if self.requests.len() > 40 {
            return;
        }
        match self.random.below(100) {
            0..=59 => {
                let most = if self.random.percent(5) { self.sectors } else { 9 };
                let (range, fua) = (self.range(most), self.random.percent(5));
                self.write(node, range, fua);
            }
            60..=64 => {
                let kind = if self.random.percent(50) { ZeroKind::Trim } else { ZeroKind::Zeroes };
                let range = self.range(16);
                self.zero(node, range, kind);
            }
            65..=69 => self.flush(node),
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
    pub fn admin(&mut self, node: usize, action: AdminAction) -> Result<String, AdminError> {
        let id = self.ask(node, action);
        self.run_until(&format!("the answer to {action:?}"), |world| {
            world.nodes[node].answers.iter().any(|(other, _)| *other == id) || !world.is_up(node)
        });
        let found = self.nodes[node].answers.iter().position(|(other, _)| *other == id);
        let at = found.ok_or_else(|| AdminError::Device("the node is down".into()))?;
        self.nodes[node].answers.swap_remove(at).1
    }

    /// Asks `node` for something.
    pub fn ask(&mut self, node: usize, action: AdminAction) -> AdminId {
        let id = AdminId(self.id());
        let now = self.instant();
        self.nodes[node].handle(now, Event::Admin { id, action });
        id
    }

    /// Promotes `node`.
    pub fn promote(&mut self, node: usize, force: bool) -> Result<String, AdminError> {
        let reign = ReignId(u128::from(self.random.next()));
        let result = self.admin(node, AdminAction::Promote { force, reign });
        if result.is_ok() {
            self.checker.sessions_over(self.now);
        }
        result
    }

    /// Whether every node is up, level with the Primary, and at rest.
    pub fn is_quiet(&self) -> bool {
        let Some(primary) = self.serving() else { return false };
        let Some(status) = self.status(primary) else { return false };
        let head = status.head.sequence;
        let peers = status.peers.iter().all(|peer| {
            peer.connection == Connection::Established && peer.ack.durable == head && peer.member
        });
        let applied = (0..self.nodes.len()).all(|n| {
            self.status(n)
                .is_some_and(|status| status.applied == head && status.disk_state == DiskState::UpToDate)
        });
        peers && applied && self.requests.is_empty()
    }

    /// All disks hold the same bytes, and the Primary reads what clients may expect.
    pub fn check_equal(&mut self) {
        let length = self.sectors * SECTOR;
        let images: Vec<Vec<u8>> = self
            .nodes
            .iter()
            .map(|node| {
                let mut bytes = vec![0; length];
                node.disk.read(0, &mut bytes);
                bytes
            })
            .collect();
        for (index, image) in images.iter().enumerate().skip(1) {
            let differs = image.iter().zip(&images[0]).position(|(a, b)| a != b);
            assert!(differs.is_none(), "the disks of nodes 0 and {index} differ at byte {differs:?}");
        }
        for sector in 0..self.sectors {
            let bytes = &images[0][sector * SECTOR..(sector + 1) * SECTOR];
            self.checker.read(sector, bytes, &self.zeroes, self.now, self.now, "at the end");
        }
        let states: Vec<Status> = (0..self.nodes.len()).filter_map(|n| self.status(n)).collect();
        for status in &states {
            assert_eq!((status.head, status.chain), (states[0].head, states[0].chain), "logs are equal");
        }
        assert_eq!(states.iter().filter(|status| status.role == Role::Primary).count(), 1, "one Primary");
    }
}
