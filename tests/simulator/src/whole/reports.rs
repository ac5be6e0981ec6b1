//! Heartbeats, reports to the leader, and leases with its answers, as the shell sends and takes them.

use std::collections::BTreeMap;

use orchestrator_core::decide;
use orchestrator_core::record::Record;
use orchestrator_core::stack;
use orchestrator_core::units::{Instant, NodeId, NodeSet};
use orchestrator_core::view::{Health, NodeView, Report, View};

use super::draw::node_id;
use super::queue::{Answer, Letter, What};
use super::{LEASE_MS, VOLUME, Whole};
use crate::world::{MS, World};

/// A node that has nothing new to say says so this often.
const REPORT_INTERVAL_MS: u64 = 250;
/// A report older than this says nothing about now.
const REPORT_AGE_MAX_MS: u64 = 2000;
/// How long a leader waits for a majority.
const CONFIRM_WITHIN_MS: u64 = 1000;

impl Whole {
    pub(super) fn beat(&mut self, world: &mut World, m: usize) {
        let from = self.machines[m].id;
        let mind = self.mind(m);
        mind.beat += 1;
        let (process, beat) = (mind.process, mind.beat);
        for to in (0..self.machines.len()).filter(|to| *to != m) {
            self.send(world, m, to, What::Heartbeat { from, process, beat });
        }
    }

    /// Nodes that `m` has devices for.
    fn fences(&self, m: usize, nodes: usize) -> NodeSet {
        let others = (0..nodes).filter(|node| *node != m && self.draw.has_devices);
        others.map(node_id).collect()
    }

    /// What `m` has to say, and whether a lease is due.
    pub(super) fn next_report(&self, m: usize, now: Instant, nodes: usize) -> (Report, bool) {
        let machine = &self.machines[m];
        let mind = machine.mind.as_ref().expect("its process runs");
        let local = &mind.local;
        let is_due = self.state(m).records.get(&VOLUME).is_some_and(|record| {
            let left_ms = local.leases.get(&VOLUME).map_or(0, |until| until.since_ms(now));
            left_ms <= LEASE_MS * 3 / 4
                && decide::wants_lease(record, machine.id, local.replicas.get(&VOLUME))
        });
        let held = local.leases.iter().filter(|(_, until)| now < **until).map(|(volume, _)| *volume);
        let stacks = || self.policy.stacks.iter().zip(&mind.stack);
        let report = Report {
            replicas: local.replicas.clone(),
            leases: held.chain(is_due.then_some(VOLUME)).collect(),
            requests: local.requests.clone(),
            machine: machine.said(self.fences(m, nodes)),
            occupied: stack::occupied(stacks().map(|(rule, running)| (rule, &running.runner))),
            stacks: stacks().map(|(rule, running)| (rule.name.clone(), running.runner.view(rule))).collect(),
        };
        (report, is_due)
    }

    /// Tells the leader what is here, one call at a time.
    pub(super) fn report(&mut self, world: &mut World, m: usize) {
        let now = self.now(world, m);
        let is_waiting = self.mind(m).outstanding.as_ref().is_some_and(|call| now < call.gives_up_at);
        let Some(leader) = self.raft.leader.filter(|_| !is_waiting) else { return };
        let (report, asks) = self.next_report(m, now, world.nodes.len());
        let mind = self.mind(m);
        let is_new = mind
            .last
            .as_ref()
            .is_none_or(|(last, at)| *last != report || now.since_ms(*at) >= REPORT_INTERVAL_MS);
        if !is_new && !asks {
            return;
        }
        mind.sequence += 1;
        mind.last = Some((report.clone(), now));
        let (sequence, process) = (mind.sequence, mind.process);
        let gives_up_at = now.plus_ms(LEASE_MS / 2);
        mind.outstanding = Some(super::machine::Outstanding { sequence, sent: now, gives_up_at });
        let until = world.now + CONFIRM_WITHIN_MS * MS;
        let letter = Letter { from: m, process, sequence, report, asks, confirmed: false, until };
        self.send(world, m, leader, What::Letter(Box::new(letter)));
    }

    /// A report at somebody who may lead.
    pub(super) fn on_letter(&mut self, world: &mut World, m: usize, mut letter: Letter) {
        if letter.asks && !letter.confirmed && self.raft.leader == Some(m) {
            // A majority round begun after the request came in, and not before.
            letter.confirmed = self.raft.confirms(m, &self.majorities(world));
            if world.now < letter.until {
                let ms = if letter.confirmed { self.moment_ms(world) } else { 10 };
                self.later(world, m, ms, What::Letter(Box::new(letter)));
            }
            return;
        }
        let now = self.now(world, m);
        let answer = self.receive(world, m, &letter, now);
        self.send(world, m, letter.from, What::Answer(answer));
    }

    fn receive(&mut self, world: &mut World, m: usize, letter: &Letter, now: Instant) -> Answer {
        let refused = Answer { sequence: letter.sequence, applied: None, granted: false };
        let from = self.machines[letter.from].id;
        let state = self.state(m).clone();
        let term = self.raft.term;
        let is_leader = self.raft.leader == Some(m);
        let Some(leading) = self.mind(m).leading.as_mut().filter(|leading| is_leader && leading.term == term)
        else {
            return refused;
        };
        let known = leading.reports.get(&from);
        if known.is_some_and(|(_, process, sequence, _)| {
            *process == letter.process && *sequence >= letter.sequence
        }) {
            return refused;
        }
        let is_news = known.is_none_or(|(.., report)| *report != letter.report);
        leading.reports.insert(from, (now, letter.process, letter.sequence, letter.report.clone()));
        leading.note_evidence(&state);
        let closing = leading.closing;
        if is_news {
            self.wake(world, m);
        }
        let view = self.view(world, m).expect("it leads");
        let volume = &self.policy.volumes[0];
        let order = state.records.get(&VOLUME).map(Record::order);
        let is_closing = order.is_some() && closing == order;
        let granted = letter.asks
            && !is_closing
            && decide::may_grant(&state, &self.policy, &view, volume, from).is_ok();
        if granted {
            self.mind(m).leading.as_mut().expect("it leads").grants.insert((VOLUME, from), now);
        }
        Answer { sequence: letter.sequence, applied: Some(self.machines[m].applied), granted }
    }

    pub(super) fn take_answer(&mut self, world: &mut World, m: usize, answer: &Answer) {
        let mind = self.mind(m);
        let Some(call) = mind.outstanding.take_if(|call| call.sequence == answer.sequence) else { return };
        let Some(applied) = answer.applied else { return };
        mind.told = Some(mind.told.unwrap_or(0).max(applied));
        if answer.granted {
            let until = self.policy.lease.held_until(call.sent);
            let machine = &mut self.machines[m];
            machine.lease_file.insert(VOLUME, until);
            let leases = &mut machine.mind.as_mut().expect("it runs").local.leases;
            leases.insert(VOLUME, until);
            self.hand_lease(world, m);
        }
        self.wake(world, m);
    }

    /// The cluster as `m` sees it, if it believes that it leads.
    pub(super) fn view(&mut self, world: &mut World, m: usize) -> Option<View> {
        let entropy = u128::from(world.random.bits());
        let now = self.now(world, m);
        let me = self.machines[m].id;
        let mind = self.mind(m);
        let heard: BTreeMap<NodeId, Health> =
            mind.detectors.iter_mut().map(|(id, detector)| (*id, detector.advance(now))).collect();
        let leading = mind.leading.as_ref()?;
        let nodes = heard.into_iter().chain([(me, Health::Alive)]).map(|(id, health)| {
            let fresh = leading.reports.get(&id).filter(|(at, ..)| now.since_ms(*at) < REPORT_AGE_MAX_MS);
            (id, NodeView { health, report: fresh.map(|(.., report)| report.clone()) })
        });
        Some(View {
            now,
            leader_since: leading.since,
            nodes: nodes.collect(),
            grants: leading.grants.clone(),
            awaited: leading.awaited.since(),
            unsealed: leading.unsealed.iter().filter(|(_, until)| now < **until).map(|(at, _)| *at).collect(),
            entropy,
        })
    }
}
