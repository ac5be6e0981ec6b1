//! Fence agents: programs of the ClusterLabs protocol, run unmodified. Which of them is asked what is `orchestrator-core`'s
//! to say (`fence::Run`); here they are found, checked against their own description, run and killed.

mod agent;
mod check;
mod fencer;
mod metadata;
#[cfg(test)]
mod tests;

pub use check::check;
pub(crate) use fencer::{Fencer, devices_of};
