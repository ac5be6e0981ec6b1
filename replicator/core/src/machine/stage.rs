//! Staging: the target of a resync gathers blocks and stream in its journal, behind its log, and stays what it is
//! meanwhile: a consistent copy as of its old position, which may be promoted by force as any copy that is behind. One
//! write of the superblock switches it to what it gathered; until then nothing of it counts, and all of it may be lost.
//!
//! ```text
//!   ring:  ... old log | item item item ... | frame frame frame ... |
//!              head -->^  gathered.from      ^ the log begins anew   ^ its head, after the switch
//! ```
//!
//! The source sends all blocks first and then the stream, from where it had applied everything when it began. What an
//! item holds is as of its point, and the stream that is gathered ends behind every point. So it does not matter that
//! entries up to a point come after its item: whatever they write is written again by what follows them, or is what the
//! item holds. The frames are written under a number of cuts that the superblock calls cut already; the switch calls
//! them back in.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use super::greet::Place;
use super::peer::LinkState;
use super::replay::Replay;
use super::source::{buffer_index, buffer_of};
use super::target::Intake;
use super::{Io, Machine};
use crate::command::{Command, Report};
use crate::dirty::BLOCK_BYTES;
use crate::disk::superblock::{Cut, DiskState, Gathered, LogPoint};
use crate::event::IoResult;
use crate::frame::{self, EntryKind, FrameHeader, LocalPart};
use crate::history::{History, Reign};
use crate::limits::{FRAME_BYTES_MAX, RING_RESERVE_BYTES};
use crate::status::Staged;
use crate::tracker::Base;
use crate::units::{Buffer, PAGE_BYTES, RingOffset, Sequence, Span, Token};
use crate::wire::envelope::Envelope;
use crate::wire::message::Message;

/// Set in the token of a write that holds an item, and not a frame.
const IS_ITEM: u64 = 1 << 55;

/// What is gathered, from one source in one session.
#[derive(Debug)]
pub(super) struct Stage {
    /// How many cuts the frames say there were.
    cuts: u64,
    /// Where the first item lies.
    from: RingOffset,
    /// Where the items end; known when the first frame comes, or the switch.
    to: Option<RingOffset>,
    /// Where the next item or frame goes, and the end of the stream that was gathered.
    head: LogPoint,
    /// The reigns up to there.
    history: History,
    frames: Vec<(FrameHeader, RingOffset)>,
    items: u64,
    /// What the volume has at the source, and the entries of the stream that change it.
    volume_bytes: u64,
    sizes: Vec<(Sequence, u64)>,
    /// The newest point of an item.
    point: Sequence,
    /// All of it is durable, and no more comes.
    is_durable: bool,
}

/// Writes of what is gathered. They go on though it was given up, and nothing else is put there before they end.
#[derive(Debug, Default)]
pub(super) struct StageIo {
    writes: u32,
    is_syncing: bool,
}

impl StageIo {
    pub(super) fn is_idle(&self) -> bool {
        self.writes == 0 && !self.is_syncing
    }
}

impl Machine {
    /// Whether the resync that begins may be gathered first: the copy here is a sound one, nobody counts on what it
    /// journals, and what is announced fits.
    pub(super) fn may_stage(&self, index: usize) -> bool {
        let plan = self.peers[index].link.as_ref().and_then(|link| link.plan.as_deref());
        let plan = plan.expect("the caller looked");
        let current = &self.meta.current;
        let is_sound = current.disk_state == DiskState::UpToDate && !current.suspect && !current.yields;
        // A copy that was never written to is not worth keeping: nobody should promote it by mistake.
        let is_sound = is_sound && self.log.last() > Sequence(0);
        // Blocks that are put in place from the ring are not summed.
        let is_sound = is_sound && self.at_rest.is_none();
        let is_member = self.meta.saved.record.in_sync.contains(self.config.node);
        let free = self.stage_room(self.log.head.ring_offset);
        // Of a full one it is not known beforehand how much differs.
        let fits = plan.is_full || plan.stageable_blocks.saturating_mul(BLOCK_BYTES) <= free / 4 * 3;
        is_sound && !is_member && !self.stage_unfit && plan.stageable_blocks > 0 && fits
    }

    /// Bytes of the ring behind `head` that may be used for gathering.
    fn stage_room(&self, head: RingOffset) -> u64 {
        let used = head.0 - self.log.tail().ring_offset.0;
        let keep = RING_RESERVE_BYTES + 2 * FRAME_BYTES_MAX as u64;
        self.log.layout.ring_bytes.saturating_sub(used + keep)
    }

    /// What will be gathered is cut before it is written, durably: a crash finds the old log and nothing else.
    pub(super) fn enter_stage(&mut self, index: usize) {
        let count = self.meta.current.cut.count + 2;
        self.meta.current.cut = Cut { count, first: self.log.last().next() };
        let saved = self.meta.change();
        self.link_mut(Place::Peer(index)).become_state(LinkState::Staging { saved });
    }

    /// That is stored: the source is told.
    pub(super) fn begin_stage(&mut self, index: usize, saved: u64) {
        if !self.meta.is_saved(saved) || self.intake.is_some() || !self.stage_io.is_idle() || self.is_failed()
        {
            return;
        }
        let link = self.link_mut(Place::Peer(index));
        let plan = link.plan.as_ref().expect("it is being staged");
        let (jump, history) = (plan.jump.expect("only a log that begins anew is staged"), plan.history);
        let volume_bytes = link.hello.as_ref().expect("both said hello").volume_bytes;
        let mut intake = Intake::new(link.id, link.peer_session);
        let head = self.log.head.ring_offset;
        let Base { position, chain } = jump;
        intake.stage = Some(Box::new(Stage {
            cuts: self.meta.current.cut.count - 1,
            from: head,
            to: None,
            head: LogPoint { ring_offset: head, position, chain },
            history,
            frames: Vec::new(),
            items: 0,
            volume_bytes,
            sizes: Vec::new(),
            point: position.sequence,
            is_durable: false,
        }));
        self.intake = Some(Box::new(intake));
        self.send(Place::Peer(index), Message::Staging, false);
    }

    fn stage_mut(&mut self) -> Option<&mut Stage> {
        self.intake.as_mut()?.stage.as_deref_mut()
    }

    /// Bytes of the volume that the source has, at the end of what came from it.
    pub(super) fn incoming_bytes(&self) -> u64 {
        let stage = self.intake.as_ref().and_then(|intake| intake.stage.as_ref());
        stage.map_or_else(
            || self.volume_bytes(),
            |stage| stage.sizes.last().map_or(stage.volume_bytes, |(_, bytes)| *bytes),
        )
    }

    /// Whether blocks and stream are being gathered behind the log.
    pub(super) fn is_staging(&self) -> bool {
        self.intake.as_ref().is_some_and(|intake| intake.stage.is_some())
    }

    /// Whether what comes on this link waits until the copy is switched.
    pub(super) fn is_switching(&self, index: usize) -> bool {
        let Some(link) = self.peers[index].link.as_ref() else { return false };
        let Some(intake) = self.intake.as_ref().filter(|intake| intake.link == link.id) else { return false };
        match link.state {
            LinkState::Staging { .. } => intake.is_finishing,
            LinkState::Jumping { .. } => true,
            _ => false,
        }
    }

    /// Where `bytes` of a frame would go in the ring. What is gathered, or waits there to be put in place, is not
    /// written over.
    pub(super) fn ring_place(&self, bytes: u64, is_control: bool) -> Option<RingOffset> {
        if self.is_staging() || !self.stage_io.is_idle() {
            return None;
        }
        self.log.place(self.ring_tail(), bytes, is_control)
    }

    /// The first byte of the ring that must stay.
    pub(super) fn ring_tail(&self) -> RingOffset {
        let tail = self.meta.saved.tail.ring_offset;
        let gathered = [self.meta.saved.gathered, self.meta.current.gathered].into_iter().flatten();
        gathered.map(|gathered| gathered.from).fold(tail, Ord::min)
    }

    /// Writes the items that came.
    pub(super) fn stage_items(&mut self) {
        while let Some((header, buffer)) =
            self.intake.as_ref().and_then(|intake| intake.queue.front().copied())
        {
            let total = buffer.len_bytes() as u64;
            let is_empty = header.present | header.zeros == 0;
            let head = self.stage_mut().expect("the caller looked").head.ring_offset;
            let at = self.log.layout.place(head, total);
            if !is_empty && self.stage_room(at) < total {
                return self.give_up_stage("the blocks do not fit in the journal here");
            }
            let intake = self.intake.as_mut().expect("looked at above");
            intake.queue.pop_front();
            let stage = intake.stage.as_mut().expect("as above");
            stage.point = stage.point.max(header.point);
            if is_empty {
                intake.written += 1;
                self.pool.give(buffer);
                continue;
            }
            stage.items += 1;
            stage.head.ring_offset = at.plus(total);
            self.write_staged(buffer, buffer.len_bytes(), at, IS_ITEM);
        }
    }

    fn write_staged(&mut self, buffer: Buffer, len: usize, at: RingOffset, flag: u64) {
        self.stage_io.writes += 1;
        let token = Io::StageWrite.token(buffer_index(buffer) | flag);
        let device_offset = self.log.layout.device_offset(at);
        self.push(Command::WriteJournal { token, device_offset, span: Span { start: buffer.start(), len } });
    }

    pub(super) fn on_stage_written(&mut self, token: Token, result: IoResult) {
        self.pool.give(buffer_of(Token(token.0 & !IS_ITEM)));
        self.stage_io.writes -= 1;
        let is_item = token.0 & IS_ITEM != 0;
        if !self.device_ok("writing the journal", result) {
            return;
        }
        if let Some(intake) = self.intake.as_mut().filter(|intake| is_item && intake.stage.is_some()) {
            intake.written += 1;
        }
    }

    /// A frame of the stream comes while blocks and stream are gathered.
    pub(super) fn accept_staged(
        &mut self,
        index: usize,
        envelope: &Envelope,
        buffer: Buffer,
        arena: &mut [u8],
    ) {
        let Some(stage) = self.stage_mut() else {
            self.pool.give(buffer);
            return self.close(Place::Peer(index), "a frame came before it was asked for", true);
        };
        let (head, history) = (stage.head, stage.history);
        let header = match self.check_frame(envelope, buffer, arena, head, &history) {
            Ok(header) => header,
            Err(reason) => {
                self.pool.give(buffer);
                return self.close(Place::Peer(index), &reason, true);
            }
        };
        let total = u64::from(header.total_bytes);
        let at = self.log.layout.place(head.ring_offset, total);
        if self.stage_room(at) < total {
            self.pool.give(buffer);
            return self.give_up_stage("the stream does not fit in the journal here");
        }
        let bytes = &mut arena[buffer.span().range()];
        let first = frame::entries(bytes, &header).next();
        let is_start = matches!(first, Some(Ok(entry)) if entry.kind == EntryKind::EpochStart);
        let incoming = self.incoming_bytes();
        let grown = frame::size_after(bytes, &header).map(|bytes| bytes.max(incoming));
        let stage = self.stage_mut().expect("looked at above");
        let local =
            LocalPart { ring_offset: at, durable: Sequence(0), stable: Sequence(0), cuts: stage.cuts };
        frame::encode_local(bytes, &local);
        if is_start {
            let FrameHeader { epoch, reign, first, chain_before, .. } = header;
            stage.history.push(Reign { epoch, reign, first, chain_before });
        }
        if let Some(bytes) = grown {
            stage.sizes.push((header.first, bytes));
        }
        stage.to.get_or_insert(at);
        stage.frames.push((header, at));
        stage.head = LogPoint {
            ring_offset: at.plus(total),
            position: header.last_position(),
            chain: header.chain_after,
        };
        let len = usize::try_from(total).expect("a frame");
        self.write_staged(buffer, len, at, 0);
    }

    /// Whether an item may still come: they all come before the stream.
    pub(super) fn may_stage_items(&self) -> bool {
        let stage = self.intake.as_ref().and_then(|intake| intake.stage.as_ref());
        stage.is_none_or(|stage| stage.frames.is_empty())
    }

    /// What was gathered is forgotten, and next time the blocks are put in place at once.
    fn give_up_stage(&mut self, why: &str) {
        let intake = self.intake.as_ref().expect("something is being gathered");
        let place = self.find_link(intake.link).expect("the intake ends with its link");
        self.stage_unfit = true;
        if let Place::Peer(index) = place {
            let node = self.peers[index].config.node;
            let text =
                format!("{why}: the resync goes on in place, and this copy is Inconsistent until it ends");
            self.report(Report::Peer { node, text });
        }
        self.close(place, why, true);
    }

    /// Syncs what was gathered when there is no more to come; then the copy is switched to it.
    pub(super) fn advance_stage(&mut self) {
        let Some(intake) = self.intake.as_ref() else { return };
        let (id, all) = (intake.link, intake.is_finishing && intake.written == intake.received);
        let Some(stage) = intake.stage.as_ref() else { return };
        let (is_durable, is_short) = (stage.is_durable, stage.head.position.sequence < stage.point);
        if !all || !self.stage_io.is_idle() {
            return;
        }
        let place = self.find_link(id).expect("the intake ends with its link");
        if is_short {
            return self.close(place, "the stream ended before the blocks did", true);
        }
        if !is_durable {
            self.stage_io.is_syncing = true;
            return self.push(Command::SyncJournal { token: Io::StageSync.token(0) });
        }
        if let (Place::Peer(index), true) = (place, self.is_quiet()) {
            self.switch(index);
        }
    }

    pub(super) fn on_stage_synced(&mut self, result: IoResult) {
        self.stage_io.is_syncing = false;
        // Should another be gathered by now, nothing of it was written before this sync was over.
        if self.device_ok("syncing the journal", result)
            && let Some(stage) = self.stage_mut()
        {
            stage.is_durable = true;
        }
    }

    /// Everything that was gathered becomes this copy, in one write of the superblock. Until the blocks are in place it
    /// is Inconsistent; but all it needs for that is here.
    fn switch(&mut self, index: usize) {
        let Some(buffer) = Replay::take_buffer(&mut self.pool) else { return };
        let jump = self.link_mut(Place::Peer(index)).plan.as_ref().and_then(|plan| plan.jump);
        let jump = jump.expect("only a log that begins anew is staged");
        let intake = self.intake.as_mut().expect("the caller looked");
        let stage = *intake.stage.take().expect("the caller looked");
        let was = self.log.head.position;
        let frames_at = stage.to.unwrap_or(stage.head.ring_offset);
        self.log.skip_to(frames_at);
        self.restart_log(jump);
        self.set_volume_bytes(stage.volume_bytes);
        stage.sizes.iter().for_each(|(sequence, bytes)| self.grow.note(*sequence, *bytes));
        for (header, at) in &stage.frames {
            self.log.recover(header, *at, Sequence(0));
        }
        self.persist.history = stage.history;
        let last = self.log.last();
        self.recovered_end = last;
        // The source had applied everything up to each point.
        (self.stable, self.committed) = (stage.point, stage.point);
        self.apply.restart(stage.point);
        let gathered = Gathered { from: stage.from, to: frames_at, items: stage.items };
        let current = &mut self.meta.current;
        current.cut.first = last.next();
        (current.disk_state, current.data_base) = (DiskState::Inconsistent, Some(was));
        current.gathered = Some(gathered);
        let saved = self.meta.change();
        self.replay = Some(Box::new(Replay::new(gathered, buffer)));
        self.link_mut(Place::Peer(index)).become_state(LinkState::Jumping { saved });
        self.report(Report::Cut { common: jump.position, was });
        let text =
            format!("all is gathered: {} items of blocks, and the stream to entry {last}", stage.items);
        let node = self.peers[index].config.node;
        self.report(Report::Peer { node, text });
    }

    /// What is gathered here, or waits to be put in place.
    pub(super) fn staged_status(&self) -> Option<Staged> {
        if let Some(replay) = self.replay.as_ref() {
            return Some(Staged::Replaying { items_left: replay.items_left() });
        }
        let stage = self.intake.as_ref()?.stage.as_ref()?;
        let bytes = stage.head.ring_offset.0 - stage.from.0;
        Some(Staged::Gathering { bytes, free_bytes: self.stage_room(stage.head.ring_offset) })
    }
}

const _: () = assert!(PAGE_BYTES as u64 == BLOCK_BYTES, "an item is whole blocks");
