//! Forks and frozen secondaries: two sides that each acknowledged writes alone, the branch that is kept of the one that
//! yields, and a Secondary that stands still at one position.

use holdfast_simulator::world::{Setup, World};
use replicator_core::command::AdminError;
use replicator_core::config::OnPeerLoss;
use replicator_core::disk::superblock::DiskState;
use replicator_core::event::{AdminAction, FreezeAt};
use replicator_core::status::Connection;
use replicator_core::units::NodeId;

use crate::setup::{connected, load, load_at, quiet, serving};

fn setup() -> Setup {
    Setup { on_peer_loss: OnPeerLoss::Continue, sectors: 4096, ..Setup::default() }
}

fn node(n: usize) -> NodeId {
    NodeId(u8::try_from(n).unwrap())
}

/// Both nodes went on alone after the same entry: node 0 in its old reign, node 1 by force.
fn forked(seed: u64, setup: &Setup) -> World {
    let mut world = serving(seed, setup);
    load(&mut world, 30);
    quiet(&mut world);
    world.set_cut(0, 1, true);
    world.run_ms(5000);
    world.promote(1, true).unwrap();
    load_at(&mut world, 0, 40);
    for n in 0..12 {
        world.write(1, 1000 + 8 * n..1004 + 8 * n, false);
        world.run_ms(5);
    }
    world.run_ms(200);
    world.set_cut(0, 1, false);
    world.run_until("the fork is found", |world| {
        (0..2).all(|n| world.status(n).is_some_and(|status| status.peers[0].fork.is_some()))
    });
    world
}

/// What the disk of a node holds.
fn content(world: &World, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; world.sectors * 512];
    world.nodes[n].disk.read(0, &mut bytes);
    bytes
}

fn resolve(world: &mut World, at: usize, loser: usize) -> Result<String, AdminError> {
    world.admin(at, AdminAction::Resolve { discard: node(loser) })
}

/// Every block in which `held` and the survivor's disk differ is in the branch, as the loser held it.
fn check_branch(world: &World, loser: usize, held: &[u8]) {
    let branch = world.nodes[loser].branch.as_ref().expect("a branch was kept");
    let now = content(world, loser);
    for (block, bytes) in held.chunks(4096).enumerate() {
        match branch.blocks.get(&(block as u64)) {
            Some(kept) => assert!(kept[..bytes.len()] == *bytes, "block {block} is not as the loser had it"),
            None => assert!(now[block * 4096..][..bytes.len()] == *bytes, "block {block} was lost"),
        }
    }
}

#[test]
fn both_sides_know_the_fork_exactly_and_serve_as_before() {
    let world = forked(1, &setup());
    let [a, b] = [0, 1].map(|n| world.status(n).unwrap());
    let (here, there) = (a.peers[0].fork.unwrap(), b.peers[0].fork.unwrap());
    assert_eq!(here.common, there.common);
    assert_eq!((here.here.head, here.there.head), (there.there.head, there.here.head));
    assert_eq!(here.here.entries, a.head.sequence.0 - here.common.sequence.0);
    assert!(here.there.entries >= 13 && here.here.entries >= 20, "{here:?}");
    assert!(here.here.changed_blocks > 0 && here.there.changed_blocks > 0, "{here:?}");
    assert!(a.serving && b.serving, "both go on until somebody chooses");
    for status in [&a, &b] {
        assert_eq!(status.peers[0].connection, Connection::StandAlone);
        assert!(status.peers[0].reason.as_ref().unwrap().contains("split brain"));
    }
}

#[test]
fn the_loser_of_a_fork_keeps_a_branch_and_follows() {
    for (seed, at) in [(2, 0), (3, 1), (4, 0)] {
        let mut world = forked(seed, &setup());
        let held = content(&world, 0);
        resolve(&mut world, at, 0).unwrap();
        quiet(&mut world);
        check_branch(&world, 0, &held);
        let status = world.status(0).unwrap();
        assert_eq!((status.disk_state, status.branching), (DiskState::UpToDate, None));
        assert!(world.status(1).unwrap().counters.resync_bytes < 1 << 20, "only what differs is sent");
        load(&mut world, 30);
        quiet(&mut world);
    }
}

#[test]
fn the_forced_side_can_be_the_loser_once_the_other_was_promoted_above_it() {
    let mut world = forked(5, &setup());
    let held = content(&world, 1);
    resolve(&mut world, 1, 1).unwrap();
    world.run_ms(6000);
    // It promised its own epoch, which is higher than that of the one who stays.
    assert!(world.status(1).unwrap().peers[0].reason.as_ref().unwrap().contains("promise"));
    world.admin(0, AdminAction::Demote).unwrap();
    world.run_ms(6000);
    world.promote(0, false).unwrap();
    quiet(&mut world);
    check_branch(&world, 1, &held);
}

#[test]
fn nobody_is_asked_to_yield_where_there_is_no_fork_or_no_other_copy() {
    let mut world = serving(6, &setup());
    load(&mut world, 10);
    quiet(&mut world);
    for at in 0..2 {
        for loser in 0..2 {
            resolve(&mut world, at, loser).unwrap_err();
        }
    }
    world.kill(0);
    world.run_ms(4000);
    resolve(&mut world, 1, 1).unwrap_err();
}

#[test]
fn a_branch_that_cannot_be_kept_leaves_both_sides_as_they_are() {
    let mut world = forked(7, &setup());
    let held = content(&world, 0);
    let failing = std::cell::Cell::new(true);
    let failing = std::rc::Rc::new(failing);
    let switch = std::rc::Rc::clone(&failing);
    world.fates = Box::new(move |io, _, _| {
        let is_branch = matches!(io, holdfast_simulator::node::Io::Branch { .. });
        if is_branch && switch.get() {
            holdfast_simulator::world::Fate::Fails(28)
        } else {
            holdfast_simulator::world::Fate::Done
        }
    });
    resolve(&mut world, 0, 0).unwrap();
    world.run_until("it failed", |world| world.status(0).unwrap().branch_failure.is_some());
    world.run_ms(6000);
    let status = world.status(0).unwrap();
    assert!(status.branch_failure.unwrap().contains("nothing was overwritten"));
    assert_eq!(status.peers[0].connection, Connection::StandAlone);
    assert_eq!(status.disk_state, DiskState::UpToDate);
    assert!(content(&world, 0) == held && world.nodes[0].branch.is_none());
    failing.set(false);
    resolve(&mut world, 1, 0).unwrap();
    quiet(&mut world);
    check_branch(&world, 0, &held);
}

#[test]
fn a_resolution_that_is_interrupted_anywhere_goes_on() {
    for seed in 0..60 {
        let mut world = forked(100 + seed, &setup());
        let held = content(&world, 0);
        resolve(&mut world, 0, 0).unwrap();
        for round in 0..3 {
            for _ in 0..seed * 7 % 131 + round * 50 {
                if !world.step() {
                    world.pass_time();
                }
            }
            let victim = usize::try_from((seed + round) % 2).unwrap();
            if seed % 3 == 0 {
                world.lose_power(victim);
            } else {
                world.kill(victim);
            }
            world.run_ms(20);
            world.start(victim);
            if victim == 1 {
                world.run_ms(5);
                if let Err(error) = world.promote(1, true) {
                    assert!(!error.to_string().is_empty());
                }
            }
        }
        world.run_ms(3000);
        if world.serving().is_none() {
            world.promote(1, true).unwrap();
        }
        quiet(&mut world);
        check_branch(&world, 0, &held);
    }
}

#[test]
fn what_cannot_be_told_apart_is_kept_and_compared_in_full() {
    // Both journals no longer reach back, and the loser forgot its map with its process.
    let mut world = forked(8, &setup());
    for n in 0..2 {
        for _ in 0..48 {
            world.run_until("room", |world| world.write(n, 0..2048, false));
            world.run_until("answered", |world| world.waiting() == 0);
        }
    }
    let held = content(&world, 0);
    resolve(&mut world, 1, 0).unwrap();
    quiet(&mut world);
    check_branch(&world, 0, &held);
}

#[test]
fn a_frozen_secondary_holds_one_position_while_writes_go_on() {
    let mut world = serving(20, &setup());
    load(&mut world, 40);
    quiet(&mut world);
    world.admin(1, AdminAction::FreezeApply { at: FreezeAt::Here }).unwrap();
    assert!(world.nodes[1].frozen);
    let (at, held) = (world.status(1).unwrap().freeze.unwrap().position, content(&world, 1));
    load(&mut world, 120);
    world.run_ms(1000);
    let status = world.status(1).unwrap();
    assert!(status.freeze.unwrap().is_open && status.freeze.unwrap().position == at);
    assert!(status.journaled > at.sequence && status.applied == at.sequence);
    assert!(content(&world, 1) == held, "the disk moved");
    // After a restart, with power lost, too.
    for power in [false, true] {
        if power {
            world.lose_power(1);
        } else {
            world.kill(1);
        }
        world.run_ms(100);
        world.start(1);
        world.run_until("it is frozen again", |world| world.nodes[1].frozen);
        assert!(content(&world, 1) == held, "the disk is another one after a start");
        load(&mut world, 40);
    }
    world.admin(1, AdminAction::Thaw).unwrap();
    assert!(!world.nodes[1].frozen);
    quiet(&mut world);
}

#[test]
fn a_frozen_secondary_thaws_when_its_share_of_the_journal_is_used_and_never_stalls_the_volume() {
    let mut world = serving(21, &setup());
    load(&mut world, 20);
    quiet(&mut world);
    world.admin(1, AdminAction::FreezeApply { at: FreezeAt::Here }).unwrap();
    for _ in 0..60 {
        world.run_until("room", |world| world.write(0, 0..2048, false));
        world.run_until("answered", |world| world.waiting() == 0);
    }
    world.run_ms(100);
    assert!(world.status(1).unwrap().freeze.is_none() && !world.nodes[1].frozen);
    quiet(&mut world);
}

#[test]
fn a_frozen_secondary_that_is_promoted_thaws_first() {
    let mut world = serving(22, &setup());
    load(&mut world, 20);
    quiet(&mut world);
    world.admin(1, AdminAction::FreezeApply { at: FreezeAt::Here }).unwrap();
    load(&mut world, 80);
    world.kill(0);
    world.run_ms(4000);
    world.promote(1, true).unwrap();
    assert!(!world.nodes[1].frozen && world.status(1).unwrap().freeze.is_none());
    world.start(0);
    connected(&mut world);
    quiet(&mut world);
}

#[test]
fn who_gives_up_its_data_is_no_member_that_a_promotion_waits_for() {
    // Nobody is taken out of a set but by an operator: what waits for a member waits for ever.
    let setup = Setup { nodes: 3, on_peer_loss: OnPeerLoss::Freeze, ..setup() };
    let mut world = serving(11, &setup);
    load(&mut world, 30);
    quiet(&mut world);
    world.set_cut(0, 1, true);
    world.set_cut(1, 2, true);
    world.run_ms(5000);
    world.admin(0, AdminAction::Shrink { node: node(1) }).unwrap();
    world.promote(1, true).unwrap();
    load_at(&mut world, 0, 20);
    load_at(&mut world, 1, 20);
    world.set_cut(0, 1, false);
    world.set_cut(1, 2, false);
    world.run_until("the forks are found", |world| {
        (0..3).all(|n| {
            world.status(n).is_some_and(|status| status.peers.iter().any(|peer| peer.fork.is_some()))
        })
    });
    // Three operators who do not know of each other.
    for n in 0..3 {
        resolve(&mut world, n, n).unwrap();
    }
    world.run_ms(30_000);
    // One of them takes its word back.
    world.promote(0, true).unwrap();
    world.run_until("it serves", |world| world.status(0).unwrap().serving);
    load_at(&mut world, 0, 20);
    quiet(&mut world);
}
