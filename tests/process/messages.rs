//! What a wrong start says: the message names the cause, and nothing is overwritten.

use std::os::unix::fs::FileExt;
use std::process::Output;

use holdfast_tests::{Client, Sandbox, run, wait_for};

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
    let mut sandbox = small();
    let config = sandbox.config();
    let create = |node| text(&run(&["create", "r0", "--config", config.to_str().unwrap(), "--node", node]));
    assert_says(&create("a"), &["in use"]);
    sandbox.kill(1);
    let said = wait_for("the kernel to let go of the journal", || {
        Some(create("b")).filter(|said| !said.contains("in use"))
    });
    assert_says(&said, &["of node b", "--force"]);
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
    assert_says(&start(&sandbox, "b"), &["belongs to node a, this is node b"]);
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
    wait_for("the node to be up again", || {
        sandbox
            .status_text(1)
            .contains("a damaged copy of the superblock was found and repaired")
            .then_some(())
    });
    sandbox.wait_level(0);
    assert_says(&sandbox.log(1), &["one copy of the superblock is damaged", "After a power cut that may be"]);
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

#[test]
fn what_is_no_configuration_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let check = |path: &std::path::Path| text(&run(&["config", "check", path.to_str().unwrap()]));
    assert_says(&check("/dev/zero".as_ref()), &["is a device", "regular file"]);
    assert_says(&check(folder.path()), &["is a directory"]);
    let file = folder.path().join("holdfast.toml");
    std::fs::File::create(&file).unwrap().set_len(10 << 30).unwrap();
    assert_says(&check(&file), &["1048576 bytes is the most", "is it the right file?"]);
    std::fs::write(&file, b"[cluster]\nname = \"\xe9\"\n").unwrap();
    assert_says(&check(&file), &["line 2, byte 9 of it (0xe9) is not UTF-8"]);
    std::fs::write(&file, format!("[clustr]\nname = \"{}\" nonsense\n", "x".repeat(200_000))).unwrap();
    let said = check(&file);
    assert!(said.len() < 2000, "a long line is not echoed whole: {} bytes", said.len());
    std::fs::write(&file, "[clustr]\n").unwrap();
    assert_says(&check(&file), &["`cluster` is missing in the file"]);
}

/// The exit code of `inspect`, and what it says.
fn inspect(sandbox: &Sandbox, node: &str) -> (Option<i32>, String) {
    let config = sandbox.config();
    let output = run(&["inspect", "r0", "--config", config.to_str().unwrap(), "--node", node]);
    let all = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&all).into_owned())
}

#[test]
fn inspection_says_what_is_damaged_and_its_exit_code_does_too() {
    let mut sandbox = small();
    let mut client = Client::connect(&sandbox.nodes[0].nbd_socket).unwrap();
    for block in 0..8 {
        client.write_at(block * 4096, &[7; 4096]).unwrap();
    }
    client.flush().unwrap();
    let (code, said) = inspect(&sandbox, "b");
    assert_eq!(code, Some(0), "{said}");
    assert_says(&said, &["in use by a running process"]);
    sandbox.kill(1);
    let (code, said) = wait_for("the kernel to let go of the journal", || {
        Some(inspect(&sandbox, "b")).filter(|(_, said)| !said.contains("in use"))
    });
    assert_eq!(code, Some(0), "{said}");
    let disk = std::fs::OpenOptions::new().write(true).open(&sandbox.nodes[1].disk).unwrap();
    let disk_bytes = disk.metadata().unwrap().len();
    disk.set_len(disk_bytes - 4096).unwrap();
    let (code, said) = inspect(&sandbox, "b");
    assert_eq!(code, Some(3), "{said}");
    assert_says(&said, &["is too short"]);
    disk.set_len(disk_bytes).unwrap();
    let journal = std::fs::OpenOptions::new().write(true).open(&sandbox.nodes[1].journal).unwrap();
    journal.write_all_at(b"damage", 100).unwrap();
    let (code, said) = inspect(&sandbox, "b");
    assert_eq!(code, Some(3), "{said}");
    assert_says(&said, &["superblock copy 0 is damaged"]);
    let ring_at = said.lines().find_map(|line| line.strip_prefix("ring: ")?.split("byte ").nth(1)).unwrap();
    journal.write_all_at(b"damage", ring_at.trim().parse::<u64>().unwrap() + 20).unwrap();
    let (code, said) = inspect(&sandbox, "b");
    assert_eq!(code, Some(3), "{said}");
    assert_says(&said, &["the journal is damaged at byte", "was durable here"]);
    let output = run(&["inspect", "--journal", "/"]);
    assert_says(&String::from_utf8_lossy(&output.stderr), &["Is a directory"]);
}

/// Both nodes were promoted while the other was down, and both took writes.
fn split_brain() -> Sandbox {
    let mut sandbox = small();
    for (survivor, other) in [(1, 0), (0, 1)] {
        sandbox.kill(other);
        if survivor == 0 {
            sandbox.restart(0);
        }
        wait_for("the survivor to be promoted", || {
            sandbox.promote(survivor, true).status.success().then_some(())
        });
        let mut client =
            wait_for("the export to open", || Client::connect(&sandbox.nodes[survivor].nbd_socket).ok());
        client.write_at(0, &[u8::try_from(survivor).unwrap() + 1; 4096]).unwrap();
        client.flush().unwrap();
    }
    sandbox.restart(1);
    for node in 0..2 {
        wait_for("the two to refuse each other", || {
            let status = sandbox.status(node)?;
            (status["peers"][0]["connection"] == "StandAlone").then_some(())
        });
    }
    sandbox
}

#[test]
fn a_split_brain_is_said_once_by_name_and_with_the_right_advice() {
    let sandbox = split_brain();
    let said = sandbox.status_text(0);
    assert_says(
        &said,
        &["split brain", "neither a restart nor a promotion heals it", "b is refused and does not come back"],
    );
    for wrong in ["it catches up by itself", "bring the other replica back"] {
        assert!(!said.contains(wrong), "{said}");
    }
    let lines = |node: usize| -> Vec<String> {
        sandbox.log(node).lines().filter(|line| line.contains("split brain")).map(str::to_owned).collect()
    };
    assert_eq!(lines(0).len(), 1, "{:?}", lines(0));
    assert_says(&lines(0)[0], &["peer b: StandAlone: split brain"]);
    // Whoever does something about it is heard at once, and what is still so is not said again.
    let met = sandbox.log(0).len();
    let demoted = run(&["demote", "r0", "--control", &sandbox.nodes[0].control]);
    assert!(demoted.status.success(), "{demoted:?}");
    wait_for("the demotion to be logged", || sandbox.log(0)[met..].contains("role: Secondary").then_some(()));
    for node in 0..2 {
        let log = sandbox.log(node);
        let numbers = log
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
            .filter(|word| ["n0", "n1"].contains(word));
        assert_eq!(numbers.count(), 0, "nodes have names: {log}");
    }
}
