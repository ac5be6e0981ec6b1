//! Real disks with checksums: what is damaged behind the program's back is never read by a client, is found by a scrub on
//! either node, and is written anew.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use holdfast_tests::{Client, Sandbox, run, wait_for};
use serde_json::Value;

const BLOCK: usize = 4096;
const BLOCKS: usize = 256;

fn damage(sandbox: &Sandbox, node: usize, blocks: &[u64]) {
    let disk = std::fs::OpenOptions::new().write(true).open(&sandbox.nodes[node].disk).unwrap();
    for block in blocks {
        disk.write_all_at(b"not what was written here", block * BLOCK as u64 + 77).unwrap();
    }
}

fn scrub(sandbox: &Sandbox, node: usize) -> Value {
    let output = run(&["scrub", "r0", "--wait", "--json", "--control", &sandbox.nodes[node].control]);
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}", said());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said()))
}

fn mended(sandbox: &Sandbox, node: usize) -> u64 {
    let status = sandbox.status(node).expect("it runs");
    status["counters"]["mended_blocks"].as_u64().expect("a number")
}

#[test]
fn what_rots_at_rest_is_not_served_is_found_by_a_scrub_and_written_anew() {
    let sandbox = Sandbox::start(&["--size", "64M", "--journal-size", "32M", "--checksums", "on"]);
    sandbox.wait_level(0);
    let mut client = Client::connect(&sandbox.nodes[0].nbd_socket).unwrap();
    let content: Vec<u8> = (0..BLOCKS * BLOCK).map(|at| u8::try_from(at / 512 % 251).unwrap()).collect();
    client.write_at(0, &content).unwrap();
    client.flush().unwrap();
    wait_for("both to have applied everything", || {
        let head = sandbox.status(0)?["journaled"].clone();
        (0..2).all(|node| sandbox.status(node).is_some_and(|status| status["applied"] == head)).then_some(())
    });

    damage(&sandbox, 0, &[3, 200]);
    let began = Instant::now();
    let mut found = vec![0; content.len()];
    client.read_at(0, &mut found).unwrap();
    assert!(found == content, "the client reads what was written");
    println!("two rotten blocks were found and mended in {} us", began.elapsed().as_micros());
    assert_eq!(mended(&sandbox, 0), 2);
    assert!(sandbox.log(0).contains("does not match its checksum"), "{}", sandbox.log(0));

    for node in [0, 1] {
        let before = mended(&sandbox, node);
        damage(&sandbox, node, &[10, 11, 255]);
        let report = scrub(&sandbox, node);
        assert_eq!(report["bad_bytes"], 3 * BLOCK, "{report:#}");
        wait_for("what is bad to be written anew", || (mended(&sandbox, node) == before + 3).then_some(()));
        assert_eq!(scrub(&sandbox, node)["bad_bytes"], 0);
        assert!(sandbox.status_text(node).contains("scrubbed less than an hour ago: 0 bad blocks"));
    }
    drop(client);
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1], "both disks hold the same bytes");
}

#[test]
fn what_a_killed_process_leaves_is_not_called_rotten() {
    let mut sandbox = Sandbox::start(&["--size", "64M", "--journal-size", "32M", "--checksums", "on"]);
    sandbox.wait_level(0);
    let mut client = Client::connect(&sandbox.nodes[0].nbd_socket).unwrap();
    for round in 0..4_u64 {
        for write in 0..400_u64 {
            // Parts of blocks, too: 512 bytes to 8 KiB from any sector on.
            let at = (write * 7919 + round * 131) % 120_000 * 512;
            let len = (1 + (write * 31 + round) % 16) * 512;
            client
                .write_at(at, &vec![u8::try_from(write % 256).unwrap(); usize::try_from(len).unwrap()])
                .unwrap();
        }
        sandbox.kill(1);
        sandbox.restart(1);
        wait_for("the node to answer again", || sandbox.status(1).map(|_| ()));
        sandbox.wait_level(0);
        assert_eq!(scrub(&sandbox, 1)["bad_bytes"], 0, "after kill {round}");
    }
    assert_eq!(scrub(&sandbox, 0)["bad_bytes"], 0);
    drop(client);
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1], "both disks hold the same bytes");
}
