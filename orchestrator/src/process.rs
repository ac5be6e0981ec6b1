//! One call of a program that somebody else wrote: it has a process group of its own and a deadline, and what it says is
//! read up to a limit. Not here: what the call means, and processes that stay.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Bytes that are read of what a program says.
const OUTPUT_BYTES_MAX: u64 = 256 << 10;
/// Bytes of its last words that are shown.
const WORDS_BYTES_MAX: usize = 300;
/// How often it is looked whether the call is broken off.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long its output is waited for after it has ended: a child that it left running may hold the pipe.
const OUTPUT_WITHIN: Duration = Duration::from_millis(200);

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this exit code.
    Exited(i32),
    /// Its time was over, and it was killed with everything it started.
    TimedOut,
    /// Nobody wants it any more, and it was killed with everything it started.
    BrokenOff,
    /// It did not start, was killed, or cannot be waited for.
    Failed(String),
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Answer {
    /// How it ended.
    pub(crate) end: End,
    /// What it wrote on its standard output.
    pub(crate) output: Vec<u8>,
    /// What it wrote on standard error.
    pub(crate) errors: Vec<u8>,
}

/// What is left running after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// Nothing: it is killed.
    Nothing,
    /// What it started, if it succeeded. That may write for ever, so it writes to our own log.
    Services,
    /// What it started, if it succeeded, and that writes to nothing it was given, as daemons do.
    Daemons,
}

/// Runs `command` with `input`, for no longer than `timeout` and not after `is_broken_off`.
pub(crate) fn call(
    command: &mut Command,
    input: &[u8],
    timeout: Duration,
    leaves: Leaves,
    is_broken_off: &AtomicBool,
) -> Answer {
    let deadline = Instant::now() + timeout;
    let said = || if leaves == Leaves::Services { Stdio::inherit() } else { Stdio::piped() };
    let spawned = command.process_group(0).stdin(Stdio::piped()).stdout(said()).stderr(said()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let why = format!("{} does not start: {error}", command.get_program().to_string_lossy());
            return Answer { end: End::Failed(why), output: Vec::new(), errors: Vec::new() };
        }
    };
    let group = Pid::from_child(&child);
    // Programs that do not read have closed the pipe perhaps.
    let _ = child.stdin.take().expect("it is piped").write_all(input);
    let output = child.stdout.take().map(collect);
    let errors = child.stderr.take().map(collect);
    let end = wait(&mut child, deadline, is_broken_off);
    if leaves == Leaves::Nothing || end != End::Exited(0) {
        // None left is what is wanted.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
    let read = |pipe: Option<mpsc::Receiver<Vec<u8>>>| {
        pipe.and_then(|pipe| pipe.recv_timeout(OUTPUT_WITHIN).ok()).unwrap_or_default()
    };
    Answer { end, output: read(output), errors: read(errors) }
}

fn wait(child: &mut Child, deadline: Instant, is_broken_off: &AtomicBool) -> End {
    let ended = match pidfd_open(Pid::from_child(child), PidfdFlags::empty()) {
        Ok(ended) => ended,
        Err(error) => return End::Failed(format!("it cannot be waited for: {error}")),
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(LOOK_INTERVAL);
        if is_broken_off.load(Ordering::Relaxed) {
            return End::BrokenOff;
        }
        if left.is_zero() {
            return End::TimedOut;
        }
        let left = Timespec::try_from(left).expect("it is short");
        let mut waited = [PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
        match poll(&mut waited, Some(&left)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => break,
            Err(error) => return End::Failed(format!("it cannot be waited for: {error}")),
        }
    }
    match child.wait() {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, signal) => End::Failed(format!("it was killed by signal {}", signal.unwrap_or(0))),
        },
        Err(error) => End::Failed(format!("it cannot be waited for: {error}")),
    }
}

/// Reads up to a limit, and then to the end without keeping it, so that the program does not block. What was read is sent
/// when the pipe ends.
fn collect(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let _ = (&mut pipe).take(OUTPUT_BYTES_MAX).read_to_end(&mut kept);
        let _ = io::copy(&mut pipe, &mut io::sink());
        // Whoever does not wait any more does not need it.
        let _ = sender.send(kept);
    });
    receiver
}

/// The end of what a program said, on one line and without its password.
pub(crate) fn shown(bytes: &[u8], secret: Option<&[u8]>) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    if let Some(secret) = secret.map(String::from_utf8_lossy).filter(|secret| !secret.is_empty()) {
        text = text.replace(secret.as_ref(), "***");
    }
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let text = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let start = text.len().saturating_sub(WORDS_BYTES_MAX);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[start..].to_owned()
}
