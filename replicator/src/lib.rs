//! The replicator's shell: rings, sockets, disks and control around the pure core. It decides nothing about
//! replication; it turns completions into events and commands into I/O.
//!
//! One volume is one thread with one ring. [`open`] starts it and [`VolumeHandle`] talks to it; [`create()`] makes
//! a replica, [`inspect`] reads one at rest, [`content`] what its volume holds.
//!
//! All `unsafe` of the data path lies in `ring`.

mod adopt;
mod arena;
mod auth;
pub mod branch;
pub mod client_identity;
mod clock;
pub mod config;
pub mod content;
pub mod control;
mod create;
mod device;
mod driver;
pub mod error;
mod frontend;
pub mod identity;
pub mod inspect;
mod keyring;
pub mod latency;
mod link;
pub mod metrics;
mod move_journal;
mod names;
pub mod options;
mod ring;
pub mod secrets;
mod secure;
mod session;
mod start;
pub mod ublk;
pub mod welcome;

pub use arena::spare_from_oom_killer;
pub use create::{Content, Created, create};
pub use driver::ublk::UblkStatus;
pub use error::{ContentError, CreateError, InspectError, MoveError, StartError, VolumeError, VolumeFault};
pub use move_journal::{Moved, move_journal};
pub use names::NodeNames;
pub use start::{VolumeHandle, VolumeStatus, open};
