//! The superblock: what a replica must remember beside its log. Two copies, each with a sequence and a CRC;
//! both are written and synced before anything outside relies on a change. Drawn in `docs/formats.md`.

use core::fmt;

use thiserror::Error;

use crate::bytes::{Reader, Short, Writer};
use crate::disk::layout::{Layout, LayoutError, MAP_PEERS, SUPERBLOCK_BYTES, map_bytes_of};
use crate::history::{History, Reign};
use crate::limits::HISTORY_MAX;
use crate::tracker::{Base, CopyId};
use crate::units::{
    Chain, Epoch, Incarnation, NodeId, NodeSet, PAGE_BYTES, Position, ReignId, RingOffset, Sequence, VolumeId,
};

const MAGIC: u64 = u64::from_le_bytes(*b"HOLDFAST");
/// Version of the disk format; see the history in `docs/formats.md`.
pub const DISK_VERSION: u16 = 5;
/// The oldest version this program reads: one without dirty maps.
const DISK_VERSION_MIN: u16 = 1;
const MAPS_FIELDS_AT: usize = 344;
const FORK_FIELDS_AT: usize = 600;
const SIZE_FIELDS_AT: usize = 960;
const HISTORY_AT: usize = 1024;
const REIGN_BYTES: usize = 48;
const _: () = assert!(HISTORY_AT + HISTORY_MAX * REIGN_BYTES <= SUPERBLOCK_BYTES);

/// State of a replica's copy of the data, in DRBD's words.
///
/// ```text
/// Attaching --> UpToDate <--> Outdated
///                  |  ^          |
///                  v  |          v
///     Failed <-- Inconsistent <--+        (any) --> Failed, Diskless
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum DiskState {
    /// There is no copy here.
    Diskless = 0,
    /// The copy is being opened and its journal read.
    Attaching = 1,
    /// Its blocks are a mix of positions: a resync runs or was interrupted.
    Inconsistent = 2,
    /// A consistent earlier state, known to be behind.
    Outdated = 3,
    /// Everything acknowledged is here, as far as this replica knows.
    #[default]
    UpToDate = 4,
    /// The disk reported an error that makes it unusable.
    Failed = 5,
}

impl DiskState {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Diskless,
            1 => Self::Attaching,
            2 => Self::Inconsistent,
            3 => Self::Outdated,
            4 => Self::UpToDate,
            5 => Self::Failed,
            _ => return None,
        })
    }

    /// Decodes a state as it is sent between replicas.
    #[must_use]
    pub fn decode(byte: u8) -> Option<Self> {
        Self::from_byte(byte)
    }
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Diskless => "Diskless",
            Self::Attaching => "Attaching",
            Self::Inconsistent => "Inconsistent",
            Self::Outdated => "Outdated",
            Self::UpToDate => "UpToDate",
            Self::Failed => "Failed",
        })
    }
}

/// The committed configuration of a volume: who writes, and who holds every acknowledged write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The reign.
    pub epoch: Epoch,
    /// Change of the record within the reign; every change adds one.
    pub version: u64,
    /// Who may write; `None` before the first promotion and after a demotion.
    pub primary: Option<NodeId>,
    /// Identity of the reign.
    pub reign: ReignId,
    /// Replicas that hold every acknowledged write, and durably every flushed one.
    pub in_sync: NodeSet,
}

impl Record {
    /// What orders records of one reign, and reigns of different epochs.
    #[must_use]
    pub fn order(&self) -> (Epoch, u64) {
        (self.epoch, self.version)
    }

    /// Whether the two are of different promotions to one epoch: neither is later than the other.
    #[must_use]
    pub fn is_of_rival(&self, other: &Self) -> bool {
        self.epoch == other.epoch && self.reign != other.reign
    }

    /// Whether it replaces `other`.
    #[must_use]
    pub fn is_later_than(&self, other: &Self) -> bool {
        self.order() > other.order() && !self.is_of_rival(other)
    }

    pub(crate) fn encode(&self, writer: &mut Writer<'_>) {
        let primary = self.primary.map_or(u8::MAX, |node| node.0);
        writer.u64(self.epoch.0).u64(self.version).u128(self.reign.0);
        writer.u32(self.in_sync.0).u8(primary).zeros(3);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Short> {
        let (epoch, version) = (Epoch(reader.u64()?), reader.u64()?);
        let (reign, in_sync) = (ReignId(reader.u128()?), NodeSet(reader.u32()?));
        let primary = reader.u8()?;
        reader.skip(3)?;
        let primary = (primary < 32).then_some(NodeId(primary));
        Ok(Self { epoch, version, primary, reign, in_sync })
    }
}

/// A place in the log and in the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPoint {
    /// Where in the ring the *next* frame lies.
    pub ring_offset: RingOffset,
    /// Position of the last entry before that place.
    pub position: Position,
    /// Chain after that entry.
    pub chain: Chain,
}

impl LogPoint {
    pub(crate) fn encode(&self, writer: &mut Writer<'_>) {
        writer.u64(self.ring_offset.0).u64(self.position.epoch.0);
        writer.u64(self.position.sequence.0).u128(self.chain.0);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Short> {
        let ring_offset = RingOffset(reader.u64()?);
        let position = Position { epoch: Epoch(reader.u64()?), sequence: Sequence(reader.u64()?) };
        Ok(Self { ring_offset, position, chain: Chain(reader.u128()?) })
    }
}

/// The newest cut of the log: frames that were written before it, from `first` on, are not part of the log, whatever
/// the ring still holds. Each frame's local part says after how many cuts it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// How many cuts there have been.
    pub count: u64,
    /// First sequence that the newest one removed.
    pub first: Sequence,
}

/// What the superblock says of one dirty map; see [`Tracker`](crate::tracker::Tracker).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapHead {
    /// Whose; `None` if the slot is free.
    pub node: Option<NodeId>,
    /// Every block was dirty once, and only the copy of `stamp` has made some clean.
    pub everything: bool,
    /// The copy that blocks were made clean for.
    pub stamp: Option<CopyId>,
    /// The peer holds everything up to here durably.
    pub held: Sequence,
    /// Where the map begins.
    pub base: Base,
    /// Bytes of its image; 0 if nothing is dirty, and there is none.
    pub image_bytes: u64,
}

/// The saved dirty maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// Which of the two copies on the device counts.
    pub copy: u8,
    /// Names the write that made it.
    pub generation: u64,
    /// One for each peer.
    pub slots: [MapHead; MAP_PEERS],
}

impl Maps {
    fn encode(&self, writer: &mut Writer<'_>) {
        writer.u64(self.generation).u8(self.copy).zeros(7);
        for slot in &self.slots {
            let node = slot.node.map_or(u8::MAX, |node| node.0);
            let stamp = slot.stamp.unwrap_or_default();
            let position = slot.base.position;
            writer.u8(node).u8(u8::from(slot.everything)).u8(u8::from(slot.stamp.is_some())).zeros(5);
            writer.u64(stamp.discards).u128(stamp.replica).u64(slot.held.0);
            writer.u64(position.epoch.0).u64(position.sequence.0).u128(slot.base.chain.0);
            writer.u64(slot.image_bytes);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Short> {
        let mut maps = Self { generation: reader.u64()?, copy: reader.u8()?, ..Self::default() };
        reader.skip(7)?;
        for slot in &mut maps.slots {
            let node = reader.u8()?;
            slot.node = (node < 32).then_some(NodeId(node));
            slot.everything = reader.u8()? != 0;
            let stamped = reader.u8()? != 0;
            reader.skip(5)?;
            let (discards, replica) = (reader.u64()?, reader.u128()?);
            slot.stamp = stamped.then_some(CopyId { replica, discards });
            slot.held = Sequence(reader.u64()?);
            slot.base.position = Position { epoch: Epoch(reader.u64()?), sequence: Sequence(reader.u64()?) };
            slot.base.chain = Chain(reader.u128()?);
            slot.image_bytes = reader.u64()?;
        }
        Ok(maps)
    }
}

/// The last scrub that went through to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubRecord {
    /// When, in milliseconds since 1970 by the clock here; 0 if there was none.
    pub ended_ms: u64,
    /// Blocks that it read.
    pub blocks: u64,
    /// Those that could not be read, or did not match their checksum.
    pub bad_blocks: u64,
}

/// Blocks that were gathered in the ring, right before the log that begins anew: they are to be put in place before
/// anything of that log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Where the first item lies.
    pub from: RingOffset,
    /// Where the last one ends.
    pub to: RingOffset,
    /// How many items there are.
    pub items: u64,
}

/// What a replica remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Superblock {
    /// Grows with every write of the superblock; the higher of two sound copies counts.
    pub sequence: u64,
    /// The volume.
    pub volume: VolumeId,
    /// The cluster's incarnation.
    pub incarnation: Incarnation,
    /// The node whose replica this is.
    pub node: NodeId,
    /// Random identity of this copy, made once.
    pub replica: u128,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Bytes of the journal device when it was created.
    pub journal_bytes: u64,
    /// Smallest unit a client may address.
    pub block_bytes: u32,
    /// Upper bound of the bytes written to the ring and not yet applied; recovery looks that far for later marks.
    pub window_bytes: u64,
    /// Fingerprint of the backing disk: inode number of a file, 0 for a device.
    pub disk_fingerprint: u64,
    /// State of the copy.
    pub disk_state: DiskState,
    /// The copy must be verified before it is believed.
    pub suspect: bool,
    /// The process stopped in order: nothing was in flight.
    pub clean: bool,
    /// The replica cannot have lost volatile state since it last acknowledged.
    pub proven: bool,
    /// It acknowledges what it has only received (protocol B): any unclean end of the process may lose that.
    pub volatile_acks: bool,
    /// Boot id of the machine when the process last started.
    pub boot_id: u128,
    /// Highest epoch promised; lower ones are refused.
    pub promised: Epoch,
    /// The newest record this replica was told.
    pub record: Record,
    /// The newest cut.
    pub cut: Cut,
    /// Oldest frame that is still whole in the ring.
    pub tail: LogPoint,
    /// Everything up to here is in place on the disk, durably.
    pub applied_through: LogPoint,
    /// What was known stable.
    pub stable: Sequence,
    /// What was known durable in this journal.
    pub durable: Sequence,
    /// The position that the blocks are complete for while the copy is not UpToDate; `None` if for none.
    pub data_base: Option<Position>,
    /// How often the data was discarded; with `replica` it names the copy.
    pub discards: u64,
    /// Nothing beyond this sequence is applied; 0 is no limit.
    pub apply_limit: Sequence,
    /// Because of a delay nothing beyond this sequence is applied yet, as far as that is known.
    pub apply_reach: Option<Sequence>,
    /// Names what clients are attached to; changes when a session must not go on.
    pub export_generation: u64,
    /// Bad superblock copies found and repaired so far.
    pub repairs: u64,
    /// The saved dirty maps.
    pub maps: Maps,
    /// An operator gave up what this copy holds beyond the common point: it is kept as a branch, then overwritten.
    pub yields: bool,
    /// The branch is kept. Blocks differ from what the copy is complete for, and the branch names them.
    pub diverges: bool,
    /// When the last entry of the log was sequenced, in milliseconds since 1970 by the Primary's clock; 0 if not known.
    pub head_ms: u64,
    /// When the newest reign of the log began, likewise.
    pub reign_ms: u64,
    /// Since when `apply_limit` stands, by the clock here; 0 if not known.
    pub frozen_ms: u64,
    /// The end of the log that the branch was kept of.
    pub branch: Base,
    /// The journal device has checksums of the blocks at rest.
    pub sums: bool,
    /// The journal device has room for bookmarks.
    pub bookmark_room: bool,
    /// There are bookmarks: their table was written with the dirty maps.
    pub bookmarks: bool,
    /// Blocks may have been written in place that no stored bookmark knows of.
    pub bookmarks_behind: bool,
    /// The last scrub that went through to its end.
    pub scrub: ScrubRecord,
    /// Blocks that wait in the ring to be put in place.
    pub gathered: Option<Gathered>,
    /// Bytes that the journal keeps for one dirty map: as many as the volume needed when the journal was made.
    pub map_bytes: u64,
    /// The reigns of the log.
    pub history: History,
}

/// Why bytes are not a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SuperblockError {
    /// Fewer bytes than a superblock has.
    #[error("the superblock is cut short")]
    Short,
    /// Not the magic number.
    #[error("no superblock here (bad magic)")]
    Magic,
    /// A version this program does not know.
    #[error(
        "superblock version {0} is not known to this program (it knows {DISK_VERSION_MIN} to {DISK_VERSION})"
    )]
    Version(u16),
    /// The CRC does not match.
    #[error("the superblock does not match its checksum")]
    Crc,
    /// A field outside its limits.
    #[error("the superblock's {0} is out of bounds")]
    Bounds(&'static str),
}

impl From<Short> for SuperblockError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

impl Superblock {
    /// Encodes one copy.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        let mut writer = Writer::new(&mut bytes);
        writer.u64(MAGIC).u32(0).u16(DISK_VERSION).u16(0).u64(self.sequence);
        writer.u128(self.volume.0).u64(self.incarnation.0).u128(self.replica);
        writer.u64(self.volume_bytes).u64(self.journal_bytes).u64(self.window_bytes);
        writer.u64(self.disk_fingerprint).u32(self.block_bytes);
        writer.u8(self.node.0).u8(self.disk_state as u8);
        writer.u8(u8::from(self.suspect)).u8(u8::from(self.clean)).u8(u8::from(self.proven));
        writer.u8(u8::from(self.volatile_acks)).u8(u8::from(self.data_base.is_some())).zeros(5);
        writer.u128(self.boot_id).u64(self.promised.0);
        self.record.encode(&mut writer);
        writer.u64(self.cut.count).u64(self.cut.first.0);
        self.tail.encode(&mut writer);
        self.applied_through.encode(&mut writer);
        writer.u64(self.stable.0).u64(self.durable.0);
        let data_base = self.data_base.unwrap_or_default();
        writer.u64(data_base.epoch.0).u64(data_base.sequence.0);
        writer.u64(self.apply_limit.0).u64(self.export_generation).u64(self.repairs);
        writer.u32(u32::try_from(self.history.reigns().len()).expect("bounded")).zeros(4).u64(self.discards);
        assert!(writer.written() == MAPS_FIELDS_AT);
        self.maps.encode(&mut writer);
        assert!(writer.written() == FORK_FIELDS_AT);
        writer.u8(u8::from(self.yields)).u8(u8::from(self.diverges)).u8(u8::from(self.sums));
        writer.u8(u8::from(self.bookmark_room)).u8(u8::from(self.bookmarks));
        writer.u8(u8::from(self.bookmarks_behind)).zeros(2);
        writer.u64(self.head_ms).u64(self.reign_ms).u64(self.frozen_ms);
        let branch = self.branch.position;
        writer.u64(branch.epoch.0).u64(branch.sequence.0).u128(self.branch.chain.0);
        writer.u64(self.scrub.ended_ms).u64(self.scrub.blocks).u64(self.scrub.bad_blocks);
        let Gathered { from, to, items } = self.gathered.unwrap_or_default();
        writer.u8(u8::from(self.gathered.is_some())).zeros(7).u64(from.0).u64(to.0).u64(items);
        writer.u64(self.apply_reach.map_or(0, |reach| reach.next().0));
        assert!(writer.written() <= SIZE_FIELDS_AT, "these fields end before those of the size");
        let mut writer = Writer::new(&mut bytes[SIZE_FIELDS_AT..HISTORY_AT]);
        writer.u64(self.map_bytes);
        let mut writer = Writer::new(&mut bytes[HISTORY_AT..]);
        encode_history(&self.history, &mut writer);
        let crc = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes one copy.
    ///
    /// # Errors
    /// Whatever makes these bytes no superblock.
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let bytes = bytes.get(..SUPERBLOCK_BYTES).ok_or(SuperblockError::Short)?;
        let mut reader = Reader::new(bytes);
        if reader.u64()? != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let (crc, version) = (reader.u32()?, reader.u16()?);
        if !(DISK_VERSION_MIN..=DISK_VERSION).contains(&version) {
            return Err(SuperblockError::Version(version));
        }
        if crc32fast::hash(&bytes[12..]) != crc {
            return Err(SuperblockError::Crc);
        }
        reader.skip(2)?;
        let mut superblock = decode_fields(&mut reader, &bytes[HISTORY_AT..])?;
        superblock.map_bytes = match version {
            ..5 => map_bytes_of(superblock.volume_bytes),
            _ => Reader::new(&bytes[SIZE_FIELDS_AT..]).u64()?,
        };
        if version == 1 {
            // Zeros there name no maps.
            superblock.maps = Maps::default();
        }
        superblock.check()?;
        Ok(superblock)
    }

    /// Where things lie in the journal.
    ///
    /// # Errors
    /// [`LayoutError`] if the sizes do not go together.
    pub fn layout(&self) -> Result<Layout, LayoutError> {
        Layout::with_maps(
            self.volume_bytes,
            self.map_bytes,
            self.journal_bytes,
            self.sums,
            self.bookmark_room,
        )
    }

    fn check(&self) -> Result<(), SuperblockError> {
        let (tail, applied) = (self.tail.position.sequence, self.applied_through.position.sequence);
        if tail > applied || self.tail.ring_offset > self.applied_through.ring_offset {
            return Err(SuperblockError::Bounds("tail"));
        }
        for RingOffset(offset) in [self.tail.ring_offset, self.applied_through.ring_offset] {
            if !offset.is_multiple_of(PAGE_BYTES as u64) || offset > 1 << 62 {
                return Err(SuperblockError::Bounds("ring offset"));
            }
        }
        if let Some(Gathered { from, to, .. }) = self.gathered {
            let is_aligned =
                from.0.is_multiple_of(PAGE_BYTES as u64) && to.0.is_multiple_of(PAGE_BYTES as u64);
            if !is_aligned || from > to || to > self.tail.ring_offset {
                return Err(SuperblockError::Bounds("gathered blocks"));
            }
        }
        if self.sequence >= 1 << 56 {
            return Err(SuperblockError::Bounds("sequence"));
        }
        if applied > self.stable || self.stable.0 > u64::MAX / 2 {
            return Err(SuperblockError::Bounds("stable mark"));
        }
        if self.block_bytes != 512 && self.block_bytes != 4096 {
            return Err(SuperblockError::Bounds("block size"));
        }
        let newest = self.history.newest().map_or(Epoch(0), |reign| reign.epoch);
        let log = self.applied_through.position.epoch.max(self.tail.position.epoch);
        if self.record.epoch.max(newest).max(log) > self.promised || self.promised.0 > 1 << 48 {
            return Err(SuperblockError::Bounds("promise"));
        }
        if self.node.0 >= 32 {
            return Err(SuperblockError::Bounds("node"));
        }
        let sound = |slot: &MapHead| slot.held.0.max(slot.base.position.sequence.0) <= u64::MAX / 2;
        if self.maps.copy > 1 || !self.maps.slots.iter().all(sound) {
            return Err(SuperblockError::Bounds("maps"));
        }
        Ok(())
    }
}

fn decode_fields(reader: &mut Reader<'_>, history: &[u8]) -> Result<Superblock, SuperblockError> {
    let mut sb = Superblock { sequence: reader.u64()?, ..Superblock::default() };
    sb.volume = VolumeId(reader.u128()?);
    sb.incarnation = Incarnation(reader.u64()?);
    sb.replica = reader.u128()?;
    (sb.volume_bytes, sb.journal_bytes, sb.window_bytes) = (reader.u64()?, reader.u64()?, reader.u64()?);
    (sb.disk_fingerprint, sb.block_bytes, sb.node) = (reader.u64()?, reader.u32()?, NodeId(reader.u8()?));
    sb.disk_state = DiskState::from_byte(reader.u8()?).ok_or(SuperblockError::Bounds("disk state"))?;
    (sb.suspect, sb.clean, sb.proven) = (reader.u8()? != 0, reader.u8()? != 0, reader.u8()? != 0);
    sb.volatile_acks = reader.u8()? != 0;
    let has_data_base = reader.u8()? != 0;
    reader.skip(5)?;
    sb.boot_id = reader.u128()?;
    sb.promised = Epoch(reader.u64()?);
    sb.record = Record::decode(reader)?;
    sb.cut = Cut { count: reader.u64()?, first: Sequence(reader.u64()?) };
    sb.tail = LogPoint::decode(reader)?;
    sb.applied_through = LogPoint::decode(reader)?;
    (sb.stable, sb.durable) = (Sequence(reader.u64()?), Sequence(reader.u64()?));
    let data_base = Position { epoch: Epoch(reader.u64()?), sequence: Sequence(reader.u64()?) };
    sb.data_base = has_data_base.then_some(data_base);
    sb.apply_limit = Sequence(reader.u64()?);
    (sb.export_generation, sb.repairs) = (reader.u64()?, reader.u64()?);
    let count = reader.u32()?;
    reader.skip(4)?;
    sb.discards = reader.u64()?;
    sb.maps = Maps::decode(reader)?;
    (sb.yields, sb.diverges, sb.sums) = (reader.u8()? != 0, reader.u8()? != 0, reader.u8()? != 0);
    (sb.bookmark_room, sb.bookmarks) = (reader.u8()? != 0, reader.u8()? != 0);
    sb.bookmarks_behind = reader.u8()? != 0;
    reader.skip(2)?;
    (sb.head_ms, sb.reign_ms, sb.frozen_ms) = (reader.u64()?, reader.u64()?, reader.u64()?);
    sb.branch.position = Position { epoch: Epoch(reader.u64()?), sequence: Sequence(reader.u64()?) };
    sb.branch.chain = Chain(reader.u128()?);
    sb.scrub = ScrubRecord { ended_ms: reader.u64()?, blocks: reader.u64()?, bad_blocks: reader.u64()? };
    let is_gathered = reader.u8()? != 0;
    reader.skip(7)?;
    let (from, to) = (RingOffset(reader.u64()?), RingOffset(reader.u64()?));
    sb.gathered = Some(Gathered { from, to, items: reader.u64()? }).filter(|_| is_gathered);
    sb.apply_reach = reader.u64()?.checked_sub(1).map(Sequence);
    sb.history =
        decode_history(&mut Reader::new(history), count)?.ok_or(SuperblockError::Bounds("history"))?;
    Ok(sb)
}

/// Appends the reigns of a history, oldest first.
pub(crate) fn encode_history(history: &History, writer: &mut Writer<'_>) {
    for reign in history.reigns() {
        writer.u64(reign.epoch.0).u128(reign.reign.0).u64(reign.first.0).u128(reign.chain_before.0);
    }
}

/// Reads `count` reigns; `None` if they are too many or out of order.
pub(crate) fn decode_history(reader: &mut Reader<'_>, count: u32) -> Result<Option<History>, Short> {
    let mut history = History::default();
    if count as usize > HISTORY_MAX {
        return Ok(None);
    }
    for _ in 0..count {
        let (epoch, reign) = (Epoch(reader.u64()?), ReignId(reader.u128()?));
        let (first, chain_before) = (Sequence(reader.u64()?), Chain(reader.u128()?));
        if history.newest().is_some_and(|newest| epoch <= newest.epoch || first <= newest.first) {
            return Ok(None);
        }
        history.push(Reign { epoch, reign, first, chain_before });
    }
    Ok(Some(history))
}

/// Which of two copies counts, and whether the other one must be repaired.
///
/// # Errors
/// If neither is sound: what is wrong with the first.
pub fn choose(copies: [&[u8]; 2]) -> Result<(Superblock, bool), SuperblockError> {
    match copies.map(Superblock::decode) {
        [Ok(a), Ok(b)] if a.sequence == b.sequence => Ok((a, false)),
        [Ok(a), Ok(b)] => Ok((if a.sequence > b.sequence { a } else { b }, true)),
        [Ok(sound), Err(_)] | [Err(_), Ok(sound)] => Ok((sound, true)),
        [Err(error), Err(other)] => Err(if error == SuperblockError::Magic { other } else { error }),
    }
}
