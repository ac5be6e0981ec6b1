//! Feeds hostile bytes to the decoders, to recovery and to a whole replica, and asserts what must hold on any of
//! them. Not a judge of single answers. Each function takes its choices from the bytes it is given, so that a
//! fuzzer's mutations get behind magic numbers and checksums: what comes from somebody who knows the secret, or
//! from a disk, has sound checksums if it wants to.

mod decoders;
mod journal;
mod peer;
mod recovery;
mod rig;

use alloc::vec::Vec;

use crate::units::{Epoch, PAGE_BYTES, SECTOR_BYTES, Sequence, VolumeId};

pub use decoders::{fuzz_challenge, fuzz_envelope, fuzz_frame, fuzz_message, fuzz_superblock};
pub use peer::fuzz_peer;
pub use recovery::fuzz_recovery;

const VOLUME: VolumeId = VolumeId(0x0066_757a_7a00);
const VOLUME_BYTES: u64 = 256 * SECTOR_BYTES;
/// The smallest journal for that volume.
const JOURNAL_BYTES: u64 = (1 << 20) + 16 * PAGE_BYTES as u64 + (16 << 20);

/// Choices made of bytes; zero when they run out.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        let wide = if limit > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (wide | usize::from(self.byte())) % limit.max(1)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == count - 1
    }

    /// Mostly `near`; else what is just beside it, or far away.
    fn number(&mut self, near: u64) -> u64 {
        match self.below(32) {
            0..=23 => near,
            24 | 25 => near.wrapping_add(1),
            26 | 27 => near.wrapping_sub(1),
            28 => 0,
            29 => u64::from(self.byte()),
            30 => (u64::MAX / 2).wrapping_add(u64::from(self.byte() & 1)),
            _ => u64::MAX.wrapping_sub(u64::from(self.byte() & 1)),
        }
    }

    fn sequence(&mut self, near: Sequence) -> Sequence {
        Sequence(self.number(near.0))
    }

    fn epoch(&mut self, near: Epoch) -> Epoch {
        Epoch(self.number(near.0))
    }

    /// The rest of the bytes, at most `most` of them.
    fn take(&mut self, most: usize) -> Vec<u8> {
        let (head, rest) = self.0.split_at(self.0.len().min(most));
        self.0 = rest;
        head.to_vec()
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
