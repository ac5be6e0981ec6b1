//! A program that runs as long as its step does. It has a process group of its own, outlives the orchestrator, and is
//! found again by what a file says: boot, process and when that began. Processes of the same number are not taken for it.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// How often it is looked whether it has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    boot: String,
    pid: i32,
    /// Clock ticks since boot, as the kernel says when it began.
    began: u64,
}

/// The program, whether it runs or not.
#[derive(Debug)]
pub(super) struct Supervised {
    file: PathBuf,
    /// If it was started by this process.
    child: Mutex<Option<Child>>,
}

impl Supervised {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, child: Mutex::new(None) }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().expect("nobody panics with the child in hand")
    }

    /// Starts it, unless it runs.
    pub(super) fn start(&self, command: &mut Command) -> io::Result<()> {
        if self.is_running() {
            return Ok(());
        }
        if let Some(folder) = self.file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let child = command.process_group(0).stdin(Stdio::null()).spawn()?;
        let pid = Pid::from_child(&child);
        *self.child() = Some(child);
        let began = began(pid).ok_or_else(|| io::Error::other("it ended at once"))?;
        let stored = Stored { boot: boot(), pid: pid.as_raw_nonzero().get(), began };
        let draft = self.file.with_extension("new");
        std::fs::write(&draft, serde_json::to_vec(&stored)?)?;
        std::fs::rename(&draft, &self.file)
    }

    /// Whether it runs.
    pub(super) fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// Its process group, if it runs.
    fn pid(&self) -> Option<Pid> {
        if let Some(child) = self.child().as_mut() {
            // Collects it if it has ended.
            let _ = child.try_wait();
        }
        let stored: Stored = serde_json::from_slice(&std::fs::read(&self.file).ok()?).ok()?;
        let pid = Pid::from_raw(stored.pid)?;
        (stored.boot == boot() && began(pid) == Some(stored.began)).then_some(pid)
    }

    /// Tells it to end, and waits. Says whether it has.
    pub(super) fn end(&self, signal: Signal, within: Duration, is_broken_off: &AtomicBool) -> bool {
        let deadline = Instant::now() + within;
        let Some(pid) = self.pid() else { return true };
        // One that has ended meanwhile is what is wanted.
        let _ = kill_process_group(pid, signal);
        while self.is_running() {
            if Instant::now() >= deadline || is_broken_off.load(Ordering::Relaxed) {
                return false;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        // What it has left in its group goes with it.
        let _ = kill_process_group(pid, Signal::KILL);
        true
    }
}

fn boot() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// When a process began, if it is one and has not ended.
fn began(pid: Pid) -> Option<u64> {
    let path = Path::new("/proc").join(pid.as_raw_nonzero().to_string()).join("stat");
    let stat = std::fs::read_to_string(path).ok()?;
    // The name is in brackets and may hold anything.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    }

    #[test]
    fn it_is_found_again_by_another_process_and_ends_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("steps/db.app");
        let first = Supervised::new(file.clone());
        assert!(!first.is_running());
        first.start(&mut sleeper()).unwrap();
        let pid = first.pid();
        // As after a restart of the orchestrator.
        let second = Supervised::new(file);
        assert_eq!(second.pid(), pid);
        second.start(&mut sleeper()).unwrap();
        assert_eq!(second.pid(), pid, "it is not started twice");
        assert!(second.end(Signal::TERM, LONG, &AtomicBool::new(false)));
        assert!(!first.is_running());
    }

    #[test]
    fn another_process_of_its_number_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("db.app");
        let supervised = Supervised::new(file.clone());
        let other = Stored { boot: boot(), pid: 1, began: u64::MAX };
        std::fs::write(file, serde_json::to_vec(&other).unwrap()).unwrap();
        assert!(!supervised.is_running());
        assert!(supervised.end(Signal::KILL, LONG, &AtomicBool::new(false)));
    }

    #[test]
    fn one_that_does_not_listen_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let supervised = Supervised::new(folder.path().join("db.app"));
        let ready = folder.path().join("ready");
        let script = format!("trap '' TERM; touch {}; while :; do sleep 0.1; done", ready.display());
        supervised.start(Command::new("sh").args(["-c", &script])).unwrap();
        let deadline = Instant::now() + LONG;
        while !ready.exists() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(!supervised.end(Signal::TERM, Duration::from_millis(200), &AtomicBool::new(false)));
        assert!(supervised.end(Signal::KILL, LONG, &AtomicBool::new(false)));
    }
}
