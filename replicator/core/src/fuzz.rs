//! Feeds hostile bytes to the decoders, to recovery and to a whole replica, and asserts what must hold on any of
//! them. Not a judge of single answers. Each function takes its choices from the bytes it is given, so that a
//! fuzzer's mutations get behind magic numbers and checksums: what comes from somebody who knows the secret, or
//! from a disk, has sound checksums if it wants to.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::chain;
use crate::command::Command;
use crate::config::{Config, OnPeerLoss, PeerConfig, Protocol};
use crate::disk::layout::{Layout, SUPERBLOCK_BYTES};
use crate::disk::superblock::{self, Cut, DiskState, LogPoint, Record, Superblock};
use crate::event::{AdminAction, Errno, Event, ZeroKind};
use crate::frame::{self, Entry, EntryKind, FrameHeader, LocalPart};
use crate::limits::{FRAME_BYTES_MAX, FRAME_ENTRIES_MAX, FRAME_HEADER_BYTES, MESSAGE_BODY_BYTES_MAX};
use crate::machine::Machine;
use crate::recovery::{JournalReader, RecoverError, Recovered, recover};
use crate::units::{
    AdminId, Buffer, Epoch, Incarnation, Instant, LinkId, NodeId, NodeSet, PAGE_BYTES, Position, ReignId,
    RequestId, RingOffset, SECTOR_BYTES, Sequence, Span, Token, VolumeId,
};
use crate::wire::auth::{self, Challenge};
use crate::wire::envelope::{ENVELOPE_BYTES, Envelope, MessageKind};
use crate::wire::message::{Ack, Hello, Message, Seal, Sealed, Start};

const VOLUME: VolumeId = VolumeId(0x0066_757a_7a00);
const VOLUME_BYTES: u64 = 256 * SECTOR_BYTES;
/// The smallest journal for that volume.
const JOURNAL_BYTES: u64 = (1 << 20) + 6 * PAGE_BYTES as u64 + (16 << 20);
const ARENA_BYTES: usize = 8 << 20;
/// What one run may do at most.
const STEPS_MAX: usize = 600;

/// Choices made of bytes; zero when they run out.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        let wide = if limit > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (wide | usize::from(self.byte())) % limit.max(1)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == count - 1
    }

    /// Mostly `near`; else what is just beside it, or far away.
    fn number(&mut self, near: u64) -> u64 {
        match self.below(32) {
            0..=23 => near,
            24 | 25 => near.wrapping_add(1),
            26 | 27 => near.wrapping_sub(1),
            28 => 0,
            29 => u64::from(self.byte()),
            30 => (u64::MAX / 2).wrapping_add(u64::from(self.byte() & 1)),
            _ => u64::MAX.wrapping_sub(u64::from(self.byte() & 1)),
        }
    }

    fn sequence(&mut self, near: Sequence) -> Sequence {
        Sequence(self.number(near.0))
    }

    fn epoch(&mut self, near: Epoch) -> Epoch {
        Epoch(self.number(near.0))
    }

    /// The rest of the bytes, at most `most` of them.
    fn take(&mut self, most: usize) -> Vec<u8> {
        let (head, rest) = self.0.split_at(self.0.len().min(most));
        self.0 = rest;
        head.to_vec()
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

// --- the decoders -------------------------------------------------------------------------------------------

/// Makes the checksum, and if `chained` the chain, of the frame header in `block` sound, whatever else it says.
fn seal_frame(block: &mut [u8], chained: bool) {
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
        let of_rig = (found.volume_bytes, found.journal_bytes) == (VOLUME_BYTES, JOURNAL_BYTES);
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

const KINDS: [MessageKind; 16] = [
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

// --- recovery -----------------------------------------------------------------------------------------------

/// A journal device in memory, zero where never written, that ends where a real one would.
#[derive(Default)]
struct Pages(BTreeMap<u64, Box<[u8; PAGE_BYTES]>>);

impl Pages {
    fn page(&mut self, number: u64) -> &mut [u8; PAGE_BYTES] {
        self.0.entry(number).or_insert_with(|| Box::new([0; PAGE_BYTES]))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, page) in (offset / PAGE_BYTES as u64..).zip(bytes.chunks(PAGE_BYTES)) {
            self.page(at)[..page.len()].copy_from_slice(page);
        }
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let from = usize::try_from(at % PAGE_BYTES as u64).expect("within a page");
            let (piece, after) = rest.split_at_mut(rest.len().min(PAGE_BYTES - from));
            match self.0.get(&(at / PAGE_BYTES as u64)) {
                Some(page) => piece.copy_from_slice(&page[from..from + piece.len()]),
                None => piece.fill(0),
            }
            at += piece.len() as u64;
            rest = after;
        }
    }
}

impl JournalReader for Pages {
    fn read_at(&mut self, device_offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let end = device_offset.checked_add(bytes.len() as u64).ok_or(Errno(22))?;
        if end > JOURNAL_BYTES {
            return Err(Errno(5));
        }
        self.read(device_offset, bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

fn fresh_superblock() -> Superblock {
    let start = LogPoint { chain: chain::genesis(VOLUME), ..LogPoint::default() };
    Superblock {
        sequence: 1,
        volume: VOLUME,
        incarnation: Incarnation(1),
        replica: 100,
        volume_bytes: VOLUME_BYTES,
        journal_bytes: JOURNAL_BYTES,
        block_bytes: 512,
        window_bytes: 64 << 10,
        proven: true,
        record: Record { in_sync: NodeSet(0b111), ..Record::default() },
        tail: start,
        applied_through: start,
        ..Superblock::default()
    }
}

/// Makes a frame with `writes` entries that continues a log at `head`, starting epoch `epoch` if it is a later one.
fn make_frame(
    head: &LogPoint,
    epoch: Epoch,
    reign: ReignId,
    writes: usize,
    choices: &mut Choices<'_>,
) -> Vec<u8> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    let mut entries = Vec::new();
    let plain =
        |kind, offset, length| Entry { kind, fua: false, payload_crc: 0, offset, length, payload_at: 0 };
    if epoch > head.position.epoch {
        entries.push(plain(EntryKind::EpochStart, 0, 0));
    } else {
        for _ in 0..writes {
            let (kind, sectors) = (choices.below(4), 1 + choices.below(3) as u64);
            let offset = choices.below(200) as u64 * SECTOR_BYTES;
            let length = sectors * SECTOR_BYTES;
            match kind {
                0 => entries.push(plain(EntryKind::Zeroes, offset, length)),
                1 => entries.push(plain(EntryKind::Trim, offset, length)),
                _ => {
                    let payload_at = u32::try_from(bytes.len()).expect("a frame is small");
                    let fill = choices.byte();
                    bytes.resize(bytes.len() + usize::try_from(length).expect("small"), fill);
                    let payload_crc = crc32fast::hash(&bytes[payload_at as usize..]);
                    let write = plain(EntryKind::Write, offset, length);
                    entries.push(Entry { payload_crc, payload_at, fua: fill & 1 == 1, ..write });
                }
            }
        }
    }
    bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
    let header = FrameHeader {
        volume: VOLUME,
        epoch,
        reign,
        first: head.position.sequence.next(),
        entries: 0,
        total_bytes: u32::try_from(bytes.len()).expect("a frame is small"),
        chain_before: head.chain,
        chain_after: head.chain,
        committed: head.position.sequence,
        stable: Sequence(0),
    };
    frame::encode(&mut bytes, header, entries.iter());
    bytes
}

/// A journal that a sound replica left, and what is known of it.
struct Journal {
    superblock: Superblock,
    pages: Pages,
    layout: Layout,
    /// Ends of the log, one for each frame and the beginning.
    points: Vec<LogPoint>,
    /// Where each frame's header page lies, and the local part in it.
    headers: Vec<(u64, LocalPart)>,
}

impl Journal {
    fn make(choices: &mut Choices<'_>) -> Self {
        let mut superblock = fresh_superblock();
        let layout = Layout::new(VOLUME_BYTES, JOURNAL_BYTES).expect("sound");
        // Some begin shortly before the end of a lap.
        let laps = choices.below(3) as u64;
        let start = (laps * layout.ring_bytes).saturating_sub(choices.below(9) as u64 * PAGE_BYTES as u64);
        superblock.tail.ring_offset = RingOffset(start);
        superblock.applied_through.ring_offset = RingOffset(start);
        let points = vec![superblock.applied_through];
        let mut journal = Self { superblock, pages: Pages::default(), layout, points, headers: Vec::new() };
        let (mut epoch, mut cuts, mut durable) = (Epoch(1), 0, Sequence(0));
        for _ in 0..1 + choices.below(14) {
            let head = *journal.points.last().expect("the beginning");
            match choices.below(12) {
                0 => epoch = epoch.next(),
                1 if journal.ends_with_entries() => {
                    // The last frame is cut, and stays in the ring until something else lies there.
                    journal.points.pop();
                    journal.headers.pop();
                    let kept = *journal.points.last().expect("the beginning");
                    cuts += 1;
                    // What stays is durable, and the superblock says so, before anything follows.
                    journal.superblock.durable = kept.position.sequence;
                    journal.superblock.cut = Cut { count: cuts, first: kept.position.sequence.next() };
                    durable = durable.min(kept.position.sequence);
                    epoch = epoch.next();
                    continue;
                }
                2 => durable = head.position.sequence,
                _ => {}
            }
            journal.add(&head, epoch, durable, cuts, choices);
        }
        // A reign is promised before its stream is taken.
        journal.superblock.promised = epoch;
        if choices.one_in(3) {
            journal.superblock.durable = journal.superblock.durable.max(durable);
        }
        journal
    }

    /// Whether the last frame is no mark: a cut removes entries, and leaves the marks before them.
    fn ends_with_entries(&self) -> bool {
        matches!(&self.points[..], [.., before, last] if last.position > before.position)
    }

    fn add(
        &mut self,
        head: &LogPoint,
        epoch: Epoch,
        durable: Sequence,
        cuts: u64,
        choices: &mut Choices<'_>,
    ) {
        let writes = choices.below(4);
        let mut bytes = make_frame(head, epoch, ReignId(u128::from(epoch.0)), writes, choices);
        let ring_offset = self.layout.place(head.ring_offset, bytes.len() as u64);
        let local = LocalPart { ring_offset, durable, stable: durable, cuts };
        frame::encode_local(&mut bytes, &local);
        let header = frame::decode(&bytes).expect("just made");
        let device_offset = self.layout.device_offset(ring_offset);
        self.pages.write(device_offset, &bytes);
        self.headers.push((device_offset, local));
        let empty = header.entries == 0;
        let position = if empty { head.position } else { header.last_position() };
        let ring_offset = ring_offset.plus(u64::from(header.total_bytes));
        self.points.push(LogPoint { ring_offset, position, chain: header.chain_after });
    }

    /// Damages the ring; returns the pages that it touched.
    fn damage(&mut self, choices: &mut Choices<'_>, forge: bool) -> Vec<u64> {
        let mut touched = Vec::new();
        let numbers: Vec<u64> = self.pages.0.keys().copied().collect();
        for _ in 0..choices.below(6) {
            let (a, b) = (numbers[choices.below(numbers.len())], numbers[choices.below(numbers.len())]);
            touched.push(a);
            match choices.below(5) {
                0 => {
                    let (at, mask) = (choices.below(PAGE_BYTES), choices.byte());
                    self.pages.page(a)[at] ^= mask;
                }
                1 => self.pages.page(a).fill(0),
                2 => {
                    let page = *self.pages.page(b);
                    *self.pages.page(a) = page;
                }
                3 => {
                    let (from, to) = (*self.pages.page(a), *self.pages.page(b));
                    (*self.pages.page(a), *self.pages.page(b)) = (to, from);
                    touched.push(b);
                }
                _ => {
                    // One field of the header block or of an entry, where the fields are.
                    let at = choices.below(192 + 4 * chain::ENTRY_BYTES);
                    let value = choices.byte();
                    self.pages.page(a)[at] = value;
                }
            }
            if forge {
                self.forge(a, choices);
            }
        }
        touched
    }

    /// Makes what lies in a page sound in form, as somebody with an editor could.
    fn forge(&mut self, number: u64, choices: &mut Choices<'_>) {
        let page = self.pages.page(number);
        let Ok(local) = frame::decode_local(&page[..]).or_else(|_| {
            let offset = (number * PAGE_BYTES as u64).saturating_sub(JOURNAL_BYTES - (16 << 20));
            Ok::<_, ()>(LocalPart { ring_offset: RingOffset(offset), ..LocalPart::default() })
        }) else {
            return;
        };
        seal_frame(&mut page[..], true);
        let local = LocalPart {
            ring_offset: RingOffset(choices.number(local.ring_offset.0)),
            durable: choices.sequence(local.durable),
            stable: choices.sequence(local.stable),
            cuts: choices.number(local.cuts),
        };
        frame::encode_local(&mut page[..], &local);
    }

    /// What this journal says that it knew durable, outside the pages that were touched.
    fn known_durable(&self, touched: &[u64]) -> Sequence {
        let intact = |at: &u64| !touched.contains(&(at / PAGE_BYTES as u64));
        let known = self.headers.iter().filter(|(at, _)| intact(at)).map(|(_, local)| local.durable);
        known.max().unwrap_or_default().max(self.superblock.durable)
    }
}

/// A journal of sound frames, damaged as the bytes say, and recovery from it. If the first byte is odd the damage
/// comes with sound checksums; then only the form of the result is judged.
///
/// # Panics
/// If recovery returns what is not this log up to some frame, or less than what was known durable.
pub fn fuzz_recovery(data: &[u8]) {
    let Some((style, rest)) = data.split_first() else { return };
    let mut choices = Choices(rest);
    let forge = style & 1 == 1;
    let mut journal = Journal::make(&mut choices);
    let touched = journal.damage(&mut choices, forge);
    let superblock = journal.superblock;
    let recovered = match recover(&superblock, false, 1, &mut journal.pages) {
        Ok(recovered) => recovered,
        Err(error) => {
            assert!(!touched.is_empty(), "an undamaged journal is recovered: {error}");
            assert!(
                matches!(error, RecoverError::Rot { .. }),
                "the device gave all it was asked for: {error}"
            );
            return;
        }
    };
    check_chain(&journal, &recovered);
    if !forge {
        let head = recovered.log.head;
        assert!(journal.points.contains(&head), "the log ends behind one of its frames: {head:?}");
        assert!(
            !touched.is_empty() || journal.points.last() == Some(&head),
            "all of an undamaged log is found"
        );
        let known = journal.known_durable(&touched);
        assert!(recovered.log.last() >= known, "entry {known} was known durable and is not there");
    }
    if style & 2 == 2 {
        let mut rig = Rig::new(recovered, journal.pages);
        rig.settle();
        rig.admin(AdminAction::Promote { force: true, reign: ReignId(9) });
        rig.settle();
    }
}

/// Each frame of the log lies in the ring and continues the one before.
fn check_chain(journal: &Journal, recovered: &Recovered) {
    let log = &recovered.log;
    let mut before = journal.superblock.applied_through;
    for number in 0..log.next_number() {
        let frame = log.frame(number).expect("recovered frames are kept");
        let mut block = vec![0; frame.total_bytes as usize];
        journal.pages.read(journal.layout.device_offset(frame.ring_offset), &mut block);
        let header = frame::decode(&block).expect("a frame of the log is a frame");
        frame::check_payloads(&block, &header).expect("with sound payloads");
        assert!(header.chain_before == before.chain && header.first == before.position.sequence.next());
        assert!(frame.ring_offset >= before.ring_offset, "the ring is filled forwards");
        let position = if header.entries == 0 { before.position } else { header.last_position() };
        before = LogPoint { ring_offset: frame.ring_end(), position, chain: header.chain_after };
    }
    assert_eq!(
        (log.head.position, log.head.chain),
        (before.position, before.chain),
        "the head is behind the last"
    );
    assert!(log.durable() == log.last() && log.journaled() == log.last(), "what is found is durable");
    assert!(
        recovered.history.reigns().iter().all(|reign| reign.first <= log.last()),
        "no reign begins behind it"
    );
}

// --- a replica and its peers --------------------------------------------------------------------------------

/// A connection as the peer at its other end sees it.
#[derive(Clone, Copy)]
struct HostileLink {
    id: LinkId,
    node: NodeId,
    /// The number of the hello that this end sent last.
    session: u64,
    /// The record that it claims to serve.
    record: Record,
}

/// A replica with its disks in memory, and what it waits for.
struct Rig {
    machine: Machine,
    arena: Vec<u8>,
    journal: Pages,
    now: Instant,
    ios: Vec<Command>,
    links: Vec<HostileLink>,
    closing: Vec<LinkId>,
    /// What the replica last said of itself.
    hello: Option<Box<Hello>>,
    /// What a promotion last asked.
    seal: Option<Seal>,
    next_id: u64,
    stopped: bool,
}

impl Rig {
    fn new(recovered: Recovered, journal: Pages) -> Self {
        let peer = |node| PeerConfig { node: NodeId(node), protocol: Protocol::C };
        let config = Config {
            node: NodeId(0),
            peers: vec![peer(1), peer(2)],
            volume: VOLUME,
            incarnation: Incarnation(1),
            on_peer_loss: OnPeerLoss::Continue,
            arena_bytes: ARENA_BYTES,
            frames_in_flight_max: 2,
            sync_interval_ms: 10,
            ping_interval_ms: 500,
            peer_timeout_ms: 3000,
            checkpoint_bytes: 64 << 10,
            send_window_bytes: 2 << 20,
        };
        let now = Instant(1);
        let mut rig = Self {
            machine: Machine::new(config, recovered, now),
            arena: vec![0; ARENA_BYTES],
            journal,
            now,
            ios: Vec::new(),
            links: Vec::new(),
            closing: Vec::new(),
            hello: None,
            seal: None,
            next_id: 1,
            stopped: false,
        };
        rig.take_commands();
        rig
    }

    fn handle(&mut self, event: Event<'_>) {
        self.machine.handle(self.now, event, &mut self.arena);
        self.take_commands();
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn take_commands(&mut self) {
        while let Some(command) = self.machine.poll_command() {
            match command {
                Command::Send { message, .. } => match *message {
                    Message::Hello(hello) => self.hello = Some(Box::new(hello)),
                    Message::Seal(seal) => self.seal = Some(seal),
                    _ => {}
                },
                Command::CloseLink { link, .. } => self.closing.push(link),
                Command::Stopped => self.stopped = true,
                Command::SendBare { .. }
                | Command::SendAck { .. }
                | Command::Complete { .. }
                | Command::Answer { .. }
                | Command::Serve { .. }
                | Command::Report(_) => {}
                io => self.ios.push(io),
            }
        }
    }

    /// Completes one I/O; frames of one link leave in order.
    fn finish(&mut self, index: usize) {
        let first_of = |link: LinkId| {
            self.ios.iter().position(|io| matches!(io, Command::SendFrame { link: of, .. } if *of == link))
        };
        let index = match self.ios[index] {
            Command::SendFrame { link, .. } => first_of(link).unwrap_or(index),
            _ => index,
        };
        let result = Ok(());
        let event = match self.ios.remove(index) {
            Command::WriteJournal { token, device_offset, span } => {
                self.journal.write(device_offset, &self.arena[span.range()]);
                Event::JournalWritten { token, result }
            }
            Command::SyncJournal { token } => Event::JournalSynced { token, result },
            Command::ReadJournal { token, device_offset, span } => {
                self.journal.read(device_offset, &mut self.arena[span.range()]);
                Event::JournalRead { token, result }
            }
            Command::ReadDisk { token, .. } => Event::DiskRead { token, result },
            Command::WriteDisk { token, offset, span } => Self::disk_written(token, offset, span.len as u64),
            Command::ZeroDisk { token, offset, length, .. } => Self::disk_written(token, offset, length),
            Command::SyncDisk { token } => Event::DiskSynced { token, result },
            Command::WriteSuperblock { token, superblock } => {
                let bytes = superblock.encode();
                assert_eq!(Superblock::decode(&bytes), Ok(*superblock), "what is stored can be started from");
                Event::SuperblockWritten { token, result }
            }
            Command::SendFrame { link, token, .. } => Event::FrameSent { link, token },
            other => unreachable!("no I/O: {other:?}"),
        };
        self.handle(event);
    }

    fn disk_written<'e>(token: Token, offset: u64, length: u64) -> Event<'e> {
        assert!(offset + length <= VOLUME_BYTES, "nothing is written outside the volume");
        Event::DiskWritten { token, result: Ok(()) }
    }

    /// Lets everything happen that needs no peer.
    fn settle(&mut self) {
        for _ in 0..64 {
            self.handle(Event::TurnEnd);
            if self.ios.is_empty() {
                break;
            }
            while !self.ios.is_empty() {
                self.finish(0);
            }
        }
        while let Some(id) = self.closing.pop() {
            self.link_down(id);
        }
    }

    fn pass_time(&mut self, ms: u64) {
        let due = self.machine.next_timeout().unwrap_or_default();
        self.now = self.now.plus_ms(ms).max(due.min(self.now.plus_ms(50)));
        self.handle(Event::Timeout);
    }

    fn admin(&mut self, action: AdminAction) {
        let id = AdminId(self.id());
        self.handle(Event::Admin { id, action });
    }

    fn link_up(&mut self, node: NodeId, known: bool) {
        let id = LinkId(self.id());
        self.links.push(HostileLink { id, node, session: 0, record: Record::default() });
        self.handle(Event::LinkUp { link: id, peer: known.then_some(node) });
    }

    fn link_down(&mut self, id: LinkId) {
        self.links.retain(|link| link.id != id);
        self.closing.retain(|link| *link != id);
        self.ios.retain(|io| !matches!(io, Command::SendFrame { link, .. } if *link == id));
        self.handle(Event::LinkDown { link: id, reason: String::from("gone") });
    }

    fn envelope(&self, link: &HostileLink, kind: MessageKind) -> Envelope {
        let status = self.machine.status();
        Envelope {
            kind,
            sync: false,
            body_bytes: 0,
            body_crc: 0,
            incarnation: Incarnation(1),
            volume: VOLUME,
            session: link.session,
            epoch: link.record.epoch,
            reign: link.record.reign,
            committed: status.head.sequence,
            stable: status.durable,
        }
    }

    /// Sends a message through its bytes, as on a real wire.
    fn say(&mut self, link: &HostileLink, message: &Message, choices: &mut Choices<'_>) {
        let mut body = [0; MESSAGE_BODY_BYTES_MAX];
        let length = message.encode(&mut body);
        let mut envelope = self.envelope(link, message.kind());
        twist(&mut envelope, choices);
        self.deliver(link.id, envelope, &body[..length]);
    }

    fn say_plainly(&mut self, link: &HostileLink, message: &Message, sync: bool) {
        let mut body = [0; MESSAGE_BODY_BYTES_MAX];
        let length = message.encode(&mut body);
        let envelope = Envelope { sync, ..self.envelope(link, message.kind()) };
        self.deliver(link.id, envelope, &body[..length]);
    }

    fn deliver(&mut self, link: LinkId, mut envelope: Envelope, body: &[u8]) {
        envelope.body_bytes = u32::try_from(body.len()).expect("bounded");
        let Ok(envelope) = Envelope::decode(&envelope.encode()) else { return };
        self.handle(Event::Message { link, envelope, body });
    }

    fn deliver_frame(&mut self, link: &HostileLink, bytes: &[u8], choices: &mut Choices<'_>) {
        let mut envelope = self.envelope(link, MessageKind::Frame);
        twist(&mut envelope, choices);
        envelope.body_bytes = u32::try_from(bytes.len()).expect("bounded");
        let Ok(envelope) = Envelope::decode(&envelope.encode()) else { return };
        let Some(buffer) = self.machine.place_frame(link.id, &envelope) else { return };
        if choices.one_in(32) {
            return self.handle(Event::FrameAbandoned { buffer });
        }
        self.fill(buffer, bytes);
        self.handle(Event::Frame { link: link.id, envelope, buffer });
    }

    fn deliver_frame_plainly(&mut self, link: &HostileLink, bytes: &[u8]) {
        let body_bytes = u32::try_from(bytes.len()).expect("bounded");
        let envelope = Envelope { body_bytes, ..self.envelope(link, MessageKind::Frame) };
        let Some(buffer) = self.machine.place_frame(link.id, &envelope) else { return };
        self.fill(buffer, bytes);
        self.handle(Event::Frame { link: link.id, envelope, buffer });
    }

    fn fill(&mut self, buffer: Buffer, bytes: &[u8]) {
        self.arena[buffer.start()..buffer.start() + bytes.len()].copy_from_slice(bytes);
    }

    fn client(&mut self, choices: &mut Choices<'_>) {
        let request = RequestId(self.id());
        let (offset, sectors) = (choices.below(200) as u64 * SECTOR_BYTES, 1 + choices.below(9));
        let length = sectors * SECTOR_BYTES as usize;
        match choices.below(4) {
            0 => self.handle(Event::Flush { request }),
            1 => {
                let (length, fua) = (length as u64, choices.one_in(2));
                self.handle(Event::Zero { request, offset, length, kind: ZeroKind::Trim, fua });
            }
            2 => {
                let Some(buffer) = self.machine.take_buffer(length) else { return };
                let destination = Span { start: buffer.start(), len: length };
                self.handle(Event::Read { request, offset, destination });
            }
            _ => {
                let Some(payload) = self.machine.place_write(length) else { return };
                self.arena[payload.range()].fill(choices.byte());
                self.handle(Event::Write { request, offset, payload, fua: choices.one_in(4) });
            }
        }
    }
}

fn twist(envelope: &mut Envelope, choices: &mut Choices<'_>) {
    envelope.sync = choices.one_in(4);
    envelope.committed = choices.sequence(envelope.committed);
    envelope.stable = choices.sequence(envelope.stable);
    if !choices.one_in(8) {
        return;
    }
    envelope.session = choices.number(envelope.session);
    envelope.epoch = choices.epoch(envelope.epoch);
    envelope.reign.0 ^= u128::from(choices.one_in(4));
    envelope.volume.0 ^= u128::from(choices.one_in(16));
    envelope.incarnation.0 ^= u64::from(choices.one_in(16));
}

fn any_record(near: &Record, choices: &mut Choices<'_>) -> Record {
    let mut record = *near;
    record.epoch = choices.epoch(near.epoch);
    record.version = choices.number(near.version);
    match choices.below(8) {
        0 => record.reign.0 ^= 1,
        1 => record.in_sync = NodeSet(u32::from(choices.byte())),
        2 => record.primary = None,
        3 => record.primary = Some(NodeId(choices.byte() % 32)),
        _ => {}
    }
    record
}

/// A replica and two peers who know the secret and mean harm: any message, well-formed or not, in any order, while
/// the replica follows, waits, is promoted or serves.
///
/// # Panics
/// If anything a peer says makes the replica panic, store what it cannot start from, or write outside the volume.
pub fn fuzz_peer(data: &[u8]) {
    let mut choices = Choices(data);
    let recovered = recover(&fresh_superblock(), false, 1, &mut Pages::default()).expect("a fresh journal");
    let mut rig = Rig::new(recovered, Pages::default());
    rig.settle();
    for _ in 0..STEPS_MAX {
        if choices.0.is_empty() || rig.stopped {
            break;
        }
        hostile_step(&mut rig, &mut choices);
    }
    rig.settle();
    rig.pass_time(10);
    rig.settle();
}

fn hostile_step(rig: &mut Rig, choices: &mut Choices<'_>) {
    match choices.below(32) {
        0..=3 => rig.handle(Event::TurnEnd),
        4..=7 if !rig.ios.is_empty() => {
            let index = choices.below(rig.ios.len());
            rig.finish(index);
        }
        8 | 9 => rig.settle(),
        10 => {
            let ms = [0, 1, 10, 500, 3000][choices.below(5)];
            rig.pass_time(ms);
        }
        11 => rig.client(choices),
        12 if choices.one_in(4) => {
            let action = match choices.below(8) {
                0 => AdminAction::Demote,
                1 => AdminAction::Shrink { node: NodeId(1) },
                2 if choices.one_in(8) => AdminAction::Stop,
                kind => AdminAction::Promote { force: kind > 4, reign: ReignId(u128::from(choices.byte())) },
            };
            rig.admin(action);
        }
        13 if !rig.closing.is_empty() => {
            let id = rig.closing[0];
            rig.link_down(id);
        }
        14 if rig.links.len() < 5 => {
            let node = NodeId(1 + choices.byte() % 2);
            rig.link_up(node, choices.one_in(2));
        }
        15 if choices.one_in(8) && !rig.links.is_empty() => {
            let id = rig.links[choices.below(rig.links.len())].id;
            rig.link_down(id);
        }
        28 => play_primary(rig, NodeId(1 + choices.byte() % 2), choices),
        29 => play_secondaries(rig, choices),
        what if !rig.links.is_empty() => {
            let index = choices.below(rig.links.len());
            hostile_message(rig, index, what, choices);
        }
        _ => rig.link_up(NodeId(1 + choices.byte() % 2), true),
    }
}

/// Says hello as a peer would that holds just what the replica holds.
fn honest_hello(rig: &mut Rig, node: NodeId, record: Record, primary: bool, sync: bool) {
    if !rig.links.iter().any(|link| link.node == node) {
        rig.link_up(node, true);
    }
    let index = rig.links.iter().position(|link| link.node == node).expect("it is up");
    rig.links[index].session += 1;
    rig.links[index].record = record;
    let link = rig.links[index];
    let Some(mut hello) = rig.hello.clone() else { return };
    let status = rig.machine.status();
    (hello.node, hello.replica) = (node, 100 + u128::from(node.0));
    (hello.primary, hello.record, hello.promised) = (primary, record, record.epoch.max(status.promised));
    rig.say_plainly(&link, &Message::Hello(*hello), sync);
}

/// A peer is Primary in a new epoch and sends a few frames, as it should.
fn play_primary(rig: &mut Rig, node: NodeId, choices: &mut Choices<'_>) {
    rig.settle();
    let status = rig.machine.status();
    let epoch = Epoch(status.promised.0.saturating_add(1));
    let reign = ReignId(u128::from(epoch.0));
    let record = Record { epoch, version: 1, primary: Some(node), reign, in_sync: NodeSet(0b111) };
    honest_hello(rig, node, record, true, true);
    let Some(link) = rig.links.iter().find(|link| link.node == node).copied() else { return };
    let common = status.head.sequence;
    rig.say_plainly(&link, &Message::Start(Start { common, record, acks_received: false }), false);
    rig.settle();
    for _ in 0..choices.below(4) {
        let status = rig.machine.status();
        let head = LogPoint { position: status.head, chain: status.chain, ..LogPoint::default() };
        let bytes = make_frame(&head, epoch, reign, 2, choices);
        rig.deliver_frame_plainly(&link, &bytes);
    }
    rig.say_plainly(&link, &Message::Mark, choices.one_in(2));
    if choices.one_in(2) {
        rig.settle();
    }
}

/// The replica is made Primary, and its peers follow as they should.
fn play_secondaries(rig: &mut Rig, choices: &mut Choices<'_>) {
    rig.settle();
    let record = rig.machine.status().record;
    for node in [NodeId(1), NodeId(2)] {
        honest_hello(rig, node, record, false, true);
    }
    rig.admin(AdminAction::Promote { force: choices.one_in(2), reign: ReignId(u128::from(choices.byte())) });
    rig.settle();
    let (Some(seal), Some(hello)) = (rig.seal, rig.hello.clone()) else { return };
    let sealed = Sealed {
        attempt: seal.attempt,
        granted: true,
        promised: seal.epoch,
        record,
        disk_state: DiskState::UpToDate,
        proven: true,
        suspect: false,
        head: hello.head,
        applied: hello.applied,
    };
    for link in rig.links.clone() {
        rig.say_plainly(&link, &Message::Sealed(sealed), false);
    }
    rig.settle();
    let record = rig.machine.status().record;
    for node in [NodeId(1), NodeId(2)] {
        honest_hello(rig, node, Record { primary: None, ..record }, false, false);
    }
    for _ in 0..3 {
        rig.settle();
        let status = rig.machine.status();
        let (all, applied) = (status.head.sequence, status.applied);
        let ack = Ack { received: all, journaled: all, durable: all, applied };
        for link in rig.links.clone() {
            rig.say_plainly(&link, &Message::Ack(ack), false);
        }
        rig.settle();
        rig.client(choices);
    }
}

fn hostile_message(rig: &mut Rig, index: usize, what: usize, choices: &mut Choices<'_>) {
    let mut link = rig.links[index];
    let status = rig.machine.status();
    match what {
        16..=18 => {
            let Some(hello) = rig.hello.clone() else { return };
            rig.links[index].session += 1;
            link.session += 1;
            let hello = hostile_hello(&hello, link.node, choices);
            rig.say(&link, &Message::Hello(hello), choices);
        }
        19..=21 => {
            let mut record = any_record(&status.record, choices);
            record.epoch = choices.epoch(record.epoch.max(status.promised));
            (rig.links[index].record, link.record) = (record, record);
            let common = choices.sequence(status.head.sequence);
            let acks_received = choices.one_in(2);
            rig.say(&link, &Message::Start(Start { common, record, acks_received }), choices);
        }
        22 => rig.say(&link, &Message::Mark, choices),
        23 => {
            let head = status.head.sequence;
            let (received, journaled) = (choices.sequence(head), choices.sequence(head));
            let (durable, applied) = (choices.sequence(head), choices.sequence(Sequence(0)));
            rig.say(&link, &Message::Ack(Ack { received, journaled, durable, applied }), choices);
        }
        24 if choices.one_in(3) => {
            let seal = Seal {
                attempt: choices.number(1),
                epoch: choices.epoch(Epoch(status.promised.0.wrapping_add(1))),
            };
            rig.say(&link, &Message::Seal(seal), choices);
        }
        25 => {
            let sealed = hostile_sealed(rig, choices);
            rig.say(&link, &Message::Sealed(sealed), choices);
        }
        26 => {
            let near = Record { version: status.record.version.wrapping_add(1), ..status.record };
            let record = any_record(&near, choices);
            rig.say(&link, &Message::Record(record), choices);
        }
        27 if choices.one_in(4) => rig.say(&link, &Message::Refuse(String::from("\u{1b}[2Jno")), choices),
        30 => {
            let envelope = rig.envelope(&link, KINDS[choices.below(KINDS.len())]);
            let length = choices.below(200);
            let body = choices.take(length);
            if !envelope.kind.is_bulk() {
                rig.deliver(link.id, envelope, &body);
            }
        }
        _ => hostile_frame(rig, &link, choices),
    }
}

fn hostile_hello(mine: &Hello, node: NodeId, choices: &mut Choices<'_>) -> Hello {
    let mut hello = *mine;
    (hello.node, hello.replica) = (node, 100 + u128::from(node.0));
    hello.primary = choices.one_in(2);
    hello.record = any_record(&hello.record, choices);
    hello.promised = choices.epoch(hello.promised.max(hello.record.epoch));
    match choices.below(16) {
        0 => hello.head.position.sequence = choices.sequence(mine.head.position.sequence),
        1 => hello.stable = choices.sequence(mine.stable),
        2 => hello.durable = choices.sequence(mine.durable),
        3 => hello.applied = choices.sequence(mine.applied),
        4 => hello.tail = choices.sequence(mine.tail),
        5 => hello.head.chain.0 ^= 1,
        6 => hello.node = NodeId(choices.byte() % 33),
        7 => hello.disk_state = [DiskState::Outdated, DiskState::Failed][choices.below(2)],
        8 => hello.history.truncate(choices.sequence(Sequence(1))),
        9 => hello.volume_bytes = choices.number(hello.volume_bytes),
        _ => {}
    }
    hello
}

fn hostile_sealed(rig: &Rig, choices: &mut Choices<'_>) -> Sealed {
    let status = rig.machine.status();
    let attempt = rig.seal.map_or(0, |seal| seal.attempt);
    let position = Position { epoch: status.head.epoch, sequence: choices.sequence(status.head.sequence) };
    Sealed {
        attempt: choices.number(attempt),
        granted: !choices.one_in(4),
        promised: choices.epoch(status.promised),
        record: any_record(&status.record, choices),
        disk_state: DiskState::UpToDate,
        proven: choices.one_in(2),
        suspect: choices.one_in(8),
        head: LogPoint { position, chain: status.chain, ..LogPoint::default() },
        applied: choices.sequence(status.applied),
    }
}

fn hostile_frame(rig: &mut Rig, link: &HostileLink, choices: &mut Choices<'_>) {
    let status = rig.machine.status();
    let head = LogPoint { position: status.head, chain: status.chain, ..LogPoint::default() };
    let epoch = choices.epoch(link.record.epoch.max(head.position.epoch));
    let writes = 1 + choices.below(5);
    let mut bytes = make_frame(&head, epoch, link.record.reign, writes, choices);
    match choices.below(8) {
        0 => {
            // Anything may be in it, with sound checksums.
            for _ in 0..1 + choices.below(4) {
                let (at, value) = (choices.below(192 + 4 * chain::ENTRY_BYTES), choices.byte());
                bytes[at] = value;
            }
            seal_frame(&mut bytes, choices.one_in(2));
        }
        1 => {
            let at = choices.below(bytes.len());
            bytes[at] ^= choices.byte();
        }
        2 => bytes.truncate(choices.below(bytes.len())),
        3 => bytes.resize(bytes.len() + choices.below(3) * PAGE_BYTES, 0),
        _ => {}
    }
    rig.deliver_frame(link, &bytes, choices);
}
