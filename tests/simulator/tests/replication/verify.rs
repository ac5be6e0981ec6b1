//! Copies are compared and repaired while clients go on: what is wrong is found exactly, nothing else is, and what
//! cannot be read is had from another replica.

use holdfast_simulator::node::Io;
use holdfast_simulator::world::{Fate, MS, Setup, World};
use replicator_core::disk::superblock::DiskState;
use replicator_core::event::AdminAction;
use replicator_core::status::{Proof, VerifyPhase, VerifyStatus};
use replicator_core::units::NodeId;

use crate::resync::setup;
use crate::setup::{load, quiet, serving};

const BLOCK: u64 = 4096;

fn state(world: &World, node: usize) -> VerifyStatus {
    world.status(node).unwrap().verify.expect("a verify was begun")
}

fn is_over(world: &World, node: usize) -> bool {
    matches!(state(world, node).phase, VerifyPhase::Done | VerifyPhase::Stopped | VerifyPhase::Interrupted(_))
}

fn begin(world: &mut World, repair: bool, trust: Option<u8>) {
    world.admin(0, AdminAction::Verify { repair, trust: trust.map(NodeId) }).unwrap();
}

/// Verifies at node 0, with nothing else going on.
fn verify(world: &mut World, repair: bool, trust: Option<u8>) -> VerifyStatus {
    begin(world, repair, trust);
    world.run_until("the verify to end", |world| is_over(world, 0));
    state(world, 0)
}

/// The blocks in which copy `peer` differs.
fn blocks(status: &VerifyStatus, peer: usize) -> Vec<u64> {
    let runs = &status.peers[peer].differences;
    runs.iter().flat_map(|run| run.block..run.block + run.blocks).collect()
}

/// A volume with something everywhere, on all copies.
fn filled(seed: u64, setup: &Setup) -> World {
    let mut world = serving(seed, setup);
    let step = world.sectors.min(512);
    for start in (0..world.sectors).step_by(step) {
        world.run_until("room for a write", |world| world.write(0, start..start + step, false));
        world.run_until("it is answered", |world| world.waiting() == 0);
    }
    quiet(&mut world);
    world
}

/// Writes until the journal has forgotten what came before, away from the first quarter of the volume.
fn forget_the_past(world: &mut World) {
    let half = world.sectors / 2;
    for _ in 0..40 {
        world.run_until("room for a write", |world| world.write(0, half..half + 2048, false));
        world.run_until("it is answered", |world| world.waiting() == 0);
    }
    quiet(world);
}

#[test]
fn equal_copies_are_found_equal_under_every_load() {
    for seed in 0..16 {
        let nodes = if seed % 3 == 0 { 3 } else { 2 };
        let mut world = filled(200 + seed, &Setup { nodes, sectors: 1024, bulk_percent: seed, ..setup() });
        begin(&mut world, seed % 2 == 0, None);
        let mut writes = 0;
        while !is_over(&world, 0) {
            if world.random.percent(60) {
                world.client();
                writes += 1;
            }
            if !world.step() || world.random.percent(3) {
                world.pass_time();
            }
            assert!(writes < 100_000, "a verify ends however much clients write");
        }
        let status = state(&world, 0);
        assert_eq!(status.phase, VerifyPhase::Done);
        for peer in &status.peers {
            assert_eq!((peer.differing_blocks, peer.settled_blocks), (0, 0), "seed {seed}: {status:?}");
        }
        world.drop_uploads();
        world.run_until("answered", |world| world.waiting() == 0);
        quiet(&mut world);
    }
}

#[test]
fn what_rots_on_a_secondary_is_found_to_the_block_and_repaired() {
    let mut world = filled(1, &setup());
    let rotten = [0, 3, 63, 64, 65, 200, 511];
    for block in rotten {
        world.nodes[1].disk.rot(block * BLOCK + 17);
    }
    let status = verify(&mut world, false, None);
    assert_eq!((status.phase.clone(), blocks(&status, 0)), (VerifyPhase::Done, rotten.to_vec()));
    assert_eq!(world.status(1).unwrap().found_blocks, rotten.len() as u64);
    let written = world.status(1).unwrap().counters.mended_blocks;
    let status = verify(&mut world, true, None);
    assert_eq!((blocks(&status, 0).len(), status.peers[0].settled_blocks), (0, rotten.len() as u64));
    let mended = world.status(1).unwrap().counters.mended_blocks - written;
    assert_eq!(mended, rotten.len() as u64, "an equal block is not touched");
    assert_eq!(world.status(1).unwrap().found_blocks, 0);
    quiet(&mut world);
}

#[test]
fn what_rots_on_the_primary_is_repaired_from_the_copy_that_the_operator_trusts() {
    let mut world = filled(2, &Setup { nodes: 3, ..setup() });
    forget_the_past(&mut world);
    for block in [1, 2, 70] {
        world.nodes[0].disk.rot(block * BLOCK);
    }
    let status = verify(&mut world, false, None);
    assert_eq!((blocks(&status, 0), blocks(&status, 1)), (vec![1, 2, 70], vec![1, 2, 70]));
    assert!(status.peers[0].differences.iter().all(|run| run.proof == Proof::None));
    let status = verify(&mut world, true, Some(2));
    assert_eq!(status.phase, VerifyPhase::Done);
    assert!(blocks(&status, 0).is_empty() && blocks(&status, 1).is_empty(), "{status:?}");
    assert_eq!(world.status(0).unwrap().counters.mended_blocks, 3);
    assert_eq!(world.status(1).unwrap().counters.mended_blocks, 0);
    quiet(&mut world);
}

#[test]
fn the_journal_proves_who_is_right_and_repair_follows_the_proof() {
    let mut world = filled(3, &setup());
    let last = world.sectors as u64 / 8 - 1;
    world.nodes[0].disk.rot(last * BLOCK);
    world.nodes[1].disk.rot((last - 2) * BLOCK + 9);
    let status = verify(&mut world, false, None);
    let proofs: Vec<_> = status.peers[0].differences.iter().map(|run| (run.block, run.proof)).collect();
    assert_eq!(proofs, [(last - 2, Proof::Primary), (last, Proof::Peer)]);
    let status = verify(&mut world, true, None);
    assert!(blocks(&status, 0).is_empty());
    quiet(&mut world);
}

#[test]
fn rot_is_found_and_repaired_under_load() {
    for seed in 0..12 {
        let mut world = filled(300 + seed, &setup());
        // Clients write in the first sectors and read everywhere; these are theirs alone to find.
        let rotten: Vec<u64> = (0..5).map(|n| 100 + 80 * n + seed % 7).collect();
        for block in &rotten {
            world.nodes[1].disk.rot(block * BLOCK + seed);
        }
        begin(&mut world, true, None);
        let mut touched = false;
        while !is_over(&world, 0) {
            if world.random.percent(50) {
                let start = world.random.index(700);
                touched |= world.write(0, start..start + 3, false);
            }
            if !world.step() {
                world.pass_time();
            }
        }
        assert!(touched);
        assert!(blocks(&state(&world, 0), 0).is_empty());
        world.run_until("answered", |world| world.waiting() == 0);
        quiet(&mut world);
    }
}

#[test]
fn a_verify_ends_with_its_copies_and_is_stopped_by_its_operator() {
    let mut world = filled(4, &setup());
    begin(&mut world, false, None);
    let again = world.admin(0, AdminAction::Verify { repair: false, trust: None }).unwrap_err();
    assert!(again.to_string().contains("under way"), "{again}");
    world.admin(0, AdminAction::StopVerify).unwrap();
    assert_eq!(state(&world, 0).phase, VerifyPhase::Stopped);
    begin(&mut world, false, None);
    world.kill(1);
    world.run_until("it ends", |world| is_over(world, 0));
    assert!(matches!(state(&world, 0).phase, VerifyPhase::Interrupted(_)));
    assert!(state(&world, 0).peers[0].lost.is_some());
    let alone = world.admin(0, AdminAction::Verify { repair: false, trust: None }).unwrap_err();
    assert!(alone.to_string().contains("nothing to compare"), "{alone}");
    world.start(1);
    quiet(&mut world);
    let wrong = world.admin(1, AdminAction::Verify { repair: false, trust: None }).unwrap_err();
    assert!(wrong.to_string().contains("on the Primary"), "{wrong}");
    let status = verify(&mut world, false, None);
    assert_eq!(status.phase, VerifyPhase::Done);
}

#[test]
fn a_verify_meets_the_death_of_either_node_at_any_point() {
    for seed in 0..40 {
        let mut world = filled(400 + seed, &Setup { sectors: 1024, ..setup() });
        world.nodes[1].disk.spoil(90 * BLOCK);
        begin(&mut world, true, None);
        for _ in 0..seed * 5 {
            if world.random.percent(20) {
                world.write(0, 3..9, false);
            }
            if !world.step() {
                world.pass_time();
            }
        }
        let node = usize::from(seed % 2 == 0);
        // A Primary that lost power is not promoted over a Secondary that did not.
        if seed % 5 == 0 && node == 1 {
            world.lose_power(node);
        } else {
            world.kill(node);
        }
        world.run_ms(20);
        world.start(node);
        if node == 0 {
            world.run_ms(1000);
            world.promote(0, true).unwrap();
        }
        world.run_until("level", |world| world.is_quiet());
        let status = verify(&mut world, true, None);
        assert!(blocks(&status, 0).is_empty());
        quiet(&mut world);
    }
}

#[test]
fn a_sector_that_cannot_be_read_is_had_from_a_secondary_and_written_anew() {
    let mut world = filled(5, &setup());
    for sector in [8, 9, 800] {
        world.nodes[0].disk.spoil(sector * 512);
    }
    for sector in [0, 8, 700, 796] {
        world.read(0, sector..sector + 16);
        world.run_until("it is answered", |world| world.waiting() == 0);
    }
    let counters = world.status(0).unwrap().counters;
    assert_eq!((counters.unreadable_blocks, counters.mended_blocks), (2, 2));
    assert_eq!(world.reads, 4, "clients saw nothing of it");
    quiet(&mut world);
}

#[test]
fn reads_of_unreadable_sectors_race_with_writes() {
    let mut mended = 0;
    for seed in 0..20 {
        let mut world = filled(500 + seed, &Setup { sectors: 256, ..setup() });
        for step in 0..800 {
            if step % 40 == 0 {
                let sector = world.random.below(256);
                world.nodes[0].disk.spoil(sector * 512);
            }
            if world.random.percent(50) {
                world.client();
            }
            if !world.step() {
                world.pass_time();
            }
        }
        world.run_until("answered", |world| world.waiting() == 0);
        for start in (0..256).step_by(16) {
            world.read(0, start..start + 16);
        }
        world.run_until("answered", |world| world.waiting() == 0);
        mended += world.status(0).unwrap().counters.mended_blocks;
        quiet(&mut world);
    }
    assert!(mended > 40, "{mended} blocks were mended");
}

#[test]
fn a_verify_repairs_what_cannot_be_read_on_either_side() {
    let mut world = filled(6, &setup());
    world.nodes[0].disk.spoil(20 * BLOCK);
    world.nodes[1].disk.spoil(40 * BLOCK + 1024);
    world.nodes[1].disk.spoil(41 * BLOCK);
    let status = verify(&mut world, false, None);
    assert_eq!(blocks(&status, 0), [40, 41]);
    assert_eq!(status.peers[0].unreadable_blocks, 2);
    assert_eq!(world.status(0).unwrap().counters.mended_blocks, 1);
    let status = verify(&mut world, true, None);
    assert!(blocks(&status, 0).is_empty());
    assert!(world.nodes[1].disk.is_readable(0, world.sectors * 512));
    quiet(&mut world);
}

#[test]
fn without_another_copy_an_unreadable_sector_is_an_error_and_no_garbage() {
    let mut world = filled(7, &setup());
    world.kill(1);
    world.run_ms(5000);
    world.nodes[0].disk.spoil(4096);
    let before = world.reads;
    world.read(0, 0..16);
    world.run_until("it is answered", |world| world.waiting() == 0);
    assert_eq!(world.reads, before, "it failed");
    world.start(1);
    quiet(&mut world);
}

#[test]
fn a_copy_whose_disk_has_no_room_for_a_repair_keeps_what_differs() {
    let mut world = filled(8, &setup());
    world.nodes[1].disk.rot(5 * BLOCK);
    world.nodes[1].disk_is_full = true;
    let status = verify(&mut world, true, None);
    assert_eq!(blocks(&status, 0), [5]);
    world.nodes[1].disk_is_full = false;
    let status = verify(&mut world, true, None);
    assert!(blocks(&status, 0).is_empty());
    quiet(&mut world);
}

#[test]
fn a_read_error_at_the_wrong_moment_is_tried_again() {
    let mut world = filled(9, &Setup { sectors: 1024, ..setup() });
    let mut left = 30;
    world.fates = Box::new(move |io, _, random| {
        let is_read = matches!(io, Io::ReadDisk { .. });
        if left > 0 && is_read && random.percent(30) {
            left -= 1;
            return Fate::Fails(5);
        }
        Fate::Done
    });
    load(&mut world, 300);
    let status = verify(&mut world, true, None);
    assert_eq!(status.phase, VerifyPhase::Done);
    assert!(blocks(&status, 0).is_empty());
    quiet(&mut world);
}

#[test]
fn a_disk_that_hangs_leaves_the_set_and_what_it_does_late_harms_nobody() {
    for node in 0..2 {
        let mut world = filled(10 + node as u64, &Setup { disk_timeout_ms: 2000, ..setup() });
        world.fates = Box::new(move |io, of, _| match io {
            Io::WriteDisk { .. } | Io::SyncJournal { .. } if of == node => Fate::Hangs(60_000 * MS),
            _ => Fate::Done,
        });
        for n in 0..50 {
            world.write(0, n..n + 3, false);
            world.run_ms(10);
        }
        world.run_until("the copy is failed", |world| {
            world.status(node).unwrap().disk_state == DiskState::Failed
        });
        if node == 1 {
            world.run_until("the Primary goes on", |world| world.waiting() == 0);
        }
        world.fates = Box::new(|_, _, _| Fate::Done);
        // What hung ends now.
        world.run_ms(70_000);
        assert_eq!(world.status(node).unwrap().disk_state, DiskState::Failed);
        world.kill(node);
        world.start(node);
        if node == 0 {
            world.run_ms(4000);
            world.promote(1, true).unwrap();
        }
        world.run_ms(1000);
        world.admin(node, AdminAction::Invalidate).unwrap();
        quiet(&mut world);
    }
}
