//! The control interface of an orchestrator: HTTP/1.1 and JSON on a unix socket that only its owner may open.
//!
//! ```text
//! GET  /v1/status
//! GET  /v1/explain/{name}               why a volume or a node is as it is
//! GET  /v1/plan?dead=NODE               what would happen; also ?cut=NODE,NODE and ?disk=NODE[&volume=VOLUME]
//! GET  /v1/history                      what was decided; ?volume=VOLUME, ?node=NODE, ?last=N
//! GET  /v1/events?after=N&wait-ms=MS    what happened after event N, as soon as there is something
//! POST /v1/volumes/{volume}/move        {"to": "b"}; a stack, too: its first volume, which the others follow
//! POST /v1/stacks/{stack}/forgive       its failures are forgotten
//! POST /v1/nodes/{node}/standby         {"on": true}
//! GET  /v1/nodes/{node}/fence           what would happen if it were switched off; at the leader
//! POST /v1/nodes/{node}/fence           {"who": "root"}; at the leader
//! POST /v1/nodes/{node}/confirm-off     {"who": "root"}
//! POST /v1/nodes/{node}/token           {"valid_ms": 3600000}; on the socket alone
//! POST /v1/keys/rotate                  {"keep_old": false}; on the socket alone
//! POST /v1/reload                       the configuration is read again
//! POST /v1/pause                        {"on": true, "volume": "r0"} or {"on": true, "node": "b"} or {"on": true}
//! ```
//!
//! An error is `{"error": {"code", "message", "hint"}}`, as the replicator's.

mod explain;
mod history;
pub mod json;
mod keys;
mod newcomers;
mod power;
mod reload;
mod routes;
mod server;
mod stack;

pub(crate) use history::history;
pub use replicator::control::{Client, ClientError};
pub(crate) use routes::{App, Refusal, full_router, status_without_notes};
pub(crate) use server::serve;
