//! Faults that strike nodes, links and disks, and operators who ask for what they should not.

use replicator_core::command::AdminError;
use replicator_core::config::{OnPeerLoss, Protocol};
use replicator_core::disk::layout::SUPERBLOCK_AT;
use replicator_core::event::AdminAction;

use super::{Run, node_id};
use crate::delay;
use crate::plan::Fault;
use crate::world::{MS, Moment};

impl Run {
    /// Each kind of fault may happen by itself.
    pub(super) fn chance_strikes(&mut self) {
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
    pub(super) fn moments_strike(&mut self) {
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

    pub(super) fn count(&mut self, fault: Fault) {
        *self.devices.borrow_mut().counts.entry(fault).or_default() += 1;
    }

    fn strike(&mut self, fault: Fault, node: usize) {
        self.strikes += 1;
        if self.plan.left_out.contains(&self.strikes) {
            return;
        }
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
            Fault::ClockJump => {
                let most = if self.world.random.percent(50) { 2000 } else { 60_000 };
                let ms = self.world.random.below(most);
                self.world.note(|| format!("the clock of n{node} jumps {ms} ms ahead"));
                let mut clock = self.world.clocks[node];
                clock.ahead += ms * MS;
                self.world.set_clock(node, clock);
            }
            Fault::WallStep => delay::set_wall(&mut self.world, node),
            Fault::Spoil
            | Fault::SuperblockRot
            | Fault::RingRot
            | Fault::LyingDisk
            | Fault::OldImage
            | Fault::Misdirect => {
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
                    self.world.spoil(node, at);
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
                Some((of, disk, journal)) if !self.lost[of] => {
                    self.world.note(|| format!("an old image is put back on n{of}"));
                    self.world.lose_power(of);
                    (self.world.nodes[of].disk, self.world.nodes[of].journal) = (disk, journal);
                    self.world.ledger.distrust(of);
                }
                _ if self.lost[node] => return false,
                _ => {
                    // What is not synced is in no image that was taken from below.
                    let of = &self.world.nodes[node];
                    let (mut disk, mut journal) = (of.disk.clone(), of.journal.clone());
                    disk.lose_power(&mut self.world.random);
                    journal.lose_power(&mut self.world.random);
                    self.image = Some((node, disk, journal));
                    return false;
                }
            },
            Fault::Misdirect => {
                let (from, to) = (self.ring_place(node), self.ring_place(node));
                let len = 4096 << self.world.random.below(4);
                self.world.nodes[node].journal.misdirect(from / 512 * 512, to / 512 * 512, len);
                self.spoiled[node] = true;
                self.world.ledger.distrust(node);
            }
            _ => return false,
        }
        self.world.note(|| format!("{fault:?} at n{node}"));
        true
    }

    /// Somewhere in the part of the ring that has been written lately.
    fn ring_place(&mut self, node: usize) -> u64 {
        let ring_at = (1 << 20) + 16 * 4096;
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

    pub(super) fn ask(&mut self, node: usize, action: AdminAction) {
        let waits = self.asks.iter().any(|(other, _, _)| *other == node);
        if waits || !self.world.is_up(node) || self.world.is_paused(node) {
            return;
        }
        let id = self.world.ask(node, action);
        self.asks.push((node, id, action));
    }

    pub(super) fn promote(&mut self, node: usize, force: bool) {
        let reign = self.world.reign_id();
        self.ask(node, AdminAction::Promote { force, reign });
    }

    pub(super) fn hear_answers(&mut self) {
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
}
