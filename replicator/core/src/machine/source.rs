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
use alloc::string::String;
use alloc::vec::Vec;

use xxhash_rust::xxh3::xxh3_128;

use super::block_read::{BlockRead, Reader, each_bit, overlaps};
use super::commit::each_extent;
use super::gather::Gathered;
use super::greet::Place;
use super::peer::LinkState;
use super::{Io, Machine};
use crate::command::{Command, Report};
use crate::dirty::{BLOCK_BYTES, DirtyMap, WORD_BLOCKS, WORD_BYTES};
use crate::disk::superblock::DiskState;
use crate::frame::Entry;
use crate::limits::{ITEMS_UNDURABLE_MAX, ITEMS_WAITING_MAX};
use crate::status::Progress;
use crate::tracker::{Base, CopyId, Tracker};
use crate::units::{Buffer, Instant, PAGE_BYTES, Sequence, Span, Token};
use crate::wire::blocks::BlocksHeader;
use crate::wire::envelope::MessageKind;
use crate::wire::message::{Hashes, Message, Resync, Start};

/// How long an item waits for a range that clients write to, before what overlaps it is held.
pub(super) const HOLD_AFTER_MS: u64 = 50;

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
    /// The target gathers what is sent; what is left to send to it then.
    pub(super) staged: Option<Staging>,
    /// When it began, and how many blocks were dirty then.
    pub(super) began: (Instant, u64),
}

/// The resync of a peer that gathers. The map says what it lacks as if it were not there: nothing of what it gathers
/// counts before it has switched.
#[derive(Debug)]
pub(super) struct Staging {
    /// Blocks that are still to be sent.
    todo: DirtyMap,
    /// The newest point of an item.
    point: Sequence,
    /// All blocks are sent, and the stream follows.
    pub(super) streams: bool,
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
    /// The blocks that are to be sent.
    fn todo<'a>(&'a self, tracker: &'a Tracker) -> &'a DirtyMap {
        self.staged.as_ref().map_or(tracker.map(), |staged| &staged.todo)
    }

    /// The memory of what is held, as it ends. One that is being read into is given back when that ends.
    pub(super) fn held_buffers(&self) -> Vec<Buffer> {
        let waiting = self.items.iter().filter(|item| item.stage == Stage::Waiting);
        waiting.filter_map(|item| item.held).collect()
    }

    /// Whether a range is held back from clients.
    pub(super) fn holds(&self) -> bool {
        self.items.iter().any(|item| item.held.is_some())
    }
}

/// The token of a send of blocks names their buffer.
fn token_of(buffer: Buffer) -> Token {
    Io::SendBlocks.token(buffer_index(buffer))
}

/// A buffer as a token names it.
pub(super) fn buffer_index(buffer: Buffer) -> u64 {
    u64::from(buffer.page) << 16 | u64::from(buffer.pages)
}

/// The buffer that a token names.
pub(super) fn buffer_of(token: Token) -> Buffer {
    let narrow = |n: u64| u32::try_from(n).expect("it was put in as 32 bits");
    let index = super::index_of(token);
    Buffer { page: narrow(index >> 16), pages: narrow(index & 0xffff) }
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
        let is_sound = hello.disk_state == DiskState::UpToDate && !hello.diverges && !hello.yields;
        let is_counted = self.counted().contains(hello.node) || self.peers[index].overtaken;
        let blocks = self.peers[index].tracker.dirty_blocks().max(1);
        let stageable_blocks = if is_sound && !is_counted && jump.is_some() { blocks } else { 0 };
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
            staged: None,
            began,
        }));
        let node = self.peers[index].config.node;
        let kind = if is_covered { "dirty blocks" } else { "full, by comparison" };
        self.report(Report::Peer { node, text: format!("resync begins: {kind}") });
        let is_full = !is_covered;
        let resync = Resync { start, is_full, jump, history, stageable_blocks };
        self.send(place, Message::Resync(resync), false);
    }

    /// The target gathers. Its map stays as it is until it has switched.
    pub(super) fn on_staging(&mut self, index: usize) {
        let place = Place::Peer(index);
        let (now, node) = (self.now, self.peers[index].config.node);
        let is_counted = self.counted().contains(node);
        let link = self.link_mut(place);
        let begins = link.state == LinkState::Starting && link.resync.is_some() && !is_counted;
        if !begins {
            return self.close(place, "it gathers what it may not gather", true);
        }
        let mut todo = self.peers[index].tracker.map().clone();
        let link = self.link_mut(place);
        link.become_state(LinkState::Streaming);
        let point = link.next.previous();
        let source = link.resync.as_deref_mut().expect("looked at above");
        if !source.is_covered {
            todo.set_all();
        }
        source.began = (now, todo.dirty_blocks());
        source.staged = Some(Staging { todo, point, streams: false });
        let record = self.meta.saved.record;
        self.send(place, Message::Record(record), false);
        self.report(Report::Peer {
            node,
            text: String::from("it gathers the blocks before it gives up what it has"),
        });
    }

    /// The peer acknowledged the beginning of its stream: from here on it is known what it lacks.
    pub(super) fn begin_tracking(&mut self, index: usize, durable: Sequence) {
        let (now, peer) = (self.now, &mut self.peers[index]);
        let Some(source) = peer.link.as_mut().and_then(|link| link.resync.as_mut()) else {
            peer.tracker.begin_stream(durable);
            return;
        };
        let copy = source.copy;
        peer.tracker.begin_resync(copy, durable, source.is_covered);
        let link = peer.link.as_mut().expect("it has a resync");
        let diverges = link.hello.as_ref().is_some_and(|hello| hello.diverges);
        let diverged = link.diverged.take();
        match diverged.as_ref().map(|told| told.whole()) {
            Some(Some(map)) => peer.tracker.add_diverged(map),
            // It could not tell: then all of it may differ.
            Some(None) => {
                peer.tracker.begin_resync(copy, durable, false);
                link.resync.as_mut().expect("looked at above").compares = true;
            }
            None if diverges => {
                let reason = "it did not say which of its blocks differ";
                return self.close(Place::Peer(index), reason, true);
            }
            None => {}
        }
        let source = link.resync.as_mut().expect("looked at above");
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
            let map = source.todo(&peer.tracker);
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
            let source = peer.link.as_mut().and_then(|link| link.resync.as_deref_mut()).expect("as above");
            let bits = source.todo(&peer.tracker).word(word);
            if let Some(staged) = source.staged.as_mut() {
                // Once is enough: what is written there later is in the stream.
                staged.todo.clear_word(word, bits);
            }
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
        let now = self.now;
        let link = self.peers[index].link.as_ref().expect("the caller has it");
        let (id, session) = (link.id, link.session);
        let source = link.resync.as_ref().expect("the caller has it");
        let is_level = source.staged.is_some() || link.next > self.log.applied.position.sequence;
        let item = source.items.iter().find(|item| item.word == word).expect("the caller has it");
        let bits = item.bits;
        let late = now >= item.since.plus_ms(HOLD_AFTER_MS);
        let held = item.held;
        let start = word * WORD_BYTES;
        if self.is_mending(start, start + WORD_BYTES) {
            return;
        }
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
        let read = BlockRead::new(Reader::Source(id, session), word, bits, buffer, self.volume_bytes());
        let source = self.source_mut(index).expect("as above");
        let item = source.items.iter_mut().find(|item| item.word == word).expect("as above");
        item.stage = Stage::Reading;
        self.begin_block_read(read);
    }

    /// Whether entries that are not applied overlap `start..end`. A serving Primary has them all in memory.
    pub(super) fn has_unapplied(&self, start: u64, end: u64, arena: &[u8]) -> bool {
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

    /// Whether some of these must not be sequenced yet: a resync, a verify or a repair waits for their range.
    pub(super) fn are_held(&self, entries: &[Gathered]) -> bool {
        let sources = self.peers.iter().filter_map(|peer| peer.link.as_ref()?.resync.as_ref());
        let items = sources.flat_map(|source| source.items.iter().filter(|item| item.held.is_some()));
        let words = items.map(|item| item.word).chain(self.words_held_for_verify());
        let words = words.map(|word| (word * WORD_BYTES, (word + 1) * WORD_BYTES));
        words.chain(self.blocks_held_for_mends()).any(|range| {
            entries.iter().any(|gathered| {
                let Entry { offset, length, .. } = gathered.entry;
                overlaps(range, (offset, offset + length))
            })
        })
    }

    /// Sends what was read, if nothing that overlaps it has been sequenced since.
    pub(super) fn send_item(&mut self, index: usize, read: BlockRead, arena: &mut [u8]) {
        let place = Place::Peer(index);
        if read.bad != 0 && !self.mend_for_source(index, &read) {
            self.pool.give(read.buffer);
            // Not tried again at once: only what is written anew, or another replica that returns, changes this.
            let bad = read.bad.trailing_zeros();
            let block = read.word * WORD_BLOCKS + u64::from(bad);
            return self.refuse(
                place,
                format!(
                    "the Secondary needs blocks that the Primary cannot read and no connected replica has, the first at byte \
                     {}: bring another copy back, or write them anew over the volume; it is tried again by itself",
                    block * BLOCK_BYTES
                ),
            );
        }
        let start = read.word * WORD_BYTES;
        let point = self.log.applied.position.sequence;
        let overlapped = self.has_unapplied(start, start + WORD_BYTES, arena);
        let link = self.link_mut(place);
        let streams = link.state == LinkState::Streaming && link.resync.is_some();
        if !streams || !self.role.is_serving() {
            return self.pool.give(read.buffer);
        }
        let link = self.link_mut(place);
        let next = link.next;
        let source = link.resync.as_deref_mut().expect("looked at above");
        let is_level = source.staged.is_some() || next > point;
        let item = source.items.iter_mut().find(|item| item.word == read.word).expect("it waits for this");
        if overlapped || !is_level || read.bad != 0 {
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
        let source = self.source_mut(index).expect("looked at above");
        match source.staged.as_mut() {
            Some(staged) => staged.point = staged.point.max(point),
            None => self.peers[index].tracker.note_sent(number, read.word, read.bits),
        }
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
        let start = read.buffer.start() + PAGE_BYTES;
        let mut end = start;
        for (rank, bit) in each_bit(read.bits).enumerate() {
            let span = read.block(bit);
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
        let is_staged = source.staged.is_some();
        let stable = self.stable;
        let held = self.link_mut(Place::Peer(index)).ack.durable.min(stable);
        if !is_staged {
            self.peers[index].tracker.note_durable(durable);
        }
        if !is_done {
            return;
        }
        let peer = &mut self.peers[index];
        peer.overtaken = false;
        let (node, link) = (peer.config.node, peer.link.as_mut().expect("it has a resync"));
        link.resync = None;
        if let Some(hello) = link.hello.as_mut() {
            (hello.disk_state, hello.suspect) = (DiskState::UpToDate, false);
        }
        if is_staged {
            // What was said while it switched it did not hear.
            (link.told, link.mark_due) = ((Sequence(0), Sequence(0)), None);
            peer.tracker.begin_stream(held);
            let record = self.meta.saved.record;
            self.send(Place::Peer(index), Message::Record(record), false);
        } else {
            peer.tracker.finish_resync();
        }
        self.report(Report::Peer { node, text: format!("resync is done: {}", DiskState::UpToDate) });
    }

    /// Says that this was all, when everything is durable there, or gathered.
    fn finish_source(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let link = peer.link.as_mut().expect("looked at");
        let (next, source) = (link.next, link.resync.as_deref_mut().expect("looked at"));
        let is_sent = source.todo(&peer.tracker).is_empty() && source.items.is_empty();
        let is_level = match source.staged.as_mut() {
            Some(staged) => {
                staged.streams = is_sent;
                next > staged.point
            }
            None => true,
        };
        if is_sent && is_level && !source.is_finishing {
            source.is_finishing = true;
            self.send(Place::Peer(index), Message::Finish, false);
        }
    }

    /// How far the resync of a peer has come, if one is under way.
    pub(super) fn progress(&self, index: usize) -> Option<Progress> {
        let peer = &self.peers[index];
        let source = peer.link.as_ref()?.resync.as_ref()?;
        let (at, blocks) = source.began;
        Some(Progress {
            blocks,
            left_blocks: source.todo(&peer.tracker).dirty_blocks(),
            is_staged: source.staged.is_some(),
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
            let more = source.items.len() < ITEMS_WAITING_MAX && !source.todo(&peer.tracker).is_empty();
            let starts = more.then(|| self.pace.due());
            holds.into_iter().chain(starts).min()
        };
        let first = self.peers.iter().filter_map(due).min()?;
        Some(first.max(self.now.plus_ms(1)))
    }
}

const _: () = assert!(WORD_BLOCKS == 64, "a word's blocks are the bits of one integer");
