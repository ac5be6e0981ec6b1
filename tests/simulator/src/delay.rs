//! Replicas that apply late, in some of the runs: how late, what the nodes take for the time of day, and operators who have
//! a look at an older position.

use replicator_core::event::{AdminAction, FreezeAt};
use replicator_core::units::{Position, Sequence};

use crate::random::Random;
use crate::world::World;

/// How far the times of day of two nodes are apart at most, in milliseconds.
const APART_MS: u64 = 3000;

/// How late each node applies; nobody in most runs. Drawn beside the rest of a plan, so that other runs stay as they are.
pub fn draw(seed: u64, nodes: usize) -> Vec<u64> {
    let mut random = Random::new(seed ^ 0x00de_1a7e);
    if !random.percent(15) {
        return Vec::new();
    }
    let lengths = [200, 1000, 4000, 4000, 20_000];
    (0..nodes).map(|_| if random.percent(45) { lengths[random.index(lengths.len())] } else { 0 }).collect()
}

/// How far the time of day of each node is ahead.
pub fn draw_walls(seed: u64, nodes: usize) -> Vec<u64> {
    let mut random = Random::new(seed ^ 0x003a_11ed);
    let most = if random.percent(60) { 20 } else { APART_MS };
    (0..nodes).map(|_| random.below(most)).collect()
}

/// Somebody sets the time of day of a node.
pub fn set_wall(world: &mut World, node: usize) {
    let ahead_ms = world.random.below(APART_MS);
    world.note(|| format!("the time of day of n{node} is set to {ahead_ms} ms ahead"));
    world.set_wall(node, ahead_ms);
}

/// What the operator asks of a delayed node now, if anything.
pub fn wish(world: &mut World) -> Option<(usize, AdminAction)> {
    if world.setup.delays_ms.is_empty() || world.random.below(1000) >= 6 {
        return None;
    }
    let node = world.random.index(world.nodes.len());
    let status = world.status(node)?;
    let delay = status.delay?;
    if status.freeze.is_some() && world.random.percent(50) {
        return Some((node, AdminAction::Thaw));
    }
    let at = if world.random.percent(60) {
        let beyond = 1 + world.random.below(status.head.sequence.0 - delay.applied.sequence.0 + 2);
        let sequence = Sequence(delay.applied.sequence.0 + beyond - 1);
        FreezeAt::Position(Position { epoch: status.head.epoch, sequence })
    } else {
        let back_ms = world.random.below(delay.delay_ms + 1);
        FreezeAt::Time { ms: world.time_of_day(node) - back_ms }
    };
    Some((node, AdminAction::FreezeApply { at }))
}
