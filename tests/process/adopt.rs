//! Disks whose contents become the data of a volume: one that a file system was on before, and a replica that still
//! shows what the volume was.

use holdfast_tests::{Client, Sandbox, run, said, wait_for};

const BLOCK: usize = 4096;
const VOLUME_BYTES: usize = 16 << 20;

fn create(sandbox: &Sandbox, node: &str, how: &[&str]) {
    let config = sandbox.config();
    let words = ["create", "r0", "--config", config.to_str().unwrap(), "--node", node, "--force"];
    let made = run(&[&words, how].concat());
    assert!(made.status.success(), "{}", said(&made));
}

fn give_up(sandbox: &Sandbox, node: &str) {
    let control = &sandbox.nodes[usize::from(node == "b")].control;
    let given_up = run(&["resolve", "r0", "--discard", node, "--yes", "--control", control]);
    assert!(given_up.status.success(), "{}", said(&given_up));
}

fn promoted(sandbox: &Sandbox, node: usize) -> Client {
    wait_for("it to be promoted", || sandbox.promote(node, false).status.success().then_some(()));
    wait_for("the export to open", || Client::connect(&sandbox.nodes[node].nbd_socket).ok())
}

#[test]
fn a_disk_that_had_data_before_becomes_the_volume() {
    let mut sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "20M"]);
    sandbox.wait_level(0);
    sandbox.kill(0);
    sandbox.kill(1);
    let data: Vec<u8> =
        (0..VOLUME_BYTES / 4).flat_map(|n| (n as u32).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&sandbox.nodes[0].disk, &data).unwrap();
    std::fs::remove_file(&sandbox.nodes[0].journal).unwrap();
    create(&sandbox, "a", &["--adopt"]);
    create(&sandbox, "b", &[]);
    sandbox.restart(1);
    // Fresh, and so "equal" to any other fresh one: but not alone, and not over this one.
    wait_for("b to answer", || sandbox.status(1));
    assert!(!sandbox.promote(1, false).status.success(), "zeros are promoted over what was adopted");
    sandbox.restart(0);
    let mut client = promoted(&sandbox, 0);
    client.write_at(BLOCK as u64, &[9; BLOCK]).unwrap();
    sandbox.wait_level(0);
    drop(client);
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1], "the disks differ");
    assert!(disks[0][..BLOCK] == data[..BLOCK] && disks[0][2 * BLOCK..] == data[2 * BLOCK..]);
    assert!(disks[0][BLOCK..2 * BLOCK].iter().all(|byte| *byte == 9));
}

/// Nothing is known of what a disk held before it was adopted: giving it up again brings all of it level.
#[test]
fn what_was_adopted_and_is_given_up_becomes_equal_again() {
    let mut sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "20M"]);
    sandbox.wait_level(0);
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    client.write_at(0, &[3; BLOCK]).unwrap();
    client.flush().unwrap();
    drop(client);
    sandbox.terminate(1);
    std::fs::write(&sandbox.nodes[1].disk, vec![5; VOLUME_BYTES]).unwrap();
    create(&sandbox, "b", &["--adopt"]);
    sandbox.restart(1);
    wait_for("b to be refused", || {
        let peers = sandbox.status(1)?["peers"].clone();
        (peers[0]["connection"] == "StandAlone").then_some(())
    });
    give_up(&sandbox, "b");
    // It has promised a later epoch than that of a.
    let demoted = run(&["demote", "r0", "--control", &sandbox.nodes[0].control]);
    assert!(demoted.status.success(), "{}", said(&demoted));
    wait_for("a to serve", || sandbox.promote(0, true).status.success().then_some(()));
    sandbox.wait_level(0);
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1], "the disks differ");
    assert!(disks[0][..BLOCK] == [3; BLOCK] && disks[0][BLOCK..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_volume_is_set_back_to_a_position_that_a_delayed_replica_still_shows() {
    let mut sandbox = Sandbox::start_delayed("1h");
    let write = |sandbox: &Sandbox, byte: u8| {
        let mut client =
            wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
        client.write_at(0, &[byte; BLOCK]).unwrap();
        client.flush().unwrap();
        let head = sandbox.status(0).unwrap()["head"].clone();
        wait_for("b to have it in its journal", || (sandbox.status(1)?["head"] == head).then_some(()));
        head.as_str().unwrap().to_owned()
    };
    let good = write(&sandbox, 1);
    write(&sandbox, 2);
    wait_for("it to stand still at that position", || {
        run(&["freeze-apply", "r0", "--at", &good, "--control", &sandbox.nodes[1].control])
            .status
            .success()
            .then_some(())
    });
    sandbox.kill(0);
    sandbox.terminate(1);
    create(&sandbox, "b", &["--adopt"]);

    sandbox.restart(1);
    let mut client = promoted(&sandbox, 1);

    // What went on meanwhile is kept out, and as it is, until somebody gives it up.
    sandbox.restart(0);
    wait_for("a to be told why", || {
        let peers = sandbox.status(0)?["peers"].clone();
        (peers[0]["connection"] == "StandAlone").then_some(())
    });
    let text = sandbox.status_text(0);
    assert!(text.contains("their logs part after entry 0:0"), "{text}");
    give_up(&sandbox, "a");
    let mut block = vec![0; BLOCK];
    client.read_at(0, &mut block).unwrap();
    assert!(block.iter().all(|byte| *byte == 1), "the position that was chosen");
    sandbox.wait_level(1);
    drop(client);
    let disks = sandbox.stop_and_read_disks(1);
    assert!(disks[0] == disks[1] && disks[0][..BLOCK].iter().all(|byte| *byte == 1), "the disks differ");
}
