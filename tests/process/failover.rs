//! Three machines: two with a replica, one that only votes. A machine dies as a whole, both its processes at once, and the
//! other one serves without anybody typing anything.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use holdfast_tests::{Client, holdfast, run, wait_for};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;

const BLOCK: usize = 4096;

/// A cluster of processes; killed when dropped.
pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    processes: Vec<(String, Child)>,
}

impl Cluster {
    /// Two data nodes `a` and `b`, and the witness `w`.
    pub(crate) fn start() -> Self {
        Self::start_with("", |_| String::new())
    }

    /// With more keys for the volume, and more sections for the file in the folder.
    pub(crate) fn start_with(volume: &str, more: impl FnOnce(&Path) -> String) -> Self {
        let base = std::env::var_os("HOLDFAST_TEST_DIR").unwrap_or_else(|| "/tmp".into());
        let folder = tempfile::Builder::new().prefix("hf").tempdir_in(base).expect("a folder for the test");
        let mut cluster = Self { folder, processes: Vec::new() };
        let text = format!("{}{}", configuration(volume), more(cluster.folder.path()));
        std::fs::write(cluster.config(), text).unwrap();
        for node in ["a", "b"] {
            let config = cluster.config();
            let created = run(&["create", "r0", "--config", config.to_str().unwrap(), "--node", node]);
            assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        }
        for node in ["a", "b"] {
            cluster.spawn("replicator", node);
        }
        for node in ["a", "b", "w"] {
            cluster.spawn("orchestrator", node);
        }
        cluster
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("holdfast.toml")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn spawn(&mut self, what: &str, node: &str) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(&format!("{what}.{node}.log")));
        let log = log.expect("a log file");
        let child = Command::new(holdfast())
            .args([what, "--config"])
            .arg(self.config())
            .args(["--node", node])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the process starts");
        self.processes.push((format!("{what} {node}"), child));
    }

    /// Kills processes of this kind and node, as `kill -9` does.
    pub(crate) fn kill(&mut self, what: &str, node: &str) {
        let name = format!("{what} {node}");
        for (_, child) in self.processes.iter_mut().filter(|(found, _)| *found == name) {
            child.kill().expect("it is ours");
            child.wait().expect("it was killed");
        }
        self.processes.retain(|(found, _)| *found != name);
    }

    /// The machine dies.
    pub(crate) fn kill_node(&mut self, node: &str) {
        self.kill("orchestrator", node);
        self.kill("replicator", node);
    }

    /// Sends a signal. One that stops has stopped all threads afterwards: until then they may still answer.
    fn signal(&self, what: &str, node: &str, signal: Signal) {
        let name = format!("{what} {node}");
        for (_, child) in self.processes.iter().filter(|(found, _)| *found == name) {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).expect("a process id");
            kill_process(pid, signal).expect("it is ours");
            if signal == Signal::STOP {
                waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).expect("it is a child");
            }
        }
    }

    /// Waits until the replica of a node says that clients wait for this.
    pub(crate) fn wait_frozen(&self, node: &str, why: &str) {
        let socket = self.path(&format!("{node}.ctl"));
        wait_for("I/O to wait", || {
            let output = run(&["status", "r0", "--json", "--control", socket.to_str()?]);
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            let text = serde_json::to_string(&status).ok()?;
            (text.contains("\"frozen\":\"") && text.contains(why)).then_some(())
        });
    }

    /// Where a node listens, by the key that says so.
    pub(crate) fn listens(&self, node: &str, key: &str) -> SocketAddr {
        let text = std::fs::read_to_string(self.config()).unwrap();
        let section = text.split("[[node]]").find(|section| section.contains(&format!("name = \"{node}\"")));
        let value = section.unwrap().split(&format!("{key} = \"")).nth(1).unwrap();
        value.split('"').next().unwrap().parse().unwrap()
    }

    pub(crate) fn restart_orchestrator(&mut self, node: &str) {
        self.kill("orchestrator", node);
        self.spawn("orchestrator", node);
    }

    pub(crate) fn revive_node(&mut self, node: &str) {
        self.spawn("replicator", node);
        self.spawn("orchestrator", node);
    }

    /// What an orchestrator says.
    pub(crate) fn status(&self, node: &str) -> Option<Value> {
        let socket = self.path(&format!("{node}.orc"));
        let output = run(&["cluster", "status", "--json", "--control", socket.to_str()?]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until the record, as this orchestrator knows it, names an opened primary with so many members.
    pub(crate) fn wait_primary(&self, ask: &str, primary: &str, members: usize) {
        self.wait_reign(ask, primary, members..=members);
    }

    fn wait_reign(&self, ask: &str, primary: &str, members: RangeInclusive<usize>) {
        let what = format!("{primary} to be primary of {members:?} members");
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(&what, || {
                let status = self.status(ask)?;
                let record = &status["volumes"][0]["record"];
                let is_it = record["primary"] == primary && record["opened"] == true;
                (is_it && members.contains(&record["in_sync"].as_array()?.len())).then_some(())
            });
        }));
        if found.is_err() {
            panic!("waited in vain for {what}\n{}", self.logs());
        }
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

    pub(crate) fn connect(&self, node: &str) -> Client {
        let socket = self.path(&format!("{node}.nbd"));
        wait_for("the export to open", || Client::connect(&socket).ok())
    }

    pub(crate) fn tell(&self, node: &str, command: &[&str]) {
        let socket = self.path(&format!("{node}.orc"));
        let control = ["--control", socket.to_str().unwrap()];
        let arguments: Vec<&str> = ["cluster"].iter().chain(command).chain(&control).copied().collect();
        let output = run(&arguments);
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn configuration(volume: &str) -> String {
    let ports = free_ports(11);
    let node = |name: &str, port: u16, api: u16, metrics: u16| {
        format!(
            "[[node]]\nname = \"{name}\"\naddress = \"127.0.0.1\"\ncontrol = \"{name}.ctl\"\n\
             metrics-listen = \"127.0.0.1:{metrics}\"\n[node.orchestrator]\n\
             port = {port}\ncontrol = \"{name}.orc\"\nstore = \"{name}.store\"\n\
             api-listen = \"127.0.0.1:{api}\"\n"
        )
    };
    let replica = |name: &str, port: u16| {
        format!(
            "[[volume.replica]]\nnode = \"{name}\"\ndisk = \"{name}.disk\"\njournal = \"{name}.journal\"\n\
             journal-size = \"32MiB\"\nport = {port}\nnbd-socket = \"{name}.nbd\"\n"
        )
    };
    format!(
        "[cluster]\nname = \"failover\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n[orchestrator]\n{}{}{}\
         [[volume]]\nname = \"r0\"\nuuid = \"01915f1e-0a4b-4c3d-8e2f-0123456789ab\"\nsize = \"16MiB\"\n\
         lock-memory = false\n{volume}{}{}",
        node("a", ports[0], ports[5], ports[8]),
        node("b", ports[1], ports[6], ports[9]),
        node("w", ports[2], ports[7], ports[10]),
        replica("a", ports[3]),
        replica("b", ports[4]),
    )
}

/// Ports that are free for TCP and UDP alike. All are held until the last is found, so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let mut held = Vec::new();
    while held.len() < count {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        if let Ok(udp) = UdpSocket::bind(("127.0.0.1", port)) {
            held.push((port, tcp, udp));
        }
    }
    held.iter().map(|(port, _, _)| *port).collect()
}

fn block(number: u8) -> Vec<u8> {
    vec![number; BLOCK]
}

fn read(client: &mut Client, place: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    client.read_at(place * BLOCK as u64, &mut bytes).unwrap();
    bytes
}

#[test]
fn when_the_primarys_machine_dies_the_other_serves_what_was_acknowledged() {
    let mut cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    let mut client = cluster.connect("a");
    client.write_at(4096, &block(7)).unwrap();
    client.flush().unwrap();

    cluster.kill_node("a");
    cluster.wait_primary("w", "b", 1);
    let mut client = cluster.connect("b");
    assert!(read(&mut client, 1) == block(7));
    client.write_at(8192, &block(8)).unwrap();

    cluster.revive_node("a");
    cluster.wait_primary("w", "b", 2);
    client.write_at(12288, &block(9)).unwrap();

    cluster.kill_node("b");
    cluster.wait_primary("w", "a", 1);
    let mut client = cluster.connect("a");
    assert!((1..=3).all(|place| read(&mut client, place) == block(u8::try_from(place).unwrap() + 6)));
}

#[test]
fn a_replicator_that_is_killed_alone_is_followed_at_once() {
    let mut cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    cluster.connect("a").write_at(4096, &block(7)).unwrap();
    cluster.kill("replicator", "a");
    cluster.wait_primary("w", "b", 1);
    assert!(read(&mut cluster.connect("b"), 1) == block(7));
}

#[test]
fn a_primary_goes_on_without_a_member_that_is_gone() {
    let mut cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    let mut client = cluster.connect("a");
    cluster.kill_node("b");
    // Not answered before a majority has agreed on a set without b.
    client.write_at(4096, &block(7)).unwrap();
    cluster.wait_primary("w", "a", 1);
    cluster.kill_node("a");
    cluster.revive_node("b");
    // b alone lacks what was acknowledged: nobody is promoted before a is back.
    wait_for("w to say why b is not promoted", || {
        let leader = cluster.status("w")?["leader"].as_str()?.to_owned();
        let status = cluster.status(&leader)?;
        let note = status["notes"][0]["text"].as_str()?.to_owned();
        note.contains("b is not in the in-sync set").then_some(())
    });
    cluster.revive_node("a");
    cluster.wait_primary("w", "a", 2);
    assert!(read(&mut cluster.connect("a"), 1) == block(7));
}

#[test]
fn a_volume_moves_where_an_operator_wants_it() {
    let cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    cluster.connect("a").write_at(4096, &block(7)).unwrap();
    cluster.tell("w", &["move", "r0", "--to", "b"]);
    cluster.wait_primary("w", "b", 2);
    assert!(read(&mut cluster.connect("b"), 1) == block(7));
}

#[test]
fn a_lone_witness_and_a_replica_elect_and_one_alone_does_not() {
    let mut cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    cluster.kill_node("b");
    cluster.kill("orchestrator", "w");
    // Without a majority its lease runs out, and nobody is answered.
    cluster.wait_frozen("a", "lease");
    cluster.spawn("orchestrator", "w");
    cluster.wait_primary("w", "a", 1);
}

#[test]
fn io_waits_while_a_majority_is_away_and_goes_on_without_an_error() {
    let mut cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    let mut client = cluster.connect("a");
    client.write_at(4096, &block(7)).unwrap();
    cluster.kill("orchestrator", "w");
    cluster.kill("orchestrator", "b");
    cluster.wait_frozen("a", "lease");
    let (answers, answered) = mpsc::channel();
    let waiting = std::thread::spawn(move || {
        answers.send(read(&mut client, 1)).unwrap();
        client.write_at(8192, &block(8)).unwrap();
        client.flush().unwrap();
        answers.send(read(&mut client, 2)).unwrap();
    });
    let early = answered.recv_timeout(Duration::from_secs(2));
    assert!(early.is_err(), "a read is answered without a lease");
    cluster.spawn("orchestrator", "w");
    let patience = holdfast_tests::PATIENCE;
    assert!(answered.recv_timeout(patience).expect("the read goes on") == block(7));
    assert!(answered.recv_timeout(patience).expect("the write goes on") == block(8));
    waiting.join().expect("no request fails");
}

#[test]
fn a_primary_whose_orchestrator_sleeps_answers_nothing_old_when_another_serves() {
    let cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    let mut old = cluster.connect("a");
    old.write_at(4096, &block(7)).unwrap();
    cluster.signal("orchestrator", "a", Signal::STOP);
    let overwritten = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&overwritten);
    // Reads at the old primary, as long as it answers.
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; BLOCK];
        loop {
            let was_over = seen.load(Ordering::SeqCst);
            if old.read_at(4096, &mut bytes).is_err() {
                return;
            }
            assert!(!(was_over && bytes == block(7)), "what was overwritten is read at the old primary");
        }
    });
    // The replica there follows at once, so that it may be a member before the first is seen.
    cluster.wait_reign("w", "b", 1..=2);
    cluster.connect("b").write_at(4096, &block(8)).unwrap();
    overwritten.store(true, Ordering::SeqCst);
    cluster.signal("orchestrator", "a", Signal::CONT);
    cluster.wait_primary("w", "b", 2);
    reader.join().expect("the old primary answers nothing old");
    assert!(read(&mut cluster.connect("b"), 1) == block(8));
}

#[test]
fn a_replicator_that_slept_through_a_takeover_answers_nothing_old() {
    let cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    let mut old = cluster.connect("a");
    old.write_at(4096, &block(7)).unwrap();
    cluster.signal("replicator", "a", Signal::STOP);
    // It lies in the socket while the process sleeps.
    let waiting = std::thread::spawn(move || {
        let mut bytes = vec![0; BLOCK];
        old.read_at(4096, &mut bytes).map(|_| bytes)
    });
    cluster.wait_primary("w", "b", 1);
    cluster.connect("b").write_at(4096, &block(8)).unwrap();
    cluster.signal("replicator", "a", Signal::CONT);
    let answer = waiting.join().expect("the thread ends");
    assert!(answer.is_err(), "a read of the past is answered");
    cluster.wait_primary("w", "b", 2);
}

#[test]
fn a_plain_promotion_says_what_to_type_instead() {
    let cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    let socket = cluster.path("b.ctl");
    let output = run(&["promote", "r0", "--control", socket.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("holdfast cluster move r0"), "{text}");
}
