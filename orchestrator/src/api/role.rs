//! The role endpoints: 200 or 503, and why, as JSON for people.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use orchestrator_core::policy::Volume;
use orchestrator_core::stack::{Phase, Stack};
use serde::{Deserialize, Serialize};

use super::standing::{Standing, Verdict};
use crate::clock::now;
use crate::control::{App, Refusal};
use crate::node::Orchestrator;

/// Whether a volume stands so.
pub(super) type Check = fn(&Standing) -> Verdict;

/// The questions about one volume.
pub(super) const CHECKS: [(&str, Check); 10] = [
    ("/", Standing::is_primary),
    ("/primary", Standing::is_primary),
    ("/read-write", Standing::is_primary),
    ("/leader", Standing::holds_lease),
    ("/replica", Standing::is_replica),
    ("/read-only", |standing| standing.is_primary().or_else(|_| standing.is_replica())),
    ("/sync", Standing::is_sync),
    ("/synchronous", Standing::is_sync),
    ("/async", Standing::is_async),
    ("/asynchronous", Standing::is_async),
];

/// A question about a node, or about one of its volumes.
#[derive(Clone, Copy)]
pub(super) enum Probe {
    /// Replicas here stand so.
    Volumes(Check),
    /// Replicas here stand so, and without any, this node knows who leads.
    Ready(Check),
    /// The orchestrator turns.
    Turns,
}

/// The questions about a node.
pub(super) const PROBES: [(&str, Probe); 3] = [
    ("/health", Probe::Volumes(Standing::is_healthy)),
    ("/readiness", Probe::Ready(Standing::is_ready)),
    ("/liveness", Probe::Turns),
];

/// Which volume is meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    volume: Option<String>,
    stack: Option<String>,
}

/// What is answered.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    cluster: String,
    node: String,
    /// Why the answer is no.
    reason: Option<String>,
    volumes: Vec<VolumeAnswer>,
}

#[derive(Debug, Serialize)]
struct VolumeAnswer {
    volume: String,
    /// `running`, `stopped`, `silent` or `absent`: the replica here.
    state: &'static str,
    /// `primary`, `changing` or `replica`.
    role: Option<&'static str>,
    /// Who is primary by what is agreed on.
    primary: Option<String>,
    epoch: Option<u64>,
    in_sync: bool,
    lease_ms: u64,
}

type Told = Result<(StatusCode, Json<Answer>), Refusal>;
type Asked = Result<Query<About>, QueryRejection>;

/// Answers a question about one volume.
pub(super) async fn answer(check: Check, State(this): App, about: Asked) -> Told {
    let about = understood(about)?;
    let (volume, stack) = meant(&this, &about)?;
    let standing = standing(&this, volume);
    let runs = stack.map_or(Ok(()), |stack| runs(&this, stack));
    // Of a stack, nobody can be primary where it does not run; its copies are as they are.
    let verdict = check(&standing).and_then(|()| if standing.is_primary().is_ok() { runs } else { Ok(()) });
    Ok(told(&this, verdict, vec![(volume, standing)]))
}

/// Answers a question about the node.
pub(super) async fn probe(probe: Probe, State(this): App, about: Asked) -> Told {
    let about = understood(about)?;
    let check = match probe {
        Probe::Turns => return Ok(told(&this, turns(&this), Vec::new())),
        Probe::Volumes(check) | Probe::Ready(check) => check,
    };
    let (me, policy) = (this.options.me, &this.options.policy);
    let volumes = match (&about.volume, &about.stack) {
        (None, None) => policy.volumes.iter().filter(|volume| volume.replicas.contains(&me)).collect(),
        _ => vec![meant(&this, &about)?.0],
    };
    let standings: Vec<_> = volumes.into_iter().map(|volume| (volume, standing(&this, volume))).collect();
    let mut verdict = Ok(());
    for (volume, standing) in &standings {
        verdict = verdict.and_then(|()| check(standing).map_err(|why| format!("{}: {why}", volume.name)));
    }
    if matches!(probe, Probe::Ready(_)) && this.consensus.leadership().leader.is_none() {
        verdict = verdict.and_then(|()| Err("nobody leads, as far as this node knows".to_owned()));
    }
    Ok(told(&this, verdict, standings))
}

fn told(
    this: &Orchestrator,
    verdict: Verdict,
    standings: Vec<(&Volume, Standing)>,
) -> (StatusCode, Json<Answer>) {
    let policy = &this.options.policy;
    let volume = |(volume, standing): (&Volume, Standing)| {
        let record = standing.record.as_ref();
        VolumeAnswer {
            volume: volume.name.clone(),
            state: standing.state(),
            role: standing.role(),
            primary: record.and_then(|record| record.primary).map(|node| policy.node_name(node)),
            epoch: record.map(|record| record.epoch.0),
            in_sync: record.is_some_and(|record| record.in_sync.contains(standing.me)),
            lease_ms: standing.lease_ms(),
        }
    };
    let status = if verdict.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let answer = Answer {
        cluster: this.options.cluster.clone(),
        node: policy.node_name(this.options.me),
        reason: verdict.err(),
        volumes: standings.into_iter().map(volume).collect(),
    };
    (status, Json(answer))
}

/// How a volume stands here now.
fn standing(this: &Arc<Orchestrator>, volume: &Volume) -> Standing {
    let applied = this.consensus.applied();
    let mind = this.mind();
    Standing {
        me: this.options.me,
        now: now(),
        record: applied.state.records.get(&volume.id).cloned(),
        view: mind.local.replicas.get(&volume.id).cloned(),
        lease: mind.local.leases.get(&volume.id).copied(),
    }
}

fn runs(this: &Orchestrator, stack: &Stack) -> Verdict {
    let (_, stacks) = crate::stack::report(&this.options.policy, &this.mind().stacks);
    match stacks.get(&stack.name).map(|view| view.phase) {
        Some(Phase::Running) => Ok(()),
        _ => Err(format!("not all of {} runs here", stack.name)),
    }
}

fn turns(this: &Orchestrator) -> Verdict {
    let limit_ms = this.options.policy.detection.suspect_at_most_ms;
    let since_ms = this.since_turn_ms();
    if since_ms <= limit_ms {
        return Ok(());
    }
    Err(format!("the orchestrator has not turned for {since_ms} ms"))
}

fn understood(about: Asked) -> Result<About, Refusal> {
    about.map(|Query(about)| about).map_err(|error| {
        let hint = "?volume=NAME or ?stack=NAME says what is meant; nothing else is understood".to_owned();
        Refusal::new(StatusCode::BAD_REQUEST, "bad-query", error.body_text(), hint)
    })
}

/// The volume that is meant, and the stack, if that was named.
fn meant<'a>(this: &'a Orchestrator, about: &About) -> Result<(&'a Volume, Option<&'a Stack>), Refusal> {
    let policy = &this.options.policy;
    let unknown = |what: &str, name: &str, known: Vec<&str>| {
        let message = format!("there is no {what} \"{name}\" in this cluster");
        let hint = format!("there are: {}", known.join(", "));
        Refusal::new(StatusCode::NOT_FOUND, "unknown", message, hint)
    };
    let volumes = || policy.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>();
    match (&about.volume, &about.stack, policy.volumes.as_slice()) {
        (Some(name), None, all) => {
            let found = all.iter().find(|volume| volume.name == *name);
            Ok((found.ok_or_else(|| unknown("volume", name, volumes()))?, None))
        }
        (None, Some(name), all) => {
            let stack = policy.stacks.iter().find(|stack| stack.name == *name);
            let stacks = || policy.stacks.iter().map(|stack| stack.name.as_str()).collect();
            let stack = stack.ok_or_else(|| unknown("stack", name, stacks()))?;
            let volume = all.iter().find(|volume| stack.volumes.first() == Some(&volume.id));
            Ok((volume.ok_or_else(|| unknown("volume", name, volumes()))?, Some(stack)))
        }
        (None, None, [volume]) => Ok((volume, None)),
        _ => {
            let message = "which volume is meant?";
            let hint = format!(
                "say ?volume=NAME or ?stack=NAME, one of them; volumes are: {}",
                volumes().join(", ")
            );
            Err(Refusal::new(StatusCode::BAD_REQUEST, "which-volume", message, hint))
        }
    }
}
