//! The routes of the control interface and what each answers.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use orchestrator_core::record::Record;
use orchestrator_core::state::{Command, Scope};
use orchestrator_core::units::{NodeId, VolumeId};
use orchestrator_core::view::Health;
use replicator::control::json::{Done, Failure, FailureReason};

use super::json::{Move, NodeReport, RecordReport, Status, Switch, VolumeReport};
use super::{explain, history, keys, newcomers, power, reload, stack};
use crate::clock::now;
use crate::consensus::node_of;
use crate::node::Orchestrator;
use crate::node::voters::excluded_text;
use crate::transport::message::{Answer, Question};

/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 4 << 10;

/// Why something is so that was asked for here.
pub(super) const OPERATOR: &str = "an operator asked for it";

pub(crate) type App = State<Arc<Orchestrator>>;

/// The routes of the control socket: what operators may, and what hands out the secret.
pub(super) fn router(orchestrator: Arc<Orchestrator>) -> Router {
    full_router()
        .route("/v1/nodes/{node}/token", post(newcomers::invite))
        .route("/v1/keys/rotate", post(keys::rotate))
        .route("/v1/reload", post(reload::reload))
        .with_state(orchestrator)
}

/// Everything that operators may ask and tell, also from afar.
pub(crate) fn full_router() -> Router<Arc<Orchestrator>> {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/plan", get(explain::plan))
        .route("/v1/explain/{name}", get(explain::explain))
        .route("/v1/history", get(history::history))
        .route("/v1/events", get(history::events))
        .route("/v1/volumes/{volume}/move", post(move_volume))
        .route("/v1/stacks/{stack}/forgive", post(stack::forgive))
        .route("/v1/nodes/{node}/standby", post(standby))
        .route("/v1/nodes/{node}/fence", get(power::plan).post(power::fence))
        .route("/v1/nodes/{node}/confirm-off", post(power::confirm_off))
        .route("/v1/pause", post(pause))
        .fallback(no_route)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

pub(super) async fn status(State(this): App) -> Json<Status> {
    // What the decisions say to people is known where they are made.
    let notes = match this.ask(Question::Notes).await {
        Ok(Answer::Notes(notes)) => notes,
        _ => Vec::new(),
    };
    Json(Status { notes, ..status_without_notes(&this) })
}

/// The status without what only the leader can say.
pub(crate) fn status_without_notes(this: &Orchestrator) -> Status {
    let (applied, leadership) = (this.consensus.applied(), this.consensus.leadership());
    let (policy, state, mind, now) = (&this.options.policy, &applied.state, this.mind(), now());
    let health = this.health();
    let voters: BTreeSet<NodeId> = this.consensus.voters().into_iter().map(node_of).collect();
    let node = |node: &orchestrator_core::policy::Node| {
        let (heard, suspicions) = health.get(&node.id).copied().unwrap_or((Health::Alive, 0));
        NodeReport {
            name: node.name.clone(),
            health: heard.word().to_owned(),
            votes: voters.contains(&node.id),
            suspicions,
            standby: state.standby.contains(&node.id),
            paused: state.paused.nodes.contains(&node.id),
            power: power::text(policy, state, node.id),
            watchdog_ms: state.power.nodes.get(&node.id).and_then(|one| one.watchdog_ms),
        }
    };
    let volume = |volume: &orchestrator_core::policy::Volume| {
        let lease = mind.local.leases.get(&volume.id).map(|until| until.since_ms(now)).filter(|ms| *ms > 0);
        VolumeReport {
            name: volume.name.clone(),
            paused: state.paused.volumes.contains(&volume.id),
            wanted: state.wanted.get(&volume.id).map(|node| policy.node_name(*node)),
            record: state.records.get(&volume.id).map(|record| record_of(this, record)),
            lease_ms: lease,
        }
    };
    Status {
        cluster: this.options.cluster.clone(),
        node: policy.node_name(this.options.me),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        leader: leadership.leader.map(|leader| policy.node_name(leader)),
        term: leadership.term,
        applied: applied.index,
        paused: state.paused.cluster,
        nodes: policy.nodes.iter().map(node).collect(),
        volumes: policy.volumes.iter().map(volume).collect(),
        stacks: stack::reports(this, state, &mind),
        notes: Vec::new(),
        power: power::history(policy, state),
        excluded: mind.excluded_by.map(|leader| excluded_text(&policy.node_name(leader))),
        events: mind.events(),
    }
}

fn record_of(this: &Orchestrator, record: &Record) -> RecordReport {
    let policy = &this.options.policy;
    RecordReport {
        epoch: record.epoch.0,
        version: record.version,
        primary: record.primary.map(|node| policy.node_name(node)),
        opened: record.opened,
        in_sync: record.in_sync.iter().map(|node| policy.node_name(node)).collect(),
        generation: record.generation,
        proof: record.proof.text(policy),
    }
}

pub(super) fn not_leader(this: &Orchestrator) -> Refusal {
    let leader = this.consensus.leadership().leader;
    let leader = leader.map_or_else(|| "nobody".to_owned(), |leader| this.options.policy.node_name(leader));
    let hint = format!("ask the leader, which is {leader}");
    Refusal::new(StatusCode::CONFLICT, "not-leader", "only the leader knows what all nodes say", hint)
}

async fn move_volume(
    State(this): App,
    Path(name): Path<String>,
    Json(request): Json<Move>,
) -> Result<Json<Done>, Refusal> {
    let volume = volume(&this, &name)?;
    let to = request.to.map(|name| node(&this, &name)).transpose()?;
    let where_to =
        to.map_or_else(|| "nowhere in particular".to_owned(), |to| this.options.policy.node_name(to));
    propose(&this, Command::Want { volume, node: to }, OPERATOR, format!("{name} is wanted on {where_to}"))
        .await
}

async fn standby(
    State(this): App,
    Path(name): Path<String>,
    Json(request): Json<Switch>,
) -> Result<Json<Done>, Refusal> {
    let node = node(&this, &name)?;
    let state = if request.on { "in standby" } else { "no more in standby" };
    propose(&this, Command::Standby { node, on: request.on }, OPERATOR, format!("{name} is {state}")).await
}

async fn pause(State(this): App, Json(request): Json<Switch>) -> Result<Json<Done>, Refusal> {
    let (scope, what) = match (&request.volume, &request.node) {
        (Some(name), None) => (Scope::Volume(volume(&this, name)?), name.clone()),
        (None, Some(name)) => (Scope::Node(node(&this, name)?), name.clone()),
        (None, None) => (Scope::Cluster, "everything".to_owned()),
        (Some(_), Some(_)) => {
            let message = "a pause is of a volume or of a node";
            let hint = "name one of them, or none for all".to_owned();
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad-scope", message, hint));
        }
    };
    let state = if request.on { "is paused" } else { "goes on" };
    propose(&this, Command::Pause { scope, on: request.on }, OPERATOR, format!("{what} {state}")).await
}

pub(super) async fn propose(
    this: &Orchestrator,
    command: Command,
    reason: &str,
    done: String,
) -> Result<Json<Done>, Refusal> {
    match this.command(command, reason).await {
        Ok(()) => Ok(Json(Done { message: done })),
        Err(text) => Err(Refusal::new(StatusCode::CONFLICT, "refused", text, None)),
    }
}

async fn no_route(method: Method, uri: Uri) -> Refusal {
    let message = format!("there is no {method} {}", uri.path());
    Refusal::new(StatusCode::NOT_FOUND, "no-route", message, "GET /v1/status is a good start".to_owned())
}

pub(super) fn node(this: &Orchestrator, name: &str) -> Result<NodeId, Refusal> {
    let found = this.options.policy.nodes.iter().find(|node| node.name == name);
    found.map(|node| node.id).ok_or_else(|| {
        let known = this.options.policy.names(this.options.policy.nodes.iter().map(|node| node.id));
        let message = format!("there is no node \"{name}\" in this cluster");
        Refusal::new(StatusCode::NOT_FOUND, "unknown-node", message, format!("its nodes are: {known}"))
    })
}

/// The volume of that name, or the one that decides where the stack of that name is.
pub(super) fn volume(this: &Orchestrator, name: &str) -> Result<VolumeId, Refusal> {
    let policy = &this.options.policy;
    let found = policy.volumes.iter().find(|volume| volume.name == name).map(|volume| volume.id);
    let stack = || policy.stacks.iter().find(|stack| stack.name == name)?.volumes.first().copied();
    found.or_else(stack).ok_or_else(|| {
        let stacks = policy.stacks.iter().map(|stack| stack.name.as_str());
        let known: Vec<&str> =
            policy.volumes.iter().map(|volume| volume.name.as_str()).chain(stacks).collect();
        let message = format!("there is no volume or stack \"{name}\" in this cluster");
        let hint = format!("there are: {}", known.join(", "));
        Refusal::new(StatusCode::NOT_FOUND, "unknown-volume", message, hint)
    })
}

/// An error as it is sent.
pub(crate) struct Refusal {
    status: StatusCode,
    reason: FailureReason,
}

impl Refusal {
    pub(crate) fn new(
        status: StatusCode,
        code: &str,
        message: impl Into<String>,
        hint: impl Into<Option<String>>,
    ) -> Self {
        let reason = FailureReason { code: code.to_owned(), message: message.into(), hint: hint.into() };
        Self { status, reason }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(Failure { error: self.reason })).into_response()
    }
}
