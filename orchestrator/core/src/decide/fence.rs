//! When a node is to be off, who switches it off, and what is known of its power: what the Raft leader proposes about that.
//! Power is the last proof: a lease that has ended, or a node that says that it serves nobody, is as good and harms
//! nobody.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;

use super::{Decision, Local, Note, Proposal, Severity};
use crate::fence::Mode;
use crate::lease::Terms;
use crate::policy::{Policy, Volume};
use crate::power::{Off, Power, PowerChange};
use crate::state::{Command, State};
use crate::units::{Instant, NodeId, VolumeId};
use crate::view::{Health, Machine, ReplicaView, Role, View};

/// How long after a failed attempt another one is made.
const RETRY_MS: u64 = 10_000;
/// Timers of watchdogs count in whole seconds, and a machine takes a moment to be gone.
const WATCHDOG_MARGIN_MS: u64 = 2_000;

/// Something waits for a node to be off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The node.
    pub node: NodeId,
    /// How long that may take by itself.
    pub patience_ms: u64,
    /// Why.
    pub reason: String,
}

/// Since when a leader has been waiting for nodes to be off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Awaited(BTreeMap<NodeId, (Instant, u32)>);

impl Awaited {
    /// Takes note of what is waited for now. After a failed attempt the wait begins anew.
    pub fn note(&mut self, needs: &[Need], power: &Power, now: Instant) {
        let failures = |node| power.nodes.get(&node).map_or(0, |one| one.failures);
        let mut awaited = BTreeMap::new();
        for need in needs {
            let known = self.0.get(&need.node).filter(|(_, known)| *known == failures(need.node));
            awaited.insert(need.node, known.copied().unwrap_or((now, failures(need.node))));
        }
        self.0 = awaited;
    }

    /// Since when each is waited for.
    #[must_use]
    pub fn since(&self) -> BTreeMap<NodeId, Instant> {
        self.0.iter().map(|(node, (since, _))| (*node, *since)).collect()
    }
}

/// What is proposed about the power of nodes, after all volumes have said what they need.
pub(super) fn decide(state: &State, policy: &Policy, view: &View, out: &mut Decision) {
    for node in &policy.nodes {
        let mut one = One { state, policy, view, node: node.id, out: &mut *out };
        one.note_boot();
        one.fence();
    }
}

/// Whether a volume may be had by another node only when the old one is surely off.
pub(crate) fn needs_off(policy: &Policy, volume: &Volume) -> bool {
    policy.fence.mode == Mode::Always || policy.fence.surely_off.contains(&volume.id)
}

/// What a node says of its machine, over whatever link it came.
fn said(view: &View, node: NodeId) -> Option<Machine> {
    view.nodes.get(&node)?.report.as_ref().map(|report| report.machine)
}

/// The evidence that a node is off, unless it has been heard since.
pub(super) fn off<'s>(state: &'s State, view: &View, node: NodeId) -> Option<&'s Off> {
    state.power.off(node).filter(|_| said(view, node).is_none())
}

/// From when the watchdog of a node has surely fired, if it has armed one: it was fed for the last time before its last
/// lease ended.
pub(super) fn watchdog_over_at(
    state: &State,
    policy: &Policy,
    view: &View,
    volume: &Volume,
    node: NodeId,
) -> Option<Instant> {
    let watchdog_ms = state.power.nodes.get(&node)?.watchdog_ms?;
    let terms = Terms { duration_ms: policy.lease.duration_ms.saturating_add(watchdog_ms), ..policy.lease };
    let last = view.grants.get(&(volume.id, node)).copied();
    Some(terms.surely_over_at(last, view.leader_since).plus_ms(WATCHDOG_MARGIN_MS))
}

/// Whether what is agreed on about the machine of a node is what the node says: a lease under a boot that is not known
/// could not be ended by evidence.
pub(super) fn is_known(state: &State, view: &View, node: NodeId) -> bool {
    let (Some(one), Some(machine)) = (state.power.nodes.get(&node), said(view, node)) else { return false };
    let is_armed = one.watchdog_ms.is_none() || one.watchdog_ms == machine.watchdog_ms;
    one.boot == Some(machine.boot) && one.off.is_none() && is_armed
}

/// Until when the watchdog of node `me` may be fed: while everything that may serve here has a lease, and for ever while
/// nothing does. What still uses a volume that is served no more is `occupied`: others take it for gone when the watchdog
/// has surely fired.
#[must_use]
pub fn fed_until(state: &State, me: NodeId, local: &Local, occupied: &BTreeSet<VolumeId>) -> Instant {
    let until = local.replicas.iter().filter_map(|(volume, view)| {
        let may_serve = match view {
            _ if occupied.contains(volume) => true,
            ReplicaView::Stopped => false,
            ReplicaView::Running(replica) => replica.role != Role::Secondary,
            // Nobody knows; it serves if it was to.
            ReplicaView::Silent(_) => {
                state.records.get(volume).is_none_or(|record| record.primary == Some(me))
            }
        };
        may_serve.then(|| local.leases.get(volume).copied().unwrap_or_default())
    });
    until.min().unwrap_or(Instant(u64::MAX))
}

/// Who switches a node off: one that is heard, is another, and has what it takes. After a failure it is somebody else's
/// turn.
#[must_use]
pub fn executor(state: &State, policy: &Policy, view: &View, target: NodeId) -> Option<NodeId> {
    let can = |node: &NodeId| {
        let is_able = view.report(*node).is_some_and(|report| report.machine.fences.contains(target));
        *node != target && is_able && !state.paused.nodes.contains(node)
    };
    let is_alive = |node: &NodeId| view.nodes.get(node).is_some_and(|view| view.health == Health::Alive);
    let able = || policy.nodes.iter().map(|node| node.id).filter(can);
    let failures = state.power.nodes.get(&target).map_or(0, |one| one.failures) as usize;
    let count = able().filter(is_alive).count();
    if count > 0 { able().filter(is_alive).nth(failures % count) } else { able().next() }
}

/// One node in one decision.
struct One<'a> {
    state: &'a State,
    policy: &'a Policy,
    view: &'a View,
    node: NodeId,
    out: &'a mut Decision,
}

impl One<'_> {
    fn propose(&mut self, change: PowerChange, reason: String) {
        let command = Command::Power { node: self.node, change };
        self.out.proposals.push(Proposal { command, reason });
    }

    fn say(&mut self, severity: Severity, text: String) {
        let volume = self.policy.node_name(self.node);
        self.out.notes.push(Note { volume, severity, text });
    }

    /// A node that runs under another boot, or otherwise than is agreed on.
    fn note_boot(&mut self) {
        let Some(machine) = said(self.view, self.node) else { return };
        let known = self.state.power.nodes.get(&self.node);
        let is_same = known.is_some_and(|known| {
            known.boot == Some(machine.boot)
                && known.watchdog_ms == machine.watchdog_ms
                && known.off.is_none()
        });
        if !is_same {
            let name = self.policy.node_name(self.node);
            let change = PowerChange::Runs { boot: machine.boot, watchdog_ms: machine.watchdog_ms };
            self.propose(change, format!("{name} runs"));
        }
    }

    fn fence(&mut self) {
        let need = self.out.needs.iter().filter(|need| need.node == self.node);
        let need = need.min_by_key(|need| need.patience_ms).cloned();
        if let Some(order) = self.state.power.order(self.node).cloned() {
            let by = self.policy.node_name(order.by);
            let is_heard = self.view.nodes.get(&order.by).is_some_and(|node| node.health.is_heard());
            let why = match (&need, &order.asked_by) {
                (None, None) => Some(String::from("nothing waits for it any more")),
                _ if !is_heard => Some(format!("{by}, who was asked, is not heard")),
                _ => None,
            };
            let number = order.number;
            return match why {
                Some(reason) => self.propose(PowerChange::Spare { number, reason: reason.clone() }, reason),
                None => self.say(Severity::Error, format!("is being switched off by {by}: {}", order.reason)),
            };
        }
        let Some(need) = need.filter(|_| off(self.state, self.view, self.node).is_none()) else { return };
        let is_able =
            self.policy.fence.mode != Mode::Never && self.policy.fence.fenceable.contains(self.node);
        let left_ms = self.left_ms(&need);
        if left_ms > 0 {
            if is_able {
                self.say(Severity::Error, format!("will be switched off in {left_ms} ms: {}", need.reason));
            }
            return;
        }
        if !is_able {
            let name = self.policy.node_name(self.node);
            let text = format!(
                "is to be off and nothing here switches it off: look, and say so with: holdfast confirm-off {name}"
            );
            return self.say(Severity::Error, text);
        }
        self.order(&need);
    }

    /// How long it may take yet by itself, or until it is tried again.
    fn left_ms(&self, need: &Need) -> u64 {
        let failures = self.state.power.nodes.get(&self.node).map_or(0, |known| known.failures);
        let patience_ms = if failures == 0 { need.patience_ms } else { need.patience_ms.max(RETRY_MS) };
        let since = self.view.awaited.get(&self.node).copied().unwrap_or(self.view.now);
        patience_ms.saturating_sub(self.view.now.since_ms(since))
    }

    fn order(&mut self, need: &Need) {
        if self.state.paused.nodes.contains(&self.node) {
            return self
                .say(Severity::Error, String::from("is to be off, and is paused: nothing is done to it"));
        }
        let Some(by) = executor(self.state, self.policy, self.view, self.node) else {
            let text = String::from("is to be off, and no node that is heard has agents for it");
            return self.say(Severity::Error, text);
        };
        let boot = self.state.power.boot(self.node);
        let name = self.policy.node_name(by);
        let reason = need.reason.clone();
        let change = PowerChange::Fence { by, boot, asked_by: None, reason: reason.clone() };
        self.propose(change, format!("{name} switches it off: {reason}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(view: ReplicaView, lease: Option<u64>) -> Local {
        let volume = VolumeId(1);
        let leases = lease.map(|until| (volume, Instant(until))).into_iter().collect();
        Local { replicas: BTreeMap::from([(volume, view)]), leases, ..Local::default() }
    }

    fn fed(view: ReplicaView, lease: Option<u64>) -> Instant {
        fed_until(&State::default(), NodeId(0), &local(view, lease), &BTreeSet::new())
    }

    #[test]
    fn a_watchdog_is_fed_for_ever_while_nothing_serves() {
        assert_eq!(fed(ReplicaView::Stopped, None), Instant(u64::MAX));
        let nothing = fed_until(&State::default(), NodeId(0), &Local::default(), &BTreeSet::new());
        assert_eq!(nothing, Instant(u64::MAX));
    }

    #[test]
    fn a_watchdog_is_not_fed_for_a_stack_whose_volume_is_served_no_more() {
        let occupied = BTreeSet::from([VolumeId(1)]);
        let fed =
            |lease| fed_until(&State::default(), NodeId(0), &local(ReplicaView::Stopped, lease), &occupied);
        assert_eq!((fed(None), fed(Some(700))), (Instant(0), Instant(700)));
    }

    #[test]
    fn a_watchdog_is_fed_as_long_as_the_lease_of_what_may_serve() {
        let silent = || ReplicaView::Silent(String::from("it hangs"));
        assert_eq!(fed(silent(), Some(700)), Instant(700));
        assert_eq!(fed(silent(), None), Instant(0), "what nobody knows of may serve");
    }
}
