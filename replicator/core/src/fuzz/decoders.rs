//! Hostile bytes for one decoder at a time: what is accepted must be the same after it was encoded again.

use alloc::vec;
use alloc::vec::Vec;

use super::journal::Pages;
use super::rig::Rig;
use super::{JOURNAL_BYTES, VOLUME, VOLUME_BYTES, put};
use crate::chain;
use crate::disk::layout::{SUPERBLOCK_BYTES, map_bytes_of};
use crate::disk::superblock::{self, Superblock};
use crate::event::AdminAction;
use crate::frame::{self, Entry};
use crate::limits::{FRAME_BYTES_MAX, FRAME_ENTRIES_MAX, FRAME_HEADER_BYTES, MESSAGE_BODY_BYTES_MAX};
use crate::recovery::recover;
use crate::units::{PAGE_BYTES, Position, ReignId, Sequence};
use crate::wire::auth::{self, Challenge};
use crate::wire::envelope::{ENVELOPE_BYTES, Envelope, MessageKind};
use crate::wire::message::Message;

/// Makes the checksum, and if `chained` the chain, of the frame header in `block` sound, whatever else it says.
pub(super) fn seal_frame(block: &mut [u8], chained: bool) {
    put(block, 0, b"HF-FRAME");
    put(block, 12, &frame::FRAME_VERSION.to_le_bytes());
    let mut count = [0; 4];
    count.copy_from_slice(&block[20..24]);
    let count = u32::from_le_bytes(count) % (FRAME_ENTRIES_MAX as u32 + 1);
    put(block, 20, &count.to_le_bytes());
    let end = 192 + count as usize * chain::ENTRY_BYTES;
    if chained {
        let header = frame::decode_trusted(block);
        let mut value = header.chain_before;
        for (index, entry) in frame::entries(block, &header).enumerate() {
            let Ok(entry) = entry else { break };
            let sequence = Sequence(header.first.0.wrapping_add(index as u64));
            value = chain::extend(
                value,
                Position { epoch: header.epoch, sequence },
                header.reign,
                &entry.encode(),
            );
        }
        put(block, 56, &value.0.to_le_bytes());
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[12..128]);
    hasher.update(&block[192..end]);
    put(block, 8, &hasher.finalize().to_le_bytes());
}

/// A frame: as it comes (first byte even), or with sound checksums.
///
/// # Panics
/// If a frame that was accepted is not the same after it was encoded again.
pub fn fuzz_frame(data: &[u8]) {
    let Some((style, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    bytes.truncate(FRAME_BYTES_MAX);
    if style & 1 == 1 {
        bytes.resize(bytes.len().max(FRAME_HEADER_BYTES).next_multiple_of(PAGE_BYTES), 0);
        if style & 4 == 4 {
            let total = u32::try_from(bytes.len()).expect("bounded");
            put(&mut bytes, 16, &total.to_le_bytes());
        }
        seal_frame(&mut bytes, style & 2 == 2);
    }
    let local = frame::decode_local(&bytes);
    let Ok(header) = frame::decode(&bytes) else { return };
    let entries: Result<Vec<Entry>, _> = frame::entries(&bytes, &header).collect();
    let entries = entries.expect("a frame that is accepted has sound entries");
    let _ = frame::check_payloads(&bytes, &header);
    assert_eq!(frame::decode_trusted(&bytes), header, "both decoders read the same");
    let mut again = vec![0; FRAME_HEADER_BYTES];
    assert_eq!(
        frame::encode(&mut again, header, entries.iter()),
        header,
        "encoded again, it is the same frame"
    );
    assert_eq!(frame::decode(&again), Ok(header));
    let decoded: Result<Vec<Entry>, _> = frame::entries(&again, &header).collect();
    assert_eq!(decoded, Ok(entries));
    if let Ok(local) = local {
        frame::encode_local(&mut again, &local);
        assert_eq!(frame::decode_local(&again), Ok(local));
    }
}

/// A superblock: as it comes (first byte even), or with a sound checksum; and a start from it on an empty journal,
/// with a promotion if the second bit is set.
///
/// # Panics
/// If a superblock that was accepted is not the same after it was encoded again.
pub fn fuzz_superblock(data: &[u8]) {
    let Some((style, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if style & 1 == 1 {
        bytes.resize(SUPERBLOCK_BYTES, 0);
        put(&mut bytes, 0, b"HOLDFAST");
        put(&mut bytes, 12, &superblock::DISK_VERSION.to_le_bytes());
        let crc = crc32fast::hash(&bytes[12..]);
        put(&mut bytes, 8, &crc.to_le_bytes());
    }
    let Ok(found) = Superblock::decode(&bytes) else { return };
    let again = found.encode();
    assert_eq!(Superblock::decode(&again), Ok(found), "encoded again, it is the same superblock");
    assert_eq!(superblock::choose([&again, &[]]), Ok((found, true)));
    if let Ok(recovered) = recover(&found, false, 1, &mut Pages::default()) {
        assert!(
            recovered.log.last() == found.applied_through.position.sequence,
            "there is nothing in the journal"
        );
        let of_rig = (found.volume_bytes, found.journal_bytes) == (VOLUME_BYTES, JOURNAL_BYTES)
            && found.map_bytes == map_bytes_of(VOLUME_BYTES);
        if style & 2 == 2 && of_rig && found.volume == VOLUME {
            let mut rig = Rig::new(recovered, Pages::default());
            rig.settle();
            rig.admin(AdminAction::Promote { force: true, reign: ReignId(9) });
            rig.settle();
        }
    }
}

/// An envelope: as it comes (first byte even), or with a sound checksum.
///
/// # Panics
/// If an envelope that was accepted is not the same after it was encoded again.
pub fn fuzz_envelope(data: &[u8]) {
    let Some((style, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if style & 1 == 1 {
        bytes.resize(bytes.len().max(ENVELOPE_BYTES), 0);
        put(&mut bytes, 0, b"HFm1");
        let crc = crc32fast::hash(&bytes[8..ENVELOPE_BYTES]);
        put(&mut bytes, 4, &crc.to_le_bytes());
    }
    let Ok(envelope) = Envelope::decode(&bytes) else { return };
    assert!(envelope.body_bytes as usize <= envelope.kind.body_bytes_max(), "no length goes unchecked");
    assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope), "encoded again, it is the same envelope");
}

pub(super) const KINDS: [MessageKind; 16] = [
    MessageKind::Hello,
    MessageKind::Start,
    MessageKind::Frame,
    MessageKind::Mark,
    MessageKind::Ack,
    MessageKind::Seal,
    MessageKind::Sealed,
    MessageKind::Record,
    MessageKind::Refuse,
    MessageKind::Ping,
    MessageKind::Resync,
    MessageKind::Compare,
    MessageKind::Hashes,
    MessageKind::Blocks,
    MessageKind::Placed,
    MessageKind::Finish,
];

/// A message's body, of the kind that the first byte names.
///
/// # Panics
/// If a message that was accepted is not the same after it was encoded again.
pub fn fuzz_message(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let body = &body[..body.len().min(MESSAGE_BODY_BYTES_MAX)];
    let Ok(message) = Message::decode(kind, body) else { return };
    assert_eq!(message.kind(), kind);
    let again = |message: &Message| {
        let mut bytes = [0; MESSAGE_BODY_BYTES_MAX];
        let length = message.encode(&mut bytes);
        Message::decode(kind, &bytes[..length]).expect("what was encoded can be decoded")
    };
    let second = again(&message);
    // A refusal's text may be shortened, once.
    assert!(second == message || kind == MessageKind::Refuse, "encoded again, it is the same message");
    assert_eq!(again(&second), second);
}

/// A challenge: as it comes (first byte even), or with a sound beginning.
///
/// # Panics
/// If a challenge that was accepted is not the same after it was encoded again.
pub fn fuzz_challenge(data: &[u8]) {
    let Some((style, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if style & 1 == 1 && bytes.len() >= 10 {
        let sound = Challenge { volume: VOLUME, nonce: [0; auth::NONCE_BYTES] }.encode();
        put(&mut bytes, 0, &sound[..10]);
    }
    let Ok(challenge) = Challenge::decode(&bytes) else { return };
    assert_eq!(
        Challenge::decode(&challenge.encode()),
        Ok(challenge),
        "encoded again, it is the same challenge"
    );
    for end in [auth::End::Dialer, auth::End::Listener] {
        let bytes = auth::transcript(end, &challenge, &challenge);
        assert!(bytes.ends_with(&challenge.volume.0.to_le_bytes()));
    }
}
