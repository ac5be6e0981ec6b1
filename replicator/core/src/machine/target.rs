//! The target of a resync: a Secondary whose blocks are brought level. It stores that it is Inconsistent before its
//! first block is written, places each item where it stands in the stream, and is UpToDate again when all is durable.
//!
//! An item waits until this replica has applied what the source had when it read the blocks, and nothing beyond that is
//! applied before it is written. So it is ordered with the entries that overlap it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use xxhash_rust::xxh3::xxh3_128;

use super::apply::SPACE_RETRY_MS;
use super::block_read::{BlockRead, Reader, each_bit};
use super::checkpoint::Checkpoint;
use super::greet::Place;
use super::peer::LinkState;
use super::stage::Stage;
use super::{Io, Machine};
use crate::bookmarks::Bookmarks;
use crate::command::{Command, Report};
use crate::dirty::{BLOCK_BYTES, WORD_BLOCKS, WORD_BYTES};
use crate::disk::superblock::{Cut, DiskState};
use crate::event::{IoResult, ZeroKind};
use crate::limits::ITEMS_WAITING_MAX;
use crate::sums::{Sum, Ticket};
use crate::tracker::Base;
use crate::units::{Buffer, Instant, LinkId, PAGE_BYTES, Sequence, Span};
use crate::wire::blocks::{BlocksHeader, runs};
use crate::wire::envelope::Envelope;
use crate::wire::message::{Hashes, Message, Resync};

/// How long written items wait for a sync of the disk.
const SYNC_AFTER_MS: u64 = 50;
/// How many of them do not wait any longer.
const SYNC_AFTER_ITEMS: u64 = 128;
/// Words that may be hashed at one time.
const HASHING_MAX: usize = 4;

/// Items that come in, from one source in one session.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) link: LinkId,
    session: u64,
    /// What is gathered, if it is not put in place at once.
    pub(super) stage: Option<Box<Stage>>,
    pub(super) queue: VecDeque<(BlocksHeader, Buffer)>,
    pub(super) received: u64,
    pub(super) written: u64,
    pub(super) durable: u64,
    /// What the source was told of the last two.
    told: (u64, u64),
    unsynced_since: Option<Instant>,
    /// Items up to this one are synced; they are durable when their checksums are.
    unsummed: Option<(u64, Option<Ticket>)>,
    /// Since the disk had no space nothing was written; when to try again.
    retry_at: Option<Instant>,
    asked: VecDeque<(u64, u64)>,
    /// The source has no more.
    pub(super) is_finishing: bool,
    /// Superblock sequence that says UpToDate.
    pub(super) saved: Option<u64>,
}

impl Intake {
    pub(super) fn new(link: LinkId, session: u64) -> Self {
        Self {
            link,
            session,
            stage: None,
            queue: VecDeque::with_capacity(ITEMS_WAITING_MAX),
            received: 0,
            written: 0,
            durable: 0,
            told: (0, 0),
            unsynced_since: None,
            unsummed: None,
            retry_at: None,
            asked: VecDeque::new(),
            is_finishing: false,
            saved: None,
        }
    }
}

/// Items that are being written in place. They go on though their session ends.
#[derive(Debug)]
pub(super) struct Placing {
    link: LinkId,
    session: u64,
    items: Vec<(BlocksHeader, Buffer)>,
    writes_left: u32,
    /// A write found no space.
    is_short: bool,
    /// All is written; the checksums are being noted.
    is_noting: bool,
    /// Items of which they are.
    noted: usize,
}

/// Writes the blocks of an item from the page behind its header to where they belong, and zeroes those that are zeros. They
/// are in no log, so bookmarks are told. Says how many writes that are.
pub(super) fn put_in_place(
    item: &BlocksHeader,
    buffer: Buffer,
    io: Io,
    volume_bytes: u64,
    commands: &mut VecDeque<Command>,
    bookmarks: &mut Bookmarks,
) -> u32 {
    let token = io.token(0);
    let (mut at, mut writes) = (buffer.start() + PAGE_BYTES, 0);
    for (offset, length) in runs(item.word, item.present, volume_bytes) {
        let len = usize::try_from(length).expect("a word's blocks");
        bookmarks.note_outside(offset, length);
        commands.push_back(Command::WriteDisk { token, offset, span: Span { start: at, len } });
        at += len;
        writes += 1;
    }
    for (offset, length) in runs(item.word, item.zeros, volume_bytes) {
        bookmarks.note_outside(offset, length);
        commands.push_back(Command::ZeroDisk { token, offset, length, kind: ZeroKind::Trim });
        writes += 1;
    }
    writes
}

impl Machine {
    /// Applies all there is and makes it durable on the disk; then the log begins anew.
    pub(super) fn drain(&mut self, index: usize) {
        let LinkState::Draining { is_syncing } = self.link_mut(Place::Peer(index)).state else { return };
        if is_syncing || self.is_failed() {
            return;
        }
        let ticket = self.want_sums();
        if !self.is_quiet() || !self.sums_are_done(ticket) || self.drain_sync.is_some() {
            self.persist.want_sync(self.log.last());
            return;
        }
        let link = self.link_mut(Place::Peer(index));
        link.become_state(LinkState::Draining { is_syncing: true });
        self.drain_sync = Some(link.id);
        self.push(Command::SyncDisk { token: Io::DrainSync.token(0) });
    }

    /// Whether the copy here is being brought level by blocks, or about to be.
    pub(super) fn is_resynced(&self) -> bool {
        self.peers.iter().filter_map(|peer| peer.link.as_ref()).any(|link| link.plan.is_some())
    }

    /// Whether all there is is applied and durable, and nothing is under way.
    pub(super) fn is_quiet(&self) -> bool {
        let applied = self.log.applied.position.sequence == self.log.last() && self.apply.is_idle();
        let still = !self.log.has_unwritten() && !self.log.has_undurable() && !self.log.has_buffers();
        let quiet = self.checkpoint.is_idle() && !self.persist.is_syncing() && self.placing.is_none();
        applied && still && quiet && self.mending.is_none() && self.mends.is_empty() && !self.visit_sync
    }

    pub(super) fn on_drained(&mut self, result: IoResult) {
        let id = self.drain_sync.take().expect("the disk was being synced");
        if !self.device_ok("syncing the disk", result) || self.is_failed() {
            return;
        }
        let Some(Place::Peer(index)) = self.find_link(id) else { return };
        if (self.link_mut(Place::Peer(index)).state == LinkState::Draining { is_syncing: true }) {
            if self.may_stage(index) { self.enter_stage(index) } else { self.jump(index) }
        }
    }

    /// The log begins anew at a point of the source's. From here on the copy is Inconsistent, durably before the
    /// source hears of it.
    fn jump(&mut self, index: usize) {
        let plan = self.link_mut(Place::Peer(index)).plan.clone().expect("it was to jump");
        let Resync { jump, history, .. } = *plan;
        let jump = jump.expect("it was to jump");
        let hello = self.link_mut(Place::Peer(index)).hello.as_ref().expect("both said hello");
        let volume_bytes = hello.volume_bytes;
        let was = self.log.head.position;
        if self.meta.current.disk_state == DiskState::UpToDate {
            self.meta.current.data_base = Some(was);
        }
        self.meta.current.disk_state = DiskState::Inconsistent;
        self.restart_log(jump);
        self.set_volume_bytes(volume_bytes);
        self.persist.history = history;
        let saved = self.meta.change();
        self.link_mut(Place::Peer(index)).become_state(LinkState::Jumping { saved });
        self.report(Report::Cut { common: jump.position, was });
    }

    /// Forgets the log: it goes on behind `point`. Nothing of it may be under way.
    pub(super) fn restart_log(&mut self, point: Base) {
        assert!(self.checkpoint.is_idle() && self.saving.is_none(), "nothing of the old log is being saved");
        let sequence = point.position.sequence;
        self.log.restart(point.position, point.chain);
        self.grow.cut(Sequence(0));
        self.persist.restart(sequence);
        self.checkpoint = Checkpoint::new(self.log.head);
        (self.stable, self.committed, self.recovered_end) = (sequence, sequence, sequence);
        (self.overlay_through, self.damaged) = (sequence, Sequence(0));
        self.apply.restart(sequence);
        let current = &mut self.meta.current;
        // Whatever the ring still holds is no part of the log.
        current.cut = Cut { count: current.cut.count + 1, first: Sequence(0) };
        (current.tail, current.applied_through) = (self.log.head, self.log.head);
        (current.stable, current.durable) = (sequence, sequence);
        current.gathered = None;
        current.apply_reach = None;
        self.peers.iter_mut().for_each(|peer| peer.tracker.restart(point));
        self.restart_bookmarks(sequence);
        self.forget_maps();
    }

    pub(super) fn begin_intake(&mut self, index: usize) {
        let link = self.link_mut(Place::Peer(index));
        let (link, session) = (link.id, link.peer_session);
        assert!(self.meta.saved.disk_state == DiskState::Inconsistent, "it is stored before the first block");
        assert!(self.intake.is_none(), "a replica follows one source");
        assert!(
            self.bookmarks.is_empty() || self.meta.saved.bookmarks_behind,
            "a crash must not forget what is placed"
        );
        self.forget_found();
        self.intake = Some(Box::new(Intake::new(link, session)));
    }

    /// The session of `link` is over: what came in it and is not being written is forgotten.
    pub(super) fn drop_intake(&mut self, link: LinkId) {
        if self.intake.as_ref().is_some_and(|intake| intake.link == link) {
            let intake = self.intake.take().expect("looked at");
            intake.queue.into_iter().for_each(|(_, buffer)| self.pool.give(buffer));
        }
    }

    pub(super) fn accept_blocks(&mut self, index: usize, envelope: &Envelope, buffer: Buffer, arena: &[u8]) {
        let volume_bytes = self.incoming_bytes();
        let decoded = BlocksHeader::decode(&arena[buffer.span().range()], volume_bytes);
        let session = envelope.session;
        let (is_staging, may_come) = (self.is_staging(), self.may_stage_items());
        let intake = self.intake.as_mut().filter(|intake| intake.session == session);
        let reason = match (decoded, intake) {
            (Err(error), _) => format!("damaged blocks: {error}"),
            (_, None) => "blocks came, and no resync is under way".to_string(),
            (Ok(header), Some(intake)) => {
                let fits = header.number == intake.received + 1 && header.volume == self.config.volume;
                let is_reached = if is_staging { may_come } else { header.point <= self.log.last() };
                if fits && intake.queue.len() < ITEMS_WAITING_MAX && is_reached {
                    intake.received = header.number;
                    intake.queue.push_back((header, buffer));
                    return;
                }
                "blocks came out of order".to_string()
            }
        };
        self.pool.give(buffer);
        self.close(Place::Peer(index), &reason, true);
    }

    pub(super) fn on_compare(&mut self, index: usize, word: u64, bits: u64) {
        let volume_bytes = self.incoming_bytes();
        let words = volume_bytes.div_ceil(WORD_BYTES);
        let inside = word < words && bits != 0 && {
            let last = word * WORD_BYTES + u64::from(63 - bits.leading_zeros()) * BLOCK_BYTES;
            last < volume_bytes
        };
        match self.intake.as_mut().filter(|intake| inside && intake.asked.len() < 2 * ITEMS_WAITING_MAX) {
            Some(intake) => intake.asked.push_back((word, bits)),
            None => self.close(Place::Peer(index), "it asked for blocks that it may not ask for", true),
        }
    }

    pub(super) fn on_finish(&mut self, index: usize) {
        match self.intake.as_mut() {
            Some(intake) => intake.is_finishing = true,
            None => self.close(Place::Peer(index), "a resync ended that had not begun", true),
        }
    }

    /// Nothing beyond this is applied before the item that waits there is written.
    pub(super) fn intake_bound(&self) -> Option<Sequence> {
        let intake = self.intake.as_ref().filter(|intake| intake.stage.is_none())?;
        intake.queue.front().map(|(header, _)| header.point)
    }

    /// Places, syncs, hashes and answers what came in.
    pub(super) fn pump_intake(&mut self) {
        if self.intake.is_none() || self.is_failed() {
            return;
        }
        if self.is_staging() {
            self.stage_items();
            self.advance_stage();
        } else {
            self.place_items();
            self.sum_items();
            self.sync_items();
        }
        if self.intake.is_some() {
            self.hash_asked();
            self.tell_source();
        }
    }

    /// Writes the items whose point is reached. Entries are not applied at the same time.
    fn place_items(&mut self) {
        if self.placing.is_some() || !self.apply.is_idle() {
            return;
        }
        let (applied, volume_bytes) = (self.log.applied.position.sequence, self.volume_bytes());
        let Self { intake, commands, now, bookmarks, .. } = self;
        let intake = intake.as_mut().expect("looked at");
        if intake.retry_at.is_some_and(|due| due > *now) {
            return;
        }
        let mut items: Vec<(BlocksHeader, Buffer)> = Vec::new();
        let mut writes_left = 0;
        while let Some((header, buffer)) = intake.queue.front().copied() {
            // An older item of the same blocks is written first.
            if header.point > applied || items.iter().any(|(item, _)| item.word == header.word) {
                break;
            }
            intake.queue.pop_front();
            writes_left += put_in_place(&header, buffer, Io::Place, volume_bytes, commands, bookmarks);
            items.push((header, buffer));
        }
        if items.is_empty() {
            return;
        }
        let (link, session) = (intake.link, intake.session);
        let (is_short, is_noting, noted) = (false, false, 0);
        self.placing = Some(Placing { link, session, items, writes_left, is_short, is_noting, noted });
        if writes_left == 0 {
            self.finish_placing();
        }
    }

    pub(super) fn on_placed_write(&mut self, result: IoResult) {
        let placing = self.placing.as_mut().expect("items are being written");
        placing.writes_left -= 1;
        let done = placing.writes_left == 0;
        let is_fine = match result {
            // Nothing is wrong with the copy: the source waits until there is some.
            Err(errno) if errno.is_no_space() => {
                placing.is_short = true;
                true
            }
            result => self.device_ok("writing the disk", result),
        };
        if is_fine && done && !self.is_failed() {
            self.end_placing_writes();
        }
    }

    /// The blocks are on the disk, or there was no space for some: the sums of these say nothing of value until they are
    /// written again, and nobody asks before.
    fn end_placing_writes(&mut self) {
        let is_short = self.placing.as_ref().is_some_and(|placing| placing.is_short);
        if self.at_rest.is_none() || is_short {
            return self.finish_placing();
        }
        self.placing.as_mut().expect("items are being written").is_noting = true;
    }

    /// Notes the sums of blocks that are written in place, as far as their pages are here.
    pub(super) fn pump_placing(&mut self, arena: &[u8]) {
        let volume_bytes = self.volume_bytes();
        let Self { placing, at_rest, .. } = self;
        let Some(placing) = placing.as_mut().filter(|placing| placing.is_noting) else { return };
        let at_rest = at_rest.as_deref_mut().expect("there are sums");
        for (header, buffer) in &placing.items[placing.noted..] {
            let mut is_done = true;
            let mut at = buffer.start() + PAGE_BYTES;
            for bit in each_bit(header.present) {
                let block = header.word * WORD_BLOCKS + u64::from(bit);
                let len =
                    usize::try_from(BLOCK_BYTES.min(volume_bytes - block * BLOCK_BYTES)).expect("a block");
                is_done &= at_rest.sums.set(block, Sum::of(block, &arena[at..at + len]));
                at += len;
            }
            for bit in each_bit(header.zeros) {
                is_done &= at_rest.sums.set(header.word * WORD_BLOCKS + u64::from(bit), Sum::ZEROS);
            }
            if !is_done {
                return;
            }
            placing.noted += 1;
        }
        self.finish_placing();
    }

    fn finish_placing(&mut self) {
        let Placing { link, session, items, is_short, .. } =
            self.placing.take().expect("items were being written");
        let now = self.now;
        let of = |intake: &&mut Box<Intake>| intake.link == link && intake.session == session;
        let Some(intake) = self.intake.as_mut().filter(of) else {
            return items.iter().for_each(|(_, buffer)| self.pool.give(*buffer));
        };
        if is_short {
            items.into_iter().rev().for_each(|item| intake.queue.push_front(item));
            if intake.retry_at.replace(now.plus_ms(SPACE_RETRY_MS)).is_none() {
                self.report(Report::DiskFull);
            }
            return;
        }
        intake.written = items.last().expect("something was written").0.number;
        intake.unsynced_since.get_or_insert(now);
        if intake.retry_at.take().is_some() {
            self.report(Report::DiskHasSpace);
        }
        items.iter().for_each(|(_, buffer)| self.pool.give(*buffer));
    }

    /// Whether blocks wait for space on the disk.
    pub(super) fn intake_waits_for_space(&self) -> bool {
        self.intake.as_ref().is_some_and(|intake| intake.retry_at.is_some())
    }

    /// What is synced counts as durable once its checksums are.
    fn sum_items(&mut self) {
        let intake = self.intake.as_ref().expect("looked at");
        if let Some((written, ticket)) = intake.unsummed
            && self.sums_are_done(ticket)
        {
            let intake = self.intake.as_mut().expect("looked at");
            (intake.unsummed, intake.durable) = (None, written);
        }
    }

    fn sync_items(&mut self) {
        let now = self.now;
        if self.intake_sync.is_some() || self.intake.as_ref().is_some_and(|intake| intake.unsummed.is_some())
        {
            return;
        }
        let intake = self.intake.as_mut().expect("looked at");
        let Some(since) = intake.unsynced_since else { return };
        let many = intake.written - intake.durable >= SYNC_AFTER_ITEMS;
        if many || intake.is_finishing || now >= since.plus_ms(SYNC_AFTER_MS) {
            intake.unsynced_since = None;
            self.intake_sync = Some((intake.link, intake.session, intake.written));
            self.push(Command::SyncDisk { token: Io::IntakeSync.token(0) });
        }
    }

    pub(super) fn on_intake_synced(&mut self, result: IoResult) {
        let (link, session, written) = self.intake_sync.take().expect("items were being synced");
        if !self.device_ok("syncing the disk", result) {
            return;
        }
        let ticket = self.want_sums();
        if let Some(intake) = self.intake.as_mut().filter(|i| i.link == link && i.session == session) {
            intake.unsummed = Some((written, ticket));
        }
    }

    fn hash_asked(&mut self) {
        while self.count_reads(|reader| matches!(reader, Reader::Hashes(..))) < HASHING_MAX {
            let intake = self.intake.as_mut().expect("looked at");
            let id = intake.link;
            let Some((word, bits)) = intake.asked.front().copied() else { return };
            let Some(buffer) = self.take_block_buffer() else { return };
            self.intake.as_mut().expect("looked at").asked.pop_front();
            let place = self.find_link(id).expect("the intake ends with its link");
            let (session, volume_bytes) = (self.link_mut(place).session, self.incoming_bytes());
            self.begin_block_read(BlockRead::new(
                Reader::Hashes(id, session),
                word,
                bits,
                buffer,
                volume_bytes,
            ));
        }
    }

    /// Says what was read here. It may be old by the time the source compares it: what has changed since is in the
    /// stream up to the point at which the source reads.
    pub(super) fn send_hashes(&mut self, index: usize, read: BlockRead, arena: &[u8]) {
        self.pool.give(read.buffer);
        let link = self.link_mut(Place::Peer(index)).id;
        if self.intake.as_deref().is_none_or(|intake| intake.link != link) {
            return;
        }
        let mut hashes = Hashes { word: read.word, bits: read.bits, hashes: [0; WORD_BLOCKS as usize] };
        for (hash, bit) in hashes.hashes.iter_mut().zip(each_bit(read.bits)) {
            // What cannot be read here equals nothing: it is sent, and written.
            if read.bad >> bit & 1 == 0 {
                *hash = xxh3_128(&arena[read.block(bit).range()]);
            }
        }
        self.send(Place::Peer(index), Message::Hashes(Box::new(hashes)), false);
    }

    fn tell_source(&mut self) {
        let saved_sequence = self.meta.saved.sequence;
        let intake = self.intake.as_mut().expect("looked at");
        let (written, durable, told, id) = (intake.written, intake.durable, intake.told, intake.link);
        let is_done = intake.saved.is_some_and(|saved| saved_sequence >= saved);
        let all = intake.is_finishing && intake.queue.is_empty() && durable == intake.received;
        // What is gathered says so when it is in place.
        let all = all && intake.stage.is_none() && self.replay.is_none();
        let begins_to_save = all && intake.saved.is_none();
        intake.told = (written, durable);
        let place = self.find_link(id).expect("the intake ends with its link");
        if begins_to_save {
            let current = &mut self.meta.current;
            (current.disk_state, current.suspect, current.data_base) = (DiskState::UpToDate, false, None);
            current.diverges = false;
            self.diverged = None;
            let saved = self.meta.change();
            self.intake.as_mut().expect("looked at").saved = Some(saved);
        }
        if told != (written, durable) || is_done {
            self.send(place, Message::Placed { written, durable, is_done }, false);
        }
        if is_done {
            (self.intake, self.stage_unfit) = (None, false);
            self.link_mut(place).plan = None;
        }
    }

    /// When the target wants to be looked at though nothing happened.
    pub(super) fn intake_due(&self) -> Option<Instant> {
        let intake = self.intake.as_ref()?;
        let is_syncing = self.intake_sync.is_some() || intake.unsummed.is_some();
        let since = intake.unsynced_since.filter(|_| !is_syncing);
        let sync = since.map(|since| since.plus_ms(SYNC_AFTER_MS));
        let due = sync.into_iter().chain(intake.retry_at).min()?;
        Some(due.max(self.now.plus_ms(1)))
    }
}
