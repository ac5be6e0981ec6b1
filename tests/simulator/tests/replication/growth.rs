//! Growing the volume while it is in use. The disks hold what nobody wrote behind the end of the volume.

use holdfast_simulator::world::{Setup, World};
use replicator_core::command::AdminError;
use replicator_core::config::OnPeerLoss;
use replicator_core::disk::superblock::DiskState;
use replicator_core::event::AdminAction;
use replicator_core::status::Staged;
use replicator_core::units::NodeId;

use crate::resync::{self, is_gathering, pass_the_ring};
use crate::setup::{connected, load, quiet, serving};

fn grow(world: &mut World, node: usize, sectors: usize) -> Result<String, AdminError> {
    world.admin(node, AdminAction::Grow { bytes: (sectors * 512) as u64 })
}

fn sectors(world: &World, node: usize) -> u64 {
    world.status(node).unwrap().volume_bytes / 512
}

/// All are level and have so many sectors, stored.
fn quiet_with(world: &mut World, count: u64) {
    quiet(world);
    world.run_until("all have stored the size", |world| {
        (0..world.nodes.len()).all(|node| sectors(world, node) == count)
    });
}

fn refused(world: &mut World, node: usize, to: usize) -> String {
    grow(world, node, to).unwrap_err().to_string()
}

#[test]
fn a_volume_grows_while_clients_write_and_the_new_range_reads_as_zeros() {
    let mut world = serving(1, &Setup { nodes: 3, ..Setup::default() });
    load(&mut world, 30);
    for n in 0..20 {
        world.write(0, n..n + 4, false);
    }
    grow(&mut world, 0, 200).unwrap();
    assert_eq!((world.sectors, sectors(&world, 0)), (200, 200));
    world.read(0, 120..200);
    world.run_until("it is read", |world| world.waiting() == 0);
    world.write(0, 199..200, true);
    load(&mut world, 100);
    quiet_with(&mut world, 200);
}

#[test]
fn it_grows_again_and_in_blocks_that_begin_with_the_old_end() {
    let mut world = serving(2, &Setup { sectors: 13, ..Setup::default() });
    for to in [14, 15, 17, 160, 161] {
        grow(&mut world, 0, to).unwrap();
        load(&mut world, 20);
    }
    quiet(&mut world);
}

#[test]
fn what_cannot_be_is_refused_and_says_why() {
    let mut world = serving(3, &Setup::default());
    assert!(refused(&mut world, 1, 200).contains("grown where it is Primary"));
    assert!(refused(&mut world, 0, 128).contains("already"));
    assert!(refused(&mut world, 0, 64).contains("cannot shrink"));
    world.nodes[1].disk_bytes = 130 * 512;
    let text = refused(&mut world, 0, 200);
    assert!(text.contains("n1: its disk has 66560 bytes; enlarge it to 102400 first"), "{text}");
    let text = world.admin(0, AdminAction::Grow { bytes: 1 << 50 }).unwrap_err().to_string();
    assert!(text.contains("dirty map"), "{text}");
    assert_eq!(sectors(&world, 0), 128);
    world.nodes[1].disk_bytes = 200 * 512;
    grow(&mut world, 0, 200).unwrap();
    world.kill(1);
    world.run_ms(50);
    assert!(refused(&mut world, 0, 210).contains("n1 is not connected and level"));
    assert_eq!((world.sectors, sectors(&world, 0)), (200, 200));
}

#[test]
fn a_volume_of_which_one_replica_keeps_checksums_at_rest_stays_as_it_is() {
    for keeper in [0, 1] {
        let sums = (0..2).map(|node| node == keeper).collect();
        let mut world = serving(6, &Setup { sums, ..Setup::default() });
        let text = refused(&mut world, 0, 200);
        assert!(text.contains(&format!("n{keeper} keeps checksums of the blocks at rest")), "{text}");
        load(&mut world, 20);
        quiet_with(&mut world, 128);
    }
}

#[test]
fn a_primary_that_dies_while_it_grows_leaves_one_size_or_the_other_to_all() {
    for step in 0..120 {
        let mut world = serving(4, &Setup::default());
        load(&mut world, 5);
        world.ask(0, AdminAction::Grow { bytes: 200 * 512 });
        for _ in 0..step {
            world.step();
        }
        world.kill(0);
        world.run_ms(3000);
        world.promote(1, true).unwrap();
        let grown = sectors(&world, 1);
        assert!([128, 200].contains(&grown), "{grown}");
        world.start(0);
        quiet_with(&mut world, grown);
        assert!(grown == 200 || world.sectors == 128, "clients saw a size that is no more");
    }
}

#[test]
fn a_secondary_that_dies_while_it_grows_comes_back_with_the_new_size() {
    for step in 0..120 {
        let mut world = serving(5, &Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() });
        load(&mut world, 5);
        world.ask(0, AdminAction::Grow { bytes: 200 * 512 });
        for _ in 0..step {
            world.step();
        }
        world.lose_power(1);
        world.run_ms(4000);
        load(&mut world, 20);
        world.start(1);
        let size = sectors(&world, 0);
        quiet_with(&mut world, size);
    }
}

#[test]
fn a_replica_that_was_created_with_the_old_size_gets_the_new_one_with_its_blocks() {
    let setup =
        Setup { on_peer_loss: OnPeerLoss::Continue, sectors: 4096, spare_sectors: 1024, ..Setup::default() };
    let mut world = serving(6, &setup);
    grow(&mut world, 0, 5000).unwrap();
    world.kill(1);
    for n in 0..48 {
        let length = 2000 - n;
        let at = if n % 2 == 0 { 0 } else { 3000 };
        world.run_until("room for a write", |world| world.write(0, at..at + length, false));
        world.run_until("it is answered", |world| world.waiting() == 0);
    }
    world.recreate(1);
    world.start(1);
    quiet_with(&mut world, 5000);
    assert_eq!(world.status(1).unwrap().disk_state, DiskState::UpToDate);
}

#[test]
fn a_replica_whose_disk_is_too_small_for_the_grown_volume_is_refused_with_the_sizes() {
    let setup = Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() };
    let mut world = serving(7, &setup);
    grow(&mut world, 0, 200).unwrap();
    world.kill(1);
    world.run_ms(4000);
    load(&mut world, 20);
    world.recreate(1);
    world.nodes[1].config.disk_bytes = 150 * 512;
    world.start(1);
    world.run_ms(2000);
    let peers = world.status(0).unwrap().peers;
    let reason = peers[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("the volume has 102400 bytes now, the disk of n1 only 76800"), "{reason}");
}

#[test]
fn a_map_keeps_what_was_dirty_before_the_volume_grew() {
    let setup = Setup { nodes: 3, on_peer_loss: OnPeerLoss::Continue, ..Setup::default() };
    let mut world = serving(8, &setup);
    load(&mut world, 20);
    grow(&mut world, 0, 300).unwrap();
    world.kill(2);
    world.run_ms(4000);
    load(&mut world, 60);
    world.kill(0);
    world.run_ms(3000);
    world.promote(1, true).unwrap();
    world.start(0);
    world.start(2);
    connected(&mut world);
    load(&mut world, 60);
    quiet_with(&mut world, 300);
    assert!(world.status(1).unwrap().record.in_sync.contains(NodeId(2)));
}

/// Node 1 is behind for longer than the journal reaches back, and the volume grew, which it has not heard of.
fn behind_a_growth(seed: u64) -> World {
    let mut world = serving(seed, &resync::setup());
    for n in 0..8 {
        world.run_until("room", |world| world.write(0, n * 512..n * 512 + 512, false));
        world.run_ms(10);
    }
    quiet(&mut world);
    let (old, head) = (world.sectors, world.status(0).unwrap().head);
    let grown = old + world.setup.spare_sectors;
    world.ask(0, AdminAction::Grow { bytes: (grown * 512) as u64 });
    world.run_until("it is in the log", |world| world.status(0).unwrap().head != head);
    world.kill(1);
    world.run_until("it has grown", |world| world.sectors == grown);
    world.run_until("room", |world| world.write(0, old - 3..grown, true));
    pass_the_ring(&mut world, 0);
    world.start(1);
    assert_eq!(world.status(1).unwrap().volume_bytes, (old * 512) as u64);
    world
}

#[test]
fn a_copy_that_missed_a_growth_takes_the_size_together_with_what_it_gathered() {
    let mut world = behind_a_growth(65);
    world.run_until("it gathers", |world| is_gathering(world));
    let old = world.status(1).unwrap().volume_bytes;
    while is_gathering(&world) {
        assert_eq!(world.status(1).unwrap().volume_bytes, old);
        world.write(0, 5..9, false);
        if !world.step() {
            world.pass_time();
        }
    }
    quiet(&mut world);
    let sizes = [0, 1].map(|node| world.status(node).unwrap().volume_bytes);
    assert_eq!(sizes, [(world.sectors * 512) as u64; 2]);
}

#[test]
fn a_copy_that_missed_a_growth_has_its_size_though_the_power_fails_at_the_switch() {
    let mut world = behind_a_growth(66);
    let replays = |world: &World| matches!(world.status(1).unwrap().staged, Some(Staged::Replaying { .. }));
    world.run_until("it is switched", |world| {
        replays(world) && world.status(1).unwrap().disk_state == DiskState::Inconsistent
    });
    world.run_ms(1);
    world.lose_power(1);
    world.start(1);
    quiet(&mut world);
    let sizes = [0, 1].map(|node| world.status(node).unwrap().volume_bytes);
    assert_eq!(sizes, [(world.sectors * 512) as u64; 2]);
}

#[test]
fn a_copy_that_is_away_while_the_volume_grows_and_is_filled_in_place_ends_equal() {
    let mut world = behind_a_growth(67);
    world.run_until("it gathers", |world| is_gathering(world));
    // More than the journal there has room for: it goes on in place.
    while is_gathering(&world) {
        pass_the_ring(&mut world, 0);
    }
    quiet(&mut world);
    let sizes = [0, 1].map(|node| world.status(node).unwrap().volume_bytes);
    assert_eq!(sizes, [(world.sectors * 512) as u64; 2]);
}
