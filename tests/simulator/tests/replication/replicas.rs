//! Replicas are taken in and let go while the volume runs: scenarios. The other scenarios have the same replicas from
//! beginning to end.

use holdfast_simulator::world::{Setup, World};
use replicator_core::config::{OnPeerLoss, PeerConfig, Protocol};
use replicator_core::event::AdminAction;
use replicator_core::status::Connection;
use replicator_core::units::NodeId;

use crate::setup::{connected, load, quiet, serving};

fn id(node: usize) -> NodeId {
    NodeId(u8::try_from(node).unwrap())
}

fn add(world: &mut World, node: usize, other: usize) -> String {
    let peer = PeerConfig { node: id(other), protocol: Protocol::C };
    world.admin(node, AdminAction::AddReplica(peer)).unwrap();
    keep(world, node, |peers| peers.push(peer));
    world.status(node).unwrap().peers.iter().map(|peer| format!("{} ", peer.node)).collect()
}

fn remove(world: &mut World, node: usize, other: usize) -> Result<String, String> {
    let done = world.admin(node, AdminAction::RemoveReplica { node: id(other) });
    let done = done.map_err(|error| error.to_string())?;
    keep(world, node, |peers| peers.retain(|peer| peer.node != id(other)));
    Ok(done)
}

/// What the configuration file says from now on, should the node start again.
fn keep(world: &mut World, node: usize, change: impl FnOnce(&mut Vec<PeerConfig>)) {
    change(&mut world.nodes[node].config.peers);
}

fn is_member(world: &World, of: usize, node: usize) -> bool {
    world.status(of).unwrap().record.in_sync.contains(id(node))
}

/// Nodes 0 and 1 replicate, and have never heard of node 2, which is there without a replica.
fn two_of_three(seed: u64, setup: &Setup) -> World {
    let setup = Setup { nodes: 3, ..setup.clone() };
    let mut world = serving(seed, &setup);
    quiet(&mut world);
    remove(&mut world, 0, 2).unwrap();
    world.run_until("node 1 hears of it", |world| !is_member(world, 1, 2));
    remove(&mut world, 1, 2).unwrap();
    world.kill(2);
    world.recreate(2);
    world
}

/// Nodes `group` are level and have the same on their disks.
fn quiet_among(world: &mut World, group: &[usize]) {
    world.run_until("they are level and at rest", |world| world.is_level(group));
    world.check_equal_among(group);
}

#[test]
fn a_replica_is_added_under_load_and_becomes_a_member_with_everything() {
    let mut world = two_of_three(1, &Setup::default());
    load(&mut world, 40);
    assert_eq!(add(&mut world, 0, 2), "n1 n2 ");
    for n in 0..20 {
        world.write(0, n..n + 4, false);
    }
    add(&mut world, 1, 2);
    world.start(2);
    load(&mut world, 60);
    quiet(&mut world);
    world.run_until("both know it as a member", |world| is_member(world, 0, 2) && is_member(world, 1, 2));
}

#[test]
fn a_replica_that_is_added_when_the_journal_reaches_back_no_more_is_filled_by_blocks() {
    let setup = Setup { sectors: 4096, ..Setup::default() };
    let mut world = two_of_three(2, &setup);
    crate::resync::pass_the_ring(&mut world, 0);
    add(&mut world, 0, 2);
    add(&mut world, 1, 2);
    world.start(2);
    world.run_until("it is resynced", |world| {
        world.write(0, 5..9, false);
        world.status(0).unwrap().peers.iter().any(|peer| peer.connection == Connection::SyncSource)
    });
    quiet(&mut world);
    assert!(is_member(&world, 0, 2));
}

#[test]
fn a_removed_member_counts_for_nothing_from_then_on_and_does_not_come_back() {
    for on_peer_loss in [OnPeerLoss::Freeze, OnPeerLoss::Continue] {
        let mut world = serving(3, &Setup { nodes: 3, on_peer_loss, ..Setup::default() });
        load(&mut world, 40);
        for n in 0..20 {
            world.write(0, n..n + 4, false);
        }
        remove(&mut world, 0, 2).unwrap();
        assert!(!is_member(&world, 0, 2));
        world.run_until("node 1 hears of it", |world| !is_member(world, 1, 2));
        remove(&mut world, 1, 2).unwrap();
        // It still runs with the old configuration, and dials again and again.
        world.run_ms(3000);
        load(&mut world, 60);
        assert!(world.status(0).unwrap().frozen.is_none());
        world.kill(2);
        load(&mut world, 60);
        world.start(2);
        world.run_ms(3000);
        load(&mut world, 60);
        quiet_among(&mut world, &[0, 1]);
        assert!(!is_member(&world, 0, 2) && !is_member(&world, 1, 2));
        let status = world.status(2).unwrap();
        assert!(status.peers.iter().all(|peer| peer.connection == Connection::StandAlone), "{status:?}");
    }
}

#[test]
fn a_member_that_is_gone_is_removed_and_io_goes_on() {
    let mut world = serving(4, &Setup { nodes: 3, ..Setup::default() });
    load(&mut world, 20);
    world.kill(2);
    world.write(0, 3..9, true);
    world.run_ms(4000);
    assert!(world.status(0).unwrap().frozen.is_some() && world.waiting() > 0);
    remove(&mut world, 0, 2).unwrap();
    world.run_until("it is answered", |world| world.waiting() == 0);
    load(&mut world, 40);
    quiet_among(&mut world, &[0, 1]);
}

#[test]
fn what_would_be_wrong_is_refused_and_says_what_to_do() {
    let mut world = serving(5, &Setup { nodes: 3, ..Setup::default() });
    quiet(&mut world);
    let text = remove(&mut world, 1, 2).unwrap_err();
    assert!(text.contains("reload the configuration where the volume is Primary first"), "{text}");
    let text = remove(&mut world, 1, 0).unwrap_err();
    assert!(text.contains("the Primary that this replica follows: hand over first"), "{text}");
    let text = remove(&mut world, 0, 0).unwrap_err();
    assert!(text.contains("no other replica of the volume here"), "{text}");
    let peer = PeerConfig { node: id(2), protocol: Protocol::C };
    let text = world.admin(0, AdminAction::AddReplica(peer)).unwrap_err().to_string();
    assert!(text.contains("already"), "{text}");
}

#[test]
fn a_primary_that_dies_while_it_removes_a_member_loses_nothing() {
    for step in 0..80 {
        let mut world = serving(6, &Setup { nodes: 3, ..Setup::default() });
        load(&mut world, 10);
        world.ask(0, AdminAction::RemoveReplica { node: id(2) });
        for _ in 0..step {
            world.step();
        }
        world.kill(0);
        world.run_ms(3000);
        world.promote(1, true).unwrap();
        world.start(0);
        connected(&mut world);
        load(&mut world, 20);
        quiet(&mut world);
    }
}

#[test]
fn a_removed_replica_is_taken_in_again_and_the_maps_keep_their_peers() {
    let setup = Setup { nodes: 3, on_peer_loss: OnPeerLoss::Continue, sectors: 4096, ..Setup::default() };
    let mut world = serving(7, &setup);
    load(&mut world, 20);
    // Node 1 has the first map. It goes, and comes back behind node 2.
    remove(&mut world, 0, 1).unwrap();
    crate::resync::pass_the_ring(&mut world, 0);
    world.kill(2);
    world.run_ms(4000);
    crate::resync::pass_the_ring(&mut world, 0);
    world.kill(0);
    world.start(0);
    world.run_ms(100);
    world.promote(0, true).unwrap();
    world.start(2);
    quiet_among(&mut world, &[0, 2]);
    add(&mut world, 0, 1);
    quiet(&mut world);
    assert!(is_member(&world, 0, 1) && is_member(&world, 0, 2));
}
