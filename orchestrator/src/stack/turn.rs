//! The stacks of this node while they run: each turn asks the core what is to be done and has it done on threads that may
//! wait. A part of the running orchestrator; it never waits itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orchestrator_core::policy::Policy;
use orchestrator_core::stack::{self, Action, Order, Outcome, Permit, Phase, Runner, Stack, StackView};
use orchestrator_core::state::State;
use orchestrator_core::units::{NodeId, VolumeId};

use super::Task;
use crate::clock::now;
use crate::mind::Mind;
use crate::node::Orchestrator;

/// A stack here.
pub(crate) struct Running {
    runner: Runner,
    permit: Permit,
    phase: Phase,
    /// How often its failures were forgotten.
    forgiven: u64,
    /// Orders under way, and whether each is broken off.
    under_way: BTreeMap<u64, Arc<AtomicBool>>,
}

/// The stacks that can run on a node, of which nothing is known yet.
pub(crate) fn begin(policy: &Policy, me: NodeId) -> BTreeMap<String, Running> {
    let running = |stack: &Stack| Running {
        runner: Runner::new(stack),
        permit: Permit::Freeze("nothing is known yet".to_owned()),
        phase: Phase::Unknown,
        forgiven: 0,
        under_way: BTreeMap::new(),
    };
    policy.stacks_of(me).map(|stack| (stack.name.clone(), running(stack))).collect()
}

/// What is reported of the stacks here.
pub(crate) fn report(
    policy: &Policy,
    stacks: &BTreeMap<String, Running>,
) -> (BTreeSet<VolumeId>, BTreeMap<String, StackView>) {
    let here = || policy.stacks.iter().filter_map(|stack| Some((stack, &stacks.get(&stack.name)?.runner)));
    let views = here().map(|(stack, runner)| (stack.name.clone(), runner.view(stack))).collect();
    (stack::occupied(here()), views)
}

fn is_paused(state: &State, me: NodeId, stack: &Stack) -> bool {
    let paused = &state.paused;
    paused.cluster
        || paused.nodes.contains(&me)
        || stack.volumes.iter().any(|volume| paused.volumes.contains(volume))
}

impl Orchestrator {
    /// Has each stack here make its next step.
    pub(crate) fn turn_stacks(self: &Arc<Self>) {
        let now = now();
        let applied = self.consensus.applied();
        let mut mind = self.mind();
        // Nobody acts on less than a leader has told to be applied; what was permitted before ends with its lease.
        let is_known = mind.told.is_some_and(|told| applied.index >= told);
        let Mind { stacks, local, .. } = &mut *mind;
        local.now = now;
        let (policy, me) = (&self.options.policy, self.options.me);
        let (mut begun, mut news) = (Vec::new(), Vec::new());
        for rule in &policy.stacks {
            let Some(running) = stacks.get_mut(&rule.name) else { continue };
            running.permit = match is_known {
                true => stack::permit(&applied.state, policy, me, local, rule),
                false => running.permit.at(now),
            };
            let forgiven = applied.state.forgiven.get(&rule.name).copied().unwrap_or(0);
            if forgiven != running.forgiven {
                running.forgiven = forgiven;
                running.runner.forgive();
            }
            let paused = is_paused(&applied.state, me, rule);
            for order in running.runner.turn(rule, &running.permit, paused, now) {
                let is_broken_off = Arc::new(AtomicBool::new(false));
                running.under_way.insert(order.number, Arc::clone(&is_broken_off));
                begun.push((rule, order, is_broken_off));
            }
            for number in running.runner.broken_off() {
                if let Some(is_broken_off) = running.under_way.get(&number) {
                    is_broken_off.store(true, Ordering::Relaxed);
                }
            }
            let view = running.runner.view(rule);
            if view.phase != running.phase {
                running.phase = view.phase;
                news.push(told(rule, &view));
            }
        }
        news.into_iter().for_each(|text| mind.remember(text));
        drop(mind);
        for (rule, order, is_broken_off) in begun {
            self.carry_out(rule, &order, is_broken_off);
        }
    }

    /// Carries out an order on a thread that may wait, and has the stack go on with what came of it.
    fn carry_out(self: &Arc<Self>, rule: &Stack, order: &Order, is_broken_off: Arc<AtomicBool>) {
        let Some(executor) = self.options.executors.get(&rule.name).and_then(|steps| steps.get(order.step))
        else {
            return;
        };
        let (action, number, step, until) = (order.action, order.number, order.step, order.until);
        let timeout = Duration::from_millis(order.timeout_ms);
        let (this, executor, rule) = (Arc::clone(self), Arc::clone(executor), rule.clone());
        tokio::spawn(async move {
            let run = tokio::task::spawn_blocking(move || {
                executor.carry_out(&Task { action, timeout, until, is_broken_off: &is_broken_off })
            });
            let outcome =
                run.await.unwrap_or_else(|_| Outcome::Failed("its executor failed; see the log".to_owned()));
            let state = this.consensus.applied().state;
            let paused = is_paused(&state, this.options.me, &rule);
            let mut mind = this.mind();
            if let Some(text) = failure(&rule, step, action, &outcome) {
                mind.remember(text);
            }
            if let Some(running) = mind.stacks.get_mut(&rule.name) {
                running.under_way.remove(&number);
                running.runner.answer(&rule, number, outcome, paused, now());
            }
            drop(mind);
            this.turn_stacks();
        });
    }
}

/// How a stack is, as a line for people.
fn told(rule: &Stack, view: &StackView) -> String {
    let words = match view.phase {
        Phase::Unknown => "is looked at",
        Phase::Stopped => "is stopped",
        Phase::Starting => "is being started",
        Phase::Running => "runs",
        Phase::Frozen => "waits",
        Phase::Stopping => "is being stopped",
        Phase::Failed => "failed too often here and is given up",
        Phase::Stuck => "cannot be stopped",
    };
    let why = if view.note.is_empty() { String::new() } else { format!(": {}", view.note) };
    format!("{} {words}{why}", rule.name)
}

/// What went wrong with an order, if it did.
fn failure(rule: &Stack, step: usize, action: Action, outcome: &Outcome) -> Option<String> {
    let name = &rule.steps.get(step)?.name;
    let what = match action {
        Action::Probe => "cannot be looked at",
        Action::Start => "does not start",
        Action::Monitor => "is not well",
        Action::Refresh => "is not renewed",
        Action::Stop => "does not stop",
        Action::Force => "cannot be stopped by force",
    };
    match (action, outcome) {
        (_, Outcome::Failed(why) | Outcome::Refused(why)) => {
            Some(format!("{}: {name} {what}: {why}", rule.name))
        }
        (Action::Monitor, Outcome::NotRunning) => Some(format!("{}: {name} runs no more", rule.name)),
        _ => None,
    }
}
