//! This node's leases across a restart of its orchestrator: a small file, written at each renewal. A lease belongs to the
//! node and the boot, so a process that begins again may go on with it, and after a boot nobody can.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use orchestrator_core::units::{BootId, Instant, VolumeId};
use serde::{Deserialize, Serialize};

/// This boot of the machine; where the kernel does not tell, every process is taken for one.
pub(crate) fn boot() -> BootId {
    let digits = boot_text().replace('-', "");
    BootId(u128::from_str_radix(&digits, 16).unwrap_or_else(|_| u128::from_le_bytes(crate::random())))
}

fn boot_text() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Stored {
    boot: String,
    leases: BTreeMap<VolumeId, Instant>,
}

/// The file.
pub(crate) struct LeaseFile {
    path: PathBuf,
    boot: String,
}

impl LeaseFile {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { path: folder.join("leases"), boot: boot_text() }
    }

    /// The leases that a process before this one was granted; none if the machine has booted since, or nobody knows.
    pub(crate) fn read(&self) -> BTreeMap<VolumeId, Instant> {
        let stored = std::fs::read(&self.path).ok();
        let stored: Option<Stored> = stored.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let same_boot = stored.filter(|stored| !self.boot.is_empty() && stored.boot == self.boot);
        same_boot.map(|stored| stored.leases).unwrap_or_default()
    }

    /// Remembers them. Not synced: whatever would lose it is a boot.
    pub(crate) fn write(&self, leases: &BTreeMap<VolumeId, Instant>) -> io::Result<()> {
        let stored = Stored { boot: self.boot.clone(), leases: leases.clone() };
        let draft = self.path.with_extension("new");
        std::fs::write(&draft, serde_json::to_vec(&stored)?)?;
        std::fs::rename(&draft, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_outlive_the_process_and_not_the_boot() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = LeaseFile::new(folder.path());
        assert!(file.read().is_empty());
        let leases = BTreeMap::from([(VolumeId(7), Instant(1234))]);
        file.write(&leases).unwrap();
        assert_eq!(file.read(), leases);
        file.boot = "another".to_owned();
        assert!(file.read().is_empty());
    }
}
