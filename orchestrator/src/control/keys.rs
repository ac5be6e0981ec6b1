//! The route that rotates the cluster's keys. On the control socket alone: who may have the secret changed is who may read it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use replicator::control::json::Done;

use super::json::RotateKeys;
use super::routes::{App, Refusal};

pub(super) async fn rotate(State(this): App, Json(request): Json<RotateKeys>) -> Result<Json<Done>, Refusal> {
    match this.rotate_keys(request.keep_old).await {
        Ok(message) => Ok(Json(Done { message })),
        Err(message) => Err(Refusal::new(StatusCode::CONFLICT, "not-rotated", message, None)),
    }
}
