//! Checksums of blocks at rest: one for each block of the backing disk, in pages of which only some are in memory. This
//! knows which pages there are, what they say and which of them are not stored; not when a block may be checked, which is
//! the machine's to say, and nothing of I/O. Drawn in `docs/formats.md`.
//!
//! A page may be stored at any time: whatever changed since the last checkpoint is in the journal behind it, and is
//! applied again after a crash. It *must* be stored before a checkpoint passes what changed it.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use crate::dirty::BLOCK_BYTES;
use crate::units::{PAGE_BYTES, SECTOR_BYTES};

/// Sums in one sector of a page: each sector has a CRC of its own, so that a page may be torn between sectors.
const SECTOR_SUMS: usize = 126;
const SECTORS: usize = PAGE_BYTES / SECTOR_BYTES as usize;
/// Sums in one page.
pub const PAGE_SUMS: usize = SECTOR_SUMS * SECTORS;
/// Fewest pages that may be kept in memory.
pub const SUM_PAGES_MIN: usize = 4;

/// What is known of the content of a block. A block of zeros has sum 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum(u32);

impl Sum {
    /// A block of zeros.
    pub const ZEROS: Self = Self(0);
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(1);
    /// It is known not to be what it should be.
    pub const BAD: Self = Self(2);

    /// The sum of `bytes` as block `block`: the same bytes elsewhere have another one.
    #[must_use]
    pub fn of(block: u64, bytes: &[u8]) -> Self {
        let crc = crc32fast::hash(bytes);
        if crc == zeros_crc(bytes.len()) {
            return Self::ZEROS;
        }
        // Multiplying by an odd number is one to one; the upper half mixes best.
        let place = u32::try_from(block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).expect("a half");
        match crc ^ place {
            sum @ ..3 => Self(sum + 3),
            sum => Self(sum),
        }
    }

    /// Whether a block that was read is, as far as is known, what it should be.
    #[must_use]
    pub fn admits(self, block: u64, bytes: &[u8]) -> bool {
        match self {
            Self::UNKNOWN => true,
            Self::BAD => false,
            sum => sum == Self::of(block, bytes),
        }
    }
}

/// CRC of a block of zeros; the last block of a volume may be a part of one.
fn zeros_crc(len: usize) -> u32 {
    const FULL: u32 = 0xc71c_0011;
    static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
    if len == ZEROS.len() { FULL } else { crc32fast::hash(&ZEROS[..len]) }
}

/// A point in the order of changes: see [`Sums::want`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

#[derive(Debug)]
struct Page {
    sums: Box<[u32; PAGE_SUMS]>,
    /// It was looked at since the hand passed.
    is_used: bool,
}

/// The checksums of one backing disk.
#[derive(Debug)]
pub struct Sums {
    replica: u128,
    blocks: u64,
    pages: BTreeMap<u64, Page>,
    pages_max: usize,
    /// Pages that were changed and not written since, and in which round first.
    dirty: BTreeMap<u64, u64>,
    /// Pages that are being written, and of which round.
    writing: BTreeMap<u64, u64>,
    wanted: BTreeSet<u64>,
    loading: BTreeSet<u64>,
    /// Pages that whoever wanted them has not looked at yet.
    fresh: Vec<u64>,
    hand: u64,
    /// The round that changes belong to now, from 1.
    round: u64,
    /// The last round of which somebody wants that it is durable, and the last one of which it is.
    asked: u64,
    done: u64,
    /// The round whose pages are being written and synced.
    flushing: Option<u64>,
    is_syncing: bool,
    /// Pages were written and not synced.
    is_unsynced: bool,
    damaged_sectors: u64,
}

impl Sums {
    /// The sums of the copy `replica` of `volume_bytes`; at most `pages_max` pages are in memory.
    #[must_use]
    pub fn new(replica: u128, volume_bytes: u64, pages_max: usize) -> Self {
        Self {
            replica,
            blocks: volume_bytes.div_ceil(BLOCK_BYTES),
            pages: BTreeMap::new(),
            pages_max: pages_max.max(SUM_PAGES_MIN),
            dirty: BTreeMap::new(),
            writing: BTreeMap::new(),
            fresh: Vec::new(),
            wanted: BTreeSet::new(),
            loading: BTreeSet::new(),
            hand: 0,
            round: 1,
            asked: 0,
            done: 0,
            flushing: None,
            is_syncing: false,
            is_unsynced: false,
            damaged_sectors: 0,
        }
    }

    /// Bytes that the sums of a volume take on the device.
    #[must_use]
    pub fn area_bytes(volume_bytes: u64) -> u64 {
        let pages = volume_bytes.div_ceil(BLOCK_BYTES).div_ceil(PAGE_SUMS as u64);
        pages * PAGE_BYTES as u64
    }

    /// Sectors of sums that could not be believed: what they said of their blocks is unknown.
    #[must_use]
    pub fn damaged_sectors(&self) -> u64 {
        self.damaged_sectors
    }

    /// Pages in memory.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// What is known of a block; `None` if its page is not here, which is wanted then: look again.
    pub fn get(&mut self, block: u64) -> Option<Sum> {
        assert!(block < self.blocks, "the volume has this block");
        let (page, at) = place(block);
        let Some(page) = self.pages.get_mut(&page) else {
            self.want_page(page);
            return None;
        };
        page.is_used = true;
        Some(Sum(page.sums[at]))
    }

    /// Notes what a block holds. Says `false` if its page is not here, which is wanted then: do it again.
    pub fn set(&mut self, block: u64, sum: Sum) -> bool {
        assert!(block < self.blocks, "the volume has this block");
        let (number, at) = place(block);
        let Some(page) = self.pages.get_mut(&number) else {
            self.want_page(number);
            return false;
        };
        page.is_used = true;
        if page.sums[at] != sum.0 {
            page.sums[at] = sum.0;
            self.dirty.entry(number).or_insert(self.round);
        }
        true
    }

    fn want_page(&mut self, page: u64) {
        if !self.loading.contains(&page) {
            self.wanted.insert(page);
        }
    }

    /// The next page to read, if one is wanted and there is room for it.
    pub fn next_load(&mut self) -> Option<u64> {
        let page = *self.wanted.first()?;
        while self.pages.len() + self.loading.len() >= self.pages_max {
            self.evict()?;
        }
        self.wanted.remove(&page);
        self.loading.insert(page);
        Some(page)
    }

    /// Forgets a page that is stored, one that was not looked at for a while if there is one.
    fn evict(&mut self) -> Option<()> {
        for _ in 0..=2 * self.pages.len() {
            let next = self.pages.range_mut(self.hand..).next();
            let Some((number, page)) = next else {
                self.hand = 0;
                continue;
            };
            let number = *number;
            self.hand = number + 1;
            let stays = self.dirty.contains_key(&number) || self.writing.contains_key(&number);
            if !stays && !self.fresh.contains(&number) && !core::mem::take(&mut page.is_used) {
                self.pages.remove(&number);
                return Some(());
            }
        }
        None
    }

    /// A page was read, or could not be.
    pub fn loaded(&mut self, number: u64, bytes: Option<&[u8]>) {
        assert!(self.loading.remove(&number), "it was being read");
        let mut sums: Box<[u32; PAGE_SUMS]> =
            vec![Sum::UNKNOWN.0; PAGE_SUMS].into_boxed_slice().try_into().expect("as many");
        for (index, part) in sums.chunks_exact_mut(SECTOR_SUMS).enumerate() {
            let at = index * SECTOR_BYTES as usize;
            let sector = bytes.map(|bytes| &bytes[at..at + SECTOR_BYTES as usize]);
            let is_sound = sector.is_some_and(|sector| self.decode(number, index, sector, part));
            self.damaged_sectors += u64::from(!is_sound);
        }
        self.pages.insert(number, Page { sums, is_used: true });
        self.fresh.push(number);
    }

    fn decode(&self, page: u64, index: usize, sector: &[u8], sums: &mut [u32]) -> bool {
        let word = |at: usize| u32::from_le_bytes(sector[at..at + 4].try_into().expect("four"));
        // What was never written says that its blocks are zeros.
        let is_blank = sector.iter().all(|byte| *byte == 0);
        if !is_blank && word(0) != self.sector_crc(page, index, &sector[4..]) {
            return false;
        }
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = word(8 + 4 * at);
        }
        true
    }

    fn sector_crc(&self, page: u64, index: usize, rest: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.replica.to_le_bytes());
        hasher.update(&(page * SECTORS as u64 + index as u64).to_le_bytes());
        hasher.update(rest);
        hasher.finalize()
    }

    /// Whoever wanted pages had the chance to look: those may go again.
    pub fn end_of_pass(&mut self) {
        self.fresh.clear();
    }

    /// Asks that everything noted so far becomes durable.
    pub fn want(&mut self) -> Ticket {
        let is_clean = self.dirty.is_empty() && self.writing.is_empty();
        if is_clean && !self.is_unsynced && self.flushing.is_none() {
            return Ticket(self.done);
        }
        self.asked = self.round;
        Ticket(self.round)
    }

    /// Whether that is so.
    #[must_use]
    pub fn is_done(&self, ticket: Ticket) -> bool {
        self.done >= ticket.0
    }

    /// The next page to write, if one should be now; `encode` has its bytes. Each goes with
    /// [`written`](Self::written).
    pub fn next_write(&mut self) -> Option<u64> {
        if self.flushing.is_none() && self.asked > self.done {
            self.flushing = Some(self.round);
            self.round += 1;
        }
        let due =
            |(page, dirty): &(&u64, &u64)| Some(**dirty) <= self.flushing && !self.writing.contains_key(page);
        let found = self.dirty.iter().find(due).map(|(page, _)| *page);
        let page = found.or_else(|| self.pressed())?;
        let round = self.dirty.remove(&page).expect("found there");
        self.writing.insert(page, round);
        Some(page)
    }

    /// A page that must be written to make room.
    fn pressed(&self) -> Option<u64> {
        let full = self.pages.len() + self.loading.len() >= self.pages_max && !self.wanted.is_empty();
        if !full || (self.dirty.len() + self.writing.len()) * 4 < self.pages_max {
            return None;
        }
        let writable = |page: &&u64| !self.writing.contains_key(page) && !self.fresh.contains(page);
        self.dirty.keys().find(writable).copied()
    }

    /// Puts a page as it is now into `bytes`.
    pub fn encode(&self, number: u64, bytes: &mut [u8]) {
        let page = &self.pages[&number];
        for (index, (sector, sums)) in
            bytes.chunks_exact_mut(SECTOR_BYTES as usize).zip(page.sums.chunks_exact(SECTOR_SUMS)).enumerate()
        {
            sector[..8].fill(0);
            for (to, sum) in sector[8..].chunks_exact_mut(4).zip(sums) {
                to.copy_from_slice(&sum.to_le_bytes());
            }
            if sector.iter().any(|byte| *byte != 0) {
                let crc = self.sector_crc(number, index, &sector[4..]);
                sector[..4].copy_from_slice(&crc.to_le_bytes());
            }
        }
    }

    /// A page is written.
    pub fn written(&mut self, number: u64) {
        assert!(self.writing.remove(&number).is_some(), "it was being written");
        self.is_unsynced = true;
    }

    /// Whether what was written is to be synced now. Then [`synced`](Self::synced) follows.
    pub fn begin_sync(&mut self) -> bool {
        let Some(round) = self.flushing.filter(|_| !self.is_syncing) else { return false };
        if self.writing.values().chain(self.dirty.values()).any(|of| *of <= round) {
            return false;
        }
        (self.is_syncing, self.is_unsynced) = (true, false);
        true
    }

    /// It is.
    pub fn synced(&mut self) {
        assert!(core::mem::take(&mut self.is_syncing), "it was being synced");
        self.done = self.flushing.take().expect("a round was under way");
    }
}

fn place(block: u64) -> (u64, usize) {
    let at = usize::try_from(block % PAGE_SUMS as u64).expect("within a page");
    (block / PAGE_SUMS as u64, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(pages_max: usize) -> Sums {
        Sums::new(7, 64 << 20, pages_max)
    }

    fn load_all(sums: &mut Sums, device: &BTreeMap<u64, [u8; PAGE_BYTES]>) {
        while let Some(page) = sums.next_load() {
            sums.loaded(page, Some(device.get(&page).unwrap_or(&[0; PAGE_BYTES])));
        }
    }

    fn store(sums: &mut Sums, device: &mut BTreeMap<u64, [u8; PAGE_BYTES]>) {
        while let Some(page) = sums.next_write() {
            let mut bytes = [0; PAGE_BYTES];
            sums.encode(page, &mut bytes);
            device.insert(page, bytes);
            sums.written(page);
        }
        if sums.begin_sync() {
            sums.synced();
        }
    }

    #[test]
    fn a_block_of_zeros_has_sum_zero_and_no_other_has_a_reserved_one() {
        assert_eq!(zeros_crc(4096), crc32fast::hash(&[0; 4096]));
        assert_eq!(Sum::of(5, &[0; 4096]), Sum::ZEROS);
        assert_eq!(Sum::of(5, &[0; 512]), Sum::ZEROS);
        for block in 0..2000_u64 {
            let bytes = [u8::try_from(block % 255 + 1).unwrap(); 4096];
            let sum = Sum::of(block, &bytes);
            assert!(sum.0 > 2);
            assert!(sum.admits(block, &bytes) && !sum.admits(block + 1, &bytes), "it belongs to its place");
        }
    }

    #[test]
    fn what_is_stored_is_read_back_by_the_same_copy_alone() {
        let (mut device, mut first) = (BTreeMap::new(), sums(8));
        assert_eq!(first.get(3), None);
        load_all(&mut first, &device);
        assert_eq!(first.get(3), Some(Sum::ZEROS));
        let sum = Sum::of(3, &[9; 4096]);
        assert!(first.set(3, sum) && first.set(200, Sum::BAD));
        let ticket = first.want();
        assert!(!first.is_done(ticket));
        store(&mut first, &mut device);
        assert!(first.is_done(ticket));
        let mut again = sums(8);
        again.get(3);
        load_all(&mut again, &device);
        assert_eq!(
            (again.get(3), again.get(200), again.get(1)),
            (Some(sum), Some(Sum::BAD), Some(Sum::ZEROS))
        );
        let mut other = Sums::new(8, 64 << 20, 8);
        other.get(3);
        load_all(&mut other, &device);
        assert_eq!((other.get(3), other.get(500)), (Some(Sum::UNKNOWN), Some(Sum::ZEROS)));
        assert_eq!(other.damaged_sectors(), 2);
        // Half of the page is rotten.
        device.get_mut(&0).unwrap()[100] ^= 1;
        let mut again = sums(8);
        again.get(3);
        load_all(&mut again, &device);
        assert_eq!((again.get(3), again.get(200)), (Some(Sum::UNKNOWN), Some(Sum::BAD)));
    }

    #[test]
    fn what_changes_while_it_is_written_is_of_the_next_round() {
        let (mut device, mut sums) = (BTreeMap::new(), sums(8));
        sums.get(0);
        load_all(&mut sums, &device);
        sums.set(0, Sum(10));
        let ticket = sums.want();
        assert_eq!(sums.next_write(), Some(0));
        sums.set(1, Sum(11));
        assert_eq!(sums.next_write(), None, "a page is written once at a time");
        assert!(!sums.begin_sync());
        sums.written(0);
        let later = sums.want();
        assert!(sums.begin_sync());
        sums.synced();
        assert!(sums.is_done(ticket) && !sums.is_done(later));
        store(&mut sums, &mut device);
        assert!(sums.is_done(later));
        assert!(
            {
                let ticket = sums.want();
                sums.is_done(ticket)
            },
            "nothing changed since"
        );
    }

    #[test]
    fn memory_is_bounded_and_a_changed_page_is_stored_before_it_goes() {
        let (mut device, mut sums) = (BTreeMap::new(), sums(4));
        for round in 0..3 {
            for page in 0..16_u64 {
                let block = page * PAGE_SUMS as u64 + 5;
                while !sums.set(block, Sum(u32::try_from(100 * round + page + 3).unwrap())) {
                    load_all(&mut sums, &device);
                    store(&mut sums, &mut device);
                }
                assert!(sums.pages() <= 4);
                sums.end_of_pass();
            }
        }
        let ticket = sums.want();
        store(&mut sums, &mut device);
        assert!(sums.is_done(ticket));
        for page in 0..16_u64 {
            let block = page * PAGE_SUMS as u64 + 5;
            while sums.get(block).is_none() {
                load_all(&mut sums, &device);
                store(&mut sums, &mut device);
            }
            assert_eq!(sums.get(block), Some(Sum(u32::try_from(200 + page + 3).unwrap())));
            sums.end_of_pass();
        }
    }
}
