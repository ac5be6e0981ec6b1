//! The envelope in front of every message between replicas: what fencing checks. Drawn in `docs/formats.md`.

use thiserror::Error;

use crate::bytes::{Reader, Short, Writer};
use crate::limits::{BLOCKS_BYTES_MAX, FRAME_BYTES_MAX, MESSAGE_BODY_BYTES_MAX};
use crate::units::{Epoch, Incarnation, ReignId, Sequence, VolumeId};

const MAGIC: u32 = u32::from_le_bytes(*b"HFm1");
/// Bytes of an envelope.
pub const ENVELOPE_BYTES: usize = 96;
/// Version of the wire format; see the history in `docs/formats.md`.
pub const WIRE_VERSION: u16 = 5;

/// What the body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageKind {
    /// Who I am and what I hold; the first message each way.
    Hello = 1,
    /// Primary to replica: the stream begins after this point.
    Start = 2,
    /// Primary to replica: a frame.
    Frame = 3,
    /// Primary to replica: only the envelope's positions are new.
    Mark = 4,
    /// Replica to primary: what I have.
    Ack = 5,
    /// Would-be primary to member: promise this epoch and say what you hold.
    Seal = 6,
    /// Member to would-be primary: promised, or why not.
    Sealed = 7,
    /// Primary to replica: the record changed.
    Record = 8,
    /// I will not talk to you, because of this.
    Refuse = 9,
    /// Are you there.
    Ping = 10,
    /// Source to target: the stream begins, and blocks will come with it.
    Resync = 11,
    /// Source to target: what do these blocks hold.
    Compare = 12,
    /// Target to source: this.
    Hashes = 13,
    /// Source to target: blocks, an item of the stream.
    Blocks = 14,
    /// Target to source: which items are written, and durable.
    Placed = 15,
    /// Source to target: that was all.
    Finish = 16,
    /// Target to source: blocks and stream are gathered here, and count when all are.
    Staging = 17,
    /// Primary to replica: what these blocks hold here; compare.
    Check = 40,
    /// Replica to primary: what came of it.
    Checked = 41,
    /// Primary to replica: write this block.
    Mend = 42,
    /// Primary to replica: what does this block hold.
    Fetch = 43,
    /// Replica to primary: this.
    Fetched = 44,
    /// Replica to primary: this block is bad here; send it.
    Ask = 45,
    /// Both ways: blocks that changed here since the common point of two logs that parted.
    Changed = 50,
    /// Primary to replica: have room for a volume of this size.
    Grow = 60,
    /// Replica to primary: there is room, or why not.
    Grown = 61,
}

impl MessageKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Start,
            3 => Self::Frame,
            4 => Self::Mark,
            5 => Self::Ack,
            6 => Self::Seal,
            7 => Self::Sealed,
            8 => Self::Record,
            9 => Self::Refuse,
            10 => Self::Ping,
            11 => Self::Resync,
            12 => Self::Compare,
            13 => Self::Hashes,
            14 => Self::Blocks,
            15 => Self::Placed,
            16 => Self::Finish,
            17 => Self::Staging,
            40 => Self::Check,
            41 => Self::Checked,
            42 => Self::Mend,
            43 => Self::Fetch,
            44 => Self::Fetched,
            45 => Self::Ask,
            50 => Self::Changed,
            60 => Self::Grow,
            61 => Self::Grown,
            _ => return None,
        })
    }

    /// Whether the body goes into a buffer of the arena, in whole pages with a CRC of its own.
    #[must_use]
    pub fn is_bulk(self) -> bool {
        matches!(self, Self::Frame | Self::Blocks)
    }

    /// Bytes the body may have.
    #[must_use]
    pub fn body_bytes_max(self) -> usize {
        match self {
            Self::Frame => FRAME_BYTES_MAX,
            Self::Blocks => BLOCKS_BYTES_MAX,
            _ => MESSAGE_BODY_BYTES_MAX,
        }
    }
}

/// The fixed part of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What the body is.
    pub kind: MessageKind,
    /// The receiver should sync its journal at once and acknowledge.
    pub sync: bool,
    /// Bytes of the body that follows.
    pub body_bytes: u32,
    /// CRC-32 of the body; 0 for frames and blocks, which carry their own.
    pub body_crc: u32,
    /// The sender's cluster incarnation.
    pub incarnation: Incarnation,
    /// The volume.
    pub volume: VolumeId,
    /// The sender's number of this session; acks count only within it.
    pub session: u64,
    /// The epoch the session serves.
    pub epoch: Epoch,
    /// Identity of that reign.
    pub reign: ReignId,
    /// What the sender knows committed.
    pub committed: Sequence,
    /// What the sender knows stable.
    pub stable: Sequence,
}

/// Why bytes are not an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// Fewer bytes than an envelope has.
    #[error("the message is cut short")]
    Short,
    /// Not the magic number.
    #[error("no message here (bad magic)")]
    Magic,
    /// A version this program does not know.
    #[error("wire version {0} is not known to this program (it knows {WIRE_VERSION})")]
    Version(u16),
    /// The CRC does not match.
    #[error("the message's envelope does not match its checksum")]
    Crc,
    /// A kind this program does not know.
    #[error("message kind {0} is not known to this program")]
    Kind(u8),
    /// The body is longer than its kind allows.
    #[error("a message body of {0} bytes is over the limit of its kind")]
    BodyLength(u32),
}

impl From<Short> for EnvelopeError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

impl Envelope {
    /// Encodes the envelope.
    #[must_use]
    pub fn encode(&self) -> [u8; ENVELOPE_BYTES] {
        let mut bytes = [0; ENVELOPE_BYTES];
        let mut writer = Writer::new(&mut bytes);
        writer.u32(MAGIC).u32(0).u16(WIRE_VERSION).u8(self.kind as u8).u8(u8::from(self.sync));
        writer.u32(self.body_bytes).u32(self.body_crc).u32(0).u64(self.incarnation.0);
        writer.u128(self.volume.0).u64(self.session).u64(self.epoch.0).u128(self.reign.0);
        writer.u64(self.committed.0).u64(self.stable.0);
        assert!(writer.written() == ENVELOPE_BYTES);
        let crc = crc32fast::hash(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes the envelope that `bytes` begins with.
    ///
    /// # Errors
    /// Whatever makes these bytes no envelope; the length is bounded by the kind before anyone allocates by it.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let bytes = bytes.get(..ENVELOPE_BYTES).ok_or(EnvelopeError::Short)?;
        let mut reader = Reader::new(bytes);
        if reader.u32()? != MAGIC {
            return Err(EnvelopeError::Magic);
        }
        if reader.u32()? != crc32fast::hash(&bytes[8..]) {
            return Err(EnvelopeError::Crc);
        }
        let (version, kind, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
        if version != WIRE_VERSION {
            return Err(EnvelopeError::Version(version));
        }
        let kind = MessageKind::from_byte(kind).ok_or(EnvelopeError::Kind(kind))?;
        let (body_bytes, body_crc) = (reader.u32()?, reader.u32()?);
        if body_bytes as usize > kind.body_bytes_max() {
            return Err(EnvelopeError::BodyLength(body_bytes));
        }
        reader.skip(4)?;
        Ok(Self {
            kind,
            sync: flags & 1 == 1,
            body_bytes,
            body_crc,
            incarnation: Incarnation(reader.u64()?),
            volume: VolumeId(reader.u128()?),
            session: reader.u64()?,
            epoch: Epoch(reader.u64()?),
            reign: ReignId(reader.u128()?),
            committed: Sequence(reader.u64()?),
            stable: Sequence(reader.u64()?),
        })
    }
}
