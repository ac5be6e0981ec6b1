//! Event sequences by which a replicator of this kind loses data if one rule is left out, and which no other file here
//! plays. `docs/evidence.md` says which is which.

use holdfast_simulator::node::Io;
use holdfast_simulator::world::{Fate, MS, Setup, World};
use replicator_core::command::AdminError;
use replicator_core::config::{OnPeerLoss, Protocol};
use replicator_core::disk::superblock::DiskState;
use replicator_core::event::AdminAction;
use replicator_core::status::{Connection, Role};
use replicator_core::units::{NodeId, NodeSet};

use crate::setup::{connected, load, load_at, quiet, serving};

/// The member syncs its journal every millisecond, the Primary next to never.
fn primary_syncs_late() -> Setup {
    Setup { sync_interval_ms: 60_000, ..Setup::default() }
}

#[test]
fn nothing_is_in_place_that_a_member_can_still_lose_with_its_power() {
    for seed in 0..10 {
        let mut world = serving(seed, &primary_syncs_late());
        world.nodes[1].config.sync_interval_ms = 1;
        world.kill(1);
        world.start(1);
        connected(&mut world);
        // Writes only: a flush would have everybody sync.
        load_at(&mut world, 0, 20);
        let [primary, member] = [0, 1].map(|n| world.status(n).unwrap());
        assert!(member.durable > primary.durable, "seed {seed}: the member is ahead on its medium");
        assert!(member.applied <= primary.durable, "seed {seed}: {} is in place there", member.applied);
        // An ordinary power cut; the one that lost more is back first.
        world.lose_power(0);
        world.lose_power(1);
        world.nodes[0].config.sync_interval_ms = 10;
        world.start(0);
        world.run_ms(500);
        world.start(1);
        world.run_until("a promotion", |world| {
            world.promote(0, true).is_ok() || world.promote(1, true).is_ok()
        });
        load(&mut world, 20);
        quiet(&mut world);
    }
}

#[test]
fn a_new_primary_serves_nobody_before_its_epochs_first_entry_is_durable_at_all_members() {
    let mut world = World::new(5, &Setup::default());
    connected(&mut world);
    world.fates = Box::new(|io, node, _| {
        let hangs = node == 1 && matches!(io, Io::SyncJournal { .. });
        if hangs { Fate::Hangs(2000 * MS) } else { Fate::Done }
    });
    let reign = world.reign_id();
    world.ask(0, AdminAction::Promote { force: false, reign });
    world.run_until("the first entry at the member", |world| {
        world.status(1).unwrap().journaled > world.status(1).unwrap().durable
    });
    assert_eq!(world.status(0).unwrap().role, Role::Primary);
    world.run_ms(1000);
    assert!(!world.status(0).unwrap().serving, "a power loss could take what clients would be shown");
    world.fates = Box::new(|_, _, _| Fate::Done);
    world.run_until("it serves", |world| world.status(0).unwrap().serving);
    load(&mut world, 20);
    quiet(&mut world);
}

#[test]
fn a_follower_in_protocol_a_is_no_member_and_is_promoted_by_force_only() {
    let setup = Setup { protocols: vec![Protocol::C, Protocol::A], ..Setup::default() };
    let mut world = serving(6, &setup);
    load(&mut world, 50);
    quiet(&mut world);
    assert_eq!(world.status(0).unwrap().record.in_sync, NodeSet::only(NodeId(0)));
    world.kill(0);
    world.run_ms(4000);
    let refused = world.promote(1, false);
    assert!(matches!(refused, Err(AdminError::NeedsForce(_))), "{refused:?}");
    world.promote(1, true).unwrap();
    load_at(&mut world, 1, 5);
}

#[test]
fn an_old_image_of_a_member_is_refused_and_not_taken_for_one_that_was_away() {
    let mut world = serving(7, &Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() });
    load(&mut world, 30);
    quiet(&mut world);
    let image = (world.nodes[1].disk.clone(), world.nodes[1].journal.clone());
    load(&mut world, 60);
    quiet(&mut world);
    world.lose_power(1);
    (world.nodes[1].disk, world.nodes[1].journal) = image;
    world.ledger.distrust(1);
    world.start(1);
    world.run_until("it is refused", |world| {
        let peer = world.status(0).unwrap().peers.remove(0);
        peer.reason.is_some_and(|reason| reason.contains("returned at entry"))
    });
    // As long as it is not written anew it serves nobody and counts for nothing.
    assert_eq!(world.status(0).unwrap().peers[0].connection, Connection::StandAlone);
    world.admin(1, AdminAction::Invalidate).unwrap();
    world.run_until("it is whole again", |world| world.status(1).unwrap().disk_state == DiskState::UpToDate);
    quiet(&mut world);
}

/// The dirty map's page boundary, and one block to either side of it.
#[test]
fn volumes_of_any_size_around_a_power_of_two_end_equal_to_the_last_sector() {
    for power in [6u32, 9, 12] {
        for sectors in [(1usize << power) - 1, 1 << power, (1 << power) + 1] {
            let setup = Setup { sectors, on_peer_loss: OnPeerLoss::Continue, ..Setup::default() };
            let mut world = serving(sectors as u64, &setup);
            load(&mut world, 10);
            world.kill(1);
            world.run_until("it goes on alone", |world| world.status(0).unwrap().record.in_sync.len() == 1);
            for _ in 0..20 {
                world.write(0, sectors - 1..sectors, false);
                world.run_ms(5);
            }
            world.recreate(1);
            world.start(1);
            quiet(&mut world);
        }
    }
}
