//! Tests with real processes, real files and real sockets. A test of what happens when a process dies belongs into
//! `kill`; of who follows it by itself, into `failover`; of backups that read only what changed, into `backup`; of two sides
//! that went on alone, or a secondary that stands still, into `fork`; of a copy that is brought level by blocks, into
//! `resync`; of disks that rot, into `scrub`; of a volume that grows, into `grow`; of replicas that come and go, into
//! `replicas`; of a journal that is moved, into `journal`; of what is read off a replica at
//! rest, into `content`; of what a wrong start says, into `messages`; of bytes nobody
//! should send, into `hostile`; of a client that is not ours, into `foreign`; of one that must prove who it is, into
//! `nbd_tls`; of load balancers, monitoring and hooks, into `api`; of how a cluster is made, into
//! `joining`; of disks that held data before Holdfast came, into `adopt`; of keys that are rotated, into `keys`; of voters that come and go, into `voters`.

mod adopt;
mod api;
mod backup;
mod content;
mod delay;
mod failover;
mod fencing;
mod foreign;
mod fork;
mod grow;
mod hostile;
mod joining;
mod journal;
mod keys;
mod kill;
mod machines;
mod messages;
mod nbd_tls;
mod replicas;
mod resync;
mod scrub;
mod seed;
mod stacks;
mod verify;
mod voters;
