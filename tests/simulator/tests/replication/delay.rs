//! Replicas that apply late: what they hold, what they acknowledge, and how an older position is had from one.

use holdfast_simulator::node::Io;
use holdfast_simulator::world::{Setup, World};
use replicator_core::command::AdminError;
use replicator_core::event::{AdminAction, FreezeAt};
use replicator_core::status::{Connection, DelayStatus, VerifyPhase};
use replicator_core::units::{NodeId, Position, Sequence};

use crate::setup::{connected, load, quiet, serving};

const HOUR_MS: u64 = 3_600_000;

fn setup(delay_ms: u64) -> Setup {
    Setup { sectors: 4096, delays_ms: vec![0, delay_ms], ..Setup::default() }
}

fn delay(world: &World) -> DelayStatus {
    world.status(1).unwrap().delay.unwrap()
}

/// What the disk of a node holds.
fn content(world: &World, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; world.sectors * 512];
    world.nodes[n].disk.read(0, &mut bytes);
    bytes
}

fn freeze(world: &mut World, at: FreezeAt) -> Result<String, AdminError> {
    world.admin(1, AdminAction::FreezeApply { at })
}

/// Some writes, which node 1 has in its journal and node 0 on its disk; where that is, and what it looks like.
fn moment(world: &mut World) -> (Position, Vec<u8>) {
    load(world, 40);
    world.run_until("node 1 has it all, and node 0 applied it", |world| {
        let [a, b] = [0, 1].map(|n| world.status(n).unwrap());
        b.durable == a.head.sequence && b.stable == a.head.sequence && a.applied == a.head.sequence
    });
    world.run_ms(100);
    (world.status(0).unwrap().head, content(world, 0))
}

#[test]
fn a_delayed_secondary_has_everything_in_its_journal_and_applies_when_it_is_time() {
    let mut world = serving(1, &setup(5000));
    load(&mut world, 40);
    world.run_until("it has everything durably", |world| {
        world.status(1).unwrap().durable == world.status(0).unwrap().head.sequence
    });
    world.run_ms(1000);
    let status = world.status(1).unwrap();
    assert_eq!(status.applied, Sequence(0), "nothing is five seconds old");
    assert_eq!(delay(&world).waiting_entries, status.head.sequence.0);
    assert!(delay(&world).lag_ms.is_some_and(|ms| (1000..5000).contains(&ms)), "{:?}", delay(&world));
    world.run_ms(5000);
    assert_eq!(world.status(1).unwrap().applied, status.head.sequence);
    assert!(!delay(&world).gives_way && delay(&world).waiting_entries == 0, "{:?}", delay(&world));
    quiet(&mut world);
}

#[test]
fn a_delayed_replica_is_fed_and_never_a_member() {
    let setup = Setup { nodes: 3, delays_ms: vec![0, HOUR_MS, 0], ..setup(0) };
    let mut world = serving(2, &setup);
    load(&mut world, 60);
    world.run_ms(5000);
    let status = world.status(0).unwrap();
    assert_eq!(status.record.in_sync.iter().collect::<Vec<_>>(), [NodeId(0), NodeId(2)]);
    let peer = status.peers.iter().find(|peer| peer.node == NodeId(1)).unwrap();
    assert!(peer.delayed && peer.connection == Connection::Established);
    assert_eq!(peer.ack.durable, status.head.sequence);
    // Nobody waits for it.
    world.kill(1);
    load(&mut world, 60);
}

#[test]
fn the_delay_gives_way_to_the_ring_and_the_primary_never_waits() {
    let time = |delay_ms| {
        let mut world = serving(3, &setup(delay_ms));
        world.run_ms(1000);
        let began = world.now;
        for _ in 0..60 {
            world.run_until("room", |world| world.write(0, 0..2048, false));
            world.run_until("answered", |world| world.waiting() == 0);
        }
        world.run_ms(1000);
        (world.now - began, world)
    };
    let ((at_once, _), (late, world)) = (time(0), time(HOUR_MS));
    assert!(late <= at_once * 2, "{late} ns instead of {at_once}");
    assert_eq!(world.status(0).unwrap().counters.resync_bytes, 0, "it was never left behind");
    let delay = delay(&world);
    assert!(delay.gives_way && delay.waiting_bytes <= delay.share_bytes, "{delay:?}");
    assert!(delay.waiting_bytes > delay.share_bytes - (2 << 20), "as much waits as may: {delay:?}");
}

#[test]
fn an_older_position_is_had_exactly_also_after_the_power_was_lost() {
    let mut world = serving(4, &setup(HOUR_MS));
    let moments: Vec<(Position, Vec<u8>)> = (0..4).map(|_| moment(&mut world)).collect();
    freeze(&mut world, FreezeAt::Position(moments[1].0)).unwrap();
    assert!(world.nodes[1].frozen && content(&world, 1) == moments[1].1);
    for power in [false, true] {
        if power {
            world.lose_power(1);
        } else {
            world.kill(1);
        }
        world.start(1);
        world.run_until("it is frozen again", |world| world.nodes[1].frozen);
        assert!(content(&world, 1) == moments[1].1, "it is another one after a start");
    }
    // On, never back.
    freeze(&mut world, FreezeAt::Position(moments[2].0)).unwrap();
    assert!(world.nodes[1].frozen && content(&world, 1) == moments[2].1);
    let back = freeze(&mut world, FreezeAt::Position(moments[1].0)).unwrap_err();
    assert!(back.to_string().contains("nothing older can be had"), "{back}");
    world.admin(1, AdminAction::Thaw).unwrap();
    world.run_ms(2000);
    assert_eq!(world.status(1).unwrap().applied, moments[2].0.sequence, "the delay counts again");
}

#[test]
fn a_time_names_the_last_position_before_it() {
    let mut world = serving(5, &setup(HOUR_MS));
    moment(&mut world);
    let (position, held) = moment(&mut world);
    let ms = world.time_of_day(0);
    world.run_ms(50);
    moment(&mut world);
    freeze(&mut world, FreezeAt::Time { ms }).unwrap();
    assert_eq!(world.status(1).unwrap().freeze.unwrap().position, position);
    assert!(content(&world, 1) == held);
    let past = freeze(&mut world, FreezeAt::Time { ms: ms - HOUR_MS }).unwrap_err();
    assert!(past.to_string().contains("later than that"), "{past}");
    let future = freeze(&mut world, FreezeAt::Time { ms: ms + HOUR_MS }).unwrap_err();
    assert!(future.to_string().contains("has not come"), "{future}");
}

#[test]
fn what_is_no_position_to_stand_at_is_refused() {
    let mut world = serving(6, &setup(HOUR_MS));
    let (position, _) = moment(&mut world);
    let at = |sequence| FreezeAt::Position(Position { sequence: Sequence(sequence), ..position });
    let end = position.sequence.0;
    assert!(freeze(&mut world, at(end + 5)).unwrap_err().to_string().contains("has no entry"));
    let elsewhere = FreezeAt::Position(Position { epoch: position.epoch.next(), ..position });
    assert!(freeze(&mut world, elsewhere).unwrap_err().to_string().contains("has no entry"));
    // Some frame has several entries.
    let inside = (2..end).find_map(|n| freeze(&mut world, at(n)).err());
    assert!(inside.is_some_and(|error| error.to_string().contains("applied together: choose")));
}

#[test]
fn after_a_crash_between_two_batches_an_older_position_is_still_exact() {
    for seed in 0..40 {
        let mut world = serving(100 + seed, &setup(600));
        load(&mut world, 30);
        world.run_ms(500);
        load(&mut world, 30);
        world.run_ms(200 + 10 * seed);
        // While some of it is being applied.
        world.lose_power(1);
        world.start(1);
        world.run_until("it is level again", |world| {
            world.status(1).unwrap().stable == world.status(0).unwrap().stable
        });
        let status = world.status(1).unwrap();
        let mut at = status.applied.0;
        // The checker says whether the disk is what the log says.
        while at < status.head.sequence.0 && !world.nodes[1].frozen {
            at += 1;
            let position = Position { sequence: Sequence(at), ..status.head };
            let _ = freeze(&mut world, FreezeAt::Position(position));
        }
        if world.nodes[1].frozen {
            world.admin(1, AdminAction::Thaw).unwrap();
        }
        quiet(&mut world);
    }
}

#[test]
fn whoever_is_promoted_applies_the_rest_first() {
    let mut world = serving(7, &setup(HOUR_MS));
    let (position, held) = moment(&mut world);
    world.kill(0);
    world.run_ms(4000);
    world.promote(1, true).unwrap();
    assert!(world.status(1).unwrap().applied >= position.sequence && content(&world, 1) == held);
    load(&mut world, 40);
    world.start(0);
    connected(&mut world);
    quiet(&mut world);
}

#[test]
fn a_stop_keeps_what_waits_and_a_start_goes_on_waiting() {
    let mut world = serving(8, &setup(HOUR_MS));
    let moments: Vec<(Position, Vec<u8>)> = (0..2).map(|_| moment(&mut world)).collect();
    world.admin(1, AdminAction::Stop).unwrap();
    world.kill(1);
    world.start(1);
    connected(&mut world);
    world.run_ms(3000);
    assert_eq!(world.status(1).unwrap().applied, Sequence(0));
    world.run_until("stable is known again", |world| {
        world.status(1).unwrap().stable == world.status(0).unwrap().stable
    });
    freeze(&mut world, FreezeAt::Position(moments[0].0)).unwrap();
    assert!(content(&world, 1) == moments[0].1);
}

#[test]
fn no_entry_waits_longer_than_the_delay_whatever_the_clocks_say() {
    let mut world = serving(9, &setup(2000));
    world.set_wall(0, 10 * HOUR_MS);
    load(&mut world, 20);
    world.run_ms(2500);
    assert_eq!(world.status(1).unwrap().applied, world.status(0).unwrap().head.sequence);
    // A clock that is set meanwhile changes nothing for what has arrived.
    world.set_wall(0, 0);
    load(&mut world, 20);
    world.run_ms(500);
    let before = world.status(1).unwrap().applied;
    world.set_wall(1, 10 * HOUR_MS);
    world.run_ms(500);
    assert_eq!(world.status(1).unwrap().applied, before);
    quiet(&mut world);
}

#[test]
fn a_verify_does_not_wait_for_a_delayed_copy() {
    let setup = Setup { nodes: 3, delays_ms: vec![0, HOUR_MS, 0], ..setup(0) };
    let mut world = serving(10, &setup);
    moment(&mut world);
    world.run_until("the other one is level", |world| {
        world.status(0).unwrap().record.in_sync.contains(NodeId(2))
    });
    world.admin(0, AdminAction::Verify { repair: false, trust: None }).unwrap();
    world.run_until("it is done", |world| {
        world.status(0).unwrap().verify.is_some_and(|verify| verify.phase == VerifyPhase::Done)
    });
    let parts = world.status(0).unwrap().verify.unwrap().peers;
    assert_eq!(parts.iter().map(|part| part.node).collect::<Vec<_>>(), [NodeId(2)]);
}

#[test]
fn a_resync_lifts_the_delay_and_it_counts_again_after() {
    let mut world = serving(11, &setup(HOUR_MS));
    moment(&mut world);
    world.admin(1, AdminAction::Invalidate).unwrap();
    world.run_until("it is brought level by blocks", |world| {
        let [a, b] = [0, 1].map(|n| world.status(n).unwrap());
        b.applied == a.head.sequence && b.disk_state == replicator_core::disk::superblock::DiskState::UpToDate
    });
    world.run_until("that is over", |world| delay(world).is_delaying);
    let (_, held) = (world.status(0).unwrap().head, content(&world, 0));
    moment(&mut world);
    assert!(content(&world, 1) == held, "what came after waits");
}

/// Failed once: nothing beyond what the delay had let go was applied any more, and a promotion never opened.
#[test]
fn a_replica_whose_delay_is_taken_out_applies_everything() {
    let mut world = serving(1, &setup(HOUR_MS));
    moment(&mut world);
    world.kill(1);
    world.set_delay(1, 0);
    world.start(1);
    quiet(&mut world);
    assert_eq!(content(&world, 0), content(&world, 1));
}

/// Failed once: as soon as the delay counted again, what was being written gave up the memory it was written from.
#[test]
fn what_is_being_written_keeps_its_memory_when_the_delay_counts_again() {
    let mut world = serving(1, &setup(HOUR_MS));
    let (here, _) = moment(&mut world);
    let id = world.ask(1, AdminAction::FreezeApply { at: FreezeAt::Position(here) });
    world.run_until("it writes in place", |world| {
        world.nodes[1].ios.iter().any(|io| matches!(io, Io::WriteDisk { .. }))
    });
    world.admin(1, AdminAction::Thaw).unwrap();
    assert!(world.answer(1, id).is_some_and(|answer| answer.is_err()), "the freeze ended before it began");
    moment(&mut world);
}
