//! A backing disk or a journal as the system knows it: opened, locked on the very descriptor that does the I/O,
//! measured. The blocking calls here serve creation, recovery and memory file systems; the ring does the rest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use replicator_core::event::Errno;
use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, StatxFlags};

use crate::error::{DeviceError, Purpose};
use crate::options::DirectIo;

const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;
/// How long the locks of a process that has ended are waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Payloads in the arena begin at a multiple of this.
const MEMORY_ALIGN: u32 = 512;

/// Who does the I/O of a running volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// The ring.
    Ring,
    /// Direct system calls: on a memory file system they cost less than the ring's detour over kernel workers.
    Inline,
}

/// What kind of thing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file with this inode number.
    File { inode: u64 },
    /// A block device.
    Block,
}

/// An opened and locked disk or journal.
#[derive(Debug)]
pub(crate) struct Device {
    file: OwnedFd,
    path: PathBuf,
    purpose: Purpose,
    kind: Kind,
    size_bytes: u64,
    backend: Backend,
    direct: bool,
}

/// Has `file` hold `bytes`, durably, if it is a regular file that holds fewer; says how many it holds.
pub(crate) fn grow(file: BorrowedFd<'_>, bytes: u64) -> Result<u64, Errno> {
    let stat = rustix::fs::fstat(file).map_err(errno)?;
    let has = rustix::fs::seek(file, SeekFrom::End(0)).map_err(errno)?;
    if has >= bytes || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(has);
    }
    rustix::fs::ftruncate(file, bytes).map_err(errno)?;
    rustix::fs::fsync(file).map_err(errno)?;
    Ok(bytes)
}

impl Device {
    /// Opens and locks what is there.
    pub(crate) fn open(path: &Path, purpose: Purpose) -> Result<Self, DeviceError> {
        Self::open_with(path, purpose, OFlags::empty())
    }

    /// Opens and locks what is there, or an empty file made here; says which.
    pub(crate) fn open_or_create(path: &Path, purpose: Purpose) -> Result<(Self, bool), DeviceError> {
        match Self::open_with(path, purpose, OFlags::CREATE | OFlags::EXCL) {
            Ok(device) => Ok((device, true)),
            Err(DeviceError::System { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                Ok((Self::open(path, purpose)?, false))
            }
            Err(error) => Err(error),
        }
    }

    /// Opens with patience for a process that is already dead: the kernel takes its ring apart, and with it the
    /// locks, some milliseconds after its end.
    fn open_with(path: &Path, purpose: Purpose, extra: OFlags) -> Result<Self, DeviceError> {
        let begun = Instant::now();
        loop {
            match Self::try_open(path, purpose, extra) {
                Err(DeviceError::InUse { is_dying: true, .. }) if begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    fn try_open(path: &Path, purpose: Purpose, extra: OFlags) -> Result<Self, DeviceError> {
        let failed = |action, source: rustix::io::Errno| DeviceError::System {
            purpose,
            path: path.to_owned(),
            action,
            source: source.into(),
        };
        // On a block device O_EXCL claims it: no mount, no other claim. On a file it means "make it".
        let is_block = rustix::fs::stat(path)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice);
        let claim = if is_block { OFlags::EXCL } else { OFlags::empty() };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | claim | extra;
        let file =
            rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).map_err(|error| match error {
                rustix::io::Errno::NOENT => DeviceError::Missing { purpose, path: path.to_owned() },
                rustix::io::Errno::BUSY => {
                    let (path, holder) = (path.to_owned(), String::new());
                    // Nobody tells who holds a block device.
                    DeviceError::InUse { purpose, path, holder, is_dying: true }
                }
                error => failed("open it", error),
            })?;
        let stat = rustix::fs::fstat(&file).map_err(|error| failed("stat it", error))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File { inode: stat.st_ino },
            FileType::BlockDevice => Kind::Block,
            _ => return Err(DeviceError::Kind { purpose, path: path.to_owned() }),
        };
        // Only the open must not wait (on a FIFO); the ring takes the flag for "fail rather than wait".
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| failed("read its flags", error))?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)
            .map_err(|error| failed("set its flags", error))?;
        if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            let (holder, is_dying) = lock_holder(stat.st_ino);
            return Err(match error {
                rustix::io::Errno::WOULDBLOCK => {
                    DeviceError::InUse { purpose, path: path.to_owned(), holder, is_dying }
                }
                error => failed("lock it", error),
            });
        }
        let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|error| failed("measure it", error))?;
        let backend = backend_of(&file, kind);
        Ok(Self { file, path: path.to_owned(), purpose, kind, size_bytes: size, backend, direct: false })
    }

    /// Switches to `O_DIRECT` as asked, for I/O in multiples of `granularity`. Where that cannot be done and need
    /// not be, says why. Recovery comes before: its reads are not aligned.
    pub(crate) fn set_direct(
        &mut self,
        wish: DirectIo,
        granularity: u32,
    ) -> Result<Option<String>, DeviceError> {
        if wish == DirectIo::Off {
            return Ok(None);
        }
        let reason = match self.direct_obstacle(granularity) {
            None => match self.switch_direct() {
                Ok(()) => {
                    self.direct = true;
                    return Ok(None);
                }
                Err(error) => error.to_string(),
            },
            Some(reason) => reason,
        };
        match wish {
            DirectIo::On => {
                Err(DeviceError::NoDirectIo { purpose: self.purpose, path: self.path.clone(), reason })
            }
            DirectIo::Auto | DirectIo::Off => Ok(Some(reason)),
        }
    }

    fn switch_direct(&self) -> rustix::io::Result<()> {
        // What recovery read is of no more use in the page cache.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        rustix::fs::fcntl_setfl(&self.file, flags | OFlags::DIRECT)
    }

    fn direct_obstacle(&self, granularity: u32) -> Option<String> {
        if self.backend == Backend::Inline {
            return Some("it lies on a memory file system".to_owned());
        }
        let (memory, offset) = self.direct_alignment()?;
        if offset == 0 {
            return Some("its file system has no direct I/O".to_owned());
        }
        if memory > MEMORY_ALIGN || offset > granularity {
            return Some(format!("it wants blocks of {offset} bytes, the volume has {granularity}"));
        }
        None
    }

    /// What direct I/O must be aligned to: memory, offset. `None` if nobody tells; then the switch itself decides.
    fn direct_alignment(&self) -> Option<(u32, u32)> {
        let statx = rustix::fs::statx(&self.file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
        if let Some(statx) = statx.filter(|statx| statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0) {
            return Some((statx.stx_dio_mem_align, statx.stx_dio_offset_align));
        }
        match self.kind {
            Kind::Block => rustix::fs::ioctl_blksszget(&self.file).ok().map(|bytes| (MEMORY_ALIGN, bytes)),
            Kind::File { .. } => Some((0, 0)),
        }
    }

    /// Fills `bytes` from `offset`.
    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        read_all(self.file.as_fd(), offset, bytes)
    }

    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        write_all(self.file.as_fd(), offset, bytes)
    }

    /// Makes everything written durable, the size too.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        rustix::fs::fsync(&self.file).map_err(errno)
    }

    /// Makes a file empty and then `bytes` long, all zeros, with its space reserved if asked. A block device is
    /// zeroed instead.
    pub(crate) fn reset(&mut self, bytes: u64, reserve: bool) -> Result<(), Errno> {
        match self.kind {
            Kind::File { .. } => {
                rustix::fs::ftruncate(&self.file, 0).map_err(errno)?;
                rustix::fs::ftruncate(&self.file, bytes).map_err(errno)?;
                if reserve {
                    match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
                        // Without reservation a full file system shows later, as an error of the journal.
                        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                        Err(error) => return Err(errno(error)),
                    }
                }
                self.size_bytes = bytes;
            }
            Kind::Block => self.zero_block_device(bytes)?,
        }
        self.sync()
    }

    fn zero_block_device(&self, bytes: u64) -> Result<(), Errno> {
        const STEP: u64 = 1 << 30;
        let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let mut offset = 0;
        while offset < bytes {
            let len = STEP.min(bytes - offset);
            rustix::fs::fallocate(&self.file, mode, offset, len).map_err(errno)?;
            offset += len;
        }
        Ok(())
    }

    /// Whether a new replica may overwrite it without asking: nothing but holes, or a device that begins and ends
    /// with zeros.
    pub(crate) fn is_blank(&self) -> Result<bool, Errno> {
        const SAMPLE: u64 = 1 << 20;
        if let Kind::File { .. } = self.kind {
            return match rustix::fs::seek(&self.file, SeekFrom::Data(0)) {
                Ok(_) => Ok(false),
                Err(rustix::io::Errno::NXIO) => Ok(true),
                Err(error) => Err(errno(error)),
            };
        }
        let len = SAMPLE.min(self.size_bytes);
        let mut bytes = vec![0; usize::try_from(len).expect("a megabyte")];
        for offset in [0, self.size_bytes - len] {
            self.read_at(offset, &mut bytes)?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Its size.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Who does its I/O.
    pub(crate) fn backend(&self) -> Backend {
        self.backend
    }

    /// Whether it is switched to `O_DIRECT`.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    /// What a journal remembers its disk by.
    pub(crate) fn fingerprint(&self) -> u64 {
        match self.kind {
            Kind::File { inode } => inode,
            Kind::Block => 0,
        }
    }

    /// The locked descriptor.
    pub(crate) fn into_file(self) -> OwnedFd {
        self.file
    }
}

/// Reads until `bytes` is full; the end of the file is an error.
pub(crate) fn read_all(file: BorrowedFd<'_>, mut offset: u64, mut bytes: &mut [u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pread(file, &mut *bytes, offset) {
            Ok(0) => return Err(Errno(libc::EIO)),
            Ok(count) => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(())
}

/// Writes until nothing of `bytes` is left.
pub(crate) fn write_all(file: BorrowedFd<'_>, mut offset: u64, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(Errno(libc::EIO)),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(())
}

/// The core's word for a system error.
pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    Errno(error.raw_os_error())
}

/// A system error in the standard library's words.
pub(crate) fn io_error(error: Errno) -> io::Error {
    io::Error::from_raw_os_error(error.0)
}

fn backend_of(file: &OwnedFd, kind: Kind) -> Backend {
    let in_memory = rustix::fs::fstatfs(file).is_ok_and(|statfs| {
        #[expect(clippy::unnecessary_cast, reason = "the type of f_type differs between architectures")]
        let kind = statfs.f_type as i64;
        [TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind)
    });
    if in_memory && kind != Kind::Block { Backend::Inline } else { Backend::Ring }
}

/// Who holds the lock on an inode, if the kernel's table and `/proc` tell: " (pid 1234, holdfast)", and whether that
/// process has ended already.
fn lock_holder(inode: u64) -> (String, bool) {
    let table = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let suffix = format!(":{inode}");
    let pid = table.lines().find_map(|line| {
        // "1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF"
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let matches = fields.get(1) == Some(&"FLOCK") && fields.get(5)?.ends_with(&suffix);
        matches.then(|| fields.get(4)?.parse::<u32>().ok()).flatten()
    });
    let Some(pid) = pid else { return (String::new(), true) };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "1234 (holdfast) S ...", where the name may hold anything.
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    match name {
        Some((name, rest)) => {
            let is_dead = rest.trim_start().starts_with(['Z', 'X']);
            (format!(" (pid {pid}, {name})"), is_dead)
        }
        None => (format!(" (pid {pid})"), true),
    }
}

#[cfg(test)]
mod tests;
