//! The `filesystem` step: checked, mounted, looked at and unmounted, by the system's own fsck(8) and mount(8). Whoever uses
//! it when it is to go is named, and ended if the configuration says so. It is never unmounted lazily: such a file system
//! is out of sight and still writes. What is mounted is the kernel's word, nothing of it is remembered here.

mod holders;
mod mounts;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use orchestrator_core::stack::{Action, Outcome};
use replicator::config::{FileSystemStep, Fsck, Holders};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use super::command::why;
use super::{Executor, Task};
use crate::process::{End, Leaves, call};
use mounts::{Device, Mount};

/// How often it is tried again to unmount what is in use.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes read of the device to see whether it answers; also what their place in memory is a multiple of.
const LOOK_BYTES: usize = 4096;
/// What a check of a file system ends with if all is well: nothing to repair, or repaired.
const FSCK_WELL: [i32; 2] = [0, 1];
/// The bit for damage that was left as it is.
const FSCK_LEFT: i32 = 4;

/// A file system.
#[derive(Debug)]
pub(super) struct FileSystem {
    step: FileSystemStep,
    /// A look that has not come back: another one would wait beside it.
    pending: Mutex<Option<Receiver<io::Result<()>>>>,
}

impl FileSystem {
    pub(super) fn new(step: FileSystemStep) -> Self {
        Self { step, pending: Mutex::new(None) }
    }

    /// The mount point without links, as the kernel calls it.
    fn point(&self) -> PathBuf {
        fs::canonicalize(&self.step.mount).unwrap_or_else(|_| self.step.mount.clone())
    }

    fn is_asked_read_only(&self) -> bool {
        self.step.options.split(',').any(|option| option == "ro")
    }

    /// What is mounted at the mount point, what is on top last, and whether each is this step's: it is on its device, or on
    /// one that is dead, as after a device was taken away by force.
    fn at_point(&self, device: Option<&Device>) -> io::Result<Vec<(Mount, bool)>> {
        let point = self.point();
        let here = mounts::list()?.into_iter().filter(|mount| mount.point == point);
        let is_own = |mount: &Mount| match device {
            Some(device) => device.is_mounted_as(mount) || mounts::is_dead(mount),
            None => mount.number.0 != 0 || mounts::is_dead(mount),
        };
        Ok(here.map(|mount| (is_own(&mount), mount)).map(|(is_own, mount)| (mount, is_own)).collect())
    }

    fn start(&self, task: &Task<'_>) -> Result<(), Outcome> {
        let deadline = Instant::now() + task.timeout;
        let shown = self.step.device.display();
        let device = Device::at(&self.step.device);
        let device = device.ok_or_else(|| failed(format!("{shown} is no block device")))?;
        let here = self.at_point(Some(&device)).map_err(|error| failed(error.to_string()))?;
        match here.last() {
            Some((mount, false)) => {
                let text =
                    format!("{} is mounted at {} already", mount.source.display(), mount.point.display());
                return Err(Outcome::Refused(text));
            }
            Some((mount, true)) if device.is_mounted_as(mount) && self.is_well(mount, deadline).is_ok() => {
                return Ok(());
            }
            // What an earlier life of the device has left.
            Some((_, true)) => self.unmount(task, false)?,
            None => {}
        }
        if let Some(other) =
            mounts::list().unwrap_or_default().iter().find(|mount| device.is_mounted_as(mount))
        {
            return Err(failed(format!("{shown} is mounted at {} already", other.point.display())));
        }
        if device.is_claimed() {
            return Err(failed(format!("{shown} is in use: {}", self.claimers(&device))));
        }
        self.check(task, deadline)?;
        fs::create_dir_all(&self.step.mount)
            .map_err(|error| failed(format!("{} cannot be made: {error}", self.step.mount.display())))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", &self.step.kind]);
        if !self.step.options.is_empty() {
            mount.args(["-o", &self.step.options]);
        }
        mount.arg("--").arg(&self.step.device).arg(&self.step.mount);
        let answer = run(&mut mount, task, deadline);
        match answer.end {
            End::Exited(0) => Ok(()),
            _ => Err(failed(why(&answer, task.timeout))),
        }
    }

    /// As at boot, before anything is mounted.
    fn check(&self, task: &Task<'_>, deadline: Instant) -> Result<(), Outcome> {
        let options: &[&str] = match self.step.fsck {
            Fsck::Never => return Ok(()),
            Fsck::Preen => &["-p"],
            Fsck::Force => &["-f", "-p"],
        };
        let mut fsck = Command::new("fsck");
        fsck.arg("-T");
        if self.step.kind != "auto" {
            fsck.args(["-t", &self.step.kind]);
        }
        fsck.arg(&self.step.device).args(options);
        let answer = run(&mut fsck, task, deadline);
        match answer.end {
            End::Exited(code) if FSCK_WELL.contains(&code) => Ok(()),
            End::Exited(code) if code & FSCK_LEFT != 0 => {
                let device = self.step.device.display();
                let said = why(&answer, task.timeout);
                Err(Outcome::Refused(format!(
                    "the file system is damaged; run fsck {device} yourself: {said}"
                )))
            }
            _ => Err(failed(format!("fsck: {}", why(&answer, task.timeout)))),
        }
    }

    /// Whether what is mounted can be read, and written if it is to be.
    fn is_well(&self, mount: &Mount, deadline: Instant) -> Result<(), Outcome> {
        if mounts::is_dead(mount) {
            return Err(failed(format!("{} is mounted, and its device is gone", mount.source.display())));
        }
        if mount.is_read_only && !self.is_asked_read_only() {
            let text = "it can only be read now: the kernel has found damage, or somebody has remounted it; see dmesg";
            return Err(failed(text.to_owned()));
        }
        self.read_within(mount, deadline)
    }

    /// Reads the device, past the page cache, and the root of the file system.
    fn read_within(&self, mount: &Mount, deadline: Instant) -> Result<(), Outcome> {
        let mut pending = self.pending();
        let look = pending.take().unwrap_or_else(|| {
            let (sender, receiver) = mpsc::channel();
            let (device, point) = (self.step.device.clone(), mount.point.clone());
            // It may never come back, and then keeps nobody but itself waiting. Nobody may be left to be told.
            std::thread::spawn(move || sender.send(read(&device, &point)));
            receiver
        });
        match look.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(format!("it cannot be read: {error}"))),
            Err(_) => {
                *pending = Some(look);
                Err(failed("a read does not come back".to_owned()))
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, Option<Receiver<io::Result<()>>>> {
        self.pending.lock().expect("nobody panics with a look in hand")
    }

    fn look(&self, task: &Task<'_>) -> Outcome {
        let device = Device::at(&self.step.device);
        let here = match self.at_point(device.as_ref()) {
            Ok(here) => here,
            Err(error) => return failed(error.to_string()),
        };
        match (here.last(), task.action) {
            (Some((_, true)), Action::Probe) => Outcome::Done,
            (Some((mount, true)), _) => match &device {
                Some(_) => {
                    let deadline = Instant::now() + task.timeout;
                    self.is_well(mount, deadline).err().unwrap_or(Outcome::Done)
                }
                None => failed(format!("{} is gone", self.step.device.display())),
            },
            // What somebody has put on top hides it, and does not end it.
            _ if here.iter().any(|(_, is_own)| *is_own) => {
                failed("something else is mounted over it".to_owned())
            }
            _ => Outcome::NotRunning,
        }
    }

    /// Unmounts all that is this step's at the mount point, and sees to it that nobody has it mounted elsewhere.
    fn unmount(&self, task: &Task<'_>, by_force: bool) -> Result<(), Outcome> {
        let began = Instant::now();
        let is_late = || began.elapsed() >= task.timeout || task.is_broken_off.load(Ordering::Relaxed);
        let device = Device::at(&self.step.device);
        loop {
            let here = self.at_point(device.as_ref()).map_err(|error| failed(error.to_string()))?;
            let mount = match here.last() {
                Some((mount, true)) => mount,
                Some((mount, false)) if here.iter().any(|(_, is_own)| *is_own) => {
                    return Err(failed(format!("{} is mounted over it", mount.source.display())));
                }
                _ => break,
            };
            match unmount(&mount.point, UnmountFlags::NOFOLLOW) {
                // It was unmounted by somebody else.
                Ok(()) | Err(Errno::INVAL) => continue,
                Err(Errno::BUSY) => {}
                Err(error) => return Err(failed(format!("umount: {error}"))),
            }
            let holders = holders::of(mount.number);
            if is_late() {
                return Err(failed(self.busy(mount, &holders)));
            }
            if self.step.holders == Holders::Kill {
                let is_half_over = by_force || began.elapsed() >= task.timeout / 2;
                holders::signal(&holders, if is_half_over { Signal::KILL } else { Signal::TERM });
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
        // What a process had open is given up a moment after it ended.
        while let Some(device) = device.as_ref().filter(|device| device.is_claimed()) {
            if is_late() {
                let text = format!("it is unmounted here and still in use: {}", self.claimers(device));
                return Err(failed(text));
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
        Ok(())
    }

    fn busy(&self, mount: &Mount, holders: &[holders::Holder]) -> String {
        let point = mount.point.display();
        if !holders.is_empty() {
            return format!("{point} is in use by {}", holders::listed(holders));
        }
        let below = mounts::list().unwrap_or_default();
        let below =
            below.iter().find(|other| other.point != mount.point && other.point.starts_with(&mount.point));
        match below {
            Some(below) => format!("{point} is in use: {} is mounted below it", below.point.display()),
            None => format!("{point} is in use, by no process: a loop device, a swap file or an NFS export"),
        }
    }

    /// Who has a device that is not mounted at the mount point.
    fn claimers(&self, device: &Device) -> String {
        let here = mounts::list().unwrap_or_default();
        if let Some(other) = here.iter().find(|mount| device.is_mounted_as(mount)) {
            return format!("it is mounted at {}", other.point.display());
        }
        match holders::namespaces_with(device) {
            none if none.is_empty() => {
                "another device stands on it, or it is mounted where nobody can look".to_owned()
            }
            found => holders::listed(&found),
        }
    }
}

fn failed(why: String) -> Outcome {
    Outcome::Failed(why)
}

fn run(command: &mut Command, task: &Task<'_>, deadline: Instant) -> crate::process::Answer {
    command.env("LC_ALL", "C");
    let left = deadline.saturating_duration_since(Instant::now());
    call(command, b"", left, Leaves::Nothing, task.is_broken_off)
}

fn read(device: &Path, point: &Path) -> io::Result<()> {
    let file = open(device, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = vec![0; 2 * LOOK_BYTES];
    let start = buffer.as_ptr().align_offset(LOOK_BYTES);
    let count = rustix::io::pread(&file, &mut buffer[start..start + LOOK_BYTES], 0)?;
    if count < LOOK_BYTES {
        return Err(io::Error::other("the device has ended"));
    }
    fs::read_dir(point)?.next().transpose().map(|_| ())
}

impl Executor for FileSystem {
    fn carry_out(&self, task: &Task<'_>) -> Outcome {
        let done = |result: Result<(), Outcome>| result.err().unwrap_or(Outcome::Done);
        match task.action {
            Action::Start => done(self.start(task)),
            Action::Probe | Action::Monitor => self.look(task),
            Action::Stop => done(self.unmount(task, false)),
            Action::Force => done(self.unmount(task, true)),
            Action::Refresh => Outcome::Done,
        }
    }
}
