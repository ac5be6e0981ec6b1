//! The types that openraft is instantiated with. Nothing outside this folder knows them.

use openraft::{EmptyNode, TokioRuntime};
use orchestrator_core::history::Entry as Decision;
use orchestrator_core::record::Refused;
use orchestrator_core::state::State;
use serde::{Deserialize, Serialize};

/// What applying an entry came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer(pub(crate) Result<(), Refused>);

openraft::declare_raft_types!(
    /// One leader in a term, at most: the standard rule.
    pub(crate) Types:
        D = Decision,
        R = Answer,
        NodeId = u64,
        Node = EmptyNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = TokioRuntime,
);

pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type Membership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<Types, State>;
