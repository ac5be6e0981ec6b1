//! What seeds of the simulator found in the code, each as a sentence that must hold.

use holdfast_simulator::disk::SimDisk;
use holdfast_simulator::node::{Io, StartError};
use holdfast_simulator::world::{Fate, MS, Setup, World};
use replicator_core::command::AdminError;
use replicator_core::config::{OnPeerLoss, Protocol};
use replicator_core::disk::layout::Layout;
use replicator_core::disk::superblock::{DiskState, Superblock};
use replicator_core::event::AdminAction;
use replicator_core::frame::{self, LocalPart};
use replicator_core::recovery::RecoverError;
use replicator_core::status::Role;
use replicator_core::units::{Chain, NodeId, ReignId, RingOffset, Sequence};

use crate::setup::{connected, load, load_at, quiet, small_frame};

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
    let saved = world.ledger.saved(1);
    assert_eq!((saved.record.reign, saved.promised), (reign, saved.record.epoch));
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

/// Node 0 goes on alone and is answered for; node 2 is promoted by force; node 1 tells node 0 of that, before (`empty`) or
/// after it follows.
fn goes_on_alone_and_hears_of_force(seed: u64, empty: bool) -> World {
    let setup = Setup { nodes: 3, on_peer_loss: OnPeerLoss::Continue, ..Setup::default() };
    let mut world = serving(seed, &setup);
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
    let before = world.status(1).unwrap();
    world.set_cut(1, 2, empty);
    world.promote(2, true).unwrap();
    load(&mut world, 5);
    if empty {
        // All that node 1 has of the new reign is its record.
        world.set_cut(1, 2, false);
        world.run_until("the record", |world| world.ledger.saved(1).record.epoch > before.record.epoch);
        world.set_cut(1, 2, true);
        assert_eq!(world.status(1).unwrap().head, before.head);
    }
    // The one that went on alone hears of the new reign from node 1 first.
    world.set_cut(0, 1, false);
    world.start(0);
    world.run_ms(3000);
    world
}

#[test]
fn a_record_heard_from_others_does_not_turn_a_fork_into_a_tail() {
    for empty in [false, true] {
        let mut world = goes_on_alone_and_hears_of_force(6, empty);
        world.set_cut(0, 2, false);
        world.run_ms(5000);
        let status = world.status(2).unwrap();
        let peer = status.peers.iter().find(|peer| peer.node == NodeId(0)).unwrap();
        assert!(peer.reason.as_ref().is_some_and(|reason| reason.contains("split brain")), "{peer:?}");
    }
}

#[test]
fn a_promotion_goes_by_the_newest_record_that_an_answer_names() {
    let mut world = goes_on_alone_and_hears_of_force(6, true);
    world.kill(2);
    let refused = world.promote(0, false);
    assert!(matches!(refused, Err(AdminError::NeedsForce(_))), "{refused:?}");
}

#[test]
fn what_was_durable_and_rots_is_not_the_end_of_the_log() {
    let setup = Setup::default();
    let layout = Layout::new((setup.sectors * 512) as u64, setup.journal_bytes).unwrap();
    for node in 0..2 {
        let mut world = serving(30, &setup);
        quiet(&mut world);
        let at = ring_end(&world);
        for n in 0..4 {
            world.write(0, n..n + 8, true);
            world.run_until("the answer", |world| world.waiting() == 0);
        }
        quiet(&mut world);
        let tail = world.ledger.saved(node).tail.ring_offset.0;
        assert!(tail < at && world.ledger.saved(node).applied_through.ring_offset.0 <= at);
        world.kill(node);
        // Their logs do not lie at the same place.
        world.ledger.distrust(node);
        for page in 0..8 {
            world.nodes[node].journal.rot(layout.device_offset(RingOffset(at)) + 4096 * page + 300);
        }
        let outcome = world.try_start(node);
        assert!(matches!(outcome, Err(StartError::Recover(RecoverError::Rot { .. }))), "{outcome:?}");
    }
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

/// Where the log of node 0 ends in its ring.
fn ring_end(world: &World) -> u64 {
    world.ledger.saved(0).tail.ring_offset.0 + world.status(0).unwrap().ring_used_bytes
}

/// Node 1 is away from the moment on at which the next frame no longer fits before the end of the ring; there lies, page
/// by page, an old frame that continues some other log `ahead` entries later.
fn catches_up_past_old_frames_at_the_end_of_the_ring(ahead: u64) {
    let setup = Setup { on_peer_loss: OnPeerLoss::Continue, sectors: 4096, ..Setup::default() };
    let layout = Layout::new((setup.sectors * 512) as u64, setup.journal_bytes).unwrap();
    let ring_start = layout.ring_bytes - (256 << 10);
    let mut world = serving(10 + ahead, &Setup { ring_start, ..setup });
    load(&mut world, 5);
    world.run_until("rest", |world| world.is_quiet());
    world.run_ms(100);
    let before = world.status(0).unwrap();
    world.kill(1);
    let end = ring_end(&world);
    for at in (end..layout.ring_bytes).step_by(4096) {
        let first = Sequence(before.head.sequence.0 + 1 + ahead);
        let mut bytes = small_frame(&before, first, Chain(9));
        let local = LocalPart {
            ring_offset: RingOffset(at),
            durable: before.durable,
            stable: before.stable,
            cuts: 0,
        };
        frame::encode_local(&mut bytes, &local);
        world.nodes[0].journal.write(layout.device_offset(RingOffset(at)), &bytes);
    }
    world.write(0, 0..1024, false);
    world.run_until("it goes on alone", |world| world.waiting() == 0);
    assert!(ring_end(&world) > layout.ring_bytes, "the next lap began");
    // Nothing of it is in memory any more.
    world.run_until("it is applied", |world| {
        let status = world.status(0).unwrap();
        status.applied == status.head.sequence
    });
    world.run_ms(1000);
    world.start(1);
    world.run_until("rest", |world| world.is_quiet());
    world.check_equal();
}

#[test]
fn what_a_power_loss_left_at_the_end_of_a_lap_is_no_damage() {
    catches_up_past_old_frames_at_the_end_of_the_ring(1);
}

#[test]
fn what_a_power_loss_left_at_the_end_of_a_lap_is_not_sent() {
    catches_up_past_old_frames_at_the_end_of_the_ring(0);
}

/// Steps until node 0 has begun its reign and node 1 holds the first entry durably; nobody is served yet, for what node 0
/// says to `deaf`, or node 1 to node 0 if that is 1, does not arrive.
fn opening(world: &mut World, deaf: usize) {
    let reign = world.reign_id();
    world.ask(0, AdminAction::Promote { force: false, reign });
    world.run_until("the reign", |world| world.status(0).unwrap().role == Role::Primary);
    world.routes[0][deaf].silent = deaf != 1;
    world.run_until("the first entry", |world| {
        // An acknowledgement that is on its way stays there.
        let has = world.status(1).unwrap().durable >= Sequence(1);
        world.routes[1][0].silent = has && deaf == 1;
        has
    });
    assert!(!world.nodes[0].serving);
}

#[test]
fn a_primary_that_slept_through_a_forced_reign_may_serve_what_it_knows() {
    let mut world = World::new(12, &Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() });
    connected(&mut world);
    opening(&mut world, 1);
    world.paused_until[0] = u64::MAX;
    world.run_ms(4000);
    world.promote(1, true).unwrap();
    load_at(&mut world, 1, 5);
    // It hears of nothing but the loss of its peer, and goes on alone.
    world.set_cut(0, 1, true);
    world.routes[1][0].silent = false;
    world.paused_until[0] = 0;
    world.run_until("it serves", |world| world.nodes[0].serving);
}

#[test]
fn a_primary_may_go_by_what_a_member_held_before_it_followed_a_forced_reign() {
    let mut world = World::new(13, &Setup { nodes: 3, ..Setup::default() });
    connected(&mut world);
    opening(&mut world, 2);
    world.run_ms(100);
    world.kill(2);
    world.run_ms(100);
    world.ask(0, AdminAction::Shrink { node: NodeId(2) });
    // The set without node 2 is all but stored when node 0 falls asleep.
    let stores = |io: &Io| matches!(io, Io::Superblock { .. });
    world.run_until("the new set", |world| world.nodes[0].ios.iter().any(stores));
    world.paused_until[0] = u64::MAX;
    world.routes[0][2].silent = false;
    world.set_cut(0, 2, true);
    world.start(2);
    world.run_ms(4000);
    world.promote(2, true).unwrap();
    load_at(&mut world, 2, 5);
    let now = world.instant(0);
    while let Some(at) = world.nodes[0].ios.iter().position(stores) {
        world.nodes[0].finish(at, now);
    }
    world.nodes[0].turn(now);
    assert!(world.nodes[0].serving);
    world.step();
}

#[test]
fn a_stop_is_answered_though_the_disk_fails_meanwhile() {
    let mut world = serving(14, &Setup::default());
    load(&mut world, 20);
    world.fates =
        Box::new(
            |io, node, _| {
                if node == 0 && matches!(io, Io::SyncDisk { .. }) { Fate::Fails(5) } else { Fate::Done }
            },
        );
    let first = world.ask(0, AdminAction::Stop);
    let second = world.ask(0, AdminAction::Stop);
    world.run_ms(20_000);
    assert!(world.answer(0, first).is_some());
    assert!(world.answer(0, second).is_some());
}

/// Node 0 is the only member and has lost its newest entries; node 1, a follower, has applied them.
#[test]
fn a_member_that_lost_what_is_applied_elsewhere_is_not_in_the_way_of_force() {
    let mut world = serving(15, &Setup { protocols: vec![Protocol::C, Protocol::A], ..Setup::default() });
    let old = (world.nodes[0].disk.clone(), world.nodes[0].journal.clone());
    load(&mut world, 20);
    world.run_until("rest", |world| world.is_quiet());
    world.kill(0);
    (world.nodes[0].disk, world.nodes[0].journal) = old;
    world.ledger.distrust(0);
    world.start(0);
    connected(&mut world);
    assert!(world.promote(0, true).is_err(), "node 1 would have to undo what it applied");
    world.promote(1, true).unwrap();
}

/// Node 1 follows node 2 in one reign. To another one, of the same epoch, it had only promised itself: node 0 stored its
/// beginning and its end.
#[test]
fn records_of_two_reigns_of_one_epoch_do_not_replace_each_other() {
    let mut world = World::new(16, &Setup { nodes: 4, ..Setup::default() });
    connected(&mut world);
    (0..4).filter(|n| *n != 2).for_each(|n| world.set_cut(2, n, true));
    world.ask(0, AdminAction::Promote { force: true, reign: ReignId(7) });
    world.run_until("the reign", |world| world.status(0).unwrap().role == Role::Primary);
    world.set_cut(0, 1, true);
    world.set_cut(0, 3, true);
    world.admin(0, AdminAction::Shrink { node: NodeId(3) }).unwrap();
    world.admin(0, AdminAction::Demote).unwrap();
    world.promote(2, true).unwrap();
    world.set_cut(1, 2, false);
    load(&mut world, 20);
    world.run_until("rest", |world| world.is_level(&[1, 2]));
    world.kill(2);
    world.start(2);
    world.set_cut(0, 1, false);
    world.run_ms(2000);
    let records: Vec<_> = (0..3).map(|n| world.status(n).unwrap().record).collect();
    assert!(records[0].is_of_rival(&records[2]) && records[0].version > records[2].version);
    assert_eq!(records[1].reign, records[2].reign, "it knows whom it followed");
    let refused = world.promote(1, false);
    assert!(matches!(refused, Err(AdminError::NeedsForce(_))), "{refused:?}");
    world.promote(2, false).or_else(|_| world.promote(2, true)).unwrap();
    load(&mut world, 20);
}

/// Node 1 returns, and the ring of node 0 does not give what it needs: it `harm`s the journal there.
fn returns_to_a_damaged_ring(seed: u64, harm: impl Fn(&mut SimDisk, u64)) {
    let setup = Setup { on_peer_loss: OnPeerLoss::Continue, ..Setup::default() };
    let layout = Layout::new((setup.sectors * 512) as u64, setup.journal_bytes).unwrap();
    let mut world = serving(seed, &setup);
    load(&mut world, 20);
    world.run_until("rest", |world| world.is_quiet());
    world.kill(1);
    let at = layout.device_offset(RingOffset(ring_end(&world)));
    for n in 0..10 {
        world.write(0, n..n + 8, false);
        world.run_until("it goes on alone", |world| world.waiting() == 0);
    }
    world.run_ms(1000);
    for page in 0..4 {
        harm(&mut world.nodes[0].journal, at + 4096 * page);
    }
    world.start(1);
    world.run_until("rest", |world| world.is_quiet());
    world.check_equal();
    assert!(world.status(0).unwrap().counters.resync_bytes > 0);
}

#[test]
fn a_ring_that_rotted_where_a_peer_needs_it_is_made_up_for_by_blocks() {
    returns_to_a_damaged_ring(17, SimDisk::rot);
}

#[test]
fn a_ring_that_cannot_be_read_where_a_peer_needs_it_is_made_up_for_by_blocks() {
    returns_to_a_damaged_ring(18, SimDisk::spoil);
}

/// Node 0 has an entry that is not applied anywhere; node 1 needs it to make it stable.
#[test]
fn a_primary_that_cannot_read_an_unapplied_entry_takes_itself_out() {
    let setup = Setup::default();
    let layout = Layout::new((setup.sectors * 512) as u64, setup.journal_bytes).unwrap();
    let mut world = serving(19, &setup);
    load(&mut world, 20);
    world.run_until("rest", |world| world.is_quiet());
    world.set_cut(0, 1, true);
    let at = layout.device_offset(RingOffset(ring_end(&world)));
    world.write(0, 3..4, false);
    world.run_ms(500);
    world.kill(0);
    world.start(0);
    world.set_cut(0, 1, false);
    connected(&mut world);
    (0..4).for_each(|page| world.nodes[0].journal.spoil(at + 4096 * page));
    let reign = world.reign_id();
    world.ask(0, AdminAction::Promote { force: false, reign });
    world.run_until("the copy to be out", |world| world.status(0).unwrap().disk_state == DiskState::Failed);
    world.run_until("another reign", |world| {
        world.promote(1, false).is_ok() || world.promote(1, true).is_ok()
    });
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

/// The block is bad in every copy: each asked the other for it.
#[test]
fn a_block_that_no_copy_has_is_not_asked_for_again_and_again() {
    let setup = Setup { nodes: 3, sums: vec![true; 3], sectors: 64, ..Setup::default() };
    let mut world = serving(20, &setup);
    world.write(0, 0..64, false);
    quiet(&mut world);
    (0..3).for_each(|node| world.rot(node, 2 * 4096 + 5));
    for node in [2, 1, 0] {
        world.admin(node, AdminAction::Scrub).unwrap();
        world.run_ms(10_000);
        assert!(world.status(node).unwrap().scrub.unwrap().ended.is_some());
    }
    let ios = world.ios;
    world.run_ms(10_000);
    assert!(world.ios < ios + 100, "{} I/Os at rest", world.ios - ios);
    let before = world.reads;
    world.read(0, 16..24);
    world.run_until("an answer", |world| world.waiting() == 0);
    assert_eq!(world.reads, before, "it is an error");
    // What is written whole is right everywhere.
    world.write(0, 16..24, false);
    quiet(&mut world);
}

/// Node 0 is Primary; its block and that of node 2 are bad. Node 0 has it from node 1, and node 2 from node 0.
#[test]
fn who_could_not_answer_is_sent_the_block_once_it_is_found() {
    let setup = Setup { nodes: 3, sums: vec![true; 3], sectors: 64, ..Setup::default() };
    for seed in 0..6 {
        let mut world = serving(21 + seed, &setup);
        world.write(0, 0..64, false);
        quiet(&mut world);
        [0, 2].iter().for_each(|node| world.rot(*node, 2 * 4096 + 5));
        world.read(0, 16..24);
        world.run_until("the read", |world| world.waiting() == 0);
        if world.status(2).unwrap().counters.rotten_blocks > 0 {
            world.run_until("both to be mended", |world| world.disks_are_equal());
        }
    }
}

/// Each of two Primaries was made by force; the reigns of the same number that follow them are not.
#[test]
fn reigns_of_one_epoch_behind_a_fork_leave_a_third_replica_with_the_one_it_promised() {
    let mut world = serving(27, &Setup { nodes: 3, ..Setup::default() });
    load(&mut world, 10);
    world.run_until("rest", |world| world.is_quiet());
    (0..3).for_each(|a| (0..a).for_each(|b| world.set_cut(a, b, true)));
    world.kill(0);
    world.start(0);
    world.promote(0, true).unwrap();
    world.promote(2, true).unwrap();
    for node in [0, 2] {
        world.admin(node, AdminAction::Demote).unwrap();
        world.run_ms(100);
        world.promote(node, false).unwrap();
    }
    world.admin(2, AdminAction::Demote).unwrap();
    world.set_cut(1, 2, false);
    world.run_ms(2000);
    world.set_cut(0, 1, false);
    world.run_ms(5000);
    let status = world.status(0).unwrap();
    let peer = status.peers.iter().find(|peer| peer.node == NodeId(1)).unwrap();
    assert!(peer.reason.as_ref().is_some_and(|reason| reason.contains("opened twice")), "{peer:?}");
    assert!(world.ledger.named_twice_by_force(0, 1));
}

/// Node 0 is put back to what it was, promoted by force and followed by node 1. Node 2 heard before what was stable.
#[test]
fn what_was_stable_is_applied_by_who_did_not_hear_that_it_was_cut_elsewhere() {
    let mut world = serving(28, &Setup { nodes: 3, sync_interval_ms: 1, ..Setup::default() });
    load(&mut world, 5);
    quiet(&mut world);
    let old = (world.nodes[0].disk.clone(), world.nodes[0].journal.clone());
    // Node 1 acknowledges, and hears nothing of what that makes stable. Node 2 dies when it would write in place.
    let write = world.status(0).unwrap().head.sequence.next();
    world.write(0, 3..4, false);
    world.run_until("node 1 has it", |world| world.status(1).unwrap().durable >= write);
    world.routes[0][1].silent = true;
    world.fates = Box::new(|io, node, _| match io {
        Io::WriteDisk { .. } if node == 2 => Fate::Kill,
        _ => Fate::Done,
    });
    world.run_until("node 2 would apply it", |world| !world.is_up(2));
    world.fates = Box::new(|_, _, _| Fate::Done);
    world.kill(0);
    (world.nodes[0].disk, world.nodes[0].journal) = old;
    world.ledger.distrust(0);
    world.routes[0][1].silent = false;
    world.set_cut(0, 1, true);
    world.start(0);
    world.promote(0, true).unwrap();
    world.set_cut(0, 1, false);
    world.run_until("node 1 follows", |world| world.is_level(&[0, 1]));
    (0..2).for_each(|node| world.set_cut(node, 2, true));
    world.start(2);
    world.run_until("node 2 applies it", |world| world.status(2).unwrap().applied >= write);
}

/// A block of the Primary cannot be read, and the copy that is brought level was the only other one.
#[test]
fn what_cannot_be_brought_level_says_why_and_is_not_begun_again_at_once() {
    let mut world = serving(29, &Setup { sectors: 64, ..Setup::default() });
    world.write(0, 0..64, false);
    quiet(&mut world);
    world.spoil(0, 2 * 4096);
    world.admin(1, AdminAction::Invalidate).unwrap();
    world.run_ms(10_000);
    for (node, other) in [(0, NodeId(1)), (1, NodeId(0))] {
        let status = world.status(node).unwrap();
        let reason = status.peers.iter().find(|peer| peer.node == other).unwrap().reason.clone();
        assert!(reason.as_deref().is_some_and(|reason| reason.contains("at byte 8192")), "{reason:?}");
    }
    let before = world.ledger.saved(1).sequence;
    world.run_ms(10_000);
    let stored = world.ledger.saved(1).sequence - before;
    assert!(stored < 60, "{stored} superblocks in ten seconds");
    world.write(0, 16..24, false);
    quiet(&mut world);
}
