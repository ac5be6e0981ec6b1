//! Verifies at random, in some of the runs: whoever serves is asked to compare copies while everything else goes on.
//! Backing disks do not rot in a run, so what a verify finds must be what a disk cannot read, or a lie.

use replicator_core::event::AdminAction;

use crate::random::Random;
use crate::rule::broken;
use crate::world::World;

/// In how many of 100,000 steps a verify is asked for; none in most runs. Drawn beside the rest of a plan, so that other
/// runs stay as they are.
pub fn draw_chance(seed: u64) -> u64 {
    let mut random = Random::new(seed ^ 0x7e51_f1e5);
    if random.percent(30) { 1 + random.below(2000) } else { 0 }
}

/// What the operator asks for now, if for anything: (node, what).
pub fn wish(world: &mut World, chance: u64) -> Option<(usize, AdminAction)> {
    if chance == 0 || world.random.below(100_000) >= chance {
        return None;
    }
    check(world);
    let node = world.serving()?;
    if world.random.percent(10) {
        return Some((node, AdminAction::StopVerify));
    }
    Some((node, AdminAction::Verify { repair: world.random.percent(50), trust: None }))
}

/// No verify has found what cannot be.
pub fn check(world: &mut World) {
    if (0..world.nodes.len()).any(|node| world.ledger.is_void(node)) {
        return;
    }
    for node in 0..world.nodes.len() {
        let Some(verify) = world.status(node).and_then(|status| status.verify) else { continue };
        for peer in &verify.peers {
            if peer.differing_blocks + peer.settled_blocks > peer.unreadable_blocks {
                broken(
                    "verify-found-nothing",
                    format!("node {node} says that node {} differs: {verify:?}", peer.node),
                );
            }
        }
        world.mark("verified");
    }
}
