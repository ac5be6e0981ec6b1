//! Reports to the leader, and leases with its answers. A part of the running orchestrator; what is granted is decided by
//! the core.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::decide;
use orchestrator_core::units::{Instant, NodeId, VolumeId};
use orchestrator_core::view::Report;

use super::{CALL_WITHIN, Orchestrator};
use crate::clock::now;
use crate::consensus::ConsensusError;
use crate::transport::message::{ReportAnswer, ReportRequest, Request, Response};
use crate::transport::peer::Peer;

/// A node that has nothing new to say says so this often.
const REPORT_INTERVAL_MS: u64 = 250;

impl Orchestrator {
    /// Tells the leader what is here, and asks for leases.
    pub(super) async fn report(self: Arc<Self>) {
        let mut peers: BTreeMap<NodeId, Peer> =
            self.addresses.iter().map(|(node, address)| (*node, Peer::new(address.clone()))).collect();
        // One that does not answer leads no more, perhaps, and the lease is to be renewed by whoever follows.
        let within = Duration::from_millis(self.options.policy.lease.duration_ms / 2).min(CALL_WITHIN);
        let (mut sequence, mut last, mut last_at) = (0, None, Instant(0));
        let mut guesses = peers.keys().copied().collect::<Vec<_>>().into_iter().cycle();
        let mut hint = None;
        loop {
            // Each turn wakes it, in case there is something to say.
            let mut wait_ms = REPORT_INTERVAL_MS;
            let began = now();
            let (report, leases) = self.next_report(began);
            // A leader that hears nobody is perhaps none any more, and others know why.
            let is_known = |leader: &NodeId| *leader != self.options.me || self.hears_anybody(began);
            let leader = self.consensus.leadership().leader.filter(is_known);
            let leader = leader.or(hint.take()).or_else(|| guesses.next());
            let is_new = last.as_ref() != Some(&report) || began.since_ms(last_at) >= REPORT_INTERVAL_MS;
            if let Some(leader) = leader.filter(|_| is_new || !leases.is_empty()) {
                sequence += 1;
                let (process, voter) = (self.process, self.consensus.voter());
                let request = ReportRequest { process, sequence, voter, report: report.clone(), leases };
                let response = match peers.get_mut(&leader) {
                    Some(peer) => peer.call(&Request::Report(request), within).await,
                    None => Ok(self.on_report(self.options.me, request).await),
                };
                match response {
                    Ok(Response::Excluded) => self.note_excluded(Some(leader)),
                    Ok(Response::Reported(answer)) => {
                        self.note_excluded(None);
                        (last, last_at) = (Some(report), began);
                        wait_ms = answer.again_ms.map_or(wait_ms, |again_ms| again_ms.min(wait_ms));
                        self.take_answer(&answer, began);
                    }
                    Ok(Response::NotLeader(other)) => hint = other.filter(|other| *other != leader),
                    _ => {}
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
                () = self.news.notified() => {}
            }
        }
    }

    fn hears_anybody(&self, now: Instant) -> bool {
        self.heartbeats.health(now).values().any(|(health, _)| health.is_heard())
    }

    /// What is to be reported, and which leases are due.
    pub(super) fn next_report(&self, now: Instant) -> (Report, Vec<VolumeId>) {
        let applied = self.consensus.applied();
        let mind = self.mind();
        let quarter_ms = self.options.policy.lease.duration_ms / 4;
        let records = applied.state.records.iter();
        let due = records.filter(|(volume, record)| {
            let is_due =
                mind.local.leases.get(volume).is_none_or(|until| until.since_ms(now) <= 3 * quarter_ms);
            is_due && decide::wants_lease(record, self.options.me, mind.local.replicas.get(volume))
        });
        let due: Vec<VolumeId> = due.map(|(volume, _)| *volume).collect();
        let held = mind.local.leases.iter().filter(|(_, until)| now < **until).map(|(volume, _)| *volume);
        let leases = held.chain(due.iter().copied()).collect();
        let (replicas, requests) = (mind.local.replicas.clone(), mind.local.requests.clone());
        let (occupied, stacks) = crate::stack::report(&self.options.policy, &mind.stacks);
        (Report { replicas, leases, requests, machine: mind.machine, occupied, stacks }, due)
    }

    fn take_answer(self: &Arc<Self>, answer: &ReportAnswer, sent: Instant) {
        let mut mind = self.mind();
        if mind.told.is_none_or(|told| told < answer.applied) {
            mind.told = Some(answer.applied);
            self.wake.notify_one();
        }
        if answer.granted.is_empty() {
            return;
        }
        let until = self.options.policy.lease.held_until(sent);
        if answer.granted.iter().any(|volume| !mind.local.leases.contains_key(volume)) {
            self.wake.notify_one();
        }
        mind.local.leases.extend(answer.granted.iter().map(|volume| (*volume, until)));
        if let Err(error) = self.lease_file.write(&mind.local.leases) {
            mind.remember(format!("leases are not kept across a restart of the orchestrator: {error}"));
        }
        drop(mind);
        for volume in answer.granted.iter().copied() {
            let this = Arc::clone(self);
            tokio::task::spawn_blocking(move || this.hand_lease(volume));
        }
    }

    /// A node's report, at the leader.
    pub(super) async fn on_report(&self, from: NodeId, request: ReportRequest) -> Response {
        let leadership = self.consensus.leadership();
        if !leadership.is_me {
            return Response::NotLeader(leadership.leader);
        }
        // A majority round begun after the request came in, and not before.
        if !request.leases.is_empty()
            && let Err(error) = self.consensus.confirm().await
        {
            return match error {
                ConsensusError::NotLeader(leader) => Response::NotLeader(leader),
                other => Response::Failed(other.to_string()),
            };
        }
        let (now, applied) = (now(), self.consensus.applied());
        let health = self.heartbeats.health(now);
        let mut mind = self.mind();
        if !mind.leads_in(self.consensus.leadership()) {
            // The election was noticed by others and not yet here, or is over.
            return Response::NotLeader(None);
        }
        let is_news = mind.is_news(from, &request.report);
        if !mind.take_report(from, &request, now) {
            return Response::Failed("a newer report came first".to_owned());
        }
        if is_news {
            self.wake.notify_one();
        }
        mind.note_evidence(&applied.state);
        let Some(view) = mind.view(self.options.me, &health, now) else { return Response::NotLeader(None) };
        let mut answer = ReportAnswer { applied: applied.index, ..ReportAnswer::default() };
        for volume in request.leases.iter().filter_map(|volume| self.options.policy.volume(*volume)) {
            if mind.is_closing(volume.id, &applied.state) {
                let text = "its primary is about to change".to_owned();
                answer.withheld.push((volume.id, text));
                continue;
            }
            match decide::may_grant(&applied.state, &self.options.policy, &view, volume, from) {
                Ok(()) => {
                    mind.grant(volume.id, from, now);
                    answer.granted.push(volume.id);
                }
                Err(withheld) => {
                    answer.withheld.push((volume.id, withheld.text(now)));
                    answer.again_ms = answer.again_ms.into_iter().chain(withheld.again_ms(now)).min();
                }
            }
        }
        Response::Reported(answer)
    }
}
