//! Every bound of the orchestrator, with the relations between them checked at compile time.

/// Nodes of a cluster; the same as the replicator's.
pub const NODES_MAX: usize = 32;
/// Volumes of a cluster.
pub const VOLUMES_MAX: usize = 1024;
/// Links between two nodes that heartbeats use.
pub const LINKS_MAX: usize = 4;
/// Clock drift that may be configured, in parts per million: beyond it a lease proves nothing worth having.
pub const DRIFT_PPM_MAX: u64 = 100_000;

const _: () = assert!(NODES_MAX <= 64, "a node set is one word");
const _: () = assert!(DRIFT_PPM_MAX < 1_000_000, "a clock that stands still bounds nothing");
