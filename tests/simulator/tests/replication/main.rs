//! Directed scenarios in the simulated world: each a sentence that must hold. What only chance finds, the simulator
//! looks for; what it found in the code becomes a scenario in `found`.

mod found;
mod managed;
mod more;
mod resync;
mod resync_chaos;
mod scenarios;
mod setup;
