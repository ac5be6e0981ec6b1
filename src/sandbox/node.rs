//! One node of a sandbox: a child process, its log, and how to ask it.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use replicator::config::Replica;
use replicator::control::Client;
use rustix::process::{Pid, Signal, kill_process};

/// Lines of a log that are shown when its node fails.
const LOG_LINES_SHOWN: usize = 6;

/// A node of a sandbox.
#[derive(Debug)]
pub(crate) struct SandboxNode {
    /// Its name.
    pub(crate) name: String,
    /// Its control socket.
    pub(crate) control: PathBuf,
    /// Its copy of the volume.
    pub(crate) replica: Replica,
    /// What it says.
    pub(crate) log: PathBuf,
    child: Option<Child>,
}

impl SandboxNode {
    pub(super) fn new(name: &str, control: &Path, replica: Replica, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        Self { name: name.to_owned(), control: control.to_owned(), replica, log, child: None }
    }

    /// Starts its process.
    pub(crate) fn start(&mut self, config: &Path) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log: File = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let child = Command::new(program)
            .arg("replicator")
            .arg("--config")
            .arg(config)
            .args(["--node", &self.name])
            .args(["--die-with", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            // Ctrl-C is for the sandbox, which then stops its nodes in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start node {}", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// A client of its control socket.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.control)
    }

    /// Its process, if it runs as far as is known.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How its process ended, if it has since this was last asked.
    pub(crate) fn reap(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        self.child = None;
        Some(status)
    }

    /// Ends its process at once, as a power cut would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().with_context(|| format!("cannot kill node {}", self.name))?;
            child.wait().with_context(|| format!("cannot wait for node {}", self.name))?;
        }
        Ok(())
    }

    /// Asks its process to end in order.
    pub(crate) fn terminate(&self) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // If it has ended meanwhile it is still our zombie: the number cannot be another process's.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits for its process to end, at most until `deadline`; then kills it. Says whether it ended in order.
    pub(crate) fn wait(&mut self, deadline: Instant) -> Result<bool> {
        while let Some(child) = &mut self.child {
            if let Some(status) = child.try_wait().context("cannot wait for a node")? {
                self.child = None;
                return Ok(status.success());
            }
            if Instant::now() >= deadline {
                self.kill()?;
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(true)
    }

    /// The last lines of its log, indented.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        tail.iter().map(|line| format!("\n  {}| {line}", self.name)).collect()
    }
}
