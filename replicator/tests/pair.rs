//! Real replicas in one process: real rings, files and sockets. What the machine decides is tested with the core;
//! here it is that bytes come through the shell whole, in every size and on both ways of doing I/O.

mod support;

use std::path::Path;

use replicator_core::config::Protocol;
use replicator_core::status::Role;
use support::*;

fn writes_reach_both_disks(dir: &Path, tls: bool) {
    let mut options = cluster(dir, 2, Protocol::C);
    for options in &mut options {
        options.tls = tls;
        replicator::create(options, replicator::Content::Any, false).unwrap();
    }
    let volumes: Vec<_> = options.iter().map(|options| replicator::open(options.clone()).unwrap()).collect();
    wait_for(&volumes[0], "a connection", |status| status.core.peers[0].role.is_some());
    promote(&volumes[0], false, 7);
    let path = options[0].nbd_unix.clone().unwrap();
    wait_for(&volumes[0], "service", |status| status.core.serving);
    let mut client = Client::connect(&path, "r0").unwrap();
    assert_eq!(client.size_bytes, SIZE_BYTES);

    // Sizes around every limit of the way: sector, page, gathered, frame, several frames.
    let sizes = [512, 4096, 65536, 65536 + 512, 1 << 20, (1 << 20) + 512, (3 << 20) + 4096];
    let mut expected = vec![0u8; usize::try_from(SIZE_BYTES).unwrap()];
    let mut offset = 512;
    for (index, size) in sizes.into_iter().enumerate() {
        let data = pattern(index as u64, size);
        client.write(offset as u64, &data);
        expected[offset..offset + size].copy_from_slice(&data);
        assert_eq!(client.read(offset as u64, size), data, "size {size}");
        offset += size + 512;
    }
    client.zero(4096, 8192, true);
    client.zero(65536, 65536, false);
    expected[4096..12288].fill(0);
    expected[65536..131_072].fill(0);

    // Many in flight, answered in any order.
    let mut left = 0;
    for index in 0..200u64 {
        let data = pattern(1000 + index, 4096);
        let at = (32 << 20) + index * 4096;
        client.send(1, if index % 50 == 0 { FUA } else { 0 }, at, 4096, &data);
        expected[at as usize..at as usize + 4096].copy_from_slice(&data);
        left += 1;
    }
    for _ in 0..left {
        assert_eq!(client.receive().unwrap().1, 0);
    }
    client.flush();
    for (index, expected) in expected.chunks(16 << 20).enumerate() {
        assert!(client.read((index as u64) << 24, expected.len()) == expected, "at {index} x 16 MiB");
    }
    drop(client);

    let end = volumes[0].status().unwrap().core.head;
    for volume in &volumes {
        wait_for(volume, "everything applied", |status| {
            status.core.head == end && status.core.applied == end.sequence
        });
    }
    for volume in &volumes {
        stop(volume);
    }
    for options in &options {
        assert!(std::fs::read(&options.disk).unwrap() == expected, "{:?}", options.disk);
    }
}

#[test]
fn writes_reach_both_disks_through_the_ring() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    writes_reach_both_disks(dir.path(), false);
}

#[test]
fn writes_reach_both_disks_in_tls() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    writes_reach_both_disks(dir.path(), true);
}

#[test]
fn writes_reach_both_disks_by_direct_calls_in_memory() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    writes_reach_both_disks(dir.path(), false);
}

#[test]
fn a_secondary_serves_nobody_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let options = cluster(dir.path(), 2, Protocol::C);
    replicator::create(&options[1], replicator::Content::Any, false).unwrap();
    let volume = replicator::open(options[1].clone()).unwrap();
    assert_eq!(volume.status().unwrap().core.role, Role::Secondary);
    let path = options[1].nbd_unix.clone().unwrap();
    assert!(Client::connect(&path, "r0").is_err());
    stop(&volume);
    assert!(!path.exists(), "the socket's name goes with the volume");
}
