//! The dirty map: which blocks of the volume a peer may lack. A bit stands for 4 KiB. It knows nothing of peers or
//! positions (see [`tracker`](crate::tracker)), and does no I/O: it makes and reads its image, drawn in
//! `docs/formats.md`.
//!
//! ```text
//! groups:   clean  full  leaf 0  clean  leaf 1 ...     4 bytes for 2 MiB of the volume
//! leaves:                [64 B]         [64 B]         one bit a block, only where a group is mixed
//! ```
//!
//! Memory is bounded: a map that would need more leaves than its image has room for counts a whole group as dirty.
//! More than what is dirty may be in it, never less.

use alloc::vec;
use alloc::vec::Vec;

use thiserror::Error;

use crate::bytes::{Reader, Short, Writer};

/// Bytes of the volume that one bit stands for.
pub const BLOCK_BYTES: u64 = 4096;
/// Blocks of one word of the map.
pub const WORD_BLOCKS: u64 = 64;
/// Bytes of the volume that one word stands for.
pub const WORD_BYTES: u64 = WORD_BLOCKS * BLOCK_BYTES;
/// Words of one group.
const GROUP_WORDS: u64 = 8;
const GROUP_BLOCKS: u64 = GROUP_WORDS * WORD_BLOCKS;

/// Bytes in front of an image.
pub const IMAGE_HEADER_BYTES: usize = 64;
const LEAF_BYTES: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"HF-DIRTY");
/// Version of the image; see the history in `docs/formats.md`.
pub const IMAGE_VERSION: u16 = 1;

/// Leaves a map may have beyond what its image holds, so that a full group can be cleared word by word.
const LEAVES_SPARE: usize = 64;

/// States of a group; from [`LEAF`] on, the number of its leaf.
const CLEAN: u32 = 0;
const FULL: u32 = 1;
const LEAF: u32 = 2;

/// Which blocks may differ.
#[derive(Clone, Debug)]
pub struct DirtyMap {
    blocks: u64,
    image_bytes: usize,
    leaves_max: usize,
    /// Empty while nothing is dirty.
    groups: Vec<u32>,
    leaves: Vec<[u64; GROUP_WORDS as usize]>,
    free: Vec<u32>,
    dirty_blocks: u64,
}

/// Why bytes are not the image of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ImageError {
    /// Fewer bytes than it has.
    #[error("the map is cut short")]
    Short,
    /// Not the magic number.
    #[error("no map here (bad magic)")]
    Magic,
    /// A version this program does not know.
    #[error("map version {0} is not known to this program (it knows {IMAGE_VERSION})")]
    Version(u16),
    /// The CRC does not match.
    #[error("the map does not match its checksum")]
    Crc,
    /// It is another one: of another write, or of a volume of another size.
    #[error("the map is not the one that was named")]
    Other,
    /// A field outside its limits.
    #[error("the map's {0} is out of bounds")]
    Bounds(&'static str),
}

impl From<Short> for ImageError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

fn groups_of(blocks: u64) -> usize {
    usize::try_from(blocks.div_ceil(GROUP_BLOCKS)).expect("a volume has at most 1 PiB")
}

fn states_bytes(groups: usize) -> usize {
    groups.div_ceil(4).next_multiple_of(8)
}

impl DirtyMap {
    /// A map of a volume of `volume_bytes` with nothing dirty, whose image must fit in `image_bytes`.
    ///
    /// # Panics
    /// If `image_bytes` has no room even for the groups' states: the layout keeps a bit for each block.
    #[must_use]
    pub fn new(volume_bytes: u64, image_bytes: u64) -> Self {
        let blocks = volume_bytes.div_ceil(BLOCK_BYTES);
        let image_bytes = usize::try_from(image_bytes).expect("a map is far below the address space");
        let fixed = IMAGE_HEADER_BYTES + states_bytes(groups_of(blocks));
        assert!(fixed <= image_bytes, "the layout keeps a bit for each block");
        let leaves_max = (image_bytes - fixed) / LEAF_BYTES;
        let (groups, leaves, free) = (Vec::new(), Vec::new(), Vec::new());
        Self { blocks, image_bytes, leaves_max, groups, leaves, free, dirty_blocks: 0 }
    }

    /// Bytes that the image of a map of a volume of this size takes at least: the groups' states.
    #[must_use]
    pub fn image_bytes_min(volume_bytes: u64) -> u64 {
        (IMAGE_HEADER_BYTES + states_bytes(groups_of(volume_bytes.div_ceil(BLOCK_BYTES)))) as u64
    }

    /// The volume has `volume_bytes` from now on, no fewer than before. What was dirty is so still. The image stays as
    /// large as it was, so that more of it may have to be counted in whole groups.
    ///
    /// # Panics
    /// If the image has no room even for the groups' states.
    pub fn grow(&mut self, volume_bytes: u64) {
        let blocks = volume_bytes.div_ceil(BLOCK_BYTES);
        assert!(blocks >= self.blocks, "a volume does not shrink");
        let fixed = IMAGE_HEADER_BYTES + states_bytes(groups_of(blocks));
        assert!(fixed <= self.image_bytes, "whoever lets a volume grow looks at the room for its maps");
        self.leaves_max = (self.image_bytes - fixed) / LEAF_BYTES;
        self.blocks = blocks;
        if !self.groups.is_empty() {
            self.groups.resize(groups_of(blocks), CLEAN);
            // A last group that was full is full of its new blocks, too.
            let words = 0..self.words();
            self.dirty_blocks = words.map(|word| u64::from(self.word(word).count_ones())).sum();
        }
    }

    /// Whether nothing is dirty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dirty_blocks == 0
    }

    /// Blocks that are dirty.
    #[must_use]
    pub fn dirty_blocks(&self) -> u64 {
        self.dirty_blocks
    }

    /// Bytes of memory it takes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.groups.capacity() * 4 + self.leaves.capacity() * LEAF_BYTES + self.free.capacity() * 4
    }

    /// Forgets everything and gives its memory back.
    pub fn clear(&mut self) {
        (self.groups, self.leaves, self.free) = (Vec::new(), Vec::new(), Vec::new());
        self.dirty_blocks = 0;
    }

    /// Makes every block dirty.
    pub fn set_all(&mut self) {
        self.clear();
        self.groups = vec![FULL; groups_of(self.blocks)];
        self.dirty_blocks = self.blocks;
    }

    /// Makes the blocks dirty that `offset..offset + length` touches.
    pub fn set_bytes(&mut self, offset: u64, length: u64) {
        let end = (offset + length).div_ceil(BLOCK_BYTES).min(self.blocks);
        let mut block = offset / BLOCK_BYTES;
        while block < end {
            let group_end = (block / GROUP_BLOCKS + 1) * GROUP_BLOCKS;
            if block.is_multiple_of(GROUP_BLOCKS) && end >= group_end.min(self.blocks) {
                self.fill_group(block / GROUP_BLOCKS);
                block = group_end;
                continue;
            }
            let word_end = (block / WORD_BLOCKS + 1) * WORD_BLOCKS;
            let upto = end.min(word_end);
            self.set_word(block / WORD_BLOCKS, mask(block % WORD_BLOCKS, upto - block));
            block = upto;
        }
    }

    /// Makes the blocks `bits` of word `index` dirty; those beyond the volume are not looked at.
    pub fn set_blocks(&mut self, index: u64, bits: u64) {
        if index < self.words() {
            self.set_word(index, bits);
        }
    }

    /// Makes dirty what is dirty in `other`, a map of the same volume.
    pub fn add(&mut self, other: &Self) {
        let mut from = 0;
        while let Some(word) = other.next_word(from) {
            self.set_blocks(word, other.word(word));
            from = word + 1;
        }
    }

    /// The dirty blocks of word `index`, the lowest bit for the first.
    #[must_use]
    pub fn word(&self, index: u64) -> u64 {
        match self.state(index / GROUP_WORDS) {
            CLEAN => 0,
            FULL => self.valid(index),
            leaf => self.leaves[(leaf - LEAF) as usize][place(index)],
        }
    }

    /// Number of words there are.
    #[must_use]
    pub fn words(&self) -> u64 {
        self.blocks.div_ceil(WORD_BLOCKS)
    }

    /// The first word from `index` on in which something is dirty.
    #[must_use]
    pub fn next_word(&self, index: u64) -> Option<u64> {
        let mut index = index;
        while index < self.words() {
            let group = index / GROUP_WORDS;
            if self.state(group) == CLEAN {
                index = (group + 1) * GROUP_WORDS;
            } else if self.word(index) == 0 {
                index += 1;
            } else {
                return Some(index);
            }
        }
        None
    }

    /// Makes the blocks `bits` of word `index` clean.
    pub fn clear_word(&mut self, index: u64, bits: u64) {
        let gone = self.word(index) & bits;
        if gone == 0 {
            return;
        }
        let group = index / GROUP_WORDS;
        if self.state(group) == FULL && !self.split(group) {
            return;
        }
        let leaf = self.state(group) - LEAF;
        let words = &mut self.leaves[leaf as usize];
        words[place(index)] &= !gone;
        self.dirty_blocks -= u64::from(gone.count_ones());
        if words.iter().all(|word| *word == 0) {
            self.groups[group_index(group)] = CLEAN;
            self.free.push(leaf);
        }
        if self.dirty_blocks == 0 {
            self.clear();
        }
    }

    fn set_word(&mut self, index: u64, bits: u64) {
        let new = bits & self.valid(index) & !self.word(index);
        if new == 0 {
            return;
        }
        self.take_groups();
        let group = index / GROUP_WORDS;
        if self.state(group) == CLEAN {
            let Some(leaf) = self.take_leaf(self.leaves_max) else {
                return self.fill_group(group);
            };
            self.leaves[leaf as usize] = [0; GROUP_WORDS as usize];
            self.groups[group_index(group)] = LEAF + leaf;
        }
        let leaf = self.state(group) - LEAF;
        self.leaves[leaf as usize][place(index)] |= new;
        self.dirty_blocks += u64::from(new.count_ones());
        let first = group * GROUP_WORDS;
        if (first..first + GROUP_WORDS).all(|word| self.word(word) == self.valid(word)) {
            self.groups[group_index(group)] = FULL;
            self.free.push(leaf);
        }
    }

    fn fill_group(&mut self, group: u64) {
        self.take_groups();
        let first = group * GROUP_WORDS;
        let missing = |word: u64| u64::from((self.valid(word) & !self.word(word)).count_ones());
        self.dirty_blocks += (first..first + GROUP_WORDS).map(missing).sum::<u64>();
        let state = self.state(group);
        if state >= LEAF {
            self.free.push(state - LEAF);
        }
        self.groups[group_index(group)] = FULL;
    }

    /// Gives a full group a leaf; whether there was one left.
    fn split(&mut self, group: u64) -> bool {
        let Some(leaf) = self.take_leaf(self.leaves_max + LEAVES_SPARE) else { return false };
        let first = group * GROUP_WORDS;
        for word in first..first + GROUP_WORDS {
            self.leaves[leaf as usize][place(word)] = self.valid(word);
        }
        self.groups[group_index(group)] = LEAF + leaf;
        true
    }

    fn take_leaf(&mut self, most: usize) -> Option<u32> {
        if self.leaves.len() - self.free.len() >= most {
            return None;
        }
        if let Some(leaf) = self.free.pop() {
            return Some(leaf);
        }
        self.leaves.push([0; GROUP_WORDS as usize]);
        Some(u32::try_from(self.leaves.len() - 1).expect("a leaf for 2 MiB of at most 1 PiB"))
    }

    fn take_groups(&mut self) {
        if self.groups.is_empty() {
            self.groups = vec![CLEAN; groups_of(self.blocks)];
        }
    }

    fn state(&self, group: u64) -> u32 {
        self.groups.get(group_index(group)).copied().unwrap_or(CLEAN)
    }

    /// The bits of word `index` that stand for blocks of the volume.
    fn valid(&self, index: u64) -> u64 {
        let first = index * WORD_BLOCKS;
        mask(0, self.blocks.saturating_sub(first).min(WORD_BLOCKS))
    }

    /// Its image for the journal device: what is dirty in it, or more. `generation` names the write.
    #[must_use]
    pub fn encode(&self, generation: u64) -> Vec<u8> {
        let groups = groups_of(self.blocks);
        let mixed = (0..groups).filter(|group| self.state(*group as u64) >= LEAF).take(self.leaves_max);
        let mixed: Vec<usize> = mixed.collect();
        let states_end = IMAGE_HEADER_BYTES + states_bytes(groups);
        let mut bytes = vec![0; states_end + mixed.len() * LEAF_BYTES];
        let leaves = u32::try_from(mixed.len()).expect("bounded by the image");
        let mut writer = Writer::new(&mut bytes);
        writer.u64(MAGIC).u32(0).u16(IMAGE_VERSION).u16(0).u64(generation).u64(self.blocks).u32(leaves);
        let mut left = mixed.iter().copied().peekable();
        for group in 0..groups {
            let state = match self.state(group as u64) {
                CLEAN => 0,
                _ if left.next_if_eq(&group).is_some() => 2,
                _ => 1,
            };
            bytes[IMAGE_HEADER_BYTES + group / 4] |= state << (group % 4 * 2);
        }
        for (group, leaf) in mixed.iter().zip(bytes[states_end..].chunks_exact_mut(LEAF_BYTES)) {
            let words = &self.leaves[(self.state(*group as u64) - LEAF) as usize];
            for (word, bytes) in words.iter().zip(leaf.chunks_exact_mut(8)) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        let crc = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Takes in the image that was written as `generation`.
    ///
    /// # Errors
    /// Whatever makes these bytes not that image; the map is empty then.
    pub fn decode(&mut self, bytes: &[u8], generation: u64) -> Result<(), ImageError> {
        self.clear();
        let outcome = self.read_image(bytes, generation);
        if outcome.is_err() {
            self.clear();
        }
        outcome
    }

    fn read_image(&mut self, bytes: &[u8], generation: u64) -> Result<(), ImageError> {
        let mut reader = Reader::new(bytes);
        if reader.u64()? != MAGIC {
            return Err(ImageError::Magic);
        }
        let (crc, version) = (reader.u32()?, reader.u16()?);
        if version != IMAGE_VERSION {
            return Err(ImageError::Version(version));
        }
        if crc32fast::hash(&bytes[12..]) != crc {
            return Err(ImageError::Crc);
        }
        reader.skip(2)?;
        let (found, blocks, leaves) = (reader.u64()?, reader.u64()?, reader.u32()? as usize);
        // The volume may have grown since it was written.
        if found != generation || blocks > self.blocks {
            return Err(ImageError::Other);
        }
        let groups = groups_of(blocks);
        let states_end = IMAGE_HEADER_BYTES + states_bytes(groups);
        if leaves > self.image_bytes / LEAF_BYTES || bytes.len() != states_end + leaves * LEAF_BYTES {
            return Err(ImageError::Bounds("length"));
        }
        let mut leaf_bytes = bytes[states_end..].chunks_exact(LEAF_BYTES);
        for group in 0..groups {
            match bytes[IMAGE_HEADER_BYTES + group / 4] >> (group % 4 * 2) & 3 {
                0 => {}
                1 => self.fill_group(group as u64),
                2 => {
                    let leaf = leaf_bytes.next().ok_or(ImageError::Bounds("number of leaves"))?;
                    let mut reader = Reader::new(leaf);
                    for word in 0..GROUP_WORDS {
                        self.set_word(group as u64 * GROUP_WORDS + word, reader.u64()?);
                    }
                }
                _ => return Err(ImageError::Bounds("state of a group")),
            }
        }
        if leaf_bytes.next().is_some() {
            return Err(ImageError::Bounds("number of leaves"));
        }
        Ok(())
    }
}

fn group_index(group: u64) -> usize {
    usize::try_from(group).expect("a volume has at most 1 PiB")
}

fn place(word: u64) -> usize {
    (word % GROUP_WORDS) as usize
}

/// `count` bits from bit `first` on.
fn mask(first: u64, count: u64) -> u64 {
    match count {
        0 => 0,
        64.. => u64::MAX,
        _ => ((1 << count) - 1) << first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::layout::Layout;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    fn dirty(map: &DirtyMap) -> BTreeSet<u64> {
        let words = core::iter::successors(map.next_word(0), |word| map.next_word(word + 1));
        words
            .flat_map(|word| {
                (0..64).filter(move |bit| map.word(word) >> bit & 1 == 1).map(move |bit| word * 64 + bit)
            })
            .collect()
    }

    fn map_of(volume_bytes: u64) -> DirtyMap {
        DirtyMap::new(volume_bytes, Layout::new(volume_bytes, 1 << 42).unwrap().map_bytes)
    }

    proptest! {
        /// Against a set of blocks. The volume is small enough that no group has to be counted as a whole.
        #[test]
        fn behaves_like_a_set_of_blocks(
            steps in prop::collection::vec((any::<bool>(), 0u64..9000, 1u64..900), 1..60),
        ) {
            let blocks = 8999;
            let mut map = map_of(blocks * 4096 - 512);
            let mut model = BTreeSet::new();
            for (set, first, count) in steps {
                let (first, end) = (first.min(blocks - 1), (first + count).min(blocks));
                if set {
                    map.set_bytes(first * 4096 + 512, (end - first) * 4096 - 1024);
                    model.extend(first..end);
                } else {
                    map.clear_word(first / 64, count);
                    (0..64).filter(|bit| count >> bit & 1 == 1).for_each(|bit| { model.remove(&(first / 64 * 64 + bit)); });
                }
                prop_assert_eq!(map.dirty_blocks(), model.len() as u64);
            }
            prop_assert_eq!(&dirty(&map), &model);
            let mut other = map_of(blocks * 4096 - 512);
            other.decode(&map.encode(7), 7).unwrap();
            prop_assert_eq!(dirty(&other), model);
        }

        #[test]
        fn any_bytes_are_a_map_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..400), seal in any::<bool>()) {
            if seal && bytes.len() >= 40 {
                let good = map_of(1 << 20).encode(1);
                bytes[..40].copy_from_slice(&good[..40]);
                let crc = crc32fast::hash(&bytes[12..]);
                bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            }
            let mut map = map_of(1 << 20);
            if map.decode(&bytes, 1).is_err() {
                prop_assert!(map.is_empty());
            }
        }
    }

    #[test]
    fn what_has_no_room_is_counted_as_dirty() {
        // One page for the image: 62 leaves for 64 groups.
        let mut map = map_of(128 << 20);
        for block in (0..32768).step_by(2) {
            map.set_bytes(block * 4096, 1);
        }
        assert_eq!(map.dirty_blocks(), 62 * 256 + 2 * 512);
        let image = map.encode(1);
        assert!(image.len() <= 4096);
        // A full group can still be cleared word by word, though there is no leaf for it in the image.
        map.clear_word(32767 / 64, u64::MAX);
        assert_eq!(map.word(32767 / 64), 0);
        let mut other = map_of(128 << 20);
        other.decode(&map.encode(2), 2).unwrap();
        assert!(dirty(&other).is_superset(&dirty(&map)));
    }

    #[test]
    fn a_fully_dirty_tebibyte_takes_two_mebibytes() {
        let mut map = map_of(1 << 40);
        assert_eq!(map.memory_bytes(), 0);
        map.set_all();
        assert_eq!(map.dirty_blocks(), 1 << 28);
        assert_eq!(map.memory_bytes(), 2 << 20);
        assert_eq!(map.encode(1).len(), 64 + (128 << 10));
    }

    #[test]
    fn a_map_of_a_volume_that_grew_has_what_was_dirty_and_more_only_in_the_last_group() {
        for old in [4096, (5 << 20) + 512, 6 << 20] {
            let mut map = DirtyMap::new(old, 4096);
            map.set_bytes(0, 1);
            map.set_bytes(4 << 20, old.saturating_sub(4 << 20));
            let (before, image) = (dirty(&map), map.encode(3));
            let mut read = DirtyMap::new(64 << 20, 4096);
            read.decode(&image, 3).unwrap();
            map.grow(64 << 20);
            for map in [map, read] {
                let after = dirty(&map);
                assert!(after.is_superset(&before));
                assert!(after.iter().all(|block| before.contains(block) || *block < (6 << 20) / 4096));
                assert_eq!(map.dirty_blocks(), after.len() as u64);
            }
        }
    }

    #[test]
    fn another_write_or_volume_is_refused() {
        let mut map = map_of(1 << 20);
        map.set_bytes(0, 1);
        let image = map.encode(5);
        assert_eq!(map.clone().decode(&image, 6), Err(ImageError::Other));
        assert_eq!(map_of((1 << 20) - 4096).decode(&image, 5), Err(ImageError::Other));
        let mut bad = image;
        bad[70] ^= 1;
        assert_eq!(map.decode(&bad, 5), Err(ImageError::Crc));
        assert!(map.is_empty());
    }
}
