//! What scenarios begin with and wait for. What only one of them needs is with it.

use holdfast_simulator::world::{Setup, World};
use replicator_core::status::Connection;
use replicator_core::units::NodeId;

/// Until all nodes that are up have met.
pub(crate) fn connected(world: &mut World) {
    world.run_until("all links up", |world| {
        (0..world.nodes.len()).filter(|n| world.is_up(*n)).all(|n| {
            let up = |node: NodeId| world.is_up(usize::from(node.0));
            let peers = world.status(n).unwrap().peers;
            peers.iter().all(|peer| !up(peer.node) || peer.connection != Connection::Connecting)
        })
    });
}

/// A world whose node 0 is Primary.
pub(crate) fn serving(seed: u64, setup: &Setup) -> World {
    let mut world = World::new(seed, setup);
    connected(&mut world);
    world.promote(0, false).unwrap();
    world
}

/// So many requests of the client, drawn from the seed, all answered.
pub(crate) fn load(world: &mut World, operations: usize) {
    for _ in 0..operations {
        world.client();
        for _ in 0..5 {
            if !world.step() {
                world.pass_time();
            }
        }
    }
    world.run_until("all requests answered", |world| world.waiting() == 0);
}

/// So many writes at one node, answered or not: it may be one of two that think they serve.
pub(crate) fn load_at(world: &mut World, node: usize, writes: usize) {
    for n in 0..writes {
        world.write(node, n..n + 2, false);
        world.run_ms(1);
    }
    world.run_ms(100);
}

/// Until all replicas are level and at rest; then their disks are equal.
pub(crate) fn quiet(world: &mut World) {
    world.run_until("all replicas level and at rest", |world| world.is_quiet());
    world.check_equal();
}
