//! A configuration manager for the world: one that never fails, beside nodes that do. It keeps the record, asks for
//! promises before it decides who is Primary, takes in what a Primary wishes, and grants leases by clocks that drift. It
//! reaches a node or does not, whatever the nodes' own links do, and what it sends may arrive late.

use replicator_core::disk::superblock::DiskState;
use replicator_core::event::{AdminAction, Reign};
use replicator_core::status::{Role, Status};
use replicator_core::units::{AdminId, Epoch, Instant, NodeId, NodeSet, ReignId};

use crate::world::{MS, World};

/// How long a lease lasts on its holder's clock.
pub const LEASE_MS: u64 = 1000;
/// How long the manager waits until one has surely ended: clocks drift by a fiftieth at most.
const LEASE_OVER_MS: u64 = LEASE_MS * 1030 / 1000;
/// How often it looks at the nodes, renews, and tells again what was not heard.
const TURN_MS: u64 = 200;
/// How long it waits for promises, and for a node that does not answer before another follows.
const PATIENCE_MS: u64 = 600;
/// How long a takeover waits for a member that cannot have lost anything.
const GRACE_MS: u64 = 3000;

/// What is agreed on.
#[derive(Clone, Copy, Debug)]
struct Record {
    epoch: Epoch,
    version: u64,
    primary: usize,
    reign: ReignId,
    in_sync: NodeSet,
}

/// Promises that were asked for.
#[derive(Debug)]
struct Sealing {
    epoch: Epoch,
    asked: Vec<(usize, AdminId)>,
    sealed: Vec<usize>,
    until: u64,
}

/// The manager.
#[derive(Debug)]
pub struct Manager {
    record: Record,
    sealing: Option<Sealing>,
    /// Since when the Primary is not seen to be well.
    amiss_since: Option<u64>,
    /// When each node was granted its newest lease.
    granted_at: Vec<u64>,
    /// Nodes that are not reached before then.
    deaf_until: Vec<u64>,
    /// What is on its way: when it arrives, where, and what it is.
    post: Vec<(u64, usize, AdminAction)>,
    lost_since: Vec<Option<u64>>,
    turn_at: u64,
    /// Whether nodes become deaf and post is late.
    pub rough: bool,
}

fn node_id(node: usize) -> NodeId {
    NodeId(u8::try_from(node).expect("few"))
}

impl Manager {
    /// A manager of nodes that have never had a Primary, all of `members` equal.
    pub fn new(nodes: usize, members: NodeSet) -> Self {
        let record = Record { epoch: Epoch(0), version: 1, primary: 0, reign: ReignId(0), in_sync: members };
        Self {
            record,
            sealing: None,
            amiss_since: None,
            granted_at: vec![0; nodes],
            deaf_until: vec![0; nodes],
            post: Vec::new(),
            lost_since: vec![None; nodes],
            turn_at: 0,
            rough: true,
        }
    }

    /// Does what is due.
    pub fn turn(&mut self, world: &mut World) {
        self.deliver(world);
        self.hear_promises(world);
        if world.now < self.turn_at {
            return;
        }
        self.turn_at = world.now + TURN_MS * MS;
        if self.rough && world.random.percent(3) {
            let node = world.random.index(world.nodes.len());
            let ms = if world.random.percent(50) { 300 } else { 5000 };
            self.deaf_until[node] = world.now + world.random.below(ms) * MS;
            world.note(|| format!("the manager does not reach n{node}"));
        }
        if self.sealing.is_none() {
            self.watch(world);
        }
    }

    fn reaches(&self, world: &World, node: usize) -> bool {
        world.is_up(node) && !world.is_paused(node) && self.deaf_until[node] <= world.now
    }

    fn see(&self, world: &World, node: usize) -> Option<Status> {
        if self.reaches(world, node) { world.status(node) } else { None }
    }

    fn send(&mut self, world: &mut World, node: usize, action: AdminAction) {
        let late = if self.rough && world.random.percent(10) { 1500 } else { 20 };
        self.post.push((world.now + world.random.below(late) * MS, node, action));
    }

    fn deliver(&mut self, world: &mut World) {
        let (now, mut due) = (world.now, Vec::new());
        self.post.retain(|letter| {
            if letter.0 <= now {
                due.push((letter.1, letter.2));
            }
            letter.0 > now
        });
        for (node, action) in due {
            if self.reaches(world, node) {
                world.ask(node, action);
            }
        }
    }

    /// Looks after the reign, or begins to end it.
    fn watch(&mut self, world: &mut World) {
        let record = self.record;
        let count = world.nodes.len();
        let seen: Vec<Option<Status>> = (0..count).map(|node| self.see(world, node)).collect();
        let beyond = seen.iter().flatten().any(|status| status.promised > record.epoch);
        let is_well = seen[record.primary].as_ref().is_some_and(|status| {
            let begins = status.record.epoch < record.epoch;
            begins || status.role == Role::Primary && status.record.epoch == record.epoch
        });
        let moves = self.rough && world.random.percent(1);
        if record.epoch > Epoch(0) && is_well && !beyond && !moves {
            self.amiss_since = None;
            return self.tend(world, &seen);
        }
        let since = *self.amiss_since.get_or_insert(world.now);
        if moves || beyond || world.now >= since + PATIENCE_MS * MS {
            self.ask_promises(world, &seen);
        }
    }

    /// What a reign needs: to be begun, to know its record, to have its lease. Whoever reigns in an older one hears of it.
    fn tend(&mut self, world: &mut World, seen: &[Option<Status>]) {
        let Record { epoch, version, primary, reign, in_sync } = self.record;
        let told = AdminAction::Record { epoch, version, in_sync };
        for (node, status) in seen.iter().enumerate() {
            let Some(status) = status else { continue };
            if node != primary && status.role == Role::Primary && status.record.epoch < epoch {
                self.send(world, node, told);
            }
        }
        let status = seen[primary].as_ref().expect("it is well");
        if status.record.epoch < epoch {
            let reign = Reign { epoch, version, reign, in_sync, generation: 1, lease_end: None };
            return self.send(world, primary, AdminAction::OpenEpoch(reign));
        }
        if status.record.version < version {
            self.send(world, primary, told);
        } else {
            self.grant_wishes(world, status);
        }
        let others = (0..seen.len()).filter(|node| *node != primary);
        let over = others.map(|node| self.over_at(world, node)).max().unwrap_or(0);
        if world.now >= over {
            // The holder counts from when it asked, which was before this.
            let asked = world.instant(primary).0.saturating_sub(world.random.below(50) * MS);
            let end = Instant(asked).plus_ms(LEASE_MS);
            self.granted_at[primary] = world.now;
            self.send(world, primary, AdminAction::Lease { epoch, end });
        }
    }

    /// From when a node surely answers nobody: it was sealed, its process is gone, or its lease has ended.
    fn over_at(&self, world: &World, node: usize) -> u64 {
        let is_secondary = self.see(world, node).is_some_and(|status| status.role == Role::Secondary);
        if self.granted_at[node] == 0 || !world.is_up(node) || is_secondary {
            return 0;
        }
        self.granted_at[node] + LEASE_OVER_MS * MS
    }

    /// Changes of the set that the Primary wishes for, on the record that it knows.
    fn grant_wishes(&mut self, world: &mut World, status: &Status) {
        let wish = status.wish;
        let (add, remove) = wish.map_or((NodeSet(0), NodeSet(0)), |wish| (wish.add, wish.remove));
        let mut lost = NodeSet(0);
        for node in 0..world.nodes.len() {
            if !remove.contains(node_id(node)) {
                self.lost_since[node] = None;
            } else if *self.lost_since[node].get_or_insert(world.now) + 1000 * MS <= world.now {
                lost = lost.with(node_id(node));
            }
        }
        let in_sync = NodeSet((self.record.in_sync.0 | add.0) & !lost.0);
        if in_sync != self.record.in_sync {
            (self.record.in_sync, self.record.version) = (in_sync, self.record.version + 1);
            let record = self.record;
            world.note(|| format!("agreed: {record:?}"));
            world.mark("sets agreed on");
        }
    }

    fn ask_promises(&mut self, world: &mut World, seen: &[Option<Status>]) {
        let known = seen.iter().flatten().map(|status| status.promised.max(status.record.epoch));
        let epoch = known.max().unwrap_or_default().max(self.record.epoch).next();
        let members = self.record.in_sync;
        let mut asked = Vec::new();
        for (node, status) in seen.iter().enumerate() {
            if status.is_some() && members.contains(node_id(node)) {
                asked.push((node, world.ask(node, AdminAction::Seal { epoch })));
            }
        }
        let until = world.now + PATIENCE_MS * MS;
        self.sealing = Some(Sealing { epoch, asked, sealed: Vec::new(), until });
    }

    fn hear_promises(&mut self, world: &mut World) {
        let Some(mut sealing) = self.sealing.take() else { return };
        for (node, id) in std::mem::take(&mut sealing.asked) {
            if !self.reaches(world, node) {
                continue;
            }
            match world.answer(node, id) {
                Some(Ok(_)) => sealing.sealed.push(node),
                Some(Err(_)) => {}
                None => sealing.asked.push((node, id)),
            }
        }
        if sealing.asked.is_empty() || world.now >= sealing.until {
            self.decide(world, &sealing);
        } else {
            self.sealing = Some(sealing);
        }
    }

    /// Another reign, if one of the sealed can have it.
    fn decide(&mut self, world: &mut World, sealing: &Sealing) {
        let sealed = sealing.sealed.iter().filter_map(|node| Some((*node, self.see(world, *node)?)));
        let sealed: Vec<(usize, Status)> = sealed
            .filter(|(node, status)| {
                let is_usable = status.disk_state == DiskState::UpToDate && !status.suspect;
                // It may have ended, and begun again, since.
                let is_sealed = status.promised == sealing.epoch && status.role == Role::Secondary;
                is_usable && is_sealed && status.record.in_sync.contains(node_id(*node))
            })
            .collect();
        let best = sealed.iter().max_by_key(|(_, status)| (status.proven, status.head));
        let Some((primary, status)) = best else { return };
        let waited = world.now.saturating_sub(self.amiss_since.unwrap_or(world.now));
        if !status.proven && waited < GRACE_MS * MS && sealed.len() < self.record.in_sync.len() as usize {
            return;
        }
        let in_sync = sealed.iter().fold(NodeSet(0), |set, (node, _)| set.with(node_id(*node)));
        let (epoch, reign) = (sealing.epoch, world.reign_id());
        self.record = Record { epoch, version: 1, primary: *primary, reign, in_sync };
        self.lost_since.fill(None);
        let record = self.record;
        world.note(|| format!("agreed: {record:?}"));
        world.mark("takeovers agreed on");
    }
}
