//! Why something is so, and what would happen: what the leader says, whoever was asked.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use orchestrator_core::decide::Planned;
use orchestrator_core::history::Decided;

use super::history::report;
use super::json::{Plan, Why};
use super::routes::{App, Refusal, node, volume};
use crate::node::Orchestrator;
use crate::transport::message::{Answer, Question, Supposed};

/// Decisions that are shown with an explanation.
const DECISIONS_SHOWN: usize = 5;

/// Why a volume, or a node, is as it is. If both have the same name it is about the volume.
pub(super) async fn explain(State(this): App, Path(name): Path<String>) -> Result<Json<Why>, Refusal> {
    let applied = this.consensus.applied();
    let policy = &this.options.policy;
    let (of_volume, of_node) = (volume(&this, &name).ok(), node(&this, &name).ok());
    let question = match (of_volume, of_node) {
        (Some(id), _) => Question::Volume(id),
        (None, Some(id)) => Question::Node(id),
        (None, None) => return Err(unknown_name(&this, &name)),
    };
    let is_about = |decided: &&Decided| match (of_volume, of_node) {
        (Some(id), _) => decided.volume() == Some(id),
        (None, node) => node.is_some_and(|id| decided.concerns(id)),
    };
    let Answer::Explained(explanation) = asked(&this, question).await? else {
        return Err(garbled());
    };
    let decided = applied.state.history.iter().rev().filter(is_about).take(DECISIONS_SHOWN);
    let mut history: Vec<_> = decided.map(|decided| report(policy, decided)).collect();
    history.reverse();
    Ok(Json(Why { about: name, explanation, history }))
}

/// What would happen.
pub(super) async fn plan(
    State(this): App,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Plan>, Refusal> {
    let which = query.get("volume").map(|name| volume(&this, name)).transpose()?;
    let supposed = match (query.get("dead"), query.get("cut"), query.get("disk")) {
        (None, None, None) => Supposed::Nothing,
        (Some(name), None, None) => Supposed::Dies(node(&this, name)?),
        (None, Some(names), None) => match names.split_once(',') {
            Some((one, other)) if one != other => Supposed::Cut(node(&this, one)?, node(&this, other)?),
            _ => return Err(unclear("a cut link has two ends: cut=a,b")),
        },
        (None, None, Some(name)) => Supposed::DiskFails(node(&this, name)?, which),
        _ => return Err(unclear("one thing happens at a time: dead, cut or disk")),
    };
    Ok(Json(Plan { steps: planned(&this, supposed).await? }))
}

/// The leader's plan.
pub(super) async fn planned(this: &Orchestrator, supposed: Supposed) -> Result<Vec<Planned>, Refusal> {
    match asked(this, Question::Plan(supposed)).await? {
        Answer::Planned(steps) => Ok(steps),
        _ => Err(garbled()),
    }
}

async fn asked(this: &Orchestrator, question: Question) -> Result<Answer, Refusal> {
    this.ask(question).await.map_err(|text| {
        let hint =
            "only the leader knows what all nodes say; holdfast cluster status says who is heard".to_owned();
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no-leader", text, hint)
    })
}

fn unclear(message: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "bad-question", message, None)
}

fn garbled() -> Refusal {
    let message = "the leader answers another question: does it run another version?";
    Refusal::new(StatusCode::BAD_GATEWAY, "garbled", message, None)
}

fn unknown_name(this: &Orchestrator, name: &str) -> Refusal {
    let policy = &this.options.policy;
    let nodes = policy.nodes.iter().map(|node| node.name.as_str());
    let known: Vec<&str> = policy.volumes.iter().map(|volume| volume.name.as_str()).chain(nodes).collect();
    let message = format!("there is no volume and no node \"{name}\" in this cluster");
    Refusal::new(StatusCode::NOT_FOUND, "unknown-name", message, format!("there are: {}", known.join(", ")))
}
