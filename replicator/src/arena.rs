//! The arena, the one piece of memory all payloads live in, and what keeps this process from waiting for itself:
//! the kernel may need this volume to free memory, so the process must not need memory to serve it.

use std::io;

use replicator_core::units::PAGE_BYTES;
use rustix::mm::MlockAllFlags;

use crate::error::StartError;
use crate::ring::Memory;

/// Maps the arena with its pages there at once.
pub(crate) fn map(bytes: usize) -> Result<Memory, StartError> {
    assert!(bytes.is_multiple_of(PAGE_BYTES), "the configuration is checked");
    Memory::new(bytes, true).map_err(|source| StartError::Memory { bytes, source })
}

/// What could not be had, each with the cure.
#[derive(Debug, Default)]
pub(crate) struct Pinned {
    /// Whether all memory is locked, now and in the future.
    pub(crate) locked: bool,
    /// For the log.
    pub(crate) warnings: Vec<String>,
}

/// Locks the process's memory and tells the kernel that this thread serves I/O. Neither is vital for a test or a
/// laptop, so failures are warnings.
pub(crate) fn pin() -> Pinned {
    let mut pinned = Pinned::default();
    match rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        Ok(()) => pinned.locked = true,
        Err(error) => pinned.warnings.push(format!(
            "memory is not locked ({}): under memory pressure the volume may stall; allow it with \
             LimitMEMLOCK=infinity or CAP_IPC_LOCK, or set lock-memory = false",
            io::Error::from(error)
        )),
    }
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        pinned.warnings.push(format!(
            "PR_SET_IO_FLUSHER is refused ({}): a local file system on this volume may deadlock with memory \
             reclaim; allow it with CAP_SYS_RESOURCE, or set lock-memory = false",
            io::Error::from(error)
        ));
    }
    if let Err(error) = spare_from_oom_killer() {
        pinned.warnings.push(format!(
            "the kernel may choose this process when it must kill one for memory: {error}; give it CAP_SYS_RESOURCE"
        ));
    }
    pinned
}

/// Has the kernel choose another process when it must kill one for memory, unless somebody has seen to that already:
/// what is dirty above this one could never be written after its end, so killing it would free nothing.
///
/// # Errors
/// Without the right to do so.
pub fn spare_from_oom_killer() -> std::io::Result<()> {
    const PATH: &str = "/proc/self/oom_score_adj";
    if std::fs::read_to_string(PATH)?.starts_with('-') {
        return Ok(());
    }
    std::fs::write(PATH, "-900")
}
