//! Golden bytes of both formats: what fixed values encode to, and decode from, must not change by accident. The
//! files lie beside this one; `BLESS=1` rewrites them, which is right only together with a new version number.

use std::path::Path;

use replicator_core::bookmarks::{BookmarkName, Bookmarks, Table};
use replicator_core::chain;
use replicator_core::dirty::DirtyMap;
use replicator_core::disk::superblock::{
    Cut, DiskState, Gathered, LogPoint, MapHead, Maps, Record, ScrubRecord, Superblock,
};
use replicator_core::frame::{self, Entry, EntryKind, FrameHeader, LocalPart};
use replicator_core::history::{History, Reign};
use replicator_core::limits::MESSAGE_BODY_BYTES_MAX;
use replicator_core::tracker::{Base, CopyId};
use replicator_core::units::{
    Chain, Epoch, Incarnation, NodeId, NodeSet, Position, ReignId, RingOffset, Sequence, VolumeId,
};
use replicator_core::wire::auth::{Challenge, End, transcript};
use replicator_core::wire::blocks::BlocksHeader;
use replicator_core::wire::envelope::{Envelope, MessageKind};
use replicator_core::wire::message::{
    Ack, Changed, Hashes, Hello, LogEnd, Message, Resync, Seal, Sealed, Start,
};
use replicator_core::wire::visit::{Check, Checked, Fetch, Fetched, Mend};

const VOLUME: VolumeId = VolumeId(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
const REIGN: ReignId = ReignId(0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110);
const CHAIN: Chain = Chain(0x2f2e_2d2c_2b2a_2928_2726_2524_2322_2120);
const REPLICA: u128 = 0x3f3e_3d3c_3b3a_3938_3736_3534_3332_3130;

/// The bytes of the file `name`, after they were found to be `encoded`.
fn golden(name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("bin");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, encoded).unwrap();
    }
    let stored = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let differs = stored.iter().zip(encoded).position(|(a, b)| a != b);
    let lengths = (stored.len(), encoded.len());
    assert!(
        differs.is_none() && lengths.0 == lengths.1,
        "{name}: the format changed, first at byte {differs:?}; lengths (stored, encoded) are {lengths:?}"
    );
    stored
}

fn position(epoch: u64, sequence: u64) -> Position {
    Position { epoch: Epoch(epoch), sequence: Sequence(sequence) }
}

fn point(ring_offset: u64, sequence: u64) -> LogPoint {
    LogPoint { ring_offset: RingOffset(ring_offset), position: position(7, sequence), chain: CHAIN }
}

fn record() -> Record {
    Record {
        epoch: Epoch(7),
        version: 3,
        primary: Some(NodeId(2)),
        reign: REIGN,
        in_sync: NodeSet(0b1000_0000_0000_0000_0000_0000_0000_0101),
    }
}

fn history() -> History {
    let mut history = History::default();
    for (epoch, first) in [(1, 1), (4, 1000), (7, 0x0123_4567_89ab)] {
        let reign = ReignId(REIGN.0 + u128::from(epoch));
        history.push(Reign { epoch: Epoch(epoch), reign, first: Sequence(first), chain_before: CHAIN });
    }
    history
}

fn maps() -> Maps {
    let base = Base { position: position(6, 0x0123_4567_7000), chain: CHAIN };
    let stamp = Some(CopyId { replica: REPLICA, discards: 2 });
    let held = Sequence(0x0123_4567_7100);
    let head = MapHead { node: Some(NodeId(1)), everything: true, stamp, held, base, image_bytes: 8256 };
    let other = MapHead { node: Some(NodeId(31)), everything: false, stamp: None, image_bytes: 0, ..head };
    Maps { copy: 1, generation: 77, slots: [head, other, MapHead::default()] }
}

fn header(total_bytes: u32, chain_after: Chain) -> FrameHeader {
    FrameHeader {
        volume: VOLUME,
        epoch: Epoch(7),
        reign: REIGN,
        first: Sequence(0x0123_4567_89ab),
        entries: 0,
        total_bytes,
        chain_before: CHAIN,
        chain_after,
        committed: Sequence(0x0123_4567_89a0),
        stable: Sequence(0x0123_4567_8990),
        closed_ms: 0x0190_0102_0304,
    }
}

fn local() -> LocalPart {
    LocalPart {
        ring_offset: RingOffset(0x0102_0304_5000),
        durable: Sequence(0x0123_4567_8995),
        stable: Sequence(0x0123_4567_8991),
        cuts: 9,
    }
}

#[test]
fn a_frame_with_each_kind_of_entry() {
    let mut bytes = vec![0; 12288];
    let payload: Vec<u8> = (0..1024u32).map(|n| n.to_le_bytes()[0].wrapping_mul(7)).collect();
    bytes[4608..5632].copy_from_slice(&payload);
    let plain =
        |kind, offset, length| Entry { kind, fua: false, payload_crc: 0, offset, length, payload_at: 0 };
    let payload_crc = crc32fast::hash(&payload);
    let entries = [
        plain(EntryKind::EpochStart, 0, 0),
        Entry { payload_crc, payload_at: 4608, fua: true, ..plain(EntryKind::Write, 0x0001_0203_0400, 1024) },
        plain(EntryKind::Zeroes, 0x1000, 0x0002_0000),
        plain(EntryKind::Trim, 0x2000, 0x0123_4567_8a00),
        plain(EntryKind::Resize, 1 << 40, 1 << 30),
    ];
    let header = frame::encode(&mut bytes, header(12288, CHAIN), entries.iter());
    frame::encode_local(&mut bytes, &local());

    let stored = golden("frame", &bytes);
    assert_eq!(frame::decode(&stored), Ok(header));
    assert_eq!(header.last(), Sequence(0x0123_4567_89af));
    let decoded: Result<Vec<Entry>, _> = frame::entries(&stored, &header).collect();
    assert_eq!(decoded.unwrap(), entries);
    assert_eq!(frame::check_payloads(&stored, &header), Ok(()));
    assert_eq!(frame::decode_local(&stored), Ok(local()));
}

#[test]
fn a_mark_frame() {
    let mut bytes = vec![0; 4096];
    let header = frame::encode(&mut bytes, header(4096, CHAIN), [].iter());
    frame::encode_local(&mut bytes, &local());

    let stored = golden("mark", &bytes);
    assert_eq!(frame::decode(&stored), Ok(header));
    assert_eq!((header.entries, header.chain_after), (0, header.chain_before), "a mark takes no position");
    assert_eq!(frame::decode_local(&stored), Ok(local()));
}

#[test]
fn the_chain() {
    let entry = [0xa5; chain::ENTRY_BYTES];
    let first = chain::genesis(VOLUME);
    let second = chain::extend(first, position(1, 1), REIGN, &entry);
    golden("chain", &[first.0.to_le_bytes(), second.0.to_le_bytes()].concat());
}

#[test]
fn a_superblock() {
    let superblock = Superblock {
        sequence: 0x0002_0304_0506_0708,
        volume: VOLUME,
        incarnation: Incarnation(5),
        node: NodeId(31),
        replica: REPLICA,
        volume_bytes: 1 << 40,
        map_bytes: 1 << 24,
        journal_bytes: 1 << 34,
        block_bytes: 4096,
        window_bytes: 256 << 20,
        disk_fingerprint: 0x1112_1314_1516_1718,
        disk_state: DiskState::Outdated,
        suspect: true,
        clean: true,
        volatile_acks: true,
        proven: true,
        boot_id: 0x4f4e_4d4c_4b4a_4948_4746_4544_4342_4140,
        promised: Epoch(8),
        record: record(),
        cut: Cut { count: 9, first: Sequence(0x0123_4567_8999) },
        tail: point(0x0102_0300_0000, 0x0123_4567_0000),
        applied_through: point(0x0102_0304_0000, 0x0123_4567_8980),
        stable: Sequence(0x0123_4567_8990),
        durable: Sequence(0x0123_4567_8995),
        data_base: Some(position(6, 0x0123_4567_8000)),
        discards: 4,
        maps: maps(),
        apply_limit: Sequence(0x0123_4567_8fff),
        apply_reach: None,
        export_generation: 12,
        repairs: 2,
        yields: true,
        diverges: true,
        head_ms: 0x0190_0102_0304,
        reign_ms: 0x0190_0102_0203,
        frozen_ms: 0x0190_0102_0102,
        branch: Base { position: position(5, 0x0123_4567_7fff), chain: CHAIN },
        sums: true,
        bookmark_room: true,
        bookmarks: true,
        bookmarks_behind: true,
        scrub: ScrubRecord { ended_ms: 0x0190_0102_0405, blocks: 0x1000_0000, bad_blocks: 3 },
        gathered: Some(Gathered { from: RingOffset(0x8_0000), to: RingOffset(0x9_0000), items: 12 }),
        history: history(),
    };
    let stored = golden("superblock", &superblock.encode());
    assert_eq!(Superblock::decode(&stored), Ok(superblock));
}

#[test]
fn a_dirty_map() {
    let map = || DirtyMap::new((5 << 20) + 512, 4096);
    let mut dirty = map();
    dirty.set_bytes(2 << 20, 2 << 20);
    dirty.set_bytes(12_288, 4096);
    dirty.set_bytes(5 << 20, 512);
    let stored = golden("dirty-map", &dirty.encode(9));
    let mut again = map();
    again.decode(&stored, 9).unwrap();
    assert_eq!(again.encode(9), stored);
}

#[test]
fn an_item_of_blocks() {
    let mut bytes: Vec<u8> = (0..16_384u32).map(|n| n.to_le_bytes()[0].wrapping_mul(11)).collect();
    let header = BlocksHeader {
        volume: VOLUME,
        number: 12,
        point: Sequence(0x0123_4567_89a0),
        word: 3,
        present: 0b1_0000_0010,
        zeros: 0b1000,
        payload_crc: 0,
    };
    let header = header.encode(&mut bytes[..12_288], 8192);
    let stored = golden("blocks", &bytes[..12_288]);
    assert_eq!(BlocksHeader::decode(&stored, 1 << 20), Ok(header));
}

#[test]
fn an_envelope() {
    let envelope = Envelope {
        kind: MessageKind::Frame,
        sync: true,
        body_bytes: 12288,
        body_crc: 0xdead_beef,
        incarnation: Incarnation(5),
        volume: VOLUME,
        session: 0x2122_2324_2526_2728,
        epoch: Epoch(7),
        reign: REIGN,
        committed: Sequence(0x0123_4567_89a0),
        stable: Sequence(0x0123_4567_8990),
    };
    let stored = golden("envelope", &envelope.encode());
    assert_eq!(Envelope::decode(&stored), Ok(envelope));
}

#[test]
fn a_challenge_and_the_transcripts() {
    let dialer = Challenge { volume: VOLUME, nonce: std::array::from_fn(|n| u8::try_from(n).unwrap()) };
    let listener = Challenge { nonce: dialer.nonce.map(|byte| 255 - byte), ..dialer };
    let stored = golden("challenge", &dialer.encode());
    assert_eq!(Challenge::decode(&stored), Ok(dialer));
    let both = [End::Dialer, End::Listener].map(|end| transcript(end, &dialer, &listener));
    golden("transcripts", &both.concat());
}

#[test]
fn every_message() {
    let hello = Hello {
        node: NodeId(2),
        replica: REPLICA,
        volume_bytes: 1 << 40,
        block_bytes: 512,
        primary: true,
        proven: true,
        suspect: false,
        disk_state: DiskState::UpToDate,
        promised: Epoch(8),
        record: record(),
        head: point(0x0102_0305_0000, 0x0123_4567_8a00),
        tail: Sequence(0x0123_4567_0000),
        stable: Sequence(0x0123_4567_8990),
        durable: Sequence(0x0123_4567_8995),
        applied: Sequence(0x0123_4567_8980),
        data_base: Some(Sequence(0x0123_4567_8000)),
        discards: 4,
        history: history(),
        yields: true,
        diverges: true,
        discards_of: Some(NodeId(3)),
        delayed: false,
        end: LogEnd { head_ms: 0x0190_0102_0304, reign_ms: 0x0190_0102_0203, changed_blocks: 77 },
    };
    let changed =
        Changed { everything: true, is_last: true, words: vec![(3, 0x8000_0000_0000_0001), (9, 6)] };
    let sealed = Sealed {
        attempt: 0x0801,
        granted: true,
        promised: Epoch(8),
        record: Record { primary: None, ..record() },
        disk_state: DiskState::Inconsistent,
        proven: false,
        suspect: true,
        head: point(0x0102_0305_0000, 0x0123_4567_8a00),
        applied: Sequence(0x0123_4567_8980),
    };
    let ack =
        Ack { received: Sequence(4), journaled: Sequence(3), durable: Sequence(2), applied: Sequence(1) };
    let start = Start { common: Sequence(0x0123_4567_8999), record: record(), acks_received: true };
    let jump = Base { position: position(7, 0x0123_4567_89ac), chain: CHAIN };
    let mut hashes = Hashes { word: 0x0102_0304, bits: 0x8000_0000_0000_0001, hashes: [0; 64] };
    hashes.hashes[..2].copy_from_slice(&[REPLICA, REIGN.0]);
    let point = Sequence(0x0123_4567_89ab);
    let Hashes { word, bits, hashes: sums } = hashes;
    let check = Check { run: 0x0007_0000_0001, number: 8, point, word, bits, hashes: sums };
    let mut checked = Checked { number: 8, is_busy: false, differs: bits, unreadable: 1, hashes: [0; 64] };
    checked.hashes[0] = REPLICA;
    let block: Box<[u8]> = (0..512u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let messages = [
        ("hello", Message::Hello(hello)),
        ("start", Message::Start(start)),
        ("ack", Message::Ack(ack)),
        ("seal", Message::Seal(Seal { attempt: 0x0801, epoch: Epoch(8) })),
        ("sealed", Message::Sealed(sealed)),
        ("record", Message::Record(record())),
        ("refuse", Message::Refuse("split brain: epoch 7 was opened twice – by two promotions".to_owned())),
        ("empty", Message::Mark),
        ("empty", Message::Ping),
        (
            "resync",
            Message::Resync(Resync {
                start,
                is_full: true,
                jump: Some(jump),
                history: history(),
                stageable_blocks: 4711,
            }),
        ),
        ("compare", Message::Compare { word: 0x0102_0304, bits: 0x8000_0000_0000_0001 }),
        ("hashes", Message::Hashes(Box::new(hashes))),
        ("placed", Message::Placed { written: 9, durable: 7, is_done: true }),
        ("empty", Message::Finish),
        ("empty", Message::Staging),
        ("check", Message::Check(Box::new(check))),
        ("checked", Message::Checked(Box::new(checked))),
        ("mend", Message::Mend(Mend { point: check.point, block: 0x0102_0305, bytes: block.clone() })),
        ("ask", Message::Ask { block: 0x0102_0306 }),
        ("fetch", Message::Fetch(Fetch { number: 8, point: check.point, block: 0x0102_0305 })),
        ("fetched", Message::Fetched(Fetched { number: 8, bytes: Some(block) })),
        ("fetched-not", Message::Fetched(Fetched { number: 8, bytes: None })),
        ("changed", Message::Changed(changed)),
        ("grow", Message::Grow { bytes: 1 << 41 }),
        ("grown", Message::Grown { bytes: 1 << 41, reason: String::new() }),
        ("grown-not", Message::Grown { bytes: 1 << 41, reason: "its disk is full".to_owned() }),
    ];
    for (name, message) in messages {
        let mut bytes = [0; MESSAGE_BODY_BYTES_MAX];
        let length = message.encode(&mut bytes);
        let stored = golden(&format!("message-{name}"), &bytes[..length]);
        assert_eq!(Message::decode(message.kind(), &stored), Ok(message));
    }
}

#[test]
fn a_table_of_bookmarks() {
    let mut bookmarks = Bookmarks::default();
    for (name, sequence) in [("monday", 0x0123_4567_8900), ("2026-11-29_a.full", 0x0123_4567_89a0)] {
        let name = BookmarkName::new(name).unwrap();
        let empty = DirtyMap::new(1 << 30, 1 << 16);
        bookmarks.add(name, position(7, sequence), 0x0190_0102_0304, empty).unwrap();
    }
    bookmarks.restart(Sequence(0x0123_4567_8955));
    bookmarks.note(Sequence(0x0123_4567_8980), 1 << 20, 8192);
    let (table, images) = bookmarks.encode(0x0809);
    let stored = golden("bookmarks", &table);
    let lengths: Vec<u64> = images.iter().map(|image| image.len() as u64).collect();
    assert_eq!(Table::decode(&stored, 0x0809).unwrap().image_bytes().collect::<Vec<_>>(), lengths);
}
