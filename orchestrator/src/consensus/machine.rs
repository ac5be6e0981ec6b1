//! The replicated state machine as openraft wants it: applies entries to the core's `State`, keeps the newest snapshot in
//! a file, and tells everybody here what has been agreed on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use orchestrator_core::state::State;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::types::{Answer, LogId, Membership, Snapshot, SnapshotMeta, Types};
use super::wal::{self, WalError};

/// What has been applied here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Applied {
    /// Index of the last entry; 0 before the first.
    pub(crate) index: u64,
    /// The state after it.
    pub(crate) state: Arc<State>,
}

/// A snapshot as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    meta: SnapshotMeta,
    state: State,
}

/// The state machine of one voter.
pub(crate) struct Machine {
    path: PathBuf,
    last: Option<LogId>,
    membership: Membership,
    state: State,
    applied: watch::Sender<Applied>,
}

impl Machine {
    /// Begins with the snapshot at `path`, or with nothing.
    pub(crate) fn open(path: &Path) -> Result<(Self, watch::Receiver<Applied>), WalError> {
        let (applied, receiver) = watch::channel(Applied::default());
        let mut machine = Self {
            path: path.to_owned(),
            last: None,
            membership: Membership::default(),
            state: State::default(),
            applied,
        };
        if let Some(stored) = machine.read()? {
            machine.adopt(&stored.meta, stored.state);
        }
        Ok((machine, receiver))
    }

    fn read(&self) -> Result<Option<Stored>, WalError> {
        let Some(bytes) = wal::read_one(&self.path)? else { return Ok(None) };
        let stored = serde_json::from_slice(&bytes).map_err(|error| WalError::System {
            path: self.path.clone(),
            action: "understand",
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })?;
        Ok(Some(stored))
    }

    fn adopt(&mut self, meta: &SnapshotMeta, state: State) {
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.state = state;
        self.publish();
    }

    fn publish(&self) {
        let index = self.last.map_or(0, |last| last.index);
        self.applied.send_replace(Applied { index, state: Arc::new(self.state.clone()) });
    }
}

/// Writes a snapshot of what was applied when it was made.
pub(crate) struct SnapshotBuilder {
    path: PathBuf,
    stored: Stored,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = State;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        write(&self.path, &self.stored)?;
        Ok(Snapshot { meta: self.stored.meta.clone(), snapshot: self.stored.state.clone() })
    }
}

fn write(path: &Path, stored: &Stored) -> io::Result<()> {
    let bytes = serde_json::to_vec(stored).map_err(io::Error::other)?;
    wal::write_one(path, &bytes).map_err(io::Error::other)
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = State;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.last = Some(entry.log_id);
            let answer = match entry.payload {
                EntryPayload::Blank => Ok(()),
                EntryPayload::Normal(decision) => self.state.commit(&decision),
                EntryPayload::Membership(membership) => {
                    self.membership = Membership::new(Some(entry.log_id), membership);
                    Ok(())
                }
            };
            // Whoever is told that its entry is applied finds it applied.
            self.publish();
            if let Some(responder) = responder {
                responder.send(Answer(answer));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let meta = SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() };
        SnapshotBuilder { path: self.path.clone(), stored: Stored { meta, state: self.state.clone() } }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: State) -> io::Result<()> {
        write(&self.path, &Stored { meta: meta.clone(), state: snapshot.clone() })?;
        self.adopt(meta, snapshot);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let stored = self.read().map_err(io::Error::other)?;
        Ok(stored.map(|stored| Snapshot { meta: stored.meta, snapshot: stored.state }))
    }
}
