//! The routes of the control interface and what each answers.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::body::Bytes;
use replicator_core::bookmarks::BookmarkName;
use replicator_core::command::AdminError;
use replicator_core::event::{AdminAction, Reign};
use replicator_core::units::{Epoch, Instant, NodeId, NodeSet, ReignId};
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;

use super::activity::Activity;
use super::facts::{Facts, LiveFacts};
use super::json::{
    AttachUblk, BranchList, BranchReport, BreakUblk, DeleteBranch, Demote, Done, Failure, FailureReason,
    FreezeApply, Grow, Invalidate, Lease, NameBookmark, NodeStatus, Nothing, OpenEpoch, Promote, Release,
    Resolve, Seal, Sealed, Shrink, StartScrub, StartVerify, TellRecord, Version, VolumeReport,
};
use super::{Reload, Volume};
use crate::error::VolumeError;

/// Version of the interface, the number in its paths.
const API_VERSION: u32 = 1;
/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 4 << 10;
/// How long a client may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a volume may take to do what an operator asks; a promotion waits for every member's answer.
const ADMIN_DEADLINE: Duration = Duration::from_secs(30);

/// What all requests see.
pub(super) struct Shared {
    pub(super) facts: LiveFacts,
    pub(super) volumes: Vec<Arc<dyn Volume>>,
    pub(super) reload: Arc<dyn Reload>,
}

impl Shared {
    /// What the configuration says now.
    fn facts(&self) -> Arc<Facts> {
        self.facts.get()
    }
}

/// What figures are told of.
#[derive(Clone)]
pub(super) struct Figures {
    pub(super) facts: LiveFacts,
    pub(super) volumes: Vec<Arc<dyn Volume>>,
}

/// What anybody may read: figures.
pub(super) fn open_router(figures: Figures) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(nothing_else)
        .method_not_allowed_fallback(no_method)
        .with_state(figures)
}

async fn metrics(State(figures): State<Figures>) -> Result<Response, Refusal> {
    let told =
        tokio::task::spawn_blocking(move || super::metrics::text(&figures.facts.get(), &figures.volumes))
            .await;
    let text = told.map_err(|_| {
        let message = "the figures were not gathered".to_owned();
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "no-figures", message, None)
    })?;
    Ok(([(header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text).into_response())
}

async fn nothing_else(uri: Uri) -> Refusal {
    let message = format!("there is no {} here", uri.path());
    let hint = "GET /metrics is all there is; the control socket has the rest".to_owned();
    Refusal::new(StatusCode::NOT_FOUND, "no-route", message, hint)
}

type AppState = State<Arc<Shared>>;

/// The routes.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/version", get(version))
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/keys", post(rekey))
        .route("/v1/volumes/{volume}", get(volume))
        .route("/v1/volumes/{volume}/promote", post(promote))
        .route("/v1/volumes/{volume}/demote", post(demote))
        .route("/v1/volumes/{volume}/shrink", post(shrink))
        .route("/v1/volumes/{volume}/invalidate", post(invalidate))
        .route("/v1/volumes/{volume}/ublk/attach", post(attach_ublk))
        .route("/v1/volumes/{volume}/ublk/break", post(break_ublk))
        .route("/v1/volumes/{volume}/seal", post(seal))
        .route("/v1/volumes/{volume}/open-epoch", post(open_epoch))
        .route("/v1/volumes/{volume}/record", post(record))
        .route("/v1/volumes/{volume}/lease", post(lease))
        .route("/v1/volumes/{volume}/release", post(release))
        .route("/v1/volumes/{volume}/grow", post(grow))
        .route("/v1/volumes/{volume}/verify", post(verify))
        .route("/v1/volumes/{volume}/scrub", post(scrub))
        .route("/v1/volumes/{volume}/resolve", post(resolve))
        .route("/v1/volumes/{volume}/freeze-apply", post(freeze_apply))
        .route("/v1/volumes/{volume}/thaw", post(thaw))
        .route("/v1/volumes/{volume}/bookmarks/add", post(add_bookmark))
        .route("/v1/volumes/{volume}/bookmarks/delete", post(delete_bookmark))
        .route("/v1/volumes/{volume}/branches", get(branches))
        .route("/v1/volumes/{volume}/branches/delete", post(delete_branch))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn(take_body))
        .with_state(shared)
}

/// Reads the whole body before anything is decided, within its limits of size and time.
pub(super) async fn take_body(request: Request, next: Next) -> Response {
    let too_large = || {
        let message = format!("the body is larger than {BODY_BYTES_MAX} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message, None).into_response()
    };
    let (parts, body) = request.into_parts();
    let stated = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if stated.is_some_and(|length| length.parse().map_or(true, |length: usize| length > BODY_BYTES_MAX)) {
        return too_large();
    }
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => {
            // From here on the connection is not idle: it is kept until its answer is there.
            let _working = parts.extensions.get::<Arc<Activity>>().map(Activity::work);
            next.run(Request::from_parts(parts, Body::from(bytes))).await
        }
        Ok(Err(_)) => too_large(),
        Err(_) => {
            let message = "the body did not come in time".to_owned();
            Refusal::new(StatusCode::REQUEST_TIMEOUT, "too-slow", message, None).into_response()
        }
    }
}

/// The name of a volume in a path.
struct VolumeName(String);

impl<S: Send + Sync> FromRequestParts<S> for VolumeName {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(error) => {
                let hint = "a volume's name has lower-case letters, digits, - _ .".to_owned();
                Err(Refusal::new(StatusCode::BAD_REQUEST, "bad-path", error.body_text(), hint))
            }
        }
    }
}

async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION").to_owned(), api: API_VERSION })
}

async fn status(State(shared): AppState) -> Result<Json<NodeStatus>, Refusal> {
    let volumes = shared.volumes.clone();
    let mut reports = Vec::new();
    for volume in volumes {
        reports.push(report(&shared, volume).await?);
    }
    Ok(Json(NodeStatus {
        cluster: shared.facts().cluster_name().to_owned(),
        node: shared.facts().name(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        volumes: reports,
    }))
}

async fn volume(
    State(shared): AppState,
    VolumeName(name): VolumeName,
) -> Result<Json<VolumeReport>, Refusal> {
    let volume = find(&shared, &name)?;
    Ok(Json(report(&shared, volume).await?))
}

async fn promote(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let request: Promote = parse(&body)?;
    let mut reign = [0; 16];
    SystemRandom::new().fill(&mut reign).expect("the kernel gives random bytes");
    let reign = ReignId(u128::from_le_bytes(reign));
    act(&shared, &name, AdminAction::Promote { force: request.force, reign }).await
}

async fn demote(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let _: Demote = parse(&body)?;
    act(&shared, &name, AdminAction::Demote).await
}

async fn shrink(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let request: Shrink = parse(&body)?;
    let node = node_of(&shared, &request.node)?;
    act(&shared, &name, AdminAction::Shrink { node }).await
}

/// Takes over the secrets as their files have them now.
async fn rekey(State(shared): AppState, body: Bytes) -> Result<Json<Done>, Refusal> {
    let Nothing {} = parse(&body)?;
    let result = {
        let shared = Arc::clone(&shared);
        blocking(move || shared.reload.rekey()).await?
    };
    match result {
        Ok(message) => Ok(Json(Done { message })),
        Err(message) => Err(Refusal::new(StatusCode::CONFLICT, "refused", message, None)),
    }
}

/// Takes over what has changed in the configuration file.
async fn reload(State(shared): AppState, body: Bytes) -> Result<Json<Done>, Refusal> {
    let Nothing {} = parse(&body)?;
    let result = {
        let shared = Arc::clone(&shared);
        blocking(move || {
            let (facts, message) = shared.reload.reload()?;
            shared.facts.set(facts);
            Ok::<_, String>(message)
        })
        .await?
    };
    match result {
        Ok(message) => Ok(Json(Done { message: shared.facts().with_names(&message) })),
        Err(message) => {
            let message = shared.facts().with_names(&message);
            let hint = "holdfast config check says what the file means".to_owned();
            Err(Refusal::new(StatusCode::CONFLICT, "refused", message, hint))
        }
    }
}

async fn grow(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let Grow { size_bytes } = parse(&body)?;
    act(&shared, &name, AdminAction::Grow { bytes: size_bytes }).await
}

async fn verify(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let request: StartVerify = parse(&body)?;
    let trust = request.trust.as_deref().map(|node| node_of(&shared, node)).transpose()?;
    let action = match request.stop {
        true => AdminAction::StopVerify,
        false => AdminAction::Verify { repair: request.repair, trust },
    };
    act(&shared, &name, action).await
}

async fn scrub(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let request: StartScrub = parse(&body)?;
    let action = if request.stop { AdminAction::StopScrub } else { AdminAction::Scrub };
    act(&shared, &name, action).await
}

fn node_of(shared: &Shared, name: &str) -> Result<NodeId, Refusal> {
    shared.facts().id_of(name).ok_or_else(|| {
        let known = shared.facts().node_names().join(", ");
        let message = format!("there is no node \"{name}\" in this cluster");
        Refusal::new(StatusCode::BAD_REQUEST, "unknown-node", message, format!("its nodes are: {known}"))
    })
}

fn set_of(shared: &Shared, names: &[String]) -> Result<NodeSet, Refusal> {
    names.iter().try_fold(NodeSet(0), |set, name| Ok(set.with(node_of(shared, name)?)))
}

fn instant_of(ms: u64) -> Instant {
    Instant(0).plus_ms(ms)
}

async fn seal(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Sealed>, Refusal> {
    let Seal { attempt, epoch } = parse(&body)?;
    let Json(Done { .. }) = act(&shared, &name, AdminAction::Seal { epoch: Epoch(epoch) }).await?;
    // Asked for now, it is as it was when the seal was answered, or the promise in it tells that it is not.
    let report = report(&shared, find(&shared, &name)?).await?;
    match report.replica {
        Some(replica) => Ok(Json(Sealed { attempt, replica })),
        None => {
            let message = "it was sealed, and does not answer any more".to_owned();
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", message, None))
        }
    }
}

async fn open_epoch(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let request: OpenEpoch = parse(&body)?;
    let reign = u128::from_str_radix(&request.reign, 16).map_err(|_| {
        let message = format!("\"{}\" is no identity of a reign", request.reign);
        Refusal::new(StatusCode::BAD_REQUEST, "bad-json", message, "32 hexadecimal digits".to_owned())
    })?;
    let reign = Reign {
        epoch: Epoch(request.epoch),
        version: request.version,
        reign: ReignId(reign),
        in_sync: set_of(&shared, &request.in_sync)?,
        generation: request.generation,
        lease_end: request.lease_end_ms.map(instant_of),
    };
    act(&shared, &name, AdminAction::OpenEpoch(reign)).await
}

async fn record(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let TellRecord { epoch, version, in_sync } = parse(&body)?;
    let in_sync = set_of(&shared, &in_sync)?;
    act(&shared, &name, AdminAction::Record { epoch: Epoch(epoch), version, in_sync }).await
}

async fn lease(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let Lease { epoch, end_ms } = parse(&body)?;
    act(&shared, &name, AdminAction::Lease { epoch: Epoch(epoch), end: instant_of(end_ms) }).await
}

async fn release(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let _: Release = parse(&body)?;
    act(&shared, &name, AdminAction::Release).await
}

async fn resolve(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let request: Resolve = parse(&body)?;
    let discard = node_of(&shared, &request.discard)?;
    act(&shared, &name, AdminAction::Resolve { discard }).await
}

async fn freeze_apply(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let request: FreezeApply = parse(&body)?;
    let at = request.at().ok_or_else(|| {
        let message = "that names no place of the log, or two".to_owned();
        let hint = "say a position as in \"3:1042\", or a time".to_owned();
        Refusal::new(StatusCode::BAD_REQUEST, "bad-position", message, hint)
    })?;
    act(&shared, &name, AdminAction::FreezeApply { at }).await
}

async fn thaw(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let _: Nothing = parse(&body)?;
    act(&shared, &name, AdminAction::Thaw).await
}

async fn add_bookmark(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let name_of = bookmark_name(&parse(&body)?)?;
    act(&shared, &name, AdminAction::AddBookmark { name: name_of }).await
}

async fn delete_bookmark(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let name_of = bookmark_name(&parse(&body)?)?;
    act(&shared, &name, AdminAction::DeleteBookmark { name: name_of }).await
}

fn bookmark_name(request: &NameBookmark) -> Result<BookmarkName, Refusal> {
    BookmarkName::new(&request.name).ok_or_else(|| {
        let message = format!("{:?} can be no name of a bookmark", request.name);
        let hint = "use at most 32 letters, digits, '-', '_' and '.'".to_owned();
        Refusal::new(StatusCode::BAD_REQUEST, "bad-name", message, hint)
    })
}

async fn branches(
    State(shared): AppState,
    VolumeName(name): VolumeName,
) -> Result<Json<BranchList>, Refusal> {
    let volume = find(&shared, &name)?;
    let list = blocking(move || volume.branches()).await?.map_err(|error| branch_refusal(&error))?;
    Ok(Json(BranchList {
        branches: list.into_iter().map(|branch| BranchReport::new(&name, branch)).collect(),
    }))
}

async fn delete_branch(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let request: DeleteBranch = parse(&body)?;
    let volume = find(&shared, &name)?;
    let branch = request.name.clone();
    blocking(move || volume.delete_branch(&branch)).await?.map_err(|error| branch_refusal(&error))?;
    Ok(Json(Done { message: format!("branch {} of {name} is deleted", request.name) }))
}

fn branch_refusal(error: &std::io::Error) -> Refusal {
    let (status, code) = match error.kind() {
        std::io::ErrorKind::NotFound => (StatusCode::NOT_FOUND, "unknown-branch"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "branch"),
    };
    let message = match code {
        "unknown-branch" => "there is no such branch".to_owned(),
        _ => error.to_string(),
    };
    Refusal::new(status, code, message, "holdfast branch list shows what there is".to_owned())
}

async fn invalidate(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let request: Invalidate = parse(&body)?;
    if !request.discard_my_data {
        let message = format!("this gives up the data of {name} on node {}", shared.facts().name());
        let hint = "say so: \"discard_my_data\": true".to_owned();
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "not-confirmed", message, hint));
    }
    act(&shared, &name, AdminAction::Invalidate).await
}

async fn attach_ublk(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let AttachUblk { index, generation, tags } = parse(&body)?;
    ask(&shared, &name, move |volume| volume.attach_ublk(index, generation, tags)).await
}

async fn break_ublk(
    State(shared): AppState,
    VolumeName(name): VolumeName,
    body: Bytes,
) -> Result<Json<Done>, Refusal> {
    let BreakUblk { index } = parse(&body)?;
    ask(&shared, &name, move |volume| volume.break_ublk(index)).await
}

async fn no_route(method: Method, uri: Uri) -> Refusal {
    let message = format!("there is no {method} {}", uri.path());
    Refusal::new(StatusCode::NOT_FOUND, "no-route", message, "GET /v1/status is a good start".to_owned())
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} does not take {method}", uri.path());
    let hint = "questions are GET, what changes something is POST".to_owned();
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no-method", message, hint)
}

fn find(shared: &Shared, name: &str) -> Result<Arc<dyn Volume>, Refusal> {
    let found = shared.volumes.iter().find(|volume| volume.name() == name);
    found.cloned().ok_or_else(|| {
        let known: Vec<&str> = shared.volumes.iter().map(|volume| volume.name()).collect();
        let message = format!("node {} has no volume \"{name}\"", shared.facts().name());
        let hint = format!("its volumes are: {}", known.join(", "));
        Refusal::new(StatusCode::NOT_FOUND, "unknown-volume", message, hint)
    })
}

async fn report(shared: &Arc<Shared>, volume: Arc<dyn Volume>) -> Result<VolumeReport, Refusal> {
    let shared = Arc::clone(shared);
    blocking(move || {
        let status = volume.status();
        VolumeReport::new(&shared.facts(), volume.name(), status.as_ref())
    })
    .await
}

async fn act(shared: &Arc<Shared>, name: &str, action: AdminAction) -> Result<Json<Done>, Refusal> {
    ask(shared, name, move |volume| volume.admin(action, ADMIN_DEADLINE)).await
}

async fn ask(
    shared: &Shared,
    name: &str,
    question: impl FnOnce(&dyn Volume) -> Result<String, VolumeError> + Send + 'static,
) -> Result<Json<Done>, Refusal> {
    let volume = find(shared, name)?;
    match blocking(move || question(&*volume)).await? {
        Ok(message) => Ok(Json(Done { message: shared.facts().with_names(&message) })),
        Err(error) => Err(refusal_of(&shared.facts(), name, &error)),
    }
}

/// Volumes are asked with calls that block; those run beside the server's thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        let message = "the request failed inside the replicator; see its log".to_owned();
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message, None)
    })
}

fn refusal_of(facts: &Facts, volume: &str, error: &VolumeError) -> Refusal {
    let message = facts.with_names(&error.to_string());
    match error {
        VolumeError::Refused(AdminError::Refused(_)) => Refusal::new(
            StatusCode::CONFLICT,
            "refused",
            message,
            format!("holdfast status {volume} says more"),
        ),
        VolumeError::Refused(AdminError::Managed(_)) => {
            let hint = format!(
                "holdfast cluster move {volume} --to NODE; holdfast cluster status says what it does"
            );
            Refusal::new(StatusCode::CONFLICT, "managed", message, hint)
        }
        VolumeError::Refused(AdminError::NeedsForce(_)) => {
            let hint = format!("if the missing ones are surely down: holdfast promote {volume} --force");
            Refusal::new(StatusCode::CONFLICT, "needs-force", message, hint)
        }
        VolumeError::Refused(AdminError::Device(_)) => {
            let hint = "look for the device's error in the kernel log (dmesg)".to_owned();
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "device", message, hint)
        }
        VolumeError::Deadline(_) => {
            let hint = format!("holdfast status {volume} shows whether it was done");
            Refusal::new(StatusCode::GATEWAY_TIMEOUT, "deadline", message, hint)
        }
        VolumeError::Stopped => {
            let hint = "restart the replicator; its log says why it stopped".to_owned();
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", message, hint)
        }
    }
}

/// Reads a body whatever its content type says; no body means all defaults.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        let hint = "docs/operating.md lists the requests and their bodies".to_owned();
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "bad-json",
            format!("the body is not understood: {error}"),
            hint,
        )
    })
}

/// An error as it is sent.
struct Refusal {
    status: StatusCode,
    reason: FailureReason,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: String, hint: impl Into<Option<String>>) -> Self {
        Self { status, reason: FailureReason { code: code.to_owned(), message, hint: hint.into() } }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(Failure { error: self.reason })).into_response()
    }
}
