//! The routes about power, and what is agreed on about it in words.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use orchestrator_core::policy::Policy;
use orchestrator_core::power::PowerChange;
use orchestrator_core::state::{self, Command};
use orchestrator_core::units::NodeId;
use replicator::control::json::Done;

use super::explain::planned;
use super::json::{FencePlan, PastReport, Word};
use super::routes::{App, Refusal, node, not_leader, propose};
use crate::power::unix_ms;
use crate::transport::message::Supposed;

/// Bytes of a name that is remembered.
const WHO_BYTES_MAX: usize = 64;

/// What would happen.
pub(super) async fn plan(State(this): App, Path(name): Path<String>) -> Result<Json<FencePlan>, Refusal> {
    let target = node(&this, &name)?;
    let by = this.executor(target).ok_or_else(|| not_leader(&this))?;
    let steps = planned(&this, Supposed::Dies(target)).await?;
    let applied = this.consensus.applied();
    let (policy, records) = (&this.options.policy, &applied.state.records);
    let is_its = |volume: &&orchestrator_core::policy::Volume| {
        records.get(&volume.id).is_some_and(|record| record.primary == Some(target))
    };
    let primary_of = policy.volumes.iter().filter(is_its).map(|volume| volume.name.clone()).collect();
    Ok(Json(FencePlan {
        node: name,
        by: by.map(|by| policy.node_name(by)),
        ways: this.options.fencer.ways(target, this.is_primary(target)),
        primary_of,
        steps,
    }))
}

/// An operator wants a node off.
pub(super) async fn fence(
    State(this): App,
    Path(name): Path<String>,
    Json(word): Json<Word>,
) -> Result<Json<Done>, Refusal> {
    let target = node(&this, &name)?;
    let who = checked(word)?;
    let by = this.executor(target).ok_or_else(|| not_leader(&this))?.ok_or_else(|| {
        let message = format!("nobody here can switch {name} off");
        let hint = "is there a [[fence]] for it, and its agent installed on another node that is heard? Or switch it off by \
             hand and say so: holdfast confirm-off"
            .to_owned();
        Refusal::new(StatusCode::CONFLICT, "no-agent", message, hint)
    })?;
    let boot = this.consensus.applied().state.power.boot(target);
    let reason = format!("{who} wants it");
    let change = PowerChange::Fence { by, boot, asked_by: Some(who), reason };
    let by = this.options.policy.node_name(by);
    let done = format!("{by} switches {name} off; holdfast cluster status says what comes of it");
    propose(&this, Command::Power { node: target, change }, "an operator said so", done).await
}

/// An operator has seen that a node is off.
pub(super) async fn confirm_off(
    State(this): App,
    Path(name): Path<String>,
    Json(word): Json<Word>,
) -> Result<Json<Done>, Refusal> {
    let target = node(&this, &name)?;
    let who = checked(word)?;
    let is_heard = this.health().get(&target).is_none_or(|(health, _)| health.is_heard());
    if is_heard {
        let message = format!("{name} is heard right now, so it is not off");
        let hint = "switch it off first".to_owned();
        return Err(Refusal::new(StatusCode::CONFLICT, "heard", message, hint));
    }
    let boot = this.consensus.applied().state.power.boot(target);
    let change = PowerChange::ConfirmOff { boot, who: who.clone(), at_unix_ms: unix_ms() };
    let done = format!("{name} is off by the word of {who}, until it is heard again");
    propose(&this, Command::Power { node: target, change }, "an operator said so", done).await
}

fn checked(word: Word) -> Result<String, Refusal> {
    let is_sound =
        !word.who.is_empty() && word.who.len() <= WHO_BYTES_MAX && !word.who.contains(char::is_control);
    if is_sound {
        return Ok(word.who);
    }
    let message = "nobody answers for this: `who` must be a name";
    Err(Refusal::new(StatusCode::BAD_REQUEST, "bad-name", message, None))
}

/// What is agreed on about the power of a node, if it is not simply on.
pub(super) fn text(policy: &Policy, state: &state::State, node: NodeId) -> Option<String> {
    if let Some(off) = state.power.off(node) {
        return Some(format!("off: {}", off.means.text(policy)));
    }
    let order = state.power.order(node)?;
    Some(format!("being switched off by {}: {}", policy.node_name(order.by), order.reason))
}

/// What was.
pub(super) fn history(policy: &Policy, state: &state::State) -> Vec<PastReport> {
    let past = state.power.history.iter();
    past.map(|past| PastReport {
        node: policy.node_name(past.node),
        at_unix_ms: past.at_unix_ms,
        text: past.text.clone(),
    })
    .collect()
}
