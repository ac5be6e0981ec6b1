//! Who uses a file system: processes that have files of it open or mapped, run from it, or work in it, in whatever mount
//! namespace they live; and namespaces that have it mounted still.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use rustix::process::{Pid, Signal, kill_process};

use super::mounts::{self, Device, Number};

/// Names of them that a message has room for.
const SHOWN_MAX: usize = 5;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pid: Pid,
    name: String,
    /// What it does with it.
    what: &'static str,
}

impl Holder {
    fn new(pid: Pid, what: &'static str) -> Self {
        let name = fs::read_to_string(folder(pid).join("comm")).unwrap_or_default();
        Self { pid, name: name.trim().to_owned(), what }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {}, {})", self.name, self.pid.as_raw_nonzero(), self.what)
    }
}

/// The processes, as a list for people.
pub(super) fn listed(holders: &[Holder]) -> String {
    let shown: Vec<String> = holders.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    match holders.len().saturating_sub(SHOWN_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Those that use the file system whose files are on `number`.
pub(super) fn of(number: Number) -> Vec<Holder> {
    processes().filter_map(|pid| Some(Holder::new(pid, use_of(pid, number)?))).collect()
}

/// Of each namespace that has `device` mounted one process that lives in it.
pub(super) fn namespaces_with(device: &Device) -> Vec<Holder> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for pid in processes() {
        let folder = folder(pid);
        let Ok(space) = fs::read_link(folder.join("ns/mnt")) else { continue };
        if !seen.insert(space) {
            continue;
        }
        let text = fs::read(folder.join("mountinfo")).unwrap_or_default();
        if mounts::parse(&text).iter().any(|mount| device.is_mounted_as(mount)) {
            found.push(Holder::new(pid, "has it mounted in a namespace"));
        }
    }
    found
}

/// Sends them a signal: all but this process and the first one.
pub(super) fn signal(holders: &[Holder], signal: Signal) {
    let own = rustix::process::getpid();
    for holder in holders.iter().filter(|holder| holder.pid != own && holder.pid != Pid::INIT) {
        // One that has ended meanwhile is what is wanted.
        let _ = kill_process(holder.pid, signal);
    }
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

fn folder(pid: Pid) -> PathBuf {
    Path::new("/proc").join(pid.as_raw_nonzero().to_string())
}

/// What a process does with the file system, if anything.
fn use_of(pid: Pid, number: Number) -> Option<&'static str> {
    let folder = folder(pid);
    // The links are followed to what is open already: no disk is asked.
    let is_on = |path: &Path| {
        fs::metadata(path).is_ok_and(|found| (major(found.dev()), minor(found.dev())) == number)
    };
    for (link, what) in [("cwd", "works in it"), ("root", "has it for its root"), ("exe", "runs from it")] {
        if is_on(&folder.join(link)) {
            return Some(what);
        }
    }
    let files = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    if files.into_iter().any(|file| is_on(&file.path())) {
        return Some("has files open");
    }
    let maps = fs::read_to_string(folder.join("maps")).unwrap_or_default();
    let place = format!("{:02x}:{:02x}", number.0, number.1);
    let is_mapped = maps.lines().any(|line| line.split_whitespace().nth(3) == Some(place.as_str()));
    is_mapped.then_some("has files mapped")
}
