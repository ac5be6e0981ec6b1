//! Directed scenarios: each a sentence about replication that must hold, played by real machines on simulated disks
//! and links.

use holdfast_simulator::world::{Setup, World};
use replicator_core::command::AdminError;
use replicator_core::config::{OnPeerLoss, Protocol};
use replicator_core::event::{AdminAction, ZeroKind};
use replicator_core::status::{Connection, Role};
use replicator_core::units::NodeId;

use crate::setup::{connected, load, load_at, quiet, serving};

/// A write of a client that waits for room, as it does on a real connection.
fn write_when_possible(world: &mut World, sectors: std::ops::Range<usize>) {
    world.run_until("room for a write", |world| world.write(0, sectors.clone(), false));
}

#[test]
fn two_nodes_replicate_and_end_equal() {
    let mut world = serving(1, &Setup::default());
    load(&mut world, 300);
    assert!(world.acknowledged > 100);
    quiet(&mut world);
}

#[test]
fn three_nodes_replicate_and_end_equal() {
    let mut world = serving(2, &Setup { nodes: 3, ..Setup::default() });
    load(&mut world, 300);
    quiet(&mut world);
}

#[test]
fn a_switchover_loses_nothing_and_needs_no_force() {
    let mut world = serving(3, &Setup::default());
    load(&mut world, 100);
    world.admin(0, AdminAction::Demote).unwrap();
    connected(&mut world);
    world.promote(1, false).unwrap();
    load(&mut world, 100);
    quiet(&mut world);
}

#[test]
fn a_killed_primary_is_replaced_by_force_and_catches_up_when_it_returns() {
    let mut world = serving(4, &Setup::default());
    load(&mut world, 100);
    for _ in 0..20 {
        world.client();
    }
    world.kill(0);
    world.run_ms(10);
    let refused = world.promote(1, false);
    assert!(matches!(refused, Err(AdminError::NeedsForce(_))), "{refused:?}");
    world.promote(1, true).unwrap();
    load(&mut world, 100);
    world.start(0);
    quiet(&mut world);
    assert_eq!(world.status(0).unwrap().role, Role::Secondary);
}

#[test]
fn a_primary_without_its_peer_freezes_until_it_returns() {
    let mut world = serving(5, &Setup::default());
    load(&mut world, 50);
    world.kill(1);
    world.run_ms(100);
    let before = world.acknowledged;
    world.write(0, 3..4, false);
    world.run_ms(10_000);
    assert_eq!(world.acknowledged, before, "nothing is acknowledged alone");
    assert!(world.status(0).unwrap().frozen.is_some());
    world.start(1);
    world.run_until("the write is answered", |world| world.waiting() == 0);
    assert_eq!(world.acknowledged, before + 1);
    assert!(world.status(0).unwrap().frozen.is_none());
    quiet(&mut world);
}

#[test]
fn a_frozen_primary_goes_on_alone_when_the_operator_shrinks_the_set() {
    let mut world = serving(6, &Setup::default());
    world.kill(1);
    world.write(0, 3..4, false);
    world.run_ms(5000);
    assert_eq!(world.waiting(), 1);
    world.admin(0, AdminAction::Shrink { node: NodeId(1) }).unwrap();
    world.run_until("the write is answered", |world| world.waiting() == 0);
    load(&mut world, 50);
    world.start(1);
    quiet(&mut world);
}

#[test]
fn by_policy_a_primary_goes_on_alone_after_the_timeout_and_takes_its_peer_back() {
    let mut world = serving(7, &Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() });
    world.kill(1);
    world.write(0, 3..4, false);
    world.run_ms(1000);
    assert_eq!(world.waiting(), 1, "not before the timeout");
    load(&mut world, 50);
    assert!(!world.status(0).unwrap().record.in_sync.contains(NodeId(1)));
    world.start(1);
    quiet(&mut world);
}

#[test]
fn a_fork_is_refused_and_nothing_is_overwritten() {
    let mut world = serving(8, &Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() });
    load(&mut world, 50);
    quiet(&mut world);
    world.set_cut(0, 1, true);
    world.run_ms(5000);
    world.promote(1, true).unwrap();
    world.write(0, 3..4, false);
    world.run_until("the old Primary writes alone", |world| world.waiting() == 0);
    world.write(1, 3..4, false);
    world.run_until("the new Primary writes alone", |world| world.waiting() == 0);
    world.run_ms(2000);
    let before: Vec<_> = (0..2).map(|n| world.status(n).unwrap().chain).collect();
    world.set_cut(0, 1, false);
    world.run_ms(10_000);
    for (node, chain) in before.into_iter().enumerate() {
        let status = world.status(node).unwrap();
        assert_eq!(status.peers[0].connection, Connection::StandAlone);
        assert!(status.peers[0].reason.as_ref().unwrap().contains("split brain"), "{status:?}");
        assert_eq!(status.chain, chain);
        assert!(status.serving, "both go on as before until someone chooses");
    }
}

#[test]
fn a_deposed_primary_that_wrote_nothing_alone_steps_down_and_follows() {
    let mut world = serving(9, &Setup::default());
    load(&mut world, 50);
    world.set_cut(0, 1, true);
    world.run_ms(4000);
    world.write(0, 3..4, false);
    world.run_ms(100);
    world.promote(1, true).unwrap();
    load_at(&mut world, 1, 30);
    world.set_cut(0, 1, false);
    world.run_until("the old Primary stepped down", |world| world.status(0).unwrap().role == Role::Secondary);
    quiet(&mut world);
}

#[test]
fn a_secondary_that_was_away_for_long_catches_up_from_the_journal() {
    let setup = Setup { on_peer_loss: OnPeerLoss::Continue, sectors: 4096, ..Setup::default() };
    let mut world = serving(10, &setup);
    world.kill(1);
    world.run_ms(4000);
    for n in 0..40 {
        world.write(0, n * 50..n * 50 + 200, false);
        world.run_ms(20);
    }
    world.run_until("answered", |world| world.waiting() == 0);
    world.start(1);
    quiet(&mut world);
}

#[test]
fn the_ring_wraps_many_times_and_both_ends_stay_equal() {
    let mut world = serving(12, &Setup { sectors: 8192, ..Setup::default() });
    for n in 0..60 {
        write_when_possible(&mut world, n * 37..n * 37 + 2048);
        if n % 3 == 0 {
            world.write(0, n..n + 3, false);
        }
        world.run_until("answered", |world| world.waiting() == 0);
    }
    quiet(&mut world);
    let (superblock, _) = world.nodes[0].superblock();
    assert!(superblock.tail.ring_offset.0 > 2 * (17 << 20), "the ring was used again: {superblock:?}");
    world.kill(0);
    world.kill(1);
    world.start(0);
    world.start(1);
    connected(&mut world);
    world.promote(0, false).unwrap();
    quiet(&mut world);
}

#[test]
fn zeroes_and_trims_read_as_zeros_everywhere() {
    let mut world = serving(13, &Setup::default());
    world.write(0, 0..64, false);
    world.zero(0, 8..16, ZeroKind::Trim);
    world.run_until("answered", |world| world.waiting() == 0);
    world.zero(0, 12..40, ZeroKind::Zeroes);
    world.run_until("answered", |world| world.waiting() == 0);
    world.read(0, 0..64);
    quiet(&mut world);
}

#[test]
fn protocol_b_and_a_replicate_and_end_equal() {
    let mut world = serving(14, &Setup { protocol: Protocol::B, nodes: 3, ..Setup::default() });
    load(&mut world, 150);
    quiet(&mut world);

    let mut world = World::new(15, &Setup { protocol: Protocol::A, ..Setup::default() });
    connected(&mut world);
    world.promote(0, false).unwrap();
    load(&mut world, 150);
    world.kill(1);
    world.run_ms(5000);
    load(&mut world, 50);
    assert!(world.status(0).unwrap().frozen.is_none(), "a follower is no member");
    world.start(1);
    world.run_until("the follower is level", |world| {
        let head = world.status(0).unwrap().head;
        (0..2).all(|n| world.status(n).unwrap().applied == head.sequence)
    });
    world.check_equal();
}

#[test]
fn an_ordered_stop_leaves_equal_disks_and_a_clean_superblock() {
    let mut world = serving(16, &Setup::default());
    load(&mut world, 100);
    world.admin(0, AdminAction::Stop).unwrap();
    world.admin(1, AdminAction::Stop).unwrap();
    for node in 0..2 {
        let (superblock, repaired) = world.nodes[node].superblock();
        assert!(superblock.clean && !repaired);
        assert_eq!(superblock.applied_through.position.sequence, superblock.durable);
    }
    let length = world.sectors * 512;
    let mut images = [vec![0; length], vec![0; length]];
    for (node, image) in images.iter_mut().enumerate() {
        world.nodes[node].disk.read(0, image);
    }
    assert!(images[0] == images[1]);
}

#[test]
fn a_damaged_durable_record_is_rot_and_never_the_end_of_the_log() {
    let mut world = serving(17, &Setup { checkpoint_bytes: 1 << 40, ..Setup::default() });
    load(&mut world, 50);
    quiet(&mut world);
    let before = world.status(1).unwrap();
    assert!(before.durable.0 > 5);
    world.kill(1);
    let layout = replicator_core::disk::layout::Layout::new(128 * 512, (1 << 20) + (17 << 20)).unwrap();
    world.nodes[1].journal.rot(layout.ring_at + 4096 + 4200);
    let now = world.instant(0);
    let error = world.nodes[1].start(now).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[test]
fn a_failed_journal_write_takes_the_copy_out_and_acknowledges_nothing() {
    let mut world = serving(18, &Setup::default());
    load(&mut world, 20);
    let before = world.acknowledged;
    world.nodes[0].fail_journal_writes = true;
    world.write(0, 1..3, false);
    world.run_ms(1000);
    assert_eq!(world.acknowledged, before);
    assert!(!world.status(0).unwrap().serving);
    world.kill(0);
    world.promote(1, true).unwrap();
    world.read(1, 0..16);
    world.run_ms(100);
}

#[test]
fn in_protocol_b_a_restarted_secondary_is_not_promoted_past_a_member_that_has_more() {
    let mut world = serving(19, &Setup { protocol: Protocol::B, ..Setup::default() });
    load(&mut world, 60);
    for _ in 0..20 {
        world.client();
    }
    world.kill(0);
    world.kill(1);
    world.start(0);
    world.start(1);
    connected(&mut world);
    for force in [false, true] {
        let refused = world.promote(1, force);
        assert!(
            matches!(&refused, Err(AdminError::Refused(text)) if text.contains("promote n0")),
            "{refused:?}"
        );
    }
    world.promote(0, false).unwrap();
    quiet(&mut world);
}

#[test]
fn a_record_that_changed_while_a_stream_began_reaches_the_replica() {
    let mut world = serving(20, &Setup::default());
    load(&mut world, 20);
    world.kill(1);
    world.run_ms(20);
    world.start(1);
    let id = world.ask(0, AdminAction::Shrink { node: NodeId(1) });
    world.run_until("the set to be whole again", |world| world.is_quiet());
    world.run_ms(100);
    assert!(world.nodes[0].answers.iter().any(|(other, _)| *other == id));
    let records: Vec<_> = (0..2).map(|n| world.status(n).unwrap().record).collect();
    assert_eq!(records[0], records[1]);
}

#[test]
fn what_recovery_left_unapplied_is_applied_though_what_comes_in_fills_the_memory() {
    let setup = Setup {
        on_peer_loss: OnPeerLoss::Continue,
        sectors: 8192,
        journal_bytes: 96 << 20,
        checkpoint_bytes: 1 << 40,
        ..Setup::default()
    };
    let mut world = serving(21, &setup);
    for n in 0..6 {
        write_when_possible(&mut world, n * 37..n * 37 + 2048);
    }
    world.run_until("answered", |world| world.waiting() == 0);
    world.kill(1);
    world.run_ms(4000);
    for n in 0..24 {
        write_when_possible(&mut world, n * 37..n * 37 + 2048);
        world.run_until("answered", |world| world.waiting() == 0);
    }
    world.start(1);
    quiet(&mut world);
}

#[test]
fn what_recovery_left_unapplied_is_read_back_and_applied_many_frames_at_a_time() {
    let setup = Setup { journal_bytes: 96 << 20, checkpoint_bytes: 1 << 40, ..Setup::default() };
    let mut world = serving(23, &setup);
    const FRAMES: u64 = 200;
    for _ in 0..FRAMES {
        write_when_possible(&mut world, 5..7);
        world.run_until("answered", |world| world.waiting() == 0);
    }
    world.kill(1);
    world.start(1);
    quiet(&mut world);
    // One place was written in all of them, and a batch writes it once.
    let writes = world.status(1).unwrap().counters.disk_writes;
    assert!((1..=FRAMES / 20).contains(&writes), "{writes} writes of the disk for {FRAMES} frames");
}

#[test]
fn what_a_lone_primary_acknowledged_just_before_its_death_is_a_fork_and_is_not_cut() {
    let mut world = serving(22, &Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() });
    load(&mut world, 10);
    quiet(&mut world);
    world.kill(1);
    world.run_ms(5000);
    let before = world.acknowledged;
    world.write(0, 3..4, false);
    world.run_until("the lone write", |world| world.acknowledged == before + 1);
    world.flush(0);
    world.run_until("the lone flush", |world| world.waiting() == 0);
    world.kill(0);
    world.start(1);
    world.promote(1, true).unwrap();
    let head = world.nodes[0].superblock().0;
    assert!(head.stable.0 < before + 2);
    world.start(0);
    world.run_ms(3000);
    let status = world.status(0).unwrap();
    assert_eq!(status.peers[0].connection, Connection::StandAlone);
    assert!(status.peers[0].reason.as_ref().unwrap().contains("split brain"), "{status:?}");
    assert_eq!(status.record.in_sync, replicator_core::units::NodeSet::only(NodeId(0)));
}

#[test]
fn force_is_refused_while_a_primary_that_refuses_this_replica_still_answers() {
    let setup = Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() };
    let mut world = serving(23, &setup);
    load(&mut world, 20);
    world.set_cut(0, 1, true);
    world.run_ms(5000);
    world.promote(1, true).unwrap();
    for node in 0..2 {
        world.write(node, 3..4, false);
        world.run_until("each writes alone", |world| world.waiting() == 0);
    }
    world.run_ms(100);
    world.kill(1);
    world.start(1);
    world.set_cut(0, 1, false);
    world.run_ms(3000);
    let refused = world.promote(1, true);
    assert!(matches!(&refused, Err(AdminError::Refused(text)) if text.contains("answers")), "{refused:?}");
}

#[test]
fn the_export_generation_stays_while_the_same_node_reigns_and_changes_when_another_did() {
    let generation = |world: &World| world.status(0).unwrap().export_generation;
    let mut world = serving(23, &Setup::default());
    load(&mut world, 50);
    let attached = generation(&world);
    // Killed and started again, or stopped in order: nobody else wrote, and nothing acknowledged is missing.
    world.kill(0);
    world.start(0);
    connected(&mut world);
    world.promote(0, false).unwrap();
    assert_eq!(generation(&world), attached);
    world.admin(0, AdminAction::Demote).unwrap();
    connected(&mut world);
    world.promote(0, false).unwrap();
    assert_eq!(generation(&world), attached);
    // The other node reigns and hands back: what clients here still hold is of the past.
    world.admin(0, AdminAction::Demote).unwrap();
    connected(&mut world);
    world.promote(1, false).unwrap();
    load(&mut world, 20);
    world.admin(1, AdminAction::Demote).unwrap();
    connected(&mut world);
    world.promote(0, false).unwrap();
    let returned = generation(&world);
    assert!(returned > attached);
    // By force, without the other's word.
    world.kill(1);
    world.kill(0);
    world.start(0);
    world.run_ms(10);
    world.promote(0, true).unwrap();
    assert!(generation(&world) > returned);
}
