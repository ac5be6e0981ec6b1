//! tokio-uring. Each operation in flight is a task, as its interface suggests.

use std::cell::RefCell;
use std::fs::File as StdFile;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use holdfast_benches::random::Random;
use tokio_uring::fs::File;
use tokio_uring::net::UnixStream;

use super::memory::Block;
use crate::{BLOCK, BLOCKS, Budget};

fn start<F: Future>(coop: bool, future: F) -> F::Output {
    let mut ring = tokio_uring::uring_builder();
    if coop {
        ring.setup_coop_taskrun().setup_single_issuer();
    }
    tokio_uring::builder().entries(256).uring_builder(&ring).start(future)
}

/// Random writes.
pub(crate) fn disk(coop: bool, file: &StdFile, depth: usize, length: Duration) -> io::Result<u64> {
    let file = file.try_clone()?;
    start(coop, async move {
        let file = Rc::new(File::from_std(file));
        let budget = Rc::new(RefCell::new(Budget::new(length)));
        let spawn =
            |seed: usize| tokio_uring::spawn(writes(Rc::clone(&file), Rc::clone(&budget), seed as u64));
        let tasks: Vec<_> = (1..=depth).map(spawn).collect();
        for task in tasks {
            task.await.expect("a task does not panic")?;
        }
        let operations = budget.borrow().operations;
        Ok(operations)
    })
}

async fn writes(file: Rc<File>, budget: Rc<RefCell<Budget>>, seed: u64) -> io::Result<()> {
    let mut random = Random::new(seed * 77);
    let mut block = Block::new();
    loop {
        let (result, back) = file.write_at(block, random.below(BLOCKS) * BLOCK as u64).submit().await;
        block = back;
        check(result?)?;
        if !budget.borrow_mut().another() {
            return Ok(());
        }
    }
}

/// Round trips; every message in flight has a task at each end.
pub(crate) fn ping_pong(coop: bool, depth: usize, length: Duration) -> io::Result<u64> {
    let (client, server) = super::socket_pair()?;
    start(coop, async move {
        let (client, server) = (Rc::new(UnixStream::from_std(client)), Rc::new(UnixStream::from_std(server)));
        let budget = Rc::new(RefCell::new(Budget::new(length)));
        let echo = |_| tokio_uring::spawn(echo(Rc::clone(&server)));
        let ask = |_| tokio_uring::spawn(ask(Rc::clone(&client), Rc::clone(&budget)));
        let echoes: Vec<_> = (0..depth).map(echo).collect();
        let asks: Vec<_> = (0..depth).map(ask).collect();
        for task in asks {
            task.await.expect("a task does not panic")?;
        }
        // Echoes that wait for more learn that there is no more.
        client.shutdown(std::net::Shutdown::Write)?;
        for task in echoes {
            task.await.expect("a task does not panic")?;
        }
        let operations = budget.borrow().operations;
        Ok(operations)
    })
}

async fn ask(stream: Rc<UnixStream>, budget: Rc<RefCell<Budget>>) -> io::Result<()> {
    let mut block = Block::new();
    loop {
        let (result, back) = stream.write(block).submit().await;
        check(result?)?;
        let (result, back) = stream.read(back).await;
        check(result?)?;
        block = back;
        if !budget.borrow_mut().another() {
            return Ok(());
        }
    }
}

async fn echo(stream: Rc<UnixStream>) -> io::Result<()> {
    let mut block = Block::new();
    loop {
        let (result, back) = stream.read(block).await;
        if result? == 0 {
            return Ok(());
        }
        let (result, back) = stream.write(back).submit().await;
        check(result?)?;
        block = back;
    }
}

/// Blocks travel whole here: both ends only ever move whole blocks, and a socket takes one at once.
fn check(bytes: usize) -> io::Result<()> {
    if bytes == BLOCK {
        Ok(())
    } else {
        Err(io::Error::other(format!("{bytes} bytes of a block were moved")))
    }
}
