//! Chance: seeds that kill, cut and cut the power at any step, under load, and then demand that everything converges
//! and nothing promised is lost. `CHAOS_SEEDS=from..to` runs others than the fixed ones.

use replicator_core::command::AdminError;
use replicator_core::config::Protocol;
use replicator_core::event::AdminAction;
use replicator_core::units::NodeId;

use holdfast_simulator::world::{Setup, World};

fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("CHAOS_SEEDS") else { return default };
    let (from, to) = text.split_once("..").expect("CHAOS_SEEDS=from..to");
    from.parse().expect("a number")..to.parse().expect("a number")
}

/// What a run may do to its nodes.
#[derive(Clone, Copy)]
struct Faults {
    kill: u64,
    power: u64,
    cut: u64,
    switch: u64,
}

fn try_to_serve(world: &mut World, lossy: &mut bool) {
    if world.serving().is_some() {
        return;
    }
    let up: Vec<usize> = (0..world.nodes.len()).filter(|n| world.is_up(*n)).collect();
    if up.is_empty() {
        return;
    }
    // The newest record anyone alive or dead remembers says who is a member; an operator promotes one of those.
    let records = (0..world.nodes.len()).map(|n| world.nodes[n].superblock().0.record);
    let newest = records.max_by_key(replicator_core::disk::superblock::Record::order).expect("nodes");
    let node = up[world.random.index(up.len())];
    let member = newest.in_sync.contains(NodeId(u8::try_from(node).unwrap()));
    let mut result = world.promote(node, false);
    if matches!(result, Err(AdminError::NeedsForce(_))) && member && world.random.percent(70) {
        result = world.promote(node, true);
    }
    if result.is_ok() && *lossy {
        world.checker.volatile_lost(world.now);
        *lossy = false;
    }
}

fn hurt(world: &mut World, faults: Faults, lossy: &mut bool) {
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
        Some(1) => {
            *lossy = true;
            if world.random.percent(40) {
                (0..world.nodes.len()).for_each(|n| world.lose_power(n));
            } else {
                world.lose_power(node);
            }
        }
        Some(2) => {
            let cut = !world.cut[node][other];
            world.set_cut(node, other, cut);
        }
        Some(3) => {
            if let Some(primary) = world.serving() {
                let _ = world.admin(primary, AdminAction::Demote);
                world.checker.sessions_over(world.now);
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

fn run(seed: u64, setup: &Setup, faults: Faults, steps: usize) -> u64 {
    let mut world = World::new(seed, setup);
    let mut lossy = false;
    for _ in 0..steps {
        if world.serving().is_none() && world.random.percent(10) {
            try_to_serve(&mut world, &mut lossy);
        }
        if world.random.percent(30) {
            world.client();
        }
        hurt(&mut world, faults, &mut lossy);
        if world.random.percent(3) || !world.step() {
            world.pass_time();
        }
    }
    // Faults stop; everything must come back.
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
    for _ in 0..20 {
        world.run_ms(2000);
        try_to_serve(&mut world, &mut lossy);
        if world.serving().is_some() {
            break;
        }
    }
    world.run_until("all replicas level and at rest", |world| {
        // A demoted or deposed node's clients are gone; requests at others must end.
        world.is_quiet()
    });
    world.check_equal();
    world.acknowledged
}

fn swarm(name: &str, default: std::ops::Range<u64>, setup: &Setup, faults: Faults) {
    let mut acknowledged = 0;
    for seed in seeds(default) {
        let outcome = std::panic::catch_unwind(|| run(seed, setup, faults, 1500));
        match outcome {
            Ok(count) => acknowledged += count,
            Err(_) => {
                panic!("{name}: seed {seed} failed; run it again with CHAOS_SEEDS={seed}..{}", seed + 1)
            }
        }
    }
    assert!(acknowledged > 0, "a run without an acknowledged write shows nothing");
    println!("{name}: {acknowledged} writes acknowledged");
}

/// Each of these failed once: a mark behind a cut was taken for cut itself (10021, 10104, 10173), frames still being
/// sent were cut, and a log moved on between hello and cut (10399).
#[test]
fn seeds_that_failed_once() {
    let two = Setup::default();
    let three = Setup { nodes: 3, ..Setup::default() };
    run(10_021, &two, Faults { kill: 2, power: 5, cut: 1, switch: 1 }, 1500);
    run(10_104, &two, Faults { kill: 6, power: 0, cut: 0, switch: 1 }, 1500);
    run(10_173, &two, Faults { kill: 3, power: 0, cut: 6, switch: 1 }, 1500);
    run(10_399, &three, Faults { kill: 3, power: 0, cut: 6, switch: 1 }, 1500);
}

#[test]
fn kill_nine_at_any_step_loses_nothing_acknowledged() {
    let faults = Faults { kill: 6, power: 0, cut: 0, switch: 1 };
    swarm("kill, two nodes", 0..60, &Setup::default(), faults);
    swarm("kill, three nodes", 1000..1030, &Setup { nodes: 3, ..Setup::default() }, faults);
}

#[test]
fn cut_links_lose_nothing_acknowledged() {
    let faults = Faults { kill: 3, power: 0, cut: 6, switch: 1 };
    swarm("cut, two nodes", 2000..2050, &Setup::default(), faults);
    swarm("cut, three nodes", 3000..3030, &Setup { nodes: 3, ..Setup::default() }, faults);
}

#[test]
fn a_power_loss_at_any_step_loses_nothing_flushed() {
    let faults = Faults { kill: 2, power: 5, cut: 1, switch: 1 };
    swarm("power, two nodes", 4000..4060, &Setup::default(), faults);
    swarm("power, three nodes", 5000..5030, &Setup { nodes: 3, ..Setup::default() }, faults);
    let b = Setup { nodes: 3, protocol: Protocol::B, ..Setup::default() };
    let faults = Faults { kill: 0, power: 6, cut: 1, switch: 1 };
    swarm("power, protocol B", 6000..6030, &b, faults);
}
