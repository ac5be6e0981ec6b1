//! Coming back: scenarios in which the journal does not reach back and blocks are sent. The volume is small against
//! the ring, so that a few bursts of writes pass it.

use holdfast_simulator::world::{Setup, World};
use replicator_core::config::OnPeerLoss;
use replicator_core::disk::superblock::DiskState;
use replicator_core::event::AdminAction;
use replicator_core::status::{Connection, Staged};
use replicator_core::units::NodeId;

use crate::setup::{connected, quiet, serving};

pub(crate) fn setup() -> Setup {
    Setup { on_peer_loss: OnPeerLoss::Continue, sectors: 4096, ..Setup::default() }
}

/// Writes as much as passes the ring, in one half of the volume.
pub(crate) fn pass_the_ring(world: &mut World, primary: usize) {
    let half = (world.sectors / 2).min(2048);
    for n in 0..24 {
        let range = half / 24 * n..half;
        world.run_until("room for a write", |world| world.write(primary, range.clone(), false));
        world.run_until("it is answered", |world| world.waiting() == 0);
    }
    for _ in 0..24 {
        let length = half.min(2048);
        world.run_until("room for a write", |world| world.write(primary, 0..length, false));
        world.run_until("it is answered", |world| world.waiting() == 0);
    }
    world.run_ms(100);
}

/// Node `node` loses its disks and is created anew.
pub(crate) fn recreate(world: &mut World, node: usize) {
    if world.is_up(node) {
        world.kill(node);
    }
    world.recreate(node);
}

fn resyncs(world: &World, primary: usize) -> u64 {
    world.status(primary).unwrap().counters.resync_bytes
}

#[test]
fn a_replica_that_was_away_for_longer_than_the_journal_gets_the_dirty_blocks_only() {
    let mut world = serving(1, &setup());
    for n in 0..8 {
        world.run_until("room", |world| world.write(0, n * 512..n * 512 + 512, false));
        world.run_ms(10);
    }
    quiet(&mut world);
    world.kill(1);
    pass_the_ring(&mut world, 0);
    assert!(world.status(0).unwrap().ring_used_bytes < 16 << 20);
    world.start(1);
    quiet(&mut world);
    let bytes = resyncs(&world, 0);
    assert!(bytes > 0 && bytes <= (world.sectors as u64 / 2) * 512, "{bytes} bytes were sent");
    assert_eq!(world.status(1).unwrap().disk_state, DiskState::UpToDate);
}

#[test]
fn a_replica_created_anew_is_filled_by_comparison_and_what_is_zero_is_not_sent() {
    let mut world = serving(2, &setup());
    world.kill(1);
    pass_the_ring(&mut world, 0);
    recreate(&mut world, 1);
    world.start(1);
    quiet(&mut world);
    let bytes = resyncs(&world, 0);
    assert!(bytes > 0 && bytes <= (world.sectors as u64 / 2) * 512, "{bytes} bytes were sent");
}

#[test]
fn a_member_created_anew_comes_back_though_io_waits_for_it() {
    let mut world = serving(3, &Setup { on_peer_loss: OnPeerLoss::Freeze, ..setup() });
    pass_the_ring(&mut world, 0);
    world.kill(1);
    world.write(0, 3..4, false);
    world.run_ms(4000);
    assert_eq!(world.waiting(), 1);
    recreate(&mut world, 1);
    world.start(1);
    quiet(&mut world);
}

/// Node 2 has been away for long; node 1 was being written anew when the only whole copy was lost.
#[test]
fn a_copy_that_is_not_whole_is_not_in_the_way_of_force() {
    let mut world = serving(5, &Setup { nodes: 3, ..setup() });
    quiet(&mut world);
    world.kill(2);
    world.kill(1);
    pass_the_ring(&mut world, 0);
    recreate(&mut world, 1);
    world.start(1);
    world.run_until("it is Inconsistent", |world| {
        let status = world.status(1).unwrap();
        status.disk_state == DiskState::Inconsistent && status.applied.0 > 0
    });
    world.kill(0);
    world.start(2);
    connected(&mut world);
    world.run_ms(4000);
    world.promote(2, true).unwrap();
    world.admin(1, AdminAction::Invalidate).unwrap();
    world.run_until("both are whole", |world| world.is_level(&[1, 2]));
    world.check_equal_among(&[1, 2]);
}

#[test]
fn writes_race_with_a_resync_on_the_same_blocks() {
    for seed in 0..12 {
        let mut world = serving(100 + seed, &setup());
        world.kill(1);
        pass_the_ring(&mut world, 0);
        if seed % 2 == 0 {
            recreate(&mut world, 1);
        }
        world.start(1);
        for _ in 0..600 {
            if world.random.percent(40) {
                world.client();
            }
            if !world.step() {
                world.pass_time();
            }
        }
        world.run_until("answered", |world| world.waiting() == 0);
        quiet(&mut world);
    }
}

#[test]
fn the_target_is_not_promoted_before_it_is_whole() {
    let mut world = serving(4, &setup());
    world.kill(1);
    pass_the_ring(&mut world, 0);
    recreate(&mut world, 1);
    world.start(1);
    world.run_until("it is Inconsistent", |world| {
        world.status(1).is_some_and(|status| status.disk_state == DiskState::Inconsistent)
    });
    world.kill(0);
    world.run_ms(100);
    let refused = world.promote(1, true).unwrap_err().to_string();
    assert!(refused.contains("Inconsistent"), "{refused}");
    // Nor after a restart.
    world.kill(1);
    world.start(1);
    assert_eq!(world.status(1).unwrap().disk_state, DiskState::Inconsistent);
    world.promote(1, true).unwrap_err();
    world.start(0);
    world.run_ms(1000);
    world.promote(0, true).unwrap();
    quiet(&mut world);
}

/// Kills one of the two after so many steps of a resync, and lets them meet again.
fn interrupt(seed: u64, node: usize, steps: usize, power: bool) {
    let mut world = serving(seed, &setup());
    quiet(&mut world);
    world.kill(1);
    pass_the_ring(&mut world, 0);
    if seed.is_multiple_of(3) {
        recreate(&mut world, 1);
    }
    world.flush(0);
    world.run_until("flushed", |world| world.waiting() == 0);
    world.start(1);
    world.run_until("a resync begins", |world| {
        world.status(0).unwrap().peers[0].connection == Connection::SyncSource
    });
    for _ in 0..steps {
        if world.random.percent(10) {
            world.client();
        }
        if !world.step() {
            world.pass_time();
        }
    }
    if power {
        world.lose_power(node);
    } else {
        world.kill(node);
    }
    world.run_ms(20);
    world.start(node);
    if node == 0 {
        world.run_ms(1000);
        // Power may have taken from the source what the target has gathered, and has switched to.
        if world.promote(0, true).is_err() {
            world.promote(1, true).unwrap();
        }
    }
    quiet(&mut world);
}

#[test]
fn an_interruption_at_any_point_resumes() {
    for seed in 0..60 {
        let steps = usize::try_from(seed * 7).unwrap();
        interrupt(1000 + seed, usize::from(seed % 2 == 0), steps, seed % 5 < 2);
    }
}

#[test]
fn a_source_that_returns_goes_on_where_it_was() {
    let mut world = serving(5, &setup());
    world.kill(1);
    pass_the_ring(&mut world, 0);
    world.start(1);
    world.run_until("some blocks were sent", |world| resyncs(world, 0) > 256 << 10);
    world.admin(0, AdminAction::Stop).unwrap();
    world.kill(0);
    world.start(0);
    world.run_ms(500);
    world.promote(0, true).unwrap();
    quiet(&mut world);
}

#[test]
fn the_ring_may_be_passed_again_during_a_resync() {
    let mut world = serving(6, &setup());
    world.kill(1);
    pass_the_ring(&mut world, 0);
    world.start(1);
    world.run_until("a resync begins", |world| {
        world.status(0).unwrap().peers[0].connection == Connection::SyncSource
    });
    pass_the_ring(&mut world, 0);
    quiet(&mut world);
}

#[test]
fn another_source_takes_over_in_the_middle() {
    let mut world = serving(7, &Setup { nodes: 3, ..setup() });
    quiet(&mut world);
    world.kill(2);
    pass_the_ring(&mut world, 0);
    world.flush(0);
    world.run_until("flushed", |world| world.waiting() == 0);
    world.start(2);
    world.run_until("some blocks were sent", |world| resyncs(world, 0) > 256 << 10);
    world.kill(0);
    world.run_ms(100);
    world.promote(1, true).unwrap();
    for _ in 0..100 {
        world.client();
        world.run_ms(1);
    }
    world.run_until("node 2 is whole", |world| world.status(2).unwrap().disk_state == DiskState::UpToDate);
    world.start(0);
    quiet(&mut world);
}

#[test]
fn a_target_that_is_whole_brings_others_level_later() {
    let mut world = serving(8, &Setup { nodes: 3, ..setup() });
    quiet(&mut world);
    world.kill(1);
    world.kill(2);
    pass_the_ring(&mut world, 0);
    world.start(1);
    world
        .run_until("node 1 is a member", |world| world.status(0).unwrap().record.in_sync.contains(NodeId(1)));
    world.admin(0, AdminAction::Demote).unwrap();
    world.run_ms(100);
    world.promote(1, false).unwrap();
    world.start(2);
    quiet(&mut world);
}

#[test]
fn the_loser_of_a_split_brain_comes_back_when_its_data_is_discarded() {
    let mut world = serving(9, &setup());
    quiet(&mut world);
    world.set_cut(0, 1, true);
    world.run_ms(5000);
    world.promote(1, true).unwrap();
    for node in 0..2 {
        world.write(node, 3..4 + node, false);
        world.run_until("each writes alone", |world| world.waiting() == 0);
    }
    world.run_ms(500);
    world.set_cut(0, 1, false);
    world.run_ms(3000);
    assert_eq!(world.status(1).unwrap().peers[0].connection, Connection::StandAlone);
    let refused = world.admin(0, AdminAction::Invalidate).unwrap_err().to_string();
    assert!(refused.contains("demote it first"), "{refused}");
    world.admin(1, AdminAction::Demote).unwrap();
    world.admin(1, AdminAction::Invalidate).unwrap();
    // Node 1 has promised a later epoch than node 0's reign: that promise stands, and node 0 is promoted above it.
    world.run_ms(2000);
    let reason = world.status(0).unwrap().peers[0].reason.clone().unwrap();
    assert!(reason.contains("demote it and promote again"), "{reason}");
    world.admin(0, AdminAction::Demote).unwrap();
    world.run_ms(2000);
    world.promote(0, true).unwrap();
    world.run_until("node 1 is whole", |world| {
        world.status(0).is_some_and(|s| s.peers[0].connection == Connection::Established && s.peers[0].member)
            && world.status(1).unwrap().disk_state == DiskState::UpToDate
            && world.status(1).unwrap().applied == world.status(0).unwrap().head.sequence
    });
    let images = [0, 1].map(|n: usize| {
        let mut bytes = vec![0; world.sectors * 512];
        world.nodes[n].disk.read(0, &mut bytes);
        bytes
    });
    assert!(images[0] == images[1]);
    assert!(resyncs(&world, 0) <= 8192, "only what differs is sent");
}

#[test]
fn a_copy_that_is_discarded_twice_in_the_middle_is_filled_from_the_beginning() {
    let mut world = serving(10, &setup());
    pass_the_ring(&mut world, 0);
    quiet(&mut world);
    for _ in 0..2 {
        world.admin(1, AdminAction::Invalidate).unwrap();
        let garbage = vec![0x5a; world.sectors * 512];
        world.nodes[1].disk.write(0, &garbage);
        let before = resyncs(&world, 0);
        world.run_until("some blocks were sent", |world| resyncs(world, 0) > before + (256 << 10));
    }
    quiet(&mut world);
}

#[test]
fn a_target_without_space_waits_for_some_and_goes_on() {
    let mut world = serving(11, &setup());
    world.kill(1);
    pass_the_ring(&mut world, 0);
    world.start(1);
    world.run_until("a resync begins", |world| {
        world.status(0).unwrap().peers[0].connection == Connection::SyncSource
    });
    world.nodes[1].disk_is_full = true;
    world.run_until("the disk is full", |world| world.status(1).unwrap().disk_full);
    world.run_ms(3000);
    assert_eq!(
        world.status(1).unwrap().disk_state,
        DiskState::Inconsistent,
        "nothing is wrong with the copy"
    );
    world.nodes[1].disk_is_full = false;
    quiet(&mut world);
    assert!(!world.status(1).unwrap().disk_full);
}

#[test]
fn a_peer_whose_entries_cannot_be_read_in_the_journal_gets_blocks_instead() {
    let mut world = serving(12, &setup());
    quiet(&mut world);
    world.kill(1);
    world.run_ms(4000);
    for n in 0..6 {
        world.run_until("room", |world| world.write(0, n * 512..n * 512 + 512, false));
        world.run_ms(20);
    }
    world.run_until("all applied", |world| {
        let status = world.status(0).unwrap();
        world.waiting() == 0 && status.applied == status.head.sequence
    });
    // Every sector behind the superblocks and the maps: none of the ring can be read.
    for page in 0..(16 << 20) / 4096 {
        world.nodes[0].journal.spoil((1 << 20) + 24 * 4096 + page * 4096);
    }
    world.start(1);
    quiet(&mut world);
    assert!(resyncs(&world, 0) > 0);
}

/// Node 1 is behind for longer than the journal reaches back, and back again; what it lacks fits in its journal.
fn behind(seed: u64) -> World {
    let mut world = serving(seed, &setup());
    for n in 0..8 {
        world.run_until("room", |world| world.write(0, n * 512..n * 512 + 512, false));
        world.run_ms(10);
    }
    quiet(&mut world);
    world.kill(1);
    pass_the_ring(&mut world, 0);
    world.start(1);
    world
}

pub(crate) fn is_gathering(world: &World) -> bool {
    matches!(world.status(1).unwrap().staged, Some(Staged::Gathering { .. }))
}

#[test]
fn a_copy_that_is_behind_stays_what_it_is_until_all_is_gathered() {
    let mut world = behind(61);
    world.run_until("it gathers", |world| is_gathering(world));
    assert_eq!(world.status(1).unwrap().disk_state, DiskState::UpToDate);
    let old = world.status(1).unwrap().head;
    while is_gathering(&world) {
        assert_eq!(
            (world.status(1).unwrap().disk_state, world.status(1).unwrap().head),
            (DiskState::UpToDate, old)
        );
        world.write(0, 5..9, false);
        if !world.step() {
            world.pass_time();
        }
    }
    quiet(&mut world);
    assert_eq!(world.status(1).unwrap().disk_state, DiskState::UpToDate);
}

#[test]
fn a_copy_whose_source_dies_while_it_gathers_is_promoted_as_it_was() {
    let mut world = behind(62);
    world.run_until("it gathers", |world| is_gathering(world));
    let old = world.status(1).unwrap().head;
    world.kill(0);
    world.run_ms(4000);
    assert_eq!(
        (world.status(1).unwrap().disk_state, world.status(1).unwrap().head),
        (DiskState::UpToDate, old)
    );
    world.promote(1, true).unwrap();
    world.run_until("it serves", |world| world.status(1).unwrap().serving);
}

#[test]
fn what_was_gathered_is_forgotten_when_the_process_dies_before_the_switch() {
    let mut world = behind(63);
    world.run_until("it gathers", |world| is_gathering(world));
    world.run_ms(5);
    world.lose_power(1);
    world.start(1);
    quiet(&mut world);
}

#[test]
fn a_copy_that_died_after_the_switch_puts_the_gathered_blocks_in_place_alone() {
    let mut world = behind(64);
    let replays = |world: &World| matches!(world.status(1).unwrap().staged, Some(Staged::Replaying { .. }));
    world.run_until("it is switched", |world| {
        replays(world) && world.status(1).unwrap().disk_state == DiskState::Inconsistent
    });
    world.run_ms(1);
    world.lose_power(0);
    world.lose_power(1);
    world.start(1);
    world.run_until("it is whole by itself", |world| {
        let status = world.status(1).unwrap();
        status.disk_state == DiskState::UpToDate && status.staged.is_none()
    });
    world.start(0);
    connected(&mut world);
}
