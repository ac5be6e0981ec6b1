//! One whole run: a safety phase, in which everything may happen and nothing promised may be lost; then faults stop,
//! a sensible operator takes over, and within a bound of virtual time everything must be well again, but for what
//! the design refuses, and only where the ledger knows the reason.

mod devices;
mod faults;
mod liveness;
mod safety;
mod stack;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

pub use devices::Devices;
use replicator_core::event::AdminAction;
use replicator_core::units::{AdminId, NodeId};

use crate::disk::SimDisk;
use crate::manager::Manager;
use crate::plan::{Fault, Plan};
use crate::scrub;
use crate::whole::Whole;
use crate::world::World;

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub acknowledged: u64,
    pub reads: u64,
    pub flushes: u64,
    pub ios: u64,
    pub virtual_ns: u64,
    /// Faults injected.
    pub faults: BTreeMap<Fault, u64>,
    /// Rare things that happened.
    pub marks: BTreeMap<&'static str, u64>,
}

/// A run under way.
pub struct Run {
    pub world: World,
    plan: Plan,
    devices: Rc<RefCell<Devices>>,
    /// What operators asked for: one thing at a time from each node.
    asks: Vec<(usize, AdminId, AdminAction)>,
    /// Replicas that do not start again: damaged, and known to be.
    lost: Vec<bool>,
    /// A node whose journal cannot be read somewhere.
    spoiled: Vec<bool>,
    image: Option<(usize, SimDisk, SimDisk)>,
    tries: usize,
    /// Faults that struck by themselves or at a moment.
    strikes: u64,
    /// How often the fork with each node was resolved.
    resolved: Vec<usize>,
    busy_until: u64,
    /// Whether bits rot when all is well: not where a fault may strike at any I/O, for nobody starts a node again then.
    pub rots: bool,
    /// Who decides, if not the operators.
    manager: Option<Manager>,
    whole: Option<Whole>,
}

fn node_id(node: usize) -> NodeId {
    NodeId(u8::try_from(node).unwrap())
}

impl Run {
    pub fn new(plan: &Plan) -> Self {
        let nodes = plan.setup.nodes;
        let devices = Rc::new(RefCell::new(Devices {
            active: true,
            chances: plan.chances.clone(),
            counts: BTreeMap::new(),
            failed: vec![false; nodes],
            unsynced: vec![false; nodes],
        }));
        let mut world = World::new(plan.seed, &plan.setup);
        world.rough = true;
        let members = world.status(0).expect("it has started").record.in_sync;
        for node in 0..nodes {
            world.set_clock(node, plan.clocks[node]);
            world.set_wall(node, plan.walls_ahead_ms[node]);
        }
        let shared = Rc::clone(&devices);
        world.fates = Box::new(move |io, node, random| shared.borrow_mut().fate(io, node, random));
        let whole = plan.whole.as_ref().map(|draw| Whole::new(draw, &mut world));
        let has_manager = plan.setup.managed && whole.is_none();
        Self {
            world,
            plan: plan.clone(),
            devices,
            asks: Vec::new(),
            lost: vec![false; nodes],
            spoiled: vec![false; nodes],
            image: None,
            tries: 0,
            strikes: 0,
            resolved: vec![0; nodes],
            busy_until: 0,
            rots: whole.is_none(),
            manager: has_manager.then(|| Manager::new(nodes, members)),
            whole,
        }
    }

    /// The whole run.
    pub fn play(&mut self) {
        if self.whole.is_some() {
            self.whole_safety();
        } else {
            (0..self.plan.steps).for_each(|_| self.safety_step());
        }
        self.calm();
        self.recover();
        scrub::check(&mut self.world);
        if self.rots {
            scrub::rot_and_scrub(&mut self.world);
        }
        if self.plan.ends_dark {
            (0..self.world.nodes.len())
                .filter(|n| !self.lost[*n])
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|node| self.world.lose_power(node));
            self.asks.clear();
            self.calm();
            self.recover();
        }
    }

    /// How often a fault struck so far.
    pub fn strikes(&self) -> u64 {
        self.strikes
    }

    /// Where failures of devices are noted, so that their consequences are lawful.
    pub fn failures(&self) -> Rc<RefCell<Devices>> {
        Rc::clone(&self.devices)
    }

    pub fn outcome(&self) -> Outcome {
        Outcome {
            acknowledged: self.world.acknowledged,
            reads: self.world.reads,
            flushes: self.world.flushes,
            ios: self.world.ios,
            virtual_ns: self.world.now,
            faults: self.devices.borrow().counts.clone(),
            marks: self.world.marks.clone(),
        }
    }
}
