//! The route by which the orchestrator reads its configuration again: it is looked at first, and then the process begins anew.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use replicator::control::json::Done;

use super::routes::{App, Refusal};

pub(super) async fn reload(State(this): App) -> Result<Json<Done>, Refusal> {
    let refused = |message: String| {
        let hint = "nothing was changed; holdfast config check says what the file means".to_owned();
        Refusal::new(StatusCode::CONFLICT, "refused", message, hint)
    };
    let (_, cluster) = this.configuration().await.map_err(refused)?;
    let me = this.options.policy.node_name(this.options.me);
    let node = cluster.node(&me).map_err(|_| {
        refused(format!(
            "the configuration has no node {me} any more: stop this orchestrator, it is not needed"
        ))
    })?;
    if node.id.0 != this.options.me.0 || node.orchestrator.is_none() {
        return Err(refused(format!(
            "{me} is another node in it, or has no orchestrator: that needs a start by hand"
        )));
    }
    this.begin_anew();
    Ok(Json(Done {
        message: format!("the orchestrator of {me} begins anew with its configuration as it is now"),
    }))
}
