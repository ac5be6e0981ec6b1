//! An item of blocks: what some blocks of one word of the dirty map hold at one point of the stream. A header page,
//! then the blocks that are sent, one after the other. Drawn in `docs/formats.md`.

use thiserror::Error;

use crate::bytes::{Reader, Short, Writer};
use crate::dirty::{BLOCK_BYTES, WORD_BYTES};
use crate::units::{PAGE_BYTES, SECTOR_BYTES, Sequence, VolumeId};

const MAGIC: u64 = u64::from_le_bytes(*b"HF-BLOCK");
const HEADER_BYTES: usize = 96;

/// The header of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlocksHeader {
    /// The volume.
    pub volume: VolumeId,
    /// Number of the item in its session, from 1.
    pub number: u64,
    /// The blocks hold what they do after this entry.
    pub point: Sequence,
    /// Which word of the dirty map.
    pub word: u64,
    /// Blocks whose bytes follow, a bit each.
    pub present: u64,
    /// Blocks that are zero.
    pub zeros: u64,
    /// CRC-32 of the bytes that follow.
    pub payload_crc: u32,
}

/// Why bytes are not an item of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BlocksError {
    /// Fewer bytes than it has.
    #[error("the blocks are cut short")]
    Short,
    /// Not the magic number.
    #[error("no blocks here (bad magic)")]
    Magic,
    /// A CRC does not match.
    #[error("the blocks do not match their checksum")]
    Crc,
    /// A field outside its limits.
    #[error("the blocks' {0} is out of bounds")]
    Bounds(&'static str),
}

impl From<Short> for BlocksError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

/// Bytes that the blocks `bits` of word `word` have in a volume of `volume_bytes`: the last block may be a part of one.
#[must_use]
pub fn payload_bytes(word: u64, bits: u64, volume_bytes: u64) -> u64 {
    let runs = runs(word, bits, volume_bytes);
    runs.map(|(_, length)| length).sum()
}

/// The runs of blocks `bits` of word `word`: (first byte in the volume, bytes), cut off at the volume's end.
pub fn runs(word: u64, bits: u64, volume_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let start = word.saturating_mul(WORD_BYTES);
    let mut left = bits;
    core::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let first = left.trailing_zeros();
        let count = (left >> first).trailing_ones();
        left &= !(u64::MAX >> (64 - count) << first);
        let from = start.saturating_add(u64::from(first) * BLOCK_BYTES).min(volume_bytes);
        let to = from.saturating_add(u64::from(count) * BLOCK_BYTES).min(volume_bytes);
        Some((from, to - from))
    })
}

impl BlocksHeader {
    /// Encodes the header into the first page of `bytes`, with the CRC of the `payload` bytes behind it.
    pub fn encode(mut self, bytes: &mut [u8], payload: usize) -> Self {
        self.payload_crc = crc32fast::hash(&bytes[PAGE_BYTES..PAGE_BYTES + payload]);
        let (page, rest) = bytes.split_at_mut(PAGE_BYTES);
        page.fill(0);
        rest[payload..].fill(0);
        let mut writer = Writer::new(page);
        writer.u64(MAGIC).u32(0).u32(self.payload_crc).u128(self.volume.0).u64(self.number);
        writer.u64(self.point.0).u64(self.word).u64(self.present).u64(self.zeros);
        let crc = crc32fast::hash(&page[12..HEADER_BYTES]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        self
    }

    /// Bytes of the item that begins with `page`, if its header is sound.
    #[must_use]
    pub fn item_bytes(page: &[u8], volume_bytes: u64) -> Option<usize> {
        let header = Self::decode_header(page, volume_bytes).ok()?;
        let payload = payload_bytes(header.word, header.present, volume_bytes);
        let payload = usize::try_from(payload).expect("a word's blocks");
        Some(PAGE_BYTES + payload.next_multiple_of(PAGE_BYTES))
    }

    /// Decodes an item of blocks of a volume of `volume_bytes` and checks all of it.
    ///
    /// # Errors
    /// Whatever makes these bytes no such item.
    pub fn decode(bytes: &[u8], volume_bytes: u64) -> Result<Self, BlocksError> {
        let header = Self::decode_header(bytes, volume_bytes)?;
        let Self { word, present, payload_crc, .. } = header;
        let payload = payload_bytes(word, present, volume_bytes);
        let payload = usize::try_from(payload).expect("a word's blocks");
        assert!(payload.is_multiple_of(SECTOR_BYTES as usize), "a volume is whole sectors");
        let body = bytes.get(PAGE_BYTES..PAGE_BYTES + payload).ok_or(BlocksError::Short)?;
        if bytes.len() != PAGE_BYTES + payload.next_multiple_of(PAGE_BYTES) {
            return Err(BlocksError::Bounds("length"));
        }
        if crc32fast::hash(body) != payload_crc {
            return Err(BlocksError::Crc);
        }
        Ok(header)
    }

    fn decode_header(bytes: &[u8], volume_bytes: u64) -> Result<Self, BlocksError> {
        let page = bytes.get(..PAGE_BYTES).ok_or(BlocksError::Short)?;
        let mut reader = Reader::new(page);
        if reader.u64()? != MAGIC {
            return Err(BlocksError::Magic);
        }
        let (crc, payload_crc) = (reader.u32()?, reader.u32()?);
        if crc32fast::hash(&page[12..HEADER_BYTES]) != crc {
            return Err(BlocksError::Crc);
        }
        let volume = VolumeId(reader.u128()?);
        let (number, point, word) = (reader.u64()?, Sequence(reader.u64()?), reader.u64()?);
        let (present, zeros) = (reader.u64()?, reader.u64()?);
        let header = Self { volume, number, point, word, present, zeros, payload_crc };
        let all = present | zeros;
        if word >= volume_bytes.div_ceil(WORD_BYTES) || present & zeros != 0 {
            return Err(BlocksError::Bounds("range"));
        }
        if runs(word, all, volume_bytes).any(|(_, length)| length == 0) || all_end(word, all) > volume_bytes {
            return Err(BlocksError::Bounds("range"));
        }
        Ok(header)
    }
}

/// Where the last of the blocks begins, plus one byte: what must lie within the volume.
fn all_end(word: u64, bits: u64) -> u64 {
    match bits {
        0 => 0,
        _ => word * WORD_BYTES + u64::from(63 - bits.leading_zeros()) * BLOCK_BYTES + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn blocks_go_there_and_back_and_the_last_may_be_short() {
        let volume_bytes = WORD_BYTES + 3 * 4096 + 512;
        assert_eq!(
            runs(1, 0b1101, volume_bytes).collect::<Vec<_>>(),
            [(WORD_BYTES, 4096), (WORD_BYTES + 8192, 4096 + 512)]
        );
        let mut bytes = vec![7; PAGE_BYTES + 3 * 4096];
        let header = BlocksHeader {
            volume: VolumeId(5),
            number: 9,
            point: Sequence(77),
            word: 1,
            present: 0b1101,
            zeros: 0b10,
            payload_crc: 0,
        };
        let header = header.encode(&mut bytes, 8192 + 512);
        assert_eq!(BlocksHeader::decode(&bytes, volume_bytes), Ok(header));
        assert_eq!(BlocksHeader::decode(&bytes, WORD_BYTES + 4096), Err(BlocksError::Bounds("range")));
        assert_eq!(BlocksHeader::decode(&bytes[..8192], volume_bytes), Err(BlocksError::Short));
        bytes[PAGE_BYTES + 8600] ^= 1;
        assert_eq!(BlocksHeader::decode(&bytes, volume_bytes), Err(BlocksError::Crc));
    }
}
