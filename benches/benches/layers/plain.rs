//! Plain system calls.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::Duration;

use holdfast_benches::random::Random;

use super::memory::Block;
use crate::{BLOCK, BLOCKS, Budget};

/// Random writes. Where a call waits for the device, each write in flight takes a thread; where none waits, one
/// thread does them one after the other.
pub(crate) fn disk(file: &File, depth: usize, waits: bool, length: Duration) -> io::Result<u64> {
    if !waits {
        return writes(file, 1, length);
    }
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..depth).map(|seed| scope.spawn(move || writes(file, seed as u64 + 1, length))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a writer does not panic")).sum()
    })
}

fn writes(file: &File, seed: u64, length: Duration) -> io::Result<u64> {
    let (mut random, mut budget) = (Random::new(seed * 77), Budget::new(length));
    let mut block = Block::new();
    loop {
        file.write_all_at(block.bytes(), random.below(BLOCKS) * BLOCK as u64)?;
        if !budget.another() {
            return Ok(budget.operations);
        }
    }
}

/// Round trips: what is in flight lies in the socket.
pub(crate) fn ping_pong(depth: usize, length: Duration) -> io::Result<u64> {
    let (mut client, mut server) = super::socket_pair()?;
    let mut bytes = [0; BLOCK];
    let mut budget = Budget::new(length);
    for _ in 0..depth {
        client.write_all(&bytes)?;
    }
    loop {
        server.read_exact(&mut bytes)?;
        server.write_all(&bytes)?;
        client.read_exact(&mut bytes)?;
        if !budget.another() {
            return Ok(budget.operations);
        }
        client.write_all(&bytes)?;
    }
}
