//! Whole replicas in a simulated world. A directed scenario belongs into `scenarios`; what only chance finds, into
//! `chaos`, whose failing seeds become scenarios.

mod chaos;
mod more;
mod scenarios;
