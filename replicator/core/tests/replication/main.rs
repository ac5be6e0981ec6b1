//! Whole replicas in a simulated world. A directed scenario belongs into `scenarios`; what only chance finds, into
//! `chaos`, whose failing seeds become scenarios.

#![expect(unreachable_pub, reason = "the modules of a test binary are seen by nobody else")]

mod chaos;
mod more;
mod resync;
mod resync_chaos;
mod scenarios;
mod world;
