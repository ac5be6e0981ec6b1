//! Between an orchestrator and the replicator beside it: it looks, asks, hands on leases, and waits for answers. The
//! channel has delays of its own, and either end may die or stand still alone.

use orchestrator_core::decide::{Step, StepKind};
use orchestrator_core::units::{Epoch, Instant, NodeId, NodeSet, Position};
use orchestrator_core::view::{Copy, Replica, ReplicaView, Role};
use replicator_core::disk::superblock::DiskState;
use replicator_core::event::{AdminAction, Reign};
use replicator_core::status::{self, Connection, Status};
use replicator_core::units as theirs;

use super::queue::{AskSeal, Purpose, Waiting, What};
use super::{TURN_MS, VOLUME, Whole};
use crate::world::{MS, World};

/// A replicator that does not answer for longer hangs, and somebody else may have to serve.
const OBSERVE_WITHIN_MS: u64 = 2000;
/// How long an answer is waited for.
const ANSWER_WITHIN_MS: u64 = 10_000;
/// How often it is looked whether there is one.
const LOOK_MS: u64 = 3;

fn nodes_of(set: theirs::NodeSet) -> NodeSet {
    set.iter().map(|node| NodeId(node.0)).collect()
}

fn theirs_of(set: NodeSet) -> theirs::NodeSet {
    set.iter().fold(theirs::NodeSet(0), |set, node| set.with(theirs::NodeId(node.0)))
}

fn moment_of(end: Instant) -> theirs::Instant {
    theirs::Instant(end.0 * MS)
}

/// What an orchestrator makes of what a replica says.
fn replica_of(status: &Status) -> Replica {
    let follows = |peer: &&status::PeerStatus| {
        peer.answers && matches!(peer.connection, Connection::Established | Connection::CatchUp)
    };
    let position = |at: theirs::Position| Position { epoch: Epoch(at.epoch.0), sequence: at.sequence.0 };
    let head = position(status.head);
    Replica {
        role: match status.role {
            status::Role::Secondary => Role::Secondary,
            status::Role::Primary if status.serving => Role::Primary,
            status::Role::Primary => Role::Changing,
        },
        copy: match status.disk_state {
            DiskState::UpToDate if !status.suspect => Copy::UpToDate,
            other => Copy::Unusable(other.to_string()),
        },
        proven: status.proven,
        promised: Epoch(status.promised.0),
        head,
        committed: Position { sequence: status.committed.0, ..head },
        record: (Epoch(status.record.epoch.0), status.record.version),
        in_sync: nodes_of(status.record.in_sync),
        following: status.peers.iter().filter(follows).map(|peer| NodeId(peer.node.0)).collect(),
        pending: status.wish.map(|wish| nodes_of(wish.add)).unwrap_or_default(),
    }
}

impl Whole {
    /// What the replica on `m` is seen to do; nothing while it stands still.
    fn seen(&self, world: &World, m: usize) -> Option<ReplicaView> {
        match world.status(m) {
            None => Some(ReplicaView::Stopped),
            Some(_) if world.is_paused(m) => None,
            Some(status) => Some(ReplicaView::Running(replica_of(&status))),
        }
    }

    fn seen_at_last(&self, world: &World, m: usize) -> Box<ReplicaView> {
        Box::new(self.seen(world, m).unwrap_or(ReplicaView::Silent("it does not answer".to_owned())))
    }

    pub(super) fn observe(&mut self, world: &mut World, m: usize, since: Option<u64>) {
        let since = since.unwrap_or(world.now);
        if self.seen(world, m).is_none() && world.now < since + OBSERVE_WITHIN_MS * MS {
            return self.later(world, m, TURN_MS, What::Observe { since: Some(since) });
        }
        let view = self.seen_at_last(world, m);
        let ms = self.moment_ms(world);
        self.later(world, m, ms, What::Observed(view));
    }

    pub(super) fn act(&mut self, world: &mut World, m: usize, step: &Step, lease: Option<Instant>) {
        let record = &step.record;
        let epoch = theirs::Epoch(record.epoch.0);
        let (version, in_sync) = (record.version, theirs_of(record.in_sync));
        let action = match step.kind {
            StepKind::Open(_) => AdminAction::OpenEpoch(Reign {
                epoch,
                version,
                reign: theirs::ReignId(record.reign.0),
                in_sync,
                generation: record.generation,
                lease_end: lease.map(moment_of),
            }),
            StepKind::Release => AdminAction::Release,
            StepKind::Tell(_) => AdminAction::Record { epoch, version, in_sync },
        };
        let again = || What::Act { step: Box::new(step.clone()), lease };
        self.ask(world, m, action, Purpose::Step(step.kind), again);
    }

    /// Tells the replica on `m` until when it may answer clients, if it reigns.
    pub(super) fn hand_lease(&mut self, world: &mut World, m: usize) {
        let mind = self.mind(m);
        let epoch = match mind.local.replicas.get(&VOLUME) {
            Some(ReplicaView::Running(replica)) if replica.role != Role::Secondary => replica.record.0,
            _ => return,
        };
        let Some(end) = mind.local.leases.get(&VOLUME).copied().filter(|_| !mind.leasing) else { return };
        mind.leasing = true;
        let ms = self.moment_ms(world);
        self.later(world, m, ms, What::Lease { epoch, end });
    }

    pub(super) fn lease(&mut self, world: &mut World, m: usize, epoch: Epoch, end: Instant) {
        let action = AdminAction::Lease { epoch: theirs::Epoch(epoch.0), end: moment_of(end) };
        self.ask(world, m, action, Purpose::Lease, || What::Lease { epoch, end });
    }

    /// Asks the replica on `m`; later, if it stands still.
    fn ask(
        &mut self,
        world: &mut World,
        m: usize,
        action: AdminAction,
        purpose: Purpose,
        again: impl FnOnce() -> What,
    ) {
        if !world.is_up(m) {
            return self.answered(world, m, purpose, false);
        }
        if world.is_paused(m) {
            return self.later(world, m, LOOK_MS, again());
        }
        let id = world.ask(m, action);
        let (starts, until) = (world.nodes[m].starts, world.now + ANSWER_WITHIN_MS * MS);
        self.later(world, m, 0, What::Hear(Box::new(Waiting { id, starts, until, purpose })));
    }

    /// Looks whether the replica on `m` has answered.
    pub(super) fn hear(&mut self, world: &mut World, m: usize, waiting: Waiting) {
        let is_same = world.is_up(m) && world.nodes[m].starts == waiting.starts;
        if !is_same || world.now >= waiting.until {
            return self.answered(world, m, waiting.purpose, false);
        }
        if world.is_paused(m) {
            return self.later(world, m, LOOK_MS, What::Hear(Box::new(waiting)));
        }
        match world.answer(m, waiting.id) {
            Some(answer) => self.answered(world, m, waiting.purpose, answer.is_ok()),
            None => self.later(world, m, LOOK_MS, What::Hear(Box::new(waiting))),
        }
    }

    fn answered(&mut self, world: &mut World, m: usize, purpose: Purpose, is_ok: bool) {
        match purpose {
            Purpose::Lease => self.mind(m).leasing = false,
            Purpose::Step(kind) => {
                let view = self.seen_at_last(world, m);
                let ms = self.moment_ms(world);
                self.later(world, m, ms, What::StepDone { kind, view });
            }
            Purpose::Seal(ask) => self.sealed(world, m, ask, is_ok),
        }
    }

    pub(super) fn step_done(&mut self, world: &mut World, m: usize, kind: StepKind, view: ReplicaView) {
        let mind = self.mind(m);
        mind.local.replicas.insert(VOLUME, view);
        mind.busy.remove(&kind);
        self.wake(world, m);
        // One that was granted meanwhile.
        self.hand_lease(world, m);
    }

    /// The replica on `m` is to promise an epoch.
    pub(super) fn on_seal(&mut self, world: &mut World, m: usize, ask: AskSeal) {
        let action = AdminAction::Seal { epoch: theirs::Epoch(ask.seal.epoch.0) };
        self.ask(world, m, action, Purpose::Seal(ask), || What::Seal(ask));
    }

    /// It has, or has not; the leader is told how it is then.
    fn sealed(&mut self, world: &mut World, m: usize, ask: AskSeal, is_ok: bool) {
        let epoch = ask.seal.epoch;
        let is_sealed = |replica: &Replica| {
            replica.promised == epoch && replica.role == Role::Secondary && replica.record.0 < epoch
        };
        let view = self.seen(world, m).filter(|_| is_ok);
        let report = match view {
            Some(ReplicaView::Running(replica)) if is_sealed(&replica) => {
                let now = self.now(world, m);
                let (state, me) = (self.state(m).clone(), self.machines[m].id);
                let mind = self.mind(m);
                mind.local.replicas.insert(VOLUME, ReplicaView::Running(replica));
                mind.local.settle(&state, me);
                Some(Box::new(self.next_report(m, now, world.nodes.len()).0))
            }
            _ => None,
        };
        let (seal, attempt) = (ask.seal, ask.attempt);
        if self.machines[ask.leader].is_process(ask.leader_process) {
            self.send(world, m, ask.leader, What::Sealed { seal, attempt, report });
        }
    }
}
