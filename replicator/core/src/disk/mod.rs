//! What lies on a replica's disks beside the volume's own bytes.

pub mod layout;
pub mod superblock;
