//! The writers: threads that append records to the volume as fast as it takes them, and stop when it fails or when
//! they are told to.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::ledger::{Ledger, RECORD_BYTES, SLOTS, Verdict};
use crate::nbd_client::NbdClient;
use crate::sandbox::plan::VOLUME;

/// Writers at one time.
pub(super) const WRITERS: u64 = 4;
/// Writes that a writer has under way.
const BATCH: usize = 16;
/// Batches after which a writer flushes.
const BATCHES_PER_FLUSH: u64 = 8;
/// The least time between the batches of one writer when writers keep an easy pace.
const EASY_INTERVAL: Duration = Duration::from_millis(8);
/// No answer for so long counts as a broken connection.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How hard writers work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// As hard as the volume takes it.
    Full,
    /// About 30 MiB/s in all: what is written while a replica is away has to fit in the journal.
    Easy,
}

/// Writers at work.
#[derive(Debug)]
pub(super) struct Writers {
    threads: Vec<JoinHandle<(Ledger, std::io::Result<()>)>>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

impl Writers {
    /// Sets one writer to work for each ledger.
    pub(super) fn start(ledgers: Vec<Ledger>, socket: &Path, pace: Pace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(ledgers.iter().map(Ledger::acknowledged).sum()));
        let start = |mut ledger: Ledger| {
            let (socket, stop, count) = (socket.to_owned(), Arc::clone(&stop), Arc::clone(&acknowledged));
            thread::spawn(move || {
                let result = write(&mut ledger, &socket, pace, &stop, &count);
                (ledger, result)
            })
        };
        let threads = ledgers.into_iter().map(start).collect();
        Self { threads, stop, acknowledged }
    }

    /// Records acknowledged so far, those of earlier writers included.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether a writer has ended although nobody told it to.
    pub(super) fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Tells them to stop, and gives the ledgers back with the first failure.
    pub(super) fn stop(self) -> (Vec<Ledger>, std::io::Result<()>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut first = Ok(());
        let mut ledgers = Vec::new();
        for thread in self.threads {
            let (ledger, result) = thread.join().expect("a writer does not panic");
            ledgers.push(ledger);
            first = first.and(result);
        }
        (ledgers, first)
    }
}

fn write(
    ledger: &mut Ledger,
    socket: &Path,
    pace: Pace,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> std::io::Result<()> {
    let mut client = NbdClient::connect(socket, VOLUME, TIMEOUT)?;
    let mut records = vec![[0; RECORD_BYTES]; BATCH];
    let mut batches = 0;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let places: Vec<(u64, usize)> = (0..BATCH).map(|_| ledger.attempt()).collect();
        for (record, (number, slot)) in records.iter_mut().zip(&places) {
            ledger.write(*number, *slot, record);
        }
        let writes: Vec<(u64, &[u8])> = records
            .iter()
            .zip(&places)
            .map(|(record, (_, slot))| (ledger.offset(*slot), record.as_slice()))
            .collect();
        client.write_all(&writes, |index| {
            let (number, slot) = places[index];
            ledger.acknowledge(number, slot);
            count.fetch_add(1, Ordering::Relaxed);
        })?;
        batches += 1;
        if batches % BATCHES_PER_FLUSH == 0 {
            client.flush()?;
            ledger.flush();
        }
        if pace == Pace::Easy {
            thread::sleep(EASY_INTERVAL.saturating_sub(began.elapsed()));
        }
    }
    client.flush()?;
    ledger.flush();
    Ok(())
}

/// Reads every slot of every ledger over NBD and compares it.
pub(super) fn check(ledgers: &mut [Ledger], socket: &Path) -> std::io::Result<Verdict> {
    let mut client = NbdClient::connect(socket, VOLUME, TIMEOUT)?;
    let needed_bytes = (ledgers.len() * SLOTS * RECORD_BYTES) as u64;
    if client.size_bytes() < needed_bytes {
        let reason = format!("the export has {} bytes, the ledger {needed_bytes}", client.size_bytes());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
    }
    check_with(ledgers, |offset, bytes| client.read(offset, bytes))
}

/// Compares every slot of every ledger with what `read` gives, many slots at a time.
pub(super) fn check_with(
    ledgers: &mut [Ledger],
    mut read: impl FnMut(u64, &mut [u8]) -> std::io::Result<()>,
) -> std::io::Result<Verdict> {
    const SLOTS_AT_ONCE: usize = 64;
    let mut verdict = Verdict::default();
    let mut bytes = vec![0; SLOTS_AT_ONCE * RECORD_BYTES];
    for ledger in ledgers {
        for first in (0..SLOTS).step_by(SLOTS_AT_ONCE) {
            read(ledger.offset(first), &mut bytes)?;
            for (index, record) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
                verdict = verdict.plus(ledger.check(first + index, record));
            }
        }
    }
    Ok(verdict)
}

/// Writes one record of its own until it is acknowledged: the moment at which the volume is back.
pub(super) fn probe(socket: &Path, stop: &AtomicBool) -> std::io::Result<()> {
    let offset = WRITERS * SLOTS as u64 * RECORD_BYTES as u64;
    let record = [0x5a; RECORD_BYTES];
    loop {
        let once = NbdClient::connect(socket, VOLUME, TIMEOUT)
            .and_then(|mut client| client.write_all(&[(offset, &record)], |_| {}));
        match once {
            Ok(()) => return Ok(()),
            Err(error) if stop.load(Ordering::Relaxed) => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}
