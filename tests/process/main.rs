//! Tests with real processes, real files and real sockets. A test of what happens when a process dies belongs into
//! `kill`; of who follows it by itself, into `failover`; of two sides that went on alone, or a secondary that stands still, into `fork`; of a copy that is brought level by blocks, into `resync`; of
//! what a wrong start says, into `messages`; of bytes nobody should send, into `hostile`; of a client that is not ours,
//! into `foreign`.

mod failover;
mod fencing;
mod foreign;
mod fork;
mod hostile;
mod kill;
mod messages;
mod resync;
mod verify;
