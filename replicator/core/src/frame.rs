//! Frames: the unit that is sent, journaled and applied. The same bytes serve all three; `docs/formats.md` draws
//! them. This file encodes and decodes; it decides nothing.
//!
//! ```text
//! 0        128      192                          4096
//! | header | local  | entries, 32 bytes each ... | payloads, each aligned to a sector ... | zeros to a page |
//! ```
//!
//! The local part belongs to the journal the frame lies in and is rewritten by every replica; nothing outside
//! that journal relies on it, so the header's CRC leaves it out.

use thiserror::Error;

use crate::bytes::{Reader, Short, Writer};
use crate::chain::{self, ENTRY_BYTES};
use crate::disk::superblock::Cut;
use crate::limits::{FRAME_BYTES_MAX, FRAME_ENTRIES_MAX, FRAME_HEADER_BYTES, VOLUME_BYTES_MAX};
use crate::units::{
    Chain, Epoch, PAGE_BYTES, Position, ReignId, RingOffset, SECTOR_BYTES, Sequence, VolumeId,
};

const MAGIC: u64 = u64::from_le_bytes(*b"HF-FRAME");
const LOCAL_MAGIC: u32 = u32::from_le_bytes(*b"HFlp");
/// Version of the frame format; see the history in `docs/formats.md`.
pub const FRAME_VERSION: u16 = 1;
const LOCAL_AT: usize = 128;
const ENTRIES_AT: usize = 192;

/// What an entry does to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// Payload bytes replace the range.
    Write = 1,
    /// The range reads as zeros and stays allocated where the disk can do that.
    Zeroes = 2,
    /// The range reads as zeros and may be given back to the disk.
    Trim = 3,
    /// A reign begins; no range.
    EpochStart = 4,
    /// The volume grows by the range, which lies behind its end and reads as zeros; alone in its frame.
    Resize = 5,
}

impl EntryKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Write,
            2 => Self::Zeroes,
            3 => Self::Trim,
            4 => Self::EpochStart,
            5 => Self::Resize,
            _ => return None,
        })
    }
}

/// One change of the volume, as it lies in a frame's header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it does.
    pub kind: EntryKind,
    /// The client asked for it to be durable before the answer.
    pub fua: bool,
    /// CRC-32 of the payload, 0 without one.
    pub payload_crc: u32,
    /// First byte of the range in the volume.
    pub offset: u64,
    /// Bytes of the range.
    pub length: u64,
    /// Where the payload begins in the frame, 0 without one.
    pub payload_at: u32,
}

impl Entry {
    /// Encodes the 32 bytes that are hashed into the chain.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let mut writer = Writer::new(&mut bytes);
        writer.u8(self.kind as u8).u8(u8::from(self.fua)).u16(0).u32(self.payload_crc);
        writer.u64(self.offset).u64(self.length).u32(self.payload_at).u32(0);
        bytes
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(bytes);
        let (kind, flags, zero) = (reader.u8()?, reader.u8()?, reader.u16()?);
        let kind = EntryKind::from_byte(kind).ok_or(FrameError::EntryKind(kind))?;
        if flags > 1 || zero != 0 {
            return Err(FrameError::EntryFlags);
        }
        let payload_crc = reader.u32()?;
        let (offset, length, payload_at) = (reader.u64()?, reader.u64()?, reader.u32()?);
        Ok(Self { kind, fua: flags == 1, payload_crc, offset, length, payload_at })
    }

    /// Bytes of payload in the frame.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match self.kind {
            EntryKind::Write => usize::try_from(self.length).unwrap_or(usize::MAX),
            _ => 0,
        }
    }

    /// Offset in the frame of the byte behind its payload; 0 without one.
    #[must_use]
    pub fn payload_end(&self) -> usize {
        self.payload_at as usize + self.payload_bytes()
    }

    /// Whether it changes bytes of the volume.
    #[must_use]
    pub fn has_range(&self) -> bool {
        self.kind != EntryKind::EpochStart
    }
}

/// What one journal records beside a frame that lies in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalPart {
    /// Where the frame lies in this ring.
    pub ring_offset: RingOffset,
    /// What this journal knew durable when it wrote the frame.
    pub durable: Sequence,
    /// The newest stable mark this replica knew when it wrote the frame.
    pub stable: Sequence,
    /// How many cuts this log had had when the frame was written.
    pub cuts: u64,
}

/// A frame's header, decoded. The entries are read with [`entries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The volume it belongs to.
    pub volume: VolumeId,
    /// The reign that sequenced its entries.
    pub epoch: Epoch,
    /// Identity of that reign.
    pub reign: ReignId,
    /// Sequence of the first entry; of the next one when there is none.
    pub first: Sequence,
    /// Number of entries; 0 makes it a mark, which takes no position.
    pub entries: u32,
    /// Bytes of the whole frame, a multiple of the page.
    pub total_bytes: u32,
    /// Chain before the first entry.
    pub chain_before: Chain,
    /// Chain after the last one.
    pub chain_after: Chain,
    /// What the primary knew committed when it closed the frame.
    pub committed: Sequence,
    /// What the primary knew stable when it closed the frame.
    pub stable: Sequence,
    /// When the primary closed it, in milliseconds since 1970 by its clock; 0 if not known. For people only.
    pub closed_ms: u64,
}

impl FrameHeader {
    /// Sequence of the last entry; of the one before `first` in a mark.
    #[must_use]
    pub fn last(&self) -> Sequence {
        Sequence(self.first.0 - 1 + u64::from(self.entries))
    }

    /// Position of the last entry.
    #[must_use]
    pub fn last_position(&self) -> Position {
        Position { epoch: self.epoch, sequence: self.last() }
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Fewer bytes than the frame needs.
    #[error("the frame is cut short")]
    Short,
    /// Not the magic number of a frame.
    #[error("no frame here (bad magic)")]
    Magic,
    /// A version this program does not know.
    #[error("frame version {0} is not known to this program")]
    Version(u16),
    /// The header's CRC does not match.
    #[error("the frame's header does not match its checksum")]
    HeaderCrc,
    /// A length, count or sequence outside its limits.
    #[error("the frame's {0} is out of bounds")]
    Bounds(&'static str),
    /// An entry of a kind this program does not know.
    #[error("entry kind {0} is not known to this program")]
    EntryKind(u8),
    /// Reserved entry bits are set.
    #[error("an entry has reserved bits set")]
    EntryFlags,
    /// An entry's payload does not lie within the frame.
    #[error("an entry's payload lies outside its frame")]
    EntryPayload,
    /// The entries do not hash to the chain the header states.
    #[error("the entries do not match the frame's chain value")]
    Chain,
    /// A payload does not match its CRC.
    #[error("the payload of entry {0} does not match its checksum")]
    PayloadCrc(u64),
    /// The local part is missing or damaged.
    #[error("the frame's local part is missing or damaged")]
    Local,
}

impl From<Short> for FrameError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

/// Encodes header and entries into the header block `block` of a frame, and returns the header with its chain.
/// The local part is left zero.
///
/// # Panics
/// If there are more entries than fit; the caller closes a frame before that.
pub fn encode<'e>(
    block: &mut [u8],
    mut header: FrameHeader,
    entries: impl ExactSizeIterator<Item = &'e Entry>,
) -> FrameHeader {
    assert!(entries.len() <= FRAME_ENTRIES_MAX, "a frame is closed before its header block is full");
    assert!(block.len() >= FRAME_HEADER_BYTES);
    header.entries = u32::try_from(entries.len()).expect("bounded above");
    let mut chain = header.chain_before;
    let mut position = Position { epoch: header.epoch, sequence: header.first };
    let mut at = ENTRIES_AT;
    for entry in entries {
        let bytes = entry.encode();
        chain = chain::extend(chain, position, header.reign, &bytes);
        block[at..at + ENTRY_BYTES].copy_from_slice(&bytes);
        position.sequence = position.sequence.next();
        at += ENTRY_BYTES;
    }
    block[at..FRAME_HEADER_BYTES].fill(0);
    header.chain_after = chain;
    write_header(block, &header);
    header
}

fn write_header(block: &mut [u8], header: &FrameHeader) {
    let mut writer = Writer::new(block);
    writer.u64(MAGIC).u32(0).u16(FRAME_VERSION).u16(0);
    writer.u32(header.total_bytes).u32(header.entries);
    writer.u64(header.epoch.0).u64(header.first.0);
    writer.u128(header.chain_before.0).u128(header.chain_after.0);
    writer.u64(header.committed.0).u64(header.stable.0);
    writer.u128(header.reign.0).u128(header.volume.0).u64(header.closed_ms);
    writer.zeros(LOCAL_AT - writer.written());
    writer.zeros(ENTRIES_AT - LOCAL_AT);
    let crc = header_crc(block, header.entries);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
}

fn header_crc(block: &[u8], entries: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[12..LOCAL_AT]);
    hasher.update(&block[ENTRIES_AT..ENTRIES_AT + entries as usize * ENTRY_BYTES]);
    hasher.finalize()
}

/// Decodes the header of the frame that `block` begins with: magic, version, limits, CRC, and the chain over
/// its entries. Payloads are checked by [`check_payloads`].
///
/// # Errors
/// Whatever makes these bytes no frame; nothing in them is trusted before it is checked.
pub fn decode(block: &[u8]) -> Result<FrameHeader, FrameError> {
    if block.len() < FRAME_HEADER_BYTES {
        return Err(FrameError::Short);
    }
    let mut reader = Reader::new(block);
    if reader.u64()? != MAGIC {
        return Err(FrameError::Magic);
    }
    let (crc, version, _flags) = (reader.u32()?, reader.u16()?, reader.u16()?);
    if version != FRAME_VERSION {
        return Err(FrameError::Version(version));
    }
    let (total_bytes, entries) = (reader.u32()?, reader.u32()?);
    if entries as usize > FRAME_ENTRIES_MAX {
        return Err(FrameError::Bounds("entry count"));
    }
    if header_crc(block, entries) != crc {
        return Err(FrameError::HeaderCrc);
    }
    let total = total_bytes as usize;
    if !(FRAME_HEADER_BYTES..=FRAME_BYTES_MAX).contains(&total) || !total.is_multiple_of(PAGE_BYTES) {
        return Err(FrameError::Bounds("length"));
    }
    let header = FrameHeader {
        total_bytes,
        entries,
        epoch: Epoch(reader.u64()?),
        first: Sequence(reader.u64()?),
        chain_before: Chain(reader.u128()?),
        chain_after: Chain(reader.u128()?),
        committed: Sequence(reader.u64()?),
        stable: Sequence(reader.u64()?),
        reign: ReignId(reader.u128()?),
        volume: VolumeId(reader.u128()?),
        closed_ms: reader.u64()?,
    };
    if header.first.0 == 0 || header.first.0 > u64::MAX / 2 || header.stable > header.committed {
        return Err(FrameError::Bounds("sequence"));
    }
    check_entries(block, &header)?;
    Ok(header)
}

/// Checks each entry's limits and that together they make the chain.
fn check_entries(block: &[u8], header: &FrameHeader) -> Result<(), FrameError> {
    let mut chain = header.chain_before;
    let mut position = Position { epoch: header.epoch, sequence: header.first };
    let mut payload_floor = FRAME_HEADER_BYTES;
    for entry in entries(block, header) {
        let entry = entry?;
        if entry.has_range() {
            let aligned =
                entry.offset.is_multiple_of(SECTOR_BYTES) && entry.length.is_multiple_of(SECTOR_BYTES);
            if !aligned || entry.length == 0 || entry.offset.checked_add(entry.length).is_none() {
                return Err(FrameError::Bounds("range"));
            }
        }
        if entry.kind == EntryKind::Write {
            let start = entry.payload_at as usize;
            let end = start.checked_add(entry.payload_bytes()).ok_or(FrameError::EntryPayload)?;
            let aligned = start.is_multiple_of(SECTOR_BYTES as usize);
            if !aligned || start < payload_floor || end > header.total_bytes as usize {
                return Err(FrameError::EntryPayload);
            }
            payload_floor = end;
        } else if entry.payload_at != 0 || entry.payload_crc != 0 {
            return Err(FrameError::EntryPayload);
        }
        chain = chain::extend(chain, position, header.reign, &entry.encode());
        position.sequence = position.sequence.next();
    }
    if chain != header.chain_after { Err(FrameError::Chain) } else { Ok(()) }
}

/// The entries of the frame that `block` begins with.
pub fn entries<'b>(
    block: &'b [u8],
    header: &FrameHeader,
) -> impl Iterator<Item = Result<Entry, FrameError>> + use<'b> {
    let end = ENTRIES_AT + header.entries as usize * ENTRY_BYTES;
    let bytes = block.get(ENTRIES_AT..end).unwrap_or_default();
    bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(Entry::decode)
}

/// Whether a frame in a ring is part of what `cut` removed from the log. A mark right behind the last entry that
/// stayed is not.
#[must_use]
pub fn is_cut(header: &FrameHeader, local: &LocalPart, cut: Cut) -> bool {
    local.cuts < cut.count && header.last() >= cut.first
}

/// Checks that a frame's entries may enter a log whose last entry is of epoch `before`, of a volume of
/// `volume_bytes`: ranges lie within it, and an epoch begins with its start, alone in its frame.
///
/// # Errors
/// [`FrameError::Bounds`] naming what does not fit.
pub fn check_for_log(
    block: &[u8],
    header: &FrameHeader,
    before: Epoch,
    volume_bytes: u64,
) -> Result<(), FrameError> {
    if header.epoch < before {
        return Err(FrameError::Bounds("epoch"));
    }
    let starts_epoch = header.entries > 0 && header.epoch != before;
    for (place, entry) in entries(block, header).enumerate() {
        let entry = entry?;
        let is_start = entry.kind == EntryKind::EpochStart;
        if is_start != (starts_epoch && place == 0) || (is_start && header.entries != 1) {
            return Err(FrameError::Bounds("epoch start"));
        }
        let end = entry.offset.saturating_add(entry.length);
        let within = match entry.kind {
            EntryKind::EpochStart => true,
            // A replica that is brought level by blocks may know the new size before the entry comes.
            EntryKind::Resize => {
                header.entries == 1 && entry.offset <= volume_bytes && end <= VOLUME_BYTES_MAX
            }
            _ => end <= volume_bytes,
        };
        if !within {
            return Err(FrameError::Bounds("range in the volume"));
        }
    }
    Ok(())
}

/// The size that the volume has after the frame that `block` begins with, if the frame changes it.
#[must_use]
pub fn size_after(block: &[u8], header: &FrameHeader) -> Option<u64> {
    let first = entries(block, header).next()?.ok()?;
    (first.kind == EntryKind::Resize).then_some(first.offset + first.length)
}

/// Checks the CRC of every payload of a whole frame.
///
/// # Errors
/// The first payload that does not match, or that lies outside `frame`.
pub fn check_payloads(frame: &[u8], header: &FrameHeader) -> Result<(), FrameError> {
    for (index, entry) in entries(frame, header).enumerate() {
        let entry = entry?;
        if entry.kind == EntryKind::Write {
            let start = entry.payload_at as usize;
            let payload = frame.get(start..start + entry.payload_bytes()).ok_or(FrameError::Short)?;
            if crc32fast::hash(payload) != entry.payload_crc {
                return Err(FrameError::PayloadCrc(header.first.0 + index as u64));
            }
        }
    }
    Ok(())
}

/// Writes the local part of the frame that `block` begins with.
pub fn encode_local(block: &mut [u8], local: &LocalPart) {
    let header_crc = crc32fast::hash(&block[..LOCAL_AT]);
    let area = &mut block[LOCAL_AT..ENTRIES_AT];
    let mut writer = Writer::new(area);
    writer.u32(LOCAL_MAGIC).u32(0);
    writer.u64(local.ring_offset.0).u64(local.durable.0).u64(local.stable.0).u64(local.cuts).u32(header_crc);
    writer.zeros(area_rest());
    let crc = crc32fast::hash(&area[8..]);
    area[4..8].copy_from_slice(&crc.to_le_bytes());
}

const fn area_rest() -> usize {
    ENTRIES_AT - LOCAL_AT - 44
}

/// Reads the local part of the frame that `block` begins with.
///
/// # Errors
/// [`FrameError::Local`] if it is missing, damaged, or was written for another header.
pub fn decode_local(block: &[u8]) -> Result<LocalPart, FrameError> {
    let area = block.get(LOCAL_AT..ENTRIES_AT).ok_or(FrameError::Short)?;
    let mut reader = Reader::new(area);
    let (magic, crc) = (reader.u32()?, reader.u32()?);
    if magic != LOCAL_MAGIC || crc32fast::hash(&area[8..]) != crc {
        return Err(FrameError::Local);
    }
    let local = LocalPart {
        ring_offset: RingOffset(reader.u64()?),
        durable: Sequence(reader.u64()?),
        stable: Sequence(reader.u64()?),
        cuts: reader.u64()?,
    };
    if reader.u32()? != crc32fast::hash(&block[..LOCAL_AT]) { Err(FrameError::Local) } else { Ok(local) }
}

/// The header of a frame that was checked when it entered the log: only what [`entries`] needs is read again.
///
/// # Panics
/// If the block is no frame after all; memory of ours was overwritten.
#[must_use]
pub fn decode_trusted(block: &[u8]) -> FrameHeader {
    let mut reader = Reader::new(block);
    let mut read = || -> Result<FrameHeader, FrameError> {
        if reader.u64()? != MAGIC {
            return Err(FrameError::Magic);
        }
        reader.skip(8)?;
        let (total_bytes, entries) = (reader.u32()?, reader.u32()?);
        Ok(FrameHeader {
            total_bytes,
            entries,
            epoch: Epoch(reader.u64()?),
            first: Sequence(reader.u64()?),
            chain_before: Chain(reader.u128()?),
            chain_after: Chain(reader.u128()?),
            committed: Sequence(reader.u64()?),
            stable: Sequence(reader.u64()?),
            reign: ReignId(reader.u128()?),
            volume: VolumeId(reader.u128()?),
            closed_ms: reader.u64()?,
        })
    };
    read().expect("a frame in the log stays a frame")
}
