//! Creation, identity and inspection: what a replica refuses to be, and with which words.

use std::os::unix::fs::FileExt;

use replicator_core::config::{Config, OnPeerLoss, PeerConfig, Protocol};
use replicator_core::disk::layout::SUPERBLOCK_AT;
use replicator_core::disk::superblock::{Cut, DiskState, LogPoint, Superblock};
use replicator_core::frame::{self, Entry, EntryKind, FrameHeader, LocalPart};
use replicator_core::units::{Epoch, Incarnation, NodeId, NodeSet, ReignId, Sequence, VolumeId};

use super::*;
use crate::create::{Content, create};
use crate::inspect::{FramesEnd, inspect};
use crate::options::{DirectIo, PeerAddress, RingOptions, Secret};
use crate::secrets::Secrets;

pub(crate) fn options(dir: &Path) -> VolumeOptions {
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let peer = |node, protocol| PeerConfig { node: NodeId(node), protocol };
    VolumeOptions {
        name: "r0".to_owned(),
        node_name: "alpha".to_owned(),
        core: Config {
            node: NodeId(0),
            peers: vec![peer(1, Protocol::C), peer(2, Protocol::A), peer(3, Protocol::B)],
            volume: VolumeId(7),
            incarnation: Incarnation(1),
            on_peer_loss: OnPeerLoss::Freeze,
            managed: false,
            disk_bytes: 64 << 20,
            arena_bytes: 16 << 20,
            frames_in_flight_max: 2,
            sync_interval_ms: 50,
            ping_interval_ms: 500,
            peer_timeout_ms: 3000,
            disk_timeout_ms: 30_000,
            checkpoint_bytes: 16 << 20,
            sum_pages_max: 64,
            scrub_interval_ms: 0,
            apply_delay_ms: 0,
            send_window_bytes: 8 << 20,
        },
        size_bytes: 64 << 20,
        block_bytes: 512,
        disk: dir.join("disk"),
        journal: dir.join("journal"),
        branches: dir.join("branches"),
        journal_bytes: 32 << 20,
        direct_io: DirectIo::Auto,
        checksums: false,
        listen,
        peers: Vec::new(),
        secrets: Secrets::only(Secret(vec![1; 32])),
        tls: false,
        nbd_unix: None,
        nbd_tcp: None,
        nbd_tls: false,
        nbd_names: Vec::new(),
        nbd_connections_max: 4,
        ring: RingOptions::default(),
        busy_poll: std::time::Duration::from_micros(100),
        lock_memory: false,
    }
}

fn refusal(options: &VolumeOptions) -> String {
    open(options.clone()).expect_err("it must not start").to_string()
}

#[test]
fn a_fresh_replica_is_up_to_date_at_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let created = create(&options, Content::Any, false).unwrap();
    let found = inspect(&options.journal, 10).unwrap();
    assert_eq!((found.current, found.in_use, found.journal_bytes), (Some(0), false, 32 << 20));
    let superblock = found.copies[0].unwrap();
    assert_eq!(found.copies[1].unwrap(), superblock);
    assert_eq!((superblock.replica, superblock.disk_state), (created.replica, DiskState::UpToDate));
    let members = NodeSet::only(NodeId(0)).with(NodeId(1)).with(NodeId(3));
    assert_eq!(superblock.record.in_sync, members, "peers with protocol A follow");
    assert!(matches!(found.end, FramesEnd::NoFrame { .. }) && found.frames.is_empty());
    assert_eq!(std::fs::metadata(&options.disk).unwrap().len(), 64 << 20);
}

#[test]
fn nothing_is_overwritten_without_force() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let first = create(&options, Content::Any, false).unwrap();
    let error = create(&options, Content::Any, false).unwrap_err().to_string();
    assert!(error.contains("already holds volume") && error.contains("of node alpha; --force"), "{error}");
    assert_ne!(create(&options, Content::Any, true).unwrap().replica, first.replica);

    std::fs::remove_file(&options.journal).unwrap();
    std::fs::write(&options.disk, "somebody's data").unwrap();
    let error = create(&options, Content::Any, false).unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
    assert_eq!(std::fs::read(&options.disk).unwrap(), b"somebody's data");
    assert!(!options.journal.exists(), "what was made on the way is gone again");
}

#[test]
fn a_seed_is_kept_and_counts_for_nothing_yet() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let seed = vec![7; usize::try_from(options.size_bytes).unwrap()];
    std::fs::write(&options.disk, &seed).unwrap();
    create(&options, Content::Seed, false).unwrap();
    assert!(std::fs::read(&options.disk).unwrap() == seed);
    let superblock = inspect(&options.journal, 10).unwrap().copies[0].unwrap();
    assert_eq!((superblock.disk_state, superblock.data_base), (DiskState::Inconsistent, None));
    let summed = VolumeOptions { checksums: true, ..options };
    assert!(create(&summed, Content::Seed, true).unwrap_err().to_string().contains("without --seeded"));
}

fn superblock_of(options: &VolumeOptions) -> Superblock {
    inspect(&options.journal, 10).unwrap().copies[0].unwrap()
}

#[test]
fn what_is_adopted_is_kept_and_is_nobodys_equal() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let data = vec![7; usize::try_from(options.size_bytes).unwrap()];
    std::fs::write(&options.disk, &data).unwrap();
    create(&options, Content::Adopted, false).unwrap();
    assert!(std::fs::read(&options.disk).unwrap() == data);
    let first = superblock_of(&options);
    assert_eq!((first.disk_state, first.record.in_sync), (DiskState::UpToDate, NodeSet::only(NodeId(0))));
    assert_eq!((first.promised, first.tail.position.sequence), (Epoch(1), Sequence(1)));

    // Once more over itself: a later reign that nobody else knows.
    create(&options, Content::Adopted, false).unwrap_err();
    create(&options, Content::Adopted, true).unwrap();
    let second = superblock_of(&options);
    assert_eq!((second.promised, second.record.epoch), (Epoch(2), Epoch(2)));
    assert_ne!(second.tail.chain, first.tail.chain);
    assert!(std::fs::read(&options.disk).unwrap() == data);
}

#[test]
fn a_disk_that_may_show_a_mix_is_not_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    create(&options, Content::Any, false).unwrap();
    let changed = |change: &dyn Fn(&mut Superblock)| {
        let mut superblock = superblock_of(&options);
        superblock.sequence += 1;
        change(&mut superblock);
        let journal = std::fs::File::options().write(true).open(&options.journal).unwrap();
        SUPERBLOCK_AT.into_iter().for_each(|at| journal.write_all_at(&superblock.encode(), at).unwrap());
        create(&options, Content::Adopted, true).unwrap_err().to_string()
    };
    assert!(changed(&|superblock| superblock.clean = false).contains("not stopped in order"));
    let frozen = |superblock: &mut Superblock| {
        (superblock.clean, superblock.apply_limit) = (true, Sequence(3));
    };
    assert!(changed(&frozen).contains("not stopped in order"), "it is not at its limit");
    let incomplete = |superblock: &mut Superblock| {
        (superblock.apply_limit, superblock.disk_state) = (Sequence(0), DiskState::Inconsistent);
    };
    assert!(changed(&incomplete).contains("is Inconsistent or suspect"));
    let late = |superblock: &mut Superblock| {
        (superblock.disk_state, superblock.apply_reach) = (DiskState::UpToDate, Some(Sequence(3)));
    };
    assert!(changed(&late).contains("is not frozen"));
    let grown = |superblock: &mut Superblock| {
        (superblock.apply_reach, superblock.volume_bytes) = (None, superblock.volume_bytes / 2);
    };
    assert!(changed(&grown).contains("the configuration says"));
}

#[test]
fn impossible_sizes_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let good = options(dir.path());
    let small = VolumeOptions { journal_bytes: 4 << 20, ..good.clone() };
    assert!(
        create(&small, Content::Any, false).unwrap_err().to_string().contains("is too small for this volume")
    );
    let odd = VolumeOptions { size_bytes: (64 << 20) + 512, block_bytes: 4096, ..good.clone() };
    assert!(create(&odd, Content::Any, false).unwrap_err().to_string().contains("blocks are 512 or 4096"));
    let same = VolumeOptions { disk: good.journal.clone(), ..good.clone() };
    assert!(create(&same, Content::Any, false).unwrap_err().to_string().contains("are the same"));
    assert!(!good.journal.exists() && !good.disk.exists());
}

#[test]
fn what_does_not_belong_together_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let good = options(dir.path());
    assert!(refusal(&good).contains("does not exist"));
    create(&good, Content::Any, false).unwrap();
    type Change<'c> = &'c dyn Fn(&mut VolumeOptions);
    let with = |change: Change<'_>| {
        let mut options = good.clone();
        change(&mut options);
        refusal(&options)
    };
    let as_beta = |options: &mut VolumeOptions| {
        let alpha = PeerAddress { node: NodeId(0), name: options.node_name.clone(), address: options.listen };
        (options.core.node, options.node_name, options.peers) = (NodeId(1), "beta".to_owned(), vec![alpha]);
    };
    let table: [(Change<'_>, &str); 5] = [
        (&|o| o.core.volume = VolumeId(8), "belongs to another volume"),
        (&|o| o.core.incarnation = Incarnation(2), "belongs to incarnation 1"),
        (&as_beta, "belongs to node alpha, this is node beta"),
        (&|o| o.block_bytes = 4096, "blocks of 512 bytes"),
        (&|o| o.journal = o.disk.clone(), "disk and journal are the same"),
    ];
    for (change, words) in table {
        let text = with(change);
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn another_disk_or_a_cut_one_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    create(&options, Content::Any, false).unwrap();
    std::fs::copy(&options.disk, dir.path().join("copy")).unwrap();
    std::fs::rename(&options.disk, dir.path().join("original")).unwrap();
    std::fs::rename(dir.path().join("copy"), &options.disk).unwrap();
    assert!(refusal(&options).contains("not the one this journal belongs to"));
    std::fs::rename(dir.path().join("original"), &options.disk).unwrap();
    let truncate =
        |path: &Path, bytes| std::fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
    truncate(&options.disk, 1 << 20);
    assert!(refusal(&options).contains("the volume needs"));
    truncate(&options.disk, 64 << 20);
    truncate(&options.journal, 31 << 20);
    assert!(refusal(&options).contains("it had 33554432 when it was created"));
}

#[test]
fn a_second_process_for_the_same_replica_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    create(&options, Content::Any, false).unwrap();
    let volume = open(options.clone()).unwrap();
    assert!(refusal(&options).contains("is in use by another process"));
    assert!(create(&options, Content::Any, true).is_err(), "not even force overwrites what is in use");
    assert!(inspect(&options.journal, 10).unwrap().in_use);
    volume.stop();
    volume.wait().unwrap();
    assert!(volume.status().is_err());
    let again = open(options).unwrap();
    again.stop();
    again.wait().unwrap();
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_left_locked() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    create(&options, Content::Any, false).unwrap();
    let taken = std::net::TcpListener::bind(options.listen).unwrap();
    let text = refusal(&options);
    assert!(text.contains("cannot listen for peers") && text.contains("in use"), "{text}");
    drop(taken);
    let volume = open(options).unwrap();
    volume.stop();
    volume.wait().unwrap();
}

#[test]
fn inspecting_hostile_bytes_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    create(&options, Content::Any, false).unwrap();
    let journal = std::fs::File::options().read(true).write(true).open(&options.journal).unwrap();
    let layout = inspect(&options.journal, 1).unwrap().layout.unwrap().unwrap();
    let mut state = 1u64;
    for round in 0..200 {
        let mut bytes = vec![0u8; 8192];
        for byte in &mut bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
            *byte = (state >> 56) as u8;
        }
        // Half of the time what looks like a frame.
        if round % 2 == 0 {
            bytes[..8].copy_from_slice(b"HF-FRAME");
        }
        journal.write_all_at(&bytes, layout.ring_at).unwrap();
        inspect(&options.journal, 1000).unwrap();
    }
    journal.write_all_at(&[0xff; 4096], SUPERBLOCK_AT[0]).unwrap();
    let found = inspect(&options.journal, 10).unwrap();
    assert!(found.copies[0].is_err() && found.current == Some(1));
    journal.write_all_at(&[0xff; 4096], SUPERBLOCK_AT[1]).unwrap();
    assert_eq!(inspect(&options.journal, 10).unwrap().end, FramesEnd::NoSuperblock);
    journal.set_len(100).unwrap();
    assert_eq!(inspect(&options.journal, 10).unwrap().end, FramesEnd::NoSuperblock);
}

/// A frame of one write, of which the journal knew nothing durable.
fn frame(superblock: &Superblock, after: &LogPoint, cuts: u64) -> (Vec<u8>, LogPoint) {
    let mut bytes = vec![0x5a; 8192];
    let payload_crc = crc32fast::hash(&bytes[4096..]);
    let entry =
        Entry { kind: EntryKind::Write, fua: false, payload_crc, offset: 0, length: 4096, payload_at: 4096 };
    let header = FrameHeader {
        volume: superblock.volume,
        epoch: Epoch(0),
        reign: ReignId(0),
        first: after.position.sequence.next(),
        entries: 0,
        total_bytes: 8192,
        chain_before: after.chain,
        chain_after: after.chain,
        committed: Sequence(0),
        stable: Sequence(0),
        closed_ms: 0,
    };
    let header = frame::encode(&mut bytes, header, [entry].iter());
    frame::encode_local(
        &mut bytes,
        &LocalPart { ring_offset: after.ring_offset, cuts, ..LocalPart::default() },
    );
    let ring_offset = after.ring_offset.plus(8192);
    (bytes, LogPoint { position: header.last_position(), ring_offset, chain: header.chain_after })
}

#[test]
fn inspection_shows_the_log_that_a_start_would_find() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    create(&options, Content::Any, false).unwrap();
    let journal = std::fs::File::options().read(true).write(true).open(&options.journal).unwrap();
    let found = inspect(&options.journal, 10).unwrap();
    let (layout, mut superblock) = (found.layout.unwrap().unwrap(), found.copies[0].unwrap());
    let (first, after_first) = frame(&superblock, &superblock.tail, 0);
    let (second, _) = frame(&superblock, &after_first, 0);
    journal.write_all_at(&first, layout.ring_at).unwrap();
    journal.write_all_at(&second, layout.ring_at + 8192).unwrap();
    let found = inspect(&options.journal, 10).unwrap();
    assert_eq!((found.frames.len(), found.damage()), (2, vec![]));

    // A crash tears the last one: the log ends before it, and that is no damage.
    journal.write_all_at(b"torn", layout.ring_at + 8192 + 5000).unwrap();
    let found = inspect(&options.journal, 10).unwrap();
    assert_eq!((found.frames.len(), found.damage()), (1, vec![]));
    assert!(matches!(found.end, FramesEnd::NoFrame { .. }), "{:?}", found.end);

    // It was known to be durable: then it is damage.
    let write = |superblock: &Superblock| {
        SUPERBLOCK_AT.iter().for_each(|at| journal.write_all_at(&superblock.encode(), *at).unwrap());
    };
    superblock.durable = Sequence(2);
    write(&superblock);
    let damage = inspect(&options.journal, 10).unwrap().damage();
    assert!(damage.len() == 1 && damage[0].contains("entry 2 was durable here"), "{damage:?}");

    // It was cut off: then it is no part of the log, though it is whole.
    journal.write_all_at(&second, layout.ring_at + 8192).unwrap();
    superblock.durable = Sequence(1);
    superblock.cut = Cut { count: 1, first: Sequence(2) };
    write(&superblock);
    let found = inspect(&options.journal, 10).unwrap();
    assert_eq!((found.frames.len(), found.damage()), (1, vec![]));
    assert_eq!(found.end, FramesEnd::Cut { ring_offset: after_first.ring_offset });

    journal.write_all_at(b"damage", SUPERBLOCK_AT[1] + 100).unwrap();
    let damage = inspect(&options.journal, 10).unwrap().damage();
    assert!(damage.len() == 1 && damage[0].contains("superblock copy 1 is damaged"), "{damage:?}");
    journal.write_all_at(b"damage", SUPERBLOCK_AT[0] + 100).unwrap();
    let damage = inspect(&options.journal, 10).unwrap().damage();
    assert!(damage.len() == 1 && damage[0].contains("no copy of the superblock"), "{damage:?}");
}

#[test]
fn a_superblock_copy_that_is_older_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    create(&options, Content::Any, false).unwrap();
    let sound = inspect(&options.journal, 1).unwrap().copies[0].unwrap();
    let sequence = |sequence| Superblock { sequence, ..sound }.encode();
    let (older, newer) = (sequence(7), sequence(8));
    let mut damaged = newer;
    damaged[100] ^= 1;
    assert_eq!(Copies::compare([&newer, &newer]).explanation(), None);
    for (copies, is_damage, part) in [
        ([&newer, &older], false, "does no harm"),
        ([&older, &newer], false, "was stopped while it wrote"),
        ([&damaged, &older], true, "repairs it"),
        ([&newer, &damaged], true, "check the journal's device"),
    ] {
        let found = Copies::compare([copies[0], copies[1]]);
        assert_eq!(found.is_damage(), is_damage);
        assert!(found.explanation().unwrap().contains(part), "{found:?}");
    }
}
