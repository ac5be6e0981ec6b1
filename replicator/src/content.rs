//! What a volume holds, read off a replica at rest: the backing disk, with what the journal has not applied yet on top of
//! it, as a start would have it. It changes nothing. Whether anybody else has more is not known here, and checksums at
//! rest are not looked at.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use replicator_core::disk::superblock::{self, Superblock};
use replicator_core::event::{Errno, ZeroKind};
use replicator_core::extents::{Content as Source, Extent, Extents};
use replicator_core::frame::{self, Entry, EntryKind, FrameError};
use replicator_core::limits::FRAME_HEADER_BYTES;
use replicator_core::log::{Frame, Log};
use replicator_core::recovery;
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::device::{io_error, read_all};
use crate::error::ContentError;
use crate::inspect::{ReadOnly, read_copies};

/// A volume as one replica has it. While it is held the replica does not start.
#[derive(Debug)]
pub struct Content {
    superblock: Superblock,
    size_bytes: u64,
    disk: Part,
    journal: Part,
    /// What lies over the disk; bytes are named by their offset in the journal.
    overlay: Extents,
}

/// A file or device of the replica.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: OwnedFd,
}

impl Part {
    fn open(path: &Path) -> Result<Self, ContentError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let file = opened.map_err(|error| ContentError::System {
            path: path.to_owned(),
            action: "open it",
            source: error.into(),
        })?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Nobody else may have it, now or while this is held.
    fn lock(self) -> Result<Self, ContentError> {
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(self),
            Err(_) => Err(ContentError::InUse { path: self.path }),
        }
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ContentError> {
        read_all(self.file.as_fd(), offset, bytes).map_err(|error| self.unreadable(error))
    }

    fn unreadable(&self, error: Errno) -> ContentError {
        ContentError::System { path: self.path.clone(), action: "read it", source: io_error(error) }
    }
}

impl Content {
    /// Reads the journal as a start does, and finds out what lies over the disk.
    ///
    /// # Errors
    /// If somebody has the replica, or a start would refuse its journal.
    pub fn open(journal: &Path, disk: &Path) -> Result<Self, ContentError> {
        let (journal, disk) = (Part::open(journal)?.lock()?, Part::open(disk)?.lock()?);
        let superblock = superblock_of(&journal)?;
        let mut reader = ReadOnly(journal.file.as_fd());
        let recovered = recovery::recover(&superblock, false, superblock.boot_id, &mut reader)
            .map_err(|error| ContentError::Recover { path: journal.path.clone(), error })?;
        let overlay = overlay(&recovered.log, &journal)?;
        let grown_bytes = recovered.sizes.last().map_or(0, |(_, bytes)| *bytes);
        let size_bytes = superblock.volume_bytes.max(grown_bytes);
        Ok(Self { superblock, size_bytes, disk, journal, overlay })
    }

    /// The superblock that counts.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Bytes of the volume, with the growth that the journal holds.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `bytes` with what the volume holds from `offset` on.
    ///
    /// # Errors
    /// If the disk or the journal cannot be read.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ContentError> {
        self.disk.read_at(offset, bytes)?;
        let end = offset + bytes.len() as u64;
        let mut over = Vec::new();
        self.overlay.overlapping(offset, end, |extent| over.push(extent.clip(offset, end)));
        for extent in over {
            let within = |place: u64| usize::try_from(place - offset).expect("it lies in the bytes");
            let part = &mut bytes[within(extent.start)..within(extent.end())];
            match extent.content {
                Source::Zero(_) => part.fill(0),
                Source::Bytes { at } => self.journal.read_at(at as u64, part)?,
            }
        }
        Ok(())
    }
}

fn superblock_of(journal: &Part) -> Result<Superblock, ContentError> {
    let copies = read_copies(journal.file.as_fd());
    let copies: [&[u8]; 2] = [&copies[0], &copies[1]];
    let chosen = superblock::choose(copies);
    chosen
        .map(|(superblock, _)| superblock)
        .map_err(|error| ContentError::NoReplica { path: journal.path.clone(), error })
}

/// What the log has not applied, newer entries over older ones.
fn overlay(log: &Log, journal: &Part) -> Result<Extents, ContentError> {
    let mut overlay = Extents::new(2 * log.unapplied_entries() + 1);
    let mut block = vec![0; FRAME_HEADER_BYTES];
    for found in (log.first_unapplied()..log.next_number()).filter_map(|number| log.frame(number)) {
        let device_offset = log.layout.device_offset(found.ring_offset);
        journal.read_at(device_offset, &mut block)?;
        add_frame(&block, found, device_offset, &mut overlay)
            .map_err(|error| ContentError::Changed { path: journal.path.clone(), error })?;
    }
    Ok(overlay)
}

fn add_frame(
    block: &[u8],
    found: &Frame,
    device_offset: u64,
    overlay: &mut Extents,
) -> Result<(), FrameError> {
    let header = frame::decode(block)?;
    for (index, entry) in frame::entries(block, &header).take(found.entries as usize).enumerate() {
        let entry = entry?;
        if let Some(content) = source_of(&entry, device_offset) {
            let sequence = found.first.plus(index as u64);
            overlay.insert(Extent { start: entry.offset, len: entry.length, sequence, content });
        }
    }
    Ok(())
}

/// What an entry puts into its range, if it has one.
fn source_of(entry: &Entry, device_offset: u64) -> Option<Source> {
    match entry.kind {
        EntryKind::EpochStart => None,
        EntryKind::Write => {
            let at = device_offset + u64::from(entry.payload_at);
            Some(Source::Bytes { at: usize::try_from(at).expect("offsets have 64 bits") })
        }
        EntryKind::Zeroes => Some(Source::Zero(ZeroKind::Zeroes)),
        EntryKind::Trim | EntryKind::Resize => Some(Source::Zero(ZeroKind::Trim)),
    }
}
