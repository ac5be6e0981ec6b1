//! Memory that the kernel reads and writes on our behalf: anonymous mappings, page aligned, that outlive every
//! operation naming them. Not an allocator; the arena's pages are handed out by the core's pool.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// One anonymous mapping.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned by this value alone and is not tied to the thread that made it.
unsafe impl Send for Memory {}

impl Memory {
    /// Maps `len` bytes of zeros; `populate` has the pages there at once.
    pub(crate) fn new(len: usize, populate: bool) -> io::Result<Self> {
        assert!(len > 0, "an empty mapping has no use");
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses touches nothing that exists.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags)? };
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Self { start, len };
        if populate {
            memory.populate();
        }
        Ok(memory)
    }

    fn populate(&self) {
        let start = self.start.as_ptr().cast();
        // SAFETY: the range is ours, and neither advice changes what the memory holds. Both are hints: a kernel
        // without huge pages says no, and pages that are not there yet come with the first touch.
        unsafe {
            let _ = rustix::mm::madvise(start, self.len, Advice::LinuxHugepage);
            let _ = rustix::mm::madvise(start, self.len, Advice::LinuxPopulateWrite);
        }
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, `len` bytes long and lives as long as `self`. The kernel may write
        // parts that an operation names; nobody reads those before the operation is done.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// All of it, to change.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only reference of the program. Parts that the kernel
        // reads or writes at the same time are left alone by their owners until the operation is done.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The address of `start..start + len`, checked to lie inside.
    pub(super) fn address(&self, start: usize, len: usize) -> *mut u8 {
        let end = start.checked_add(len).expect("a span of the arena");
        assert!(end <= self.len, "an operation stays inside its memory");
        // SAFETY: `start` is inside the mapping, checked above.
        unsafe { self.start.as_ptr().add(start) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it is left. The ring drops memory only when no
        // operation names it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
