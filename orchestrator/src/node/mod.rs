//! One node's orchestrator while it runs: it turns every few milliseconds, reports to the leader, decides if it is the
//! leader, and does what the record asks of its own replicas. What is decided is the core's; here it is only carried out.

mod keys;
mod newcomers;
mod proposals;
mod questions;
mod reports;
mod seal;
mod steps;
pub(crate) mod voters;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use orchestrator_core::decide::{self, Decision};
use orchestrator_core::units::{Instant, NodeId};
use replicator::config::Occasion;
use replicator::control::ServerError;
use replicator::identity::CertificateError;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use self::keys::Reserved;
use self::proposals::changes_primary;
use crate::clock::now;
use crate::consensus::{Consensus, StartError};
use crate::happening::Happening;
use crate::heartbeat::{self, Heartbeats};
use crate::hook::Hooks;
use crate::join::{Answer, Ask, Binding, Invitations};
use crate::keys::{KeyStore, Names};
use crate::leases::LeaseFile;
use crate::link::Link;
use crate::mind::{EventKind, Mind};
use crate::options::Options;
use crate::power::unix_ms;
use crate::transport::message::{Request, Response};
use crate::transport::peer::Address;
use crate::transport::server::{Handler, serve};
use crate::watchdog::Watchdog;

/// How long another orchestrator may take to answer.
const CALL_WITHIN: Duration = Duration::from_millis(1_000);

/// How long the answer to whoever has it begin anew may take to leave.
const ANSWER_FOR: Duration = Duration::from_millis(50);

/// Why an orchestrator does not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// Consensus does not start.
    #[error(transparent)]
    Consensus(#[from] StartError),
    /// It has no certificate.
    #[error(transparent)]
    Identity(#[from] CertificateError),
    /// The address for load balancers and operators cannot be used.
    #[error(transparent)]
    Api(#[from] ServerError),
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
    pub(crate) process: u64,
    lease_file: LeaseFile,
    pub(crate) watchdog: Mutex<Option<Watchdog>>,
    pub(crate) hooks: Hooks,
    invitations: Mutex<Invitations>,
    pub(crate) keys: KeyStore,
    /// Taken for as long as a step of a rotation of the keys is carried out.
    reserved: tokio::sync::Mutex<Reserved>,
    mind: Mutex<Mind>,
    /// There is something to decide on before the next turn is due.
    wake: Notify,
    /// There may be something to report before the next report is due.
    news: Notify,
    /// The process is to begin anew, with the configuration as it is now.
    again: Notify,
}

/// Why an orchestrator has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// It is to begin anew, with the configuration as it is now.
    Again,
}

impl Orchestrator {
    /// Starts everything but the turning, which is [`Orchestrator::run`].
    pub(crate) async fn start(options: Options, link: Arc<dyn Link>) -> Result<Arc<Self>, RunError> {
        let me = options.me;
        let keys = key_store(&options)?;
        let others = || options.nodes.iter().filter(|(node, _)| **node != me);
        let preferred: BTreeMap<NodeId, watch::Sender<usize>> =
            others().map(|(node, _)| (*node, watch::Sender::new(0))).collect();
        let address = |(node, at): (&NodeId, &Vec<SocketAddr>)| {
            let (at, link) = (at.clone(), preferred[node].subscribe());
            (*node, Address { me, node: *node, at, link, keys: keys.watch() })
        };
        let addresses: BTreeMap<NodeId, Address> = others().map(address).collect();
        let detection = options.policy.detection;
        let (election_ms, heartbeat_ms) = (options.election_ms, detection.heartbeat_ms);
        let consensus =
            Consensus::start(&options.store, me, election_ms, heartbeat_ms, addresses.clone()).await?;
        let mut listeners = Vec::new();
        for at in &options.nodes[&me] {
            let listener = TcpListener::bind(at).await;
            listeners.push(listener.map_err(|source| RunError::Listen { address: at.to_string(), source })?);
        }
        let heartbeats = Heartbeats::start(heartbeat::Options {
            me,
            incarnation: options.incarnation,
            detection,
            keys: keys.watch(),
            nodes: options.nodes.clone(),
            preferred,
        });
        let address = || options.nodes[&me].iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let heartbeats = heartbeats.map_err(|source| RunError::Listen { address: address(), source })?;
        let lease_file = LeaseFile::new(&options.store);
        let process = u64::from_le_bytes(crate::random()).max(1);
        let mut mind = Mind::new(lease_file.read(), crate::leases::boot());
        mind.stacks = crate::stack::begin(&options.policy, me);
        let watchdog = options.watchdog.as_ref();
        let watchdog = watchdog.map(|watchdog| Watchdog::new(watchdog.device.clone(), watchdog.timeout_ms));
        let name = options.policy.node_name(me);
        let hooks = Hooks::start(options.hooks.clone(), options.cluster.clone(), name)?;
        let orchestrator = Arc::new(Self {
            options,
            consensus,
            heartbeats,
            link,
            addresses,
            process,
            lease_file,
            watchdog: Mutex::new(watchdog),
            hooks,
            invitations: Mutex::new(Invitations::default()),
            keys,
            reserved: tokio::sync::Mutex::default(),
            mind: Mutex::new(mind),
            wake: Notify::new(),
            news: Notify::new(),
            again: Notify::new(),
        });
        for listener in listeners {
            tokio::spawn(serve(listener, orchestrator.keys.watch(), Arc::clone(&orchestrator)));
        }
        Ok(orchestrator)
    }

    pub(crate) fn mind(&self) -> MutexGuard<'_, Mind> {
        self.mind.lock().expect("nobody panics with the mind in hand")
    }

    /// Turns until told to stop.
    pub(crate) async fn run(self: &Arc<Self>, mut stop: watch::Receiver<bool>) -> Ended {
        let tasks = [
            tokio::spawn(Arc::clone(self).observe()),
            tokio::spawn(Arc::clone(self).begin()),
            tokio::spawn(Arc::clone(self).report()),
            tokio::spawn(Arc::clone(self).check_agents()),
        ];
        let mut turns =
            tokio::time::interval(Duration::from_millis(self.options.policy.detection.heartbeat_ms));
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut applied = self.consensus.watch();
        let ended = loop {
            tokio::select! {
                _ = turns.tick() => {}
                () = self.wake.notified() => {}
                Ok(()) = applied.changed() => {}
                _ = stop.wait_for(|stop| *stop) => break Ended::Stopped,
                () = self.again.notified() => break Ended::Again,
            }
            self.turn();
        };
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.stop_watchdog();
        self.hooks.stop();
        self.consensus.stop().await;
        ended
    }

    /// Ends, to begin anew with the configuration as it is now; whoever asked has time to be answered.
    pub(crate) fn begin_anew(self: &Arc<Self>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(ANSWER_FOR).await;
            this.again.notify_one();
        });
    }

    fn turn(self: &Arc<Self>) {
        self.heartbeats.pulse();
        let now = now();
        let leadership = self.consensus.leadership();
        let mut mind = self.mind();
        if mind.note_leadership(leadership, now) {
            let leader = leadership.leader.map(|leader| self.options.policy.node_name(leader));
            let text = format!("{} leads, term {}", leader.unwrap_or_default(), leadership.term);
            let mut happening = Happening::new(Occasion::Leader, text.clone(), String::new());
            happening.node = leadership.leader.map(|leader| self.options.policy.node_name(leader));
            mind.watch.happened(happening);
            mind.happen(EventKind::Leader, None, text);
        }
        for (node, is_heard) in mind.note_health(&self.heartbeats.health(now)) {
            let name = self.options.policy.node_name(node);
            let text = if is_heard { format!("{name} is heard") } else { format!("{name} is not heard") };
            let occasion = if is_heard { Occasion::NodeBack } else { Occasion::NodeLost };
            let mut happening = Happening::new(occasion, text.clone(), String::new());
            happening.node = Some(name.clone());
            mind.watch.happened(happening);
            mind.happen(EventKind::Node, Some(name), text);
        }
        mind.note_decisions(&self.consensus.applied(), &self.options.policy);
        let Mind { watch, local, .. } = &mut *mind;
        watch.seen(&local.replicas, &self.options.policy, self.options.me);
        let happenings = watch.take_new();
        let steps = self.own_steps(&mut mind, now);
        let steps = self.watch_over(&mut mind, steps);
        let orders = self.new_orders(&mut mind);
        let decision = self.decision(&mut mind, now);
        drop(mind);
        for step in &steps {
            self.take(step);
        }
        for happening in &happenings {
            self.hooks.tell(happening, leadership.is_me, unix_ms());
        }
        self.turn_stacks();
        for (node, number, is_wanted) in orders {
            self.switch_off(node, number, is_wanted);
        }
        if let Some(decision) = decision {
            decision.seals.iter().for_each(|seal| self.ask_seal(*seal));
            let this = Arc::clone(self);
            tokio::spawn(async move { this.propose(decision.proposals).await });
        }
        self.change_voters();
        // What was seen or asked for in this turn; if it is nothing new, nothing is sent.
        self.news.notify_one();
    }

    /// What the leader has to propose, if nothing is under way.
    fn decision(self: &Arc<Self>, mind: &mut Mind, now: Instant) -> Option<Decision> {
        if mind.proposing {
            return None;
        }
        let applied = self.consensus.applied();
        mind.note_evidence(&applied.state);
        let view = mind.view(self.options.me, &self.heartbeats.health(now), now)?;
        if let Some(next) = decide::successor(&applied.state, &self.options.policy, &view, self.options.me)
            && mind.may_hand_over(now)
        {
            self.hand_over(mind, next);
        }
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

    /// How long ago the deciding part turned.
    pub(crate) fn since_turn_ms(&self) -> u64 {
        now().since_ms(self.heartbeats.pulsed_at())
    }

    /// Whom this node hears.
    pub(crate) fn health(&self) -> BTreeMap<NodeId, (orchestrator_core::view::Health, u32)> {
        self.health_of(now())
    }

    pub(crate) fn health_of(&self, now: Instant) -> BTreeMap<NodeId, (orchestrator_core::view::Health, u32)> {
        self.heartbeats.health(now)
    }
}

fn key_store(options: &Options) -> Result<KeyStore, CertificateError> {
    let names = options.api.as_ref().map(|(_, addresses)| Names {
        node: options.policy.node_name(options.me),
        addresses: addresses.clone(),
    });
    let (secrets, files) = (options.secrets.clone(), options.secret_files.clone());
    KeyStore::new(secrets, files, options.incarnation, options.me, names)
}

impl Handler for Orchestrator {
    async fn handle(self: &Arc<Self>, from: NodeId, request: Request) -> Response {
        // Nobody follows or elects a node that the configuration does not have, or no longer has.
        if !self.options.nodes.contains_key(&from) {
            return Response::Excluded;
        }
        match self.consensus.handle(request).await {
            Ok(response) => response,
            Err(Request::Identify) => {
                let initialized = self.consensus.is_initialized().await;
                Response::Identity { voter: self.consensus.voter(), initialized }
            }
            Err(Request::Report(request)) => self.on_report(from, request).await,
            Err(Request::Propose(entry)) => self.on_propose(from, entry).await,
            Err(Request::Ask(question)) => self.on_ask(&question),
            Err(Request::Seal(seal)) => self.on_seal(seal).await,
            Err(Request::Keys(request)) => {
                self.on_keys(request).await.map_or_else(Response::Failed, Response::Keys)
            }
            Err(_) => Response::Failed("this is for Raft, which did not take it".to_owned()),
        }
    }

    async fn welcome(self: &Arc<Self>, binding: Binding, ask: Ask) -> Answer {
        self.on_newcomer(binding, &ask).await
    }
}
