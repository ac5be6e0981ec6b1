//! What orchestrators say to each other: one request, one answer, as JSON in frames of known length. The connection is
//! authenticated and encrypted; lengths are still bounded, since a peer may be a newer version with a fault.

use std::io;

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};
use orchestrator_core::decide::{Explanation, Note, Planned, Seal};
use orchestrator_core::history::Entry;
use orchestrator_core::record::Refused;
use orchestrator_core::state::State;
use orchestrator_core::units::{NodeId, VolumeId};
use orchestrator_core::view::Report;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::consensus::types::{SnapshotMeta, Types, Vote};
use crate::rotation::Held;

/// Bytes of a frame.
const FRAME_BYTES_MAX: usize = 16 << 20;

/// The first frame of a connection: who dials. The certificate must bear it out.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) node: NodeId,
}

/// A request.
#[derive(Serialize, Deserialize)]
pub(crate) enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<Types>),
    PreVote(VoteRequest<Types>),
    Snapshot {
        vote: Vote,
        meta: Box<SnapshotMeta>,
        state: Box<State>,
    },
    Transfer(TransferLeaderRequest<Types>),
    /// Who are you, and does your store hold anything?
    Identify,
    /// What a node says of itself to whom it takes for the leader.
    Report(ReportRequest),
    /// An entry that the leader is asked to propose.
    Propose(Entry),
    /// Something that only the leader can say.
    Ask(Question),
    /// A replica is to promise an epoch.
    Seal(Seal),
    /// A step of a rotation of the keys.
    Keys(KeysRequest),
}

/// A step of a rotation of the keys.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct KeysRequest {
    /// Drawn by whoever leads the rotation.
    pub(crate) by: u64,
    pub(crate) order: KeyOrder,
}

/// What a node is to do with its keys. Each may come twice.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum KeyOrder {
    /// Say which there are, with everything done that was ordered before.
    Tell,
    /// Nothing more: whoever leads has ended.
    Release,
    /// Accept this secret, too.
    Accept { secret: Vec<u8> },
    /// Use the one with this name, and accept the one used before.
    Use { key: u64 },
    /// Accept the one used before no more, if the one with this name is used.
    Drop { used: u64 },
}

impl KeyOrder {
    /// What has come of it, for people.
    pub(crate) fn text(&self) -> &'static str {
        match self {
            Self::Tell | Self::Release => "read again",
            Self::Accept { .. } => "new ones are accepted",
            Self::Use { .. } => "the new ones are used, the old ones still accepted",
            Self::Drop { .. } => "the old ones are dropped",
        }
    }
}

/// What only the leader can say, since it follows from what all nodes report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    /// Why a volume is as it is.
    Volume(VolumeId),
    /// Why a node is.
    Node(NodeId),
    /// What would happen.
    Plan(Supposed),
    /// What the decisions say to people now.
    Notes,
}

/// What is supposed to happen, in a plan.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Supposed {
    Nothing,
    Dies(NodeId),
    Cut(NodeId, NodeId),
    DiskFails(NodeId, Option<VolumeId>),
}

/// The leader's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Explained(Explanation),
    Planned(Vec<Planned>),
    Notes(Vec<Note>),
}

/// What a node says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReportRequest {
    /// Drawn when the process started.
    pub(crate) process: u64,
    /// Grows with each report of the process.
    pub(crate) sequence: u64,
    /// The voter that its store is.
    pub(crate) voter: u64,
    /// Its replicas.
    pub(crate) report: Report,
    /// Volumes whose lease it asks for.
    pub(crate) leases: Vec<VolumeId>,
}

/// An answer. Errors of Raft itself are final for a request and go back as text.
#[derive(Serialize, Deserialize)]
pub(crate) enum Response {
    Append(AppendEntriesResponse<Types>),
    Vote(VoteResponse<Types>),
    Snapshot(SnapshotResponse<Types>),
    Transferred,
    Identity {
        voter: u64,
        /// Whether its store belongs to a cluster already.
        initialized: bool,
    },
    Reported(ReportAnswer),
    /// The configuration of whoever answers has no such node as the one that asks.
    Excluded,
    Proposed(Result<(), Refused>),
    /// How a node is whose replica has promised.
    Sealed(Report),
    /// Only the leader can do that; perhaps this is who.
    NotLeader(Option<NodeId>),
    Answer(Answer),
    /// The keys of a node, by name.
    Keys(Held),
    Failed(String),
}

/// What the leader says to a report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ReportAnswer {
    /// What the leader has applied: nobody acts on less.
    pub(crate) applied: u64,
    /// Leases granted, of those asked for.
    pub(crate) granted: Vec<VolumeId>,
    /// Why others were not.
    pub(crate) withheld: Vec<(VolumeId, String)>,
    /// When one of them can be granted at the earliest, if that is known.
    pub(crate) again_ms: Option<u64>,
}

/// Writes one frame.
pub(crate) async fn write_frame<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    if body.len() > FRAME_BYTES_MAX {
        return Err(io::Error::other(format!("a message of {} bytes is too long", body.len())));
    }
    let len = u32::try_from(body.len()).expect("below the limit");
    let mut frame = len.to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// Reads one frame; `None` if the stream ended before it.
pub(crate) async fn read_frame<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    read_frame_of(stream, FRAME_BYTES_MAX).await
}

/// Reads one frame of at most so many bytes.
pub(crate) async fn read_frame_of<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    match stream.read_exact(&mut len).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
    if len > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {len} bytes is too long"),
        ));
    }
    // Memory follows what really comes, not what was announced.
    let mut body = Vec::new();
    (&mut *stream).take(len as u64).read_to_end(&mut body).await?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&body).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
