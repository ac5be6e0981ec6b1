//! The route that makes tokens. It is on the control socket alone: whoever has a token gets the secret, and an operator's
//! certificate is no word for that.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use orchestrator_core::view::Health;

use super::json::{Invite, Invited};
use super::routes::{App, Refusal};
use crate::node::Orchestrator;

/// The longest that a token is good for.
const VALID_MS_MAX: u64 = 7 * 24 * 3_600_000;

pub(super) async fn invite(
    State(this): App,
    Path(name): Path<String>,
    Json(request): Json<Invite>,
) -> Result<Json<Invited>, Refusal> {
    if !(1..=VALID_MS_MAX).contains(&request.valid_ms) {
        let message = "a token is good for at least a moment and for a week at most";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad-duration", message, None));
    }
    let (_, cluster) = this.configuration().await.map_err(|reason| {
        let message = format!("a newcomer would be given nothing: {reason}");
        Refusal::new(StatusCode::CONFLICT, "no-configuration", message, None)
    })?;
    // By the file: a node that is to be added stands there before this process knows it.
    let node = cluster.node(&name).map_err(|error| {
        let hint = "write its [[node]] into the configuration first".to_owned();
        Refusal::new(StatusCode::NOT_FOUND, "unknown-node", error.to_string(), hint)
    })?;
    if is_here(&this, &node.name) {
        let message = format!("{name} is in the cluster already, and up");
        let hint = "two machines cannot be one node; stop it first if it is to be made anew".to_owned();
        return Err(Refusal::new(StatusCode::CONFLICT, "heard", message, hint));
    }
    if this.keys.now().secrets.is_rotating() {
        let hint = "bring it to an end first: holdfast cluster rotate-keys".to_owned();
        let message = "the cluster's keys are being rotated";
        return Err(Refusal::new(StatusCode::CONFLICT, "rotating", message, hint));
    }
    let token = this.invite(&name, request.valid_ms).map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string(), None)
    })?;
    Ok(Json(Invited { token: token.to_string(), node: name, valid_ms: request.valid_ms }))
}

/// Whether this node is meant, or one that it hears.
fn is_here(this: &Orchestrator, name: &str) -> bool {
    let policy = &this.options.policy;
    let Some(node) = policy.nodes.iter().find(|node| node.name == name) else { return false };
    let heard = this.health().get(&node.id).map(|(health, _)| *health);
    node.id == this.options.me || heard.is_some_and(Health::is_heard)
}
