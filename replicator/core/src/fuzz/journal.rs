//! A journal in memory, as a sound replica left it, and the damage that is done to it.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::decoders::seal_frame;
use super::{Choices, JOURNAL_BYTES, VOLUME, VOLUME_BYTES};
use crate::chain;
use crate::disk::layout::{Layout, map_bytes_of};
use crate::disk::superblock::{Cut, LogPoint, Record, Superblock};
use crate::event::Errno;
use crate::frame::{self, Entry, EntryKind, FrameHeader, LocalPart};
use crate::limits::FRAME_HEADER_BYTES;
use crate::recovery::JournalReader;
use crate::units::{Epoch, Incarnation, NodeSet, PAGE_BYTES, ReignId, RingOffset, SECTOR_BYTES, Sequence};

/// A journal device in memory, zero where never written, that ends where a real one would.
#[derive(Default)]
pub(super) struct Pages(BTreeMap<u64, Box<[u8; PAGE_BYTES]>>);

impl Pages {
    fn page(&mut self, number: u64) -> &mut [u8; PAGE_BYTES] {
        self.0.entry(number).or_insert_with(|| Box::new([0; PAGE_BYTES]))
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, page) in (offset / PAGE_BYTES as u64..).zip(bytes.chunks(PAGE_BYTES)) {
            self.page(at)[..page.len()].copy_from_slice(page);
        }
    }

    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) {
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

pub(super) fn fresh_superblock() -> Superblock {
    let start = LogPoint { chain: chain::genesis(VOLUME), ..LogPoint::default() };
    Superblock {
        sequence: 1,
        volume: VOLUME,
        incarnation: Incarnation(1),
        replica: 100,
        volume_bytes: VOLUME_BYTES,
        map_bytes: map_bytes_of(VOLUME_BYTES),
        journal_bytes: JOURNAL_BYTES,
        block_bytes: 512,
        window_bytes: 64 << 10,
        proven: true,
        bookmark_room: true,
        record: Record { in_sync: NodeSet(0b111), ..Record::default() },
        tail: start,
        applied_through: start,
        ..Superblock::default()
    }
}

/// Makes a frame with `writes` entries that continues a log at `head`, starting epoch `epoch` if it is a later one.
pub(super) fn make_frame(
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
        closed_ms: 0,
    };
    frame::encode(&mut bytes, header, entries.iter());
    bytes
}

/// A journal that a sound replica left, and what is known of it.
pub(super) struct Journal {
    pub(super) superblock: Superblock,
    pub(super) pages: Pages,
    pub(super) layout: Layout,
    /// Ends of the log, one for each frame and the beginning.
    pub(super) points: Vec<LogPoint>,
    /// Where each frame's header page lies, and the local part in it.
    headers: Vec<(u64, LocalPart)>,
}

impl Journal {
    pub(super) fn make(choices: &mut Choices<'_>) -> Self {
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
    pub(super) fn damage(&mut self, choices: &mut Choices<'_>, forge: bool) -> Vec<u64> {
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
    pub(super) fn known_durable(&self, touched: &[u64]) -> Sequence {
        let intact = |at: &u64| !touched.contains(&(at / PAGE_BYTES as u64));
        let known = self.headers.iter().filter(|(at, _)| intact(at)).map(|(_, local)| local.durable);
        known.max().unwrap_or_default().max(self.superblock.durable)
    }
}
