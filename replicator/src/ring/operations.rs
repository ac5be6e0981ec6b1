//! The operations of the ring, one method each. Addresses are taken and checked here; what they mean is the
//! driver's business.

use std::net::SocketAddr;

use io_uring::{opcode, types};
use replicator_core::event::Errno;
use replicator_core::units::Span;
use rustix::fs::FallocateFlags;

use super::slots::{Kind, Side, Slot};
use super::{FileId, MemoryId, Piece, Place, Ring};
use crate::device::errno;

/// Pieces one send may gather: `UIO_MAXIOV`.
pub(crate) const PIECES_MAX: usize = 1024;

impl<T: Copy> Ring<T> {
    /// Where a place is, which memory it holds, and whether it lies in the registered arena.
    fn locate(&self, place: Place) -> (*mut u8, u32, Option<MemoryId>, bool) {
        let (address, span, memory) = match place {
            Place::Arena(span) => {
                let arena = self.arena.as_ref().expect("it is there until the drop");
                (arena.address(span.start, span.len), span, None)
            }
            Place::Local(id, span) => (self.extra(id).memory.address(span.start, span.len), span, Some(id)),
        };
        let len = u32::try_from(span.len).expect("spans are far below 4 GiB");
        (address, len, memory, memory.is_none() && self.arena_registered)
    }

    /// Reads from a file.
    pub(crate) fn read(&mut self, tag: T, file: FileId, offset: u64, place: Place) {
        let (address, len, memory, registered) = self.locate(place);
        let file = types::Fixed(file.0);
        let entry = if registered {
            opcode::ReadFixed::new(file, address, len, 0).offset(offset).build()
        } else {
            opcode::Read::new(file, address, len).offset(offset).build()
        };
        self.push(Slot { tag, memory, side: None, kind: Kind::Plain }, entry);
    }

    /// Writes to a file.
    pub(crate) fn write(&mut self, tag: T, file: FileId, offset: u64, place: Place) {
        let (address, len, memory, registered) = self.locate(place);
        let file = types::Fixed(file.0);
        let entry = if registered {
            opcode::WriteFixed::new(file, address, len, 0).offset(offset).build()
        } else {
            opcode::Write::new(file, address, len).offset(offset).build()
        };
        self.push(Slot { tag, memory, side: None, kind: Kind::Plain }, entry);
    }

    /// Makes everything written to a file before this is submitted durable.
    pub(crate) fn sync(&mut self, tag: T, file: FileId) {
        let entry = opcode::Fsync::new(types::Fixed(file.0)).flags(types::FsyncFlags::DATASYNC).build();
        self.push(Slot { tag, memory: None, side: None, kind: Kind::Plain }, entry);
    }

    /// Punches a hole into a file or zeroes a range, by `mode` of `fallocate(2)`.
    pub(crate) fn allocate(&mut self, tag: T, file: FileId, mode: i32, offset: u64, length: u64) {
        let entry = opcode::Fallocate::new(types::Fixed(file.0), length).offset(offset).mode(mode).build();
        self.push(Slot { tag, memory: None, side: None, kind: Kind::Plain }, entry);
    }

    /// Receives what there is, or with `whole` until the place is full or the stream ends.
    pub(crate) fn receive(&mut self, tag: T, file: FileId, place: Place, whole: bool) {
        let (address, len, memory, _) = self.locate(place);
        let flags = if whole { libc::MSG_WAITALL } else { 0 };
        let entry = opcode::Recv::new(types::Fixed(file.0), address, len).flags(flags).build();
        self.push(Slot { tag, memory, side: None, kind: Kind::Plain }, entry);
    }

    /// Sends up to [`PIECES_MAX`] pieces as one; local ones lie in `memory`. It may still send only a part.
    pub(crate) fn send(&mut self, tag: T, file: FileId, memory: MemoryId, pieces: &[Piece]) {
        let mut side = self.slots.side();
        side.pieces.clear();
        for piece in pieces.iter().take(PIECES_MAX) {
            let place = match *piece {
                Piece::Arena(span) => Place::Arena(span),
                Piece::Local(span) => Place::Local(memory, span),
            };
            let (address, _, _, _) = self.locate(place);
            side.pieces.push(libc::iovec { iov_base: address.cast(), iov_len: piece.span().len });
        }
        let Side { header, pieces, .. } = &mut *side;
        header.msg_name = std::ptr::null_mut();
        header.msg_namelen = 0;
        header.msg_iov = pieces.as_mut_ptr();
        header.msg_iovlen = pieces.len() as _;
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).unsigned_abs();
        let entry = opcode::SendMsg::new(types::Fixed(file.0), &raw const *header).flags(flags).build();
        self.push(Slot { tag, memory: Some(memory), side: Some(side), kind: Kind::Plain }, entry);
        self.has_sends_queued = true;
    }

    /// Accepts connections until that fails; each comes as a completion.
    pub(crate) fn accept(&mut self, tag: T, file: FileId) {
        let flags = libc::SOCK_CLOEXEC;
        let entry = opcode::AcceptMulti::new(types::Fixed(file.0)).flags(flags).build();
        self.push(Slot { tag, memory: None, side: None, kind: Kind::Accept }, entry);
    }

    /// Connects a socket.
    pub(crate) fn connect(&mut self, tag: T, file: FileId, to: SocketAddr) {
        let mut side = self.slots.side();
        let address = socket2::SockAddr::from(to);
        let len = address.len();
        // SAFETY: both are `sockaddr_storage`, plain C data; socket2 fills in what `len` says.
        side.address = unsafe { std::ptr::read(address.as_ptr().cast()) };
        let pointer = (&raw const side.address).cast();
        let entry = opcode::Connect::new(types::Fixed(file.0), pointer, len).build();
        self.push(Slot { tag, memory: None, side: Some(side), kind: Kind::Plain }, entry);
    }

    /// Reads the counter of an eventfd into `memory`.
    pub(crate) fn read_wakeups(&mut self, tag: T, file: FileId, memory: MemoryId) {
        self.read(tag, file, u64::MAX, Place::Local(memory, Span { start: 0, len: 8 }));
    }
}

/// System calls beside the ring, for memory file systems. They block, which there takes no longer than a copy.
impl<T: Copy> Ring<T> {
    /// Reads from a file.
    pub(crate) fn read_now(&mut self, file: FileId, offset: u64, place: Place) -> Result<usize, Errno> {
        let Self { arena, extras, files, .. } = self;
        let file = files.files[file.0 as usize].as_ref().expect("a file is named while it is in the table");
        let bytes = match place {
            Place::Arena(span) => &mut arena.as_mut().expect("it is there").bytes_mut()[span.range()],
            Place::Local(id, span) => {
                let extra = extras[id.0 as usize].as_mut().expect("memory is named until it is given back");
                &mut extra.memory.bytes_mut()[span.range()]
            }
        };
        rustix::io::pread(file, bytes, offset).map_err(errno)
    }

    /// Writes to a file.
    pub(crate) fn write_now(&mut self, file: FileId, offset: u64, place: Place) -> Result<usize, Errno> {
        let bytes = match place {
            Place::Arena(span) => &self.arena()[span.range()],
            Place::Local(id, span) => &self.memory(id)[span.range()],
        };
        rustix::io::pwrite(self.file(file), bytes, offset).map_err(errno)
    }

    /// Makes a file durable.
    pub(crate) fn sync_now(&mut self, file: FileId) -> Result<usize, Errno> {
        rustix::fs::fdatasync(self.file(file)).map(|()| 0).map_err(errno)
    }

    /// Punches a hole or zeroes a range.
    pub(crate) fn allocate_now(
        &mut self,
        file: FileId,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
    ) -> Result<usize, Errno> {
        rustix::fs::fallocate(self.file(file), mode, offset, length).map(|()| 0).map_err(errno)
    }
}
