//! The source of a resync: a Primary sends the blocks that a peer may lack, each as an item of the stream. Which
//! blocks, the peer's [tracker](crate::tracker) says.
//!
//! ```text
//!            compare                hashes in             nothing unapplied overlaps      still so
//! (dirty) -----------> Asked -----------------> Waiting ---------------------> Reading ------------> Sent --> (written)
//!     |  without a comparison                      ^                              |
//!     +--------------------------------------------+---- overlapped meanwhile ----+
//! ```
//!
//! An item holds what the blocks hold after everything applied here, and nothing that overlaps them has been sequenced
//! beyond that when it leaves. So on the target it stands in the stream where it stands on the link. A range that
//! clients write to again and again is held at last: what overlaps it is not sequenced until its item has left.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use xxhash_rust::xxh3::xxh3_128;

use super::commit::each_extent;
use super::gather::Gathered;
use super::greet::Place;
use super::peer::LinkState;
use super::{Io, Machine};
use crate::command::{Command, Report};
use crate::dirty::{BLOCK_BYTES, WORD_BLOCKS, WORD_BYTES};
use crate::disk::superblock::DiskState;
use crate::event::IoResult;
use crate::limits::{ITEMS_UNDURABLE_MAX, ITEMS_WAITING_MAX};
use crate::status::Progress;
use crate::tracker::{Base, CopyId};
use crate::units::{Buffer, Instant, PAGE_BYTES, Sequence, Span, Token};
use crate::wire::blocks::BlocksHeader;
use crate::wire::envelope::MessageKind;
use crate::wire::message::{Hashes, Message, Resync, Start};

/// How long an item waits for a range that clients write to, before what overlaps it is held.
const HOLD_AFTER_MS: u64 = 50;

/// A resync, at its source.
#[derive(Debug)]
pub(super) struct Source {
    copy: CopyId,
    /// The map says all that the copy may lack; if not, everything is compared.
    is_covered: bool,
    compares: bool,
    /// The next word to look at.
    cursor: u64,
    items: Vec<Item>,
    /// Number of the item sent last.
    sent: u64,
    /// Items the target has written.
    written: u64,
    /// It was told that this was all.
    is_finishing: bool,
    /// When it began, and how many blocks were dirty then.
    pub(super) began: (Instant, u64),
}

/// One word's blocks on their way.
#[derive(Debug)]
struct Item {
    word: u64,
    bits: u64,
    stage: Stage,
    hashes: Option<Box<Hashes>>,
    /// Since when it waits for its range.
    since: Instant,
    /// What overlaps it is not sequenced. Its memory is taken before that: what is held back may have all the rest.
    held: Option<Buffer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The target was asked what it has there.
    Asked,
    /// It waits until nothing unapplied overlaps it.
    Waiting,
    /// The disk is being read.
    Reading,
    /// It was sent under this number.
    Sent(u64),
}

impl Source {
    /// The memory of what is held, as it ends. One that is being read into is given back when that ends.
    pub(super) fn held_buffers(&self) -> Vec<Buffer> {
        let waiting = self.items.iter().filter(|item| item.stage == Stage::Waiting);
        waiting.filter_map(|item| item.held).collect()
    }
}

/// A read of the disk for a resync, here or at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockRead {
    pub(super) link: crate::units::LinkId,
    pub(super) session: u64,
    pub(super) word: u64,
    pub(super) bits: u64,
    pub(super) buffer: Buffer,
    /// To send the blocks; if not, to hash them.
    pub(super) to_send: bool,
}

impl BlockRead {
    /// The range that is read: (first byte in the volume, bytes).
    fn range(&self, volume_bytes: u64) -> (u64, usize) {
        let first = self.word * WORD_BYTES + u64::from(self.bits.trailing_zeros()) * BLOCK_BYTES;
        let end = self.word * WORD_BYTES + u64::from(64 - self.bits.leading_zeros()) * BLOCK_BYTES;
        (first, usize::try_from(end.min(volume_bytes) - first).expect("a word's blocks"))
    }

    /// Where block `bit` lies in the buffer.
    pub(super) fn block(&self, bit: u32, volume_bytes: u64) -> Span {
        let (first, _) = self.range(volume_bytes);
        let at = self.word * WORD_BYTES + u64::from(bit) * BLOCK_BYTES;
        let len = usize::try_from(BLOCK_BYTES.min(volume_bytes - at)).expect("a block");
        let skip = usize::try_from(at - first).expect("within the range");
        Span { start: self.buffer.start() + PAGE_BYTES + skip, len }
    }
}

/// The token of a send of blocks names their buffer.
fn token_of(buffer: Buffer) -> Token {
    Io::SendBlocks.token(u64::from(buffer.page) << 16 | u64::from(buffer.pages))
}

/// The buffer that [`token_of`] named.
pub(super) fn buffer_of(token: Token) -> Buffer {
    let narrow = |n: u64| u32::try_from(n).expect("it was put in as 32 bits");
    let index = super::index_of(token);
    Buffer { page: narrow(index >> 16), pages: narrow(index & 0xffff) }
}

/// The bits of a word, one by one.
pub(super) fn each_bit(bits: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |bit| bits >> bit & 1 == 1)
}

impl Machine {
    fn source_mut(&mut self, index: usize) -> Option<&mut Source> {
        self.peers[index].link.as_mut()?.resync.as_deref_mut()
    }

    /// Announces a stream with blocks. If the journal does not reach back, the target's log begins anew where this
    /// replica has applied everything.
    pub(super) fn start_resync(&mut self, index: usize, start: Start) {
        let place = Place::Peer(index);
        let applied = self.log.applied;
        let hello = self.link_mut(place).hello.clone().expect("both said hello");
        let complete = match hello.disk_state {
            DiskState::UpToDate => Some(start.common),
            _ => hello.data_base,
        };
        let tracker = &self.peers[index].tracker;
        let is_covered = tracker.covers(hello.copy(), complete, start.common);
        let compares = !is_covered || tracker.is_everything();
        let jump = (!self.reaches_back_to(start.common))
            .then_some(Base { position: applied.position, chain: applied.chain });
        let mut history = self.persist.history;
        if let Some(jump) = jump {
            history.truncate(jump.position.sequence);
        }
        let now = self.now;
        let link = self.link_mut(place);
        if let Some(jump) = jump {
            link.next = jump.position.sequence.next();
            link.place = Some(applied.into());
        }
        let began = (now, 0);
        link.resync = Some(Box::new(Source {
            copy: hello.copy(),
            is_covered,
            compares,
            cursor: 0,
            items: Vec::new(),
            sent: 0,
            written: 0,
            is_finishing: false,
            began,
        }));
        let node = self.peers[index].config.node;
        let kind = if is_covered { "dirty blocks" } else { "full, by comparison" };
        self.report(Report::Peer { node, text: format!("resync begins: {kind}") });
        self.send(place, Message::Resync(Resync { start, is_full: !is_covered, jump, history }), false);
    }

    /// The peer acknowledged the beginning of its stream: from here on it is known what it lacks.
    pub(super) fn begin_tracking(&mut self, index: usize, durable: Sequence) {
        let (now, peer) = (self.now, &mut self.peers[index]);
        let Some(source) = peer.link.as_mut().and_then(|link| link.resync.as_mut()) else {
            peer.tracker.begin_stream(durable);
            return;
        };
        peer.tracker.begin_resync(source.copy, durable, source.is_covered);
        source.began = (now, peer.tracker.map().dirty_blocks());
    }

    /// Moves the resync of a peer.
    pub(super) fn pump_source(&mut self, index: usize, arena: &[u8]) {
        if !self.role.is_serving() || self.source_mut(index).is_none() {
            return;
        }
        self.open_items(index);
        let source = self.source_mut(index).expect("looked at above");
        let waiting = |item: &Item| (item.stage == Stage::Waiting).then_some(item.word);
        let words: Vec<u64> = source.items.iter().filter_map(waiting).collect();
        for word in words {
            self.read_item(index, word, arena);
        }
        self.finish_source(index);
    }

    fn open_items(&mut self, index: usize) {
        let now = self.now;
        let plenty = self.pool.free_pages() > self.pool.pages() / 4;
        loop {
            let peer = &mut self.peers[index];
            let source = peer.link.as_mut().and_then(|link| link.resync.as_deref_mut()).expect("looked at");
            let plenty = plenty || source.items.is_empty();
            let full = source.items.len() >= ITEMS_WAITING_MAX
                || peer.tracker.undurable_items() >= ITEMS_UNDURABLE_MAX;
            let map = peer.tracker.map();
            let next = map.next_word(source.cursor).or_else(|| map.next_word(0));
            let Some(word) = next.filter(|_| !full && plenty) else { return };
            let busy = peer.tracker.is_sent(word) || source.items.iter().any(|item| item.word == word);
            if busy {
                // Words under way lie together: behind them the next one is free, or there is none.
                let free = (word + 1..map.words()).find_map(|from| {
                    let word = map.next_word(from)?;
                    let open = source.items.iter().any(|item| item.word == word);
                    (!open && !peer.tracker.is_sent(word)).then_some(word)
                });
                let Some(free) = free else { return };
                source.cursor = free;
                continue;
            }
            if !self.pace.may_start(now) {
                return;
            }
            let peer = &mut self.peers[index];
            let bits = peer.tracker.map().word(word);
            let source = peer.link.as_mut().and_then(|link| link.resync.as_deref_mut()).expect("as above");
            source.cursor = word + 1;
            let stage = if source.compares { Stage::Asked } else { Stage::Waiting };
            source.items.push(Item { word, bits, stage, hashes: None, since: now, held: None });
            if source.compares {
                self.send(Place::Peer(index), Message::Compare { word, bits }, false);
            }
        }
    }

    pub(super) fn on_hashes(&mut self, index: usize, hashes: Box<Hashes>) {
        let now = self.now;
        let Some(source) = self.source_mut(index) else { return };
        let asked = |item: &&mut Item| {
            item.word == hashes.word && item.bits == hashes.bits && item.stage == Stage::Asked
        };
        match source.items.iter_mut().find(asked) {
            Some(item) => {
                (item.stage, item.since, item.hashes) = (Stage::Waiting, now, Some(hashes));
            }
            None => self.close(Place::Peer(index), "it hashed what it was not asked for", true),
        }
    }

    /// Reads a waiting item's blocks if nothing is on its way to them.
    fn read_item(&mut self, index: usize, word: u64, arena: &[u8]) {
        let (now, volume_bytes) = (self.now, self.meta.saved.volume_bytes);
        let link = self.peers[index].link.as_ref().expect("the caller has it");
        let (id, session, is_level) = (link.id, link.session, link.next > self.log.applied.position.sequence);
        let source = link.resync.as_ref().expect("the caller has it");
        let item = source.items.iter().find(|item| item.word == word).expect("the caller has it");
        let bits = item.bits;
        let late = now >= item.since.plus_ms(HOLD_AFTER_MS);
        let held = item.held;
        let start = word * WORD_BYTES;
        let overlapped = self.has_unapplied(start, start + WORD_BYTES, arena);
        if !is_level || (overlapped && (held.is_some() || !late)) {
            return;
        }
        let Some(buffer) = held.or_else(|| self.take_block_buffer()) else { return };
        if overlapped {
            let source = self.source_mut(index).expect("as above");
            let item = source.items.iter_mut().find(|item| item.word == word).expect("as above");
            item.held = Some(buffer);
            return;
        }
        let read = BlockRead { link: id, session, word, bits, buffer, to_send: true };
        let source = self.source_mut(index).expect("as above");
        let item = source.items.iter_mut().find(|item| item.word == word).expect("as above");
        item.stage = Stage::Reading;
        self.begin_block_read(read, volume_bytes);
    }

    /// Memory for the blocks of a word: of what is plenty, or for one word at a time of what is left. So a resync goes
    /// on however much clients write.
    pub(super) fn take_block_buffer(&mut self) -> Option<Buffer> {
        let plenty = self.pool.free_pages() > self.pool.pages() / 4;
        let sources = self.peers.iter().filter_map(|peer| peer.link.as_ref()?.resync.as_ref());
        let holds = sources.into_iter().any(|source| source.items.iter().any(|item| item.held.is_some()));
        let alone = !holds && self.block_reads.iter().all(Option::is_none);
        if plenty || alone { self.pool.take(PAGE_BYTES + WORD_BYTES as usize) } else { None }
    }

    /// Reads the blocks behind the first page of the buffer.
    pub(super) fn begin_block_read(&mut self, read: BlockRead, volume_bytes: u64) {
        let (offset, len) = read.range(volume_bytes);
        let slot = self.block_reads.iter().position(Option::is_none).unwrap_or_else(|| {
            self.block_reads.push(None);
            self.block_reads.len() - 1
        });
        self.block_reads[slot] = Some(read);
        let span = Span { start: read.buffer.start() + PAGE_BYTES, len };
        self.push(Command::ReadDisk { token: Io::BlockRead.token(slot as u64), offset, span });
    }

    /// Whether entries that are not applied overlap `start..end`. A serving Primary has them all in memory.
    fn has_unapplied(&self, start: u64, end: u64, arena: &[u8]) -> bool {
        if self.overlay.overlaps(start, end) {
            return true;
        }
        let mut found = false;
        let through = self.overlay_through.max(self.log.applied.position.sequence);
        let first = self.log.find(through.next()).unwrap_or(self.log.next_number());
        for number in first..self.log.next_number() {
            let frame = self.log.frame(number).expect("counted");
            let Some(buffer) = frame.buffer.filter(|_| frame.entries > 0) else { continue };
            each_extent(buffer, frame.first, arena, |extent| {
                found |= extent.start < end && extent.end() > start;
            });
        }
        found
    }

    /// Whether blocks that are being read to be sent must not change under that.
    pub(super) fn blocks_are_read(&self, start: u64, end: u64) -> bool {
        let overlaps = |read: &BlockRead| {
            let from = read.word * WORD_BYTES;
            read.to_send && from < end && from + WORD_BYTES > start
        };
        self.block_reads.iter().flatten().any(overlaps)
    }

    /// Whether some of these must not be sequenced yet: a resync waits for their range.
    pub(super) fn are_held(&self, entries: &[Gathered]) -> bool {
        let sources = self.peers.iter().filter_map(|peer| peer.link.as_ref()?.resync.as_ref());
        let held = sources.flat_map(|source| source.items.iter().filter(|item| item.held.is_some()));
        held.into_iter().any(|item| {
            let (start, end) = (item.word * WORD_BYTES, (item.word + 1) * WORD_BYTES);
            entries.iter().any(|gathered| {
                gathered.entry.offset < end && gathered.entry.offset + gathered.entry.length > start
            })
        })
    }

    pub(super) fn on_block_read(&mut self, slot: u64, result: IoResult, arena: &mut [u8]) {
        let slot = usize::try_from(slot).expect("a slot");
        let read = self.block_reads[slot].take().expect("it was being read");
        let place = self.find_link(read.link);
        let index = match place {
            Some(Place::Peer(index)) if self.link_mut(Place::Peer(index)).session == read.session => index,
            _ => return self.pool.give(read.buffer),
        };
        if let Err(errno) = result {
            self.pool.give(read.buffer);
            let reason = format!("reading the disk for its resync failed (error {})", errno.0);
            return self.close(Place::Peer(index), &reason, true);
        }
        if read.to_send {
            self.send_item(index, read, arena);
        } else {
            self.send_hashes(index, read, arena);
        }
    }

    /// Sends what was read, if nothing that overlaps it has been sequenced since.
    fn send_item(&mut self, index: usize, read: BlockRead, arena: &mut [u8]) {
        let place = Place::Peer(index);
        let start = read.word * WORD_BYTES;
        let point = self.log.applied.position.sequence;
        let overlapped = self.has_unapplied(start, start + WORD_BYTES, arena);
        let link = self.link_mut(place);
        let streams = link.state == LinkState::Streaming && link.resync.is_some();
        if !streams || !self.role.is_serving() {
            return self.pool.give(read.buffer);
        }
        let link = self.link_mut(place);
        let is_level = link.next > point;
        let source = link.resync.as_deref_mut().expect("looked at above");
        let item = source.items.iter_mut().find(|item| item.word == read.word).expect("it waits for this");
        if overlapped || !is_level {
            item.stage = Stage::Waiting;
            if item.held.is_none() {
                self.pool.give(read.buffer);
            }
            return;
        }
        source.sent += 1;
        let number = source.sent;
        (item.stage, item.held) = (Stage::Sent(number), None);
        let hashes = item.hashes.take();
        let header = BlocksHeader {
            volume: self.config.volume,
            number,
            point,
            word: read.word,
            present: 0,
            zeros: 0,
            payload_crc: 0,
        };
        let payload = self.pack(header, read, hashes.as_deref(), arena);
        self.peers[index].tracker.note_sent(number, read.word, read.bits);
        let total = PAGE_BYTES + payload.next_multiple_of(PAGE_BYTES);
        let buffer = self.pool.shrink(read.buffer, total);
        self.counters.resync_bytes += payload as u64;
        self.send_blocks(index, buffer);
    }

    /// Moves the blocks that differ together and encodes the header; returns their bytes.
    fn pack(
        &self,
        mut header: BlocksHeader,
        read: BlockRead,
        hashes: Option<&Hashes>,
        arena: &mut [u8],
    ) -> usize {
        let volume_bytes = self.meta.saved.volume_bytes;
        let start = read.buffer.start() + PAGE_BYTES;
        let mut end = start;
        for (rank, bit) in each_bit(read.bits).enumerate() {
            let span = read.block(bit, volume_bytes);
            let bytes = &arena[span.range()];
            let is_same = hashes.is_some_and(|hashes| hashes.hashes[rank] == xxh3_128(bytes));
            if is_same {
                continue;
            }
            if bytes.iter().all(|byte| *byte == 0) {
                header.zeros |= 1 << bit;
            } else {
                header.present |= 1 << bit;
                arena.copy_within(span.range(), end);
                end += span.len;
            }
        }
        let payload = end - start;
        let total = PAGE_BYTES + payload.next_multiple_of(PAGE_BYTES);
        header.encode(&mut arena[read.buffer.start()..read.buffer.start() + total], payload);
        payload
    }

    fn send_blocks(&mut self, index: usize, buffer: Buffer) {
        let now = self.now;
        let told = (self.committed, self.stable);
        let token = token_of(buffer);
        let bytes = u32::try_from(buffer.len_bytes()).expect("an item is small");
        let link = self.link_mut(Place::Peer(index));
        link.sends.push_back((token, bytes));
        link.in_flight_bytes += u64::from(bytes);
        (link.said_at, link.told, link.mark_due) = (now, told, None);
        let (id, session) = (link.id, link.session);
        let mut envelope = self.envelope_of(session, MessageKind::Blocks, false);
        envelope.body_bytes = bytes;
        let span = Span { start: buffer.start(), len: buffer.len_bytes() };
        self.push(Command::SendFrame { link: id, token, envelope, span });
    }

    /// The target says how far it is.
    pub(super) fn on_placed(&mut self, index: usize, written: u64, durable: u64, is_done: bool) {
        let Some(source) = self.source_mut(index) else { return };
        let sound = durable <= written && written <= source.sent && written >= source.written;
        if !sound || (is_done && !source.is_finishing) {
            let reason =
                format!("it says that {durable} of {written} blocks' items are durable, which cannot be");
            return self.close(Place::Peer(index), &reason, true);
        }
        source.written = written;
        source.items.retain(|item| !matches!(item.stage, Stage::Sent(number) if number <= written));
        self.peers[index].tracker.note_durable(durable);
        if !is_done {
            return;
        }
        let peer = &mut self.peers[index];
        let (node, link) = (peer.config.node, peer.link.as_mut().expect("it has a resync"));
        link.resync = None;
        if let Some(hello) = link.hello.as_mut() {
            (hello.disk_state, hello.suspect) = (DiskState::UpToDate, false);
        }
        peer.tracker.finish_resync();
        self.report(Report::Peer { node, text: format!("resync is done: {}", DiskState::UpToDate) });
    }

    /// Says that this was all, when everything is durable there.
    fn finish_source(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let source = peer.link.as_mut().and_then(|link| link.resync.as_deref_mut()).expect("looked at");
        let done = peer.tracker.map().is_empty() && source.items.is_empty() && !source.is_finishing;
        if done {
            source.is_finishing = true;
            self.send(Place::Peer(index), Message::Finish, false);
        }
    }

    /// How far the resync of a peer has come, if one is under way.
    pub(super) fn progress(&self, index: usize) -> Option<Progress> {
        let peer = &self.peers[index];
        let (at, blocks) = peer.link.as_ref()?.resync.as_ref()?.began;
        Some(Progress {
            blocks,
            left_blocks: peer.tracker.map().dirty_blocks(),
            elapsed_ms: self.now.0.saturating_sub(at.0) / 1_000_000,
            allowed_rate: self.pace.rate(),
        })
    }

    /// When a resync wants to be looked at though nothing happened.
    pub(super) fn source_due(&self) -> Option<Instant> {
        if !self.role.is_serving() {
            return None;
        }
        let due = |peer: &super::peer::Peer| {
            let link = peer.link.as_ref().filter(|link| link.state == LinkState::Streaming)?;
            let source = link.resync.as_ref()?;
            let held = source.items.iter().filter(|item| item.stage == Stage::Waiting && item.held.is_none());
            let holds = held.map(|item| item.since.plus_ms(HOLD_AFTER_MS)).min();
            let more = source.items.len() < ITEMS_WAITING_MAX && !peer.tracker.map().is_empty();
            let starts = more.then(|| self.pace.due());
            holds.into_iter().chain(starts).min()
        };
        let first = self.peers.iter().filter_map(due).min()?;
        Some(first.max(self.now.plus_ms(1)))
    }
}

const _: () = assert!(WORD_BLOCKS == 64, "a word's blocks are the bits of one integer");
