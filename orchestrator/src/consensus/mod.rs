//! Consensus behind a border of ours: propose an entry, be sure of leadership, see what is agreed on. Raft is openraft's;
//! its types stay in this folder. Leadership is never taken for more than it is: epochs of volumes are in the records.

pub(crate) mod log;
pub(crate) mod machine;
mod network;
pub(crate) mod types;
pub(crate) mod voters;
pub(crate) mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::error::{ClientWriteError, RaftError};
use openraft::{Config, EmptyNode, Raft, ReadPolicy, SnapshotPolicy};
use orchestrator_core::history::Entry;
use orchestrator_core::record::Refused;
use orchestrator_core::units::NodeId;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use self::log::LogStore;
use self::machine::{Applied, Machine};
use self::network::Network;
use self::types::{Snapshot, Types};
use self::voters::Change;
use self::wal::WalError;
use crate::options::ELECTION_FACTOR_MAX;
use crate::transport::message::{Request, Response};
use crate::transport::peer::Address;

/// Raft's leader is heard this much less often than nodes are: silence of it is not what a failover waits for.
const HEARTBEATS_EACH: u64 = 2;
/// Entries after which a snapshot is taken.
const SNAPSHOT_ENTRIES: u64 = 500;
/// Entries kept behind a snapshot, for those who are a little behind.
const ENTRIES_KEPT: u64 = 100;
/// How long an entry may take to be agreed on before whoever asked is told that it is not known.
const PROPOSE_WITHIN: Duration = Duration::from_secs(5);
/// How long a round that confirms leadership may take.
const CONFIRM_WITHIN: Duration = Duration::from_secs(1);

/// Why something was not agreed on.
#[derive(Debug, Error)]
pub(crate) enum ConsensusError {
    /// Another node is leader, or none is known.
    #[error("this node is not the leader")]
    NotLeader(Option<NodeId>),
    /// Nobody knows whether it was.
    #[error("no majority answered in time; whether it was agreed on is not known yet")]
    Unknown,
    /// Raft has stopped.
    #[error("consensus has stopped on this node: {0}")]
    Stopped(String),
}

/// Why consensus does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] WalError),
    /// The store is another node's.
    #[error("the store in {folder} belongs to node number {found}, this node is number {expected}")]
    OtherNode {
        /// The folder.
        folder: String,
        /// Whose it is.
        found: u8,
        /// Who asks.
        expected: u8,
    },
    /// Raft refuses.
    #[error("consensus does not start: {0}")]
    Raft(String),
}

/// Who leads, as this node knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) leader: Option<NodeId>,
    pub(crate) is_me: bool,
    /// A new election is another term.
    pub(crate) term: u64,
}

/// What the store folder says of itself.
#[derive(Serialize, Deserialize)]
struct StoreIdentity {
    voter: u64,
}

/// The node that a voter is on. A voter is a node and a store: one with a new store is another voter, and is never taken
/// for the one that has voted.
pub(crate) fn node_of(voter: u64) -> NodeId {
    NodeId(u8::try_from(voter & 0xff).expect("one byte"))
}

/// This node's part in consensus.
#[derive(Clone)]
pub(crate) struct Consensus {
    raft: Raft<Types, Machine>,
    voter: u64,
    applied: watch::Receiver<Applied>,
}

impl Consensus {
    /// Opens the store in `folder` and takes part.
    pub(crate) async fn start(
        folder: &Path,
        me: NodeId,
        election_ms: u64,
        heartbeat_ms: u64,
        addresses: BTreeMap<NodeId, Address>,
    ) -> Result<Self, StartError> {
        let voter = identity(folder, me)?;
        let log = LogStore::open(&folder.join("log"))?;
        let (machine, applied) = Machine::open(&folder.join("snapshot"))?;
        let config = Config {
            cluster_name: "holdfast".to_owned(),
            heartbeat_interval: heartbeat_ms * HEARTBEATS_EACH,
            election_timeout_min: election_ms,
            election_timeout_max: election_ms * ELECTION_FACTOR_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
            max_in_snapshot_log_to_keep: ENTRIES_KEPT,
            // A voter that was cut off must not unseat a leader whom the others hear.
            enable_pre_vote: Some(true),
            // A leader that restarts asks for votes like anybody.
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        let config = config.validate().map_err(|error| StartError::Raft(error.to_string()))?;
        let network = Network { me: voter, addresses };
        let raft = Raft::new(voter, Arc::new(config), network, log, machine).await;
        let raft = raft.map_err(|error| StartError::Raft(error.to_string()))?;
        Ok(Self { raft, voter, applied })
    }

    /// This voter.
    pub(crate) fn voter(&self) -> u64 {
        self.voter
    }

    /// Whether the store belongs to a cluster.
    pub(crate) async fn is_initialized(&self) -> bool {
        // One that has stopped is no empty one.
        self.raft.is_initialized().await.unwrap_or(true)
    }

    /// Begins a cluster of these voters. Only for when every one of them has an empty store.
    pub(crate) async fn begin(&self, voters: &BTreeSet<u64>) -> Result<(), ConsensusError> {
        let members: BTreeMap<u64, EmptyNode> =
            voters.iter().map(|voter| (*voter, EmptyNode::default())).collect();
        self.raft.initialize(members).await.map_err(|error| ConsensusError::Stopped(error.to_string()))
    }

    /// The voters of the newest membership.
    pub(crate) fn voters(&self) -> BTreeSet<u64> {
        self.raft.voter_ids().collect()
    }

    /// Has others vote: both the old and the new majorities agree to it.
    pub(crate) async fn change_voters(&self, change: Change) -> Result<(), ConsensusError> {
        let stopped = |error: String| ConsensusError::Stopped(error);
        let voters = match change {
            Change::Joins { new, voters } => {
                let learner = self.raft.add_learner(new, EmptyNode::default(), false).await;
                learner.map_err(|error| stopped(error.to_string()))?;
                voters
            }
            Change::Leaves { voters, .. } => voters,
        };
        let changed = self.raft.change_membership(voters, false).await;
        changed.map(|_| ()).map_err(|error| stopped(error.to_string()))
    }

    /// Asks another voter to lead. It does if it has everything; nobody waits for it.
    pub(crate) async fn hand_over(&self, voter: u64) {
        // Raft that has stopped is reported where it did.
        let _ = self.raft.trigger().transfer_leader(voter).await;
    }

    /// Who leads.
    pub(crate) fn leadership(&self) -> Leadership {
        let metrics = self.raft.server_metrics().borrow_watched().clone();
        let leader = metrics.current_leader.map(node_of);
        let is_me = metrics.current_leader == Some(self.voter) && metrics.state.is_leader();
        Leadership { leader, is_me, term: metrics.vote.leader_id.term }
    }

    /// Tells when something more is applied here.
    pub(crate) fn watch(&self) -> watch::Receiver<Applied> {
        self.applied.clone()
    }

    /// What is agreed on, as far as it was applied here.
    pub(crate) fn applied(&self) -> Applied {
        self.applied.borrow().clone()
    }

    /// Proposes an entry and waits until it is applied here.
    pub(crate) async fn propose(&self, entry: Entry) -> Result<Result<(), Refused>, ConsensusError> {
        match tokio::time::timeout(PROPOSE_WITHIN, self.raft.client_write(entry)).await {
            Err(_) => Err(ConsensusError::Unknown),
            Ok(Ok(written)) => Ok(written.data.0),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(ConsensusError::NotLeader(forward.leader_id.map(node_of)))
            }
            Ok(Err(error)) => Err(ConsensusError::Stopped(error.to_string())),
        }
    }

    /// Is sure, by a round of a majority begun after this call, that this node leads, and that everything agreed on
    /// before is applied here.
    pub(crate) async fn confirm(&self) -> Result<(), ConsensusError> {
        match tokio::time::timeout(CONFIRM_WITHIN, self.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await
        {
            Err(_) => Err(ConsensusError::Unknown),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ConsensusError::NotLeader(self.leadership().leader)),
        }
    }

    /// Answers a request of Raft; gives back what is none.
    pub(crate) async fn handle(&self, request: Request) -> Result<Response, Request> {
        let failed = |error: String| Response::Failed(error);
        Ok(match request {
            Request::Append(rpc) => match self.raft.append_entries(rpc).await {
                Ok(response) => Response::Append(response),
                Err(error) => failed(error.to_string()),
            },
            Request::Vote(rpc) => match self.raft.vote(rpc).await {
                Ok(response) => Response::Vote(response),
                Err(error) => failed(error.to_string()),
            },
            Request::PreVote(rpc) => match self.raft.pre_vote(rpc).await {
                Ok(response) => Response::Vote(response),
                Err(error) => failed(error.to_string()),
            },
            Request::Snapshot { vote, meta, state } => {
                let snapshot = Snapshot { meta: *meta, snapshot: *state };
                match self.raft.install_full_snapshot(vote, snapshot).await {
                    Ok(response) => Response::Snapshot(response),
                    Err(error) => failed(error.to_string()),
                }
            }
            Request::Transfer(rpc) => match self.raft.handle_transfer_leader(rpc).await {
                Ok(Ok(())) => Response::Transferred,
                Ok(Err(error)) => failed(error.to_string()),
                Err(error) => failed(error.to_string()),
            },
            other => return Err(other),
        })
    }

    /// Ends this node's part.
    pub(crate) async fn stop(&self) {
        // A task that has panicked was reported where it did.
        let _ = self.raft.shutdown().await;
    }
}

/// The voter that this folder is, drawn when it is first used.
fn identity(folder: &Path, me: NodeId) -> Result<u64, StartError> {
    let system = |action| move |source| WalError::System { path: folder.to_owned(), action, source };
    std::fs::create_dir_all(folder).map_err(system("make"))?;
    let path = folder.join("identity");
    let voter = match wal::read_one(&path)? {
        Some(bytes) => {
            let known: Result<StoreIdentity, _> = serde_json::from_slice(&bytes);
            known.map_err(|error| system("understand")(error.into()))?.voter
        }
        None => {
            let drawn = u64::from_le_bytes(crate::random());
            let voter = drawn << 8 | u64::from(me.0);
            let bytes = serde_json::to_vec(&StoreIdentity { voter }).expect("a number is JSON");
            wal::write_one(&path, &bytes)?;
            voter
        }
    };
    if node_of(voter) == me {
        return Ok(voter);
    }
    let folder = folder.display().to_string();
    Err(StartError::OtherNode { folder, found: node_of(voter).0, expected: me.0 })
}
