//! Faults of devices: which I/O fails or hangs, drawn by chance, and what was noted of it.

use std::collections::BTreeMap;

use crate::node::Io;
use crate::plan::Fault;
use crate::random::Random;
use crate::world::{Fate, MS};

/// Faults of devices, shared with the world.
pub struct Devices {
    pub(super) active: bool,
    pub(super) chances: BTreeMap<Fault, u64>,
    pub(super) counts: BTreeMap<Fault, u64>,
    /// A node's device reported an error that fails the copy.
    pub(super) failed: Vec<bool>,
    /// A journal's sync failed: what it covered may be gone, and the kernel has forgotten it.
    pub(super) unsynced: Vec<bool>,
}

impl Devices {
    /// This I/O of `node` fails.
    pub fn note(&mut self, io: &Io, node: usize) {
        self.failed[node] |=
            !matches!(io, Io::ReadDisk { .. } | Io::GrowDisk { .. } | Io::Branch { .. } | Io::Sent { .. });
        self.unsynced[node] |= matches!(io, Io::SyncJournal { .. });
    }

    pub(super) fn fate(&mut self, io: &Io, node: usize, random: &mut Random) -> Fate {
        if !self.active {
            return Fate::Done;
        }
        let (fault, errno) =
            match io {
                Io::WriteJournal { .. } | Io::WriteDisk { .. } | Io::ZeroDisk { .. } => {
                    if random.percent(70) { (Fault::WriteError, 5) } else { (Fault::NoSpace, 28) }
                }
                Io::SyncJournal { .. } | Io::SyncDisk { .. } => (Fault::SyncError, 5),
                Io::ReadJournal { .. } | Io::ReadDisk { .. } => (Fault::ReadError, 5),
                Io::Superblock { .. } => (Fault::SuperblockError, 5),
                Io::Branch { .. } | Io::GrowDisk { .. } => (Fault::NoSpace, 28),
                Io::Sent { .. } => return Fate::Done,
            };
        if self.strikes(fault, random) {
            self.note(io, node);
            return Fate::Fails(errno);
        }
        if self.strikes(Fault::Hang, random) {
            return Fate::Hangs(random.below(8000) * MS);
        }
        Fate::Done
    }

    fn strikes(&mut self, fault: Fault, random: &mut Random) -> bool {
        let Some(chance) = self.chances.get(&fault) else { return false };
        let strikes = random.below(100_000) < *chance;
        if strikes {
            *self.counts.entry(fault).or_default() += 1;
        }
        strikes
    }
}
