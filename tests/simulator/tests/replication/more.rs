//! Rules that hold at a moment: an answer, a promise, a reuse of space must not come before what it rests on is on
//! the disks. Chance sees such a moment only when a crash falls into it; here each step is looked at.

use replicator_core::command::AdminError;
use replicator_core::config::OnPeerLoss;
use replicator_core::disk::layout::{Layout, SUPERBLOCK_AT};
use replicator_core::disk::superblock::{DiskState, Superblock};
use replicator_core::event::{AdminAction, Errno, Event};
use replicator_core::frame;
use replicator_core::status::{Connection, Role};
use replicator_core::units::{Epoch, Incarnation, LinkId, NodeId, ReignId, VolumeId};
use replicator_core::wire::envelope::{Envelope, MessageKind};
use replicator_core::wire::message::Message;

use holdfast_simulator::node::{Io, Node, Out};
use holdfast_simulator::world::{Fate, Setup, World};

use crate::setup::{connected, load, load_at, quiet, serving, small_frame};

const CONTINUE: OnPeerLoss = OnPeerLoss::Continue;

/// Steps until `done`, looking at each one.
fn watch(world: &mut World, mut look: impl FnMut(&mut World), mut done: impl FnMut(&mut World) -> bool) {
    for _ in 0..100_000 {
        if done(world) {
            return;
        }
        if !world.step() {
            world.pass_time();
        }
        look(world);
    }
    panic!("it takes too long");
}

fn steps(world: &mut World, count: usize) {
    for _ in 0..count {
        if !world.step() {
            world.pass_time();
        }
    }
}

/// Both copies of a superblock as they lie on the disk, the older one first.
fn superblocks(node: &Node) -> [Superblock; 2] {
    let mut copies = SUPERBLOCK_AT.map(|at| {
        let mut bytes = vec![0; 4096];
        node.journal.read(at, &mut bytes);
        Superblock::decode(&bytes).expect("no write is torn here")
    });
    copies.sort_by_key(|copy| copy.sequence);
    copies
}

#[test]
fn fua_is_answered_when_every_member_has_the_entry_durably() {
    for seed in 0..20 {
        let mut world = serving(seed, &Setup { nodes: 3, ..Setup::default() });
        for n in 0..5 {
            let before = world.acknowledged;
            assert!(world.write(0, n..n + 2, true));
            watch(&mut world, |_| {}, |world| world.acknowledged > before);
            let entry = world.status(0).unwrap().head.sequence;
            for node in 0..3 {
                assert!(
                    world.status(node).unwrap().durable >= entry,
                    "seed {seed}: node {node} may lose entry {entry}"
                );
            }
        }
    }
}

#[test]
fn a_shrink_counts_only_when_it_is_stored() {
    for seed in 0..10 {
        let mut world = serving(seed, &Setup::default());
        load(&mut world, 10);
        world.kill(1);
        world.run_ms(50);
        let before = world.acknowledged;
        assert!(world.write(0, 3..4, false));
        world.run_ms(50);
        world.ask(0, AdminAction::Shrink { node: NodeId(1) });
        watch(&mut world, |_| {}, |world| world.acknowledged > before);
        for copy in superblocks(&world.nodes[0]) {
            assert!(
                !copy.record.in_sync.contains(NodeId(1)),
                "seed {seed}: a start would still count on node 1"
            );
        }
    }
}

/// Whether a superblock that has `member` in its set is stored, or on its way.
fn may_be_member(node: &Node, member: NodeId) -> bool {
    let under_way = node.ios.iter().any(|io| {
        matches!(io, Io::Superblock { bytes, .. } if Superblock::decode(bytes).unwrap().record.in_sync.contains(member))
    });
    under_way || superblocks(node).iter().any(|copy| copy.record.in_sync.contains(member))
}

#[test]
fn a_replica_that_is_added_counts_from_the_moment_that_its_membership_may_be_stored() {
    for seed in 0..30 {
        let mut world = serving(seed, &Setup { on_peer_loss: CONTINUE, ..Setup::default() });
        world.kill(1);
        world.run_ms(4000);
        load(&mut world, 10);
        world.start(1);
        let look = |world: &mut World| {
            world.client();
            if may_be_member(&world.nodes[0], NodeId(1)) {
                let (primary, added) = (world.status(0).unwrap(), world.status(1).unwrap());
                assert!(
                    primary.committed <= added.journaled,
                    "seed {seed}: {} is committed",
                    primary.committed
                );
                assert!(primary.stable <= added.durable, "seed {seed}: {} is stable", primary.stable);
            }
        };
        watch(&mut world, look, |world| world.status(0).unwrap().record.in_sync.contains(NodeId(1)));
    }
}

#[test]
fn a_seal_is_answered_when_the_promise_is_stored_and_the_journal_synced() {
    let mut seen = 0;
    for seed in 0..20 {
        let mut world = serving(seed, &Setup { nodes: 3, ..Setup::default() });
        load(&mut world, 10);
        for n in 0..6 {
            world.write(0, n..n + 2, false);
            steps(&mut world, 7);
        }
        world.kill(0);
        world.run_until("the survivors noticed", |world| {
            (1..3).all(|n| world.status(n).unwrap().peers[0].connection == Connection::Connecting)
        });
        world.ask(2, AdminAction::Promote { force: true, reign: ReignId(u128::from(seed) + 1) });
        let mut look = |world: &mut World| {
            for out in &world.nodes[1].out {
                let Out::Message { envelope, body, .. } = out else { continue };
                let Ok(Message::Sealed(sealed)) = Message::decode(envelope.kind, body) else { continue };
                let status = world.status(1).unwrap();
                assert!(
                    sealed.granted && status.durable == sealed.head.position.sequence,
                    "seed {seed}: {status:?}"
                );
                let copies = superblocks(&world.nodes[1]);
                assert!(
                    copies.iter().all(|copy| copy.promised >= sealed.promised),
                    "seed {seed}: it would be forgotten"
                );
                seen += 1;
            }
        };
        watch(&mut world, &mut look, |world| world.status(2).unwrap().serving);
    }
    assert!(seen >= 20, "seals were looked at");
}

/// Runs for `ms` while I/O of `node` that `which` picks does not end; returns what was held back.
fn hold(world: &mut World, node: usize, ms: u64, which: impl Fn(&Io) -> bool) -> Vec<Io> {
    let until = world.now + ms * 1_000_000;
    let mut held = Vec::new();
    loop {
        held.extend(world.nodes[node].ios.extract_if(.., |io| which(io)));
        if world.now >= until {
            return held;
        }
        if !world.step() {
            world.pass_time();
        }
    }
}

#[test]
fn a_read_of_the_disk_and_the_apply_of_a_newer_entry_never_overlap() {
    for seed in 0..5 {
        let mut world = serving(seed, &Setup::default());
        world.write(0, 0..16, false);
        quiet(&mut world);
        let before = world.status(0).unwrap().applied;
        world.read(0, 0..16);
        let is_read = |io: &Io| matches!(io, Io::ReadDisk { .. });
        let held = hold(&mut world, 0, 1, is_read);
        assert_eq!(held.len(), 1, "nothing unapplied covers it");
        world.write(0, 15..20, false);
        world.flush(0);
        world.run_ms(500);
        let status = world.status(0).unwrap();
        assert!(
            status.stable > before && status.applied == before,
            "seed {seed}: it would be read half: {status:?}"
        );
        assert_eq!(world.waiting(), 1, "only the read waits");
        world.nodes[0].ios.extend(held);
        world.run_until("the read is answered", |world| world.waiting() == 0);
        quiet(&mut world);
    }
}

#[test]
fn a_seal_waits_for_the_journal() {
    for seed in 0..5 {
        let mut world = serving(seed, &Setup { nodes: 3, ..Setup::default() });
        load(&mut world, 10);
        quiet(&mut world);
        world.write(0, 0..4, false);
        let is_sync = |io: &Io| matches!(io, Io::SyncJournal { .. });
        let mut held = hold(&mut world, 1, 100, is_sync);
        let status = world.status(1).unwrap();
        assert!(status.durable < status.journaled, "it has what it may still lose");
        world.kill(0);
        held.extend(hold(&mut world, 1, 50, is_sync));
        world.ask(2, AdminAction::Promote { force: true, reign: ReignId(7) });
        held.extend(hold(&mut world, 1, 1000, is_sync));
        assert!(world.status(1).unwrap().promised > Epoch(1), "the promise is stored");
        assert_eq!(world.status(2).unwrap().role, Role::Secondary, "seed {seed}: the answer came too early");
        world.nodes[1].ios.extend(held);
        watch(&mut world, |_| {}, |world| world.status(2).unwrap().serving);
    }
}

#[test]
fn ring_space_is_used_again_only_when_the_superblock_that_frees_it_is_stored() {
    let setup = Setup { sectors: 8192, checkpoint_bytes: 1 << 40, ..Setup::default() };
    let layout = Layout::new((setup.sectors * 512) as u64, setup.journal_bytes).unwrap();
    for seed in 0..3 {
        let mut world = serving(seed, &setup);
        let mut writes = 0;
        while writes < 80 {
            if world.waiting() < 8 && world.write(0, writes..writes + 2000, false) {
                writes += 1;
            }
            if !world.step() {
                world.pass_time();
            }
            for (index, node) in world.nodes.iter().enumerate() {
                let tail = superblocks(node)[0].tail.ring_offset.0;
                for io in &node.ios {
                    let Io::WriteJournal { bytes, .. } = io else { continue };
                    let end = frame::decode_local(bytes).unwrap().ring_offset.0 + bytes.len() as u64;
                    assert!(
                        end - tail <= layout.ring_bytes,
                        "seed {seed}: node {index} overwrites its own tail"
                    );
                }
            }
        }
        assert!(
            superblocks(&world.nodes[0])[0].tail.ring_offset.0 > layout.ring_bytes,
            "the ring went round"
        );
    }
}

#[test]
fn an_unproven_replica_is_not_promoted_over_a_proven_one() {
    let mut world = serving(1, &Setup::default());
    load(&mut world, 20);
    quiet(&mut world);
    world.admin(0, AdminAction::Demote).unwrap();
    world.lose_power(1);
    world.start(1);
    connected(&mut world);
    assert!(!world.status(1).unwrap().proven, "what it had in memory may be lost");
    let refused = world.promote(1, false);
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("memory") && text.contains("promote n0"), "{text}");
    world.promote(0, false).unwrap();
    quiet(&mut world);
    assert!(world.status(1).unwrap().proven, "it followed a serving Primary");
}

#[test]
fn a_replica_that_lacks_what_another_has_applied_is_not_promoted_even_by_force() {
    let mut world = serving(2, &Setup { on_peer_loss: CONTINUE, ..Setup::default() });
    world.kill(1);
    world.run_ms(4000);
    load(&mut world, 20);
    world.run_ms(100);
    world.admin(0, AdminAction::Demote).unwrap();
    world.start(1);
    connected(&mut world);
    world.run_ms(100);
    let refused = world.promote(1, true);
    assert!(matches!(&refused, Err(AdminError::Refused(text)) if text.contains("applied")), "{refused:?}");
    world.promote(0, false).unwrap();
    quiet(&mut world);
}

#[test]
fn a_secondary_that_went_on_alone_is_refused_and_keeps_what_it_has() {
    let mut world = serving(3, &Setup { on_peer_loss: CONTINUE, ..Setup::default() });
    load(&mut world, 20);
    quiet(&mut world);
    world.set_cut(0, 1, true);
    world.run_ms(5000);
    world.write(0, 3..4, false);
    world.run_until("the Primary writes alone", |world| world.waiting() == 0);
    world.run_ms(100);
    world.admin(0, AdminAction::Demote).unwrap();
    world.promote(1, true).unwrap();
    world.run_ms(100);
    let before = world.status(0).unwrap();
    world.set_cut(0, 1, false);
    world.run_ms(10_000);
    let after = world.status(0).unwrap();
    assert_eq!((after.head, after.chain, after.applied), (before.head, before.chain, before.applied));
    for node in 0..2 {
        let peer = world.status(node).unwrap().peers[0].clone();
        assert_eq!(peer.connection, Connection::StandAlone);
        assert!(peer.reason.unwrap().contains("split brain"));
    }
}

#[test]
fn an_epoch_start_that_was_cut_leaves_the_history_with_it() {
    for seed in 0..10 {
        let mut world = World::new(seed, &Setup::default());
        connected(&mut world);
        world.ask(0, AdminAction::Promote { force: false, reign: ReignId(7) });
        let opened = |world: &mut World| world.status(0).unwrap().head.epoch > Epoch(0);
        watch(&mut world, |_| {}, opened);
        world.set_cut(0, 1, true);
        world.run_ms(100);
        world.promote(1, true).unwrap();
        load_at(&mut world, 1, 5);
        world.set_cut(0, 1, false);
        world.run_until("the first one follows", |world| world.status(0).unwrap().role == Role::Secondary);
        quiet(&mut world);
    }
}

#[test]
fn a_failed_sync_of_the_journal_takes_the_copy_out() {
    let mut world = serving(5, &Setup::default());
    load(&mut world, 20);
    let before = world.acknowledged;
    world.write(0, 1..3, true);
    let is_sync = |io: &Io| matches!(io, Io::SyncJournal { .. });
    watch(&mut world, |_| {}, |world| world.nodes[0].ios.iter().any(is_sync));
    let at = world.nodes[0].ios.iter().position(is_sync).unwrap();
    let Io::SyncJournal { token, .. } = world.nodes[0].ios.remove(at) else { unreachable!() };
    let now = world.instant(0);
    world.nodes[0].handle(now, Event::JournalSynced { token, result: Err(Errno(5)) });
    world.run_ms(1000);
    assert_eq!(world.acknowledged, before, "nothing durable was promised");
    let status = world.status(0).unwrap();
    assert!(!status.serving && status.suspect, "{status:?}");
}

#[test]
fn a_failed_sync_of_the_disk_takes_the_copy_out() {
    let mut world = serving(5, &Setup { checkpoint_bytes: 4096, ..Setup::default() });
    quiet(&mut world);
    world.fates = Box::new(|io, node, _| match io {
        Io::SyncDisk { .. } if node == 1 => Fate::Fails(5),
        _ => Fate::Done,
    });
    let before = world.ledger.saved(1).applied_through;
    load_at(&mut world, 0, 20);
    world.run_until("it is out", |world| world.status(1).unwrap().disk_state == DiskState::Failed);
    assert_eq!(world.ledger.saved(1).applied_through, before, "nothing is counted as stored");
}

/// Gives node 1, which follows node 0 in epoch 1, a frame that continues its log; returns whether it was taken.
fn takes_frame(seed: u64, session: u64, epoch: u64, reign_flip: u128) -> bool {
    let mut world = World::new(seed, &Setup::default());
    connected(&mut world);
    world.admin(0, AdminAction::Promote { force: false, reign: ReignId(7) }).unwrap();
    let follows = |world: &mut World| {
        let status = world.status(1).unwrap();
        status.peers[0].connection == Connection::Established && status.head.epoch == Epoch(1)
    };
    watch(&mut world, |_| {}, follows);
    world.run_ms(100);
    let before = world.status(1).unwrap();
    let bytes = small_frame(&before, before.head.sequence.next(), before.chain);
    let envelope = Envelope {
        kind: MessageKind::Frame,
        sync: false,
        body_bytes: 4096,
        body_crc: 0,
        incarnation: Incarnation(1),
        volume: VolumeId(0x1234_5678),
        session,
        epoch: Epoch(epoch),
        reign: ReignId(7 ^ reign_flip),
        committed: before.committed,
        stable: before.stable,
    };
    // The first connection of a world has the first two numbers.
    let link = LinkId(3);
    let buffer = world.nodes[1].place(link, &envelope).unwrap();
    world.nodes[1].fill(buffer, &bytes);
    let now = world.instant(1);
    world.nodes[1].handle(now, Event::Frame { link, envelope, buffer });
    let after = world.status(1).unwrap();
    let is_taken = after.head.sequence > before.head.sequence;
    assert!(is_taken || after.arena_used_bytes == before.arena_used_bytes, "its memory is given back");
    is_taken
}

#[test]
fn a_frame_of_another_session_epoch_or_reign_is_not_taken() {
    let sessions: Vec<u64> = (0..6).filter(|session| takes_frame(1, *session, 1, 0)).collect();
    assert_eq!(sessions.len(), 1, "of one session only: {sessions:?}");
    assert!(!takes_frame(1, sessions[0], 0, 0), "an older epoch");
    assert!(!takes_frame(1, sessions[0], 2, 0), "a later epoch, of which it was told nothing");
    assert!(!takes_frame(1, sessions[0], 1, 1), "another reign of the same epoch");
}

#[test]
fn a_cut_tail_stays_cut_through_restarts() {
    for seed in 0..20 {
        let mut world = serving(seed, &Setup::default());
        load(&mut world, 20);
        quiet(&mut world);
        // Only node 0 has these; nothing of it was acknowledged.
        world.set_cut(0, 1, true);
        for n in 0..3 {
            world.write(0, n..n + 2, false);
            world.run_ms(20);
        }
        world.kill(0);
        world.promote(1, true).unwrap();
        load(&mut world, 5);
        world.set_cut(0, 1, false);
        world.start(0);
        quiet(&mut world);
        let (head, chain) = world.status(0).map(|status| (status.head, status.chain)).unwrap();
        world.kill(0);
        world.start(0);
        let status = world.status(0).unwrap();
        assert_eq!(
            (status.head, status.chain),
            (head, chain),
            "seed {seed}: what it had acknowledged is still there"
        );
        quiet(&mut world);
    }
}

#[test]
fn two_promotions_to_one_epoch_never_share_a_reign() {
    for seed in 0..60 {
        let mut world = World::new(seed, &Setup { nodes: 3, ..Setup::default() });
        connected(&mut world);
        // Node 2 is alone and is made Primary of epoch 1 by force.
        world.set_cut(0, 2, true);
        world.set_cut(1, 2, true);
        world.run_ms(50);
        world.promote(2, true).unwrap();
        world.write(2, 0..2, false);
        world.run_ms(50);
        // Node 0 is made Primary of the same epoch, and meets node 2 while it waits for node 1.
        world.ask(0, AdminAction::Promote { force: true, reign: ReignId(77) });
        world.set_cut(0, 2, false);
        let mut left = 600;
        let look = |world: &mut World| {
            let states: Vec<_> = (0..3).map(|n| world.status(n).unwrap()).collect();
            let primaries: Vec<_> = states.iter().filter(|status| status.role == Role::Primary).collect();
            for (index, a) in primaries.iter().enumerate() {
                for b in &primaries[..index] {
                    let same = a.record.epoch == b.record.epoch && a.record.reign == b.record.reign;
                    assert!(!same, "seed {seed}: nodes {} and {} write in one reign", a.node, b.node);
                }
            }
        };
        watch(&mut world, look, |_| {
            left -= 1;
            left == 0
        });
    }
}
