//! The other threads' end of a volume: requests go in through a channel and an eventfd, answers come back through
//! channels. It holds nothing of the data path.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replicator_core::command::AdminError;
use replicator_core::config::PeerConfig;
use replicator_core::event::{AdminAction, Errno};
use replicator_core::status::Status;
use replicator_core::units::{NodeId, Token};

use super::ublk::{NewUblk, UblkStatus};
use crate::branch::{BranchInfo, Branches};
use crate::error::{VolumeError, VolumeFault};
use crate::keyring::Keyring;
use crate::latency::Latencies;
use crate::options::{PeerAddress, VolumeOptions};
use crate::ublk;

/// A volume's replica and what the shell knows about it.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// The volume's name.
    pub name: String,
    /// The replica.
    pub core: Status,
    /// How long clients' requests took.
    pub latencies: Latencies,
    /// NBD connections now.
    pub nbd_connections: u32,
    /// The device of the kernel's ublk driver that it serves.
    pub ublk: Option<UblkStatus>,
    /// Whether the backing disk is opened with `O_DIRECT`.
    pub disk_direct: bool,
    /// Whether the journal is opened with `O_DIRECT`.
    pub journal_direct: bool,
    /// How disk and journal are read and written, for people.
    pub backends: String,
    /// Flags of the ring, for people.
    pub ring_flags: String,
    /// Whether memory is locked; if not although it should be, `status` says so.
    pub memory_locked: bool,
}

/// What other threads ask of the reactor.
pub(crate) enum Request {
    /// Something for the machine.
    Admin { action: AdminAction, answer: mpsc::Sender<Result<String, AdminError>> },
    /// Another replica is to be taken in.
    AddReplica { address: PeerAddress, config: PeerConfig, answer: mpsc::Sender<Result<String, AdminError>> },
    /// One is to be let go.
    RemoveReplica { node: NodeId, answer: mpsc::Sender<Result<String, AdminError>> },
    /// The cluster's keys are others now.
    Rekey { keyring: Box<Keyring>, answer: mpsc::Sender<Result<String, AdminError>> },
    /// A branch is kept, or could not be.
    BranchKept { token: Token, result: Result<(), String> },
    /// The backing disk was looked at, or made larger.
    DiskGrown { token: Token, result: Result<u64, Errno> },
    /// These are the branches there are now.
    Branches(Vec<BranchInfo>),
    /// A device of the kernel's ublk driver is to be served.
    AttachUblk { new: NewUblk, answer: mpsc::Sender<Result<String, AdminError>> },
    /// Requests of a device are to fail.
    BreakUblk { index: u32, answer: mpsc::Sender<Result<String, AdminError>> },
    /// A picture of the replica.
    Status { answer: mpsc::Sender<VolumeStatus> },
}

/// How the reactor's thread ended, once it did.
#[derive(Default)]
pub(crate) struct Exit {
    result: Mutex<Option<Result<(), VolumeFault>>>,
    changed: Condvar,
}

impl Exit {
    /// Stores how it ended; the first word counts.
    pub(crate) fn set(&self, result: Result<(), VolumeFault>) {
        self.lock().get_or_insert(result);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Result<(), VolumeFault>>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running volume. Clones are the same volume; dropping the last does not stop it.
#[derive(Clone)]
pub struct VolumeHandle {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    branches: Branches,
    requests: Mutex<mpsc::Sender<Request>>,
    wake: OwnedFd,
    exit: Arc<Exit>,
}

impl std::fmt::Debug for VolumeHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeHandle").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl VolumeHandle {
    /// How long [`Self::status`] waits for the reactor.
    const STATUS_DEADLINE: Duration = Duration::from_secs(5);

    pub(crate) fn new(
        name: String,
        requests: mpsc::Sender<Request>,
        wake: OwnedFd,
        exit: Arc<Exit>,
        branches: Branches,
    ) -> Self {
        Self { shared: Arc::new(Shared { name, branches, requests: Mutex::new(requests), wake, exit }) }
    }

    /// What was kept of forks that this replica lost.
    #[must_use]
    pub fn branches(&self) -> &Branches {
        &self.shared.branches
    }

    /// Lets the reactor know which branches there are now.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn relist_branches(&self) -> std::io::Result<()> {
        let branches = self.branches().list()?;
        // A volume that has stopped offers none.
        let _ = self.send(Request::Branches(branches));
        Ok(())
    }

    /// Tells the reactor that a branch is kept, or why not.
    pub(crate) fn branch_kept(&self, token: Token, result: Result<(), String>) {
        // Nobody waits for it in a volume that has stopped.
        let _ = self.send(Request::BranchKept { token, result });
    }

    /// Tells the reactor how many bytes the backing disk holds.
    pub(crate) fn disk_grown(&self, token: Token, result: Result<u64, Errno>) {
        // Nobody waits for it in a volume that has stopped.
        let _ = self.send(Request::DiskGrown { token, result });
    }

    /// The volume's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Asks the replica for something and waits for its word, at most until `deadline` has passed. Blocks.
    ///
    /// # Errors
    /// What the replica says, or that there was no answer.
    pub fn admin(&self, action: AdminAction, deadline: Duration) -> Result<String, VolumeError> {
        self.ask(|answer| Request::Admin { action, answer }, deadline)
    }

    /// Has the replica take in another one.
    ///
    /// # Errors
    /// What the replica says, or that there was no answer.
    pub fn add_replica(
        &self,
        address: PeerAddress,
        config: PeerConfig,
        deadline: Duration,
    ) -> Result<String, VolumeError> {
        self.ask(|answer| Request::AddReplica { address, config, answer }, deadline)
    }

    /// Has the replica let another one go for good.
    ///
    /// # Errors
    /// What the replica says, or that there was no answer.
    pub fn remove_replica(&self, node: NodeId, deadline: Duration) -> Result<String, VolumeError> {
        self.ask(|answer| Request::RemoveReplica { node, answer }, deadline)
    }

    /// Takes over the cluster's keys as `options` have them. Links that were proven with one that is accepted no more are
    /// ended, and begin anew.
    ///
    /// # Errors
    /// If the system gives no random numbers, or there was no answer.
    pub fn rekey(&self, options: &VolumeOptions, deadline: Duration) -> Result<String, VolumeError> {
        let keyring = Keyring::new(options)
            .map_err(|error| VolumeError::Refused(AdminError::Refused(error.to_string())))?;
        self.ask(|answer| Request::Rekey { keyring: Box::new(keyring), answer }, deadline)
    }

    /// Begins to serve a device of the kernel's ublk driver, which was made with so many tags and belongs to an
    /// export generation. Blocks for at most one turn of the reactor.
    ///
    /// # Errors
    /// If the volume is not served in that generation, or the device cannot be opened.
    pub fn attach_ublk(&self, index: u32, generation: u64, tags: u16) -> Result<String, VolumeError> {
        let refused = |reason: String| VolumeError::Refused(AdminError::Device(reason));
        let file = ublk::open_device(index, tags).map_err(refused)?;
        let new = NewUblk { index, generation, tags, file };
        self.ask(|answer| Request::AttachUblk { new, answer }, Self::STATUS_DEADLINE)
    }

    /// Has all requests of a ublk device fail, so that it can be stopped.
    ///
    /// # Errors
    /// If the volume does not serve it.
    pub fn break_ublk(&self, index: u32) -> Result<String, VolumeError> {
        self.ask(|answer| Request::BreakUblk { index, answer }, Self::STATUS_DEADLINE)
    }

    fn ask(
        &self,
        request: impl FnOnce(mpsc::Sender<Result<String, AdminError>>) -> Request,
        deadline: Duration,
    ) -> Result<String, VolumeError> {
        let (answer, answers) = mpsc::channel();
        self.send(request(answer))?;
        match answers.recv_timeout(deadline) {
            Ok(result) => Ok(result?),
            Err(RecvTimeoutError::Timeout) => Err(VolumeError::Deadline(deadline.as_millis())),
            Err(RecvTimeoutError::Disconnected) => Err(VolumeError::Stopped),
        }
    }

    /// A picture of the replica at this moment. Blocks for at most one turn of the reactor.
    ///
    /// # Errors
    /// If the volume has stopped, or its thread hangs.
    pub fn status(&self) -> Result<VolumeStatus, VolumeError> {
        let (answer, answers) = mpsc::channel();
        self.send(Request::Status { answer })?;
        match answers.recv_timeout(Self::STATUS_DEADLINE) {
            Ok(status) => Ok(status),
            Err(RecvTimeoutError::Timeout) => Err(VolumeError::Deadline(Self::STATUS_DEADLINE.as_millis())),
            Err(RecvTimeoutError::Disconnected) => Err(VolumeError::Stopped),
        }
    }

    /// Asks the volume to stop in order and does not wait: see [`Self::wait`].
    pub fn stop(&self) {
        let (answer, _) = mpsc::channel();
        // Already stopped is as good.
        let _ = self.send(Request::Admin { action: AdminAction::Stop, answer });
    }

    /// Waits until the volume's thread has ended and says how.
    ///
    /// # Errors
    /// If it did not end in order.
    pub fn wait(&self) -> Result<(), VolumeFault> {
        let exit = &self.shared.exit;
        let mut result = exit.lock();
        loop {
            match &*result {
                Some(ended) => return ended.clone(),
                None => result = exit.changed.wait(result).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// How the volume's thread ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<Result<(), VolumeFault>> {
        self.shared.exit.lock().clone()
    }

    fn send(&self, request: Request) -> Result<(), VolumeError> {
        let requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.send(request).map_err(|_| VolumeError::Stopped)?;
        // An eventfd counts; it cannot be full of wake-ups that nobody has taken.
        rustix::io::write(&self.shared.wake, &1u64.to_le_bytes()).map_err(|_| VolumeError::Stopped)?;
        Ok(())
    }
}
