//! A control group for all that a step starts. A process group is left by whoever makes a session of its own, as daemons do;
//! a control group is left by nobody. So what does not stop when it is told can be ended with everything it has become.
//!
//! It needs cgroup v2, and a group of this process in which it may make others; without them the process group is all
//! there is. Which one it is stands in a file, so that it is found again after a restart from elsewhere.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked whether all have ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Puts itself into the group `$0` before it becomes the program: so not even its first child is outside.
const INTO: &str = r#"{ echo 0 >"$0/cgroup.procs"; } 2>/dev/null; exec "$@""#;

/// The control group of a step.
#[derive(Debug)]
pub(super) struct Cage {
    name: String,
    /// Says where it is.
    file: PathBuf,
}

impl Cage {
    /// For the step whose state is at `state`.
    pub(super) fn of(stack: &str, step: &str, state: &Path) -> Self {
        // Of several clusters on a machine each has its own.
        let name = format!("holdfast.{stack}.{step}.{}", std::process::id());
        let mut file = state.as_os_str().to_owned();
        file.push(".group");
        Self { name, file: file.into() }
    }

    /// A command that runs `program` in the group.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(folder) = self.folder().or_else(|| self.make().ok()) else { return Command::new(program) };
        let mut command = Command::new("sh");
        command.args(["-c", INTO]).arg(folder).arg(program);
        command
    }

    /// Where the group is, if it exists.
    fn folder(&self) -> Option<PathBuf> {
        let folder = PathBuf::from(fs::read_to_string(&self.file).ok()?);
        folder.join("cgroup.procs").exists().then_some(folder)
    }

    fn make(&self) -> io::Result<PathBuf> {
        let folder = own().ok_or(io::ErrorKind::NotFound)?.join(&self.name);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if let Some(parent) = self.file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&self.file, folder.as_os_str().as_encoded_bytes())?;
        Ok(folder)
    }

    /// Kills all that is in it, and waits until they have ended. Says whether they have.
    pub(super) fn clear(&self, within: Duration, is_broken_off: &AtomicBool) -> bool {
        let deadline = Instant::now() + within;
        let Some(folder) = self.folder() else { return true };
        while is_populated(&folder) {
            if Instant::now() >= deadline || is_broken_off.load(Ordering::Relaxed) {
                return false;
            }
            // Again: one that was put in meanwhile.
            let _ = fs::write(folder.join("cgroup.kill"), "1");
            std::thread::sleep(LOOK_INTERVAL);
        }
        // One that has groups of its own left in it stays, and does no harm.
        let _ = fs::remove_dir(&folder);
        true
    }
}

/// Whether anything lives in a group or below it.
fn is_populated(folder: &Path) -> bool {
    let events = fs::read_to_string(folder.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// The group of this process, where cgroup v2 is mounted.
pub(super) fn own() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = Path::new(own).strip_prefix(root).unwrap_or(Path::new(own));
    Some(Path::new(point).join(below.strip_prefix("/").unwrap_or(below)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::Stdio;

    use super::*;

    /// Whether this process may make groups.
    pub(crate) fn are_possible() -> bool {
        let probe = own().map(|own| own.join(format!("holdfast.probe.{}", std::process::id())));
        let is_made =
            probe.is_some_and(|probe| fs::create_dir(&probe).is_ok() && fs::remove_dir(probe).is_ok());
        if !is_made {
            eprintln!("not tested: control groups need cgroup v2 and the right to make some");
        }
        is_made
    }

    #[test]
    fn nothing_that_a_step_starts_gets_out_of_it() {
        if !are_possible() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let cage = Cage::of("db", "app", &folder.path().join("db.app"));
        let never = AtomicBool::new(false);
        assert!(cage.clear(Duration::ZERO, &never), "there is nothing yet");
        let pid = folder.path().join("pid");
        let script =
            format!("setsid sh -c 'trap \"\" TERM; echo $$ > {}; sleep 600; sleep 600' &", pid.display());
        let status = cage.command("sh").args(["-c", &script]).stdout(Stdio::null()).status().unwrap();
        assert!(status.success());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')) {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        let process = PathBuf::from("/proc").join(fs::read_to_string(&pid).unwrap().trim());
        assert!(process.exists(), "it has left its process group and lives");
        // As after a restart.
        let again = Cage::of("db", "app", &folder.path().join("db.app"));
        assert!(again.clear(Duration::from_secs(30), &never));
        // One that is dead and not collected by init has no command line.
        assert!(fs::read(process.join("cmdline")).is_ok_and(|line| line.is_empty()) || !process.exists());
        assert!(again.folder().is_none());
    }
}
