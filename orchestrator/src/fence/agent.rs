//! One call of a fence agent: options as lines on its standard input, an exit code as the answer. The agent has a process
//! group of its own, so that when its time is over nothing of it is left. What it is told is never shown, and a password
//! is cut out of what it says.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use orchestrator_core::fence::Outcome;
use replicator::config::FenceDevice;

use crate::process::{self, End, Leaves, shown};

/// Bytes that an agent may be told: a pipe takes them at once, whether the agent reads or not.
const INPUT_BYTES_MAX: usize = 16 << 10;
/// Where agents are looked for beside `PATH`, which a service manager may have made short.
const FOLDERS: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// What came of one call.
#[derive(Debug)]
pub(super) struct Answer {
    /// How it ended.
    pub(super) outcome: Outcome,
    /// What it wrote on its standard output.
    pub(super) output: Vec<u8>,
    /// Its last words on standard error, for people.
    pub(super) words: String,
}

/// The program of an agent, if it is installed.
pub(super) fn find(agent: &str) -> Option<PathBuf> {
    if agent.contains('/') {
        return Some(PathBuf::from(agent)).filter(|path| path.is_file());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&paths).chain(FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(agent)).find(|path| path.is_file())
}

/// What a device is told to do something to `target`.
pub(super) fn input(device: &FenceDevice, target: &str, action: &str) -> Vec<u8> {
    let mut input = format!("action={action}\nnodename={target}\n").into_bytes();
    for (key, value) in &device.options {
        input.extend_from_slice(format!("{key}={value}\n").as_bytes());
    }
    if let Some(password) = &device.password {
        input.extend_from_slice(b"password=");
        input.extend_from_slice(&password.0);
        input.push(b'\n');
    }
    input
}

/// Runs `program` with these lines, for no longer than `timeout`. `secret` is not repeated. Whatever it has left running
/// goes with it.
pub(super) fn call(program: &Path, input: &[u8], secret: Option<&[u8]>, timeout: Duration) -> Answer {
    if input.len() > INPUT_BYTES_MAX {
        let why = format!("its options have {} bytes, {INPUT_BYTES_MAX} is the most", input.len());
        return Answer { outcome: Outcome::Failed(why), output: Vec::new(), words: String::new() };
    }
    let never = AtomicBool::new(false);
    let answer = process::call(&mut Command::new(program), input, timeout, Leaves::Nothing, &never);
    let outcome = match answer.end {
        End::Exited(code) => Outcome::Exited(code),
        End::TimedOut | End::BrokenOff => Outcome::TimedOut,
        End::Failed(why) => Outcome::Failed(why),
    };
    Answer { outcome, output: answer.output, words: shown(&answer.errors, secret) }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    /// An agent that is a shell script.
    pub(crate) fn script(folder: &Path, name: &str, body: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn run(body: &str, within: Duration) -> Answer {
        let folder = tempfile::tempdir().unwrap();
        call(
            &script(folder.path(), "agent", body),
            b"action=off\npassword=hunter2\n",
            Some(b"hunter2"),
            within,
        )
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn an_agent_reads_lines_and_answers_with_its_exit_code() {
        let answer = run("cat; exit 2", LONG);
        assert_eq!(answer.outcome, Outcome::Exited(2));
        assert_eq!(answer.output, b"action=off\npassword=hunter2\n");
    }

    #[test]
    fn an_agent_that_hangs_is_killed_with_everything_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("child");
        let body = format!("sleep 600 & echo $! > {}; wait", file.display());
        let began = Instant::now();
        let answer = run(&body, Duration::from_millis(500));
        assert_eq!(answer.outcome, Outcome::TimedOut);
        assert!(began.elapsed() < LONG);
        let pid = std::fs::read_to_string(&file).unwrap();
        let deadline = Instant::now() + LONG;
        // A process that is dead and not yet collected by init has no command line.
        while std::fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| !line.is_empty()) {
            assert!(Instant::now() < deadline, "the agent's child lives on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_an_agent_leaves_running_does_not_keep_us_waiting() {
        let began = Instant::now();
        let answer = run("sleep 600 & exit 0", LONG);
        assert_eq!(answer.outcome, Outcome::Exited(0));
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn a_password_is_not_repeated() {
        let answer = run("read a; read b; echo \"tried $b\" >&2; exit 1", LONG);
        assert_eq!(answer.words, "tried password=***");
    }

    #[test]
    fn garbage_without_end_is_cut_off() {
        let answer = run("head -c 1000000 /dev/zero | tr '\\0' x; exit 1", LONG);
        assert_eq!(answer.outcome, Outcome::Exited(1));
        assert_eq!(answer.output.len(), 256 << 10);
    }

    #[test]
    fn an_agent_that_is_no_program_fails() {
        let answer = call(Path::new("/nowhere/agent"), b"", None, LONG);
        assert!(matches!(answer.outcome, Outcome::Failed(_)));
    }
}
