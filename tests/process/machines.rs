//! Machines that each have a folder with a configuration and a secret of their own, as real ones have; the cluster is made
//! by its own commands. For the tests of how it is made and kept.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use holdfast_tests::{Client, holdfast, run, wait_for};
use serde_json::Value;

/// Nodes `a` and `b` with a replica of `r0`, and the witness `w`.
pub(crate) const NODES: [&str; 3] = ["a", "b", "w"];

/// Machines; their processes are killed when they are dropped.
pub(crate) struct Machines {
    folder: tempfile::TempDir,
    processes: Vec<(String, Child)>,
    ports: Vec<u16>,
}

impl Machines {
    /// Bare ones.
    pub(crate) fn new() -> Self {
        let base = std::env::var_os("HOLDFAST_TEST_DIR").unwrap_or_else(|| "/tmp".into());
        let folder = tempfile::Builder::new().prefix("hf").tempdir_in(base).expect("a folder for the test");
        Self { folder, processes: Vec::new(), ports: free_ports(8) }
    }

    /// A cluster of all three that has begun, with `a` primary of `r0`.
    pub(crate) fn in_a_cluster() -> Self {
        let mut machines = Self::new();
        said(&machines.init("a"));
        machines.write_volume("a");
        machines.spawn("orchestrator", "a");
        for node in ["b", "w"] {
            let token = machines.token("a", node);
            said(&machines.join(node, &token));
        }
        machines.start_all();
        machines.wait_primary("w", "a", 2);
        machines
    }

    /// Makes the replicas and starts what does not run yet.
    pub(crate) fn start_all(&mut self) {
        for node in ["a", "b"] {
            let config = self.config(node);
            said(&run(&["create", "r0", "--config", config.to_str().unwrap(), "--node", node]));
            self.spawn("replicator", node);
        }
        for node in ["b", "w"] {
            self.spawn("orchestrator", node);
        }
    }

    /// The folder of a machine.
    pub(crate) fn home(&self, machine: &str) -> PathBuf {
        self.folder.path().join(machine)
    }

    pub(crate) fn config(&self, machine: &str) -> PathBuf {
        self.home(machine).join("holdfast.toml")
    }

    /// The port of a node's orchestrator.
    pub(crate) fn port(&self, node: &str) -> u16 {
        self.ports[place(node)]
    }

    /// `holdfast cluster init` on a machine.
    pub(crate) fn init(&self, machine: &str) -> Output {
        // Machines are told apart by their addresses.
        let nodes = NODES.map(|node| format!("{node}=127.0.0.{}:{}", place(node) + 1, self.port(node)));
        let config = self.config(machine);
        let [a, b, w] = &nodes;
        let named = ["--node", a, "--node", b, "--node", w, "--config", config.to_str().unwrap()];
        run(&[&["cluster", "init", "--name", "made"][..], &named].concat())
    }

    /// What an operator writes into the file: where things lie on these machines, which are one, and a volume.
    pub(crate) fn write_volume(&self, machine: &str) {
        let path = self.config(machine);
        let mut text = std::fs::read_to_string(&path).unwrap();
        let at = text.find("[[node]]").expect("it has nodes");
        text.truncate(at);
        text += &NODES.map(|node| self.section(node)).concat();
        text += "[[volume]]\nname = \"r0\"\nuuid = \"01915f1e-0a4b-4c3d-8e2f-0123456789ab\"\nsize = \"16MiB\"\n\
                 lock-memory = false\ntls = \"on\"\n";
        for (node, port) in [("a", self.ports[4]), ("b", self.ports[5])] {
            text += &format!(
                "[[volume.replica]]\nnode = \"{node}\"\ndisk = \"{node}.disk\"\njournal = \"{node}.journal\"\n\
                 journal-size = \"32MiB\"\nport = {port}\nnbd-socket = \"{node}.nbd\"\n"
            );
        }
        std::fs::write(path, text).unwrap();
    }

    /// What the configuration says of a node. It has a number, so that others keep theirs when it goes.
    pub(crate) fn section(&self, node: &str) -> String {
        let (place, port) = (place(node), self.port(node));
        format!(
            "[[node]]\nname = \"{node}\"\nid = {place}\naddress = \"127.0.0.{}\"\ncontrol = \"{node}.ctl\"\n\
             [node.orchestrator]\nport = {port}\ncontrol = \"{node}.orc\"\nstore = \"{node}.store\"\n",
            place + 1
        )
    }

    /// `holdfast cluster ...` at a machine's orchestrator.
    pub(crate) fn cluster(&self, machine: &str, command: &[&str]) -> Output {
        let socket = self.home(machine).join(format!("{machine}.orc"));
        run(&[&["cluster"], command, &["--control", socket.to_str().unwrap()]].concat())
    }

    /// A token for a node, made on a machine as soon as its orchestrator answers.
    pub(crate) fn token(&self, machine: &str, node: &str) -> String {
        let answer = wait_for("the orchestrator to answer", || self.status(machine)).is_object();
        assert!(answer, "{}", self.logs());
        let answer = said(&self.cluster(machine, &["token", node, "--json"]));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["token"].as_str().unwrap().to_owned()
    }

    /// `holdfast cluster join` on a machine.
    pub(crate) fn join(&self, machine: &str, token: &str) -> Output {
        run(&["cluster", "join", token, "--config", self.config(machine).to_str().unwrap()])
    }

    /// Starts a process of a node on the machine of the same name.
    pub(crate) fn spawn(&mut self, what: &str, node: &str) {
        let path = self.folder.path().join(format!("{what}.{node}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a log file");
        let child = Command::new(holdfast())
            .args([what, "--config"])
            .arg(self.config(node))
            .args(["--node", node])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the process starts");
        self.processes.push((format!("{what} {node}"), child));
    }

    /// Kills a process of a node, as `kill -9` does.
    pub(crate) fn kill(&mut self, what: &str, node: &str) {
        let name = format!("{what} {node}");
        for (_, child) in self.processes.iter_mut().filter(|(found, _)| *found == name) {
            child.kill().expect("it is ours");
            child.wait().expect("it was killed");
        }
        self.processes.retain(|(found, _)| *found != name);
    }

    /// How often a process of a node has been ready.
    pub(crate) fn starts(&self, what: &str, node: &str) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join(format!("{what}.{node}.log")));
        log.unwrap_or_default().matches("ready: ").count()
    }

    /// What a machine's orchestrator says.
    pub(crate) fn status(&self, machine: &str) -> Option<Value> {
        serde_json::from_slice(&self.cluster(machine, &["status", "--json"]).stdout).ok()
    }

    /// Waits until an orchestrator knows of an opened primary with so many members.
    pub(crate) fn wait_primary(&self, ask: &str, primary: &str, members: usize) {
        self.wait_until(&format!("{primary} to be primary of {members}"), || {
            let status = self.status(ask)?;
            let record = &status["volumes"][0]["record"];
            let is_it = record["primary"] == primary && record["opened"] == true;
            (is_it && record["in_sync"].as_array()?.len() == members).then_some(())
        });
    }

    /// Waits until something is so; shows all logs if it is not.
    pub(crate) fn wait_until<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> T {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(what, done)));
        found.unwrap_or_else(|_| panic!("waited in vain for {what}\n{}", self.logs()))
    }

    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.folder.path()).unwrap().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                text += &format!("--- {}\n{log}\n", entry.path().display());
            }
        }
        text
    }

    /// A client of `r0` on a node.
    pub(crate) fn connect(&self, node: &str) -> Client {
        let socket = self.home(node).join(format!("{node}.nbd"));
        wait_for("the export to open", || Client::connect(&socket).ok())
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The place of a node among the others; of one that is new, behind them.
fn place(node: &str) -> usize {
    NODES.iter().position(|known| *known == node).unwrap_or(NODES.len())
}

/// What a command that succeeded said.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// What a command that failed said.
pub(crate) fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Who else may read a file.
pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// Ports that are free for TCP and UDP alike, at any address. All are held until the last is found, so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let mut held = Vec::new();
    while held.len() < count {
        let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        if let Ok(udp) = UdpSocket::bind(("0.0.0.0", port)) {
            held.push((port, tcp, udp));
        }
    }
    held.iter().map(|(port, _, _)| *port).collect()
}
