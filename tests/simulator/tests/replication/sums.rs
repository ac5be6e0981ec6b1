//! Checksums of blocks at rest: what rots is never served and never spreads, it is found by reads, by partial writes and by
//! scrubs, and mended from another replica; nothing else is ever called rotten, whatever crashes.

use holdfast_simulator::node::Io;
use holdfast_simulator::world::{Fate, MS, Setup, World};
use replicator_core::disk::superblock::DiskState;
use replicator_core::event::AdminAction;
use replicator_core::status::{Counters, ScrubEnd};
use replicator_core::units::NodeId;

use crate::setup::{connected, load, quiet, serving};

const BLOCK: u64 = 4096;

fn with_sums() -> Setup {
    Setup { sums: vec![true, true, true], sectors: 1024, ..Setup::default() }
}

fn counters(world: &World, node: usize) -> Counters {
    world.status(node).unwrap().counters
}

/// A volume with something in its first `sectors`, on all disks.
fn filled(seed: u64, setup: &Setup, sectors: usize) -> World {
    let mut world = serving(seed, setup);
    for start in (0..sectors).step_by(256) {
        world.run_until("room for a write", |world| world.write(0, start..(start + 256).min(sectors), false));
        world.run_until("it is answered", |world| world.waiting() == 0);
    }
    quiet(&mut world);
    world
}

fn scrub(world: &mut World, node: usize) -> (u64, u64) {
    world.admin(node, AdminAction::Scrub).unwrap();
    world.run_until("the scrub to end", |world| {
        world.status(node).unwrap().scrub.is_some_and(|scrub| scrub.ended.is_some())
    });
    let scrub = world.status(node).unwrap().scrub.unwrap();
    assert_eq!(scrub.ended, Some(ScrubEnd::Done));
    (scrub.bad_blocks, scrub.learnt_blocks)
}

fn mended(world: &mut World) {
    world.run_until("what rotted to be mended", |world| world.disks_are_equal());
}

#[test]
fn a_rotten_block_is_not_served_but_had_from_the_other_replica() {
    let mut world = filled(1, &with_sums(), 1024);
    for block in [0, 5, 70] {
        world.rot(0, block * BLOCK + 999);
    }
    // Reads of whole blocks, of parts of them, and across several; what they return is checked.
    for sectors in [0..8, 41..42, 553..570, 0..600] {
        world.read(0, sectors);
    }
    world.run_until("answered", |world| world.waiting() == 0);
    mended(&mut world);
    assert_eq!((counters(&world, 0).rotten_blocks, counters(&world, 0).mended_blocks), (3, 3));
    quiet(&mut world);
}

#[test]
fn a_write_into_a_part_of_a_rotten_block_does_not_make_it_look_right() {
    let mut world = filled(2, &with_sums(), 1024);
    for node in [0, 1] {
        world.rot(node, 3 * BLOCK + 100 + 600 * node as u64);
        // One copy rots outside what is written, the other within it.
        world.write(0, 25..26, false);
        world.run_until("answered", |world| world.waiting() == 0);
        world.run_until("applied", |world| {
            world.status(node).unwrap().applied == world.status(0).unwrap().head.sequence
        });
        world.read(0, 24..32);
        world.run_until("answered", |world| world.waiting() == 0);
        assert_eq!(scrub(&mut world, node).1, 0);
        mended(&mut world);
    }
    assert_eq!(counters(&world, 0).rotten_blocks, 1);
    quiet(&mut world);
}

#[test]
fn a_scrub_finds_on_each_node_what_rotted_there_and_its_result_is_kept() {
    let mut world = filled(3, &with_sums(), 1024);
    for (node, blocks) in [(0, vec![1, 2]), (1, vec![9, 64, 100])] {
        for block in &blocks {
            world.rot(node, block * BLOCK + 4095);
        }
        assert_eq!(scrub(&mut world, node), (blocks.len() as u64, 0));
        mended(&mut world);
        assert_eq!(counters(&world, node).mended_blocks, blocks.len() as u64);
        assert_eq!(scrub(&mut world, node), (0, 0));
    }
    quiet(&mut world);
    world.run_ms(100);
    world.kill(1);
    world.start(1);
    let last = world.status(1).unwrap().sums.unwrap().last.expect("it was stored");
    assert_eq!((last.blocks, last.bad_blocks), (128, 0));
}

#[test]
fn a_scrub_goes_on_under_load_and_finds_nothing_where_nothing_is_wrong() {
    for seed in 0..12 {
        let mut world = filled(100 + seed, &Setup { bulk_percent: 10, ..with_sums() }, 1024);
        let node = usize::from(seed % 3 == 1);
        for _ in 0..3 {
            world.admin(node, AdminAction::Scrub).unwrap();
            let over = |world: &World| world.status(node).unwrap().scrub.is_some_and(|s| s.ended.is_some());
            let mut writes = 0;
            while !over(&world) {
                if world.random.percent(60) {
                    world.client();
                    writes += 1;
                }
                if !world.step() || world.random.percent(3) {
                    world.pass_time();
                }
                assert!(writes < 100_000, "a scrub ends however much clients write");
            }
            assert_eq!(world.status(node).unwrap().scrub.unwrap().bad_blocks, 0);
        }
        world.drop_uploads();
        world.run_until("answered", |world| world.waiting() == 0);
        quiet(&mut world);
    }
}

#[test]
fn what_a_crash_leaves_half_written_is_not_called_rotten() {
    for seed in 0..30 {
        let mut world = serving(200 + seed, &Setup { checkpoint_bytes: 64 << 10, ..with_sums() });
        for round in 0..6 {
            load(&mut world, 20);
            world.run_ms(seed % 7);
            let node = usize::try_from((seed + round) % 2).unwrap();
            if node == 0 {
                world.kill(node);
            } else {
                world.lose_power(node);
            }
            world.start(node);
            connected(&mut world);
            if node == 0 {
                world.promote(0, false).unwrap();
            }
        }
        quiet(&mut world);
        for node in [0, 1] {
            assert_eq!(scrub(&mut world, node), (0, 0), "seed {seed}");
        }
    }
}

#[test]
fn a_resync_that_is_cut_off_by_the_power_again_and_again_leaves_no_block_in_doubt() {
    for seed in 0..12 {
        let mut world = filled(300 + seed, &with_sums(), 1024);
        world.admin(1, AdminAction::Invalidate).unwrap();
        for round in 0..8 {
            world.run_ms(3 + (seed + round) % 5 * 8);
            world.client();
            world.lose_power(1);
            world.start(1);
        }
        world.run_until("answered", |world| world.waiting() == 0);
        quiet(&mut world);
        assert_eq!(world.status(1).unwrap().disk_state, DiskState::UpToDate);
        for node in [0, 1] {
            assert_eq!(scrub(&mut world, node), (0, 0), "seed {seed}");
        }
    }
}

#[test]
fn a_repair_that_the_power_cuts_off_is_not_called_rotten() {
    for seed in 0..40 {
        let mut world = filled(400 + seed, &Setup { checkpoint_bytes: 4096, ..with_sums() }, 64);
        // A block of the other copy is wrong, and its checksum says that it is right: so it was written.
        world.nodes[1].disk.rot(3 * BLOCK + 7);
        world.ledger.distrust(1);
        world.nodes[1].journal.write((1 << 20) + 6 * 4096, &[0xff; 4096]);
        let covered = world.nodes[1].journal.completed();
        world.nodes[1].journal.sync(covered);
        world.kill(1);
        world.start(1);
        connected(&mut world);
        quiet_but_rotten(&mut world);
        scrub(&mut world, 1);
        quiet_but_rotten(&mut world);
        world.lose_power(1);
        world.start(1);
        quiet_but_rotten(&mut world);
        world.admin(0, AdminAction::Verify { repair: true, trust: None }).unwrap();
        for _ in 0..seed {
            if !world.step() {
                world.pass_time();
            }
        }
        world.lose_power(1);
        world.start(1);
        connected(&mut world);
        quiet_but_rotten(&mut world);
        assert_eq!(scrub(&mut world, 1).0, 0, "seed {seed}: its own block is not called rotten");
        world.admin(0, AdminAction::Verify { repair: true, trust: None }).ok();
        mended(&mut world);
        quiet(&mut world);
    }
}

fn quiet_but_rotten(world: &mut World) {
    world.run_until("all replicas level and at rest", |world| world.is_quiet());
}

#[test]
fn memory_for_checksums_is_bounded_however_large_the_volume_is() {
    let sectors = 12 * 1008 * 8;
    let mut world = serving(5, &Setup { sectors, journal_bytes: 20 << 20, ..with_sums() });
    for round in 0..4 {
        for page in 0..12 {
            let at = (page * 1008 + 13 * round) * 8 + 3;
            world.run_until("room for a write", |world| world.write(0, at..at + 20, false));
        }
        world.run_until("answered", |world| world.waiting() == 0);
        assert!(world.status(0).unwrap().sums.unwrap().memory_bytes <= 4 * 4096);
    }
    quiet(&mut world);
    world.kill(0);
    world.start(0);
    connected(&mut world);
    world.promote(0, false).unwrap();
    world.rot(0, (5 * 1008 + 13) * BLOCK + 5);
    world.rot(1, (7 * 1008 + 26) * BLOCK + 5);
    for node in [0, 1] {
        assert_eq!(scrub(&mut world, node), (1, 0));
        world.run_until("it is mended", |world| counters(world, node).mended_blocks == 1);
    }
    quiet(&mut world);
}

#[test]
fn a_damaged_sector_of_checksums_is_no_damaged_block() {
    let mut world = filled(6, &Setup { checkpoint_bytes: 4096, ..with_sums() }, 1024);
    // Checkpoints pass what was written, so that it is not applied again.
    for _ in 0..20 {
        world.write(0, 1016..1017, false);
        world.run_ms(50);
    }
    quiet(&mut world);
    world.kill(1);
    world.nodes[1].journal.rot((1 << 20) + 6 * 4096 + 100);
    world.start(1);
    connected(&mut world);
    quiet(&mut world);
    let (bad, learnt) = scrub(&mut world, 1);
    assert!(bad == 0 && learnt > 0, "{bad} {learnt}");
    assert_eq!(world.status(1).unwrap().sums.unwrap().damaged_sectors, 1);
    assert_eq!(scrub(&mut world, 1), (0, 0));
}

#[test]
fn a_rotten_block_is_not_spread_by_a_resync() {
    let mut world = filled(7, &Setup { nodes: 3, sectors: 4096, ..with_sums() }, 1024);
    world.kill(1);
    world.run_ms(100);
    world.admin(0, AdminAction::Shrink { node: NodeId(1) }).unwrap();
    for n in 0..40 {
        world.run_until("room for a write", |world| world.write(0, n % 2 * 2048..(n % 2 + 1) * 2048, false));
        world.run_until("answered", |world| world.waiting() == 0);
    }
    world.run_ms(1000);
    world.rot(0, 20 * BLOCK);
    world.start(1);
    quiet_but_rotten(&mut world);
    assert!(world.status(0).unwrap().counters.resync_bytes > 0);
    mended(&mut world);
    quiet(&mut world);
}

#[test]
fn where_nobody_else_has_a_rotten_block_the_read_fails_and_nothing_else() {
    let mut world = filled(8, &with_sums(), 1024);
    world.kill(1);
    world.run_ms(100);
    world.admin(0, AdminAction::Shrink { node: NodeId(1) }).unwrap();
    world.rot(0, 4 * BLOCK);
    let before = world.reads;
    world.read(0, 30..36);
    world.run_until("answered", |world| world.waiting() == 0);
    assert_eq!(world.reads, before, "it was an error");
    // What is written whole is right again.
    world.write(0, 32..40, false);
    world.run_until("answered", |world| world.waiting() == 0);
    world.read(0, 24..48);
    world.run_until("answered", |world| world.waiting() == 0);
    assert_eq!(world.reads, before + 1);
}

#[test]
fn a_checkpoint_waits_until_the_checksums_are_durable() {
    let mut world = serving(9, &Setup { checkpoint_bytes: 4096, ..with_sums() });
    // Pages of checksums are written and never synced to the end.
    world.fates = Box::new(|io, node, _| match io {
        Io::WriteJournal { map: true, .. } if node == 1 => Fate::Hangs(50 * MS),
        _ => Fate::Done,
    });
    for n in 0..40 {
        world.write(0, n * 8..n * 8 + 3, false);
        world.run_ms(5);
    }
    world.run_until("answered", |world| world.waiting() == 0);
    world.lose_power(1);
    world.fates = Box::new(|_, _, _| Fate::Done);
    world.start(1);
    connected(&mut world);
    quiet(&mut world);
    assert_eq!(scrub(&mut world, 1), (0, 0));
}
