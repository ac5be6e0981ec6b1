//! The world: nodes, the network between them, clients and time. One random thing after the other happens; what is
//! seen goes to the ledger and to the checkers.

mod clients;
mod links;
mod lives;
mod operators;
mod rest;
mod setup;
mod sight;
mod time;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use clients::{Request, Upload};
use replicator_core::disk::layout::Layout;
use replicator_core::disk::superblock::Superblock;
use replicator_core::event::FreezeAt;
use replicator_core::machine::Machine;
use replicator_core::status::Status;
use replicator_core::units::{AdminId, NodeId};
pub use setup::Setup;
use setup::{config, fresh};
pub use time::Clock;

use crate::bookmarks::Bookmarks;
use crate::checker::Checker;
use crate::disk::SECTOR;
use crate::leases::Leases;
use crate::ledger::Ledger;
use crate::network::{Route, Wire};
use crate::node::{Io, Node};
use crate::random::Random;

/// Nanoseconds of a millisecond.
pub const MS: u64 = 1_000_000;

/// Lines of a trace that are kept.
const TRACE_LINES: usize = 100_000;

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
    /// Time does not pass beyond this: somebody outside has something to do then.
    pub alarm: u64,
    pub ledger: Ledger,
    pub sectors: usize,
    pub routes: Vec<Vec<Route>>,
    pub clocks: Vec<Clock>,
    pub paused_until: Vec<u64>,
    /// Whether frames arrive in pieces and the dead say nothing.
    pub rough: bool,
    pub fates: Fates,
    pub moments: Vec<(Moment, usize)>,
    /// Steps since time passed last.
    steps: u64,
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
    /// Where operators asked apply to stand still.
    freezes: BTreeMap<AdminId, FreezeAt>,
    next_write: u64,
    /// What disks held when bookmarks were made.
    bookmarks: Bookmarks,
    /// Blocks that were made rotten, or could not be read.
    rotten: BTreeSet<(usize, u64)>,
    dial_after: Vec<Vec<u64>>,
}

fn node_id(node: usize) -> NodeId {
    NodeId(u8::try_from(node).unwrap())
}

impl World {
    /// A world with all nodes started and no one Primary.
    pub fn new(seed: u64, setup: &Setup) -> Self {
        let replicas: Vec<(Superblock, u64)> =
            (0..setup.nodes).map(|n| (fresh(setup, n), setup.delay_of(n))).collect();
        let nodes: Vec<Node> =
            replicas.iter().enumerate().map(|(n, (sb, _))| Node::new(config(setup, n), sb)).collect();
        let volume_bytes = (setup.sectors * SECTOR) as u64;
        let layout = Layout::new(volume_bytes, setup.journal_bytes).expect("the sizes go together");
        let zeros = vec![0; setup.disk_sectors()];
        let mut world = Self {
            setup: setup.clone(),
            random: Random::new(seed),
            now: MS,
            alarm: u64::MAX,
            ledger: Ledger::new(setup.disk_sectors(), layout.ring_bytes, setup.managed, &replicas),
            sectors: setup.sectors,
            routes: vec![vec![Route::default(); setup.nodes]; setup.nodes],
            clocks: vec![Clock::default(); setup.nodes],
            paused_until: vec![0; setup.nodes],
            rough: false,
            fates: Box::new(|_, _, _| Fate::Done),
            moments: Vec::new(),
            steps: 0,
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
            freezes: BTreeMap::new(),
            next_write: 0,
            bookmarks: Bookmarks::new(setup.nodes),
            rotten: BTreeSet::new(),
            dial_after: vec![vec![0; setup.nodes]; setup.nodes],
            nodes,
        };
        for node in 0..setup.nodes {
            world.set_wall(node, 0);
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

    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].machine.is_some()
    }

    pub fn is_paused(&self, node: usize) -> bool {
        self.paused_until[node] > self.now
    }

    pub fn status(&self, node: usize) -> Option<Status> {
        self.nodes[node].machine.as_ref().map(Machine::status)
    }

    pub fn serving(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|node| self.nodes[*node].serving)
    }
}
