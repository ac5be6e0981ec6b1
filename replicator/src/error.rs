//! Why a replica cannot be created, opened or asked, by blame: the configuration, what lies on the disks, the
//! system. Each message says what is wrong and, where there is one, the cure. Errors of the running data path
//! are not here: those close one connection and go to the log.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use replicator_core::command::AdminError;
use replicator_core::disk::layout::LayoutError;
use replicator_core::disk::superblock::{DiskState, SuperblockError};
use replicator_core::frame::FrameError;
use replicator_core::recovery::RecoverError;
use thiserror::Error;

use crate::identity::CertificateError;

/// What a device is there for; only for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It holds the volume's blocks.
    Disk,
    /// It holds the superblock and the ring.
    Journal,
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Journal => "journal",
        })
    }
}

/// Why a disk or a journal cannot be opened.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// It is not there.
    #[error("{purpose} {path} does not exist")]
    Missing {
        /// What it is there for.
        purpose: Purpose,
        /// Where.
        path: PathBuf,
    },
    /// Somebody else holds it.
    #[error("{purpose} {path} is in use by another process{holder}")]
    InUse {
        /// What it is there for.
        purpose: Purpose,
        /// Where.
        path: PathBuf,
        /// Who, as far as that can be told; begins with a space.
        holder: String,
        /// Whether that process has ended, or nobody knows who it is: the lock may be free in a moment.
        is_dying: bool,
    },
    /// It is neither a file nor a block device.
    #[error("{purpose} {path} is neither a regular file nor a block device")]
    Kind {
        /// What it is there for.
        purpose: Purpose,
        /// Where.
        path: PathBuf,
    },
    /// `direct-io = "on"` cannot be had.
    #[error(
        "{purpose} {path} cannot be opened for direct I/O: {reason}; use direct-io = \"auto\" or \"off\""
    )]
    NoDirectIo {
        /// What it is there for.
        purpose: Purpose,
        /// Where.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The system refused something.
    #[error("{purpose} {path}: cannot {action}: {source}")]
    System {
        /// What it is there for.
        purpose: Purpose,
        /// Where.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why disk, journal and configuration do not go together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The journal is of another volume.
    #[error("the journal belongs to another volume ({found:032x}, the configuration says {configured:032x})")]
    Volume {
        /// What the journal says.
        found: u128,
        /// What the configuration says.
        configured: u128,
    },
    /// The journal is of another incarnation of the cluster.
    #[error("the journal belongs to incarnation {found} of the cluster, the configuration says {configured}")]
    Incarnation {
        /// What the journal says.
        found: u64,
        /// What the configuration says.
        configured: u64,
    },
    /// The journal is of another node.
    #[error("the journal belongs to node {found}, this is node {configured}; was the disk moved or copied?")]
    Node {
        /// What the journal says.
        found: String,
        /// What the configuration says.
        configured: String,
    },
    /// The disk is not the one the journal was written for.
    #[error(
        "this disk is not the one this journal belongs to (inode {found}, the journal says {recorded}); \
         if it was copied or restored, create the replica anew"
    )]
    Disk {
        /// What the disk is.
        found: u64,
        /// What the journal says.
        recorded: u64,
    },
    /// Disk and journal are one file.
    #[error("disk and journal are the same")]
    Same,
    /// The disk is too small.
    #[error("the disk has {found_bytes} bytes, the volume needs {volume_bytes}")]
    DiskSmall {
        /// What it has.
        found_bytes: u64,
        /// What it needs.
        volume_bytes: u64,
    },
    /// The journal was cut.
    #[error("the journal has {found_bytes} bytes, it had {recorded_bytes} when it was created")]
    JournalShort {
        /// What it has.
        found_bytes: u64,
        /// What it had.
        recorded_bytes: u64,
    },
    /// The configured block size is another one.
    #[error("the volume has blocks of {recorded_bytes} bytes, the configuration says {configured_bytes}")]
    Block {
        /// What the journal says.
        recorded_bytes: u32,
        /// What the configuration says.
        configured_bytes: u32,
    },
}

/// Why the ring cannot be set up.
#[derive(Debug, Error)]
pub enum RingError {
    /// The kernel has no io_uring, or forbids it.
    #[error("io_uring cannot be set up ({source}): Linux 6.1 or later is needed, and {}", cure(.source))]
    Setup {
        /// What the system said.
        source: io::Error,
    },
    /// The kernel lacks something.
    #[error("this kernel's io_uring lacks {missing}: Linux 6.1 or later is needed")]
    TooOld {
        /// The names of what is missing.
        missing: String,
    },
    /// Files or buffers cannot be registered.
    #[error("io_uring cannot register {what}: {source}")]
    Register {
        /// What.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn cure(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => "the sysctl kernel.io_uring_disabled or a seccomp filter forbids it here",
        Some(libc::ENOMEM) => "more locked memory must be allowed (LimitMEMLOCK=, ulimit -l)",
        _ => "a kernel built with CONFIG_IO_URING",
    }
}

/// Why a replica does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no replica in the journal.
    #[error(
        "{path} holds no replica ({error}). A new one is made with `holdfast create`; if there was one here, its journal \
         was overwritten: put the journal back, or, while another node has the data, make it anew and it is brought level"
    )]
    NoReplica {
        /// The journal.
        path: PathBuf,
        /// What is wrong with its superblock.
        error: SuperblockError,
    },
    /// The journal was moved.
    #[error(
        "{path}: this journal was moved to {}: write that as `journal` into the configuration; if the move was cut off, call \
         `holdfast move-journal` again with the same words", .to.display()
    )]
    Moved {
        /// Where it was.
        path: PathBuf,
        /// Where it is.
        to: PathBuf,
    },
    /// Disk, journal and configuration do not go together.
    #[error("volume {volume}, {path}: {error}")]
    Identity {
        /// Which volume.
        volume: String,
        /// The device at fault.
        path: PathBuf,
        /// What is wrong.
        error: IdentityError,
    },
    /// It cannot prove who it is.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Sizes do not go together.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The journal cannot be believed.
    #[error("{path}: the journal cannot be recovered: {error}")]
    Recover {
        /// The journal.
        path: PathBuf,
        /// Why not.
        error: RecoverError,
    },
    /// An address cannot be listened on.
    #[error("cannot listen for {what} on {address}: {source}")]
    Listen {
        /// For whom.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A unix socket cannot be listened on.
    #[error("cannot listen for NBD clients on {path}: {reason}")]
    ListenUnix {
        /// Where.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The ring cannot be set up.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Memory cannot be had.
    #[error("cannot map {bytes} bytes of memory: {source}")]
    Memory {
        /// How much.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// An option that the NBD protocol cannot carry.
    #[error("volume {volume} cannot be exported: {reason}")]
    Export {
        /// Which volume.
        volume: String,
        /// Why not.
        reason: String,
    },
    /// The system refused something.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a replica is not created. Nothing was overwritten, unless it is a `System` error on the way.
#[derive(Debug, Error)]
pub enum CreateError {
    /// A device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is a replica already.
    #[error("{path}: this journal already holds volume {volume:032x} of node {node}; --force overwrites it")]
    Replica {
        /// The journal.
        path: PathBuf,
        /// What it holds.
        volume: u128,
        /// The name of the node whose copy it is.
        node: String,
    },
    /// There are bytes that may be somebody's.
    #[error(
        "{purpose} {path} is not empty; a new replica begins with zeros, --force overwrites what is there"
    )]
    NotEmpty {
        /// What it would be there for.
        purpose: Purpose,
        /// Where.
        path: PathBuf,
    },
    /// The disk was said to be zeros, and is not.
    #[error(
        "disk {path} is not zeros: byte {offset} is something else; without --zeroed all of it is zeroed"
    )]
    NotZeros {
        /// Where.
        path: PathBuf,
        /// The first byte.
        offset: u64,
    },
    /// What is kept has no checksums.
    #[error(
        "this volume's replicas keep checksums, and of what lies on the disk none are known: create this replica without \
         --seeded or --adopt, or with checksums = \"off\""
    )]
    KeptSums,
    /// What is adopted is of another size.
    #[error(
        "the replica in {path} has {found_bytes} bytes, and the configuration says {volume_bytes}: write the size that it has \
         into the configuration of all nodes"
    )]
    AdoptSize {
        /// The journal.
        path: PathBuf,
        /// What the replica has.
        found_bytes: u64,
        /// What the configuration says.
        volume_bytes: u64,
    },
    /// What is adopted goes on by itself.
    #[error(
        "the replica in {path} applies late, and is not frozen: what it shows is whatever was old enough when it stopped; \
         start its replicator, and choose with `holdfast freeze-apply --at`"
    )]
    AdoptUnfrozen {
        /// The journal.
        path: PathBuf,
    },
    /// What is adopted is not whole.
    #[error(
        "the replica in {path} is {state} or suspect: its disk is a mix of moments; adopt another one, or let it be \
         brought level first"
    )]
    AdoptIncomplete {
        /// The journal.
        path: PathBuf,
        /// Of the replica.
        state: DiskState,
    },
    /// What is adopted may show more than one moment.
    #[error(
        "the replica in {path} was not stopped in order: its disk may show half of what it was applying; start its \
         replicator, and stop it with a signal (`systemctl stop`), then try again"
    )]
    AdoptUnclean {
        /// The journal.
        path: PathBuf,
    },
    /// The disk is too small.
    #[error("disk {path} has {found_bytes} bytes, the volume needs {volume_bytes}")]
    DiskSmall {
        /// Where.
        path: PathBuf,
        /// What it has.
        found_bytes: u64,
        /// What it needs.
        volume_bytes: u64,
    },
    /// Disk and journal are one file.
    #[error("disk and journal are the same: {path}")]
    Same {
        /// Where.
        path: PathBuf,
    },
    /// The block size is none of those possible, or the size is no multiple of it.
    #[error(
        "volume size {size_bytes} with blocks of {block_bytes}: blocks are 512 or 4096, the size a multiple"
    )]
    Block {
        /// The size asked for.
        size_bytes: u64,
        /// The block size asked for.
        block_bytes: u32,
    },
    /// Sizes do not go together.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The system refused something.
    #[error("{path}: cannot {action}: {source}")]
    System {
        /// Where.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a journal is not moved. The replica is where it was, unless it is a `System` error on the way: then it is moved by
/// the same call again.
#[derive(Debug, Error)]
pub enum MoveError {
    /// A device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The path of the new place is no text, or too long.
    #[error("{path}: the path of a journal is text of at most {limit} bytes")]
    Path {
        /// Which.
        path: PathBuf,
        /// How long it may be.
        limit: usize,
    },
    /// There is no replica in the journal.
    #[error("{path} holds no replica ({error}): there is nothing to move")]
    NoReplica {
        /// The journal.
        path: PathBuf,
        /// What is wrong with its superblock.
        error: SuperblockError,
    },
    /// It is another replica's.
    #[error("{path} is not the journal of volume {volume} on node {node}: see `holdfast inspect`")]
    Other {
        /// The journal.
        path: PathBuf,
        /// Which volume was meant.
        volume: String,
        /// Which node.
        node: String,
    },
    /// It is on its way to another place.
    #[error("{path} is being moved to {}, and that was cut off: name that place again", .to.display())]
    Elsewhere {
        /// The journal.
        path: PathBuf,
        /// Where it goes.
        to: PathBuf,
    },
    /// It is moved already.
    #[error("{path} was moved to {} already: write that as `journal` into the configuration", .to.display())]
    Over {
        /// Where it was.
        path: PathBuf,
        /// Where it is.
        to: PathBuf,
    },
    /// The new place is too small.
    #[error("{path} has {found_bytes} bytes, the journal has {journal_bytes}")]
    Small {
        /// Where.
        path: PathBuf,
        /// What it has.
        found_bytes: u64,
        /// What is needed.
        journal_bytes: u64,
    },
    /// There are bytes that may be somebody's.
    #[error("{path} is not empty; --force overwrites what is there")]
    NotEmpty {
        /// Where.
        path: PathBuf,
    },
    /// The system refused something.
    #[error("{path}: cannot {action}: {source}")]
    System {
        /// Where.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a replica at rest cannot be read.
#[derive(Debug, Error)]
pub enum InspectError {
    /// It cannot be opened or read.
    #[error("{path}: cannot {action}: {source}")]
    System {
        /// Where.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why it cannot be told what a replica at rest holds.
#[derive(Debug, Error)]
pub enum ContentError {
    /// It cannot be opened or read.
    #[error("{path}: cannot {action}: {source}")]
    System {
        /// Where.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A process has it.
    #[error(
        "{path} is in use by another process: stop the replicator first, or read the volume where it is served"
    )]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// There is no replica.
    #[error("{path} holds no replica: {error}")]
    NoReplica {
        /// Where.
        path: PathBuf,
        /// What is wrong with what lies there.
        error: SuperblockError,
    },
    /// The journal cannot be believed.
    #[error("{path}: {error}")]
    Recover {
        /// Where.
        path: PathBuf,
        /// Why.
        error: RecoverError,
    },
    /// It was found sound, and then it was not.
    #[error("{path} was changed while it was read: {error}")]
    Changed {
        /// Where.
        path: PathBuf,
        /// What is wrong with it now.
        error: FrameError,
    },
}

/// Why a running volume did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VolumeError {
    /// The replica says no.
    #[error(transparent)]
    Refused(#[from] AdminError),
    /// There was no answer in time; it may still be done.
    #[error("no answer within {0} ms; what was asked may still be done")]
    Deadline(u128),
    /// The volume has stopped.
    #[error("the volume has stopped")]
    Stopped,
}

/// How a volume's thread ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VolumeFault {
    /// A bug.
    #[error("the volume's thread panicked")]
    Panicked,
    /// The ring failed.
    #[error("the volume's ring failed: {0}")]
    Ring(String),
}
