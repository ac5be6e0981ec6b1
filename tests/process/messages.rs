//! What a wrong start says: the message names the cause, and nothing is overwritten.

use std::os::unix::fs::FileExt;
use std::process::Output;

use holdfast_tests::{Sandbox, run, wait_for};

fn text(output: &Output) -> String {
    assert!(!output.status.success(), "it must fail: {output:?}");
    let all = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&all).into_owned()
}

/// Starts node `name` and returns what it says; it must end by itself.
fn start(sandbox: &Sandbox, name: &str) -> String {
    let config = sandbox.config();
    text(&run(&["replicator", "--config", config.to_str().unwrap(), "--node", name]))
}

fn small() -> Sandbox {
    Sandbox::start(&["--size", "16M", "--journal-size", "32M"])
}

fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
}

#[test]
fn a_second_replicator_for_the_same_replica_is_refused() {
    let sandbox = small();
    assert_says(&start(&sandbox, "a"), &["in use"]);
    assert_eq!(sandbox.status(0).unwrap()["role"], "Primary", "the first one is not disturbed");
}

#[test]
fn creating_over_a_replica_is_refused_without_force() {
    let sandbox = small();
    let config = sandbox.config();
    let said = text(&run(&["create", "r0", "--config", config.to_str().unwrap(), "--node", "a"]));
    assert!(said.contains("in use") || said.contains("--force"), "{said}");
}

#[test]
fn a_disk_of_another_replica_is_refused() {
    let mut sandbox = small();
    sandbox.kill(1);
    let (disk, other) = (sandbox.nodes[1].disk.clone(), sandbox.nodes[1].disk.with_extension("moved"));
    std::fs::rename(&disk, &other).unwrap();
    std::fs::copy(&other, &disk).unwrap();
    assert_says(&start(&sandbox, "b"), &["disk", "journal"]);
}

#[test]
fn a_journal_of_another_node_is_refused() {
    let mut sandbox = small();
    sandbox.kill(0);
    sandbox.kill(1);
    let (a, b) = (sandbox.nodes[0].journal.clone(), sandbox.nodes[1].journal.clone());
    std::fs::copy(a, b).unwrap();
    assert_says(&start(&sandbox, "b"), &["node"]);
}

#[test]
fn a_disk_that_shrank_is_refused() {
    let mut sandbox = small();
    sandbox.kill(1);
    let disk = std::fs::OpenOptions::new().write(true).open(&sandbox.nodes[1].disk).unwrap();
    disk.set_len(1 << 20).unwrap();
    assert_says(&start(&sandbox, "b"), &["disk"]);
    assert_eq!(disk.metadata().unwrap().len(), 1 << 20, "nothing was changed");
}

#[test]
fn one_damaged_superblock_is_repaired_and_two_are_refused() {
    let mut sandbox = small();
    sandbox.kill(1);
    let journal = std::fs::OpenOptions::new().write(true).open(&sandbox.nodes[1].journal).unwrap();
    journal.write_all_at(b"damage", 100).unwrap();
    sandbox.restart(1);
    sandbox.wait_level(0);
    sandbox.kill(1);
    journal.write_all_at(b"damage", 100).unwrap();
    journal.write_all_at(b"damage", (64 << 10) + 100).unwrap();
    assert_says(&start(&sandbox, "b"), &["superblock"]);
}

#[test]
fn a_journal_that_is_too_small_is_refused_by_the_configuration() {
    let sandbox = small();
    let config = sandbox.config();
    let text_of = std::fs::read_to_string(&config).unwrap();
    let line = text_of.lines().find(|line| line.trim().starts_with("journal-size")).unwrap();
    let wrong = config.with_file_name("small.toml");
    std::fs::write(&wrong, text_of.replace(line, "journal-size = \"1MiB\"")).unwrap();
    let said = text(&run(&["config", "check", wrong.to_str().unwrap()]));
    assert_says(&said, &["journal", "small.toml"]);
}

#[test]
fn a_port_in_use_is_named() {
    let mut sandbox = small();
    sandbox.kill(1);
    let config = std::fs::read_to_string(sandbox.config()).unwrap();
    let ports: Vec<u16> = config
        .lines()
        .filter_map(|line| line.trim().strip_prefix("port")?.split('=').nth(1)?.trim().parse().ok())
        .collect();
    // The kernel takes a moment to let go of what a killed process held.
    let _taken =
        wait_for("the port to be free", || std::net::TcpListener::bind(("127.0.0.1", ports[1])).ok());
    assert_says(&start(&sandbox, "b"), &[&ports[1].to_string()]);
}
