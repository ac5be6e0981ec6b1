//! What goes wrong with the whole stack, and how it comes back.

use orchestrator_core::state::Command;

use super::{Strike, VOLUME, Whole, node_id};
use crate::world::{MS, World};

/// How often it is drawn whether something comes back.
const RETURN_EVERY_MS: u64 = 100;
/// In the end, machines without power have it again that often.
const POWER_EVERY_MS: u64 = 3000;

impl Whole {
    /// What strikes now, if anything does.
    pub fn drawn_strike(&mut self, world: &mut World) -> Option<Strike> {
        if world.now < self.strike_at || self.draw.strikes.is_empty() {
            return None;
        }
        self.strike_at = world.now + world.random.below(self.draw.strike_every_ms) * MS;
        let place = world.random.index(self.draw.strikes.len());
        self.draw.strikes.iter().nth(place).copied()
    }

    /// One thing goes wrong, somewhere.
    pub fn strike(&mut self, world: &mut World, strike: Strike) {
        let (nodes, machines) = (world.nodes.len(), self.machines.len());
        let m = world.random.index(machines);
        let n = world.random.index(nodes);
        world.note(|| format!("{strike:?} at m{m} or n{n}"));
        world.mark(strike.mark());
        match strike {
            Strike::KillOrchestrator => self.stop_orchestrator(world, m),
            Strike::KillReplicator if world.is_up(n) => world.kill(n),
            Strike::KillReplicator => {}
            Strike::PauseOrchestrator => self.machines[m].paused_until = self.pause(world),
            Strike::PauseMachine => {
                let until = self.pause(world);
                self.machines[m].paused_until = until;
                if m < nodes && world.is_up(m) {
                    world.paused_until[m] = until;
                }
            }
            Strike::PowerOff => self.die(world, m),
            Strike::Isolate => {
                for other in (0..machines).filter(|other| *other != m) {
                    (self.cut[m][other], self.cut[other][m]) = (true, true);
                    if m.max(other) < nodes {
                        world.set_cut(m, other, true);
                    }
                }
            }
            Strike::CutTalk => {
                let other = (m + 1 + world.random.index(machines - 1)) % machines;
                self.cut[m][other] = true;
                self.cut[other][m] |= world.random.percent(50);
            }
            Strike::CutData => {
                let other = (n + 1 + world.random.index(nodes - 1)) % nodes;
                world.set_cut(n, other, true);
            }
            Strike::Want => {
                let node = world.random.percent(80).then(|| node_id(n));
                self.operate(world, Command::Want { volume: VOLUME, node });
            }
            Strike::Standby => {
                let on = world.random.percent(50);
                self.operate(world, Command::Standby { node: node_id(n), on });
            }
            Strike::Crash => {
                for held in &mut self.machines[n].steps {
                    if held.runs && world.random.percent(50) {
                        (held.runs, held.crashed) = (false, true);
                    }
                }
            }
        }
    }

    fn pause(&self, world: &mut World) -> u64 {
        let ms = match world.random.below(10) {
            0..=4 => 400,
            5..=8 => 3000,
            _ => 15_000,
        };
        world.now + world.random.below(ms) * MS
    }

    /// An operator wants something, and says so to whoever leads.
    fn operate(&mut self, world: &mut World, command: Command) {
        if let Some(leader) = self.raft.leader {
            self.propose(world, leader, command, "an operator wants it");
        }
    }

    /// What is down comes back, what is cut heals, sooner or later.
    pub fn bring_back(&mut self, world: &mut World) -> bool {
        if world.now < self.return_at {
            return false;
        }
        self.return_at = world.now + RETURN_EVERY_MS * MS;
        let percent = self.draw.return_percent;
        for m in 0..self.machines.len() {
            if world.random.percent(percent) && self.is_off(m) {
                self.boot(world, m);
            }
            if world.random.percent(percent) {
                self.start_orchestrator(world, m);
            }
            for other in 0..self.machines.len() {
                self.cut[m][other] &= !world.random.percent(percent);
            }
        }
        true
    }

    /// In how many of a hundred cases what is down comes back now.
    pub fn return_percent(&self) -> u64 {
        self.draw.return_percent
    }

    /// How long faults go on.
    pub fn faulty_ms(&self) -> u64 {
        self.draw.faulty_ms
    }

    /// How long until a client wants something again.
    pub fn client_pause_ms(&self, world: &mut World) -> u64 {
        world.random.below(self.draw.client_every_ms)
    }

    /// Faults stop. What operators wanted is wanted no more.
    pub fn calm(&mut self, world: &mut World) {
        self.rough = false;
        self.cut.iter_mut().for_each(|row| row.fill(false));
        for m in 0..self.machines.len() {
            self.machines[m].paused_until = 0;
            self.restore(world, m);
        }
    }

    fn restore(&mut self, world: &mut World, m: usize) {
        if self.is_off(m) {
            self.boot(world, m);
        }
        self.start_orchestrator(world, m);
    }

    /// Without faults: machines that were switched off come back, and operators want nothing.
    pub fn look_after(&mut self, world: &mut World) {
        if world.now < self.return_at {
            return;
        }
        self.return_at = world.now + POWER_EVERY_MS * MS;
        for m in 0..self.machines.len() {
            self.restore(world, m);
        }
        let state = self.raft.state(self.raft.committed()).clone();
        if state.wanted.contains_key(&VOLUME) {
            self.operate(world, Command::Want { volume: VOLUME, node: None });
        }
        for node in state.standby {
            self.operate(world, Command::Standby { node, on: false });
        }
    }
}
