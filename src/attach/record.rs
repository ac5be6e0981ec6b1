//! What is written down of a ublk device, in `/run/holdfast/ublkbN`: the driver keeps only a number for us. That
//! number is a hash of the identity, so a record that is not the device's is noticed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xxhash_rust::xxh3::xxh3_64;

use super::identity::Identity;

const RECORDS: &str = "/run/holdfast";

/// What a device is attached to, and whom to ask about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) identity: Identity,
    /// The replicator's control socket.
    pub(crate) control: PathBuf,
}

impl Record {
    /// The record of a device, if there is one.
    pub(crate) fn read(index: u32) -> Option<Self> {
        let text = fs::read_to_string(path_of(index)).ok()?;
        let (identity, control) = text.split_once('\n')?;
        Some(Self { identity: identity.parse().ok()?, control: PathBuf::from(control.trim_end()) })
    }

    /// The records of all devices, with their numbers; of devices that are gone, too.
    pub(crate) fn all() -> Vec<(u32, Self)> {
        let entries = fs::read_dir(RECORDS).into_iter().flatten();
        entries
            .filter_map(|entry| {
                let index = entry.ok()?.file_name().to_str()?.strip_prefix("ublkb")?.parse().ok()?;
                Some((index, Self::read(index)?))
            })
            .collect()
    }

    /// Writes it down.
    pub(crate) fn write(&self, index: u32) -> Result<()> {
        let path = path_of(index);
        let text = format!("{}\n{}\n", self.identity, self.control.display());
        let fresh = path.with_extension(std::process::id().to_string());
        let written = fs::create_dir_all(RECORDS)
            .and_then(|()| fs::write(&fresh, text))
            .and_then(|()| fs::rename(&fresh, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the record of a device, if there is one.
    pub(crate) fn remove(index: u32) -> Result<()> {
        match fs::remove_file(path_of(index)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path_of(index).display()))
            }
            _ => Ok(()),
        }
    }
}

/// The number that the driver keeps for a device of this identity.
pub(crate) fn mark_of(identity: &Identity) -> u64 {
    xxh3_64(identity.to_string().as_bytes())
}

fn path_of(index: u32) -> PathBuf {
    Path::new(RECORDS).join(format!("ublkb{index}"))
}
