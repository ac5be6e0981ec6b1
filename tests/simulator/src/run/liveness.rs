//! The liveness phase: faults have stopped, a sensible operator takes over, and all must be well in time, but for
//! what the design refuses.

use replicator_core::disk::superblock::DiskState;
use replicator_core::event::AdminAction;
use replicator_core::limits::FRAME_BYTES_MAX;
use replicator_core::status::{Connection, Role};

use super::{Run, node_id};
use crate::rule::broken;
use crate::world::MS;

/// How long everything may take to be well again, in virtual time.
const PATIENCE_MS: u64 = 180_000;

impl Run {
    /// Faults stop.
    pub(super) fn calm(&mut self) {
        self.devices.borrow_mut().active = false;
        self.manager.iter_mut().for_each(|manager| manager.rough = false);
        self.whole.iter_mut().for_each(|whole| {
            // Machines of which it has not heard yet that they have lost their power.
            whole.turn(&mut self.world);
            whole.calm(&mut self.world);
        });
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
    pub(super) fn recover(&mut self) {
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
            self.whole.iter_mut().for_each(|whole| whole.look_after(&mut self.world));
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
        let mut states: Vec<String> = (0..self.world.nodes.len()).map(|n| self.describe(n)).collect();
        states.extend(self.whole.as_ref().map(|whole| whole.story(&self.world)));
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
        let reason =
            status.peers.iter().find(|peer| peer.node == node_id(p)).and_then(|peer| peer.reason.clone());
        // What the Primary cannot read is had from another whole copy, and there may be none.
        let nobody_has = reason.as_deref().is_some_and(|reason| reason.contains("no connected replica has"));
        if nobody_has && self.world.has_bad_blocks(p) {
            return true;
        }
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
        // Whoever reigned knows whom it asked; who followed is told with the next version.
        let record = ledger.saved(t).record;
        let untold = record.primary != Some(node_id(t))
            && self.whole.as_ref().is_some_and(|whole| whole.was_not_told(record.epoch.0, record.version));
        forked || ledger.named_twice_by_force(p, t) || untold && ledger.goes_apart(p, t)
    }

    /// What a sensible operator does now.
    pub(super) fn operator(&mut self) {
        if !self.asks.is_empty() || self.world.now < self.busy_until {
            return;
        }
        let count = self.world.nodes.len();
        let frozen = |n: usize| self.world.status(n).is_some_and(|status| status.freeze.is_some());
        if let Some(n) = (0..count).find(|n| frozen(*n)) {
            return self.ask(n, AdminAction::Thaw);
        }
        if self.manager.is_some() || self.whole.is_some() {
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
        if !self.asks.is_empty() || self.whole.as_ref().is_some_and(|whole| !whole.is_well(&self.world)) {
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
