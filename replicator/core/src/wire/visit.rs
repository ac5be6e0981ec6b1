//! Bodies of the messages with which two copies are compared and repaired: what blocks hold at one point of the stream.
//! Drawn in `docs/formats.md`.

use alloc::boxed::Box;

use super::message::MessageError;
use crate::bytes::{Reader, Writer};
use crate::dirty::{BLOCK_BYTES, WORD_BLOCKS};
use crate::units::Sequence;

/// What the sender's blocks hold after an entry: the receiver compares its own at just that point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Names the verify; another one than before makes the receiver forget what it found.
    pub run: u64,
    /// Names the question in its session.
    pub number: u64,
    /// The blocks hold what they do after this entry.
    pub point: Sequence,
    /// Which word of the volume.
    pub word: u64,
    /// Its blocks, a bit each.
    pub bits: u64,
    /// One XXH3-128 for each bit, in order.
    pub hashes: [u128; WORD_BLOCKS as usize],
}

/// What came of a [`Check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The question.
    pub number: u64,
    /// There was no memory for it: ask again.
    pub is_busy: bool,
    /// The blocks that hold something else, those that cannot be read among them.
    pub differs: u64,
    /// The blocks that cannot be read.
    pub unreadable: u64,
    /// What those hold that differ and can be read, one XXH3-128 each, in order.
    pub hashes: [u128; WORD_BLOCKS as usize],
}

/// One block as it is after an entry: the receiver writes it in place at just that point.
#[derive(Clone, PartialEq, Eq)]
pub struct Mend {
    /// After this entry.
    pub point: Sequence,
    /// Which block of 4096 bytes.
    pub block: u64,
    /// Its bytes; the last block of a volume may be a part of one.
    pub bytes: Box<[u8]>,
}

/// What does this block hold after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Names the question in its session.
    pub number: u64,
    /// After this entry.
    pub point: Sequence,
    /// Which block of 4096 bytes.
    pub block: u64,
}

/// The answer to a [`Fetch`].
#[derive(Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The question.
    pub number: u64,
    /// The block's bytes; `None` if they cannot be read here.
    pub bytes: Option<Box<[u8]>>,
}

impl core::fmt::Debug for Mend {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mend").field("point", &self.point).field("block", &self.block).finish_non_exhaustive()
    }
}

impl core::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Fetched").field("number", &self.number).finish_non_exhaustive()
    }
}

fn encode_hashes(writer: &mut Writer<'_>, bits: u64, hashes: &[u128]) {
    for hash in &hashes[..bits.count_ones() as usize] {
        writer.u128(*hash);
    }
}

fn decode_hashes(reader: &mut Reader<'_>, bits: u64) -> Result<[u128; WORD_BLOCKS as usize], MessageError> {
    let mut hashes = [0; WORD_BLOCKS as usize];
    for hash in &mut hashes[..bits.count_ones() as usize] {
        *hash = reader.u128()?;
    }
    Ok(hashes)
}

/// The rest of a body is a block, or a part of the last one.
fn decode_block(reader: &mut Reader<'_>) -> Result<Box<[u8]>, MessageError> {
    let length = reader.left();
    if length == 0 || length > BLOCK_BYTES as usize {
        return Err(MessageError::Bounds("block"));
    }
    Ok(Box::from(reader.raw(length)?))
}

impl Check {
    pub(super) fn encode(&self, writer: &mut Writer<'_>) {
        writer.u64(self.run).u64(self.number).u64(self.point.0).u64(self.word).u64(self.bits);
        encode_hashes(writer, self.bits, &self.hashes);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (run, number, point) = (reader.u64()?, reader.u64()?, Sequence(reader.u64()?));
        let (word, bits) = (reader.u64()?, reader.u64()?);
        Ok(Self { run, number, point, word, bits, hashes: decode_hashes(reader, bits)? })
    }
}

impl Checked {
    pub(super) fn encode(&self, writer: &mut Writer<'_>) {
        writer.u64(self.number).u8(u8::from(self.is_busy)).zeros(7).u64(self.differs).u64(self.unreadable);
        encode_hashes(writer, self.differs & !self.unreadable, &self.hashes);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (number, is_busy) = (reader.u64()?, reader.u8()? != 0);
        reader.skip(7)?;
        let (differs, unreadable) = (reader.u64()?, reader.u64()?);
        if unreadable & !differs != 0 {
            return Err(MessageError::Bounds("blocks"));
        }
        let hashes = decode_hashes(reader, differs & !unreadable)?;
        Ok(Self { number, is_busy, differs, unreadable, hashes })
    }
}

impl Mend {
    pub(super) fn encode(&self, writer: &mut Writer<'_>) {
        writer.u64(self.point.0).u64(self.block).raw(&self.bytes);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (point, block) = (Sequence(reader.u64()?), reader.u64()?);
        Ok(Self { point, block, bytes: decode_block(reader)? })
    }
}

impl Fetch {
    pub(super) fn encode(&self, writer: &mut Writer<'_>) {
        writer.u64(self.number).u64(self.point.0).u64(self.block);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { number: reader.u64()?, point: Sequence(reader.u64()?), block: reader.u64()? })
    }
}

impl Fetched {
    pub(super) fn encode(&self, writer: &mut Writer<'_>) {
        writer.u64(self.number);
        if let Some(bytes) = &self.bytes {
            writer.raw(bytes);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let number = reader.u64()?;
        let bytes = if reader.left() == 0 { None } else { Some(decode_block(reader)?) };
        Ok(Self { number, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MESSAGE_BODY_BYTES_MAX;
    use crate::wire::message::Message;
    use alloc::vec;

    #[test]
    fn bodies_go_there_and_back() {
        let hashes = core::array::from_fn(|n| if n < 2 { n as u128 + 1 } else { 0 });
        let point = Sequence(7);
        let check = Check { run: 1, number: 2, point, word: 3, bits: 0b101, hashes };
        let checked = Checked { number: 2, is_busy: false, differs: 0b111, unreadable: 0b10, hashes };
        let bytes: Box<[u8]> = vec![5; 4096].into();
        for message in [
            Message::Check(Box::new(check)),
            Message::Checked(Box::new(checked)),
            Message::Mend(Mend { point, block: 9, bytes: bytes.clone() }),
            Message::Fetch(Fetch { number: 1, point, block: 9 }),
            Message::Fetched(Fetched { number: 1, bytes: Some(bytes) }),
            Message::Fetched(Fetched { number: 1, bytes: None }),
        ] {
            let mut body = [0; MESSAGE_BODY_BYTES_MAX];
            let length = message.encode(&mut body);
            assert_eq!(Message::decode(message.kind(), &body[..length]), Ok(message.clone()));
            if !matches!(message, Message::Mend(_) | Message::Fetched(_)) {
                assert_eq!(
                    Message::decode(message.kind(), &body[..length + 1]),
                    Err(MessageError::Long(1)),
                    "{message:?}"
                );
                assert_eq!(Message::decode(message.kind(), &body[..length - 1]), Err(MessageError::Short));
            }
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let mend = |length: usize| {
            let body = vec![0; 16 + length];
            Message::decode(crate::wire::envelope::MessageKind::Mend, &body).is_ok()
        };
        assert!(mend(512) && mend(4096) && !mend(0) && !mend(4097));
    }
}
