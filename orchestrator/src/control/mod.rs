//! The control interface of an orchestrator: HTTP/1.1 and JSON on a unix socket that only its owner may open.
//!
//! ```text
//! GET  /v1/status
//! GET  /v1/plan?dead=NODE               what would happen; at the leader
//! POST /v1/volumes/{volume}/move        {"to": "b"}
//! POST /v1/nodes/{node}/standby         {"on": true}
//! GET  /v1/nodes/{node}/fence           what would happen if it were switched off; at the leader
//! POST /v1/nodes/{node}/fence           {"who": "root"}; at the leader
//! POST /v1/nodes/{node}/confirm-off     {"who": "root"}
//! POST /v1/pause                        {"on": true, "volume": "r0"} or {"on": true, "node": "b"} or {"on": true}
//! ```
//!
//! An error is `{"error": {"code", "message", "hint"}}`, as the replicator's.

pub mod json;
mod power;
mod routes;
mod server;

pub use replicator::control::{Client, ClientError};
pub(crate) use server::serve;
