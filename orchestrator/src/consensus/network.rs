//! Raft's requests over the transport.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;

use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use orchestrator_core::state::State;
use orchestrator_core::units::NodeId;

use super::node_of;
use super::types::{Snapshot, Types, Vote};
use crate::transport::message::{Request, Response};
use crate::transport::peer::{Address, Peer};

type Result<T> = std::result::Result<T, RPCError<Types>>;

/// Makes connections to voters.
pub(super) struct Network {
    pub(super) me: u64,
    pub(super) addresses: BTreeMap<NodeId, Address>,
}

/// A connection to one voter.
pub(super) struct Connection {
    me: u64,
    target: u64,
    /// `None` if the configuration has no such node (any more).
    peer: Option<Peer>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Connection {
        let peer = self.addresses.get(&node_of(target)).cloned().map(Peer::new);
        Connection { me: self.me, target, peer }
    }
}

impl Connection {
    async fn call(&mut self, request: &Request, action: RPCTypes, option: &RPCOption) -> Result<Response> {
        let within = option.hard_ttl();
        let Some(peer) = &mut self.peer else {
            return Err(unreachable_node(&io::Error::other("the configuration has no such node")));
        };
        match peer.call(request, within).await {
            Ok(Response::Excluded) => {
                Err(unreachable_node(&io::Error::other("its configuration does not have this node")))
            }
            Ok(Response::Failed(text)) => Err(RPCError::Network(NetworkError::from_string(text))),
            Ok(response) => Ok(response),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let (id, target) = (self.me, self.target);
                Err(RPCError::Timeout(Timeout { action, id, target, timeout: within }))
            }
            Err(error) => Err(unreachable_node(&error)),
        }
    }
}

fn unreachable_node(error: &io::Error) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::new(error))
}

fn garbled() -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string("the answer belongs to another question"))
}

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = State;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>> {
        match self.call(&Request::Append(rpc), RPCTypes::AppendEntries, &option).await? {
            Response::Append(response) => Ok(response),
            _ => Err(garbled()),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>> {
        match self.call(&Request::Vote(rpc), RPCTypes::Vote, &option).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(garbled()),
        }
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>> {
        match self.call(&Request::PreVote(rpc), RPCTypes::Vote, &option).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(garbled()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> std::result::Result<SnapshotResponse<Types>, StreamingError<Types>> {
        // A few kilobytes: there is nothing to cancel half-way.
        let request =
            Request::Snapshot { vote, meta: Box::new(snapshot.meta), state: Box::new(snapshot.snapshot) };
        match self.call(&request, RPCTypes::InstallSnapshot, &option).await? {
            Response::Snapshot(response) => Ok(response),
            _ => Err(garbled().into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>> {
        match self.call(&Request::Transfer(rpc), RPCTypes::TransferLeader, &option).await? {
            Response::Transferred => Ok(Ok(())),
            _ => Err(garbled()),
        }
    }
}
