//! What the control interface says of stacks and takes for them.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use orchestrator_core::state::{Command, State as Agreed};
use replicator::control::json::Done;

use super::json::{StackAt, StackReport};
use super::routes::{App, OPERATOR, Refusal, propose};
use crate::mind::Mind;
use crate::node::Orchestrator;

/// All stacks, as far as this node knows them.
pub(super) fn reports(this: &Orchestrator, state: &Agreed, mind: &Mind) -> Vec<StackReport> {
    let policy = &this.options.policy;
    let (_, own) = crate::stack::report(policy, &mind.stacks);
    let known = mind.reported_stacks();
    let one = |stack: &orchestrator_core::stack::Stack| {
        let at = policy.nodes.iter().filter_map(|node| {
            let view = match node.id == this.options.me {
                true => own.get(&stack.name),
                false => known.get(&node.id).and_then(|stacks| stacks.get(&stack.name)),
            };
            Some(StackAt { node: node.name.clone(), view: view?.clone() })
        });
        let node = stack.place(state).map(|node| policy.node_name(node));
        StackReport { name: stack.name.clone(), node, at: at.collect() }
    };
    policy.stacks.iter().map(one).collect()
}

/// Its failures are forgotten everywhere.
pub(super) async fn forgive(State(this): App, Path(name): Path<String>) -> Result<Json<Done>, Refusal> {
    let stacks = &this.options.policy.stacks;
    if !stacks.iter().any(|stack| stack.name == name) {
        let known: Vec<&str> = stacks.iter().map(|stack| stack.name.as_str()).collect();
        let message = format!("there is no stack \"{name}\" in this cluster");
        let hint = format!("its stacks are: {}", known.join(", "));
        return Err(Refusal::new(StatusCode::NOT_FOUND, "unknown-stack", message, hint));
    }
    let done = format!("the failures of {name} are forgotten");
    propose(&this, Command::Forgive { stack: name }, OPERATOR, done).await
}
