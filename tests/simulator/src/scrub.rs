//! Verifies and scrubs at random, in some of the runs, while everything else goes on. Backing disks do not rot while faults
//! strike, so what a verify or a scrub finds must be what a disk cannot read, or a lie. When all is well in the end, some
//! bits are made to rot, and must be found and mended.

use replicator_core::disk::superblock::DiskState;
use replicator_core::event::AdminAction;
use replicator_core::status::{Connection, ScrubEnd};

use crate::disk::SECTOR;
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
    if world.setup.sums.contains(&true) && world.random.percent(30) {
        let node = world.random.index(world.nodes.len());
        let action = if world.random.percent(10) { AdminAction::StopScrub } else { AdminAction::Scrub };
        return world.is_up(node).then_some((node, action));
    }
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

/// Everything is well: bits rot in the copies that have checksums, and are found and mended.
pub fn rot_and_scrub(world: &mut World) {
    let all = 0..world.nodes.len();
    let is_whole = |node: &usize| {
        world
            .status(*node)
            .is_some_and(|status| status.disk_state == DiskState::UpToDate && status.freeze.is_none())
            && !world.ledger.is_void(*node)
    };
    // In no block do two copies rot: then nobody would have it.
    let whole: Vec<usize> = all.filter(is_whole).collect();
    let Some(primary) = world.serving().filter(|_| whole.len() == world.nodes.len()) else { return };
    let followed = world
        .status(primary)
        .is_some_and(|status| status.peers.iter().all(|peer| peer.connection == Connection::Established));
    let scrubbed: Vec<usize> = whole.into_iter().filter(|node| world.setup.sums_of(*node)).collect();
    if scrubbed.is_empty() || !followed || world.waiting() > 0 {
        return;
    }
    let blocks = (world.sectors * SECTOR).div_ceil(4096);
    for block in 0..blocks.min(64) {
        if world.random.percent(20) {
            let node = scrubbed[world.random.index(scrubbed.len())];
            let left = world.sectors * SECTOR - block * 4096;
            let offset = block * 4096 + world.random.index(left.min(4096));
            world.rot(node, offset as u64);
        }
    }
    world.read(primary, 0..world.sectors.min(256));
    for node in &scrubbed {
        let _ = world.admin(*node, AdminAction::StopScrub);
        if let Err(error) = world.admin(*node, AdminAction::Scrub) {
            broken("scrub", format!("node {node} does not scrub: {error}"));
        }
    }
    let is_mended = |world: &mut World| {
        world.waiting() == 0
            && scrubbed.iter().all(|node| {
                let scrub = world.status(*node).and_then(|status| status.scrub);
                scrub.is_some_and(|scrub| scrub.ended == Some(ScrubEnd::Done))
            })
            && world.disks_are_equal()
    };
    world.run_until("what rotted to be mended", is_mended);
    // What was mended may not be on the medium yet, where the rot still is.
    for node in &mut world.nodes {
        let covered = node.disk.completed();
        node.disk.sync(covered);
    }
    world.mark("scrubbed");
}
