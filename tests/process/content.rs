//! What a volume holds is read off a replica at rest, with real processes and files.

use holdfast_tests::{Client, Sandbox, run, wait_for};

const VOLUME_BYTES: usize = 16 << 20;

#[test]
fn what_was_acknowledged_is_read_off_a_replica_that_was_killed() {
    let mut sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "20M"]);
    sandbox.wait_level(0);
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    let config = sandbox.config();
    let extract = |more: &[&str]| {
        let on_a = ["extract", "r0", "--config", config.to_str().unwrap(), "--node", "a"];
        run(&[&on_a, more].concat())
    };
    let mut expected = vec![0; VOLUME_BYTES];
    // Most of them lie over one another, and the last ones are surely not in place yet.
    for number in 1..=200_u8 {
        let offset = usize::from(number) * 37_888 % (1 << 20);
        let bytes = vec![number; usize::from(number % 7 + 1) * 4096];
        client.write_at(offset as u64, &bytes).unwrap();
        expected[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    let refused = extract(&[]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("in use"), "{text}");

    sandbox.kill(0);
    let whole = wait_for("the replicator to be gone", || {
        let output = extract(&[]);
        output.status.success().then_some(output)
    });
    assert!(whole.stdout == expected, "it is not what was written");
    let part = extract(&["--offset", "40K", "--length", "12K"]);
    assert!(part.stdout == expected[40 << 10..52 << 10]);
    let beyond = extract(&["--offset", "16M", "--length", "1"]);
    assert!(!beyond.status.success() && beyond.stdout.is_empty());
}
