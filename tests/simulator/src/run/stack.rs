//! Runs of the whole stack: the safety phase goes by time, as leases and suspicion do.

use super::Run;
use crate::world::MS;

impl Run {
    /// Everything may happen for as long as was drawn.
    pub(super) fn whole_safety(&mut self) {
        let Some(whole) = &self.whole else { return };
        let until = self.world.now + whole.faulty_ms() * MS;
        let mut client_at = self.world.now;
        while self.world.now < until {
            self.whole_step(&mut client_at);
        }
    }

    fn whole_step(&mut self, client_at: &mut u64) {
        self.manage();
        if self.world.now >= *client_at {
            self.world.client();
            let whole = self.whole.as_ref().expect("it is such a run");
            *client_at = self.world.now + whole.client_pause_ms(&mut self.world) * MS;
        }
        self.strike_whole();
        self.chance_strikes();
        self.whole_returns();
        self.world.alarm = self.world.alarm.min(*client_at);
        if self.world.random.percent(3) || !self.world.step() {
            self.world.pass_time();
        }
        self.hear_answers();
        self.moments_strike();
    }

    fn strike_whole(&mut self) {
        let whole = self.whole.as_mut().expect("it is such a run");
        let Some(strike) = whole.drawn_strike(&mut self.world) else { return };
        self.strikes += 1;
        if !self.plan.left_out.contains(&self.strikes) {
            whole.strike(&mut self.world, strike);
        }
    }

    fn whole_returns(&mut self) {
        let whole = self.whole.as_mut().expect("it is such a run");
        if !whole.bring_back(&mut self.world) {
            return;
        }
        let percent = whole.return_percent();
        let count = self.world.nodes.len();
        for node in 0..count {
            if !self.world.is_up(node) && self.world.random.percent(percent) {
                self.start(node);
            }
            for other in 0..count {
                if self.world.routes[node][other].silent && self.world.random.percent(percent) {
                    self.world.routes[node][other].silent = false;
                }
                if node < other && self.world.is_cut(node, other) && self.world.random.percent(percent) {
                    self.world.set_cut(node, other, false);
                }
            }
        }
    }
}
