//! What was decided, and what happens.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use orchestrator_core::history::Decided;
use orchestrator_core::policy::Policy;

use super::json::{DecisionReport, Decisions, Events};
use super::routes::{App, Refusal, node, volume};

/// How long somebody may wait for something to happen.
const WAIT_MS_MAX: u64 = 25_000;

/// What was decided, as this node knows it.
pub(crate) async fn history(
    State(this): App,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Decisions>, Refusal> {
    let of_volume = query.get("volume").map(|name| volume(&this, name)).transpose()?;
    let of_node = query.get("node").map(|name| node(&this, name)).transpose()?;
    let last = number(&query, "last")?.map_or(usize::MAX, |last| usize::try_from(last).unwrap_or(usize::MAX));
    let applied = this.consensus.applied();
    let is_asked_for = |decided: &&Decided| {
        of_volume.is_none_or(|id| decided.volume() == Some(id))
            && of_node.is_none_or(|id| decided.concerns(id))
    };
    let history = &applied.state.history;
    let mut decisions: Vec<DecisionReport> = history
        .iter()
        .rev()
        .filter(is_asked_for)
        .take(last)
        .map(|decided| report(&this.options.policy, decided))
        .collect();
    decisions.reverse();
    Ok(Json(Decisions { count: history.count(), decisions }))
}

/// What happened after an event, as soon as there is something.
pub(super) async fn events(
    State(this): App,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Events>, Refusal> {
    let after = number(&query, "after")?.unwrap_or(0);
    let wait = Duration::from_millis(number(&query, "wait-ms")?.unwrap_or(0).min(WAIT_MS_MAX));
    let mut newest = this.mind().newest();
    // One that waits in vain is told that there is nothing.
    let _ = tokio::time::timeout(wait, newest.wait_for(|newest| *newest > after)).await;
    let events = this.mind().events_after(after);
    Ok(Json(Events { process: format!("{:016x}", this.process), events }))
}

/// One decision as it is told.
pub(super) fn report(policy: &Policy, decided: &Decided) -> DecisionReport {
    DecisionReport {
        number: decided.number,
        at_unix_ms: decided.entry.at_unix_ms,
        volume: decided.volume().and_then(|id| policy.volume(id)).map(|volume| volume.name.clone()),
        node: decided.node().map(|id| policy.node_name(id)),
        text: decided.text(policy),
        reason: decided.entry.reason.clone(),
    }
}

fn number(query: &BTreeMap<String, String>, key: &str) -> Result<Option<u64>, Refusal> {
    let Some(text) = query.get(key) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        let message = format!("`{key}` is a number, and \"{text}\" is none");
        Refusal::new(StatusCode::BAD_REQUEST, "bad-number", message, None)
    })
}
