//! A volume that grows while it is in use, with real processes and files.

use std::process::Output;

use holdfast_tests::{Client, Sandbox, run, wait_for};

const MIB: u64 = 1 << 20;

fn grow(sandbox: &Sandbox, node: usize, size: &str) -> Output {
    run(&["grow", "r0", "--size", size, "--control", &sandbox.nodes[node].control])
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn has_bytes(sandbox: &Sandbox, node: usize, bytes: u64) {
    wait_for("the size to be stored", || sandbox.status(node).filter(|v| v["size_bytes"] == bytes));
}

fn read(client: &mut Client, offset: u64) -> Vec<u8> {
    let mut bytes = vec![1; 4096];
    client.read_at(offset, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_volume_grows_under_its_clients_and_stays_grown_through_a_crash_and_a_takeover() {
    let mut sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "20M"]);
    sandbox.wait_level(0);
    let mut old = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    old.write_at(16 * MIB - 4096, &[7; 4096]).unwrap();
    // Behind the end lies something that nobody wrote to this volume.
    let disk = std::fs::OpenOptions::new().write(true).open(&sandbox.nodes[1].disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &[0xee; 4096], 20 * MIB).unwrap();
    let done = grow(&sandbox, 0, "64M");
    assert!(done.status.success(), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stdout).contains("67108864 bytes now"), "{done:?}");
    let mut new = Client::connect(&sandbox.nodes[0].nbd_socket).unwrap();
    assert_eq!(new.size_bytes, 64 * MIB);
    assert_eq!(read(&mut new, 20 * MIB), [0; 4096]);
    new.write_at(64 * MIB - 4096, &[9; 4096]).unwrap();
    // A client that was there before goes on with the size it was told.
    assert_eq!(read(&mut old, 16 * MIB - 4096), [7; 4096]);
    new.flush().unwrap();
    has_bytes(&sandbox, 1, 64 * MIB);
    sandbox.kill(0);
    wait_for("b to take over", || sandbox.promote(1, true).status.success().then_some(()));
    sandbox.restart(0);
    sandbox.wait_level(1);
    has_bytes(&sandbox, 0, 64 * MIB);
    assert!(sandbox.log(0).contains("the configuration still says"), "{}", sandbox.log(0));
    let mut client = wait_for("b to serve", || Client::connect(&sandbox.nodes[1].nbd_socket).ok());
    assert_eq!(client.size_bytes, 64 * MIB);
    for (offset, byte) in [(16 * MIB - 4096, 7), (20 * MIB, 0), (64 * MIB - 4096, 9)] {
        assert_eq!(read(&mut client, offset), [byte; 4096]);
    }
    drop((old, new, client));
    let disks = sandbox.stop_and_read_disks(1);
    assert!(disks[0].len() as u64 == 64 * MIB && disks[0] == disks[1], "the disks differ");
}

#[test]
fn growing_is_refused_in_words_where_it_cannot_be() {
    let mut sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "20M"]);
    sandbox.wait_level(0);
    for (node, size, words) in [
        (0, "8M", "cannot shrink"),
        (0, "16M", "already"),
        (1, "32M", "grown where it is Primary"),
        (0, "512T", "dirty map"),
    ] {
        let refused = grow(&sandbox, node, size);
        assert!(!refused.status.success() && text(&refused).contains(words), "{}", text(&refused));
    }
    sandbox.kill(1);
    wait_for("a to notice", || {
        let refused = grow(&sandbox, 0, "32M");
        (!refused.status.success() && text(&refused).contains("is not connected and level")).then_some(())
    });
}
