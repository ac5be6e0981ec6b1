//! Growth at random, in some of the runs: whoever serves is asked to have the volume grow while everything else goes on.
//! The disks hold what nobody wrote behind the end of the volume; a reader must find zeros there.

use replicator_core::event::AdminAction;

use crate::disk::SECTOR;
use crate::random::Random;
use crate::world::World;

/// In how many of 100,000 steps growth is asked for; none in most runs. Drawn beside the rest of a plan, so that other
/// runs stay as they are.
pub fn draw_chance(seed: u64) -> u64 {
    let mut random = Random::new(seed ^ 0x6120_3a71);
    if random.percent(25) { 50 + random.below(1500) } else { 0 }
}

/// What the operator asks for now, if for anything: (node, what).
pub fn wish(world: &mut World, chance: u64) -> Option<(usize, AdminAction)> {
    if chance == 0 || world.random.below(100_000) >= chance {
        return None;
    }
    let node = world.serving()?;
    let most = world.setup.disk_sectors() + 8;
    let sectors = world.sectors + world.random.index(most.saturating_sub(world.sectors).max(1));
    // Often by little, so that it happens more than once.
    let sectors =
        if world.random.percent(60) { sectors.min(world.sectors + 1 + sectors % 16) } else { sectors };
    Some((node, AdminAction::Grow { bytes: (sectors * SECTOR) as u64 }))
}
