//! Replicas that are added to, and removed from, a volume that is in use, with real processes.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_tests::{Client, Node, Sandbox, run, said, wait_for};

use crate::failover::Cluster;

const SLOTS: u64 = 200;
const STRIDE: u64 = 64 << 10;

fn reload(sandbox: &Sandbox, node: usize) -> Output {
    run(&["reload", "--control", &sandbox.nodes[node].control])
}

fn done(output: &Output, words: &str) {
    assert!(output.status.success() && said(output).contains(words), "{}", said(output));
}

fn refused(output: &Output, words: &[&str]) {
    let text = said(output);
    assert!(!output.status.success() && words.iter().all(|word| text.contains(word)), "{text}");
}

/// Changes the file of all nodes.
fn edit(sandbox: &Sandbox, change: impl FnOnce(String) -> String) {
    let text = std::fs::read_to_string(sandbox.config()).unwrap();
    std::fs::write(sandbox.config(), change(text)).unwrap();
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The third node, and its replica, as they stand in the file.
fn third() -> String {
    format!(
        "\n[[node]]\nname = \"c\"\naddress = \"127.0.0.1\"\ncontrol = \"c.ctl\"\n\n[[volume.replica]]\nnode = \"c\"\n\
         disk = \"c.disk\"\njournal = \"c.journal\"\njournal-size = \"20MiB\"\nport = {}\nnbd-socket = \"c.nbd\"\n",
        free_port()
    )
}

/// The file without the replica on `node`. The node stays: others keep their numbers.
fn without_replica(text: &str, node: &str) -> String {
    let at = text.find(&format!("[[volume.replica]]\nnode = \"{node}\"")).expect("it has a replica");
    let end = text[at + 1..].find("\n[[").map_or(text.len(), |end| at + 1 + end);
    format!("{}{}", &text[..at], &text[end..])
}

fn bytes_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(512)
}

/// A client that writes until it is told to stop, and then says the number last answered in each slot.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<u64>>,
}

impl Writer {
    fn start(socket: &str) -> Self {
        let mut client = wait_for("the export to open", || Client::connect(socket).ok());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut last = vec![0; usize::try_from(SLOTS).unwrap()];
            for number in 1.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let slot = number * 7 % SLOTS;
                client.write_at(slot * STRIDE, &bytes_of(number)).expect("writes are answered all the time");
                last[usize::try_from(slot).unwrap()] = number;
            }
            client.flush().expect("a flush is answered");
            last
        });
        Self { stop, thread }
    }

    fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("no write failed")
    }
}

fn has_all(socket: &str, last: &[u64]) {
    let mut client = wait_for("the export to open", || Client::connect(socket).ok());
    for (slot, number) in last.iter().enumerate() {
        let mut bytes = vec![1; 4096];
        client.read_at(slot as u64 * STRIDE, &mut bytes).unwrap();
        assert!(bytes == bytes_of(*number), "slot {slot} does not hold what was answered last, {number}");
    }
}

fn wait_members(sandbox: &Sandbox, primary: usize, count: usize) {
    wait_for("the members", || {
        let status = sandbox.status(primary)?;
        let peers = status["peers"].as_array()?;
        let is_level =
            |peer: &&serde_json::Value| peer["connection"] == "Established" && peer["member"] == true;
        (peers.len() + 1 == count && peers.iter().filter(is_level).count() + 1 == count).then_some(())
    });
}

#[test]
fn a_third_replica_is_added_under_load_becomes_a_member_and_takes_the_place_of_one_that_is_removed() {
    let mut sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "20M"]);
    sandbox.wait_level(0);
    let writer = Writer::start(&sandbox.nodes[0].nbd_socket);

    edit(&sandbox, |text| text + &third());
    for node in [0, 1] {
        done(&reload(&sandbox, node), "c is a replica of the volume here from now on");
        done(&reload(&sandbox, node), "nothing has changed");
    }
    let config = sandbox.config();
    let folder = config.parent().unwrap().to_owned();
    let path = |name: &str| folder.join(name);
    let created = run(&["create", "r0", "--config", config.to_str().unwrap(), "--node", "c"]);
    assert!(created.status.success(), "{}", said(&created));
    sandbox.nodes.push(Node {
        name: "c".to_owned(),
        pid: 0,
        control: path("c.ctl").to_str().unwrap().to_owned(),
        nbd_socket: path("c.nbd").to_str().unwrap().to_owned(),
        disk: path("c.disk"),
        journal: path("c.journal"),
    });
    sandbox.restart(2);
    wait_members(&sandbox, 0, 3);

    edit(&sandbox, |text| without_replica(&text, "b"));
    refused(&reload(&sandbox, 2), &["b is in the in-sync set", "where the volume is Primary first"]);
    done(&reload(&sandbox, 0), "b is no replica of the volume here any more");
    wait_members(&sandbox, 0, 2);
    wait_for("c to hear of it", || reload(&sandbox, 2).status.success().then_some(()));
    // b still runs, with the file as it was, and is let in nowhere.
    wait_for("b to say so", || sandbox.status_text(1).contains("StandAlone").then_some(()));
    sandbox.kill(1);
    let last = writer.end();
    has_all(&sandbox.nodes[0].nbd_socket, &last);

    sandbox.kill(0);
    wait_for("c to take over", || sandbox.promote(2, true).status.success().then_some(()));
    has_all(&sandbox.nodes[2].nbd_socket, &last);
    sandbox.restart(0);
    wait_members(&sandbox, 2, 2);
    sandbox.nodes.remove(1);
    let disks = sandbox.stop_and_read_disks(1);
    assert!(disks.len() == 2 && disks[0] == disks[1], "the disks differ");
}

#[test]
fn what_a_running_replicator_cannot_take_over_is_refused_and_says_what_to_do() {
    let sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "20M"]);
    sandbox.wait_level(0);
    let text = std::fs::read_to_string(sandbox.config()).unwrap();
    for (from, to, words) in [
        (
            "[[volume]]\n",
            "[[volume]]\nbusy-poll-us = 7\n",
            &["`busy-poll-us`", "restart this node's replicator"][..],
        ),
        ("b.journal", "b2.journal", &["nothing has changed"]),
        ("a.journal", "a2.journal", &["`journal` cannot change in a running replicator"]),
        ("[[volume]]\n", "[[volume]]\nfoo = 7\n", &["unknown key `foo`"]),
    ] {
        std::fs::write(sandbox.config(), text.replacen(from, to, 1)).unwrap();
        let answer = reload(&sandbox, 0);
        assert!(words.iter().all(|word| said(&answer).contains(word)), "{}", said(&answer));
    }
    let other =
        "[[volume]]\nname = \"r1\"\nuuid = \"01915f1e-0a4b-4c3d-8e2f-0123456789ac\"\nsize = \"1MiB\"\n";
    let replica = format!(
        "[[volume.replica]]\nnode = \"a\"\ndisk = \"a1\"\njournal = \"a2\"\nport = {}\nnbd-socket = \"a1.nbd\"\n",
        free_port()
    );
    std::fs::write(sandbox.config(), format!("{text}\n{other}{replica}")).unwrap();
    refused(&reload(&sandbox, 0), &["volume r1 is new on node a", "restart"]);
    std::fs::write(sandbox.config(), text).unwrap();
    done(&reload(&sandbox, 0), "nothing has changed");
    sandbox.wait_level(0);
}

/// Whoever leads is told; there may be nobody for a moment.
fn pause(cluster: &Cluster, more: &[&str]) {
    let socket = cluster.path("w.orc");
    let arguments: Vec<&str> =
        ["cluster", "pause", "--control", socket.to_str().unwrap()].iter().chain(more).copied().collect();
    wait_for("the orchestrators to agree", || run(&arguments).status.success().then_some(()));
}

/// The orchestrators read the file again, one after the other, while the primary serves. Nothing fails over meanwhile.
fn restart_orchestrators(cluster: &mut Cluster, primary: &str, members: usize) {
    pause(cluster, &[]);
    for node in ["a", "b", "w"] {
        cluster.restart_orchestrator(node);
        wait_for("a leader that hears all", || {
            let status = cluster.status(node)?;
            let nodes = status["nodes"].as_array()?;
            (status["leader"].is_string() && nodes.iter().all(|node| node["health"] == "alive")).then_some(())
        });
        cluster.wait_primary(node, primary, members);
    }
    pause(cluster, &["--off"]);
}

#[test]
fn with_orchestrators_the_witness_gets_a_replica_and_another_one_is_removed_under_load() {
    let mut cluster = Cluster::start_with("", |_| String::new());
    cluster.wait_primary("w", "a", 2);
    let socket =
        |cluster: &Cluster, node: &str| cluster.path(&format!("{node}.nbd")).to_str().unwrap().to_owned();
    let reload = |cluster: &Cluster, node: &str| {
        run(&["reload", "--control", cluster.path(&format!("{node}.ctl")).to_str().unwrap()])
    };
    let writer = Writer::start(&socket(&cluster, "a"));

    let text = std::fs::read_to_string(cluster.config()).unwrap();
    let replica = format!(
        "\n[[volume.replica]]\nnode = \"w\"\ndisk = \"w.disk\"\njournal = \"w.journal\"\njournal-size = \"32MiB\"\n\
         port = {}\nnbd-socket = \"w.nbd\"\n",
        free_port()
    );
    let text = text + &replica;
    std::fs::write(cluster.config(), &text).unwrap();
    for node in ["a", "b"] {
        done(&reload(&cluster, node), "w is a replica of the volume here from now on");
    }
    restart_orchestrators(&mut cluster, "a", 2);
    let created = run(&["create", "r0", "--config", cluster.config().to_str().unwrap(), "--node", "w"]);
    assert!(created.status.success(), "{}", said(&created));
    cluster.spawn("replicator", "w");
    cluster.wait_primary("b", "a", 3);

    std::fs::write(cluster.config(), without_replica(&text, "b")).unwrap();
    refused(&reload(&cluster, "a"), &["b is in the in-sync set: stop its replicator"]);
    cluster.kill("replicator", "b");
    cluster.wait_primary("w", "a", 2);
    for node in ["a", "w"] {
        wait_for("b to be let go", || reload(&cluster, node).status.success().then_some(()));
    }
    restart_orchestrators(&mut cluster, "a", 2);
    let last = writer.end();
    has_all(&socket(&cluster, "a"), &last);

    cluster.kill_node("a");
    cluster.wait_primary("b", "w", 1);
    has_all(&socket(&cluster, "w"), &last);
}
