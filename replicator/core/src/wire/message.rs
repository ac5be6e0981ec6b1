//! The bodies of the messages between replicas, except frames. Each encodes into, and decodes from, the bytes
//! behind an envelope; decoders are total. Drawn in `docs/formats.md`.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use thiserror::Error;

use crate::bytes::{Reader, Short, Writer};
use crate::dirty::WORD_BLOCKS;
use crate::disk::superblock::{DiskState, LogPoint, Record, decode_history, encode_history};
use crate::history::History;
use crate::limits::MESSAGE_BODY_BYTES_MAX;
use crate::tracker::{Base, CopyId};
use crate::units::{Chain, Epoch, NodeId, Position, Sequence};
use crate::wire::envelope::MessageKind;
use crate::wire::visit::{Check, Checked, Fetch, Fetched, Mend};

/// No cluster ever comes near these; arithmetic on what a peer says stays in bounds.
const EPOCH_MAX: Epoch = Epoch(1 << 48);
const SEQUENCE_MAX: Sequence = Sequence(1 << 62);

/// What a replica tells a peer first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender.
    pub node: NodeId,
    /// Identity of the sender's copy.
    pub replica: u128,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Smallest unit a client may address.
    pub block_bytes: u32,
    /// Whether it is Primary now.
    pub primary: bool,
    /// Whether it cannot have lost volatile state since it last acknowledged.
    pub proven: bool,
    /// Whether its copy must be verified.
    pub suspect: bool,
    /// State of its copy.
    pub disk_state: DiskState,
    /// Highest epoch it promised.
    pub promised: Epoch,
    /// The newest record it was told.
    pub record: Record,
    /// End of its log.
    pub head: LogPoint,
    /// Oldest sequence after which its journal still has every entry.
    pub tail: Sequence,
    /// What it knows stable: the upper bound of what may be applied on its disk.
    pub stable: Sequence,
    /// What its journal holds durably.
    pub durable: Sequence,
    /// What it has applied.
    pub applied: Sequence,
    /// What its blocks are complete for while its copy is not UpToDate; `None` if for nothing.
    pub data_base: Option<Sequence>,
    /// How often its data was discarded.
    pub discards: u64,
    /// The reigns of its log.
    pub history: History,
    /// An operator gave up what it holds beyond the common point.
    pub yields: bool,
    /// Its blocks differ from what it is complete for, in those that it will name as [`Changed`].
    pub diverges: bool,
    /// Whose data an operator gave up here: that node is asked to yield.
    pub discards_of: Option<NodeId>,
    /// It applies late, by its configuration: what it has journaled counts, its disk is an earlier state.
    pub delayed: bool,
    /// What happened at the end of its log.
    pub end: LogEnd,
}

/// When a log grew last, and what its owner's peers may lack of its blocks: for people only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// When its last entry was sequenced, in milliseconds since 1970; 0 if not known.
    pub head_ms: u64,
    /// When its newest reign began, likewise.
    pub reign_ms: u64,
    /// Blocks that its peers may lack, those of the peer that may lack the most.
    pub changed_blocks: u64,
}

/// Words that one [`Changed`] may have.
pub const CHANGED_WORDS_MAX: usize = 500;

/// Blocks that changed since the common point, or a part of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// What changed cannot be told: it may be everything.
    pub everything: bool,
    /// Nothing follows.
    pub is_last: bool,
    /// Words of the dirty map, and their blocks, a bit each.
    pub words: Vec<(u64, u64)>,
}

impl Hello {
    /// Which copy of the data it speaks for.
    #[must_use]
    pub fn copy(&self) -> CopyId {
        CopyId { replica: self.replica, discards: self.discards }
    }

    /// Whether the replica was made and has never held anything: a volume of zeros.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.disk_state == DiskState::UpToDate
            && self.head.position.sequence == Sequence(0)
            && self.record.epoch == Epoch(0)
    }
}

/// A would-be primary's question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Names the attempt.
    pub attempt: u64,
    /// The epoch to promise.
    pub epoch: Epoch,
}

/// A member's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The attempt answered.
    pub attempt: u64,
    /// Whether the epoch was promised; if not, `promised` is the higher one that stands.
    pub granted: bool,
    /// Highest epoch promised, this one included.
    pub promised: Epoch,
    /// The newest record it was told.
    pub record: Record,
    /// State of its copy.
    pub disk_state: DiskState,
    /// Whether it cannot have lost volatile state.
    pub proven: bool,
    /// Whether its copy must be verified.
    pub suspect: bool,
    /// End of its log.
    pub head: LogPoint,
    /// What it has applied.
    pub applied: Sequence,
}

/// What a replica holds; cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Received into memory.
    pub received: Sequence,
    /// Written to the journal.
    pub journaled: Sequence,
    /// Durable in the journal.
    pub durable: Sequence,
    /// Applied to the disk.
    pub applied: Sequence,
}

/// Where the stream to a replica begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The last entry both hold; the replica cuts whatever it has beyond.
    pub common: Sequence,
    /// The record the stream serves.
    pub record: Record,
    /// Whether the primary counts what is only received (protocol B), and so wants to hear of it at once.
    pub acks_received: bool,
}

/// Where the stream to a replica begins that is brought level by blocks, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resync {
    /// As without blocks.
    pub start: Start,
    /// Whether every block is compared, for want of a map.
    pub is_full: bool,
    /// Where the target's log begins anew; `None` if it goes on from the common entry.
    pub jump: Option<Base>,
    /// The reigns up to there.
    pub history: History,
    /// Blocks that will be looked at, if the target may gather them before it gives up what it has; 0 if it may not.
    pub stageable_blocks: u64,
}

/// What some blocks of a word hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// The word of the dirty map.
    pub word: u64,
    /// Its blocks, a bit each.
    pub bits: u64,
    /// One XXH3-128 for each bit, in order.
    pub hashes: [u128; WORD_BLOCKS as usize],
}

/// A message body other than a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Start`].
    Start(Start),
    /// No body.
    Mark,
    /// See [`Ack`].
    Ack(Ack),
    /// See [`Seal`].
    Seal(Seal),
    /// See [`Sealed`].
    Sealed(Sealed),
    /// The record changed.
    Record(Record),
    /// Why the sender will not talk.
    Refuse(String),
    /// No body.
    Ping,
    /// See [`Resync`].
    Resync(Resync),
    /// Which blocks to hash.
    Compare {
        /// The word of the dirty map.
        word: u64,
        /// Its blocks, a bit each.
        bits: u64,
    },
    /// See [`Hashes`].
    Hashes(Box<Hashes>),
    /// How far the items of blocks have come; cumulative.
    Placed {
        /// Items written in place.
        written: u64,
        /// Items durable there.
        durable: u64,
        /// The copy is UpToDate, durably.
        is_done: bool,
    },
    /// No body.
    Finish,
    /// No body.
    Staging,
    /// See [`Check`].
    Check(Box<Check>),
    /// See [`Checked`].
    Checked(Box<Checked>),
    /// See [`Mend`].
    Mend(Mend),
    /// See [`Fetch`].
    Fetch(Fetch),
    /// See [`Fetched`].
    Fetched(Fetched),
    /// A block is bad at the sender, and wanted.
    Ask {
        /// Which block of 4096 bytes.
        block: u64,
    },
    /// See [`Changed`].
    Changed(Changed),
    /// Have room for a volume of this size.
    Grow {
        /// How many bytes.
        bytes: u64,
    },
    /// Whether there is room.
    Grown {
        /// For how many bytes.
        bytes: u64,
        /// Why not; empty if there is.
        reason: String,
    },
}

/// Why bytes are not the body they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// The body ended before its fields did.
    #[error("the message body is cut short")]
    Short,
    /// The body is longer than its fields.
    #[error("the message body has {0} bytes too many")]
    Long(usize),
    /// The body's CRC does not match.
    #[error("the message body does not match its checksum")]
    Crc,
    /// A field outside its limits.
    #[error("the message's {0} is out of bounds")]
    Bounds(&'static str),
    /// A frame is not decoded here.
    #[error("a frame came where a message was expected")]
    Frame,
}

impl From<Short> for MessageError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

impl Message {
    /// The kind that goes into the envelope.
    #[must_use]
    pub fn kind(&self) -> MessageKind {
        match self {
            Self::Hello(_) => MessageKind::Hello,
            Self::Start(_) => MessageKind::Start,
            Self::Mark => MessageKind::Mark,
            Self::Ack(_) => MessageKind::Ack,
            Self::Seal(_) => MessageKind::Seal,
            Self::Sealed(_) => MessageKind::Sealed,
            Self::Record(_) => MessageKind::Record,
            Self::Refuse(_) => MessageKind::Refuse,
            Self::Ping => MessageKind::Ping,
            Self::Resync(_) => MessageKind::Resync,
            Self::Compare { .. } => MessageKind::Compare,
            Self::Hashes(_) => MessageKind::Hashes,
            Self::Placed { .. } => MessageKind::Placed,
            Self::Finish => MessageKind::Finish,
            Self::Staging => MessageKind::Staging,
            Self::Check(_) => MessageKind::Check,
            Self::Checked(_) => MessageKind::Checked,
            Self::Mend(_) => MessageKind::Mend,
            Self::Fetch(_) => MessageKind::Fetch,
            Self::Fetched(_) => MessageKind::Fetched,
            Self::Ask { .. } => MessageKind::Ask,
            Self::Changed(_) => MessageKind::Changed,
            Self::Grow { .. } => MessageKind::Grow,
            Self::Grown { .. } => MessageKind::Grown,
        }
    }

    /// Encodes the body into `bytes` and returns how many it took.
    pub fn encode(&self, bytes: &mut [u8; MESSAGE_BODY_BYTES_MAX]) -> usize {
        let mut writer = Writer::new(bytes);
        match self {
            Self::Hello(hello) => hello.encode(&mut writer),
            Self::Start(start) => start.encode(&mut writer),
            Self::Resync(resync) => resync.encode(&mut writer),
            Self::Ack(ack) => {
                writer.u64(ack.received.0).u64(ack.journaled.0).u64(ack.durable.0).u64(ack.applied.0);
            }
            Self::Seal(seal) => {
                writer.u64(seal.attempt).u64(seal.epoch.0);
            }
            Self::Sealed(sealed) => sealed.encode(&mut writer),
            Self::Record(record) => record.encode(&mut writer),
            Self::Refuse(reason) => write_text(&mut writer, reason),
            Self::Grow { bytes } => {
                writer.u64(*bytes);
            }
            Self::Grown { bytes, reason } => {
                writer.u64(*bytes);
                write_text(&mut writer, reason);
            }
            Self::Compare { word, bits } => {
                writer.u64(*word).u64(*bits);
            }
            Self::Hashes(hashes) => {
                writer.u64(hashes.word).u64(hashes.bits);
                for hash in &hashes.hashes[..hashes.bits.count_ones() as usize] {
                    writer.u128(*hash);
                }
            }
            Self::Placed { written, durable, is_done } => {
                writer.u64(*written).u64(*durable).u8(u8::from(*is_done)).zeros(7);
            }
            Self::Check(check) => check.encode(&mut writer),
            Self::Checked(checked) => checked.encode(&mut writer),
            Self::Mend(mend) => mend.encode(&mut writer),
            Self::Fetch(fetch) => fetch.encode(&mut writer),
            Self::Fetched(fetched) => fetched.encode(&mut writer),
            Self::Ask { block } => {
                writer.u64(*block);
            }
            Self::Changed(changed) => changed.encode(&mut writer),
            Self::Mark | Self::Ping | Self::Finish | Self::Staging => {}
        }
        writer.written()
    }

    /// Decodes a body of `kind`.
    ///
    /// # Errors
    /// Whatever makes these bytes no such body.
    pub fn decode(kind: MessageKind, body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let message = match kind {
            MessageKind::Hello => Self::Hello(Hello::decode(&mut reader)?),
            MessageKind::Start => Self::Start(Start::decode(&mut reader)?),
            MessageKind::Resync => Self::Resync(Resync::decode(&mut reader)?),
            MessageKind::Compare => Self::Compare { word: reader.u64()?, bits: reader.u64()? },
            MessageKind::Hashes => Self::Hashes(Box::new(Hashes::decode(&mut reader)?)),
            MessageKind::Placed => {
                let (written, durable, is_done) = (reader.u64()?, reader.u64()?, reader.u8()? != 0);
                reader.skip(7)?;
                Self::Placed { written, durable, is_done }
            }
            MessageKind::Finish => Self::Finish,
            MessageKind::Staging => Self::Staging,
            MessageKind::Check => Self::Check(Box::new(Check::decode(&mut reader)?)),
            MessageKind::Checked => Self::Checked(Box::new(Checked::decode(&mut reader)?)),
            MessageKind::Mend => Self::Mend(Mend::decode(&mut reader)?),
            MessageKind::Fetch => Self::Fetch(Fetch::decode(&mut reader)?),
            MessageKind::Fetched => Self::Fetched(Fetched::decode(&mut reader)?),
            MessageKind::Ask => Self::Ask { block: reader.u64()? },
            MessageKind::Changed => Self::Changed(Changed::decode(&mut reader)?),
            MessageKind::Frame | MessageKind::Blocks => return Err(MessageError::Frame),
            MessageKind::Mark => Self::Mark,
            MessageKind::Ack => Self::Ack(Ack {
                received: Sequence(reader.u64()?),
                journaled: Sequence(reader.u64()?),
                durable: Sequence(reader.u64()?),
                applied: Sequence(reader.u64()?),
            }),
            MessageKind::Seal => Self::Seal(Seal { attempt: reader.u64()?, epoch: Epoch(reader.u64()?) }),
            MessageKind::Sealed => Self::Sealed(Sealed::decode(&mut reader)?),
            MessageKind::Record => Self::Record(Record::decode(&mut reader)?),
            MessageKind::Refuse => return Ok(Self::Refuse(read_text(body))),
            MessageKind::Grow => Self::Grow { bytes: reader.u64()? },
            MessageKind::Grown => {
                let bytes = reader.u64()?;
                return Ok(Self::Grown { bytes, reason: read_text(&body[8..]) });
            }
            MessageKind::Ping => Self::Ping,
        };
        if reader.left() > 0 {
            return Err(MessageError::Long(reader.left()));
        }
        if message.highest_epoch() > EPOCH_MAX || message.highest_sequence() > SEQUENCE_MAX {
            return Err(MessageError::Bounds("epoch or sequence"));
        }
        Ok(message)
    }

    fn highest_epoch(&self) -> Epoch {
        match self {
            Self::Hello(hello) => hello.promised.max(hello.record.epoch).max(hello.head.position.epoch),
            Self::Start(start) => start.record.epoch,
            Self::Seal(seal) => seal.epoch,
            Self::Sealed(sealed) => sealed.promised.max(sealed.record.epoch).max(sealed.head.position.epoch),
            Self::Record(record) => record.epoch,
            Self::Resync(resync) => resync.highest().epoch.max(resync.start.record.epoch),
            _ => Epoch(0),
        }
    }

    fn highest_sequence(&self) -> Sequence {
        match self {
            Self::Hello(hello) => hello.head.position.sequence.max(hello.stable).max(hello.durable),
            Self::Start(start) => start.common,
            Self::Resync(resync) => resync.highest().sequence.max(resync.start.common),
            Self::Sealed(sealed) => sealed.head.position.sequence.max(sealed.applied),
            Self::Ack(ack) => ack.received.max(ack.journaled).max(ack.durable).max(ack.applied),
            _ => Sequence(0),
        }
    }
}

fn write_text(writer: &mut Writer<'_>, text: &str) {
    writer.raw(&text.as_bytes()[..text.floor_char_boundary(1024)]);
}

fn read_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).collect()
}

impl Hello {
    fn encode(&self, writer: &mut Writer<'_>) {
        writer.u8(self.node.0).u8(u8::from(self.primary)).u8(u8::from(self.proven));
        writer.u8(u8::from(self.suspect)).u8(self.disk_state as u8);
        writer.u8(u8::from(self.data_base.is_some())).zeros(2);
        writer.u64(self.data_base.unwrap_or_default().0).u64(self.discards);
        writer.u128(self.replica).u64(self.volume_bytes).u32(self.block_bytes).u64(self.promised.0);
        self.record.encode(writer);
        self.head.encode(writer);
        writer.u64(self.tail.0).u64(self.stable.0).u64(self.durable.0).u64(self.applied.0);
        writer.u32(u32::try_from(self.history.reigns().len()).expect("bounded"));
        encode_history(&self.history, writer);
        let discards_of = self.discards_of.map_or(u8::MAX, |node| node.0);
        writer.u8(u8::from(self.yields)).u8(u8::from(self.diverges)).u8(discards_of);
        writer.u8(u8::from(self.delayed)).zeros(4);
        writer.u64(self.end.head_ms).u64(self.end.reign_ms).u64(self.end.changed_blocks);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (node, primary) = (NodeId(reader.u8()?), reader.u8()? != 0);
        let (proven, suspect) = (reader.u8()? != 0, reader.u8()? != 0);
        let disk_state = DiskState::decode(reader.u8()?).ok_or(MessageError::Bounds("disk state"))?;
        let has_data_base = reader.u8()? != 0;
        reader.skip(2)?;
        let data_base = Sequence(reader.u64()?);
        let (data_base, discards) = (has_data_base.then_some(data_base), reader.u64()?);
        let (replica, volume_bytes, block_bytes) = (reader.u128()?, reader.u64()?, reader.u32()?);
        let promised = Epoch(reader.u64()?);
        let record = Record::decode(reader)?;
        let head = LogPoint::decode(reader)?;
        let (tail, stable) = (Sequence(reader.u64()?), Sequence(reader.u64()?));
        let (durable, applied) = (Sequence(reader.u64()?), Sequence(reader.u64()?));
        let count = reader.u32()?;
        let history = decode_history(reader, count)?.ok_or(MessageError::Bounds("history"))?;
        let (yields, diverges, discards_of) = (reader.u8()? != 0, reader.u8()? != 0, reader.u8()?);
        let discards_of = (discards_of < 32).then_some(NodeId(discards_of));
        let delayed = reader.u8()? != 0;
        reader.skip(4)?;
        let (head_ms, reign_ms, changed_blocks) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let end = LogEnd { head_ms, reign_ms, changed_blocks };
        let last = head.position.sequence;
        if node.0 >= 32 || last.0 > u64::MAX / 2 {
            return Err(MessageError::Bounds("node or position"));
        }
        if tail > last || durable > last || applied > stable || record.epoch > promised {
            return Err(MessageError::Bounds("position"));
        }
        Ok(Self {
            node,
            replica,
            volume_bytes,
            block_bytes,
            primary,
            proven,
            suspect,
            disk_state,
            promised,
            record,
            head,
            tail,
            stable,
            durable,
            applied,
            data_base,
            discards,
            history,
            yields,
            diverges,
            discards_of,
            delayed,
            end,
        })
    }
}

impl Changed {
    fn encode(&self, writer: &mut Writer<'_>) {
        writer.u8(u8::from(self.everything)).u8(u8::from(self.is_last)).zeros(2);
        writer.u32(u32::try_from(self.words.len()).expect("bounded"));
        for (word, bits) in &self.words {
            writer.u64(*word).u64(*bits);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (everything, is_last) = (reader.u8()? != 0, reader.u8()? != 0);
        reader.skip(2)?;
        let count = reader.u32()? as usize;
        if count > CHANGED_WORDS_MAX {
            return Err(MessageError::Bounds("number of words"));
        }
        let mut words = Vec::with_capacity(count);
        for _ in 0..count {
            words.push((reader.u64()?, reader.u64()?));
        }
        Ok(Self { everything, is_last, words })
    }
}

impl Start {
    fn encode(&self, writer: &mut Writer<'_>) {
        writer.u64(self.common.0);
        self.record.encode(writer);
        writer.u8(u8::from(self.acks_received)).zeros(7);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (common, record) = (Sequence(reader.u64()?), Record::decode(reader)?);
        let acks_received = reader.u8()? != 0;
        reader.skip(7)?;
        Ok(Self { common, record, acks_received })
    }
}

impl Resync {
    fn encode(&self, writer: &mut Writer<'_>) {
        self.start.encode(writer);
        let Base { position, chain } = self.jump.unwrap_or_default();
        writer.u8(u8::from(self.is_full)).u8(u8::from(self.jump.is_some())).zeros(2);
        writer.u32(u32::try_from(self.history.reigns().len()).expect("bounded"));
        writer.u64(position.epoch.0).u64(position.sequence.0).u128(chain.0);
        writer.u64(self.stageable_blocks);
        encode_history(&self.history, writer);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let start = Start::decode(reader)?;
        let (is_full, jumps) = (reader.u8()? != 0, reader.u8()? != 0);
        reader.skip(2)?;
        let count = reader.u32()?;
        let position = Position { epoch: Epoch(reader.u64()?), sequence: Sequence(reader.u64()?) };
        let point = Base { position, chain: Chain(reader.u128()?) };
        let stageable_blocks = reader.u64()?;
        let jump = jumps.then_some(point);
        let history = decode_history(reader, count)?.ok_or(MessageError::Bounds("history"))?;
        let newest = history.newest().copied().unwrap_or_default();
        if jump.is_some() && (newest.epoch > position.epoch || newest.first > position.sequence) {
            return Err(MessageError::Bounds("history"));
        }
        if position.epoch > start.record.epoch {
            return Err(MessageError::Bounds("position"));
        }
        Ok(Self { start, is_full, jump, history, stageable_blocks })
    }

    fn highest(&self) -> Position {
        self.jump.unwrap_or_default().position
    }
}

impl Hashes {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (word, bits) = (reader.u64()?, reader.u64()?);
        let mut hashes = [0; WORD_BLOCKS as usize];
        for hash in &mut hashes[..bits.count_ones() as usize] {
            *hash = reader.u128()?;
        }
        Ok(Self { word, bits, hashes })
    }
}

impl Sealed {
    fn encode(&self, writer: &mut Writer<'_>) {
        writer.u64(self.attempt).u64(self.promised.0);
        self.record.encode(writer);
        writer.u8(u8::from(self.granted)).u8(self.disk_state as u8);
        writer.u8(u8::from(self.proven)).u8(u8::from(self.suspect)).zeros(4);
        self.head.encode(writer);
        writer.u64(self.applied.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (attempt, promised) = (reader.u64()?, Epoch(reader.u64()?));
        let record = Record::decode(reader)?;
        let (granted, state) = (reader.u8()? != 0, reader.u8()?);
        let disk_state = DiskState::decode(state).ok_or(MessageError::Bounds("disk state"))?;
        let (proven, suspect) = (reader.u8()? != 0, reader.u8()? != 0);
        reader.skip(4)?;
        let head = LogPoint::decode(reader)?;
        let applied = Sequence(reader.u64()?);
        Ok(Self { attempt, granted, promised, record, disk_state, proven, suspect, head, applied })
    }
}
