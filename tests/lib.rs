//! What the process tests share: a sandbox of real processes, a foreign NBD client, and waiting with a deadline.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The `holdfast` command: `$HOLDFAST`, or the one built beside the test.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn holdfast() -> PathBuf {
    if let Some(path) = std::env::var_os("HOLDFAST") {
        return path.into();
    }
    let mut folder = std::env::current_exe().expect("a test knows its file");
    while folder.pop() {
        let path = folder.join("holdfast");
        if path.is_file() {
            return path;
        }
    }
    panic!("the `holdfast` command is not built: run `cargo build` first, or set HOLDFAST")
}

/// Waits until `done` gives something.
///
/// # Panics
/// If it does not within the patience; `what` says what was waited for.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One node of a sandbox.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: i32,
    /// Its control socket.
    pub control: String,
    /// Its NBD socket.
    pub nbd_socket: String,
    /// Its backing disk.
    pub disk: PathBuf,
    /// Its journal.
    pub journal: PathBuf,
}

/// A sandbox; stopped and removed when dropped.
#[derive(Debug)]
pub struct Sandbox {
    child: Child,
    folder: tempfile::TempDir,
    /// Its nodes.
    pub nodes: Vec<Node>,
    restarted: Vec<Child>,
}

impl Sandbox {
    /// Starts a sandbox with these further arguments.
    ///
    /// # Panics
    /// If it does not get ready.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let base = std::env::var_os("HOLDFAST_TEST_DIR").unwrap_or_else(|| "/tmp".into());
        let folder = tempfile::Builder::new().prefix("hf").tempdir_in(base).expect("a folder for the test");
        let mut child = Command::new(holdfast())
            .args(["sandbox", "--json", "--keep", "--dir"])
            .arg(folder.path().join("s"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the sandbox starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("the sandbox says that it is ready");
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        let nodes = ready["nodes"].as_array().expect("nodes").iter().map(node_of).collect();
        Self { child, folder, nodes, restarted: Vec::new() }
    }

    /// Starts one in which node b is no member and applies late.
    ///
    /// # Panics
    /// If it does not get ready.
    #[must_use]
    pub fn start_delayed(delay: &str) -> Self {
        let mut sandbox =
            Self::start(&["--size", "16M", "--journal-size", "32M", "--on-peer-loss", "continue"]);
        sandbox.wait_level(0);
        sandbox.kill(1);
        wait_for("b to be taken out of the set", || {
            let status = sandbox.status(0)?;
            (status["record"]["in_sync"].as_array()?.len() == 1).then_some(())
        });
        let text = std::fs::read_to_string(sandbox.config()).expect("it is kept");
        let at = text.find("[[volume.replica]]\nnode = \"b\"").expect("b has a replica");
        let (before, after) = text.split_at(at + "[[volume.replica]]\n".len());
        let text = format!("{before}apply-delay = \"{delay}\"\n{after}");
        std::fs::write(sandbox.config(), text).expect("it is written");
        sandbox.restart(1);
        sandbox
    }

    /// The configuration file of all nodes.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("s/holdfast.toml")
    }

    /// Kills the process of a node, as a crash does.
    ///
    /// # Panics
    /// If it is not there.
    pub fn kill(&mut self, node: usize) {
        self.end(node, Signal::KILL);
    }

    /// Stops the process of a node in order, and waits for its end.
    ///
    /// # Panics
    /// If it is not there, or does not end.
    pub fn terminate(&mut self, node: usize) {
        self.end(node, Signal::TERM);
        let pid = Pid::from_raw(self.nodes[node].pid).expect("a process id");
        wait_for("the process to end", || test_kill_process(pid).is_err().then_some(()));
    }

    fn end(&mut self, node: usize, signal: Signal) {
        let pid = Pid::from_raw(self.nodes[node].pid).expect("a process id");
        kill_process(pid, signal).expect("the process is there");
        for child in &mut self.restarted {
            if child.id() == u32::try_from(self.nodes[node].pid).expect("a process id") {
                child.wait().expect("it was told to end");
            }
        }
    }

    /// Starts the process of a node that was killed.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn restart(&mut self, node: usize) {
        let path = self.folder.path().join(format!("{}.again", self.nodes[node].name));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let child = Command::new(holdfast())
            .args(["replicator", "--config"])
            .arg(self.config())
            .args(["--node", &self.nodes[node].name])
            .stdout(Stdio::null())
            .stderr(log.expect("a log file"))
            .spawn()
            .expect("the node starts");
        self.nodes[node].pid = i32::try_from(child.id()).expect("a process id");
        self.restarted.push(child);
    }

    /// What `holdfast status --json` says at a node, of its only volume; `None` while it does not answer.
    #[must_use]
    pub fn status(&self, node: usize) -> Option<Value> {
        let output = run(&["status", "--json", "--control", &self.nodes[node].control]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        let replica = &status["volumes"][0]["replica"];
        replica.is_object().then(|| replica.clone())
    }

    /// What a node's processes have said so far.
    #[must_use]
    pub fn log(&self, node: usize) -> String {
        let name = &self.nodes[node].name;
        let files = [format!("s/{name}.log"), format!("{name}.again")];
        let texts = files.map(|file| std::fs::read(self.folder.path().join(file)).unwrap_or_default());
        texts.map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
    }

    /// What `holdfast status` says at a node to people.
    #[must_use]
    pub fn status_text(&self, node: usize) -> String {
        let output = run(&["status", "--control", &self.nodes[node].control]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Promotes a node.
    #[must_use]
    pub fn promote(&self, node: usize, force: bool) -> Output {
        let mut arguments = vec!["promote", "r0", "--control", &self.nodes[node].control];
        if force {
            arguments.push("--force");
        }
        run(&arguments)
    }

    /// Waits until a node says that it is `role`.
    pub fn wait_role(&self, node: usize, role: &str) {
        wait_for(&format!("node {node} to be {role}"), || self.status(node).filter(|v| v["role"] == role));
    }

    /// Waits until the peers of a Primary are level members.
    pub fn wait_level(&self, primary: usize) {
        wait_for("all replicas to be level", || {
            let status = self.status(primary)?;
            let peers = status["peers"].as_array()?.clone();
            peers
                .iter()
                .all(|peer| peer["connection"] == "Established" && peer["member"] == true)
                .then_some(())
        });
    }

    /// Stops everything in order and returns the bytes of all disks.
    ///
    /// # Panics
    /// If a process does not stop.
    #[must_use]
    pub fn stop_and_read_disks(mut self, primary: usize) -> Vec<Vec<u8>> {
        let _ = run(&["demote", "r0", "--control", &self.nodes[primary].control]);
        wait_for("the replicas to be applied alike", || {
            let states: Vec<Value> = (0..self.nodes.len()).map(|n| self.status(n)).collect::<Option<_>>()?;
            let applied = |v: &Value| (v["applied"].clone(), v["journaled"].clone());
            states
                .iter()
                .all(|v| applied(v) == applied(&states[0]) && applied(v).0 == applied(v).1)
                .then_some(())
        });
        self.stop();
        self.nodes.iter().map(|node| std::fs::read(&node.disk).expect("the disk is kept")).collect()
    }

    fn stop(&mut self) {
        for child in &mut self.restarted {
            if let (Ok(None), Some(pid)) =
                (child.try_wait(), Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)))
            {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        for mut child in self.restarted.drain(..) {
            let _ = child.wait();
        }
        if let Some(pid) = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0)) {
            let _ = kill_process(pid, Signal::INT);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

fn node_of(value: &Value) -> Node {
    let text = |key: &str| value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}")).to_owned();
    let uri = text("nbd_uri");
    let (_, socket) = uri.split_once("socket=").unwrap_or_else(|| panic!("a unix socket in {uri}"));
    Node {
        name: text("name"),
        pid: i32::try_from(value["pid"].as_i64().expect("a pid")).expect("a process id"),
        control: text("control"),
        nbd_socket: socket.to_owned(),
        disk: text("disk").into(),
        journal: text("journal").into(),
    }
}

/// All that a command said.
#[must_use]
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs the `holdfast` command to its end.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn run(arguments: &[&str]) -> Output {
    Command::new(holdfast()).args(arguments).stdin(Stdio::null()).output().expect("the command runs")
}

/// An NBD client that shares no code with the server: the `nbd` crate on a unix socket.
pub struct Client {
    inner: nbd::client::NbdClient<UnixStream>,
    /// Bytes of the export.
    pub size_bytes: u64,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the export `r0`.
    ///
    /// # Errors
    /// If nobody serves there.
    pub fn connect(socket: impl AsRef<Path>) -> std::io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let export = nbd::client::handshake(&mut stream, b"r0")?;
        let size_bytes = export.size;
        Ok(Self { inner: nbd::client::NbdClient::new(stream, &export), size_bytes })
    }

    /// Writes `bytes` at `offset`; returns when the server has answered.
    ///
    /// # Errors
    /// What the server said, or that it is gone.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.inner.seek(SeekFrom::Start(offset))?;
        self.inner.write_all(bytes)
    }

    /// Reads into `bytes` from `offset`.
    ///
    /// # Errors
    /// What the server said, or that it is gone.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        self.inner.seek(SeekFrom::Start(offset))?;
        self.inner.read_exact(bytes)
    }

    /// Flushes.
    ///
    /// # Errors
    /// What the server said, or that it is gone.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
