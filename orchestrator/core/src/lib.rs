//! The orchestrator's decisions: who may write a volume, who is suspected, what each node does next. Not here: sockets,
//! files, clocks, threads, random numbers. Time and identities are arguments; what comes out is data.
//!
//! ```text
//! committed State --+
//! observed View ----+--> decide::cluster  --> changes to propose (the Raft leader)
//! time -------------+--> decide::node     --> steps to take     (each node, about itself)
//!                   +--> stack::permit, stack::Runner --> orders about steps of stacks (each node, about itself)
//! ```

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod decide;
pub mod fence;
pub mod health;
pub mod history;
pub mod lease;
pub mod limits;
pub mod policy;
pub mod power;
pub mod proof;
pub mod record;
pub mod stack;
pub mod state;
pub mod timing;
pub mod units;
pub mod view;
