//! Bookmarks: what changed on a copy since one was made is in its map, whatever happened meanwhile, and little else.
//! Whenever nodes come to rest, and when a frozen export opens, the checker compares disks with what they held then.

use holdfast_simulator::bookmarks::name;
use holdfast_simulator::node::Io;
use holdfast_simulator::world::{Setup, World};
use replicator_core::bookmarks::Everything;
use replicator_core::disk::superblock::DiskState;
use replicator_core::event::{AdminAction, FreezeAt};
use replicator_core::units::NodeId;

use crate::resync::setup;
use crate::setup::{connected, load, load_at, quiet, serving};

fn add(world: &mut World, node: usize, text: &str) {
    world.admin(node, AdminAction::AddBookmark { name: name(text) }).unwrap();
}

/// The blocks that changed since bookmark `text`, and whether that is more than what was seen to change.
fn changed(world: &World, node: usize, text: &str) -> (Vec<u64>, Option<Everything>) {
    let bookmark = world.nodes[node].machine.as_ref().unwrap().bookmark(text).expect("it is there");
    let map = bookmark.map();
    let is_set = |block: &u64| map.word(block / 64) >> (block % 64) & 1 == 1;
    ((0..world.sectors as u64 / 8).filter(is_set).collect(), bookmark.everything)
}

/// A write of these sectors, answered.
fn write(world: &mut World, node: usize, sectors: std::ops::Range<usize>) {
    world.run_until("room for a write", |world| world.write(node, sectors.clone(), false));
    world.run_until("it is answered", |world| world.waiting() == 0);
}

/// Writes as much as passes the ring, in the first half of the volume.
fn pass_the_ring(world: &mut World, primary: usize) {
    for _ in 0..24 {
        write(world, primary, 0..2048);
    }
    world.run_ms(100);
}

#[test]
fn a_bookmark_of_a_frozen_copy_tells_to_the_block_what_changed_since() {
    let mut world = serving(1, &setup());
    load(&mut world, 40);
    quiet(&mut world);
    world.admin(1, AdminAction::FreezeApply { at: FreezeAt::Here }).unwrap();
    let frozen = world.status(1).unwrap().freeze.unwrap().position;
    add(&mut world, 1, "a");
    assert_eq!(world.status(1).unwrap().bookmarks[0].position, frozen);
    write(&mut world, 0, 803..804);
    write(&mut world, 0, 2000..2017);
    assert_eq!(changed(&world, 1, "a"), (vec![], None), "nothing is in place yet");
    world.admin(1, AdminAction::Thaw).unwrap();
    quiet(&mut world);
    assert_eq!(changed(&world, 1, "a"), (vec![100, 250, 251, 252], None));
    // A later one counts from where it is; the older one goes on.
    add(&mut world, 1, "b");
    write(&mut world, 0, 8..16);
    quiet(&mut world);
    assert_eq!(changed(&world, 1, "b"), (vec![1], None));
    assert_eq!(changed(&world, 1, "a").0, [1, 100, 250, 251, 252]);
    world.admin(1, AdminAction::DeleteBookmark { name: name("a") }).unwrap();
    world.lose_power(1);
    world.start(1);
    quiet(&mut world);
    assert!(world.nodes[1].machine.as_ref().unwrap().bookmark("a").is_none());
    assert_eq!(changed(&world, 1, "b"), (vec![1], None));
}

#[test]
fn a_bookmark_outlives_every_kind_of_end_and_stays_exact() {
    for seed in 0..24 {
        let mut world = serving(100 + seed, &setup());
        load(&mut world, 20);
        quiet(&mut world);
        add(&mut world, 1, "a");
        for round in 0..4 {
            // Clients write at the front only.
            for _ in 0..8 {
                let start = world.random.index(1500);
                let count = 1 + world.random.index(40);
                world.write(0, start..start + count, false);
                world.run_ms(seed % 4);
            }
            match (seed + round) % 3 {
                0 => world.kill(1),
                1 => world.lose_power(1),
                _ => {
                    let _ = world.admin(1, AdminAction::Stop);
                    world.kill(1);
                }
            }
            world.start(1);
        }
        world.run_until("answered", |world| world.waiting() == 0);
        quiet(&mut world);
        let (blocks, everything) = changed(&world, 1, "a");
        assert_eq!(everything, None);
        assert!(!blocks.is_empty() && blocks.iter().all(|block| *block < 200), "seed {seed}: {blocks:?}");
    }
}

#[test]
fn a_bookmark_goes_on_when_its_node_becomes_primary_and_when_it_is_none_again() {
    let mut world = serving(2, &setup());
    load(&mut world, 20);
    quiet(&mut world);
    add(&mut world, 1, "a");
    write(&mut world, 0, 0..8);
    world.kill(0);
    world.run_ms(4000);
    world.promote(1, true).unwrap();
    write(&mut world, 1, 80..88);
    world.start(0);
    connected(&mut world);
    quiet(&mut world);
    world.admin(1, AdminAction::Demote).unwrap();
    world.run_ms(1000);
    world.promote(0, false).unwrap();
    write(&mut world, 0, 160..168);
    quiet(&mut world);
    assert_eq!(changed(&world, 1, "a"), (vec![0, 10, 20], None));
}

#[test]
fn blocks_of_a_resync_are_in_the_map() {
    let mut world = serving(3, &setup());
    for n in 0..8 {
        write(&mut world, 0, n * 512..n * 512 + 512);
    }
    quiet(&mut world);
    add(&mut world, 1, "a");
    write(&mut world, 0, 4088..4096);
    quiet(&mut world);
    world.kill(1);
    pass_the_ring(&mut world, 0);
    world.start(1);
    quiet(&mut world);
    assert!(world.status(0).unwrap().counters.resync_bytes > 0);
    let expected: Vec<u64> = (0..256).chain([511]).collect();
    assert_eq!(changed(&world, 1, "a"), (expected.clone(), None));
    // And they are stored as such: the copy is level, so that a crash takes nothing from it.
    world.run_ms(2000);
    world.lose_power(1);
    world.start(1);
    quiet(&mut world);
    assert_eq!(changed(&world, 1, "a"), (expected, None));
}

#[test]
fn a_resync_that_is_interrupted_has_everything_count_as_changed() {
    let mut seen = 0;
    for seed in 0..12 {
        let mut world = serving(200 + seed, &setup());
        for n in 0..8 {
            write(&mut world, 0, n * 512..n * 512 + 512);
        }
        quiet(&mut world);
        add(&mut world, 1, "a");
        world.kill(1);
        pass_the_ring(&mut world, 0);
        world.start(1);
        world.run_until("its blocks are a mix", |world| {
            world.status(1).is_some_and(|status| status.disk_state == DiskState::Inconsistent)
        });
        for _ in 0..seed * 4 {
            world.step();
        }
        let is_mixed = world.ledger.saved(1).disk_state == DiskState::Inconsistent;
        world.lose_power(1);
        world.start(1);
        quiet(&mut world);
        let (blocks, everything) = changed(&world, 1, "a");
        if is_mixed {
            assert_eq!((blocks.len(), everything), (512, Some(Everything::Interrupted)), "seed {seed}");
            seen += 1;
        }
    }
    assert!(seen > 0, "some died in the middle of it");
}

#[test]
fn what_a_verify_writes_anew_is_in_the_map_even_if_the_process_dies_right_then() {
    for seed in 0..10 {
        let mut world = serving(300 + seed, &setup());
        for n in 0..8 {
            write(&mut world, 0, n * 512..n * 512 + 512);
        }
        quiet(&mut world);
        // On either side: the Primary's own copy is written anew, too.
        let victim = usize::from(seed % 2 == 0);
        for block in [3, 64, 300] {
            world.nodes[victim].disk.rot(block * 4096 + 5);
        }
        add(&mut world, victim, "a");
        let trust = Some(NodeId(1 - u8::try_from(victim).unwrap()));
        world.admin(0, AdminAction::Verify { repair: true, trust }).unwrap();
        world.run_until("all are written anew", |world| {
            world.status(victim).is_some_and(|status| status.counters.mended_blocks == 3)
        });
        for _ in 0..seed {
            world.step();
        }
        world.kill(victim);
        world.start(victim);
        connected(&mut world);
        if victim == 0 {
            world.promote(0, true).unwrap();
        }
        quiet(&mut world);
        let (blocks, everything) = changed(&world, victim, "a");
        let is_exact = everything.is_none() && blocks == [3, 64, 300];
        assert!(is_exact || everything == Some(Everything::Interrupted), "seed {seed}: {blocks:?}");
    }
}

#[test]
fn numbers_that_a_lost_fork_had_given_are_noted_again() {
    let mut world = serving(4, &setup());
    load(&mut world, 30);
    quiet(&mut world);
    world.set_cut(0, 1, true);
    world.run_ms(5000);
    world.promote(1, true).unwrap();
    load_at(&mut world, 0, 60);
    load_at(&mut world, 1, 8);
    world.run_ms(500);
    // Far past the common point, on the side that yields.
    add(&mut world, 0, "a");
    world.set_cut(0, 1, false);
    world.run_until("the fork is found", |world| {
        world.status(1).unwrap().peers.iter().any(|peer| peer.fork.is_some())
    });
    world.admin(1, AdminAction::Resolve { discard: NodeId(0) }).unwrap();
    quiet(&mut world);
    for n in 0..20 {
        write(&mut world, 1, 1600 + 8 * n..1608 + 8 * n);
    }
    quiet(&mut world);
    let (blocks, _) = changed(&world, 0, "a");
    assert!((200..220).all(|block| blocks.contains(&block)), "{blocks:?}");
}

#[test]
fn there_is_no_bookmark_of_a_copy_that_is_not_whole() {
    let mut world = serving(5, &setup());
    world.kill(1);
    pass_the_ring(&mut world, 0);
    crate::resync::recreate(&mut world, 1);
    world.start(1);
    world.run_until("it is Inconsistent", |world| {
        world.status(1).is_some_and(|status| status.disk_state == DiskState::Inconsistent)
    });
    let refused = world.admin(1, AdminAction::AddBookmark { name: name("a") }).unwrap_err();
    assert!(refused.to_string().contains("not UpToDate"), "{refused}");
    quiet(&mut world);
    add(&mut world, 1, "a");
    let again = world.admin(1, AdminAction::AddBookmark { name: name("a") }).unwrap_err();
    assert!(again.to_string().contains("of that name"), "{again}");
}

#[test]
fn a_bookmark_costs_no_write_and_no_sync_beyond_those_of_checkpoints() {
    let counts = |is_marked: bool| {
        let mut world = serving(6, &Setup { checkpoint_bytes: 1 << 30, ..setup() });
        load(&mut world, 10);
        quiet(&mut world);
        if is_marked {
            add(&mut world, 0, "a");
            add(&mut world, 1, "a");
        }
        let count = std::rc::Rc::new(std::cell::Cell::new(0));
        let counter = std::rc::Rc::clone(&count);
        world.fates = Box::new(move |io, _, _| {
            if matches!(io, Io::WriteJournal { map: true, .. } | Io::Superblock { .. }) {
                counter.set(counter.get() + 1);
            }
            holdfast_simulator::world::Fate::Done
        });
        for n in 0..50 {
            write(&mut world, 0, n * 8..n * 8 + 8);
        }
        quiet(&mut world);
        count.get()
    };
    assert_eq!((counts(false), counts(true)), (0, 0));
}

#[test]
fn a_bookmark_goes_on_over_a_growth_of_the_volume() {
    let mut world = serving(31, &setup());
    load(&mut world, 40);
    quiet(&mut world);
    add(&mut world, 1, "a");
    let (from, to) = (world.sectors, world.sectors + 16 * 8);
    world.admin(0, AdminAction::Grow { bytes: (to * 512) as u64 }).unwrap();
    write(&mut world, 0, to - 8..to);
    quiet(&mut world);
    world.lose_power(1);
    world.start(1);
    write(&mut world, 0, to - 16..to - 8);
    quiet(&mut world);
    let (blocks, everything) = changed(&world, 1, "a");
    assert_eq!(everything, None);
    assert_eq!(blocks, (from as u64 / 8..to as u64 / 8).collect::<Vec<_>>(), "all that is new has changed");
    // One that is made now knows the size as it is.
    add(&mut world, 1, "b");
    write(&mut world, 0, to - 8..to);
    quiet(&mut world);
    assert_eq!(changed(&world, 1, "b"), (vec![to as u64 / 8 - 1], None));
}
