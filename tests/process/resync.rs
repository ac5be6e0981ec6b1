//! Coming back with real processes: what the journal no longer holds is brought by blocks.

use std::process::Output;

use holdfast_tests::{Client, Sandbox, run, wait_for};

const MIB: usize = 1 << 20;

fn bytes(seed: usize) -> Vec<u8> {
    let mut state = seed as u64 * 2 + 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()[0]
    };
    (0..MIB).map(next).collect()
}

/// Writes more than the journal holds, in the first half of the volume.
fn write_a_lot(sandbox: &Sandbox, seed: usize) {
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    for n in 0..64 {
        client.write_at((n % 32 * MIB) as u64, &bytes(seed + n)).unwrap();
    }
    client.flush().unwrap();
}

fn start() -> Sandbox {
    let arguments = ["--size", "64M", "--journal-size", "20M", "--on-peer-loss", "continue"];
    let sandbox = Sandbox::start(&arguments);
    sandbox.wait_level(0);
    sandbox
}

/// Bytes of blocks that node a has sent; waits until b is whole.
fn resynced(sandbox: &Sandbox) -> u64 {
    sandbox.wait_level(0);
    wait_for("b to be UpToDate", || sandbox.status(1).filter(|v| v["disk_state"] == "UpToDate"));
    sandbox.status(0).unwrap()["counters"]["resync_bytes"].as_u64().unwrap()
}

fn assert_equal(sandbox: Sandbox) {
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1], "the disks differ");
    assert!(disks[0].iter().any(|byte| *byte != 0));
}

fn invalidate(sandbox: &Sandbox, further: &[&str]) -> Output {
    run(&[&["invalidate", "r0", "--control", &sandbox.nodes[1].control], further].concat())
}

#[test]
fn a_node_that_was_down_for_longer_than_the_journal_gets_what_changed() {
    let mut sandbox = start();
    sandbox.kill(1);
    write_a_lot(&sandbox, 0);
    sandbox.restart(1);
    let bytes = resynced(&sandbox);
    assert!(bytes > 0 && bytes <= 33 * MIB as u64, "{bytes} bytes were sent");
    assert_equal(sandbox);
}

#[test]
fn a_wiped_disk_comes_back_with_create_force() {
    let mut sandbox = start();
    write_a_lot(&sandbox, 100);
    sandbox.kill(1);
    let config = sandbox.config();
    let config = config.to_str().unwrap();
    let created = run(&["create", "r0", "--config", config, "--node", "b", "--force"]);
    assert!(created.status.success(), "{created:?}");
    sandbox.restart(1);
    let bytes = resynced(&sandbox);
    assert!(bytes > 0 && bytes <= 33 * MIB as u64, "{bytes} bytes were sent");
    assert_equal(sandbox);
}

#[test]
fn invalidate_wants_to_be_meant_and_brings_the_copy_back() {
    let sandbox = start();
    write_a_lot(&sandbox, 200);
    // What is only in its journal goes with its data.
    wait_for("b to have applied it", || sandbox.status(1).filter(|v| v["applied"] == v["journaled"]));
    let refused = invalidate(&sandbox, &[]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--discard-my-data"), "{refused:?}");
    let done = invalidate(&sandbox, &["--discard-my-data"]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(resynced(&sandbox), 0, "nothing differed, so nothing was sent");
    assert_equal(sandbox);
}
