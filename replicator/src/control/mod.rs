//! The control interface of a node: HTTP/1.1 and JSON on a unix socket that only its owner may open.
//!
//! ```text
//! GET  /v1/version
//! GET  /v1/status                       the node with all its volumes
//! GET  /v1/volumes/{volume}
//! POST /v1/volumes/{volume}/promote     {"force": false}
//! POST /v1/volumes/{volume}/demote      {}
//! POST /v1/volumes/{volume}/shrink      {"node": "b"}
//! POST /v1/volumes/{volume}/invalidate  {"discard_my_data": true}
//!
//! of an orchestrator:
//! POST /v1/volumes/{volume}/seal        {"attempt": 7, "epoch": 3}
//! POST /v1/volumes/{volume}/open-epoch  {"epoch", "version", "reign", "in_sync", "generation", "lease_end_ms"}
//! POST /v1/volumes/{volume}/record      {"epoch": 3, "version": 2, "in_sync": ["a", "b"]}
//! POST /v1/volumes/{volume}/lease       {"epoch": 3, "end_ms": 123456}
//! POST /v1/volumes/{volume}/release     {}
//! ```
//!
//! An error is `{"error": {"code", "message", "hint"}}`. The server runs on a thread of its own and never in the
//! data path: it asks a volume through its [`Volume`] and waits.

mod activity;
mod advice;
mod client;
mod facts;
pub mod json;
mod routes;
mod server;
mod socket;

#[cfg(test)]
mod tests;

use std::time::Duration;

use replicator_core::event::AdminAction;

use crate::error::VolumeError;
use crate::{VolumeHandle, VolumeStatus};

pub use client::{Client, ClientError};
pub use facts::Facts;
pub use server::{Server, ServerError};
pub use socket::{ControlSocket, SocketError};

/// What the control interface needs of a running volume.
pub trait Volume: Send + Sync + 'static {
    /// The volume's name.
    fn name(&self) -> &str;

    /// Asks for something and waits for the answer, at most until `deadline` has passed.
    ///
    /// # Errors
    /// What the replica says, or that there was no answer.
    fn admin(&self, action: AdminAction, deadline: Duration) -> Result<String, VolumeError>;

    /// A picture of the replica at this moment.
    ///
    /// # Errors
    /// If the volume has stopped, or its thread hangs.
    fn status(&self) -> Result<VolumeStatus, VolumeError>;
}

impl Volume for VolumeHandle {
    fn name(&self) -> &str {
        self.name()
    }

    fn admin(&self, action: AdminAction, deadline: Duration) -> Result<String, VolumeError> {
        self.admin(action, deadline)
    }

    fn status(&self) -> Result<VolumeStatus, VolumeError> {
        self.status()
    }
}
