//! A world of simulated nodes: real machines, simulated disks, links and clocks, all moved by one seed. No thread,
//! no real time.

#![expect(
    missing_docs,
    reason = "a library of this workspace's tests only: names speak, and comments say why"
)]

pub mod checker;
pub mod disk;
pub mod node;
pub mod random;
pub mod world;
