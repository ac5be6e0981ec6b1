//! The operations in flight: for each what the driver called it, which memory it holds, and what the kernel reads
//! of it besides. A slot's number is the operation's `user_data`.

use std::os::fd::RawFd;

use super::MemoryId;

/// What the kernel reads while an operation is submitted, at an address that does not change.
pub(super) struct Side {
    pub(super) header: libc::msghdr,
    pub(super) pieces: Vec<libc::iovec>,
    pub(super) address: libc::sockaddr_storage,
}

// SAFETY: the pointers inside name memory of the ring that owns this and are only passed to the kernel.
unsafe impl Send for Side {}

impl Side {
    fn new() -> Box<Self> {
        // SAFETY: `msghdr` and `sockaddr_storage` are plain C structures for which all zeros are valid.
        let (header, address) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Box::new(Self { header, pieces: Vec::new(), address })
    }
}

/// What a completion means for the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The operation is over.
    Plain,
    /// It carries a new descriptor.
    Accept,
    /// A driver has done a command. Until then nothing of ours is in the kernel's hands, and only the driver, or the
    /// end of the ring, ends it.
    Command,
}

/// One operation in flight.
pub(super) struct Slot<T> {
    pub(super) tag: T,
    pub(super) memory: Option<MemoryId>,
    pub(super) side: Option<Box<Side>>,
    pub(super) kind: Kind,
}

/// All of them.
pub(super) struct Slots<T> {
    slots: Vec<Option<Slot<T>>>,
    free: Vec<u32>,
    #[expect(clippy::vec_box, reason = "the kernel knows their addresses")]
    sides: Vec<Box<Side>>,
}

impl<T: Copy> Slots<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            sides: Vec::with_capacity(64),
        }
    }

    /// How many operations are in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, slot: Slot<T>) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("operations are bounded by connections and buffers")
        });
        self.slots[index as usize] = Some(slot);
        u64::from(index)
    }

    /// The operation of `user_data`, which stays in flight.
    pub(super) fn get(&self, user_data: u64) -> Option<&Slot<T>> {
        self.slots.get(usize::try_from(user_data).ok()?)?.as_ref()
    }

    /// Ends the operation of `user_data`.
    pub(super) fn remove(&mut self, user_data: u64) -> Option<(T, Option<MemoryId>)> {
        let index = usize::try_from(user_data).ok()?;
        let mut slot = self.slots.get_mut(index)?.take()?;
        self.free.push(u32::try_from(index).ok()?);
        if let Some(side) = slot.side.take() {
            self.sides.push(side);
        }
        Some((slot.tag, slot.memory))
    }

    /// A side to fill; it comes back when its operation ends.
    pub(super) fn side(&mut self) -> Box<Side> {
        self.sides.pop().unwrap_or_else(Side::new)
    }
}

/// The file table's numbers: which are free.
pub(super) struct Files {
    pub(super) files: Vec<Option<std::os::fd::OwnedFd>>,
}

impl Files {
    /// The first free number.
    pub(super) fn vacancy(&self) -> Option<usize> {
        self.files.iter().position(Option::is_none)
    }

    /// What takes a number out of the kernel's table.
    pub(super) const NONE: [RawFd; 1] = [-1];
}
