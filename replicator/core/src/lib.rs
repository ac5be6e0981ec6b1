//! The replicator's decisions, without I/O: one replica of one volume as a state machine. No socket, file, thread,
//! clock or random number is used here; time, seeds and bytes are arguments.
//!
//! ```text
//!            requests, frames,                      writes, syncs, sends,
//!   driver --completions, time--> [ machine ] ------answers, timeouts-----> driver
//!                                   |  |  |
//!               log, extents, batch, pool  compare, history      (what it knows)
//!                                   |
//!                     frame, disk/, wire/                       (bytes, both ways)
//! ```
//!
//! Two drivers run it: the io_uring reactor, and the tests' simulated world.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod batch;
pub mod bookmarks;
pub mod bytes;
pub mod chain;
pub mod command;
pub mod compare;
pub mod config;
pub mod dirty;
pub mod disk;
pub mod event;
pub mod extents;
pub mod frame;
pub mod fuzz;
pub mod history;
pub mod limits;
pub mod log;
pub mod machine;
pub mod pace;
pub mod pool;
pub mod recovery;
pub mod status;
pub mod sums;
pub mod tracker;
pub mod units;
pub mod wire;
