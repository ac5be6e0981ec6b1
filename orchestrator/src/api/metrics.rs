//! What an orchestrator tells monitoring: what is agreed on, as this node knows it, and what it sees itself.

use std::sync::atomic::Ordering;

use orchestrator_core::policy::Policy;
use orchestrator_core::record::Record;
use orchestrator_core::stack::Phase;
use orchestrator_core::state::State;
use orchestrator_core::units::Instant;
use orchestrator_core::view::Health;
use replicator::config::Occasion;
use replicator::metrics::Page;

use crate::clock::now;
use crate::mind::Mind;
use crate::node::Orchestrator;

/// What is said of other nodes.
const HEALTH: [&str; 3] = ["alive", "quarantined", "suspected"];
/// What a stack may be, in the words of the control interface.
const PHASES: [(Phase, &str); 8] = [
    (Phase::Stopped, "stopped"),
    (Phase::Unknown, "unknown"),
    (Phase::Starting, "starting"),
    (Phase::Running, "running"),
    (Phase::Frozen, "frozen"),
    (Phase::Stopping, "stopping"),
    (Phase::Failed, "failed"),
    (Phase::Stuck, "stuck"),
];
/// What happens to volumes.
const OF_VOLUMES: [Occasion; 5] =
    [Occasion::Role, Occasion::Failover, Occasion::Switchover, Occasion::MemberLost, Occasion::MemberBack];

/// All figures.
pub(super) fn text(this: &Orchestrator) -> String {
    let mut page = Page::default();
    let (applied, now) = (this.consensus.applied(), now());
    tell_process(&mut page, this, applied.index);
    tell_nodes(&mut page, this, &applied.state);
    let policy = &this.options.policy;
    let mind = this.mind();
    for volume in &policy.volumes {
        let name = volume.name.as_str();
        let lease = mind.local.leases.get(&volume.id).copied();
        tell_volume(&mut page, name, &applied.state, volume.id, lease, now);
        if let Some(record) = applied.state.records.get(&volume.id) {
            tell_record(&mut page, policy, volume, record);
        }
    }
    tell_stacks(&mut page, policy, &mind);
    tell_happenings(&mut page, policy, &mind);
    drop(mind);
    tell_hooks(&mut page, this);
    page.text()
}

fn tell_process(page: &mut Page, this: &Orchestrator, applied: u64) {
    let (options, leadership) = (&this.options, this.consensus.leadership());
    let node = options.policy.node_name(options.me);
    let labels =
        [("cluster", options.cluster.as_str()), ("node", &node), ("version", env!("CARGO_PKG_VERSION"))];
    page.gauge("holdfast_orchestrator_info", "Which orchestrator answers; always 1.").add(&labels, true);
    let help = "Whether this node leads.";
    page.gauge("holdfast_orchestrator_leads", help).add(&[], leadership.is_me);
    let help = "Whether this node knows who leads.";
    page.gauge("holdfast_orchestrator_knows_leader", help).add(&[], leadership.leader.is_some());
    page.gauge("holdfast_orchestrator_term", "Term of the newest election known.").add(&[], leadership.term);
    let help = "Newest entry of the log of decisions that is applied here.";
    page.gauge("holdfast_orchestrator_applied_index", help).add(&[], applied);
    let help = "Seconds since the deciding part turned.";
    let since_s = this.since_turn_ms() as f64 / 1e3;
    page.gauge("holdfast_orchestrator_since_turn_seconds", help).add(&[], since_s);
    let armed_ms = this.mind().machine.watchdog_ms;
    page.gauge("holdfast_watchdog_armed", "Whether the watchdog is armed.").add(&[], armed_ms.is_some());
}

fn tell_nodes(page: &mut Page, this: &Orchestrator, state: &State) {
    let policy = &this.options.policy;
    page.gauge("holdfast_cluster_paused", "Whether everything is paused.").add(&[], state.paused.cluster);
    let decisions = state.history.count();
    page.counter("holdfast_decisions_total", "Decisions ever made in this cluster.").add(&[], decisions);
    let health = this.health();
    for node in &policy.nodes {
        let labels = [("node", node.name.as_str())];
        let (heard, suspicions) = health.get(&node.id).copied().unwrap_or((Health::Alive, 0));
        let help = "Whether this node hears that one: 1 for what is so.";
        page.gauge("holdfast_node_health", help).add_state(&labels, "health", &HEALTH, heard.word());
        let help = "Suspicions that are not forgiven yet.";
        page.gauge("holdfast_node_suspicions", help).add(&labels, suspicions);
        let is_standby = state.standby.contains(&node.id);
        page.gauge("holdfast_node_standby", "Whether it is to be given nothing.").add(&labels, is_standby);
        let is_paused = state.paused.nodes.contains(&node.id);
        page.gauge("holdfast_node_paused", "Whether nothing is to be done about it.").add(&labels, is_paused);
        let power = &state.power;
        let help = "Whether somebody is asked to switch it off.";
        page.gauge("holdfast_node_being_fenced", help).add(&labels, power.order(node.id).is_some());
        page.gauge("holdfast_node_off", "Whether it is surely off.")
            .add(&labels, power.off(node.id).is_some());
        let failures = power.nodes.get(&node.id).map_or(0, |one| one.failures);
        let help = "Attempts in a row to switch it off that came to nothing.";
        page.gauge("holdfast_node_fence_failures", help).add(&labels, failures);
    }
}

fn tell_volume(
    page: &mut Page,
    name: &str,
    state: &State,
    volume: orchestrator_core::units::VolumeId,
    lease: Option<Instant>,
    now: Instant,
) {
    let labels = [("volume", name)];
    let left_s = lease.map_or(0, |until| until.since_ms(now)) as f64 / 1e3;
    let help = "How long this node may still serve the volume.";
    page.gauge("holdfast_volume_lease_left_seconds", help).add(&labels, left_s);
    let is_paused = state.paused.volumes.contains(&volume);
    page.gauge("holdfast_volume_paused", "Whether nothing is to be done about it.").add(&labels, is_paused);
    let help = "Whether an operator wants it elsewhere.";
    page.gauge("holdfast_volume_wanted_elsewhere", help).add(&labels, state.wanted.contains_key(&volume));
    let help = "Whether anything is agreed on about the volume.";
    page.gauge("holdfast_volume_known", help).add(&labels, state.records.contains_key(&volume));
}

fn tell_record(
    page: &mut Page,
    policy: &Policy,
    volume: &orchestrator_core::policy::Volume,
    record: &Record,
) {
    let labels = [("volume", volume.name.as_str())];
    page.gauge("holdfast_volume_epoch", "The reign.").add(&labels, record.epoch.0);
    page.gauge("holdfast_volume_version", "Changes of the record in this reign.")
        .add(&labels, record.version);
    let help = "Whether its primary has begun to serve.";
    let is_opened = record.opened && record.primary.is_some();
    page.gauge("holdfast_volume_opened", help).add(&labels, is_opened);
    let help = "What client sessions are bound to.";
    page.gauge("holdfast_volume_export_generation", help).add(&labels, record.generation);
    for node in &volume.replicas {
        let name = policy.node_name(*node);
        let labels = [("volume", volume.name.as_str()), ("node", name.as_str())];
        let help = "Whether a node is primary, by what is agreed on.";
        page.gauge("holdfast_volume_primary", help).add(&labels, record.primary == Some(*node));
        let help = "Whether a node is in the in-sync set.";
        page.gauge("holdfast_volume_member", help).add(&labels, record.in_sync.contains(*node));
    }
}

fn tell_stacks(page: &mut Page, policy: &Policy, mind: &Mind) {
    let (_, stacks) = crate::stack::report(policy, &mind.stacks);
    for (name, view) in &stacks {
        let labels = [("stack", name.as_str())];
        let words: Vec<&str> = PHASES.iter().map(|(_, word)| *word).collect();
        let is = PHASES.iter().find(|(phase, _)| *phase == view.phase).map_or("unknown", |(_, word)| *word);
        let help = "How a stack is on this node: 1 for what it is.";
        page.gauge("holdfast_stack_phase", help).add_state(&labels, "phase", &words, is);
        let help = "Failures of a stack on this node that count.";
        page.gauge("holdfast_stack_failures", help).add(&labels, view.failures);
        let help = "Whether a stack is given up on this node.";
        page.gauge("holdfast_stack_given_up", help).add(&labels, view.given_up);
    }
}

fn tell_happenings(page: &mut Page, policy: &Policy, mind: &Mind) {
    let help = "What happened since this process began, as hooks are told of it.";
    let family = page.counter("holdfast_events_total", help);
    for occasion in Occasion::ALL {
        if !OF_VOLUMES.contains(&occasion) {
            family.add(&[("event", occasion.word())], mind.watch.count(occasion, None));
            continue;
        }
        for volume in &policy.volumes {
            let labels = [("event", occasion.word()), ("volume", volume.name.as_str())];
            family.add(&labels, mind.watch.count(occasion, Some(&volume.name)));
        }
    }
}

fn tell_hooks(page: &mut Page, this: &Orchestrator) {
    let counts = &this.hooks.counts;
    let family = page.counter("holdfast_hooks_total", "Calls of hooks by what came of them.");
    for (outcome, count) in
        [("done", &counts.done), ("failed", &counts.failed), ("left-out", &counts.left_out)]
    {
        family.add(&[("outcome", outcome)], count.load(Ordering::Relaxed));
    }
}
