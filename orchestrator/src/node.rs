//! One node's orchestrator while it runs: it turns every few milliseconds, reports to the leader, decides if it is the
//! leader, and does what the record asks of its own replicas. What is decided is the core's; here it is only carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use orchestrator_core::decide::{self, Decision, Planned, Proposal, Seal, Step, StepKind};
use orchestrator_core::power::PowerChange;
use orchestrator_core::record::{ChangeKind, Order, Refused};
use orchestrator_core::state::Command;
use orchestrator_core::units::{Instant, NodeId, VolumeId};
use orchestrator_core::view::{ReplicaView, Report, Role};
use replicator::identity::{CertificateError, Identity};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::clock::now;
use crate::consensus::{Consensus, ConsensusError, StartError};
use crate::heartbeat::{self, Heartbeats};
use crate::leases::LeaseFile;
use crate::link::Link;
use crate::mind::Mind;
use crate::options::Options;
use crate::transport::message::{ReportAnswer, ReportRequest, Request, Response};
use crate::transport::peer::{Address, Peer};
use crate::transport::server::{Handler, serve};
use crate::watchdog::Watchdog;

/// How often the replicator is asked what it does.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(50);
/// How long another orchestrator may take to answer.
const CALL_WITHIN: Duration = Duration::from_millis(1_000);
/// How long a replica may take to give its promise: a sync of its journal and its superblock.
const SEAL_WITHIN: Duration = Duration::from_millis(2_000);
/// How often a cluster that has not begun is looked for.
const BEGIN_INTERVAL: Duration = Duration::from_millis(200);
/// A node that has nothing new to say says so this often.
const REPORT_INTERVAL_MS: u64 = 250;

/// Why an orchestrator does not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// Consensus does not start.
    #[error(transparent)]
    Consensus(#[from] StartError),
    /// It has no certificate.
    #[error(transparent)]
    Identity(#[from] CertificateError),
    /// An address cannot be used.
    #[error("cannot listen on {address} for the other orchestrators: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("cannot start the orchestrator: {0}")]
    System(#[from] io::Error),
}

/// A running orchestrator.
pub(crate) struct Orchestrator {
    pub(crate) options: Options,
    pub(crate) consensus: Consensus,
    heartbeats: Heartbeats,
    link: Arc<dyn Link>,
    addresses: BTreeMap<NodeId, Address>,
    process: u64,
    lease_file: LeaseFile,
    pub(crate) watchdog: Mutex<Option<Watchdog>>,
    mind: Mutex<Mind>,
}

impl Orchestrator {
    /// Starts everything but the turning, which is [`Orchestrator::run`].
    pub(crate) async fn start(options: Options, link: Arc<dyn Link>) -> Result<Arc<Self>, RunError> {
        let identity = Identity::new(&options.secret, options.incarnation, options.me.0)?;
        let me = options.me;
        let others = options.nodes.iter().filter(|(node, _)| **node != me);
        let address = |(node, address): (&NodeId, &crate::options::NodeAddress)| {
            let (at, identity) = (address.listen, identity.clone());
            (*node, Address { me, node: *node, at, incarnation: options.incarnation, identity })
        };
        let addresses: BTreeMap<NodeId, Address> = others.map(address).collect();
        let detection = options.policy.detection;
        let (election_ms, heartbeat_ms) = (options.election_ms, detection.heartbeat_ms);
        let consensus =
            Consensus::start(&options.store, me, election_ms, heartbeat_ms, addresses.clone()).await?;
        let at = options.nodes[&me].listen;
        let listen = |source| RunError::Listen { address: at.to_string(), source };
        let listener = TcpListener::bind(at).await.map_err(listen)?;
        let heartbeats = Heartbeats::start(&heartbeat::Options {
            me,
            incarnation: options.incarnation,
            detection,
            secret: options.secret.clone(),
            nodes: options
                .nodes
                .iter()
                .map(|(node, at)| (*node, (at.links.clone(), at.listen.port())))
                .collect(),
        });
        let heartbeats = heartbeats.map_err(listen)?;
        let lease_file = LeaseFile::new(&options.store);
        let process = u64::from_le_bytes(crate::random()).max(1);
        let mind = Mind::new(lease_file.read(), crate::leases::boot());
        let watchdog = options.watchdog.as_ref();
        let watchdog = watchdog.map(|watchdog| Watchdog::new(watchdog.device.clone(), watchdog.timeout_ms));
        let incarnation = options.incarnation;
        let orchestrator = Arc::new(Self {
            options,
            consensus,
            heartbeats,
            link,
            addresses,
            process,
            lease_file,
            watchdog: Mutex::new(watchdog),
            mind: Mutex::new(mind),
        });
        tokio::spawn(serve(listener, identity, incarnation, Arc::clone(&orchestrator)));
        Ok(orchestrator)
    }

    pub(crate) fn mind(&self) -> MutexGuard<'_, Mind> {
        self.mind.lock().expect("nobody panics with the mind in hand")
    }

    /// Turns until told to stop.
    pub(crate) async fn run(self: &Arc<Self>, mut stop: watch::Receiver<bool>) {
        let tasks = [
            tokio::spawn(Arc::clone(self).observe()),
            tokio::spawn(Arc::clone(self).begin()),
            tokio::spawn(Arc::clone(self).report()),
            tokio::spawn(Arc::clone(self).check_agents()),
        ];
        let mut turns =
            tokio::time::interval(Duration::from_millis(self.options.policy.detection.heartbeat_ms));
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = turns.tick() => self.turn(),
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.stop_watchdog();
        self.consensus.stop().await;
    }

    fn turn(self: &Arc<Self>) {
        self.heartbeats.pulse();
        let now = now();
        let leadership = self.consensus.leadership();
        let mut mind = self.mind();
        if mind.note_leadership(leadership, now) {
            let leader = leadership.leader.map(|leader| self.options.policy.node_name(leader));
            let leader = leader.unwrap_or_else(|| "nobody".to_owned());
            mind.remember(format!("{leader} leads, term {}", leadership.term));
        }
        let steps = self.own_steps(&mut mind, now);
        let steps = self.watch_over(&mut mind, steps);
        let orders = self.new_orders(&mut mind);
        let decision = self.decision(&mut mind, now);
        drop(mind);
        for step in &steps {
            self.take(step);
        }
        for (node, number, is_wanted) in orders {
            self.switch_off(node, number, is_wanted);
        }
        if let Some(decision) = decision {
            decision.seals.iter().for_each(|seal| self.ask_seal(*seal));
            let this = Arc::clone(self);
            tokio::spawn(async move { this.propose(decision.proposals).await });
        }
        self.admit_new_stores();
    }

    /// What the leader has to propose, if nothing is under way.
    fn decision(&self, mind: &mut Mind, now: Instant) -> Option<Decision> {
        if mind.proposing {
            return None;
        }
        let applied = self.consensus.applied();
        mind.note_evidence(&applied.state);
        let view = mind.view(self.options.me, &self.heartbeats.health(now), now)?;
        let decision = decide::cluster(&applied.state, &self.options.policy, &view);
        mind.awaited.note(&decision.needs, &applied.state.power, now);
        mind.notes.clone_from(&decision.notes);
        if decision.proposals.is_empty() && decision.seals.is_empty() {
            return None;
        }
        mind.proposing = !decision.proposals.is_empty();
        for proposal in &decision.proposals {
            if let Some((volume, decided_on)) = changes_primary(&proposal.command) {
                mind.close(volume, decided_on);
            }
        }
        Some(decision)
    }

    /// Asks a replica for its promise, wherever it is. All that are asked are asked at the same time.
    fn ask_seal(self: &Arc<Self>, seal: Seal) {
        if !self.mind().begin_seal(seal) {
            return;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let response = match this.addresses.get(&seal.node).cloned() {
                Some(address) => Peer::new(address).call(&Request::Seal(seal), SEAL_WITHIN).await.ok(),
                None => Some(this.on_seal(seal).await),
            };
            let mut mind = this.mind();
            let (report, failure) = match response {
                Some(Response::Sealed(report)) => (Some(report), None),
                Some(Response::Failed(text)) => (None, Some(text)),
                _ => (None, Some("its orchestrator does not answer".to_owned())),
            };
            if let Some(text) = failure {
                let name = this.options.policy.node_name(seal.node);
                mind.remember(format!("{name} does not promise epoch {}: {text}", seal.epoch));
            }
            mind.end_seal(seal, report, now());
        });
    }

    /// Has the replica here promise an epoch, and says how this node is then.
    async fn on_seal(self: &Arc<Self>, seal: Seal) -> Response {
        let this = Arc::clone(self);
        let sealed = tokio::task::spawn_blocking(move || {
            let sealed = this.link.seal(seal.volume, seal.epoch);
            sealed.map(|_| this.link.observe())
        });
        match sealed.await {
            Ok(Ok(replicas)) => {
                let mut mind = self.mind();
                mind.local.replicas = replicas;
                // A lease that was for a reign which has ended is of no use to anybody.
                mind.local.settle(&self.consensus.applied().state, self.options.me);
                drop(mind);
                Response::Sealed(self.next_report(now()).0)
            }
            Ok(Err(error)) => Response::Failed(error.to_string()),
            Err(_) => Response::Failed("the request failed inside the orchestrator; see its log".to_owned()),
        }
    }

    async fn propose(&self, proposals: Vec<Proposal>) {
        if proposals.is_empty() {
            return;
        }
        for Proposal { command, reason } in proposals {
            let volume = changes_primary(&command);
            let outcome = self.consensus.propose(command).await;
            let mut mind = self.mind();
            match &outcome {
                Ok(Ok(())) => mind.remember(format!("decided: {reason}")),
                // Decided on an older state; the next turn sees the new one.
                Ok(Err(Refused::Stale(_))) => {}
                Ok(Err(refused)) => mind.remember(format!("not decided: {reason}: {refused}")),
                Err(error) => mind.remember(format!("not decided: {reason}: {error}")),
            }
            // While the outcome is unknown it may still come to be: no lease while the record is the same.
            if let (Some((volume, _)), Ok(_)) = (volume, &outcome) {
                mind.reopen(volume);
            }
        }
        self.mind().proposing = false;
    }

    /// What the record asks of the replicas here, as far as it is known to be new enough.
    fn own_steps(&self, mind: &mut Mind, now: Instant) -> Vec<Step> {
        let applied = self.consensus.applied();
        if mind.told.is_none_or(|told| applied.index < told) {
            return Vec::new();
        }
        let (state, policy, me) = (&applied.state, &self.options.policy, self.options.me);
        mind.local.now = now;
        mind.local.settle(state, me);
        mind.local.ask(state, policy, me);
        decide::node(state, policy, me, &mind.local)
    }

    /// Carries out a step on a thread that may block.
    fn take(self: &Arc<Self>, step: &Step) {
        let this = Arc::clone(self);
        let (step, volume, kind) = (step.clone(), step.volume, step.kind);
        let name = self.options.policy.volume(volume).map_or_else(String::new, |volume| volume.name.clone());
        let what = match step.kind {
            StepKind::Open(epoch) => format!("begin epoch {epoch}"),
            StepKind::Release => "release".to_owned(),
            StepKind::Tell((epoch, version)) => format!("tell it epoch {epoch} version {version}"),
        };
        self.mind().remember(format!("{name}: {what}, since {}", step.reason));
        tokio::task::spawn_blocking(move || {
            let lease = this.mind().local.leases.get(&volume).copied();
            let result = this.link.act(&step, lease);
            // Seen at once, so that the next turn does not decide on what was before.
            let local = this.link.observe();
            let mut mind = this.mind();
            match result {
                Ok(text) => mind.remember(format!("{name}: {what}: {text}")),
                Err(error) => mind.remember(format!("{name}: {what} failed: {error}")),
            }
            mind.local.replicas = local;
            mind.end(volume, kind);
            drop(mind);
            // One that was granted meanwhile.
            this.hand_lease(volume);
        });
    }

    /// Tells the replica here until when it may answer clients, if it reigns. Blocks.
    fn hand_lease(&self, volume: VolumeId) {
        let mut mind = self.mind();
        let replica = match mind.local.replicas.get(&volume) {
            Some(ReplicaView::Running(replica)) if replica.role != Role::Secondary => replica.record.0,
            _ => return,
        };
        let Some(until) = mind.local.leases.get(&volume).copied() else { return };
        if !mind.leasing.insert(volume) {
            return;
        }
        drop(mind);
        // If it does not come there, the next one will.
        let _ = self.link.lease(volume, replica, until);
        self.mind().leasing.remove(&volume);
    }

    /// Asks the replicator again and again.
    async fn observe(self: Arc<Self>) {
        loop {
            let link = Arc::clone(&self.link);
            if let Ok(local) = tokio::task::spawn_blocking(move || link.observe()).await {
                self.mind().local.replicas = local;
            }
            tokio::time::sleep(OBSERVE_INTERVAL).await;
        }
    }

    /// Begins the cluster, once: when every configured node answers that its store is empty. The lowest number begins.
    async fn begin(self: Arc<Self>) {
        let mut peers: BTreeMap<NodeId, Peer> =
            self.addresses.iter().map(|(node, address)| (*node, Peer::new(address.clone()))).collect();
        while !self.consensus.is_initialized().await {
            let mut voters = BTreeSet::from([self.consensus.voter()]);
            let mut is_first = true;
            for (node, peer) in &mut peers {
                match peer.call(&Request::Identify, CALL_WITHIN).await {
                    Ok(Response::Identity { voter, initialized: false }) => drop(voters.insert(voter)),
                    _ => break,
                }
                is_first &= *node > self.options.me;
            }
            if is_first && voters.len() == self.options.nodes.len() {
                let text = match self.consensus.begin(&voters).await {
                    Ok(()) => format!("a new cluster of {} voters begins", voters.len()),
                    Err(error) => format!("a new cluster does not begin: {error}"),
                };
                self.mind().remember(text);
            }
            tokio::time::sleep(BEGIN_INTERVAL).await;
        }
    }

    /// A node that lost its store comes back as another voter; the leader puts it in the place of the old one.
    fn admit_new_stores(self: &Arc<Self>) {
        let mut mind = self.mind();
        if mind.admitting || !mind.leads_in(self.consensus.leadership()) {
            return;
        }
        let voters = self.consensus.voters();
        let Some(new) = mind.reported_voters().find(|voter| !voters.contains(voter)) else { return };
        mind.admitting = true;
        drop(mind);
        let node = crate::consensus::node_of(new);
        let kept = voters.into_iter().filter(|voter| crate::consensus::node_of(*voter) != node);
        let wanted: BTreeSet<u64> = kept.chain([new]).collect();
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let result = this.consensus.admit(wanted, new).await;
            let name = this.options.policy.node_name(node);
            let mut mind = this.mind();
            match result {
                Ok(()) => mind.remember(format!("{name} votes with a new store")),
                Err(error) => mind.remember(format!("{name} does not vote with its new store yet: {error}")),
            }
            mind.admitting = false;
        });
    }

    /// Tells the leader what is here, and asks for leases.
    async fn report(self: Arc<Self>) {
        let mut peers: BTreeMap<NodeId, Peer> =
            self.addresses.iter().map(|(node, address)| (*node, Peer::new(address.clone()))).collect();
        let interval = Duration::from_millis(self.options.policy.detection.heartbeat_ms);
        let (mut sequence, mut last, mut last_at) = (0, None, Instant(0));
        let mut guesses = peers.keys().copied().collect::<Vec<_>>().into_iter().cycle();
        let mut hint = None;
        loop {
            let began = now();
            let (report, leases) = self.next_report(began);
            let leader = self.consensus.leadership().leader.or(hint.take()).or_else(|| guesses.next());
            let is_new = last.as_ref() != Some(&report) || began.since_ms(last_at) >= REPORT_INTERVAL_MS;
            if let Some(leader) = leader.filter(|_| is_new || !leases.is_empty()) {
                sequence += 1;
                let (process, voter) = (self.process, self.consensus.voter());
                let request = ReportRequest { process, sequence, voter, report: report.clone(), leases };
                let response = match peers.get_mut(&leader) {
                    Some(peer) => peer.call(&Request::Report(request), CALL_WITHIN).await,
                    None => Ok(self.on_report(self.options.me, request).await),
                };
                match response {
                    Ok(Response::Reported(answer)) => {
                        (last, last_at) = (Some(report), began);
                        self.take_answer(&answer, began);
                    }
                    Ok(Response::NotLeader(other)) => hint = other.filter(|other| *other != leader),
                    _ => {}
                }
            }
            tokio::time::sleep(interval).await;
        }
    }

    /// What is to be reported, and which leases are due.
    fn next_report(&self, now: Instant) -> (Report, Vec<VolumeId>) {
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
        (Report { replicas, leases, requests, machine: mind.machine }, due)
    }

    fn take_answer(self: &Arc<Self>, answer: &ReportAnswer, sent: Instant) {
        let mut mind = self.mind();
        mind.told = Some(mind.told.unwrap_or(0).max(answer.applied));
        if answer.granted.is_empty() {
            return;
        }
        let until = self.options.policy.lease.held_until(sent);
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
    async fn on_report(&self, from: NodeId, request: ReportRequest) -> Response {
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
        if !mind.take_report(from, &request, now) {
            return Response::Failed("a newer report came first".to_owned());
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
                Err(withheld) => answer.withheld.push((volume.id, withheld.text(now))),
            }
        }
        Response::Reported(answer)
    }

    /// Proposes an operator's command here or at the leader.
    pub(crate) async fn command(&self, command: Command) -> Result<(), String> {
        let response = match self.consensus.leadership().leader {
            Some(leader) if leader != self.options.me => {
                let address = self.addresses.get(&leader).cloned().ok_or("the leader is not configured")?;
                let asked = Peer::new(address).call(&Request::Propose(command), CALL_WITHIN * 6).await;
                asked.map_err(|error| format!("the leader does not answer: {error}"))?
            }
            _ => self.on_propose(self.options.me, command).await,
        };
        match response {
            Response::Proposed(Ok(())) => Ok(()),
            Response::Proposed(Err(refused)) => Err(refused.to_string()),
            Response::NotLeader(_) => Err("there is no leader: is a majority of the nodes up?".to_owned()),
            Response::Failed(text) => Err(text),
            _ => Err("the leader answers another question".to_owned()),
        }
    }

    async fn on_propose(&self, from: NodeId, command: Command) -> Response {
        match &command {
            Command::Create { .. } | Command::Change { .. } => {
                return Response::Failed("records are changed by decisions only".to_owned());
            }
            Command::Power { change: PowerChange::Runs { .. } | PowerChange::Spare { .. }, .. } => {
                return Response::Failed("this is decided by the leader only".to_owned());
            }
            Command::Power { node, change: PowerChange::Fenced { number, .. } } => {
                let applied = self.consensus.applied();
                let order = applied.state.power.order(*node).filter(|order| order.number == *number);
                if order.is_some_and(|order| order.by != from) {
                    return Response::Failed("somebody else was asked to switch that node off".to_owned());
                }
            }
            _ => {}
        }
        match self.consensus.propose(command).await {
            Ok(outcome) => Response::Proposed(outcome),
            Err(ConsensusError::NotLeader(leader)) => Response::NotLeader(leader),
            Err(error) => Response::Failed(error.to_string()),
        }
    }

    /// What would be decided if a node were dead; `None` if this node does not lead.
    pub(crate) fn plan(&self, dead: Option<NodeId>) -> Option<Vec<Planned>> {
        let now = now();
        let view = self.mind().view(self.options.me, &self.heartbeats.health(now), now)?;
        Some(decide::plan(&self.consensus.applied().state, &self.options.policy, &view, dead))
    }

    /// Whom this node hears.
    pub(crate) fn health(&self) -> BTreeMap<NodeId, (orchestrator_core::view::Health, u32)> {
        self.health_of(now())
    }

    pub(crate) fn health_of(&self, now: Instant) -> BTreeMap<NodeId, (orchestrator_core::view::Health, u32)> {
        self.heartbeats.health(now)
    }
}

impl Handler for Orchestrator {
    async fn handle(self: &Arc<Self>, from: NodeId, request: Request) -> Response {
        match self.consensus.handle(request).await {
            Ok(response) => response,
            Err(Request::Identify) => {
                let initialized = self.consensus.is_initialized().await;
                Response::Identity { voter: self.consensus.voter(), initialized }
            }
            Err(Request::Report(request)) => self.on_report(from, request).await,
            Err(Request::Propose(command)) => self.on_propose(from, command).await,
            Err(Request::Seal(seal)) => self.on_seal(seal).await,
            Err(_) => Response::Failed("this is for Raft, which did not take it".to_owned()),
        }
    }
}

/// The volume whose primary a command changes, and the record on which that was decided.
fn changes_primary(command: &Command) -> Option<(VolumeId, Order)> {
    match command {
        Command::Change { volume, change }
            if matches!(change.kind, ChangeKind::Takeover(_) | ChangeKind::Release) =>
        {
            Some((*volume, change.expected))
        }
        _ => None,
    }
}
