//! What the benchmarks share: measuring, counting allocations, and a pair of replicas without I/O.

pub mod counting;
pub mod histogram;
pub mod measure;
pub mod pair;
pub mod random;
