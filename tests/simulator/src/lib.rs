//! A world of simulated nodes: real machines, simulated disks, links and clocks, all moved by one seed. No thread,
//! no real time.
//!
//! ```text
//!   plan     what one seed draws: sizes, protocols, how likely each fault is
//!   run      a whole run: safety phase, liveness phase, verdict
//!   world    nodes, clients, time; one random thing after the other happens
//!   node, disk, network                     what is simulated
//!   checker  what clients may see           ledger  what replicas may do
//!   manager  a configuration manager        leases  who may answer when there is one
//!   whole    the whole stack: orchestrators decide, with all that stands on the volume
//! ```

#![expect(
    missing_docs,
    reason = "a library of this workspace's tests only: names speak, and comments say why"
)]

pub mod bookmarks;
pub mod branch;
pub mod checker;
pub mod delay;
pub mod disk;
pub mod exhaust;
pub mod growth;
pub mod leases;
pub mod ledger;
pub mod manager;
pub mod network;
pub mod node;
pub mod plan;
pub mod play;
pub mod random;
pub mod rule;
pub mod run;
pub mod scrub;
pub mod whole;
pub mod world;
