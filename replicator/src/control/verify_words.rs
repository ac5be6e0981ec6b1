//! The words of the control interface for a verify: how far it is, and what it found.

use replicator_core::dirty::BLOCK_BYTES;
use replicator_core::status::{Difference, Proof, VerifyPhase, VerifyStatus};
use replicator_core::units::NodeId;
use serde::{Deserialize, Serialize};

use super::facts::Facts;
use super::json::ResyncReport;

/// A verify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// `comparing`, `proving` (reading the journal for who is right), `repairing`, `done`, `stopped` or `interrupted`.
    pub phase: String,
    /// Why it was interrupted, if it was.
    pub reason: Option<String>,
    /// Whether it writes anew what differs.
    pub repair: bool,
    /// The node whose copy it trusts where nothing proves which one is right.
    pub trust: String,
    /// How far it is.
    pub progress: ResyncReport,
    /// Seconds it took, or takes so far.
    pub seconds: u64,
    /// Bytes that cannot be read here, nor from another replica.
    pub unreadable_bytes: u64,
    /// The copies that are compared.
    pub peers: Vec<VerifiedPeerReport>,
}

/// What a verify knows of one copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedPeerReport {
    /// Name of its node.
    pub node: String,
    /// Why it was not compared to the end, if it was not.
    pub lost: Option<String>,
    /// Bytes that differ now, in whole blocks of 4096.
    pub differing_bytes: u64,
    /// Those that were found and are equal by now.
    pub settled_bytes: u64,
    /// Bytes that could not be read there when they were compared.
    pub unreadable_bytes: u64,
    /// Where it differs now; the first thousand runs.
    pub differences: Vec<DifferenceReport>,
}

/// A run of bytes that differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferenceReport {
    /// First byte in the volume, a multiple of 4096.
    pub offset: u64,
    /// Bytes, in whole blocks of 4096.
    pub length: u64,
    /// The node that the journal proves right, if it proves one; `neither` if it proves both wrong.
    pub right: Option<String>,
}

impl VerifyReport {
    pub(super) fn new(facts: &Facts, primary: NodeId, verify: &VerifyStatus) -> Self {
        let (phase, reason) = match &verify.phase {
            VerifyPhase::Comparing => ("comparing", None),
            VerifyPhase::Proving => ("proving", None),
            VerifyPhase::Repairing => ("repairing", None),
            VerifyPhase::Done => ("done", None),
            VerifyPhase::Stopped => ("stopped", None),
            VerifyPhase::Interrupted(reason) => ("interrupted", Some(facts.with_names(reason))),
        };
        let peers = verify.peers.iter().map(|peer| VerifiedPeerReport {
            node: facts.name_of(peer.node),
            lost: peer.lost.as_deref().map(|reason| facts.with_names(reason)),
            differing_bytes: peer.differing_blocks * BLOCK_BYTES,
            settled_bytes: peer.settled_blocks * BLOCK_BYTES,
            unreadable_bytes: peer.unreadable_blocks * BLOCK_BYTES,
            differences: peer
                .differences
                .iter()
                .map(|run| difference(facts, primary, peer.node, run))
                .collect(),
        });
        Self {
            phase: phase.to_owned(),
            reason,
            repair: verify.repair,
            trust: facts.name_of(verify.trust),
            progress: ResyncReport::from(verify.progress),
            seconds: verify.progress.elapsed_ms / 1000,
            unreadable_bytes: verify.unreadable_blocks * BLOCK_BYTES,
            peers: peers.collect(),
        }
    }

    /// Whether it has ended, however it did.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase.as_str(), "done" | "stopped" | "interrupted")
    }
}

fn difference(facts: &Facts, primary: NodeId, peer: NodeId, run: &Difference) -> DifferenceReport {
    let right = match run.proof {
        Proof::None => None,
        Proof::Primary => Some(facts.name_of(primary)),
        Proof::Peer => Some(facts.name_of(peer)),
        Proof::Neither => Some("neither".to_owned()),
    };
    DifferenceReport { offset: run.block * BLOCK_BYTES, length: run.blocks * BLOCK_BYTES, right }
}
