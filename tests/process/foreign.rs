//! A client that shares no code with the server: the `nbd` crate.

use holdfast_tests::{Client, Sandbox};

#[test]
fn the_nbd_crate_writes_reads_and_flushes_and_both_disks_end_equal() {
    let sandbox = Sandbox::start(&["--size", "64M", "--journal-size", "64M"]);
    let mut client = Client::connect(&sandbox.nodes[0].nbd_socket).unwrap();
    assert_eq!(client.size_bytes, 64 << 20);
    // A size each of: a sector, a gathered write, a frame of its own, several frames.
    let sizes = [512usize, 4096, 64 << 10, (64 << 10) + 512, 1 << 20, (3 << 20) + 1024];
    let mut at = 0;
    for (n, size) in sizes.into_iter().enumerate() {
        let bytes: Vec<u8> = (0..size).map(|i| u8::try_from((i / 512 + n) % 251).unwrap()).collect();
        client.write_at(at, &bytes).unwrap();
        let mut back = vec![0; size];
        client.read_at(at, &mut back).unwrap();
        assert!(back == bytes, "a write of {size} bytes reads back");
        at += size as u64;
    }
    client.flush().unwrap();
    let mut other = Client::connect(&sandbox.nodes[0].nbd_socket).unwrap();
    let mut seen = vec![0; 512];
    other.read_at(0, &mut seen).unwrap();
    assert_eq!(seen[0], 0);
    assert!(Client::connect(&sandbox.nodes[1].nbd_socket).is_err(), "a Secondary serves nobody");
    drop((client, other));
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1], "both disks hold the same bytes");
}
