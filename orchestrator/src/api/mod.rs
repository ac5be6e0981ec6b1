//! What an orchestrator offers over TCP: roles for load balancers, in Patroni's words, and figures for monitoring, both for
//! anybody; and everything that the control socket has, over TLS, for operators who have a certificate.
//!
//! ```text
//! GET  /primary, /, /read-write         200 if the volume is primary here, opened, and holds its lease; else 503
//! GET  /leader                          200 if the volume's lease is held here
//! GET  /replica                         200 if the copy here is up to date and not primary
//! GET  /read-only                       /primary or /replica
//! GET  /sync, /synchronous              /replica, and a member of the in-sync set
//! GET  /async, /asynchronous            /replica, and no member
//! GET  /health                          200 if the replica here runs
//! GET  /readiness                       200 if it is primary here, or a member that is up to date
//! GET  /liveness                        200 if this orchestrator turns
//! GET  /metrics                         figures, in the text format of Prometheus
//! GET  /cluster, /history               what the control socket says at /v1/status and /v1/history
//! ```
//!
//! `?volume=NAME` or `?stack=NAME` says which; a cluster with one volume needs neither. HEAD and OPTIONS are answered as GET is.
//! A stack is primary where its first volume is and all of it runs.

mod metrics;
mod role;
mod standing;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, get, on};
use axum::{Json, Router};
use replicator::control::{Offer, TcpServer, TlsNow};
use replicator::metrics::CONTENT_TYPE;

use crate::control::json::Status;
use crate::control::{App, Refusal, full_router, history, status_without_notes};
use crate::node::{Orchestrator, RunError};

/// Begins to answer, if the configuration says where.
pub(crate) fn start(orchestrator: &Arc<Orchestrator>) -> Result<Option<TcpServer>, RunError> {
    let options = &orchestrator.options;
    let Some((address, _)) = &options.api else { return Ok(None) };
    let keys = orchestrator.keys.watch();
    let tls: TlsNow = Box::new(move || {
        Arc::clone(keys.borrow().operators.as_ref().expect("made where there is an address for operators"))
    });
    let open = open_router().fallback(nothing_else).with_state(Arc::clone(orchestrator));
    let all = full_router().merge(open_router()).with_state(Arc::clone(orchestrator));
    Ok(Some(TcpServer::start(*address, Offer { open, secure: Some((tls, all)) })?))
}

/// What anybody may read.
fn open_router() -> Router<Arc<Orchestrator>> {
    let mut router = Router::new()
        .route("/metrics", get(figures))
        .route("/cluster", get(cluster))
        .route("/history", get(history));
    for (path, check) in role::CHECKS {
        router = router.route(path, role_route(check));
    }
    for (path, check) in role::PROBES {
        router = router.route(path, probe_route(check));
    }
    router
}

fn asked() -> MethodFilter {
    MethodFilter::GET.or(MethodFilter::OPTIONS)
}

fn role_route(check: role::Check) -> MethodRouter<Arc<Orchestrator>> {
    on(asked(), move |state, about| role::answer(check, state, about))
}

fn probe_route(probe: role::Probe) -> MethodRouter<Arc<Orchestrator>> {
    on(asked(), move |state, about| role::probe(probe, state, about))
}

async fn figures(State(this): App) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics::text(&this)).into_response()
}

async fn cluster(State(this): App) -> Json<Status> {
    Json(status_without_notes(&this))
}

async fn nothing_else(method: Method, uri: Uri) -> Refusal {
    if matches!(method, Method::GET | Method::HEAD | Method::OPTIONS) && !uri.path().starts_with("/v1/") {
        let message = format!("there is no {method} {}", uri.path());
        let hint = "GET /primary, /replica, /health, /metrics, /cluster are".to_owned();
        return Refusal::new(StatusCode::NOT_FOUND, "no-route", message, hint);
    }
    let message = format!("{method} {} is for operators, over TLS with a certificate", uri.path());
    let hint =
        "make one with: holdfast operator-certificate NAME FOLDER; then use https:// on this same port";
    Refusal::new(StatusCode::FORBIDDEN, "needs-certificate", message, hint.to_owned())
}
