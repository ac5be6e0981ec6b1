//! What one node does about power: it tells the leader of its own machine, feeds its watchdog, and carries out orders to
//! switch others off. A part of the running orchestrator; what is decided is the core's.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orchestrator_core::decide::{self, Step, StepKind};
use orchestrator_core::power::PowerChange;
use orchestrator_core::state::Command;
use orchestrator_core::units::{Instant, NodeId};

use crate::clock::now;
use crate::mind::Mind;
use crate::node::Orchestrator;

/// How often it is looked whether agents are installed.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// How long a result waits to be told again.
const TELL_INTERVAL: Duration = Duration::from_millis(500);

impl Orchestrator {
    /// Looks again and again which nodes could be switched off from here.
    pub(crate) async fn check_agents(self: Arc<Self>) {
        loop {
            let fencer = self.options.fencer.clone();
            if let Ok(fences) = tokio::task::spawn_blocking(move || fencer.usable()).await {
                self.mind().machine.fences = fences;
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    /// Begins those steps that may be begun, and says to the watchdog until when it may be fed. Nothing is promoted where a
    /// watchdog is configured and not armed.
    pub(crate) fn watch_over(&self, mind: &mut Mind, steps: Vec<Step>) -> Vec<Step> {
        let applied = self.consensus.applied();
        let (occupied, _) = crate::stack::report(&self.options.policy, &mind.stacks);
        let fed_until = decide::fed_until(&applied.state, self.options.me, &mind.local, &occupied);
        let promotes = |step: &Step| matches!(step.kind, StepKind::Open(_));
        let mut watchdog = self.watchdog.lock().expect("nobody panics with the watchdog in hand");
        let mut is_safe = true;
        if let Some(watchdog) = watchdog.as_mut() {
            watchdog.allow(fed_until);
            let may_serve = fed_until != Instant(u64::MAX) || steps.iter().any(promotes);
            if may_serve && watchdog.armed_ms().is_none() {
                match watchdog.arm(fed_until) {
                    Ok(()) => mind.remember("the watchdog is armed".to_owned()),
                    Err(error) => {
                        is_safe = false;
                        mind.remember(format!(
                            "the watchdog cannot be armed, so nothing is promoted: {error}"
                        ));
                    }
                }
            }
            mind.machine.watchdog_ms = watchdog.armed_ms();
        }
        let may = |step: &Step| is_safe || !promotes(step);
        steps.into_iter().filter(may).filter(|step| mind.begin(step.volume, step.kind)).collect()
    }

    /// The process ends in order.
    pub(crate) fn stop_watchdog(&self) {
        let applied = self.consensus.applied();
        let mind = self.mind();
        let (occupied, _) = crate::stack::report(&self.options.policy, &mind.stacks);
        let fed_until = decide::fed_until(&applied.state, self.options.me, &mind.local, &occupied);
        drop(mind);
        let mut watchdog = self.watchdog.lock().expect("nobody panics with the watchdog in hand");
        if let Some(watchdog) = watchdog.as_mut() {
            watchdog.stop(fed_until == Instant(u64::MAX));
        }
    }

    /// Orders that this node is given, as far as what is agreed on is known here.
    pub(crate) fn new_orders(&self, mind: &mut Mind) -> Vec<(NodeId, u64, Arc<AtomicBool>)> {
        let applied = self.consensus.applied();
        if mind.told.is_none_or(|told| applied.index < told) {
            return Vec::new();
        }
        mind.new_orders(&applied.state, self.options.me)
    }

    /// Carries out an order, on a thread that may wait, and tells what came of it until the order is closed.
    pub(crate) fn switch_off(self: &Arc<Self>, node: NodeId, number: u64, is_wanted: Arc<AtomicBool>) {
        let this = Arc::clone(self);
        let name = self.options.policy.node_name(node);
        let is_primary = self.is_primary(node);
        self.mind().remember(format!("{name} is switched off, as order {number} says"));
        tokio::spawn(async move {
            let worker = Arc::clone(&this);
            let wanted = Arc::clone(&is_wanted);
            let run = tokio::task::spawn_blocking(move || {
                let say = |text| worker.mind().remember(text);
                worker.options.fencer.switch_off(node, is_primary, &wanted, &say)
            });
            let outcome = match run.await {
                Ok(Some(outcome)) => outcome,
                Ok(None) => return this.mind().remember(format!("{name} need not be switched off any more")),
                Err(error) => Err(error.to_string()),
            };
            let at_unix_ms = unix_ms();
            let change = PowerChange::Fenced { number, outcome, at_unix_ms };
            while is_wanted.load(std::sync::atomic::Ordering::Relaxed) {
                match this
                    .command(Command::Power { node, change: change.clone() }, "its agents were run")
                    .await
                {
                    Ok(()) => return,
                    Err(why) => {
                        this.mind().remember(format!("what came of {name} is not agreed on yet: {why}"));
                    }
                }
                tokio::time::sleep(TELL_INTERVAL).await;
            }
        });
    }

    /// Whether a node is primary of anything, as far as is agreed on.
    pub(crate) fn is_primary(&self, node: NodeId) -> bool {
        self.consensus.applied().state.records.values().any(|record| record.primary == Some(node))
    }

    /// Who would switch a node off; the outer `None` if this node does not lead, the inner if nobody can.
    pub(crate) fn executor(&self, node: NodeId) -> Option<Option<NodeId>> {
        let now = now();
        let view = self.mind().view(self.options.me, &self.health_of(now), now)?;
        Some(decide::executor(&self.consensus.applied().state, &self.options.policy, &view, node))
    }
}

/// The time of day, for people.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
