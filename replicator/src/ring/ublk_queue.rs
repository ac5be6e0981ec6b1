//! A queue of the kernel's ublk driver: the file on which requests are taken and answered, and the memory in which
//! the kernel describes them, one place for each tag. What the numbers mean is in `crate::ublk`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use io_uring::{opcode, types};
use replicator_core::event::Errno;
use replicator_core::units::{PAGE_BYTES, Span};
use rustix::mm::{MapFlags, ProtFlags};

use super::Ring;
use super::slots::{Kind, Slot};
use crate::device::errno;

/// `struct ublksrv_io_desc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Operation in the lowest byte, flags above.
    pub(crate) operation: u32,
    /// How long, in sectors of 512 bytes.
    pub(crate) sectors: u32,
    /// Where it begins, in sectors of 512 bytes.
    pub(crate) start_sector: u64,
    /// Not used here: payloads are copied by reading and writing the file.
    address: u64,
}

/// The first queue of a device. Its file is not in the ring's table: up to Linux 6.12 the kernel lets no file of the
/// table go while an operation that is older than its removal lasts, and here some last as long as the device.
#[derive(Debug)]
pub(crate) struct UblkQueue {
    file: OwnedFd,
    descriptors: NonNull<Descriptor>,
    len: usize,
    tags: u16,
}

// SAFETY: the mapping is owned by this value alone and is not tied to the thread that made it.
unsafe impl Send for UblkQueue {}

impl UblkQueue {
    /// The queue behind a device's file, with so many tags.
    pub(crate) fn map(file: OwnedFd, tags: u16) -> io::Result<Self> {
        let len = (usize::from(tags) * size_of::<Descriptor>()).next_multiple_of(PAGE_BYTES);
        let (none, prot) = (std::ptr::null_mut(), ProtFlags::READ);
        // SAFETY: a fresh mapping at an address the kernel chooses touches nothing that exists, and nobody can write
        // through it.
        let start = unsafe { rustix::mm::mmap(none, len, prot, MapFlags::SHARED, file.as_fd(), 0)? };
        let descriptors = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, descriptors, len, tags })
    }

    /// How many tags there are.
    pub(crate) fn tags(&self) -> u16 {
        self.tags
    }

    /// What the kernel says of a tag's request.
    pub(crate) fn descriptor(&self, tag: u16) -> Descriptor {
        assert!(tag < self.tags, "a tag of the queue");
        // SAFETY: inside the mapping, checked above, and aligned, as the mapping begins at a page. The kernel writes
        // a descriptor before it completes the command that brings its request and leaves it alone until the
        // request is answered; volatile, since the compiler knows nothing of that.
        unsafe { self.descriptors.as_ptr().add(usize::from(tag)).read_volatile() }
    }
}

impl Drop for UblkQueue {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it was ever given out.
        let _ = unsafe { rustix::mm::munmap(self.descriptors.as_ptr().cast(), self.len) };
    }
}

impl<T: Copy> Ring<T> {
    /// Gives the driver a command, which names no memory: its number, and 16 bytes that say more. The queue must
    /// stay until the completion.
    pub(crate) fn command(&mut self, tag: T, queue: &UblkQueue, number: u32, bytes: [u8; 16]) {
        let file = types::Fd(queue.file.as_raw_fd());
        let entry = opcode::UringCmd16::new(file, number).cmd(bytes).build();
        self.commands += 1;
        self.push(Slot { tag, memory: None, side: None, kind: Kind::Command }, entry);
    }

    /// Copies what lies at `offset` of a queue's file into the arena. That is a copy from memory to memory, so it
    /// takes the ring less time to do it than to ask for it.
    pub(crate) fn read_payload(
        &mut self,
        queue: &UblkQueue,
        offset: u64,
        span: Span,
    ) -> Result<usize, Errno> {
        rustix::io::pread(&queue.file, &mut self.arena_mut()[span.range()], offset).map_err(errno)
    }

    /// Copies from the arena to `offset` of a queue's file.
    pub(crate) fn write_payload(
        &mut self,
        queue: &UblkQueue,
        offset: u64,
        span: Span,
    ) -> Result<usize, Errno> {
        rustix::io::pwrite(&queue.file, &self.arena()[span.range()], offset).map_err(errno)
    }
}
