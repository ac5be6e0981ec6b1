//! Forks and frozen secondaries with real processes: two forced primaries, the branch that is kept of the one that
//! yields, and a secondary that offers one exact position while writes go on.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use holdfast_tests::{Client, Sandbox, run, wait_for};
use nbd::client::{NbdClient, handshake};
use std::io::{Read, Seek, SeekFrom};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

fn start(journal_size: &str) -> Sandbox {
    let arguments = ["--size", "32M", "--journal-size", journal_size, "--on-peer-loss", "continue"];
    let sandbox = Sandbox::start(&arguments);
    sandbox.wait_level(0);
    sandbox
}

fn write(sandbox: &Sandbox, node: usize, stamps: std::ops::Range<usize>, byte: u8) {
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[node].nbd_socket).ok());
    for n in stamps {
        client.write_at((n * 2 * BLOCK) as u64, &[byte; BLOCK]).unwrap();
    }
    client.flush().unwrap();
}

/// Reads all of an export, with the protocol's own words and none of ours.
fn read_export(socket: &str, name: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    let export = handshake(&mut stream, name.as_bytes())?;
    let mut bytes = vec![0; usize::try_from(export.size).unwrap()];
    let mut client = NbdClient::new(stream, &export);
    client.seek(SeekFrom::Start(0))?;
    for piece in bytes.chunks_mut(MIB) {
        client.read_exact(piece)?;
    }
    Ok(bytes)
}

/// Reads all of an export with nbdcopy, where that is installed.
fn nbdcopy(socket: &str, name: &str) -> Option<Vec<u8>> {
    let uri = format!("nbd+unix:///{name}?socket={socket}");
    let output = Command::new("nbdcopy").args([&uri, "-"]).stdin(Stdio::null()).output().ok()?;
    assert!(output.status.success(), "{output:?}");
    Some(output.stdout)
}

/// Both nodes serve and write alone: a goes on without b, and is killed; b is forced.
fn forked() -> Sandbox {
    let mut sandbox = start("20M");
    write(&sandbox, 0, 0..200, 1);
    sandbox.kill(1);
    write(&sandbox, 0, 100..300, 2);
    // What lies on its disk is what it held.
    wait_for("a to have applied all", || sandbox.status(0).filter(|v| v["applied"] == v["journaled"]));
    sandbox.kill(0);
    sandbox.restart(1);
    wait_for("b to answer", || sandbox.status(1));
    let forced = sandbox.promote(1, true);
    assert!(forced.status.success(), "{forced:?}");
    write(&sandbox, 1, 250..400, 3);
    sandbox.restart(0);
    wait_for("both sides to know of the fork", || {
        let knows = |n| sandbox.status(n).is_some_and(|status| status["peers"][0]["fork"].is_object());
        (knows(0) && knows(1)).then_some(())
    });
    sandbox
}

#[test]
fn two_primaries_by_force_are_told_apart_resolved_and_nothing_is_lost() {
    let sandbox = forked();
    let [a, b] = [0, 1].map(|n| sandbox.status(n).unwrap()["peers"][0]["fork"].clone());
    assert_eq!((&a["common"], &a["here"]["head"]), (&b["common"], &b["there"]["head"]));
    assert!(a["here"]["entries"].as_u64().unwrap() > 0 && a["there"]["entries"].as_u64().unwrap() > 0, "{a}");
    assert!(a["here"]["last_ms"].as_u64().unwrap() > 1_600_000_000_000, "{a}");
    for node in 0..2 {
        let text = sandbox.status_text(node);
        assert!(text.contains("split brain") && text.contains("holdfast resolve r0 --discard"), "{text}");
        wait_for("the log to tell", || {
            sandbox.log(node).contains("fork: the logs here and on").then_some(())
        });
    }
    let held = std::fs::read(&sandbox.nodes[0].disk).unwrap();
    let control = sandbox.nodes[1].control.clone();
    let asked = run(&["resolve", "r0", "--discard", "a", "--control", &control]);
    assert!(!asked.status.success() && String::from_utf8_lossy(&asked.stderr).contains("--yes"), "{asked:?}");
    let done = run(&["resolve", "r0", "--discard", "a", "--yes", "--control", &control]);
    assert!(done.status.success(), "{done:?}");
    sandbox.wait_level(1);
    // What a held is in the branch, where it differs from what it has now.
    let list = run(&["branch", "list", "r0", "--json", "--control", &sandbox.nodes[0].control]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let branch = &list["branches"][0];
    let export = branch["export"].as_str().unwrap();
    let kept = read_export(&sandbox.nodes[0].nbd_socket, export).unwrap();
    if let Some(copied) = nbdcopy(&sandbox.nodes[0].nbd_socket, export) {
        assert!(copied == kept, "nbdcopy reads something else");
    }
    let stays = {
        let mut client = Client::connect(&sandbox.nodes[1].nbd_socket).unwrap();
        let mut bytes = vec![0; held.len()];
        bytes
            .chunks_mut(MIB)
            .enumerate()
            .for_each(|(n, piece)| client.read_at((n * MIB) as u64, piece).unwrap());
        bytes
    };
    let mut differing = 0;
    for (block, was) in held.chunks(BLOCK).enumerate() {
        let at = block * BLOCK..(block + 1) * BLOCK;
        if was != &stays[at.clone()] {
            differing += 1;
            assert!(was == &kept[at], "block {block} of what a held is not in its branch");
        }
    }
    assert!(differing >= 200, "{differing}");
    assert!(branch["blocks"].as_u64().unwrap() < 1000, "{branch}");
    let deleted = run(&[
        "branch",
        "delete",
        "r0",
        branch["name"].as_str().unwrap(),
        "--control",
        &sandbox.nodes[0].control,
    ]);
    assert!(deleted.status.success(), "{deleted:?}");
    assert!(read_export(&sandbox.nodes[0].nbd_socket, export).is_err(), "it is still offered");
    let disks = sandbox.stop_and_read_disks(1);
    assert!(disks[0] == disks[1], "the disks differ");
    assert!(disks[0] == stays, "the wrong side stayed");
}

#[test]
fn a_frozen_secondary_offers_exactly_one_position_while_writes_go_on() {
    // Half of the journal is what a freeze may use.
    let mut sandbox = start("128M");
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    // Write n puts the stamp n at its place: a prefix has the stamps 1..=k and nothing after, for one k.
    let mut stamp = |n: usize| {
        let mut bytes = [0; BLOCK];
        bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
        client.write_at((n * BLOCK) as u64, &bytes).unwrap();
    };
    (1..=1000).for_each(&mut stamp);
    let control = sandbox.nodes[1].control.clone();
    wait_for("b to apply something", || sandbox.status(1).filter(|v| v["applied"].as_u64() > Some(1)));
    let writer = std::thread::scope(|scope| {
        let writes = scope.spawn(|| (1001..=2500).for_each(&mut stamp));
        let frozen = run(&["freeze-apply", "r0", "--control", &control]);
        writes.join().unwrap();
        frozen
    });
    assert!(writer.status.success(), "{writer:?}");
    let prefix = |bytes: &[u8]| {
        let stamps: Vec<u64> =
            bytes.chunks(BLOCK).map(|block| u64::from_le_bytes(block[..8].try_into().unwrap())).collect();
        let count = stamps[1..].iter().take_while(|stamp| **stamp != 0).count();
        assert!(stamps[1..=count].iter().zip(1..).all(|(stamp, n)| *stamp == n), "a stamp is out of place");
        assert!(
            stamps[count + 1..].iter().all(|stamp| *stamp == 0),
            "a later write shows, and an earlier one does not"
        );
        count
    };
    let first = prefix(&read_export(&sandbox.nodes[1].nbd_socket, "r0@frozen").unwrap());
    (2501..=4000).for_each(&mut stamp);
    assert_eq!(prefix(&read_export(&sandbox.nodes[1].nbd_socket, "r0@frozen").unwrap()), first);
    let status = sandbox.status(1).unwrap();
    assert!(status["freeze"]["used_bytes"].as_u64().unwrap() > 0, "{status}");
    assert!(sandbox.status_text(1).contains("apply is frozen at"), "{}", sandbox.status_text(1));
    // It survives a restart.
    sandbox.kill(1);
    sandbox.restart(1);
    wait_for("it to be frozen again", || sandbox.status(1).filter(|v| v["freeze"]["export"].is_string()));
    assert_eq!(prefix(&read_export(&sandbox.nodes[1].nbd_socket, "r0@frozen").unwrap()), first);
    let thawed = run(&["thaw", "r0", "--control", &control]);
    assert!(thawed.status.success(), "{thawed:?}");
    assert!(read_export(&sandbox.nodes[1].nbd_socket, "r0@frozen").is_err());
    sandbox.wait_level(0);
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1], "the disks differ");
    assert_eq!(prefix(&disks[1]), 4000);
}
