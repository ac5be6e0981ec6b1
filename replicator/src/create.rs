//! Making a replica: the journal with its two superblock copies, and the backing disk, all zeros. Not the start of
//! one, and no format: the bytes are drawn by the core.

use std::io;
use std::path::{Path, PathBuf};

use replicator_core::chain;
use replicator_core::config::Protocol;
use replicator_core::disk::layout::{Layout, SUPERBLOCK_AT, SUPERBLOCK_BYTES, map_bytes_of};
use replicator_core::disk::superblock::{self, DiskState, LogPoint, Record, Superblock};
use replicator_core::event::Errno;
use replicator_core::units::{Chain, NodeSet, Position, ReignId};

use crate::device::{Device, Kind, io_error};
use crate::error::{CreateError, Purpose};
use crate::names::NodeNames;
use crate::options::VolumeOptions;
use crate::{adopt, auth, clock};

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Random identity of the copy.
    pub replica: u128,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// The backing disk.
    pub disk: PathBuf,
    /// The journal.
    pub journal: PathBuf,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// Bytes of it that are the ring.
    pub ring_bytes: u64,
    /// What the volume was at when its disk was adopted; `None` if that is no position.
    pub adopted: Option<Position>,
}

/// What the disk of a new replica holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// Whatever it is, it is zeroed.
    #[default]
    Any,
    /// Zeros, by an operator's word. A block device is read to see, and not written.
    Zeros,
    /// A copy of the volume that was made by hand: it is kept, and compared with the Primary's before it counts.
    Seed,
    /// The data of the volume: it is kept and counts, and all other replicas are brought level from it.
    Adopted,
}

impl Content {
    /// Whether the disk stays as it is.
    fn is_kept(self) -> bool {
        matches!(self, Self::Seed | Self::Adopted)
    }
}

/// Makes a replica of the volume for this node, UpToDate at position 0 with a disk of zeros: fresh replicas of one
/// volume are equal by construction. What already holds a replica, or any bytes, is overwritten only with `force`. A seed is
/// kept, and the replica Inconsistent until it has been compared; what is adopted is kept, and its replica is the only member.
///
/// # Errors
/// Whatever keeps it from being made; checks come before the first write.
pub fn create(options: &VolumeOptions, content: Content, force: bool) -> Result<Created, CreateError> {
    let (size_bytes, block_bytes) = (options.size_bytes, options.block_bytes);
    if ![512, 4096].contains(&block_bytes) || !size_bytes.is_multiple_of(u64::from(block_bytes)) {
        return Err(CreateError::Block { size_bytes, block_bytes });
    }
    if content.is_kept() && options.checksums {
        return Err(CreateError::KeptSums);
    }
    let (journal, journal_made) = Device::open_or_create(&options.journal, Purpose::Journal)?;
    let mut made = Made::default();
    made.note(&options.journal, journal_made);
    if options.disk == options.journal {
        return Err(CreateError::Same { path: options.disk.clone() });
    }
    let (disk, disk_made) = Device::open_or_create(&options.disk, Purpose::Disk)?;
    made.note(&options.disk, disk_made);
    let created = make(options, journal, disk, content, force)?;
    made.keep();
    Ok(created)
}

fn make(
    options: &VolumeOptions,
    mut journal: Device,
    mut disk: Device,
    content: Content,
    force: bool,
) -> Result<Created, CreateError> {
    let journal_bytes = match journal.kind() {
        Kind::File { .. } => options.journal_bytes,
        Kind::Block => journal.size_bytes(),
    };
    let layout = Layout::with(options.size_bytes, journal_bytes, options.checksums)?;
    let old = check_journal(&journal, &options.names(), force)?;
    let old = old.filter(|old| content == Content::Adopted && old.volume == options.core.volume);
    if let Some(old) = &old {
        adopt::check_exact(&options.journal, old, options.size_bytes)?;
    }
    check_disk(&disk, options.size_bytes, content, force)?;

    // The old superblock goes first: from here on there is no half-made replica, only none.
    let failed = |path: &Path, action| {
        let path = path.to_owned();
        move |error: Errno| CreateError::System { path, action, source: io_error(error) }
    };
    journal.reset(journal_bytes, true).map_err(failed(&options.journal, "zero it"))?;
    let is_ready = content.is_kept() || (content == Content::Zeros && disk.kind() == Kind::Block);
    let ready = if is_ready { disk.sync() } else { disk.reset(options.size_bytes, false) };
    ready.map_err(failed(&options.disk, "zero it"))?;
    let mut superblock = fresh_superblock(options, &disk, journal_bytes)?;
    match content {
        // Complete for nothing, as far as anybody knows.
        Content::Seed => superblock.disk_state = DiskState::Inconsistent,
        Content::Adopted => {
            let (reign, chain) = (ReignId(random(&options.journal)?), Chain(random(&options.journal)?));
            superblock = adopt::adopted(superblock, old.as_ref(), reign, chain);
        }
        Content::Any | Content::Zeros => {}
    }
    for offset in SUPERBLOCK_AT {
        let write = journal.write_at(offset, &superblock.encode()).and_then(|()| journal.sync());
        write.map_err(failed(&options.journal, "write the superblock"))?;
    }
    for path in [&options.journal, &options.disk] {
        sync_directory(path).map_err(|source| CreateError::System {
            path: path.clone(),
            action: "sync its directory",
            source,
        })?;
    }
    Ok(Created {
        replica: superblock.replica,
        size_bytes: options.size_bytes,
        disk: options.disk.clone(),
        journal: options.journal.clone(),
        journal_bytes,
        ring_bytes: layout.ring_bytes,
        adopted: old.map(|old| old.applied_through.position),
    })
}

/// Whether the journal may be overwritten, and what replica it belongs to.
fn check_journal(
    journal: &Device,
    names: &NodeNames,
    force: bool,
) -> Result<Option<Superblock>, CreateError> {
    if journal.size_bytes() == 0 {
        return Ok(None);
    }
    let mut copies = [[0; SUPERBLOCK_BYTES]; 2];
    for (offset, copy) in SUPERBLOCK_AT.into_iter().zip(&mut copies) {
        // What is too short or cannot be read is no superblock; the check for bytes follows.
        let _ = journal.read_at(offset, copy);
    }
    match superblock::choose([&copies[0], &copies[1]]) {
        Ok((found, _)) if force => Ok(Some(found)),
        Ok((found, _)) => {
            let (path, volume) = (journal.path().to_owned(), found.volume.0);
            Err(CreateError::Replica { path, volume, node: names.of(found.node) })
        }
        Err(_) if force => Ok(None),
        Err(_) => check_blank(journal, Purpose::Journal).map(|()| None),
    }
}

fn check_disk(disk: &Device, size_bytes: u64, content: Content, force: bool) -> Result<(), CreateError> {
    let keeps = content.is_kept();
    if (disk.kind() == Kind::Block || keeps) && disk.size_bytes() < size_bytes {
        return Err(CreateError::DiskSmall {
            path: disk.path().to_owned(),
            found_bytes: disk.size_bytes(),
            volume_bytes: size_bytes,
        });
    }
    if content == Content::Zeros && disk.kind() == Kind::Block {
        return check_zeros(disk, size_bytes);
    }
    if force || keeps || disk.size_bytes() == 0 { Ok(()) } else { check_blank(disk, Purpose::Disk) }
}

/// Reads all of the disk: one byte that is none of zero would be another one on each replica.
fn check_zeros(disk: &Device, size_bytes: u64) -> Result<(), CreateError> {
    const PIECE_BYTES: u64 = 1 << 20;
    let path = || disk.path().to_owned();
    let mut bytes = vec![0; usize::try_from(PIECE_BYTES).expect("a megabyte")];
    for offset in (0..size_bytes).step_by(bytes.len()) {
        let piece = usize::try_from(PIECE_BYTES.min(size_bytes - offset)).expect("a megabyte");
        let read = disk.read_at(offset, &mut bytes[..piece]);
        read.map_err(|error| CreateError::System {
            path: path(),
            action: "read it",
            source: io_error(error),
        })?;
        if let Some(at) = bytes[..piece].iter().position(|byte| *byte != 0) {
            return Err(CreateError::NotZeros { path: path(), offset: offset + at as u64 });
        }
    }
    Ok(())
}

fn check_blank(device: &Device, purpose: Purpose) -> Result<(), CreateError> {
    let path = device.path().to_owned();
    match device.is_blank() {
        Ok(true) => Ok(()),
        Ok(false) => Err(CreateError::NotEmpty { purpose, path }),
        Err(error) => Err(CreateError::System { path, action: "read it", source: io_error(error) }),
    }
}

fn fresh_superblock(
    options: &VolumeOptions,
    disk: &Device,
    journal_bytes: u64,
) -> Result<Superblock, CreateError> {
    let replica = random(&options.journal)?;
    let followed = options.core.peers.iter().filter(|peer| peer.protocol == Protocol::A);
    let peers = options.core.peers.iter().map(|peer| peer.node);
    let all = peers.fold(NodeSet::only(options.core.node), NodeSet::with);
    let in_sync = followed.fold(all, |set, peer| set.without(peer.node));
    let beginning = LogPoint { chain: chain::genesis(options.core.volume), ..LogPoint::default() };
    Ok(Superblock {
        sequence: 1,
        volume: options.core.volume,
        incarnation: options.core.incarnation,
        node: options.core.node,
        replica,
        volume_bytes: options.size_bytes,
        map_bytes: map_bytes_of(options.size_bytes),
        journal_bytes,
        block_bytes: options.block_bytes,
        window_bytes: options.core.arena_bytes as u64,
        disk_fingerprint: disk.fingerprint(),
        disk_state: DiskState::UpToDate,
        clean: true,
        proven: true,
        boot_id: clock::boot_id(),
        record: Record { in_sync, ..Record::default() },
        tail: beginning,
        applied_through: beginning,
        export_generation: 1,
        sums: options.checksums,
        bookmark_room: true,
        ..Superblock::default()
    })
}

/// An identity that nobody else has.
fn random(journal: &Path) -> Result<u128, CreateError> {
    auth::random().map(u128::from_le_bytes).map_err(|error| CreateError::System {
        path: journal.to_owned(),
        action: "make a random identity",
        source: io::Error::other(error),
    })
}

/// Makes the name of a new file durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent)?.sync_all()
}

/// Files made on the way, removed again unless all goes well.
#[derive(Default)]
struct Made {
    paths: Vec<PathBuf>,
}

impl Made {
    fn note(&mut self, path: &Path, made: bool) {
        if made {
            self.paths.push(path.to_owned());
        }
    }

    fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = std::fs::remove_file(path);
        }
    }
}
