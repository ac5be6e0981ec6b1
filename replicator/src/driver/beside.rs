//! What goes on beside the reactor, on threads of its own: keeping a branch, letting clients read one, and enlarging the
//! disk. The reactor hands it over and hears of it when it is done.

use std::os::fd::{AsFd, OwnedFd};

use replicator_core::command::BranchPlan;
use replicator_core::event::Errno;
use replicator_core::units::Token;

use super::handle::VolumeHandle;
use crate::branch::serve::{Reader, Readers};
use crate::branch::{BranchInfo, Branches};
use crate::{clock, device};

/// Branches, and who reads them.
pub(crate) struct Beside {
    branches: Branches,
    readers: Readers,
    handle: VolumeHandle,
}

impl Beside {
    pub(crate) fn new(branches: Branches, handle: VolumeHandle) -> Self {
        Self { branches, readers: Readers::default(), handle }
    }

    /// The branches there are, as far as they can be listed.
    pub(crate) fn list(&self) -> Vec<BranchInfo> {
        self.branches.list().unwrap_or_default()
    }

    /// Keeps a branch of what `disk` holds.
    pub(crate) fn keep(&self, token: Token, plan: Box<BranchPlan>, volume_bytes: u64, disk: OwnedFd) {
        let (branches, handle, failed) = (self.branches.clone(), self.handle.clone(), self.handle.clone());
        let body = move || {
            let kept = branches.keep(&plan, volume_bytes, clock::wall_ms(), disk.as_fd());
            // Its name is listed before the replica goes on.
            let kept = kept.and_then(|()| handle.relist_branches());
            handle.branch_kept(token, kept.map_err(|error| error.to_string()));
        };
        if let Err(error) = std::thread::Builder::new().name("hf-keep".to_owned()).spawn(body) {
            failed.branch_kept(token, Err(error.to_string()));
        }
    }

    /// Has `disk` hold `bytes`, where it is a file that holds fewer.
    pub(crate) fn grow(&self, token: Token, bytes: u64, disk: OwnedFd) {
        let (handle, failed) = (self.handle.clone(), self.handle.clone());
        let body = move || handle.disk_grown(token, device::grow(disk.as_fd(), bytes));
        if let Err(error) = std::thread::Builder::new().name("hf-grow".to_owned()).spawn(body) {
            failed.disk_grown(token, Err(Errno(error.raw_os_error().unwrap_or(libc::EAGAIN))));
        }
    }

    /// Lets a client read a branch.
    pub(crate) fn serve(&self, reader: Reader, name: &str) -> std::io::Result<()> {
        self.readers.serve(reader, &self.branches, name)
    }
}
