//! What scenarios begin with and wait for. What only one of them needs is with it.

use holdfast_simulator::world::{Setup, World};
use replicator_core::frame::{self, Entry, EntryKind, FrameHeader};
use replicator_core::status::{Connection, Status};
use replicator_core::units::{Chain, Epoch, NodeId, ReignId, Sequence, VolumeId};

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

/// The bytes of a frame with one small entry, of the reign 7 of epoch 1, as it comes behind `chain`; `before` is what its
/// writer knew.
pub(crate) fn small_frame(before: &Status, first: Sequence, chain: Chain) -> Vec<u8> {
    let header = FrameHeader {
        volume: VolumeId(0x1234_5678),
        epoch: Epoch(1),
        reign: ReignId(7),
        first,
        entries: 0,
        total_bytes: 4096,
        chain_before: chain,
        chain_after: chain,
        committed: before.committed,
        stable: before.stable,
        closed_ms: 0,
    };
    let (kind, fua) = (EntryKind::Zeroes, false);
    let entry = Entry { kind, fua, payload_crc: 0, offset: 0, length: 512, payload_at: 0 };
    let mut bytes = vec![0; 4096];
    frame::encode(&mut bytes, header, [entry].iter());
    bytes
}

/// Until all replicas are level and at rest; then their disks are equal.
pub(crate) fn quiet(world: &mut World) {
    world.run_until("all replicas level and at rest", |world| world.is_quiet());
    world.check_equal();
}
