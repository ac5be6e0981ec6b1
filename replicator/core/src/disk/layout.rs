//! Where things lie in a journal device. Drawn in `docs/formats.md`.

use thiserror::Error;

use crate::bookmarks::{BOOKMARKS_MAX, TABLE_BYTES};
use crate::dirty::{BLOCK_BYTES, DirtyMap};
use crate::limits::{RING_BYTES_MIN, VOLUME_BYTES_MAX};
use crate::sums::Sums;
use crate::units::{PAGE_BYTES, RingOffset, SECTOR_BYTES};

/// Where the two copies of the superblock lie.
pub const SUPERBLOCK_AT: [u64; 2] = [0, 64 << 10];
/// Bytes of one copy.
pub const SUPERBLOCK_BYTES: usize = PAGE_BYTES;
/// Where the space kept for the dirty maps begins.
pub const MAPS_AT: u64 = 1 << 20;
/// Peers for which map space is kept.
pub const MAP_PEERS: usize = 3;

/// The areas of a journal device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes kept for one copy of the dirty map of one peer.
    pub map_bytes: u64,
    /// Bytes kept for the dirty maps: two copies for each of three peers.
    pub maps_bytes: u64,
    /// Bytes kept for the checksums of blocks at rest; 0 if there are none.
    pub sums_bytes: u64,
    /// Bytes kept for bookmarks: two copies of a table and of the maps it names; 0 if there is no room for any.
    pub bookmarks_bytes: u64,
    /// Where the ring begins.
    pub ring_at: u64,
    /// Bytes of the ring, a multiple of the page.
    pub ring_bytes: u64,
}

/// Why a volume and a journal of the given sizes do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The volume's size is no multiple of the sector, zero, or over the limit.
    #[error("volume size {0} bytes: it must be a multiple of 512, above 0 and at most 1 PiB")]
    VolumeSize(u64),
    /// The space of the dirty maps is too small, or no whole pages.
    #[error(
        "the journal keeps {map_bytes} bytes for a dirty map, which do not do for a volume of {volume_bytes} bytes"
    )]
    Maps {
        /// Of the volume.
        volume_bytes: u64,
        /// Kept for one map.
        map_bytes: u64,
    },
    /// The journal leaves too little for its ring.
    #[error(
        "journal of {journal_bytes} bytes is too small for this volume: it needs at least {needed_bytes}"
    )]
    JournalTooSmall {
        /// What it has.
        journal_bytes: u64,
        /// What it needs.
        needed_bytes: u64,
    },
}

/// Bytes that the image of the dirty map of a volume of this size may take.
#[must_use]
pub fn map_bytes_of(volume_bytes: u64) -> u64 {
    volume_bytes.div_ceil(BLOCK_BYTES * 8).next_multiple_of(PAGE_BYTES as u64)
}

/// Bytes that suffice for the image of a dirty map of a volume of this size if it is as coarse as can be.
#[must_use]
pub fn map_bytes_min_of(volume_bytes: u64) -> u64 {
    DirtyMap::image_bytes_min(volume_bytes).next_multiple_of(PAGE_BYTES as u64)
}

/// Whether `map_bytes` suffice for the image of a dirty map of a volume of this size, coarse as it may be.
#[must_use]
pub fn map_fits(volume_bytes: u64, map_bytes: u64) -> bool {
    map_bytes.is_multiple_of(PAGE_BYTES as u64) && map_bytes_min_of(volume_bytes) <= map_bytes
}

/// Bytes of one copy of the bookmarks: the table, then room for the map of each.
fn bookmarks_copy_bytes(map_bytes: u64) -> u64 {
    TABLE_BYTES as u64 + BOOKMARKS_MAX as u64 * map_bytes
}

impl Layout {
    /// The layout of a new journal of `journal_bytes` for a volume of `volume_bytes`, without checksums of blocks at rest.
    ///
    /// # Errors
    /// [`LayoutError`] if they do not go together.
    pub fn new(volume_bytes: u64, journal_bytes: u64) -> Result<Self, LayoutError> {
        Self::with(volume_bytes, journal_bytes, false)
    }

    /// The same, with checksums of blocks at rest if `sums` says so.
    ///
    /// # Errors
    /// [`LayoutError`] if they do not go together.
    pub fn with(volume_bytes: u64, journal_bytes: u64, sums: bool) -> Result<Self, LayoutError> {
        Self::with_maps(volume_bytes, map_bytes_of(volume_bytes), journal_bytes, sums, true)
    }

    /// The layout of a journal whose volume has grown since: the space of the maps stays what it was, and one with checksums
    /// of blocks at rest does not grow. It was made with or without room for bookmarks.
    ///
    /// # Errors
    /// [`LayoutError`] if they do not go together.
    pub fn with_maps(
        volume_bytes: u64,
        map_bytes: u64,
        journal_bytes: u64,
        sums: bool,
        bookmarks: bool,
    ) -> Result<Self, LayoutError> {
        let sound =
            volume_bytes.is_multiple_of(SECTOR_BYTES) && (1..=VOLUME_BYTES_MAX).contains(&volume_bytes);
        if !sound {
            return Err(LayoutError::VolumeSize(volume_bytes));
        }
        if !map_fits(volume_bytes, map_bytes) || map_bytes > map_bytes_of(VOLUME_BYTES_MAX) {
            return Err(LayoutError::Maps { volume_bytes, map_bytes });
        }
        let maps_bytes = 2 * MAP_PEERS as u64 * map_bytes;
        let sums_bytes = if sums { Sums::area_bytes(volume_bytes) } else { 0 };
        let bookmarks_bytes = if bookmarks { 2 * bookmarks_copy_bytes(map_bytes) } else { 0 };
        let ring_at = MAPS_AT + maps_bytes + sums_bytes + bookmarks_bytes;
        let needed_bytes = ring_at + RING_BYTES_MIN;
        if journal_bytes < needed_bytes {
            return Err(LayoutError::JournalTooSmall { journal_bytes, needed_bytes });
        }
        let ring_bytes = (journal_bytes - ring_at) / PAGE_BYTES as u64 * PAGE_BYTES as u64;
        Ok(Self { map_bytes, maps_bytes, sums_bytes, bookmarks_bytes, ring_at, ring_bytes })
    }

    /// The same for a volume that has grown as far as the space of its maps allows: the largest ring that such a journal
    /// may have.
    ///
    /// # Errors
    /// [`LayoutError`] if not even that goes together.
    pub fn with_smallest_maps(
        volume_bytes: u64,
        journal_bytes: u64,
        sums: bool,
    ) -> Result<Self, LayoutError> {
        let map_bytes = map_bytes_min_of(volume_bytes.min(VOLUME_BYTES_MAX));
        Self::with_maps(volume_bytes, map_bytes, journal_bytes, sums, false)
    }

    /// Where copy `copy` (0 or 1) of the map in `slot` lies on the device.
    #[must_use]
    pub fn map_at(&self, copy: u8, slot: usize) -> u64 {
        assert!(copy < 2 && slot < MAP_PEERS, "there are two copies of three maps");
        MAPS_AT + (u64::from(copy) * MAP_PEERS as u64 + slot as u64) * self.map_bytes
    }

    /// Where page `page` of the checksums lies on the device.
    #[must_use]
    pub fn sums_at(&self, page: u64) -> u64 {
        let at = page * PAGE_BYTES as u64;
        assert!(at < self.sums_bytes, "the volume's blocks have so many pages");
        MAPS_AT + self.maps_bytes + at
    }

    /// Where copy `copy` (0 or 1) of the table of bookmarks lies on the device.
    #[must_use]
    pub fn bookmarks_at(&self, copy: u8) -> u64 {
        assert!(copy < 2 && self.bookmarks_bytes > 0, "there are two copies, or none");
        MAPS_AT + self.maps_bytes + self.sums_bytes + u64::from(copy) * bookmarks_copy_bytes(self.map_bytes)
    }

    /// Where the map of bookmark `index` in copy `copy` (0 or 1) lies on the device.
    #[must_use]
    pub fn bookmark_map_at(&self, copy: u8, index: usize) -> u64 {
        assert!(index < BOOKMARKS_MAX, "there is room for so many");
        self.bookmarks_at(copy) + TABLE_BYTES as u64 + index as u64 * self.map_bytes
    }

    /// Where `offset` of the ring lies on the device.
    #[must_use]
    pub fn device_offset(&self, offset: RingOffset) -> u64 {
        self.ring_at + offset.0 % self.ring_bytes
    }

    /// Bytes from `offset` to the physical end of the ring.
    #[must_use]
    pub fn bytes_to_end(&self, offset: RingOffset) -> u64 {
        self.ring_bytes - offset.0 % self.ring_bytes
    }

    /// Where a frame of `bytes` that comes next at `offset` begins: frames do not wrap.
    #[must_use]
    pub fn place(&self, offset: RingOffset, bytes: u64) -> RingOffset {
        let rest = self.bytes_to_end(offset);
        if bytes <= rest { offset } else { offset.plus(rest) }
    }
}
