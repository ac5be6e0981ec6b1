//! Two replicas, Primary and Secondary, with disks and links that are memory and take no time: what is left is the
//! cost of the core's decisions. It is a driver like the reactor, and keeps its duties.
//!
//! ```text
//!   client --requests--> [ Primary ] --frames--> [ Secondary ]     one turn of each, by turns, while either
//!          <--answers---             <---acks---                   has something to do; the clock is virtual
//! ```
//!
//! Journals keep nothing (they are only written in steady state); disks keep their bytes, and are compared.

mod client;
mod node;
mod tally;
mod turn;

use std::time::Instant as Clock;

use replicator_core::command::Command;
use replicator_core::event::{AdminAction, Event};
use replicator_core::status::Counters;
use replicator_core::units::{AdminId, Instant, LinkId, NodeId, ReignId};

use crate::counting;
use client::{Client, stamp_of};
use node::Node;

pub use client::Job;
pub use tally::{STAGES, Spent, Stage, Tally};

/// Bytes of a request.
pub const BLOCK_BYTES: usize = 4096;
/// Blocks of the volume.
pub const BLOCKS: u64 = 16 << 10;
/// Requests at one time, at most.
const DEPTH_MAX: usize = 64;
/// What a request moves the virtual clock by: about what one costs a whole cluster on two cores, so that syncs
/// and checkpoints, which are timed, weigh as much as they do there.
const REQUEST_NS: u64 = 15_000;
const LINK: LinkId = LinkId(1);

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

impl Pair {
    /// Both connected, the first one promoted and serving.
    ///
    /// # Panics
    /// If it is not serving soon.
    #[must_use]
    pub fn new() -> Self {
        let now = 1_000_000;
        let client = Client::new();
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
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

/// What reading the clock twice costs, the middle of many.
fn clock_ns() -> u64 {
    let mut samples: Vec<u128> = (0..10_001).map(|_| Clock::now().elapsed().as_nanos()).collect();
    samples.sort_unstable();
    u64::try_from(samples[samples.len() / 2]).expect("reading a clock takes nanoseconds")
}
