//! The chain: a 128-bit hash over the previous value and an entry's header, which carries the CRC of its
//! payload. It finds forks and accidents; it is no defence against a forger, who is kept out at the handshake.

use xxhash_rust::xxh3::xxh3_128;

use crate::units::{Chain, Position, ReignId, VolumeId};

/// Bytes of an entry's header as they are hashed.
pub const ENTRY_BYTES: usize = 32;

/// The value before the first entry of a volume.
#[must_use]
pub fn genesis(volume: VolumeId) -> Chain {
    let mut input = *b"holdfast volume\0________________";
    input[16..].copy_from_slice(&volume.0.to_le_bytes());
    Chain(xxh3_128(&input))
}

/// The value after the entry at `position`, whose encoded header is `entry`.
#[must_use]
pub fn extend(chain: Chain, position: Position, reign: ReignId, entry: &[u8; ENTRY_BYTES]) -> Chain {
    let mut input = [0u8; 80];
    input[0..16].copy_from_slice(&chain.0.to_le_bytes());
    input[16..24].copy_from_slice(&position.epoch.0.to_le_bytes());
    input[24..32].copy_from_slice(&position.sequence.0.to_le_bytes());
    input[32..48].copy_from_slice(&reign.0.to_le_bytes());
    input[48..80].copy_from_slice(entry);
    Chain(xxh3_128(&input))
}
