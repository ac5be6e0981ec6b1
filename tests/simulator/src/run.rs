//! One whole run: a safety phase, in which everything may happen and nothing promised may be lost; then faults stop,
//! a sensible operator takes over, and within a bound of virtual time everything must be well again, but for what
//! the design refuses, and only where the ledger knows the reason.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use replicator_core::command::AdminError;
use replicator_core::config::{OnPeerLoss, Protocol};
use replicator_core::disk::layout::SUPERBLOCK_AT;
use replicator_core::disk::superblock::{DiskState, Record};
use replicator_core::event::AdminAction;
use replicator_core::limits::FRAME_BYTES_MAX;
use replicator_core::recovery::RecoverError;
use replicator_core::status::{Connection, Role};
use replicator_core::units::{AdminId, NodeId};

use crate::disk::{SECTOR, SimDisk};
use crate::manager::Manager;
use crate::node::{Io, StartError};
use crate::plan::{Fault, Plan};
use crate::random::Random;
use crate::rule::broken;
use crate::scrub;
use crate::world::{Fate, MS, Moment, World};

/// How long everything may take to be well again, in virtual time.
const PATIENCE_MS: u64 = 180_000;

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

/// Faults of devices, shared with the world.
pub struct Devices {
    active: bool,
    chances: BTreeMap<Fault, u64>,
    counts: BTreeMap<Fault, u64>,
    /// A node's device reported an error that fails the copy.
    failed: Vec<bool>,
    /// A journal's sync failed: what it covered may be gone, and the kernel has forgotten it.
    unsynced: Vec<bool>,
}

impl Devices {
    /// This I/O of `node` fails.
    pub fn note(&mut self, io: &Io, node: usize) {
        self.failed[node] |= !matches!(io, Io::ReadDisk { .. } | Io::Branch { .. } | Io::Sent { .. });
        self.unsynced[node] |= matches!(io, Io::SyncJournal { .. });
    }

    fn fate(&mut self, io: &Io, node: usize, random: &mut Random) -> Fate {
        if !self.active {
            return Fate::Done;
        }
        let (fault, errno) =
            match io {
                Io::WriteJournal { .. } | Io::WriteDisk { .. } | Io::ZeroDisk { .. } => {
                    if random.percent(70) { (Fault::WriteError, 5) } else { (Fault::NoSpace, 28) }
                }
                Io::SyncJournal { .. } | Io::SyncDisk { .. } => (Fault::SyncError, 5),
                Io::ReadJournal { .. } | Io::ReadDisk { .. } => (Fault::ReadError, 5),
                Io::Superblock { .. } => (Fault::SuperblockError, 5),
                Io::Branch { .. } => (Fault::NoSpace, 28),
                Io::Sent { .. } => return Fate::Done,
            };
        if self.strikes(fault, random) {
            self.note(io, node);
            return Fate::Fails(errno);
        }
        if self.strikes(Fault::Hang, random) {
            return Fate::Hangs(random.below(8000) * MS);
        }
        Fate::Done
    }

    fn strikes(&mut self, fault: Fault, random: &mut Random) -> bool {
        let Some(chance) = self.chances.get(&fault) else { return false };
        let strikes = random.below(100_000) < *chance;
        if strikes {
            *self.counts.entry(fault).or_default() += 1;
        }
        strikes
    }
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
    /// How often the fork with each node was resolved.
    resolved: Vec<usize>,
    busy_until: u64,
    /// Who decides, if not the operators.
    manager: Option<Manager>,
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
        }
        let shared = Rc::clone(&devices);
        world.fates = Box::new(move |io, node, random| shared.borrow_mut().fate(io, node, random));
        Self {
            world,
            plan: plan.clone(),
            devices,
            asks: Vec::new(),
            lost: vec![false; nodes],
            spoiled: vec![false; nodes],
            image: None,
            tries: 0,
            resolved: vec![0; nodes],
            busy_until: 0,
            manager: plan.setup.managed.then(|| Manager::new(nodes, members)),
        }
    }

    /// The whole run.
    pub fn play(&mut self) {
        for _ in 0..self.plan.steps {
            self.safety_step();
        }
        self.calm();
        self.recover();
        scrub::check(&mut self.world);
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

    // --- the safety phase ---------------------------------------------------------------------------------

    fn safety_step(&mut self) {
        let world = &mut self.world;
        if world.serving().is_none() && world.random.percent(8) && self.manager.is_none() {
            self.want_primary();
        }
        self.manage();
        if self.world.random.percent(self.plan.client_percent) {
            self.world.client();
        }
        self.chance_strikes();
        if let Some((node, action)) = scrub::wish(&mut self.world, self.plan.verify_chance) {
            self.ask(node, action);
        }
        self.freeze_or_resolve();
        self.bring_back();
        if self.world.random.percent(3) || !self.world.step() {
            self.world.pass_time();
        }
        self.hear_answers();
        self.moments_strike();
    }

    fn manage(&mut self) {
        if let Some(manager) = &mut self.manager {
            manager.turn(&mut self.world);
        }
    }

    /// In some runs secondaries are frozen now and then, and forks are resolved while faults go on.
    fn freeze_or_resolve(&mut self) {
        if self.plan.seed % 4 != 2 {
            return;
        }
        let node = self.world.random.index(self.world.nodes.len());
        let Some(status) = self.world.status(node) else { return };
        let fork = status.peers.iter().find(|peer| peer.fork.is_some()).map(|peer| peer.node);
        match fork {
            Some(other) if self.world.random.percent(3) => {
                let discard = if self.world.random.percent(50) { node_id(node) } else { other };
                self.ask(node, AdminAction::Resolve { discard });
            }
            _ if self.world.random.below(1000) < 4 => {
                let action =
                    if status.freeze.is_some() { AdminAction::Thaw } else { AdminAction::FreezeApply };
                self.ask(node, action);
            }
            _ => {}
        }
    }

    /// Each kind of fault may happen by itself.
    fn chance_strikes(&mut self) {
        let chances: Vec<(Fault, u64)> =
            self.plan.chances.iter().map(|(fault, chance)| (*fault, *chance)).collect();
        for (fault, chance) in chances {
            if self.world.random.below(100_000) < chance {
                let node = self.world.random.index(self.world.nodes.len());
                self.strike(fault, node);
            }
        }
    }

    /// Something happened at which a fault hurts most.
    fn moments_strike(&mut self) {
        let kinds = [
            Fault::Kill,
            Fault::Power,
            Fault::Blackout,
            Fault::Pause,
            Fault::Cut,
            Fault::OneWay,
            Fault::Silent,
            Fault::Reset,
        ];
        for (moment, node) in std::mem::take(&mut self.world.moments) {
            let common = matches!(
                moment,
                Moment::Acked
                    | Moment::JournalSynced
                    | Moment::Answered
                    | Moment::SuperblockCopy
                    | Moment::Applying
            );
            let bias = if common { self.plan.bias_permille } else { 10 * self.plan.bias_permille };
            if self.world.random.below(10_000) >= bias {
                continue;
            }
            let enabled: Vec<Fault> = kinds.into_iter().filter(|kind| self.plan.chance(*kind) > 0).collect();
            if !enabled.is_empty() {
                let fault = enabled[self.world.random.index(enabled.len())];
                let other = self.world.random.index(self.world.nodes.len());
                let target = if self.world.random.percent(60) { node } else { other };
                self.world.note(|| format!("at a moment of {moment:?}:"));
                self.strike(fault, target);
            }
        }
    }

    fn count(&mut self, fault: Fault) {
        *self.devices.borrow_mut().counts.entry(fault).or_default() += 1;
    }

    fn strike(&mut self, fault: Fault, node: usize) {
        let count = self.world.nodes.len();
        let other = (node + 1 + self.world.random.index(count - 1)) % count;
        let up = self.world.is_up(node);
        match fault {
            Fault::Kill if up => self.world.kill(node),
            Fault::Power => self.world.lose_power(node),
            Fault::Blackout => (0..count).for_each(|node| self.world.lose_power(node)),
            Fault::Pause if up => {
                let most = if self.world.random.percent(50) { 500 } else { 20_000 };
                let ms = self.world.random.below(most);
                self.world.note(|| format!("n{node} is paused for {ms} ms"));
                self.world.paused_until[node] = self.world.now + ms * MS;
            }
            Fault::Cut => {
                let cut = !self.world.is_cut(node, other);
                self.world.note(|| format!("the link of n{node} and n{other} is cut: {cut}"));
                self.world.set_cut(node, other, cut);
            }
            Fault::OneWay | Fault::Silent => {
                self.world.note(|| format!("{fault:?} from n{node} to n{other}"));
                self.world.routes[node][other].silent = true;
                self.world.routes[other][node].silent |= fault == Fault::Silent;
            }
            Fault::Reset => {
                self.world.note(|| format!("the connection of n{node} and n{other} is reset"));
                self.world.reset(node, other);
            }
            Fault::Delay => {
                let most = if self.world.random.percent(80) { 30 } else { 2000 };
                let until = self.world.now + self.world.random.below(most) * MS;
                self.world.routes[node][other].delayed_until = until;
            }
            Fault::Spoil | Fault::SuperblockRot | Fault::RingRot | Fault::LyingDisk | Fault::OldImage => {
                if !self.tamper(fault, node) {
                    return;
                }
            }
            Fault::Promote | Fault::Force if up => self.promote(node, fault == Fault::Force),
            Fault::Demote | Fault::Shrink | Fault::Stop | Fault::Reconfigure => self.operate(fault, node),
            _ => return,
        }
        self.count(fault);
    }

    /// Does something to the devices of a node; returns whether it did.
    fn tamper(&mut self, fault: Fault, node: usize) -> bool {
        match fault {
            Fault::Spoil => {
                if self.world.random.percent(50) {
                    let at = self.world.random.below((self.world.sectors * 512) as u64);
                    self.world.nodes[node].disk.spoil(at);
                } else {
                    let at = self.ring_place(node);
                    self.world.nodes[node].journal.spoil(at);
                    self.spoiled[node] = true;
                }
            }
            Fault::SuperblockRot if !self.world.is_up(node) => {
                // One copy at a time: a bad one is repaired by the next start.
                if self.world.nodes[node].read_superblock().is_ok_and(|(_, repaired)| !repaired) {
                    let at = SUPERBLOCK_AT[self.world.random.index(2)] + self.world.random.below(4096);
                    self.world.nodes[node].journal.rot(at);
                    self.world.ledger.distrust(node);
                }
            }
            Fault::RingRot if !self.world.is_up(node) => {
                let at = self.ring_place(node);
                self.world.nodes[node].journal.rot(at);
                self.world.ledger.distrust(node);
            }
            Fault::LyingDisk => {
                self.world.nodes[node].journal.lies = true;
                self.world.ledger.distrust(node);
            }
            Fault::OldImage => match self.image.take() {
                Some((of, disk, journal)) if !self.world.is_up(of) && !self.lost[of] => {
                    self.world.note(|| format!("an old image is put back on n{of}"));
                    (self.world.nodes[of].disk, self.world.nodes[of].journal) = (disk, journal);
                    self.world.ledger.distrust(of);
                }
                Some(image) => {
                    self.image = Some(image);
                    return false;
                }
                None if !self.world.is_up(node) => {
                    let of = &self.world.nodes[node];
                    self.image = Some((node, of.disk.clone(), of.journal.clone()));
                    return false;
                }
                None => return false,
            },
            _ => return false,
        }
        self.world.note(|| format!("{fault:?} at n{node}"));
        true
    }

    /// Somewhere in the part of the ring that has been written lately.
    fn ring_place(&mut self, node: usize) -> u64 {
        let ring_at = (1 << 20) + 6 * 4096;
        let ring_bytes = self.world.setup.journal_bytes - ring_at;
        let superblock = *self.world.ledger.saved(node);
        let from = superblock.applied_through.ring_offset.0;
        ring_at + (from + self.world.random.below(256 << 10)) % ring_bytes
    }

    fn operate(&mut self, fault: Fault, node: usize) {
        let Some(primary) = self.world.serving() else { return };
        match fault {
            Fault::Demote => self.ask(primary, AdminAction::Demote),
            Fault::Shrink => self.ask(primary, AdminAction::Shrink { node: node_id(node) }),
            Fault::Stop => self.ask(node, AdminAction::Stop),
            Fault::Reconfigure if !self.world.is_up(node) => {
                let on_peer_loss =
                    if self.world.random.percent(50) { OnPeerLoss::Freeze } else { OnPeerLoss::Continue };
                self.world.nodes[node].config.on_peer_loss = on_peer_loss;
                for peer in &mut self.world.nodes[node].config.peers {
                    peer.protocol = [Protocol::A, Protocol::B, Protocol::C][self.world.random.index(3)];
                }
            }
            _ => {}
        }
    }

    fn ask(&mut self, node: usize, action: AdminAction) {
        let waits = self.asks.iter().any(|(other, _, _)| *other == node);
        if waits || !self.world.is_up(node) || self.world.is_paused(node) {
            return;
        }
        let id = self.world.ask(node, action);
        self.asks.push((node, id, action));
    }

    fn promote(&mut self, node: usize, force: bool) {
        let reign = self.world.reign_id();
        self.ask(node, AdminAction::Promote { force, reign });
    }

    fn hear_answers(&mut self) {
        for (node, id, action) in std::mem::take(&mut self.asks) {
            if !self.world.is_up(node) {
                continue;
            }
            let Some(answer) = self.world.answer(node, id) else {
                self.asks.push((node, id, action));
                continue;
            };
            if let (AdminAction::Promote { force: false, .. }, Err(AdminError::NeedsForce(_))) =
                (action, &answer)
            {
                // A sensible operator forces a member only.
                if self.newest_record().in_sync.contains(node_id(node)) && self.world.random.percent(60) {
                    self.promote(node, true);
                }
            }
        }
        for node in 0..self.world.nodes.len() {
            if std::mem::take(&mut self.world.nodes[node].stopped) {
                self.world.kill(node);
            }
        }
    }

    /// The newest record that anyone, alive or dead, remembers.
    fn newest_record(&self) -> Record {
        let records = (0..self.world.nodes.len()).map(|n| self.world.ledger.saved(n).record);
        records.max_by_key(Record::order).expect("nodes")
    }

    fn want_primary(&mut self) {
        let up: Vec<usize> = (0..self.world.nodes.len()).filter(|n| self.world.is_up(*n)).collect();
        if !up.is_empty() {
            let node = up[self.world.random.index(up.len())];
            self.promote(node, false);
        }
    }

    /// The dead return and links heal, sooner or later.
    fn bring_back(&mut self) {
        let count = self.world.nodes.len();
        for node in 0..count {
            if !self.world.is_up(node) && self.world.random.below(1000) < 12 {
                self.start(node);
            }
            for other in 0..count {
                if self.world.routes[node][other].silent && self.world.random.below(1000) < 4 {
                    self.world.routes[node][other].silent = false;
                }
                if node < other && self.world.is_cut(node, other) && self.world.random.below(1000) < 4 {
                    self.world.set_cut(node, other, false);
                }
            }
        }
    }

    fn start(&mut self, node: usize) {
        if self.lost[node] {
            return;
        }
        // A journal whose sync failed may have lost what its kernel still shows, and the copy was to say Failed.
        let forgot = self.world.nodes[node]
            .read_superblock()
            .is_ok_and(|(superblock, _)| superblock.disk_state != DiskState::Failed);
        if forgot && std::mem::take(&mut self.devices.borrow_mut().unsynced[node]) {
            self.world.mark("a failed copy forgot");
            self.world.ledger.distrust(node);
        }
        // Nobody remembers what the process before was asked.
        self.asks.retain(|(other, _, _)| *other != node);
        match self.world.try_start(node) {
            Ok(()) => return,
            Err(StartError::Recover(RecoverError::Rot { .. }))
                if self.world.ledger.is_void(node) || self.devices.borrow().failed[node] =>
            {
                self.world.mark("rot found at a start");
            }
            Err(StartError::Recover(RecoverError::Device { .. })) if self.spoiled[node] => {
                self.world.mark("unreadable journal at a start");
            }
            Err(StartError::Superblock(_)) if self.world.ledger.is_void(node) => {
                self.world.mark("both superblock copies bad");
            }
            Err(error) => broken("start-refused", format!("node {node} does not start: {error}")),
        }
        self.lost[node] = true;
    }

    // --- the liveness phase -------------------------------------------------------------------------------

    /// Faults stop.
    fn calm(&mut self) {
        self.devices.borrow_mut().active = false;
        self.manager.iter_mut().for_each(|manager| manager.rough = false);
        self.world.moments.clear();
        let count = self.world.nodes.len();
        for a in 0..count {
            self.world.paused_until[a] = 0;
            self.world.nodes[a].journal.lies = false;
            for b in 0..count {
                self.world.set_cut(a, b, false);
                self.world.routes[a][b].silent = false;
            }
        }
        self.world.drop_uploads();
        for node in 0..count {
            if !self.world.is_up(node) {
                self.start(node);
            }
        }
        self.world.note(|| "faults stop".to_string());
    }

    /// Everything is well again in time.
    fn recover(&mut self) {
        let deadline = self.world.now + PATIENCE_MS * MS;
        let mut probed = false;
        while self.world.now < deadline {
            let until = self.world.now + 500 * MS;
            while self.world.now < until {
                self.manage();
                if !self.world.step() {
                    self.world.pass_time();
                }
            }
            self.world.moments.clear();
            self.hear_answers();
            // Somebody may still have been told to stop.
            (0..self.world.nodes.len())
                .filter(|n| !self.world.is_up(*n))
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|node| self.start(node));
            self.operator();
            let Some(group) = self.settled() else { continue };
            if group.is_empty() {
                self.world.mark("no copy left");
                return;
            }
            if probed {
                self.at_rest(&group);
                return;
            }
            // New requests are answered, too.
            let primary = self.world.serving().expect("settled");
            let sectors = 0..1 + self.world.sectors / 16;
            self.world.write(primary, sectors.clone(), false);
            self.world.flush(primary);
            self.world.read(primary, sectors);
            probed = true;
        }
        let states: Vec<String> = (0..self.world.nodes.len()).map(|n| self.describe(n)).collect();
        broken(
            "liveness",
            format!(
                "not well {PATIENCE_MS} ms after the last fault; asked: {:?}, {} requests wait:\n{}",
                self.asks,
                self.world.waiting(),
                states.join("\n")
            ),
        );
    }

    fn describe(&self, n: usize) -> String {
        let Some(status) = self.world.status(n) else {
            return format!("n{n} is down, lost: {}", self.lost[n]);
        };
        let peers: Vec<String> = status
            .peers
            .iter()
            .map(|peer| {
                format!(
                    "{}: {} {} member {}",
                    peer.node,
                    peer.connection,
                    peer.reason.as_deref().unwrap_or(""),
                    peer.member
                )
            })
            .collect();
        format!(
            "n{n} {} serving {} frozen {:?} disk {} suspect {} record {:?} promised {} head {:?} journaled {} durable \
             {} committed {} stable {} applied {} ring used {} of {} arena used {} of {} peers [{}]",
            status.role,
            status.serving,
            status.frozen,
            status.disk_state,
            status.suspect,
            status.record,
            status.promised,
            status.head,
            status.journaled,
            status.durable,
            status.committed,
            status.stable,
            status.applied,
            status.ring_used_bytes,
            status.ring_bytes,
            status.arena_used_bytes,
            status.arena_bytes,
            peers.join("; ")
        )
    }

    fn is_sound(&self, n: usize) -> bool {
        let status = self.world.status(n);
        status.is_some_and(|status| status.disk_state == DiskState::UpToDate && !status.suspect)
    }

    /// Whether node `t` may lawfully stay apart from Primary `p`, as the ledger knows.
    fn may_stay_apart(&self, p: usize, t: usize) -> bool {
        let ledger = &self.world.ledger;
        if self.lost[t] {
            return true;
        }
        let Some(status) = self.world.status(t) else { return false };
        if status.disk_state == DiskState::Failed || status.suspect {
            if !self.devices.borrow().failed[t] && !self.spoiled[t] {
                broken(
                    "failed-without-error",
                    format!("node {t} is {} though its devices work", status.disk_state),
                );
            }
            return true;
        }
        // What cannot be read on the Primary's disk is had from another whole copy, and there may be none.
        let volume_bytes = self.world.sectors * SECTOR;
        let is_readable = self.world.nodes[p].disk.is_readable(0, volume_bytes);
        if status.disk_state == DiskState::Inconsistent && !is_readable {
            return true;
        }
        let reason =
            status.peers.iter().find(|peer| peer.node == node_id(p)).and_then(|peer| peer.reason.clone());
        let mine = self.world.status(p).expect("it serves");
        let there = mine.peers.iter().find(|peer| peer.node == node_id(t));
        let alone = |connection: Connection| connection == Connection::StandAlone;
        if !alone(there.expect("a peer").connection) && reason.is_none() {
            return false;
        }
        if ledger.is_void(t) || ledger.is_void(p) {
            return true;
        }
        let forked = ledger.goes_apart(p, t) && ledger.parted_by_force(p, t);
        forked || ledger.named_twice_by_force(p, t)
    }

    /// What a sensible operator does now.
    fn operator(&mut self) {
        if !self.asks.is_empty() || self.world.now < self.busy_until {
            return;
        }
        let count = self.world.nodes.len();
        let frozen = |n: usize| self.world.status(n).is_some_and(|status| status.freeze.is_some());
        if let Some(n) = (0..count).find(|n| frozen(*n)) {
            return self.ask(n, AdminAction::Thaw);
        }
        if self.manager.is_some() {
            return;
        }
        let leading: Vec<usize> = (0..count)
            .filter(|n| self.world.status(*n).is_some_and(|status| status.role == Role::Primary))
            .collect();
        if leading.is_empty() {
            return self.elect();
        }
        let epoch = |n: usize| self.world.status(n).expect("it is up").record.epoch;
        let primary =
            leading.iter().copied().max_by_key(|n| (self.world.nodes[*n].serving, epoch(*n))).expect("some");
        if let Some(other) = leading.into_iter().find(|n| *n != primary) {
            return self.ask(other, AdminAction::Demote);
        }
        let status = self.world.status(primary).expect("it is up");
        for peer in &status.peers {
            let t = usize::from(peer.node.0);
            if peer.fork.is_some() && self.plan.seed.is_multiple_of(2) && self.resolved[t] < 4 {
                self.resolved[t] += 1;
                self.busy_until = self.world.now + 12_000 * MS;
                return self.ask(primary, AdminAction::Resolve { discard: peer.node });
            }
            let promised = peer.reason.as_deref().is_some_and(|reason| reason.contains("promise"));
            if promised && peer.connection == Connection::StandAlone {
                self.busy_until = self.world.now + 8000 * MS;
                return self.ask(primary, AdminAction::Demote);
            }
            let level = [Connection::Established, Connection::CatchUp, Connection::SyncSource];
            let away = !level.contains(&peer.connection);
            if peer.member && away && self.may_stay_apart(primary, t) {
                self.busy_until = self.world.now + 1500 * MS;
                return self.ask(primary, AdminAction::Shrink { node: peer.node });
            }
        }
    }

    /// Promotes the best copy that there is: a member of the newest record, with the longest log.
    fn elect(&mut self) {
        let newest = self.newest_record();
        let mut candidates: Vec<usize> = (0..self.world.nodes.len()).filter(|n| self.is_sound(*n)).collect();
        candidates.sort_by_key(|n| {
            let status = self.world.status(*n).expect("it is up");
            let member = newest.in_sync.contains(node_id(*n));
            std::cmp::Reverse((member, status.proven, status.record.order(), status.head))
        });
        if candidates.is_empty() {
            return;
        }
        let node = candidates[self.tries / 2 % candidates.len()];
        let force = self.tries % 2 == 1;
        self.tries += 1;
        self.busy_until = self.world.now + 1500 * MS;
        self.promote(node, force);
    }

    /// If all is well: who is level with the Primary. Nobody, if no copy is left that could serve.
    fn settled(&mut self) -> Option<Vec<usize>> {
        if !self.asks.is_empty() {
            return None;
        }
        let count = self.world.nodes.len();
        if (0..count).all(|n| self.lost[n] || (self.world.is_up(n) && !self.is_sound(n))) {
            let waits = |n: usize| self.world.ledger.saved(n).disk_state == DiskState::Inconsistent;
            let failed = |n: usize| self.devices.borrow().failed[n] || self.spoiled[n];
            let lawful = |n: usize| self.lost[n] || waits(n) || failed(n);
            if let Some(n) = (0..count).find(|n| !lawful(*n)) {
                broken("failed-without-error", format!("node {n} is out though its devices work"));
            }
            return Some(Vec::new());
        }
        let primary = self.world.serving()?;
        let mut group = vec![primary];
        for t in (0..count).filter(|t| *t != primary) {
            let mut pair = group.clone();
            pair.push(t);
            if self.world.is_level(&pair) {
                group = pair;
            } else if !self.may_stay_apart(primary, t) {
                return None;
            }
        }
        self.world.is_level(&group).then_some(group)
    }

    fn at_rest(&mut self, group: &[usize]) {
        if group.len() < self.world.nodes.len() {
            self.world.mark("somebody lawfully out at the end");
        }
        self.world.check_equal_among(group);
        for n in group {
            let status = self.world.status(*n).expect("it is level");
            // The reserve, and the frame that gathers.
            if status.arena_used_bytes > 2 * FRAME_BYTES_MAX as u64 {
                broken(
                    "memory-not-returned",
                    format!("node {n} at rest holds {} bytes", status.arena_used_bytes),
                );
            }
        }
    }
}
