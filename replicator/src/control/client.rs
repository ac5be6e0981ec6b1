//! The client of the control interface: one request, one answer, no thread left behind.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use super::json::{
    AttachUblk, BranchList, BreakUblk, DeleteBranch, Demote, Done, Failure, FailureReason, FreezeApply, Grow,
    Invalidate, Lease, NameBookmark, NodeStatus, Nothing, OpenEpoch, Promote, Release, Resolve, Seal, Sealed,
    Shrink, StartScrub, StartVerify, TellRecord, Version, VolumeReport,
};

/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long an answer may take: more than a volume may take to act.
const DEADLINE: Duration = Duration::from_secs(40);

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("nobody answers on {} ({source})", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No answer in time.
    #[error("the process on {} did not answer within {} seconds", path.display(), waited.as_secs())]
    Deadline {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// What came is no answer.
    #[error("{} does not speak this interface: {reason}", path.display())]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The replicator says no.
    #[error("{}", .0.message)]
    Refused(FailureReason),
}

impl ClientError {
    /// The cure, if there is one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Some(
                "the control socket is for its owner alone: run this as root or the replicator's user".into(),
            ),
            Self::Unreachable { .. } => {
                Some("start it: holdfast replicator --config FILE --node NAME".into())
            }
            Self::Deadline { .. } => Some("its log says what it waits for".into()),
            Self::Garbled { .. } => Some("is this the control socket, and of the same version?".into()),
            Self::Refused(reason) => reason.hint.clone(),
        }
    }
}

/// Talks to one replicator.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    deadline: Duration,
}

impl Client {
    /// A client of the control socket at `path`. Nothing is connected yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), deadline: DEADLINE }
    }

    /// The same client with less patience, for what is answered at once or by somebody who hangs.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The versions of the program and of the interface.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn version(&self) -> Result<Version, ClientError> {
        self.ask(Method::GET, "/v1/version", &())
    }

    /// The node with all its volumes.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn status(&self) -> Result<NodeStatus, ClientError> {
        self.ask(Method::GET, "/v1/status", &())
    }

    /// One volume.
    ///
    /// # Errors
    /// If there is no answer, or no such volume.
    pub fn volume(&self, volume: &str) -> Result<VolumeReport, ClientError> {
        self.ask(Method::GET, &route(volume, ""), &())
    }

    /// Makes the node the volume's primary.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn promote(&self, volume: &str, force: bool) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/promote"), &Promote { force })
    }

    /// Makes the node a secondary.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn demote(&self, volume: &str) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/demote"), &Demote {})
    }

    /// Takes a member that is gone out of the in-sync set.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn shrink(&self, volume: &str, node: &str) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/shrink"), &Shrink { node: node.to_owned() })
    }

    /// Gives up the data of the node's copy, which is then written anew.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn invalidate(&self, volume: &str) -> Result<Done, ClientError> {
        let body = Invalidate { discard_my_data: true };
        self.ask(Method::POST, &route(volume, "/invalidate"), &body)
    }

    /// Has the node serve a device of the kernel's ublk driver.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn attach_ublk(&self, volume: &str, request: AttachUblk) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/ublk/attach"), &request)
    }

    /// Has all requests of a ublk device fail.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn break_ublk(&self, volume: &str, index: u32) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/ublk/break"), &BreakUblk { index })
    }

    /// Has the replica refuse every lower epoch, and come to rest.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn seal(&self, volume: &str, seal: &Seal) -> Result<Sealed, ClientError> {
        self.ask(Method::POST, &route(volume, "/seal"), seal)
    }

    /// Begins a reign.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn open_epoch(&self, volume: &str, reign: &OpenEpoch) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/open-epoch"), reign)
    }

    /// Tells the replica the record as it was read back.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn record(&self, volume: &str, record: &TellRecord) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/record"), record)
    }

    /// Tells the replica until when it may answer clients.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn lease(&self, volume: &str, lease: Lease) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/lease"), &lease)
    }

    /// Ends a reign, with everything durable at the members.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn release(&self, volume: &str) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/release"), &Release {})
    }

    /// Has the replicator take over what has changed in its configuration file.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn reload(&self) -> Result<Done, ClientError> {
        self.ask(Method::POST, "/v1/reload", &Nothing {})
    }

    /// Has the replicator read the cluster's secrets again.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn rekey(&self) -> Result<Done, ClientError> {
        self.ask(Method::POST, "/v1/keys", &Nothing {})
    }

    /// Has the volume grow.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn grow(&self, volume: &str, size_bytes: u64) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/grow"), &Grow { size_bytes })
    }

    /// Begins a scrub of the copy here, or ends one.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn scrub(&self, volume: &str, request: &StartScrub) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/scrub"), request)
    }

    /// Begins a verify, or ends one.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn verify(&self, volume: &str, request: &StartVerify) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/verify"), request)
    }

    /// Gives up what `node` has past the common point of a fork.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn resolve(&self, volume: &str, node: &str) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/resolve"), &Resolve { discard: node.to_owned() })
    }

    /// Stops apply at one position.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn freeze_apply(&self, volume: &str, at: &FreezeApply) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/freeze-apply"), at)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn thaw(&self, volume: &str) -> Result<Done, ClientError> {
        self.ask(Method::POST, &route(volume, "/thaw"), &Nothing {})
    }

    /// Has a node note from now on which blocks of its copy change.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn add_bookmark(&self, volume: &str, name: &str) -> Result<Done, ClientError> {
        let request = NameBookmark { name: name.to_owned() };
        self.ask(Method::POST, &route(volume, "/bookmarks/add"), &request)
    }

    /// Ends that.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn delete_bookmark(&self, volume: &str, name: &str) -> Result<Done, ClientError> {
        let request = NameBookmark { name: name.to_owned() };
        self.ask(Method::POST, &route(volume, "/bookmarks/delete"), &request)
    }

    /// What was kept of forks.
    ///
    /// # Errors
    /// If there is no answer, or they cannot be listed.
    pub fn branches(&self, volume: &str) -> Result<BranchList, ClientError> {
        self.ask(Method::GET, &route(volume, "/branches"), &())
    }

    /// Removes a branch.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn delete_branch(&self, volume: &str, name: &str) -> Result<Done, ClientError> {
        let body = DeleteBranch { name: name.to_owned() };
        self.ask(Method::POST, &route(volume, "/branches/delete"), &body)
    }

    /// Where it asks.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks for what lies at `route`.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn get<T: DeserializeOwned>(&self, route: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, route, &())
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// If there is no answer, or it is a no.
    pub fn post<T: DeserializeOwned>(&self, route: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.ask(Method::POST, route, body)
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        route: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let garbled = |reason: String| ClientError::Garbled { path: self.path.clone(), reason };
        let body = if method == Method::GET {
            Bytes::new()
        } else {
            Bytes::from(serde_json::to_vec(body).map_err(|error| garbled(error.to_string()))?)
        };
        let request = Request::builder()
            .method(method)
            .uri(route)
            .header("host", "holdfast")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| garbled(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let unreachable = |source| ClientError::Unreachable { path: self.path.clone(), source };
        let (status, bytes) = runtime.map_err(unreachable)?.block_on(async {
            match tokio::time::timeout(self.deadline, self.exchange(request)).await {
                Ok(result) => result,
                Err(_) => Err(ClientError::Deadline { path: self.path.clone(), waited: self.deadline }),
            }
        })?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| garbled(error.to_string()));
        }
        match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => Err(ClientError::Refused(failure.error)),
            Err(_) => Err(garbled(format!("HTTP status {status} without a reason"))),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ClientError> {
        let garbled = |reason: String| ClientError::Garbled { path: self.path.clone(), reason };
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|source| ClientError::Unreachable { path: self.path.clone(), source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| garbled(error.to_string()))?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| garbled(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        driver.abort();
        Ok((status, body.map_err(|error| garbled(error.to_string()))?.to_bytes()))
    }
}

fn route(volume: &str, action: &str) -> String {
    let mut route = String::from("/v1/volumes/");
    for byte in volume.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            route.push(char::from(byte));
        } else {
            route.push_str(&format!("%{byte:02X}"));
        }
    }
    route + action
}
