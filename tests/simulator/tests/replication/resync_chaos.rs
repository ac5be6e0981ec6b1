//! Chance, with so many large writes against so short a ring that whoever is away for a moment needs a resync.

use holdfast_simulator::world::{Setup, World};
use replicator_core::command::AdminError;
use replicator_core::config::OnPeerLoss;
use replicator_core::disk::superblock::Record;
use replicator_core::event::AdminAction;
use replicator_core::units::NodeId;

use crate::resync::{recreate, setup};

fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("CHAOS_SEEDS") else { return default };
    let (from, to) = text.split_once("..").expect("CHAOS_SEEDS=from..to");
    from.parse().expect("a number")..to.parse().expect("a number")
}

/// What a run may do to its nodes, of a thousand steps.
#[derive(Clone, Copy)]
struct Faults {
    kill: u64,
    power: u64,
    cut: u64,
    switch: u64,
}

/// Somebody promotes a node, by force if it is a member.
fn try_to_serve(world: &mut World) {
    let up: Vec<usize> = (0..world.nodes.len()).filter(|n| world.is_up(*n)).collect();
    if up.is_empty() || world.serving().is_some() {
        return;
    }
    // The newest record anyone alive or dead remembers says who is a member; an operator promotes one of those.
    let records = (0..world.nodes.len()).map(|n| world.nodes[n].superblock().0.record);
    let newest = records.max_by_key(Record::order).expect("nodes");
    let node = up[world.random.index(up.len())];
    if world.nodes[node].superblock().0.record.epoch.0 == 0 && newest.epoch.0 > 0 {
        // It was made anew, or its data was discarded: nobody promotes that over the others.
        return;
    }
    let member = newest.in_sync.contains(NodeId(u8::try_from(node).unwrap()));
    let result = world.promote(node, false);
    if matches!(result, Err(AdminError::NeedsForce(_))) && member && world.random.percent(70) {
        let _ = world.promote(node, true);
    }
}

fn hurt(world: &mut World, faults: Faults) {
    let node = world.random.index(world.nodes.len());
    let other = (node + 1) % world.nodes.len();
    let chance = world.random.below(1000);
    let bounds = [faults.kill, faults.power, faults.cut, faults.switch];
    let mut sum = 0;
    let kind = bounds.iter().position(|bound| {
        sum += bound;
        chance < sum
    });
    match kind {
        Some(0) if world.is_up(node) => world.kill(node),
        Some(1) if world.random.percent(40) => (0..world.nodes.len()).for_each(|n| world.lose_power(n)),
        Some(1) => world.lose_power(node),
        Some(2) => {
            let cut = !world.is_cut(node, other);
            world.set_cut(node, other, cut);
        }
        Some(3) => {
            if let Some(primary) = world.serving() {
                let _ = world.admin(primary, AdminAction::Demote);
            }
        }
        _ => {}
    }
    for n in 0..world.nodes.len() {
        if !world.is_up(n) && world.random.percent(1) {
            world.start(n);
        }
    }
}

/// A replica that is not needed loses its disks, or an operator discards its data.
fn lose_a_copy(world: &mut World) {
    let Some(primary) = world.serving() else { return };
    let node = (primary + 1 + world.random.index(world.nodes.len() - 1)) % world.nodes.len();
    let record = world.status(primary).unwrap().record;
    if record.in_sync.contains(NodeId(u8::try_from(node).unwrap())) {
        return;
    }
    if world.random.percent(50) {
        recreate(world, node);
    } else if world.is_up(node) {
        let _ = world.ask(node, AdminAction::Invalidate);
    }
}

fn run(seed: u64, setup: &Setup, faults: Faults, steps: usize) -> u64 {
    let mut world = World::new(seed, setup);
    let mut resync_bytes = 0;
    for _ in 0..steps {
        if world.serving().is_none() && world.random.percent(10) {
            try_to_serve(&mut world);
        }
        match (world.random.below(100), world.serving()) {
            (0..=24, Some(primary)) if world.waiting() < 20 => {
                let start = world.random.index(world.sectors - 2047);
                world.write(primary, start..start + 2048, false);
            }
            (25..=40, _) => world.client(),
            (41, _) if world.random.percent(15) => lose_a_copy(&mut world),
            _ => {}
        }
        hurt(&mut world, faults);
        for n in 0..world.nodes.len() {
            resync_bytes = resync_bytes.max(world.status(n).map_or(0, |status| status.counters.resync_bytes));
        }
        if world.random.percent(3) || !world.step() {
            world.pass_time();
        }
    }
    for a in 0..world.nodes.len() {
        for b in 0..a {
            world.set_cut(a, b, false);
        }
    }
    for n in 0..world.nodes.len() {
        if !world.is_up(n) {
            world.start(n);
        }
    }
    for _ in 0..40 {
        world.run_ms(2000);
        try_to_serve(&mut world);
        if world.serving().is_some() {
            break;
        }
    }
    world.run_until("all replicas level and at rest", |world| world.is_quiet());
    world.check_equal();
    resync_bytes
}

fn swarm(name: &str, default: std::ops::Range<u64>, setup: &Setup, faults: Faults) {
    let (mut resynced, mut count) = (0, 0);
    for seed in seeds(default) {
        let outcome = std::panic::catch_unwind(|| run(seed, setup, faults, 4000));
        match outcome {
            Ok(bytes) => resynced += u64::from(bytes > 0),
            Err(_) => {
                panic!("{name}: seed {seed} failed; run it again with CHAOS_SEEDS={seed}..{}", seed + 1)
            }
        }
        count += 1;
    }
    println!("{name}: {resynced} of {count} runs sent blocks");
    assert!(resynced * 3 >= count, "a run without a resync shows nothing");
}

#[test]
fn resyncs_under_kills_and_cuts_lose_nothing_and_all_copies_become_equal() {
    let faults = Faults { kill: 4, power: 0, cut: 3, switch: 1 };
    swarm("resync, two nodes", 20_000..20_015, &setup(), faults);
    swarm("resync, three nodes", 21_000..21_006, &Setup { nodes: 3, ..setup() }, faults);
}

const POWER_LOSSES: Faults = Faults { kill: 2, power: 4, cut: 2, switch: 1 };

#[test]
fn a_mark_is_not_written_where_entries_lie_whose_cut_is_not_stored() {
    run(22_059, &setup(), POWER_LOSSES, 4000);
}

/// The frame that carried the mark that everything waited for was large, and free memory lay in pieces.
#[test]
fn what_waits_for_a_mark_makes_room_for_the_frame_that_brings_it() {
    run(22_007, &setup(), POWER_LOSSES, 4000);
}

#[test]
fn resyncs_under_power_losses_lose_nothing_flushed() {
    let faults = POWER_LOSSES;
    swarm("resync and power, two nodes", 22_000..22_015, &setup(), faults);
    let freeze = Setup { nodes: 3, on_peer_loss: OnPeerLoss::Continue, ..setup() };
    swarm("resync and power, three nodes", 23_000..23_006, &freeze, faults);
}

/// Failed once: who follows an older reign still goes by what a member had before it was made anew.
#[test]
fn a_former_member_that_was_made_anew_had_what_it_said() {
    let three = Setup { nodes: 3, on_peer_loss: OnPeerLoss::Continue, ..setup() };
    run(22_036, &three, POWER_LOSSES, 4000);
}

/// Failed once: large writes that a held range held back had all the memory that its item waited for.
#[test]
fn resync_seeds_that_failed_once() {
    let faults = Faults { kill: 4, power: 0, cut: 3, switch: 1 };
    run(30_072, &Setup { nodes: 3, ..setup() }, faults, 3000);
}
