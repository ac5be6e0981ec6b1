//! Two replicas, Primary and Secondary, with disks and links that are memory and take no time: what is left is the
//! cost of the core's decisions. It is a driver like the reactor, and keeps its duties.
//!
//! ```text
//!   client --requests--> [ Primary ] --frames--> [ Secondary ]     one turn of each, by turns, while either
//!          <--answers---             <---acks---                   has something to do; the clock is virtual
//! ```
//!
//! Journals keep nothing (they are only written in steady state); disks keep their bytes, and are compared.

use std::collections::VecDeque;
use std::time::Instant as Clock;

use replicator_core::chain;
use replicator_core::command::Command;
use replicator_core::config::{Config, OnPeerLoss, PeerConfig, Protocol};
use replicator_core::disk::superblock::{DiskState, LogPoint, Record, Superblock};
use replicator_core::event::{AdminAction, Errno, Event, ZeroKind};
use replicator_core::limits::MESSAGE_BODY_BYTES_MAX;
use replicator_core::machine::Machine;
use replicator_core::recovery::{JournalReader, recover};
use replicator_core::status::Counters;
use replicator_core::units::{
    AdminId, Buffer, Incarnation, Instant, LinkId, NodeId, NodeSet, ReignId, RequestId, Span, Token, VolumeId,
};
use replicator_core::wire::envelope::{Envelope, MessageKind};
use replicator_core::wire::message::Message;

use crate::counting;
use crate::random::Random;

/// Bytes of a request.
pub const BLOCK_BYTES: usize = 4096;
/// Blocks of the volume.
pub const BLOCKS: u64 = 16 << 10;
/// Requests at one time, at most.
const DEPTH_MAX: usize = 64;
/// What a request moves the virtual clock by: about what one costs a whole cluster on two cores, so that syncs
/// and checkpoints, which are timed, weigh as much as they do there.
const REQUEST_NS: u64 = 15_000;
const ARENA_BYTES: usize = 64 << 20;
const JOURNAL_BYTES: u64 = 128 << 20;
const CHECKPOINT_BYTES: u64 = 32 << 20;
const LINK: LinkId = LinkId(1);
/// Bytes of a message that is sent often.
const SHORT_BYTES: usize = 64;

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// Memory for a request is asked for.
    Place,
    /// `Event::Write`.
    Write,
    /// `Event::Read`.
    Read,
    /// `Event::Zero`.
    Zero,
    /// `Event::Flush`.
    Flush,
    /// `Event::Frame`, with `place_frame`.
    Frame,
    /// `Event::FrameSent`.
    FrameSent,
    /// `Event::Message`.
    Message,
    /// `Event::JournalWritten`.
    JournalWritten,
    /// `Event::JournalSynced`.
    JournalSynced,
    /// `Event::DiskRead`.
    DiskRead,
    /// `Event::DiskWritten`.
    DiskWritten,
    /// `Event::DiskSynced`.
    DiskSynced,
    /// `Event::SuperblockWritten`.
    SuperblockWritten,
    /// `Event::TurnEnd`: frames close, entries are applied, acknowledgements leave.
    TurnEnd,
    /// `Event::Timeout`, and asking when it is due.
    Timeout,
    /// `Machine::poll_command`.
    Commands,
    /// Bytes that the driver copies where a kernel would: payloads, frames, disks.
    DriverCopies,
}

/// All stages, in their order.
pub const STAGES: [(Stage, &str); 18] = [
    (Stage::Place, "place (memory for a request)"),
    (Stage::Write, "Write (admission, payload CRC)"),
    (Stage::Read, "Read (overlay, gaps)"),
    (Stage::Zero, "Zero (admission)"),
    (Stage::Flush, "Flush"),
    (Stage::Frame, "Frame (decode, chain, payload CRCs)"),
    (Stage::FrameSent, "FrameSent"),
    (Stage::Message, "Message (acknowledgements)"),
    (Stage::JournalWritten, "JournalWritten"),
    (Stage::JournalSynced, "JournalSynced"),
    (Stage::DiskRead, "DiskRead"),
    (Stage::DiskWritten, "DiskWritten"),
    (Stage::DiskSynced, "DiskSynced"),
    (Stage::SuperblockWritten, "SuperblockWritten"),
    (Stage::TurnEnd, "TurnEnd (close, apply, send, answer)"),
    (Stage::Timeout, "Timeout, next_timeout"),
    (Stage::Commands, "poll_command"),
    (Stage::DriverCopies, "not the core: copies of the driver"),
];

/// Calls and nanoseconds of one stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// How often.
    pub calls: u64,
    /// How long together.
    pub ns: u64,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests answered.
    pub requests: u64,
    /// Events given to both machines.
    pub events: u64,
    /// Superblocks to write: at checkpoints.
    pub superblocks: u64,
    /// Messages in a box that the clock caused: pings, and marks on an idle link.
    pub timed_messages: u64,
    /// Allocations in turns that wrote a superblock or sent such a message.
    pub allocations_rare: u64,
    /// Allocations in all other turns: what requests cause.
    pub allocations: u64,
}

impl Tally {
    /// This and what another run came to.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    fn since(self, before: Self) -> Self {
        self.zip(before, |a, b| a - b)
    }

    fn zip(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            requests: with(self.requests, other.requests),
            events: with(self.events, other.events),
            superblocks: with(self.superblocks, other.superblocks),
            timed_messages: with(self.timed_messages, other.timed_messages),
            allocations_rare: with(self.allocations_rare, other.allocations_rare),
            allocations: with(self.allocations, other.allocations),
        }
    }
}

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Random writes over the volume.
    Write,
    /// The same, and every eighth request is a flush.
    WriteFlush,
    /// Random trims over the volume.
    Trim,
    /// Writes to the first blocks, with the clock stopped: nothing is synced, so nothing is applied.
    WriteHeld {
        /// How many blocks.
        blocks: u64,
    },
    /// Random reads over the volume.
    Read,
    /// Reads of the first blocks, with the clock stopped.
    ReadHeld {
        /// How many blocks.
        blocks: u64,
    },
}

/// A completion that waits for the next turn.
#[derive(Clone, Copy)]
enum Done {
    JournalWritten(Token),
    JournalSynced(Token),
    DiskRead(Token),
    DiskWritten(Token),
    DiskSynced(Token),
    SuperblockWritten(Token),
    FrameSent(Token),
}

/// What travels on the link.
enum Sent {
    Short { envelope: Envelope, body: [u8; SHORT_BYTES] },
    Long { envelope: Envelope, body: Vec<u8> },
    Frame { envelope: Envelope, token: Token, span: Span },
}

struct Node {
    machine: Machine,
    arena: Vec<u8>,
    disk: Vec<u8>,
    done: VecDeque<Done>,
    /// What was sent and not received.
    sent: VecDeque<Sent>,
    spent: [Spent; STAGES.len()],
    is_serving: bool,
}

/// A request of the client: where it is a read, the block and where it goes.
type Request = Option<(u64, Buffer)>;

struct Client {
    slots: Vec<Request>,
    free: Vec<usize>,
    random: Random,
    payload: Vec<u8>,
    stamps: u64,
    /// The newest stamp written to each block.
    expected: Vec<u64>,
}

/// A Primary and a Secondary, connected, and a client.
pub struct Pair {
    nodes: [Node; 2],
    client: Client,
    commands: Vec<Command>,
    now: u64,
    tally: Tally,
    /// Allocations of the process when the last turn ended.
    allocations_seen: u64,
    is_timed: bool,
    /// What timing a call costs by itself.
    clock_ns: u64,
}

struct Blank;

impl JournalReader for Blank {
    fn read_at(&mut self, _device_offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        bytes.fill(0);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

const VOLUME: VolumeId = VolumeId(0x686f_6c64_6661_7374);

fn config(node: u8) -> Config {
    Config {
        node: NodeId(node),
        peers: vec![PeerConfig { node: NodeId(1 - node), protocol: Protocol::C }],
        volume: VOLUME,
        incarnation: Incarnation(1),
        on_peer_loss: OnPeerLoss::Freeze,
        arena_bytes: ARENA_BYTES,
        frames_in_flight_max: 2,
        sync_interval_ms: 10,
        ping_interval_ms: 500,
        peer_timeout_ms: 3000,
        checkpoint_bytes: CHECKPOINT_BYTES,
        send_window_bytes: 8 << 20,
    }
}

fn fresh(node: u8) -> Superblock {
    let start = LogPoint { chain: chain::genesis(VOLUME), ..LogPoint::default() };
    Superblock {
        sequence: 1,
        volume: VOLUME,
        incarnation: Incarnation(1),
        node: NodeId(node),
        replica: 1 + u128::from(node),
        volume_bytes: BLOCKS * BLOCK_BYTES as u64,
        journal_bytes: JOURNAL_BYTES,
        block_bytes: 512,
        window_bytes: ARENA_BYTES as u64,
        disk_state: DiskState::UpToDate,
        proven: true,
        clean: true,
        record: Record { in_sync: NodeSet::only(NodeId(0)).with(NodeId(1)), ..Record::default() },
        tail: start,
        applied_through: start,
        ..Superblock::default()
    }
}

impl Node {
    fn new(node: u8, now: Instant) -> Self {
        let recovered = recover(&fresh(node), false, 1, &mut Blank).expect("a blank journal is sound");
        Self {
            machine: Machine::new(config(node), recovered, now),
            arena: vec![0; ARENA_BYTES],
            disk: vec![0; usize::try_from(BLOCKS).expect("fits in memory") * BLOCK_BYTES],
            done: VecDeque::with_capacity(1 << 16),
            sent: VecDeque::with_capacity(1 << 10),
            spent: [Spent::default(); STAGES.len()],
            is_serving: false,
        }
    }
}

impl Pair {
    /// Both connected, the first one promoted and serving.
    ///
    /// # Panics
    /// If it is not serving soon.
    #[must_use]
    pub fn new() -> Self {
        let now = 1_000_000;
        let client = Client {
            slots: vec![None; DEPTH_MAX],
            free: (0..DEPTH_MAX).collect(),
            random: Random::new(1),
            payload: (0..BLOCK_BYTES).map(|at| (at * 31 % 251) as u8).collect(),
            stamps: 0,
            expected: vec![0; usize::try_from(BLOCKS).expect("fits in memory")],
        };
        let nodes = [Node::new(0, Instant(now)), Node::new(1, Instant(now))];
        let commands = Vec::with_capacity(1 << 16);
        let tally = Tally::default();
        let (allocations_seen, clock_ns) = (counting::count_so_far(), clock_ns());
        let mut pair =
            Self { nodes, client, commands, now, tally, allocations_seen, is_timed: false, clock_ns };
        for index in 0..2 {
            let peer = Some(NodeId(1 - u8::try_from(index).expect("two nodes")));
            pair.handle(index, Stage::Message, Event::LinkUp { link: LINK, peer });
            pair.turn(index, true);
        }
        pair.settle(20);
        let action = AdminAction::Promote { force: false, reign: ReignId(7) };
        pair.handle(0, Stage::Message, Event::Admin { id: AdminId(1), action });
        pair.turn(0, true);
        pair.settle(50);
        assert!(pair.nodes[0].is_serving, "a fresh pair promotes: {:#?}", pair.nodes[0].machine.status());
        pair
    }

    /// Answers `count` requests at `depth`; returns what happened.
    pub fn run(&mut self, job: Job, depth: usize, count: u64) -> Tally {
        assert!(depth <= DEPTH_MAX);
        let before = self.tally;
        self.allocations_seen = counting::count_so_far();
        let end = before.requests + count;
        let is_clock_stopped = matches!(job, Job::WriteHeld { .. } | Job::ReadHeld { .. });
        let mut issued = 0;
        while self.tally.requests < end || self.client.free.len() < DEPTH_MAX {
            let mut now = 0;
            while issued < count && DEPTH_MAX - self.client.free.len() < depth && self.issue(job) {
                issued += 1;
                now += REQUEST_NS;
            }
            if !is_clock_stopped {
                self.now += now;
            }
            let busy = self.turn(0, now > 0) | self.turn(1, false);
            if !busy {
                self.sleep();
            }
        }
        self.tally.since(before)
    }

    /// Runs both without requests until everything is on both disks, and compares them with what was written.
    ///
    /// # Panics
    /// If a byte is not what it should be.
    pub fn check(&mut self) {
        self.settle(2000);
        let [primary, secondary] = &self.nodes;
        let status = [primary.machine.status(), secondary.machine.status()];
        for status in &status {
            assert!(status.applied == status.head.sequence, "all is applied at rest");
        }
        assert!((status[0].head, status[0].chain) == (status[1].head, status[1].chain), "the logs are equal");
        assert!(primary.disk == secondary.disk, "the disks are equal");
        for (block, expected) in primary.disk.chunks_exact(BLOCK_BYTES).zip(&self.client.expected) {
            assert!(stamp_of(block) == *expected, "the disk holds the newest write");
        }
    }

    /// Counts the time of each stage from now on, from zero.
    pub fn start_timing(&mut self) {
        self.is_timed = true;
        for node in &mut self.nodes {
            node.spent = [Spent::default(); STAGES.len()];
        }
    }

    /// What each stage of the Primary and the Secondary took since timing started, the cost of timing taken off.
    pub fn stop_timing(&mut self) -> [[Spent; STAGES.len()]; 2] {
        self.is_timed = false;
        let clock_ns = self.clock_ns;
        let net = |spent: Spent| Spent { ns: spent.ns.saturating_sub(spent.calls * clock_ns), ..spent };
        [self.nodes[0].spent.map(net), self.nodes[1].spent.map(net)]
    }

    /// The machines' own counters.
    #[must_use]
    pub fn counters(&self) -> [Counters; 2] {
        [0, 1].map(|index: usize| self.nodes[index].machine.status().counters)
    }

    /// Lets both run for `ms` of virtual time without requests.
    fn settle(&mut self, ms: u64) {
        let end = self.now + ms * 1_000_000;
        while self.now < end {
            let busy = self.turn(0, false) | self.turn(1, false);
            if !busy {
                self.sleep();
            }
        }
    }

    /// Nothing is under way: time passes until something is due.
    fn sleep(&mut self) {
        let due = self.nodes.iter().filter_map(|node| node.machine.next_timeout()).map(|at| at.0).min();
        self.now = due.unwrap_or(0).clamp(self.now + 100_000, self.now + 10_000_000);
    }

    /// Places a request at the Primary, if there is room.
    fn issue(&mut self, job: Job) -> bool {
        let Some(slot) = self.client.free.last().copied() else { return false };
        let blocks = match job {
            Job::WriteHeld { blocks } | Job::ReadHeld { blocks } => blocks,
            _ => BLOCKS,
        };
        let block = self.client.random.below(blocks);
        let issued = match job {
            Job::WriteFlush if self.client.random.below(8) == 0 => {
                self.handle(0, Stage::Flush, Event::Flush { request: RequestId(slot as u64) });
                true
            }
            Job::Write | Job::WriteFlush | Job::WriteHeld { .. } => self.issue_write(slot, block),
            Job::Trim => self.issue_trim(slot, block),
            Job::Read | Job::ReadHeld { .. } => self.issue_read(slot, block),
        };
        if issued {
            let popped = self.client.free.pop();
            assert!(popped == Some(slot), "nothing is answered before its turn");
        }
        issued
    }

    fn issue_write(&mut self, slot: usize, block: u64) -> bool {
        let began = self.begin();
        let placed = self.nodes[0].machine.place_write(BLOCK_BYTES);
        self.end(0, Stage::Place, began);
        let Some(payload) = placed else { return false };
        self.fill(payload, block);
        let (request, offset) = (RequestId(slot as u64), block * BLOCK_BYTES as u64);
        self.handle(0, Stage::Write, Event::Write { request, offset, payload, fua: false });
        true
    }

    fn issue_trim(&mut self, slot: usize, block: u64) -> bool {
        let (request, offset, length) =
            (RequestId(slot as u64), block * BLOCK_BYTES as u64, BLOCK_BYTES as u64);
        self.client.expected[usize::try_from(block).expect("fits in memory")] = 0;
        self.handle(
            0,
            Stage::Zero,
            Event::Zero { request, offset, length, kind: ZeroKind::Trim, fua: false },
        );
        true
    }

    fn issue_read(&mut self, slot: usize, block: u64) -> bool {
        let began = self.begin();
        let taken = self.nodes[0].machine.take_buffer(BLOCK_BYTES);
        self.end(0, Stage::Place, began);
        let Some(buffer) = taken else { return false };
        let (request, offset) = (RequestId(slot as u64), block * BLOCK_BYTES as u64);
        let destination = Span { start: buffer.start(), len: BLOCK_BYTES };
        self.client.slots[slot] = Some((block, buffer));
        self.handle(0, Stage::Read, Event::Read { request, offset, destination });
        true
    }

    /// Puts a payload in the Primary's arena, as a receive would.
    fn fill(&mut self, span: Span, block: u64) {
        let began = self.begin();
        self.client.stamps += 1;
        self.client.payload[..8].copy_from_slice(&self.client.stamps.to_le_bytes());
        self.nodes[0].arena[span.range()].copy_from_slice(&self.client.payload);
        self.end(0, Stage::DriverCopies, began);
        self.client.expected[usize::try_from(block).expect("fits in memory")] = self.client.stamps;
    }

    /// A turn of one node, if there is anything to do: completions, messages, time, the end, commands.
    fn turn(&mut self, index: usize, has_requests: bool) -> bool {
        let mut busy = has_requests;
        while let Some(done) = self.nodes[index].done.pop_front() {
            busy = true;
            self.complete(index, done);
        }
        while self.receive(index) {
            busy = true;
        }
        let began = self.begin();
        let is_due = self.nodes[index].machine.next_timeout().is_some_and(|due| due.0 <= self.now);
        self.end(index, Stage::Timeout, began);
        if is_due {
            busy = true;
            self.handle(index, Stage::Timeout, Event::Timeout);
        }
        if busy {
            let rare = (self.tally.superblocks, self.tally.timed_messages);
            self.handle(index, Stage::TurnEnd, Event::TurnEnd);
            self.perform_all(index);
            self.count_allocations(rare != (self.tally.superblocks, self.tally.timed_messages));
        }
        busy
    }

    /// Puts down what was allocated since the last turn ended.
    fn count_allocations(&mut self, is_rare: bool) {
        let seen = counting::count_so_far();
        let new = seen - self.allocations_seen;
        self.allocations_seen = seen;
        if is_rare {
            self.tally.allocations_rare += new;
        } else {
            self.tally.allocations += new;
        }
    }

    fn complete(&mut self, index: usize, done: Done) {
        let result = Ok(());
        let (stage, event) = match done {
            Done::JournalWritten(token) => (Stage::JournalWritten, Event::JournalWritten { token, result }),
            Done::JournalSynced(token) => (Stage::JournalSynced, Event::JournalSynced { token, result }),
            Done::DiskRead(token) => (Stage::DiskRead, Event::DiskRead { token, result }),
            Done::DiskWritten(token) => (Stage::DiskWritten, Event::DiskWritten { token, result }),
            Done::DiskSynced(token) => (Stage::DiskSynced, Event::DiskSynced { token, result }),
            Done::SuperblockWritten(token) => {
                (Stage::SuperblockWritten, Event::SuperblockWritten { token, result })
            }
            Done::FrameSent(token) => (Stage::FrameSent, Event::FrameSent { link: LINK, token }),
        };
        self.handle(index, stage, event);
    }

    /// Gives the node the next message that is on its way to it, if there is one and it has room.
    fn receive(&mut self, index: usize) -> bool {
        let Some(sent) = self.nodes[1 - index].sent.pop_front() else { return false };
        match sent {
            Sent::Short { envelope, body } => {
                let body = &body[..envelope.body_bytes as usize];
                self.handle(index, Stage::Message, Event::Message { link: LINK, envelope, body });
            }
            Sent::Long { envelope, body } => {
                self.handle(index, Stage::Message, Event::Message { link: LINK, envelope, body: &body });
            }
            Sent::Frame { envelope, token, span } => return self.receive_frame(index, envelope, token, span),
        }
        true
    }

    fn receive_frame(&mut self, index: usize, envelope: Envelope, token: Token, span: Span) -> bool {
        let Some(buffer) = self.nodes[index].machine.place_frame(LINK, &envelope) else {
            self.nodes[1 - index].sent.push_front(Sent::Frame { envelope, token, span });
            return false;
        };
        let began = self.begin();
        let [first, second] = &mut self.nodes;
        let (from, to) = if index == 1 { (first, second) } else { (second, first) };
        to.arena[buffer.start()..buffer.start() + span.len].copy_from_slice(&from.arena[span.range()]);
        from.done.push_back(Done::FrameSent(token));
        self.end(index, Stage::DriverCopies, began);
        self.handle(index, Stage::Frame, Event::Frame { link: LINK, envelope, buffer });
        true
    }

    fn handle(&mut self, index: usize, stage: Stage, event: Event<'_>) {
        self.tally.events += 1;
        let began = self.begin();
        let node = &mut self.nodes[index];
        node.machine.handle(Instant(self.now), event, &mut node.arena);
        self.end(index, stage, began);
    }

    fn begin(&self) -> Option<Clock> {
        self.is_timed.then(Clock::now)
    }

    fn end(&mut self, index: usize, stage: Stage, began: Option<Clock>) {
        if let Some(began) = began {
            let spent = &mut self.nodes[index].spent[stage as usize];
            spent.calls += 1;
            spent.ns += u64::try_from(began.elapsed().as_nanos()).expect("a run takes seconds");
        }
    }

    fn perform_all(&mut self, index: usize) {
        let mut commands = std::mem::take(&mut self.commands);
        let began = self.begin();
        let machine = &mut self.nodes[index].machine;
        commands.extend(std::iter::from_fn(|| machine.poll_command()));
        self.end(index, Stage::Commands, began);
        for command in commands.drain(..) {
            self.perform(index, command);
        }
        self.commands = commands;
    }

    fn perform(&mut self, index: usize, command: Command) {
        let node = &mut self.nodes[index];
        match command {
            Command::WriteJournal { token, .. } => node.done.push_back(Done::JournalWritten(token)),
            Command::SyncJournal { token } => node.done.push_back(Done::JournalSynced(token)),
            Command::SyncDisk { token } => node.done.push_back(Done::DiskSynced(token)),
            Command::ReadDisk { token, offset, span } => {
                self.copy(index, offset, span, Done::DiskRead(token));
            }
            Command::WriteDisk { token, offset, span } => {
                self.copy(index, offset, span, Done::DiskWritten(token));
            }
            Command::ZeroDisk { token, offset, length, .. } => {
                let (at, length) = (usize::try_from(offset), usize::try_from(length));
                let (at, length) = (at.expect("fits in memory"), length.expect("fits in memory"));
                node.disk[at..at + length].fill(0);
                node.done.push_back(Done::DiskWritten(token));
            }
            Command::WriteSuperblock { token, .. } => {
                self.tally.superblocks += 1;
                node.done.push_back(Done::SuperblockWritten(token));
            }
            Command::SendFrame { token, envelope, span, .. } => {
                node.sent.push_back(Sent::Frame { envelope, token, span });
            }
            Command::SendBare { envelope, .. } => self.send(index, envelope, &Message::Ping),
            Command::SendAck { envelope, ack, .. } => self.send(index, envelope, &Message::Ack(ack)),
            Command::Send { envelope, message, .. } => {
                let is_timed = match envelope.kind {
                    MessageKind::Ping => true,
                    MessageKind::Mark => !envelope.sync,
                    _ => false,
                };
                self.tally.timed_messages += u64::from(is_timed);
                self.send(index, envelope, &message);
            }
            Command::Complete { request, result } => {
                assert!(result.is_ok(), "a sound request is carried out");
                self.answered(request);
            }
            Command::Serve { open } => node.is_serving = open,
            Command::Answer { result, .. } => assert!(result.is_ok(), "{result:?}"),
            Command::Report(_) => {}
            Command::ReadJournal { .. } | Command::CloseLink { .. } | Command::Stopped => {
                unreachable!("not in a pair that is level and at peace: {command:?}")
            }
        }
    }

    /// Moves bytes between a disk and the arena, at once.
    fn copy(&mut self, index: usize, offset: u64, span: Span, done: Done) {
        let began = self.begin();
        let node = &mut self.nodes[index];
        let at = usize::try_from(offset).expect("fits in memory");
        let on_disk = &mut node.disk[at..at + span.len];
        match done {
            Done::DiskRead(_) => node.arena[span.range()].copy_from_slice(on_disk),
            _ => on_disk.copy_from_slice(&node.arena[span.range()]),
        }
        node.done.push_back(done);
        self.end(index, Stage::DriverCopies, began);
    }

    fn send(&mut self, index: usize, mut envelope: Envelope, message: &Message) {
        let mut bytes = [0; MESSAGE_BODY_BYTES_MAX];
        let length = message.encode(&mut bytes);
        envelope.body_bytes = u32::try_from(length).expect("a message is short");
        assert!(envelope.kind != MessageKind::Frame);
        let body = &bytes[..length];
        let sent = if length <= SHORT_BYTES {
            let mut short = [0; SHORT_BYTES];
            short[..length].copy_from_slice(body);
            Sent::Short { envelope, body: short }
        } else {
            Sent::Long { envelope, body: body.to_vec() }
        };
        self.nodes[index].sent.push_back(sent);
    }

    /// The client has its answer; what it read is the newest write, since no write is under way beside reads.
    fn answered(&mut self, request: RequestId) {
        let slot = usize::try_from(request.0).expect("a slot");
        self.client.free.push(slot);
        self.tally.requests += 1;
        if let Some((block, buffer)) = self.client.slots[slot].take() {
            let node = &mut self.nodes[0];
            let found = stamp_of(&node.arena[buffer.start()..buffer.start() + BLOCK_BYTES]);
            let expected = self.client.expected[usize::try_from(block).expect("fits in memory")];
            assert!(found == expected, "a read returns the newest write: {found} is not {expected}");
            node.machine.give_buffer(buffer);
        }
    }
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

/// The stamp that a block begins with.
fn stamp_of(block: &[u8]) -> u64 {
    u64::from_le_bytes(*block.first_chunk().expect("a block has a stamp"))
}

/// What reading the clock twice costs, the middle of many.
fn clock_ns() -> u64 {
    let mut samples: Vec<u128> = (0..10_001).map(|_| Clock::now().elapsed().as_nanos()).collect();
    samples.sort_unstable();
    u64::try_from(samples[samples.len() / 2]).expect("reading a clock takes nanoseconds")
}
