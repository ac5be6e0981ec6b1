//! Replicas whose disks were filled by hand, and disks that are zeros already.

use std::process::{Command, Output};

use holdfast_tests::{Client, Sandbox, run, said, wait_for};

const DATA_BYTES: usize = 12 << 20;

fn create(sandbox: &Sandbox, more: &[&str]) -> Output {
    let config = sandbox.config();
    let words = ["create", "r0", "--config", config.to_str().unwrap(), "--node", "b", "--force"];
    run(&[&words, more].concat())
}

fn resync_bytes(sandbox: &Sandbox) -> u64 {
    sandbox.status(0).unwrap()["counters"]["resync_bytes"].as_u64().unwrap()
}

/// Brings b back and says how much was sent until it was level.
fn brought_level(sandbox: &mut Sandbox) -> u64 {
    let before = resync_bytes(sandbox);
    sandbox.restart(1);
    sandbox.wait_level(0);
    wait_for("b to be whole", || sandbox.status(1).filter(|status| status["disk_state"] == "UpToDate"));
    resync_bytes(sandbox) - before
}

#[test]
fn of_a_disk_that_was_filled_by_hand_only_what_changed_since_is_sent() {
    let mut sandbox =
        Sandbox::start(&["--size", "32M", "--journal-size", "20M", "--on-peer-loss", "continue"]);
    sandbox.wait_level(0);
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    let data: Vec<u8> = (0..DATA_BYTES / 4)
        .flat_map(|n: usize| (n as u32).wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    // Twice, so that the journal does not reach back to the beginning.
    for (n, piece) in data.chunks(1 << 20).enumerate().chain(data.chunks(1 << 20).enumerate()) {
        client.write_at((n as u64) << 20, piece).unwrap();
    }
    client.flush().unwrap();
    let image = sandbox.nodes[1].disk.with_extension("truck");
    let uri = format!("nbd+unix:///r0?socket={}", sandbox.nodes[0].nbd_socket);
    let copied = Command::new("nbdcopy").args([&uri, image.to_str().unwrap()]).output().unwrap();
    assert!(copied.status.success(), "{copied:?}");
    sandbox.kill(1);
    // While it is on its way.
    client.write_at(20 << 20, &[7; 64 << 10]).unwrap();

    // With a new disk all of it is sent.
    let made = create(&sandbox, &[]);
    assert!(made.status.success(), "{}", said(&made));
    let all = brought_level(&mut sandbox);
    assert!(all >= DATA_BYTES as u64, "{all}");

    sandbox.kill(1);
    std::fs::copy(&image, &sandbox.nodes[1].disk).unwrap();
    let made = create(&sandbox, &["--seeded"]);
    assert!(made.status.success() && said(&made).contains("compared with the primary's"), "{}", said(&made));
    let some = brought_level(&mut sandbox);
    assert!((64 << 10..1 << 20).contains(&some), "{some} bytes were sent");
    drop(client);
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1], "the disks differ");
}

#[test]
fn a_seed_that_is_too_small_is_refused() {
    let mut sandbox = Sandbox::start(&["--size", "16M", "--on-peer-loss", "continue"]);
    sandbox.wait_level(0);
    sandbox.kill(1);
    std::fs::write(&sandbox.nodes[1].disk, [1; 4096]).unwrap();
    let made = create(&sandbox, &["--seeded"]);
    assert!(
        !made.status.success() && said(&made).contains("has 4096 bytes, the volume needs"),
        "{}",
        said(&made)
    );
}
