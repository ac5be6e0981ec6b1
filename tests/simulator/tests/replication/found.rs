//! What seeds of the simulator found in the code, each as a sentence that must hold.

use holdfast_simulator::node::Io;
use holdfast_simulator::world::{Fate, MS, Setup, World};
use replicator_core::config::OnPeerLoss;
use replicator_core::disk::superblock::{DiskState, Superblock};
use replicator_core::event::AdminAction;
use replicator_core::units::NodeId;

use crate::setup::{load, quiet};

fn serving(seed: u64, setup: &Setup) -> World {
    let mut world = World::new(seed, setup);
    world.run_until("a promotion", |world| world.promote(0, false).is_ok());
    world
}

#[test]
fn a_failed_copy_that_is_connected_has_no_veto_on_a_promotion() {
    let mut world = serving(1, &Setup { nodes: 3, on_peer_loss: OnPeerLoss::Continue, ..Setup::default() });
    load(&mut world, 20);
    world.nodes[2].fail_journal_writes = true;
    load(&mut world, 20);
    world.run_until("the copy to be failed", |world| {
        world.status(2).is_some_and(|status| status.disk_state == DiskState::Failed)
    });
    world.admin(0, AdminAction::Demote).unwrap();
    world.run_ms(1000);
    world.promote(1, false).unwrap();
}

#[test]
fn a_demotion_is_answered_though_the_disk_fails_meanwhile() {
    let mut world = serving(2, &Setup::default());
    load(&mut world, 20);
    world.write(0, 1..3, false);
    world.nodes[0].fail_journal_writes = true;
    let id = world.ask(0, AdminAction::Demote);
    world.run_ms(10_000);
    assert!(world.answer(0, id).is_some());
}

#[test]
fn a_node_that_stores_its_reign_promises_no_later_one() {
    let mut world = serving(4, &Setup::default());
    load(&mut world, 10);
    world.admin(0, AdminAction::Demote).unwrap();
    world.run_ms(500);
    let reign = world.reign_id();
    let first = world.ask(1, AdminAction::Promote { force: false, reign });
    // Its record lies ready, and is not written yet.
    let stores = |io: &Io| matches!(io, Io::Superblock { bytes, .. } if Superblock::decode(bytes).unwrap().record.reign == reign);
    world.run_until("the record", |world| world.nodes[1].ios.iter().any(stores));
    let held: Vec<Io> = world.nodes[1].ios.extract_if(.., |io| stores(io)).collect();
    let other = world.reign_id();
    let second = world.ask(0, AdminAction::Promote { force: false, reign: other });
    world.run_ms(200);
    world.nodes[1].ios.extend(held);
    world.run_ms(10_000);
    assert!(world.answer(0, second).expect("an answer").is_err());
    assert!(world.answer(1, first).is_some());
}

#[test]
fn a_member_that_is_refused_again_and_again_is_taken_out_of_the_set() {
    let mut world = serving(5, &Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() });
    load(&mut world, 20);
    world.nodes[1].fail_journal_writes = true;
    world.write(0, 1..3, false);
    world.run_ms(30_000);
    assert_eq!(world.waiting(), 0, "it goes on alone");
}

/// Node 1 goes on alone and is answered for; node 2 is promoted by force; node 0 tells node 1 of that.
#[test]
fn a_record_heard_from_others_does_not_turn_a_fork_into_a_tail() {
    let setup = Setup { nodes: 3, on_peer_loss: OnPeerLoss::Continue, ..Setup::default() };
    let mut world = serving(6, &setup);
    load(&mut world, 20);
    world.run_until("rest", |world| world.is_quiet());
    world.set_cut(0, 1, true);
    world.set_cut(0, 2, true);
    world.kill(1);
    world.kill(2);
    world.run_until("the set to shrink", |world| world.status(0).unwrap().record.in_sync.len() == 1);
    // Answered, and dead before anything said that it is stable.
    world.write(0, 3..4, false);
    world.run_until("the answer", |world| world.waiting() == 0);
    world.kill(0);
    world.start(1);
    world.start(2);
    world.run_ms(2000);
    world.promote(2, true).unwrap();
    load(&mut world, 5);
    // The one that went on alone hears of the new reign from node 1 first.
    world.set_cut(0, 1, false);
    world.start(0);
    world.run_ms(3000);
    world.set_cut(0, 2, false);
    world.run_ms(5000);
    let status = world.status(2).unwrap();
    let peer = status.peers.iter().find(|peer| peer.node == NodeId(0)).unwrap();
    assert!(peer.reason.as_ref().is_some_and(|reason| reason.contains("split brain")), "{peer:?}");
}

/// Node 0, deposed and still Primary, says so on a connection on which it does not know yet who listens.
#[test]
fn a_role_that_changes_between_two_hellos_leaves_nobody_waiting() {
    let mut world = serving(7, &Setup::default());
    load(&mut world, 10);
    world.set_cut(0, 1, true);
    world.run_ms(4000);
    world.promote(1, true).unwrap();
    world.run_ms(100);
    world.routes[0][1].delayed_until = world.now + 2000 * MS;
    world.set_cut(0, 1, false);
    // The other way round for the listener: it is node 1 that hears last.
    world.run_ms(200);
    world.admin(1, AdminAction::Demote).unwrap();
    world.run_ms(10_000);
    world.admin(0, AdminAction::Demote).ok();
    world.run_ms(5000);
    world.run_until("a promotion", |world| world.promote(1, false).is_ok() || world.promote(1, true).is_ok());
    world.run_until("rest", |world| world.is_quiet());
}

#[test]
fn memory_that_brought_a_peer_level_is_given_back() {
    let mut world = serving(3, &Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() });
    load(&mut world, 20);
    world.run_until("rest", |world| world.is_quiet());
    let at_rest = world.status(0).unwrap().arena_used_bytes;
    world.kill(1);
    load(&mut world, 60);
    world.start(1);
    world.run_until("the peer is level", |world| world.is_quiet());
    let used = world.status(0).unwrap().arena_used_bytes;
    assert!(used <= at_rest + 2 * 4096, "{used} bytes, {at_rest} before");
}

/// A write is acknowledged by nodes 0 and 1 alone, and not applied anywhere: node 2 was taken out of the set before.
#[test]
fn force_does_not_pass_over_a_connected_member() {
    let mut world = serving(8, &Setup { nodes: 3, ..Setup::default() });
    load(&mut world, 10);
    world.run_until("rest", |world| world.is_quiet());
    world.kill(2);
    world.run_ms(5000);
    world.admin(0, AdminAction::Shrink { node: NodeId(2) }).unwrap();
    world.write(0, 3..4, false);
    world.run_until("the answer", |world| world.waiting() == 0);
    world.kill(0);
    world.kill(1);
    world.start(2);
    world.start(1);
    world.run_ms(3000);
    assert!(world.promote(2, true).is_err());
    world.promote(1, true).unwrap();
}

#[test]
fn a_disk_without_space_pushes_back_and_goes_on_when_it_has_some() {
    let mut world = serving(9, &Setup::default());
    load(&mut world, 10);
    world.nodes[0].disk_is_full = true;
    load(&mut world, 10);
    world.run_until("the disk to be found full", |world| world.status(0).unwrap().disk_full);
    assert_eq!(world.status(0).unwrap().disk_state, DiskState::UpToDate);
    // Nor does it keep a reign from ending, or a node from being killed.
    world.admin(0, AdminAction::Demote).unwrap();
    world.kill(0);
    world.start(0);
    world.run_until("another reign", |world| world.promote(1, false).is_ok());
    load(&mut world, 10);
    world.nodes[0].disk_is_full = false;
    world.run_until("rest", |world| world.is_quiet());
    world.check_equal();
}

#[test]
fn what_a_failed_sync_forgot_is_written_again_by_the_next_start() {
    let mut forgotten = 0;
    for seed in 0..10 {
        let mut world = serving(seed, &Setup { sync_interval_ms: 10_000, ..Setup::default() });
        quiet(&mut world);
        world.write(0, 3..9, false);
        world.run_until("it is answered", |world| world.waiting() == 0);
        // The sync of the Secondary's journal fails, and the process dies before it could note that.
        let mut failed = false;
        world.fates = Box::new(move |io, node, _| match io {
            Io::SyncJournal { .. } if node == 1 && !failed => {
                failed = true;
                Fate::Fails(5)
            }
            Io::Superblock { .. } if node == 1 && failed => Fate::Kill,
            _ => Fate::Done,
        });
        world.flush(0);
        world.run_until("node 1 is down", |world| !world.is_up(1));
        world.fates = Box::new(|_, _, _| Fate::Done);
        world.start(1);
        let status = world.status(1).unwrap();
        if status.disk_state == DiskState::Failed {
            // One copy of the superblock was stored all the same.
            continue;
        }
        world.lose_power(1);
        world.start(1);
        assert_eq!(world.status(1).unwrap().head, status.head, "what the start counted durable is");
        forgotten += 1;
        world.run_until("answered", |world| world.waiting() == 0);
        quiet(&mut world);
    }
    assert!(forgotten > 2, "{forgotten} seeds");
}
