//! What two replicas say to each other.

pub mod auth;
pub mod blocks;
pub mod envelope;
pub mod message;
pub mod visit;
