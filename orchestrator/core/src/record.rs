//! The record of a volume: who may write it and who holds every acknowledged write. Every change is compare-and-set
//! on (epoch, version) and judged when the log entry is applied, so that a stale or repeated request changes nothing.
//!
//! ```text
//!              takeover                opened
//!  (no record) ---------> primary, not opened ---------> primary, opened --+ shrink, grow
//!                 ^    ^                |                  |    ^          |
//!                 |    +----------------+ takeover         |    +----------+
//!                 |                                        | takeover, release
//!                 +----------- no primary <----------------+
//! ```

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::proof::Proof;
use crate::units::{Epoch, NodeId, NodeSet, Position, ReignId};

/// The committed configuration of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The reign.
    pub epoch: Epoch,
    /// Change of the record within the reign.
    pub version: u64,
    /// Who may write.
    pub primary: Option<NodeId>,
    /// Identity of the reign.
    pub reign: ReignId,
    /// Whether the primary has begun to serve in this reign. A reign has one incarnation: one that was opened and ended
    /// is never continued.
    pub opened: bool,
    /// Replicas that hold every acknowledged write, and durably every flushed one.
    pub in_sync: NodeSet,
    /// What client sessions are bound to; another one breaks them.
    pub generation: u64,
    /// Why the newest takeover was safe.
    pub proof: Proof,
    /// Where the log of acknowledged writes surely reached when a member was last taken out: what a forced promotion of
    /// one that is not a member may lose begins there.
    pub shrunk_at: Option<Position>,
}

/// (epoch, version): what a change was decided on.
pub type Order = (Epoch, u64);

/// A change of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The record as it was read.
    pub expected: Order,
    /// What is to be changed.
    pub kind: ChangeKind,
}

/// What is to be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// Members that are gone are taken out.
    Shrink {
        /// Who.
        remove: NodeSet,
        /// What the primary knew committed when it asked.
        committed: Position,
    },
    /// A replica that has everything comes in.
    Grow {
        /// Who.
        add: NodeId,
    },
    /// The primary serves.
    Opened,
    /// The primary has stopped serving and says so.
    Release,
    /// Another reign begins.
    Takeover(Takeover),
}

/// Another reign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    /// Above the record's and above every promise seen.
    pub epoch: Epoch,
    /// Who is to write.
    pub primary: NodeId,
    /// Drawn at random.
    pub reign: ReignId,
    /// The sealed UpToDate members of the old set.
    pub in_sync: NodeSet,
    /// Why it is safe.
    pub proof: Proof,
    /// Whether an acknowledged write may be missing, so that clients' sessions must not go on.
    pub breaks_sessions: bool,
}

/// Why a change is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// The record has changed since it was read.
    #[error("the record has changed meanwhile: it is at epoch {}, version {}", .0.0, .0.1)]
    Stale(Order),
    /// The volume has no record.
    #[error("the volume has no record yet")]
    NoRecord,
    /// The volume has one already.
    #[error("the volume has a record already")]
    Exists,
    /// Nobody may write, so nobody may ask.
    #[error("the volume has no primary")]
    NoPrimary,
    /// The primary itself, nobody, or somebody who is no member was to be taken out.
    #[error("only other members can be taken out of the in-sync set")]
    NotRemovable,
    /// It is a member.
    #[error("it is a member already")]
    Member,
    /// The epoch is not higher than the record's.
    #[error("a takeover needs an epoch above {0}")]
    Epoch(Epoch),
    /// The new set is not made of old members with the new primary among them.
    #[error("the new in-sync set must be members of the old one, the new primary among them")]
    Set,
    /// The proof does not hold for this record.
    #[error("the fencing proof does not hold for this record")]
    Proof,
    /// What was found out is about another boot of the node.
    #[error("the node runs under another boot than the one that this is about")]
    Boot,
    /// No such order to switch a node off is open, or one is already, or the node is off.
    #[error("nobody is asked any more to switch this node off, or somebody is already")]
    Order,
}

impl Record {
    /// What changes are compared on.
    #[must_use]
    pub fn order(&self) -> Order {
        (self.epoch, self.version)
    }

    /// The record after `change`.
    ///
    /// # Errors
    /// If it was decided on another state of the record, or is not allowed in this one.
    pub fn changed(&self, change: &Change) -> Result<Self, Refused> {
        if change.expected != self.order() {
            return Err(Refused::Stale(self.order()));
        }
        let mut next = Self { version: self.version + 1, ..self.clone() };
        match &change.kind {
            ChangeKind::Takeover(takeover) => return self.taken_over(takeover),
            ChangeKind::Shrink { remove, committed } => {
                let primary = self.primary.ok_or(Refused::NoPrimary)?;
                if remove.is_empty() || remove.contains(primary) || !remove.is_subset(self.in_sync) {
                    return Err(Refused::NotRemovable);
                }
                next.in_sync = self.in_sync.difference(*remove);
                next.shrunk_at = Some(*committed);
            }
            ChangeKind::Grow { add } => {
                self.primary.ok_or(Refused::NoPrimary)?;
                if self.in_sync.contains(*add) {
                    return Err(Refused::Member);
                }
                next.in_sync = self.in_sync.with(*add);
            }
            ChangeKind::Opened => {
                self.primary.ok_or(Refused::NoPrimary)?;
                next.opened = true;
            }
            ChangeKind::Release => {
                self.primary.ok_or(Refused::NoPrimary)?;
                next.primary = None;
            }
        }
        next.check();
        Ok(next)
    }

    fn taken_over(&self, takeover: &Takeover) -> Result<Self, Refused> {
        if takeover.epoch <= self.epoch {
            return Err(Refused::Epoch(self.epoch));
        }
        let is_forced = matches!(&takeover.proof, Proof::Operator { off, .. } if off.is_empty());
        let is_of_old = takeover.in_sync.is_subset(self.in_sync);
        if !takeover.in_sync.contains(takeover.primary) || !(is_of_old || is_forced) {
            return Err(Refused::Set);
        }
        if !takeover.proof.holds_for(self, takeover) {
            return Err(Refused::Proof);
        }
        let next = Self {
            epoch: takeover.epoch,
            version: 1,
            primary: Some(takeover.primary),
            reign: takeover.reign,
            opened: false,
            in_sync: takeover.in_sync,
            generation: self.generation + u64::from(takeover.breaks_sessions || is_forced),
            proof: takeover.proof.clone(),
            shrunk_at: None,
        };
        next.check();
        Ok(next)
    }

    /// What must hold of every record, in production too.
    fn check(&self) {
        assert!(!self.in_sync.is_empty(), "somebody holds every acknowledged write");
        assert!(self.primary.is_none_or(|primary| self.in_sync.contains(primary)), "the primary is a member");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decided_on_another_record_changes_nothing() {
        let (a, b) = (NodeId(0), NodeId(1));
        let record = Record {
            epoch: Epoch(2),
            version: 3,
            primary: Some(a),
            reign: ReignId(1),
            opened: true,
            in_sync: NodeSet::only(a),
            generation: 1,
            proof: Proof::First,
            shrunk_at: None,
        };
        let grow = |expected| record.changed(&Change { expected, kind: ChangeKind::Grow { add: b } });
        assert_eq!(grow((Epoch(2), 3)).map(|next| (next.version, next.in_sync.len())), Ok((4, 2)));
        for stale in [(Epoch(2), 2), (Epoch(1), 3), (Epoch(2), 4), (Epoch(3), 1)] {
            assert_eq!(grow(stale), Err(Refused::Stale((Epoch(2), 3))), "{stale:?}");
        }
    }
}
