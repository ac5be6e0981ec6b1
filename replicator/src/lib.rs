//! The replicator's shell: rings, sockets, disks and control around the pure core. It decides nothing about
//! replication; it turns completions into events and commands into I/O.
//!
//! One volume is one thread with one ring. [`open`] starts it and [`VolumeHandle`] talks to it; [`create()`] makes
//! a replica, [`inspect`] reads one at rest.
//!
//! All `unsafe` of the data path lies in `ring`.

mod arena;
mod auth;
mod clock;
pub mod config;
pub mod control;
mod create;
mod device;
mod driver;
pub mod error;
mod frontend;
pub mod identity;
pub mod inspect;
mod link;
mod names;
pub mod options;
mod ring;
mod session;
mod start;

pub use create::{Created, create};
pub use error::{CreateError, InspectError, StartError, VolumeError, VolumeFault};
pub use names::NodeNames;
pub use start::{VolumeHandle, VolumeStatus, open};
