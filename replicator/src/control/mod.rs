//! The control interface of a node: HTTP/1.1 and JSON on a unix socket that only its owner may open.
//!
//! ```text
//! GET  /v1/version
//! GET  /v1/status                       the node with all its volumes
//! POST /v1/reload                       {}
//! POST /v1/keys                         {}; the secret's files are read again
//! GET  /v1/volumes/{volume}
//! POST /v1/volumes/{volume}/promote     {"force": false}
//! POST /v1/volumes/{volume}/demote      {}
//! POST /v1/volumes/{volume}/shrink      {"node": "b"}
//! POST /v1/volumes/{volume}/invalidate  {"discard_my_data": true}
//! POST /v1/volumes/{volume}/resolve     {"discard": "b"}
//! POST /v1/volumes/{volume}/freeze-apply  {}, {"position": "3:1042"} or {"time_ms": 1790000000000}
//! POST /v1/volumes/{volume}/thaw          {}
//! POST /v1/volumes/{volume}/bookmarks/add     {"name": "monday"}
//! POST /v1/volumes/{volume}/bookmarks/delete  {"name": "monday"}
//! GET  /v1/volumes/{volume}/branches
//! POST /v1/volumes/{volume}/branches/delete  {"name": "3-1042-0a1b2c3d"}
//!
//! of an orchestrator:
//! POST /v1/volumes/{volume}/seal        {"attempt": 7, "epoch": 3}
//! POST /v1/volumes/{volume}/open-epoch  {"epoch", "version", "reign", "in_sync", "generation", "lease_end_ms"}
//! POST /v1/volumes/{volume}/record      {"epoch": 3, "version": 2, "in_sync": ["a", "b"]}
//! POST /v1/volumes/{volume}/lease       {"epoch": 3, "end_ms": 123456}
//! POST /v1/volumes/{volume}/release     {}
//!
//! over TCP, at `metrics-listen`:
//! GET  /metrics                         figures, in the text format of Prometheus
//! ```
//!
//! An error is `{"error": {"code", "message", "hint"}}`. The server runs on a thread of its own and never in the
//! data path: it asks a volume through its [`Volume`] and waits.

mod activity;
mod advice;
mod bookmark_words;
mod client;
mod delay_words;
mod facts;
mod fork_words;
pub mod json;
mod metrics;
mod requests;
mod routes;
mod scrub_words;
mod server;
mod socket;
mod tcp;
pub mod time;
mod verify_words;

#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use replicator_core::event::AdminAction;

use crate::branch::BranchInfo;
use crate::error::VolumeError;
use crate::{VolumeHandle, VolumeStatus};

pub use client::{Client, ClientError};
pub use delay_words::parse_position;
pub use facts::{Facts, LiveFacts};
pub use server::{Server, ServerError, serve_metrics};
pub use socket::{ControlSocket, SocketError};
pub use tcp::{Offer, TcpServer, TlsNow};

/// What the control interface needs of a running volume.
pub trait Volume: Send + Sync + 'static {
    /// The volume's name.
    fn name(&self) -> &str;

    /// Asks for something and waits for the answer, at most until `deadline` has passed.
    ///
    /// # Errors
    /// What the replica says, or that there was no answer.
    fn admin(&self, action: AdminAction, deadline: Duration) -> Result<String, VolumeError>;

    /// Begins to serve a device of the kernel's ublk driver.
    ///
    /// # Errors
    /// If the volume is not served in that generation, or the device cannot be opened.
    fn attach_ublk(&self, index: u32, generation: u64, tags: u16) -> Result<String, VolumeError>;

    /// Has all requests of a ublk device fail.
    ///
    /// # Errors
    /// If the volume does not serve it.
    fn break_ublk(&self, index: u32) -> Result<String, VolumeError>;

    /// A picture of the replica at this moment.
    ///
    /// # Errors
    /// If the volume has stopped, or its thread hangs.
    fn status(&self) -> Result<VolumeStatus, VolumeError>;

    /// What was kept of forks that the replica lost.
    ///
    /// # Errors
    /// If that cannot be listed.
    fn branches(&self) -> io::Result<Vec<BranchInfo>>;

    /// Removes one of them.
    ///
    /// # Errors
    /// If it is not there, or cannot be removed.
    fn delete_branch(&self, name: &str) -> io::Result<()>;
}

/// Reads the configuration file again.
pub trait Reload: Send + Sync + 'static {
    /// Has what runs take over what has changed; what the file says now, and what was done.
    ///
    /// # Errors
    /// What is wrong with the file, or what cannot be changed so.
    fn reload(&self) -> Result<(Facts, String), String>;

    /// Reads the cluster's secrets again and has what runs take them over; what was done.
    ///
    /// # Errors
    /// What is wrong with their files, or what did not take them over.
    fn rekey(&self) -> Result<String, String>;
}

impl Volume for VolumeHandle {
    fn name(&self) -> &str {
        self.name()
    }

    fn admin(&self, action: AdminAction, deadline: Duration) -> Result<String, VolumeError> {
        self.admin(action, deadline)
    }

    fn attach_ublk(&self, index: u32, generation: u64, tags: u16) -> Result<String, VolumeError> {
        self.attach_ublk(index, generation, tags)
    }

    fn break_ublk(&self, index: u32) -> Result<String, VolumeError> {
        self.break_ublk(index)
    }

    fn status(&self) -> Result<VolumeStatus, VolumeError> {
        self.status()
    }

    fn branches(&self) -> io::Result<Vec<BranchInfo>> {
        self.branches().list()
    }

    fn delete_branch(&self, name: &str) -> io::Result<()> {
        self.branches().delete(name)?;
        self.relist_branches()
    }
}
