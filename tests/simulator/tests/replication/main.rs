//! Directed scenarios in the simulated world: each a sentence that must hold. What only chance finds, the simulator
//! looks for; what it found in the code becomes a scenario in `found`.

mod bookmarks;
mod delay;
mod fork;
mod found;
mod growth;
mod managed;
mod more;
mod replicas;
mod resync;
mod resync_chaos;
mod review;
mod scenarios;
mod setup;
mod sums;
mod verify;
