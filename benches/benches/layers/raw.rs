//! The `io-uring` crate, used directly: one thread, one ring, one system call for each batch.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Duration;

use holdfast_benches::random::Random;
use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, opcode, squeue};

use super::memory::Block;
use crate::{BLOCK, BLOCKS, Budget};

/// How a ring is set up.
#[derive(Clone, Copy)]
pub(crate) struct Flags {
    /// `COOP_TASKRUN | SINGLE_ISSUER`.
    pub(crate) coop: bool,
    /// `DEFER_TASKRUN | SINGLE_ISSUER`.
    pub(crate) defer: bool,
    /// Files are registered, and for disks buffers, too.
    pub(crate) registered: bool,
}

const BLOCK_BYTES: u32 = BLOCK as u32;

/// A ring and the memory of its operations.
struct Ring {
    uring: IoUring,
    files: Vec<RawFd>,
    is_registered: bool,
    /// Freed only when nothing is in flight; leaked otherwise, since the kernel may still use it.
    blocks: ManuallyDrop<Vec<Block>>,
    in_flight: usize,
    reaped: Vec<(usize, i32)>,
}

impl Ring {
    fn new(flags: Flags, files: &[RawFd], blocks: usize) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        if flags.coop {
            builder.setup_coop_taskrun().setup_single_issuer();
        }
        if flags.defer {
            builder.setup_defer_taskrun().setup_single_issuer();
        }
        let uring = builder.build(256)?;
        let blocks: Vec<Block> = (0..blocks).map(|_| Block::new()).collect();
        if flags.registered {
            uring.submitter().register_files(files)?;
            let base = |block: &Block| libc::iovec { iov_base: block.pointer().cast(), iov_len: BLOCK };
            let buffers: Vec<libc::iovec> = blocks.iter().map(base).collect();
            // SAFETY: the blocks live as long as the ring, or are leaked.
            unsafe { uring.submitter().register_buffers(&buffers)? };
        }
        let blocks = ManuallyDrop::new(blocks);
        let (files, is_registered) = (files.to_vec(), flags.registered);
        Ok(Self { uring, files, is_registered, blocks, in_flight: 0, reaped: Vec::with_capacity(512) })
    }

    fn push(&mut self, slot: usize, entry: squeue::Entry) {
        // SAFETY: the entry names a block of this ring that no other operation uses (each slot has its own, and
        // one operation at a time), which outlives it: see `blocks`.
        let pushed = unsafe { self.uring.submission().push(&entry.user_data(slot as u64)) };
        pushed.expect("the queue holds more than there are slots");
        self.in_flight += 1;
    }

    fn write(&mut self, slot: usize, offset: u64) {
        let pointer = self.blocks[slot].pointer();
        let entry = if self.is_registered {
            let index = u16::try_from(slot).expect("few slots");
            opcode::WriteFixed::new(Fixed(0), pointer, BLOCK_BYTES, index).offset(offset).build()
        } else {
            opcode::Write::new(Fd(self.files[0]), pointer, BLOCK_BYTES).offset(offset).build()
        };
        self.push(slot, entry);
    }

    fn send(&mut self, slot: usize, file: u32) {
        let pointer = self.blocks[slot].pointer();
        let entry = if self.is_registered {
            opcode::Send::new(Fixed(file), pointer, BLOCK_BYTES).build()
        } else {
            opcode::Send::new(Fd(self.files[file as usize]), pointer, BLOCK_BYTES).build()
        };
        self.push(slot, entry);
    }

    fn receive(&mut self, slot: usize, file: u32) {
        let pointer = self.blocks[slot].pointer();
        let entry = if self.is_registered {
            opcode::Recv::new(Fixed(file), pointer, BLOCK_BYTES).build()
        } else {
            opcode::Recv::new(Fd(self.files[file as usize]), pointer, BLOCK_BYTES).build()
        };
        self.push(slot, entry);
    }

    /// Submits what was pushed, waits for at least one completion, and takes all there are.
    fn turn(&mut self) -> io::Result<Vec<(usize, i32)>> {
        self.uring.submit_and_wait(1)?;
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.uring.completion().map(|entry| (entry.user_data() as usize, entry.result())));
        self.in_flight -= reaped.len();
        Ok(reaped)
    }

    /// Gives the list back for the next turn.
    fn recycle(&mut self, mut reaped: Vec<(usize, i32)>) {
        reaped.clear();
        self.reaped = reaped;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.in_flight == 0 {
            // SAFETY: dropped here once, and no operation uses the blocks.
            unsafe { ManuallyDrop::drop(&mut self.blocks) };
        }
    }
}

/// Blocks travel whole here: both ends only ever move whole blocks, and a socket takes one at once.
fn check(result: i32) -> io::Result<()> {
    match result {
        BLOCK_RESULT => Ok(()),
        error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
        bytes => Err(io::Error::other(format!("{bytes} bytes of a block were moved"))),
    }
}

const BLOCK_RESULT: i32 = BLOCK as i32;

/// Random writes.
pub(crate) fn disk(flags: Flags, file: &File, depth: usize, length: Duration) -> io::Result<u64> {
    let mut ring = Ring::new(flags, &[file.as_raw_fd()], depth)?;
    let (mut random, mut budget) = (Random::new(77), Budget::new(length));
    (0..depth).for_each(|slot| ring.write(slot, random.below(BLOCKS) * BLOCK as u64));
    while ring.in_flight > 0 {
        let reaped = ring.turn()?;
        for &(slot, result) in &reaped {
            check(result)?;
            if budget.another() {
                ring.write(slot, random.below(BLOCKS) * BLOCK as u64);
            }
        }
        ring.recycle(reaped);
    }
    Ok(budget.operations)
}

/// What comes next at one end of a round trip.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Sent,
    Received,
}

const CLIENT: u32 = 0;
const SERVER: u32 = 1;

/// Round trips; every message in flight has a slot at each end, the client's first.
pub(crate) fn ping_pong(flags: Flags, depth: usize, length: Duration) -> io::Result<u64> {
    let (client, server) = super::socket_pair()?;
    let mut ring = Ring::new(flags, &[client.as_raw_fd(), server.as_raw_fd()], 2 * depth)?;
    let mut next = vec![Next::Sent; depth];
    next.resize(2 * depth, Next::Received);
    let mut budget = Budget::new(length);
    (depth..2 * depth).for_each(|slot| ring.receive(slot, SERVER));
    (0..depth).for_each(|slot| ring.send(slot, CLIENT));
    let mut clients = depth;
    while ring.in_flight > 0 {
        let reaped = ring.turn()?;
        for &(slot, result) in &reaped {
            let is_client = slot < depth;
            if !is_client && clients == 0 && result == 0 {
                continue;
            }
            check(result)?;
            let file = if is_client { CLIENT } else { SERVER };
            match next[slot] {
                Next::Sent => {
                    next[slot] = Next::Received;
                    ring.receive(slot, file);
                }
                Next::Received if is_client && !budget.another() => {
                    clients -= 1;
                    if clients == 0 {
                        // Echoes that wait for more learn that there is no more.
                        client.shutdown(Shutdown::Write)?;
                    }
                }
                Next::Received => {
                    next[slot] = Next::Sent;
                    ring.send(slot, file);
                }
            }
        }
        ring.recycle(reaped);
    }
    Ok(budget.operations)
}
