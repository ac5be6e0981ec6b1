//! Starting a volume: lock, check that disk, journal and configuration belong together, recover, listen, and only
//! then hand everything to the reactor's thread. Nothing is served or written before all of it went well.

use std::cmp::Ordering;
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use nbd_frontend::{Availability, BlockSizes, Export, ExportFlags};
use replicator_core::disk::layout::{SUPERBLOCK_AT, SUPERBLOCK_BYTES};
use replicator_core::disk::superblock::{self, Superblock, SuperblockError};
use replicator_core::event::Errno;
use replicator_core::machine::Machine;
use replicator_core::recovery::{self, JournalReader};
use replicator_core::units::PAGE_BYTES;
use rustix::event::EventfdFlags;

use crate::branch::Branches;
use crate::device::{Device, Kind};
use crate::driver::beside::Beside;
use crate::driver::handle::Exit;
pub use crate::driver::handle::{VolumeHandle, VolumeStatus};
use crate::driver::listeners::Listeners;
use crate::driver::log::Log;
use crate::driver::{Driver, Parts};
use crate::error::{IdentityError, Purpose, StartError, VolumeFault};
use crate::options::VolumeOptions;
use crate::{arena, clock, move_journal};

/// The longest read or write a client may ask for, unless the arena is small.
const REQUEST_BYTES_MAX: usize = 32 << 20;

/// Starts the replica: returns once it is recovered, locked, listening and its thread runs. It begins as Secondary.
///
/// # Errors
/// Whatever keeps it from starting; nothing was changed then.
pub fn open(mut options: VolumeOptions) -> Result<VolumeHandle, StartError> {
    let log = Log::new(&options.name);
    if options.journal == options.disk {
        let (volume, path) = (options.name, options.disk);
        return Err(StartError::Identity { volume, path, error: IdentityError::Same });
    }
    let mut journal = Device::open(&options.journal, Purpose::Journal)?;
    let mut disk = Device::open(&options.disk, Purpose::Disk)?;
    let (superblock, copies) = read_superblock(&journal)?;
    check_identity(&options, &superblock, &journal, &disk)?;
    superblock.layout()?;
    if let Some(text) = note_size(&options, &superblock) {
        log.line(text);
    }
    (options.size_bytes, options.core.disk_bytes) = (superblock.volume_bytes, disk.size_bytes());
    if let Some(text) = copies.explanation() {
        log.line(text);
    }
    if superblock.sums != options.checksums {
        let (is, made) = if superblock.sums { ("on", "with") } else { ("off", "without") };
        log.line(format_args!(
            "checksums are {is}: this replica was made {made} them, whatever the configuration says; to change that, make \
             it anew (holdfast create --force) and let it be resynced"
        ));
    }
    let exports = exports(&options)?;
    let branches = Branches::new(&options.branches, &options.name, options.core.volume);
    let mut recovered = recovery::recover(
        &superblock,
        copies.is_damage(),
        clock::boot_id(),
        &mut BlockingReader { journal: &journal },
    )
    .map_err(|error| StartError::Recover { path: options.journal.clone(), error })?;
    if recovered.superblock.diverges {
        recovered.diverged = branches.blocks_of(recovered.superblock.branch);
    }
    let page = u32::try_from(PAGE_BYTES).expect("4096");
    for (device, granularity) in [(&mut journal, page), (&mut disk, options.block_bytes)] {
        if let Some(reason) = device.set_direct(options.direct_io, granularity)? {
            log.line(format_args!("{} goes through the page cache: {reason}", device.path().display()));
        }
    }
    let arena = arena::map(options.core.arena_bytes)?;
    let mut machine = Machine::new(options.core.clone(), recovered, clock::now());
    machine.set_wall_clock(clock::wall_zero_ms());
    let listeners = Listeners::open(&options)?;
    let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(system("make an eventfd"))?;
    let waker =
        wake.try_clone().map_err(|source| StartError::System { action: "copy an eventfd", source })?;
    let (sender, requests) = mpsc::channel();
    let exit = Arc::new(Exit::default());
    let name = options.name.clone();
    let handle = VolumeHandle::new(name.clone(), sender, waker, Arc::clone(&exit), branches.clone());
    let beside = Beside::new(branches, handle.clone());
    let parts =
        Parts { options, machine, arena, disk, journal, listeners, exports, requests, wake, log, beside };
    spawn(&name, parts, exit)?;
    Ok(handle)
}

fn system(action: &'static str) -> impl Fn(rustix::io::Errno) -> StartError {
    move |source| StartError::System { action, source: source.into() }
}

/// Runs the reactor on a thread of its own and waits until its ring is set up.
fn spawn(name: &str, parts: Parts, exit: Arc<Exit>) -> Result<(), StartError> {
    let (ready, is_ready) = mpsc::channel();
    // Thread names have 15 bytes.
    let thread_name: String = format!("hf-{name}").chars().take(15).collect();
    let body = move || {
        // A panic must be told to whoever waits for the volume; a later word does not replace it.
        let guard = ExitGuard(exit);
        let log = parts.log.clone();
        let mut driver = match Driver::new(parts) {
            Ok(driver) => driver,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        let result = driver.run().map_err(|error| VolumeFault::Ring(error.to_string()));
        if let Err(fault) = &result {
            log.line(fault);
        }
        // The locks and sockets are free again when the volume is said to have ended.
        drop(driver);
        guard.0.set(result);
    };
    thread::Builder::new()
        .name(thread_name)
        .spawn(body)
        .map_err(|source| StartError::System { action: "start a thread", source })?;
    is_ready.recv().unwrap_or_else(|_| {
        let source = io::Error::other("the volume's thread panicked");
        Err(StartError::System { action: "start the reactor", source })
    })
}

struct ExitGuard(Arc<Exit>);

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.0.set(Err(VolumeFault::Panicked));
    }
}

/// What the two copies of the superblock are to each other. Whichever counts, the start writes both.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Copies {
    Equal,
    /// One is sound and older: whoever wrote them was stopped between the two.
    OneBehind,
    /// One is not sound.
    OneDamaged(SuperblockError),
}

impl Copies {
    fn compare(copies: [&[u8]; 2]) -> Self {
        match copies.map(Superblock::decode) {
            [Ok(first), Ok(second)] if first.sequence == second.sequence => Self::Equal,
            [Ok(_), Ok(_)] => Self::OneBehind,
            [Err(error), _] | [_, Err(error)] => Self::OneDamaged(error),
        }
    }

    fn is_damage(&self) -> bool {
        matches!(self, Self::OneDamaged(_))
    }

    /// What the log says of it.
    fn explanation(&self) -> Option<String> {
        match self {
            Self::Equal => None,
            Self::OneBehind => Some(
                "one copy of the superblock is older: this replica was stopped while it wrote the two. That does no \
                 harm; the newer one is used"
                    .to_owned(),
            ),
            Self::OneDamaged(error) => Some(format!(
                "one copy of the superblock is damaged ({error}); the other one is used and repairs it. After a power \
                 cut that may be; otherwise check the journal's device (smartctl, dmesg)"
            )),
        }
    }
}

/// The copy that counts, and what the other one is.
fn read_superblock(journal: &Device) -> Result<(Superblock, Copies), StartError> {
    let mut copies = [[0; SUPERBLOCK_BYTES]; 2];
    for (offset, copy) in SUPERBLOCK_AT.into_iter().zip(&mut copies) {
        if offset + SUPERBLOCK_BYTES as u64 > journal.size_bytes() {
            continue;
        }
        if journal.read_at(offset, copy).is_err() {
            // What cannot be read is what the other copy is for; without either there is no superblock.
            copy.fill(0);
        }
    }
    let copies: [&[u8]; 2] = [&copies[0], &copies[1]];
    let (superblock, _) =
        superblock::choose(copies).map_err(|error| no_replica(journal.path(), copies, error))?;
    Ok((superblock, Copies::compare(copies)))
}

/// Why a journal has no superblock.
fn no_replica(path: &Path, copies: [&[u8]; 2], error: SuperblockError) -> StartError {
    let path = path.to_owned();
    match copies.into_iter().find_map(move_journal::decode) {
        Some(to) => StartError::Moved { path, to },
        None => StartError::NoReplica { path, error },
    }
}

/// Whether configuration, journal and disk belong together.
fn check_identity(
    options: &VolumeOptions,
    superblock: &Superblock,
    journal: &Device,
    disk: &Device,
) -> Result<(), StartError> {
    let at = |path: &Path, error| StartError::Identity {
        volume: options.name.clone(),
        path: path.to_owned(),
        error,
    };
    let core = &options.core;
    let problem = if superblock.volume != core.volume {
        let (found, configured) = (superblock.volume.0, core.volume.0);
        Some(IdentityError::Volume { found, configured })
    } else if superblock.incarnation != core.incarnation {
        let (found, configured) = (superblock.incarnation.0, core.incarnation.0);
        Some(IdentityError::Incarnation { found, configured })
    } else if superblock.node != core.node {
        let (found, configured) = (options.names().of(superblock.node), options.node_name.clone());
        Some(IdentityError::Node { found, configured })
    } else if superblock.block_bytes != options.block_bytes {
        let (recorded_bytes, configured_bytes) = (superblock.block_bytes, options.block_bytes);
        Some(IdentityError::Block { recorded_bytes, configured_bytes })
    } else if journal.size_bytes() < superblock.journal_bytes {
        let (found_bytes, recorded_bytes) = (journal.size_bytes(), superblock.journal_bytes);
        Some(IdentityError::JournalShort { found_bytes, recorded_bytes })
    } else {
        None
    };
    if let Some(problem) = problem {
        return Err(at(journal.path(), problem));
    }
    let (found, recorded) = (disk.fingerprint(), superblock.disk_fingerprint);
    let is_other = found != recorded || (recorded == 0) != (disk.kind() == Kind::Block);
    if is_other {
        return Err(at(disk.path(), IdentityError::Disk { found, recorded }));
    }
    if disk.size_bytes() < superblock.volume_bytes {
        let (found_bytes, volume_bytes) = (disk.size_bytes(), superblock.volume_bytes);
        return Err(at(disk.path(), IdentityError::DiskSmall { found_bytes, volume_bytes }));
    }
    Ok(())
}

/// What the log says of a size that is not the configured one: a volume that has grown, or a copy that was away then.
fn note_size(options: &VolumeOptions, superblock: &Superblock) -> Option<String> {
    let (has, configured) = (superblock.volume_bytes, options.size_bytes);
    match has.cmp(&configured) {
        Ordering::Equal => None,
        Ordering::Greater => Some(format!(
            "the volume has grown to {has} bytes; the configuration still says {configured}: write size = {has} on all nodes"
        )),
        Ordering::Less => Some(format!(
            "this copy has {has} bytes, the configuration says {configured}: if the volume has that size elsewhere, the rest \
             comes with the stream; if not, `holdfast grow` on the Primary gives it"
        )),
    }
}

/// An export of the volume, or of an earlier content of it, which is read-only.
pub(crate) fn export(options: &VolumeOptions, name: &str, read_only: bool) -> Export {
    let max_bytes = REQUEST_BYTES_MAX.min(options.core.arena_bytes / 2) / PAGE_BYTES * PAGE_BYTES;
    Export {
        name: name.to_owned(),
        description: format!("Holdfast volume {} on {}", options.name, options.node_name),
        size_bytes: options.size_bytes,
        flags: ExportFlags {
            read_only,
            rotational: false,
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            cache: true,
            multi_conn: true,
        },
        block: BlockSizes {
            min_bytes: options.block_bytes,
            preferred_bytes: options.block_bytes.max(4096),
            max_bytes: u32::try_from(max_bytes).expect("at most 32 MiB"),
        },
        availability: Availability::Refused { message: "the volume is starting".to_owned() },
        bookmarks: Vec::new(),
    }
}

/// The volume under its name and as the default export.
fn exports(options: &VolumeOptions) -> Result<Vec<Export>, StartError> {
    let exports = vec![export(options, &options.name, false), export(options, "", false)];
    for export in &exports {
        export.check().map_err(|error| StartError::Export {
            volume: options.name.clone(),
            reason: error.to_string(),
        })?;
    }
    Ok(exports)
}

/// Recovery's way to the journal: blocking, through the page cache.
struct BlockingReader<'a> {
    journal: &'a Device,
}

impl JournalReader for BlockingReader<'_> {
    fn read_at(&mut self, device_offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.journal.read_at(device_offset, bytes)
    }

    fn sync(&mut self) -> Result<(), Errno> {
        self.journal.sync()
    }

    fn rewrite(&mut self, device_offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.journal.write_at(device_offset, bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests;
