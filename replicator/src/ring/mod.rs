//! The ring: io_uring with the unsafety taken out. Callers name memory by id and span, files by id, operations by a
//! tag of their own; whatever an operation uses lives until its completion. It knows nothing of volumes.
//!
//! Three rules make it sound. Memory is owned by the ring and freed only when no operation names it. What the kernel
//! reads besides (message headers, addresses) lies in boxes that are reused only after the completion. And the ring
//! is dropped only after everything in flight was cancelled and waited for, or its memory is leaked.
//!
//! One caller's duty remains, and is a matter of right data, not of memory safety: bytes that an operation in
//! flight reads or writes are left alone.

mod memory;
mod operations;
mod probe;
mod slots;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, squeue};
use replicator_core::event::Errno;
use replicator_core::units::Span;

pub(crate) use memory::Memory;
pub(crate) use operations::PIECES_MAX;
use slots::{Files, Slot, Slots};

use crate::error::RingError;
use crate::options::RingOptions;

/// Names memory of a ring other than its arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryId(u32);

/// Names a file of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId(u32);

/// Where bytes of an operation lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the arena.
    Arena(Span),
    /// In other memory of the ring.
    Local(MemoryId, Span),
}

/// A part of a gathered send: in the arena or in the memory that the send names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// In the arena.
    Arena(Span),
    /// In the send's own memory.
    Local(Span),
}

impl Piece {
    /// Where it lies in its memory.
    pub(crate) fn span(self) -> Span {
        match self {
            Self::Arena(span) | Self::Local(span) => span,
        }
    }

    /// Without its first `count` bytes.
    pub(crate) fn advance(self, count: usize) -> Self {
        let cut = |span: Span| Span { start: span.start + count, len: span.len - count };
        match self {
            Self::Arena(span) => Self::Arena(cut(span)),
            Self::Local(span) => Self::Local(cut(span)),
        }
    }
}

/// What came of an operation.
#[derive(Debug)]
pub(crate) struct Completion<T> {
    /// What the driver called it.
    pub(crate) tag: T,
    /// Bytes, or 0, or the error.
    pub(crate) result: Result<usize, Errno>,
    /// Of an accept: the connection.
    pub(crate) accepted: Option<OwnedFd>,
    /// The operation goes on (an accept that serves many connections).
    pub(crate) more: bool,
}

struct Extra {
    memory: Memory,
    operations: u32,
    /// Nobody needs it; free when the last operation is done.
    released: bool,
}

/// Entries of the submission queue; a turn that needs more enters the kernel twice.
const SUBMISSIONS: u32 = 256;
/// Entries of the completion queue; more are kept by the kernel.
const COMPLETIONS: u32 = 2048;

/// One io_uring with its memory and files. `T` is the driver's name for an operation.
pub(crate) struct Ring<T: Copy> {
    uring: IoUring,
    arena: Option<Memory>,
    arena_registered: bool,
    extras: Vec<Option<Extra>>,
    files: Files,
    slots: Slots<T>,
    reaped: Vec<cqueue::Entry>,
    flags: &'static str,
    has_sends_queued: bool,
}

impl<T: Copy> Ring<T> {
    /// Sets up a ring for the calling thread, which alone may use it then.
    pub(crate) fn new(options: RingOptions, arena: Memory, files_max: u32) -> Result<Self, RingError> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_taskrun_flag().setup_cqsize(COMPLETIONS).dontfork();
        let flags = if options.defer_taskrun {
            builder.setup_defer_taskrun();
            "SINGLE_ISSUER|DEFER_TASKRUN"
        } else {
            builder.setup_coop_taskrun();
            "SINGLE_ISSUER|COOP_TASKRUN"
        };
        let uring = builder.build(SUBMISSIONS).map_err(|source| match source.raw_os_error() {
            // Unknown flags are how an old kernel says that it is old.
            Some(libc::EINVAL) => RingError::TooOld { missing: format!("the setup flags {flags}") },
            _ => RingError::Setup { source },
        })?;
        probe::check(&uring)?;
        let register = uring.submitter().register_files_sparse(files_max);
        register.map_err(|source| RingError::Register { what: "a file table", source })?;
        let mut ring = Self {
            uring,
            arena: Some(arena),
            arena_registered: false,
            extras: Vec::new(),
            files: Files { files: (0..files_max).map(|_| None).collect() },
            slots: Slots::new(COMPLETIONS as usize),
            reaped: Vec::with_capacity(COMPLETIONS as usize),
            flags,
            has_sends_queued: false,
        };
        ring.register_arena();
        Ok(ring)
    }

    /// Saves the kernel the pinning per operation, where the limit of locked memory lets it.
    fn register_arena(&mut self) {
        let arena = self.arena.as_ref().expect("it is there until the drop");
        let buffer = libc::iovec { iov_base: arena.address(0, arena.len()).cast(), iov_len: arena.len() };
        // SAFETY: the arena stays mapped until the ring is gone.
        let registered = unsafe { self.uring.submitter().register_buffers(&[buffer]) };
        self.arena_registered = registered.is_ok();
    }

    /// The setup flags, for people.
    pub(crate) fn flags(&self) -> &'static str {
        self.flags
    }

    /// Whether the arena is a registered buffer.
    pub(crate) fn arena_is_registered(&self) -> bool {
        self.arena_registered
    }

    /// Puts a file into the ring's table. The error gives it back.
    pub(crate) fn add_file(&mut self, file: OwnedFd) -> Result<FileId, (OwnedFd, io::Error)> {
        let Some(index) = self.files.vacancy() else {
            return Err((file, io::ErrorKind::QuotaExceeded.into()));
        };
        let number = u32::try_from(index).expect("the table's size is a u32");
        match self.uring.submitter().register_files_update(number, &[file.as_raw_fd()]) {
            Ok(_) => {
                self.files.files[index] = Some(file);
                Ok(FileId(number))
            }
            Err(error) => Err((file, error)),
        }
    }

    /// Takes a file out of the table and closes it. Operations in flight keep theirs.
    pub(crate) fn remove_file(&mut self, file: FileId) {
        // The kernel's table is ours alone; taking out what was put in cannot fail.
        let _ = self.uring.submitter().register_files_update(file.0, &Files::NONE);
        self.files.files[file.0 as usize] = None;
    }

    /// A file of the table, for calls beside the ring.
    pub(crate) fn file(&self, file: FileId) -> BorrowedFd<'_> {
        self.files.files[file.0 as usize].as_ref().expect("a file is named while it is in the table").as_fd()
    }

    /// Maps memory for one connection or purpose.
    pub(crate) fn add_memory(&mut self, len: usize) -> io::Result<MemoryId> {
        let extra = Extra { memory: Memory::new(len, false)?, operations: 0, released: false };
        let index = self.extras.iter().position(Option::is_none).unwrap_or_else(|| {
            self.extras.push(None);
            self.extras.len() - 1
        });
        self.extras[index] = Some(extra);
        Ok(MemoryId(u32::try_from(index).expect("memories are bounded by connections")))
    }

    /// Gives memory back, at once or when the last operation that names it is done.
    pub(crate) fn remove_memory(&mut self, id: MemoryId) {
        let slot = &mut self.extras[id.0 as usize];
        match slot {
            Some(extra) if extra.operations > 0 => extra.released = true,
            _ => *slot = None,
        }
    }

    /// The arena.
    pub(crate) fn arena(&self) -> &[u8] {
        self.arena.as_ref().expect("it is there until the drop").bytes()
    }

    /// The arena, to change.
    pub(crate) fn arena_mut(&mut self) -> &mut [u8] {
        self.arena.as_mut().expect("it is there until the drop").bytes_mut()
    }

    /// Other memory.
    pub(crate) fn memory(&self, id: MemoryId) -> &[u8] {
        self.extra(id).memory.bytes()
    }

    /// Other memory, to change.
    pub(crate) fn memory_mut(&mut self, id: MemoryId) -> &mut [u8] {
        let extra = self.extras[id.0 as usize].as_mut().expect("memory is named until it is given back");
        extra.memory.bytes_mut()
    }

    /// Two other memories, to change.
    pub(crate) fn two_memories(&mut self, first: MemoryId, second: MemoryId) -> [&mut [u8]; 2] {
        let both = self.extras.get_disjoint_mut([first.0 as usize, second.0 as usize]);
        both.expect("they are two, and are there")
            .map(|extra| extra.as_mut().expect("memory is named until it is given back").memory.bytes_mut())
    }

    /// A piece of what a send of `from` would gather, to read, beside other memory, to change.
    pub(crate) fn piece_and_memory(
        &mut self,
        from: MemoryId,
        piece: Piece,
        to: MemoryId,
    ) -> (&[u8], &mut [u8]) {
        match piece {
            Piece::Local(span) => {
                let [from, to] = self.two_memories(from, to);
                (&from[span.range()], to)
            }
            Piece::Arena(span) => {
                let arena = self.arena.as_ref().expect("it is there until the drop").bytes();
                let to = self.extras[to.0 as usize].as_mut();
                (&arena[span.range()], to.expect("memory is named until it is given back").memory.bytes_mut())
            }
        }
    }

    /// The arena to change, beside other memory to read.
    pub(crate) fn arena_and_memory(&mut self, id: MemoryId) -> (&mut [u8], &[u8]) {
        let arena = self.arena.as_mut().expect("it is there until the drop").bytes_mut();
        let extra = self.extras[id.0 as usize].as_ref().expect("memory is named until it is given back");
        (arena, extra.memory.bytes())
    }

    fn extra(&self, id: MemoryId) -> &Extra {
        self.extras[id.0 as usize].as_ref().expect("memory is named until it is given back")
    }

    /// Whether operations wait to be submitted.
    pub(crate) fn has_queued(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// Whether sends wait to be submitted, for which somebody else may be waiting.
    pub(crate) fn has_sends_queued(&self) -> bool {
        self.has_sends_queued
    }

    /// Submits what is queued. With a timeout, waits that long for a completion; without one, does not wait.
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> Result<(), RingError> {
        self.has_sends_queued = false;
        let entered = match wait {
            None => self.uring.submit().map(drop),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                let arguments = SubmitArgs::new().timespec(&timespec);
                self.uring.submitter().submit_with_args(1, &arguments).map(drop)
            }
        };
        match entered {
            Ok(()) => Ok(()),
            // The time has passed; a signal came; the completion queue must be emptied first.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(source) => Err(RingError::Setup { source }),
        }
    }

    /// Submits what is queued and looks for a completion for so long, without sleeping; says whether there is one.
    /// Whoever else wants the processor gets it meanwhile.
    pub(crate) fn poll(&mut self, span: Duration) -> Result<bool, RingError> {
        if self.has_queued() {
            self.enter(None)?;
        }
        let end = std::time::Instant::now() + span;
        loop {
            if self.uring.submission().taskrun() {
                self.enter(None)?;
            }
            if !self.uring.completion().is_empty() {
                return Ok(true);
            }
            if std::time::Instant::now() >= end {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }

    /// Takes all completions there are.
    pub(crate) fn reap(&mut self, completions: &mut Vec<Completion<T>>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.uring.completion());
        for entry in reaped.drain(..) {
            completions.extend(self.complete(&entry));
        }
        self.reaped = reaped;
    }

    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Completion<T>> {
        let slot = self.slots.get(entry.user_data())?;
        let (tag, accepts) = (slot.tag, slot.accepts);
        let more = cqueue::more(entry.flags());
        if !more {
            let (_, memory) = self.slots.remove(entry.user_data())?;
            self.finish_memory(memory);
        }
        let result = usize::try_from(entry.result()).map_err(|_| Errno(-entry.result()));
        let accepted = result.ok().filter(|_| accepts).map(|_| {
            // SAFETY: a successful accept returns a descriptor that nobody else knows.
            unsafe { OwnedFd::from_raw_fd(entry.result()) }
        });
        Some(Completion { tag, result, accepted, more })
    }

    fn finish_memory(&mut self, memory: Option<MemoryId>) {
        let Some(id) = memory else { return };
        let slot = &mut self.extras[id.0 as usize];
        let extra = slot.as_mut().expect("memory outlives its operations");
        extra.operations -= 1;
        if extra.operations == 0 && extra.released {
            *slot = None;
        }
    }

    /// Queues an entry that names only memory, files and sides owned by this ring.
    fn push(&mut self, slot: Slot<T>, entry: squeue::Entry) {
        if let Some(id) = slot.memory {
            self.extras[id.0 as usize].as_mut().expect("checked when its address was taken").operations += 1;
        }
        let entry = entry.user_data(self.slots.insert(slot));
        // SAFETY: everything the entry points to is owned by the ring and stays until its completion: the arena
        // to the end, other memory by its count of operations, sides with their slot.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            // Full: a turn with more operations than that enters twice.
            let _ = self.uring.submit();
        }
    }

    /// Ends what is in flight on a file, where closing the connection does not.
    pub(crate) fn cancel_file(&mut self, file: FileId) {
        let _ = self.uring.submit();
        let which = CancelBuilder::fd(Fixed(file.0)).all();
        // Nothing to cancel is fine: the completion is there already.
        let _ = self.uring.submitter().register_sync_cancel(Some(Timespec::new()), which);
    }

    fn cancel_all(&mut self) -> bool {
        let _ = self.uring.submit();
        let mut ignored = Vec::new();
        for _ in 0..20 {
            if self.slots.len() == 0 {
                return true;
            }
            let _ = self.uring.submitter().register_sync_cancel(None, CancelBuilder::any());
            let _ = self.enter(Some(Duration::from_millis(50)));
            self.reap(&mut ignored);
            ignored.clear();
        }
        self.slots.len() == 0
    }
}

impl<T: Copy> Drop for Ring<T> {
    fn drop(&mut self) {
        if !self.cancel_all() {
            // Something hangs in the kernel and may still write: that memory is never used again.
            std::mem::forget(self.arena.take());
            self.extras.drain(..).for_each(std::mem::forget);
        }
        // The kernel takes a ring apart some time after its descriptor is closed; locks and sockets are to be
        // free when this returns.
        let _ = self.uring.submitter().unregister_files();
    }
}

#[cfg(test)]
mod tests;
