//! Adoption: what a disk holds becomes the data of the volume. That is how a disk with a file system on it comes under
//! Holdfast, and how a volume is set back to an older position that a replica still shows. Not the making of the replica.

use std::path::Path;

use replicator_core::disk::superblock::{DiskState, LogPoint, Record, Superblock};
use replicator_core::history::{History, Reign};
use replicator_core::units::{Chain, Epoch, NodeSet, Position, ReignId, Sequence};

use crate::error::CreateError;

/// Whether the disk under `old`, a replica of this volume, shows what the volume held at one moment that somebody chose.
///
/// # Errors
/// It may show more than one moment: entries were being put in place when it ended, or blocks of a resync are. Or it is of
/// another size, or goes on to later moments by itself.
pub(crate) fn check_exact(journal: &Path, old: &Superblock, volume_bytes: u64) -> Result<(), CreateError> {
    let path = journal.to_owned();
    if old.volume_bytes != volume_bytes {
        return Err(CreateError::AdoptSize { path, found_bytes: old.volume_bytes, volume_bytes });
    }
    if old.apply_reach.is_some() && old.apply_limit == Sequence(0) {
        return Err(CreateError::AdoptUnfrozen { path });
    }
    if old.disk_state != DiskState::UpToDate || old.suspect {
        return Err(CreateError::AdoptIncomplete { path, state: old.disk_state });
    }
    let limit = old.apply_limit;
    let is_at_limit = limit == Sequence(0) || old.applied_through.position.sequence == limit;
    if old.clean && is_at_limit { Ok(()) } else { Err(CreateError::AdoptUnclean { path }) }
}

/// `fresh` as the only copy there is of what its disk holds. Its log begins with one entry, the beginning of a reign
/// of its own that nobody else has: so every other copy, of an older reign or of none, is brought level by
/// blocks or refused, and never taken for equal. `old` is what the replica was before.
pub(crate) fn adopted(
    fresh: Superblock,
    old: Option<&Superblock>,
    reign: ReignId,
    chain: Chain,
) -> Superblock {
    let before = old.map_or(Epoch(0), |old| old.promised.max(old.record.epoch));
    let (epoch, first) = (before.next(), Sequence(1));
    let mut history = History::default();
    history.push(Reign { epoch, reign, first, chain_before: fresh.tail.chain });
    let in_sync = NodeSet::only(fresh.node);
    let beginning = LogPoint { position: Position { epoch, sequence: first }, chain, ..fresh.tail };
    Superblock {
        promised: epoch,
        record: Record { epoch, version: 1, primary: Some(fresh.node), reign, in_sync },
        tail: beginning,
        applied_through: beginning,
        stable: first,
        durable: first,
        history,
        ..fresh
    }
}
