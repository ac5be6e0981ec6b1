//! Scenarios of a replica that a configuration manager drives: seals, reigns, the record as read back, leases.

use std::cell::Cell;
use std::rc::Rc;

use holdfast_simulator::node::Io;
use holdfast_simulator::world::{Fate, MS, Setup, World};
use replicator_core::command::AdminError;
use replicator_core::disk::superblock::Superblock;
use replicator_core::event::{AdminAction, Reign};
use replicator_core::status::Role;
use replicator_core::units::{Epoch, NodeId, NodeSet, ReignId, Sequence};

use crate::setup::{connected, load, load_at, quiet};

fn set(nodes: &[u8]) -> NodeSet {
    nodes.iter().fold(NodeSet(0), |set, node| set.with(NodeId(*node)))
}

fn seal(world: &mut World, node: usize, epoch: u64) -> Result<String, AdminError> {
    world.admin(node, AdminAction::Seal { epoch: Epoch(epoch) })
}

fn reign(world: &World, node: usize, epoch: u64, members: &[u8], lease_ms: u64) -> Reign {
    Reign {
        epoch: Epoch(epoch),
        version: 1,
        reign: ReignId(1000 + u128::from(epoch)),
        in_sync: set(members),
        generation: 1,
        lease_end: Some(world.instant(node).plus_ms(lease_ms)),
    }
}

/// Begins a reign, and waits until it serves.
fn open(world: &mut World, node: usize, epoch: u64, members: &[u8], lease_ms: u64) {
    let reign = reign(world, node, epoch, members, lease_ms);
    world.admin(node, AdminAction::OpenEpoch(reign)).unwrap();
    world.run_until("the reign to serve", |world| world.status(node).is_some_and(|status| status.serving));
}

fn lease(world: &mut World, node: usize, epoch: u64, ms: u64) -> Result<String, AdminError> {
    let end = world.instant(node).plus_ms(ms);
    world.admin(node, AdminAction::Lease { epoch: Epoch(epoch), end })
}

fn tell(
    world: &mut World,
    node: usize,
    epoch: u64,
    version: u64,
    members: &[u8],
) -> Result<String, AdminError> {
    world.admin(node, AdminAction::Record { epoch: Epoch(epoch), version, in_sync: set(members) })
}

const FOREVER_MS: u64 = 3_600_000;

/// A world whose node 0 reigns in epoch 1, with all nodes in the set.
fn reigning(seed: u64, nodes: usize, lease_ms: u64) -> World {
    let mut world = World::new(seed, &Setup { nodes, managed: true, ..Setup::default() });
    connected(&mut world);
    let members: Vec<u8> = (0..u8::try_from(nodes).unwrap()).collect();
    open(&mut world, 0, 1, &members, lease_ms);
    world
}

#[test]
fn a_plain_promotion_is_refused_and_a_forced_one_is_the_operators() {
    let mut world = World::new(1, &Setup { managed: true, ..Setup::default() });
    connected(&mut world);
    let refused = world.promote(0, false);
    assert!(matches!(refused, Err(AdminError::Managed(_))), "{refused:?}");
    world.promote(0, true).unwrap();
    load(&mut world, 50);
    quiet(&mut world);
}

#[test]
fn a_takeover_by_seals_loses_nothing() {
    let mut world = reigning(2, 3, FOREVER_MS);
    load(&mut world, 100);
    world.kill(0);
    seal(&mut world, 1, 2).unwrap();
    seal(&mut world, 2, 2).unwrap();
    let head = |world: &World, node: usize| {
        let status = world.status(node).unwrap();
        assert_eq!((status.promised, status.durable), (Epoch(2), status.head.sequence));
        status.head
    };
    let best = if head(&world, 2) > head(&world, 1) { 2 } else { 1 };
    open(&mut world, best, 2, &[1, 2], FOREVER_MS);
    load(&mut world, 100);
    world.start(0);
    world.run_until("the old primary is pending", |world| {
        world.status(best).unwrap().wish.is_some_and(|wish| wish.add == set(&[0]))
    });
    tell(&mut world, best, 2, 2, &[0, 1, 2]).unwrap();
    load(&mut world, 50);
    quiet(&mut world);
}

#[test]
fn a_sealed_primary_serves_no_more_and_its_reign_is_not_continued() {
    let mut world = reigning(3, 2, FOREVER_MS);
    load(&mut world, 50);
    seal(&mut world, 0, 5).unwrap();
    assert_eq!(world.status(0).unwrap().role, Role::Secondary);
    for epoch in [1, 4] {
        let old = reign(&world, 0, epoch, &[0, 1], FOREVER_MS);
        let refused = world.admin(0, AdminAction::OpenEpoch(old));
        assert!(matches!(refused, Err(AdminError::Refused(_))), "{epoch}: {refused:?}");
    }
    assert!(seal(&mut world, 0, 4).is_err(), "a promise is not taken back");
    seal(&mut world, 0, 5).unwrap();
    open(&mut world, 0, 5, &[0, 1], FOREVER_MS);
    load(&mut world, 50);
    quiet(&mut world);
}

#[test]
fn a_reign_is_opened_once_however_often_it_is_asked_for() {
    let mut world = reigning(4, 2, FOREVER_MS);
    let same = reign(&world, 0, 1, &[0, 1], FOREVER_MS);
    world.admin(0, AdminAction::OpenEpoch(same)).unwrap();
    let other = Reign { reign: ReignId(7), ..same };
    assert!(world.admin(0, AdminAction::OpenEpoch(other)).is_err(), "an epoch has one reign");
    world.kill(0);
    world.start(0);
    assert!(world.admin(0, AdminAction::OpenEpoch(same)).is_err(), "an epoch has one incarnation");
}

#[test]
fn without_a_lease_reads_and_writes_wait_and_go_on_when_it_is_renewed() {
    let mut world = reigning(5, 2, 1000);
    load(&mut world, 20);
    world.run_ms(1500);
    let (acknowledged, reads) = (world.acknowledged, world.reads);
    world.write(0, 3..4, false);
    world.read(0, 0..8);
    world.flush(0);
    world.run_ms(5000);
    assert_eq!((world.acknowledged, world.reads), (acknowledged, reads), "nobody is answered");
    assert!(world.status(0).unwrap().frozen.unwrap().contains("lease"));
    assert!(lease(&mut world, 0, 2, 1000).is_err(), "a lease of another reign is none");
    lease(&mut world, 0, 1, 1000).unwrap();
    world.run_until("what waited is answered", |world| world.waiting() == 0);
    assert_eq!((world.acknowledged, world.reads), (acknowledged + 1, reads + 1));
    world.run_until("it says so", |world| world.status(0).unwrap().frozen.is_none());
    quiet(&mut world);
}

#[test]
fn a_process_that_slept_through_its_lease_answers_nothing_when_it_wakes() {
    let mut world = reigning(6, 2, 1000);
    load(&mut world, 20);
    world.read(0, 0..8);
    world.paused_until[0] = world.now + 10_000 * holdfast_simulator::world::MS;
    world.run_ms(5000);
    seal(&mut world, 1, 2).unwrap();
    open(&mut world, 1, 2, &[1], FOREVER_MS);
    load_at(&mut world, 1, 10);
    let reads = world.reads;
    world.run_until("the old primary follows", |world| {
        world.status(1).unwrap().wish.is_some_and(|wish| wish.add == set(&[0]))
    });
    assert_eq!(world.reads, reads, "what it read before is of the past");
}

#[test]
fn a_member_that_is_gone_counts_until_a_later_record_is_without_it() {
    let mut world = reigning(7, 3, FOREVER_MS);
    load(&mut world, 20);
    world.kill(2);
    world.write(0, 3..4, false);
    world.run_ms(10_000);
    assert_eq!(world.waiting(), 1);
    let wish = world.status(0).unwrap().wish.unwrap();
    assert_eq!((wish.add, wish.remove), (set(&[]), set(&[2])));
    assert!(tell(&mut world, 0, 1, 1, &[0, 1]).is_err(), "one version has one set");
    let refused = world.admin(0, AdminAction::Shrink { node: NodeId(2) });
    assert!(matches!(refused, Err(AdminError::Managed(_))), "{refused:?}");
    tell(&mut world, 0, 1, 2, &[0, 1]).unwrap();
    world.run_until("the write is answered", |world| world.waiting() == 0);
    world.start(2);
    world.run_until("it is pending", |world| {
        world.status(0).unwrap().wish.is_some_and(|wish| wish.add == set(&[2]))
    });
    // Pending, it counts: while it is gone nothing is answered.
    world.kill(2);
    world.run_ms(10);
    world.write(0, 5..6, false);
    world.run_ms(5000);
    assert_eq!(world.waiting(), 1);
    assert!(tell(&mut world, 0, 1, 1, &[0, 1, 2]).is_err(), "an older record is not taken back");
    // A later version that lacks it: it was not taken in, and cannot be by what was asked for.
    tell(&mut world, 0, 1, 3, &[0, 1]).unwrap();
    world.run_until("the write is answered", |world| world.waiting() == 0);
}

#[test]
fn a_primary_wishes_for_nobody_before_it_is_stored_whom_it_asks() {
    let mut world = World::new(23, &Setup { managed: true, ..Setup::default() });
    connected(&mut world);
    world.set_cut(0, 1, true);
    open(&mut world, 0, 1, &[0], FOREVER_MS);
    load(&mut world, 20);
    let is_asked = Rc::new(Cell::new(false));
    let noticed = Rc::clone(&is_asked);
    let stores_both = |bytes: &[u8]| Superblock::decode(bytes).unwrap().record.in_sync == set(&[0, 1]);
    world.fates = Box::new(move |io, _, _| match io {
        Io::Superblock { bytes, .. } if stores_both(bytes) => {
            noticed.set(true);
            Fate::Hangs(10 * MS)
        }
        _ => Fate::Done,
    });
    world.set_cut(0, 1, false);
    world.run_until("the other one is asked", |_| is_asked.get());
    world.run_ms(1000);
    assert_eq!(world.status(0).unwrap().wish, None);
    world.fates = Box::new(|_, _, _| Fate::Done);
    world.run_until("it is wished for", |world| {
        world.status(0).unwrap().wish.is_some_and(|wish| wish.add == set(&[1]))
    });
}

#[test]
fn a_primary_that_is_lost_before_it_hears_who_was_taken_in_is_no_fork() {
    let mut world = World::new(22, &Setup { managed: true, ..Setup::default() });
    connected(&mut world);
    open(&mut world, 0, 1, &[0], FOREVER_MS);
    load(&mut world, 20);
    world.run_until("the other one is pending", |world| {
        world.status(0).unwrap().wish.is_some_and(|wish| wish.add == set(&[1]))
    });
    // It is taken in, by version 2 of the record. What is written now is not answered without it.
    world.set_cut(0, 1, true);
    world.write(0, 3..4, false);
    world.run_ms(100);
    assert_eq!(world.waiting(), 1);
    world.kill(0);
    seal(&mut world, 1, 2).unwrap();
    open(&mut world, 1, 2, &[1], FOREVER_MS);
    load_at(&mut world, 1, 20);
    world.set_cut(0, 1, false);
    world.start(0);
    world.run_until("it cuts its tail and follows", |world| {
        world.status(1).unwrap().wish.is_some_and(|wish| wish.add == set(&[0]))
    });
    tell(&mut world, 1, 2, 2, &[0, 1]).unwrap();
    load_at(&mut world, 1, 20);
    quiet(&mut world);
}

#[test]
fn an_old_primary_that_hears_of_a_higher_record_steps_down() {
    let mut world = reigning(8, 2, FOREVER_MS);
    world.set_cut(0, 1, true);
    seal(&mut world, 1, 2).unwrap();
    open(&mut world, 1, 2, &[1], FOREVER_MS);
    world.write(0, 3..4, false);
    world.run_ms(100);
    tell(&mut world, 0, 2, 1, &[1]).unwrap();
    assert_eq!(world.status(0).unwrap().role, Role::Secondary);
    world.set_cut(0, 1, false);
    world.run_until("it follows", |world| world.status(1).unwrap().wish.is_some());
}

#[test]
fn an_old_primary_connected_to_a_sealed_member_waits_and_steps_down() {
    let mut world = reigning(9, 2, FOREVER_MS);
    seal(&mut world, 1, 2).unwrap();
    world.write(0, 3..4, false);
    world.run_ms(5000);
    assert_eq!(world.waiting(), 1, "its only other member has promised another epoch");
    open(&mut world, 1, 2, &[1], FOREVER_MS);
    world.run_until("it follows", |world| world.status(1).unwrap().wish.is_some());
    assert_eq!(world.status(0).unwrap().role, Role::Secondary);
}

#[test]
fn a_released_primary_leaves_everything_durable_at_the_members() {
    let mut world = reigning(10, 2, FOREVER_MS);
    load(&mut world, 100);
    world.admin(0, AdminAction::Release).unwrap();
    world.admin(0, AdminAction::Release).unwrap();
    let (old, new) = (world.status(0).unwrap(), world.status(1).unwrap());
    assert_eq!((old.role, old.record.version), (Role::Secondary, 1), "its record changes elsewhere");
    assert_eq!((new.head, new.durable), (old.head, old.head.sequence));
    seal(&mut world, 0, 2).unwrap();
    seal(&mut world, 1, 2).unwrap();
    open(&mut world, 1, 2, &[0, 1], FOREVER_MS);
    load(&mut world, 50);
    quiet(&mut world);
}

#[test]
fn the_copy_that_the_configuration_manager_counts_on_is_not_given_up() {
    let mut world = World::new(21, &Setup { managed: true, ..Setup::default() });
    connected(&mut world);
    // Two reigns that know nothing of each other; the later one is what is agreed on.
    world.set_cut(0, 1, true);
    open(&mut world, 0, 1, &[0], FOREVER_MS);
    seal(&mut world, 1, 2).unwrap();
    open(&mut world, 1, 2, &[1], FOREVER_MS);
    load_at(&mut world, 1, 20);
    world.set_cut(0, 1, false);
    world.run_until("the fork is found", |world| {
        (0..2).all(|n| world.status(n).is_some_and(|status| status.peers[0].fork.is_some()))
    });
    for at in [0, 1] {
        let refused = world.admin(at, AdminAction::Resolve { discard: NodeId(1) });
        let text = format!("{refused:?}");
        assert!(refused.is_err() && text.contains("configuration manager counts on"), "at {at}: {text}");
    }
    assert!(world.status(1).unwrap().serving, "nothing was changed");
    world.admin(0, AdminAction::Resolve { discard: NodeId(0) }).unwrap();
    world.run_until("the other one is a member", |world| {
        world.status(1).unwrap().wish.is_some_and(|wish| wish.add == set(&[0]))
    });
    tell(&mut world, 1, 2, 2, &[0, 1]).unwrap();
    load(&mut world, 20);
    quiet(&mut world);
}

#[test]
fn a_primary_that_slept_while_the_next_one_went_on_from_its_first_entry_opens_late_and_answers_nobody() {
    for seed in 0..10 {
        let mut world = World::new(seed, &Setup { managed: true, ..Setup::default() });
        connected(&mut world);
        let first = Reign { lease_end: None, ..reign(&world, 1, 1, &[0, 1], 0) };
        world.ask(1, AdminAction::OpenEpoch(first));
        world.run_until("the first entry at the member", |world| {
            world.status(0).unwrap().durable >= Sequence(1)
        });
        world.paused_until[1] = world.now + FOREVER_MS * MS;
        seal(&mut world, 0, 2).unwrap();
        open(&mut world, 0, 2, &[0], FOREVER_MS);
        load_at(&mut world, 0, 20);
        let before = world.acknowledged;
        world.paused_until[1] = 0;
        world.write(1, 0..1, false);
        world.run_ms(3000);
        assert_eq!(world.acknowledged, before, "seed {seed}: node 1 answers");
        assert_eq!(world.status(1).unwrap().role, Role::Secondary, "seed {seed}");
    }
}
