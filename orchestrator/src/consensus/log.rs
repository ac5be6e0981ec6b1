//! The durable log and vote of one voter. Memory is changed first and read by everybody; a thread writes batches, and
//! nothing is answered before its batch is synced.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::types::{Entry, LogId, Types, Vote};
use super::wal::{Wal, WalError};

/// Bytes of the file beyond which it is written anew when entries were purged.
const COMPACT_BYTES: u64 = 1 << 20;
/// Jobs that are made durable with one sync.
const JOBS_MAX: usize = 256;

/// A change of log or vote, as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Operation {
    Vote(Vote),
    Append(Vec<Entry>),
    /// Entries after this one are gone.
    Truncate(Option<LogId>),
    /// Entries up to this one are in a snapshot.
    Purge(LogId),
}

/// Log and vote in memory.
#[derive(Default)]
struct Memory {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

impl Memory {
    fn take(&mut self, operation: Operation) {
        match operation {
            Operation::Vote(vote) => self.vote = Some(vote),
            Operation::Append(entries) => {
                self.entries.extend(entries.into_iter().map(|entry| (entry.log_id().index, entry)));
            }
            Operation::Truncate(last) => {
                let from = last.map_or(0, |last| last.index + 1);
                self.entries.split_off(&from);
            }
            Operation::Purge(last) => {
                self.entries = self.entries.split_off(&(last.index + 1));
                self.purged = Some(last);
            }
        }
    }

    /// Operations that lead here from nothing.
    fn as_operations(&self) -> Vec<Operation> {
        let vote = self.vote.map(Operation::Vote);
        let purged = self.purged.map(Operation::Purge);
        let entries = Operation::Append(self.entries.values().cloned().collect());
        vote.into_iter().chain(purged).chain([entries]).collect()
    }
}

/// Something to make durable, and whom to tell.
struct Job {
    operation: Vec<u8>,
    may_compact: bool,
    done: Done,
}

enum Done {
    Flushed(IOFlushed<Types>),
    Told(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Flushed(flushed) => flushed.io_completed(result),
            // Whoever waited is gone, which only happens when all ends.
            Self::Told(sender) => drop(sender.send(result)),
        }
    }
}

/// The log store, shared by all who read it.
#[derive(Clone)]
pub(crate) struct LogStore {
    memory: Arc<Mutex<Memory>>,
    jobs: Sender<Job>,
}

impl LogStore {
    /// Opens the log at `path`, or begins one.
    pub(crate) fn open(path: &Path) -> Result<Self, WalError> {
        let (wal, batches) = Wal::open(path)?;
        let mut memory = Memory::default();
        for batch in &batches {
            let operations: Vec<Operation> =
                serde_json::from_slice(batch).map_err(|error| WalError::System {
                    path: path.to_owned(),
                    action: "understand",
                    source: io::Error::new(io::ErrorKind::InvalidData, error),
                })?;
            operations.into_iter().for_each(|operation| memory.take(operation));
        }
        let memory = Arc::new(Mutex::new(memory));
        let (jobs, waiting) = mpsc::channel();
        let shared = Arc::clone(&memory);
        let thread = std::thread::Builder::new().name("raft-log".to_owned());
        let spawned = thread.spawn(move || write_jobs(wal, &shared, &waiting));
        spawned.map_err(|source| WalError::System {
            path: path.to_owned(),
            action: "start a thread for",
            source,
        })?;
        Ok(Self { memory, jobs })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("nobody panics with the log in hand")
    }

    /// Changes memory and gives the change to the writer, in one order for both.
    fn submit(&self, operation: Operation, done: Done) -> io::Result<()> {
        let bytes = serde_json::to_vec(&operation).map_err(io::Error::other)?;
        let may_compact = matches!(operation, Operation::Purge(_));
        let mut memory = self.memory();
        memory.take(operation);
        let sent = self.jobs.send(Job { operation: bytes, may_compact, done });
        sent.map_err(|_| io::Error::other("the log's writer has ended after an error"))
    }

    async fn submit_and_wait(&self, operation: Operation) -> io::Result<()> {
        let (sender, told) = oneshot::channel();
        self.submit(operation, Done::Told(sender))?;
        told.await.unwrap_or_else(|_| Err(io::Error::other("the log's writer has ended after an error")))
    }
}

/// The writer: takes what waits, writes it as one batch, syncs, tells. After an error it writes no more, as nobody knows
/// what the disk has.
fn write_jobs(mut wal: Wal, memory: &Mutex<Memory>, waiting: &Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let mut jobs = vec![first];
        jobs.extend(waiting.try_iter().take(JOBS_MAX - 1));
        let mut batch = vec![b'['];
        for (index, job) in jobs.iter().enumerate() {
            if index > 0 {
                batch.push(b',');
            }
            batch.extend_from_slice(&job.operation);
        }
        batch.push(b']');
        let may_compact = jobs.iter().any(|job| job.may_compact);
        let mut result = wal.append(&batch);
        if result.is_ok() && may_compact && wal.len_bytes() > COMPACT_BYTES {
            result = compact(&mut wal, memory);
        }
        let failed = result.is_err();
        let text = result.err().map(|error| error.to_string());
        for job in jobs {
            job.done.tell(text.as_ref().map_or(Ok(()), |text| Err(io::Error::other(text.clone()))));
        }
        if failed {
            return;
        }
    }
}

/// Memory may be ahead of what was told; writing more than was told is always allowed, and what waits is written again.
fn compact(wal: &mut Wal, memory: &Mutex<Memory>) -> Result<(), WalError> {
    let operations = memory.lock().expect("nobody panics with the log in hand").as_operations();
    wal.replace(&serde_json::to_vec(&operations).expect("what was read can be written"))
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        Ok(self.memory().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let memory = self.memory();
        let last = memory.entries.values().next_back().map(RaftEntry::log_id);
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: last.or(memory.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.submit_and_wait(Operation::Vote(*vote)).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.submit(Operation::Append(entries.into_iter().collect()), Done::Flushed(callback))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.submit_and_wait(Operation::Truncate(last)).await
    }

    async fn purge(&mut self, last: LogId) -> io::Result<()> {
        self.submit_and_wait(Operation::Purge(last)).await
    }
}

#[cfg(test)]
mod tests {
    use openraft::StorageError;
    use openraft::testing::log::{StoreBuilder, Suite};
    use tempfile::TempDir;

    use super::super::machine::Machine;
    use super::*;

    /// A store in a fresh folder.
    struct Fresh;

    impl StoreBuilder<Types, LogStore, Machine, TempDir> for Fresh {
        async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Types>> {
            let folder = TempDir::new().unwrap();
            let log = LogStore::open(&folder.path().join("log")).unwrap();
            let (machine, _) = Machine::open(&folder.path().join("snapshot")).unwrap();
            Ok((folder, log, machine))
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn the_store_passes_the_tests_that_openraft_brings() {
        block_on(Suite::test_all(Fresh)).unwrap();
    }

    #[test]
    fn a_vote_that_was_saved_is_there_after_a_restart() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("log");
        let leader = openraft::impls::leader_id_std::LeaderId { term: 7, voted_for: 3 };
        let vote = Vote { leader_id: leader, committed: false };
        block_on(async {
            LogStore::open(&path).unwrap().save_vote(&vote).await.unwrap();
            assert_eq!(LogStore::open(&path).unwrap().read_vote().await.unwrap(), Some(vote));
        });
    }
}
