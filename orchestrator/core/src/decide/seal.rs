//! Seals: before another reign is decided, whoever can be asked promises its epoch. A sealed replica takes nothing of a
//! lower one any more, so that its position stays, and what it reports of itself is its answer.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::policy::Volume;
use crate::units::{Epoch, NodeId, NodeSet, VolumeId};
use crate::view::{Copy, Replica, Role, View};

/// A replica that is to promise an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The volume.
    pub volume: VolumeId,
    /// Where.
    pub node: NodeId,
    /// The epoch.
    pub epoch: Epoch,
}

/// How far the promises for another reign are.
pub(super) enum Sealing {
    /// These are to be asked.
    Ask(Vec<Seal>),
    /// Everybody that can be asked has promised this epoch.
    Done(Epoch, NodeSet),
}

/// The promises of `members` for a reign above `record`, and above all that was promised or begun.
pub(super) fn sealing(view: &View, volume: &Volume, members: NodeSet, record: Epoch) -> Sealing {
    let replica = |node: NodeId| view.replica(volume.id, node);
    let known = || volume.replicas.iter().filter_map(|node| replica(*node));
    let begun = known().map(|replica| replica.record.0).fold(record, Epoch::max);
    // What one has promised and nobody has begun may be begun by whoever asks the others for the same.
    let epoch = known().map(|replica| replica.promised).fold(begun.next(), Epoch::max);
    let is_sealed = |replica: &Replica| replica.promised == epoch && replica.role == Role::Secondary;
    let asked = members.iter().filter(|node| {
        replica(*node).is_some_and(|replica| replica.copy == Copy::UpToDate)
            && !view.unsealed.contains(&(volume.id, *node))
    });
    let asked: NodeSet = asked.collect();
    let sealed: NodeSet = asked.iter().filter(|node| replica(*node).is_some_and(is_sealed)).collect();
    let missing = asked.difference(sealed);
    if missing.is_empty() {
        return Sealing::Done(epoch, sealed);
    }
    Sealing::Ask(missing.iter().map(|node| Seal { volume: volume.id, node, epoch }).collect())
}

/// Somebody has promised an epoch above `record`, and so follows nobody who reigns by it.
pub(super) fn beyond(view: &View, volume: &Volume, record: Epoch) -> Option<(NodeId, Epoch)> {
    let promises = volume.replicas.iter().filter_map(|node| Some((*node, view.replica(volume.id, *node)?)));
    promises.map(|(node, replica)| (node, replica.promised)).find(|(_, promised)| *promised > record)
}
