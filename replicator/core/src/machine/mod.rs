//! The machine: one replica of one volume, all its decisions and none of its I/O.
//!
//! ```text
//!   Event -->  handle(now, event, arena)  -->  poll_command() --> Command
//!                       |                            next_timeout()
//!     admit   what clients ask            commit    who has what; answers to clients
//!     gather  writes become frames        follow    a Secondary takes the stream
//!     persist journal writes and syncs    stream    a Primary sends it
//!     apply   entries reach the disk      greet     links and hellos
//!     checkpoint, superblock              role      begin and end a reign, stop
//!     promote an operator's promotion     members   who is in sync
//!     managed what an orchestrator asks   lease     until when clients are answered
//!     maps    what peers may lack         source    a Primary sends blocks; target: a Secondary takes them
//! ```
//!
//! Duties of a driver:
//! 1. Give every completion back, once, with the token of its command; results are those of the whole I/O.
//! 2. Pass the same arena each time; leave the spans of commands under way alone.
//! 3. End each batch of events with [`Event::TurnEnd`]: that is when frames close and acknowledgements leave.
//! 4. Then take all commands; send messages of one link in the order they come.
//! 5. Give [`Event::Timeout`] (and a `TurnEnd`) when [`Machine::next_timeout`] has come.
//! 6. Give [`Event::LinkDown`] only when nothing of that link is under way any more.

mod admit;
mod apply;
mod checkpoint;
mod commit;
mod discard;
mod follow;
mod gather;
mod greet;
mod lease;
mod managed;
mod maps;
mod members;
mod meta;
mod peer;
mod persist;
mod promote;
mod read;
mod report;
mod role;
mod source;
mod stream;
mod target;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use crate::command::{Command, Report};
use crate::config::Config;
use crate::disk::superblock::DiskState;
use crate::event::{AdminAction, Errno, Event, IoResult};
use crate::extents::Extents;
use crate::frame::Entry;
use crate::limits::{EXTENTS_MAX, FRAME_BYTES_MAX, FRAME_ENTRIES_MAX, FRAME_HEADER_BYTES};
use crate::log::Log;
use crate::pace::Pace;
use crate::pool::Pool;
use crate::recovery::{Recovered, new_tracker};
use crate::status::Counters;
use crate::units::{AdminId, Buffer, Instant, LinkId, NodeId, PAGE_BYTES, RequestId, Sequence, Token};
use crate::wire::envelope::Envelope;

use apply::Apply;
use checkpoint::Checkpoint;
use discard::Discard;
use gather::Gather;
use managed::Confirmation;
use maps::Saving;
use meta::Meta;
use peer::{Link, Peer};
use persist::Persist;
use read::Reads;
use role::RoleState;
use source::BlockRead;
use target::{Intake, Placing};

/// A write, zero or trim that is sequenced and not yet answered.
#[derive(Clone, Copy, Debug)]
struct Pending {
    sequence: Sequence,
    request: RequestId,
    fua: bool,
}

/// A replica of one volume.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    now: Instant,
    meta: Meta,
    role: RoleState,
    log: Log,
    pool: Pool,
    gather: Gather,
    persist: Persist,
    apply: Apply,
    checkpoint: Checkpoint,
    reads: Reads,
    peers: Vec<Peer>,
    /// What covers unapplied, committed data, as far as reads have looked.
    overlay: Extents,
    overlay_through: Sequence,
    committed: Sequence,
    stable: Sequence,
    /// Where recovery ended: entries up to here may not be in memory.
    recovered_end: Sequence,
    /// The newest entry that the ring was found not to give; none that is needed here.
    damaged: Sequence,
    pending: VecDeque<Pending>,
    /// FLUSH and FUA answers that wait for `stable`, in order of position.
    flushes: VecDeque<Pending>,
    /// Zeroing requests that found no room in the open frame.
    zeros_waiting: VecDeque<(Entry, RequestId)>,
    /// Frames that came and found no room in the ring.
    parked: VecDeque<(LinkId, Envelope, Buffer)>,
    /// Connections whose peer is not known yet, or that were replaced and are going down.
    spare_links: Vec<Link>,
    /// Reads of the ring for links that are down.
    orphan_chunks: Vec<(LinkId, Buffer)>,
    /// Superblock sequence that will hold a change of the record under way.
    record_change: Option<u64>,
    /// Whom to answer when it is saved.
    shrink_answer: Option<AdminId>,
    /// Until when clients may be answered, in a reign that a configuration manager opened.
    lease: Option<Instant>,
    /// Requests that are done and wait for a lease to be answered.
    withheld: VecDeque<RequestId>,
    /// Whether the reign under way was forced by an operator, past the configuration manager.
    is_forced: bool,
    /// Answers to the configuration manager that wait until they are durable.
    confirmations: Vec<Confirmation>,
    /// Seals to answer: who asked, the attempt, and the superblock sequence that holds the promise.
    seal_answers: Vec<(NodeId, u64, u64)>,
    /// A frame that is not committed, and when it was sequenced: how clients fare.
    probe: Option<(Sequence, Instant)>,
    /// How fast resyncs go.
    pace: Pace,
    /// Reads of the disk for resyncs.
    block_reads: Vec<Option<BlockRead>>,
    /// Blocks that come in.
    intake: Option<Box<Intake>>,
    /// Blocks that are being written in place.
    placing: Option<Placing>,
    /// The session whose blocks are being synced, and up to which item.
    intake_sync: Option<(LinkId, u64, u64)>,
    /// The link whose stream begins when the disk is synced.
    drain_sync: Option<LinkId>,
    /// Dirty maps that are being saved.
    saving: Option<Saving>,
    /// The data here is about to be discarded, or that is being stored.
    discard: Option<Discard>,
    /// A device failed since this process began: what was under way may be lost.
    has_failed: bool,
    frozen: Option<String>,
    counters: Counters,
    commands: VecDeque<Command>,
}

/// Kinds of I/O, in the upper byte of a token; the lower ones say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Io {
    Frame = 1,
    Load = 2,
    Chunk = 3,
    Sync = 4,
    Superblock = 5,
    Apply = 6,
    Read = 7,
    CheckpointSync = 8,
    SendFrame = 9,
    SendChunk = 10,
    MapWrite = 11,
    MapSync = 12,
    BlockRead = 13,
    SendBlocks = 14,
    Place = 15,
    IntakeSync = 16,
    DrainSync = 17,
}

impl Io {
    fn token(self, index: u64) -> Token {
        assert!(index < 1 << 56);
        Token((self as u64) << 56 | index)
    }

    fn is(self, token: Token) -> bool {
        token.0 >> 56 == self as u64
    }
}

fn index_of(token: Token) -> u64 {
    token.0 & ((1 << 56) - 1)
}

impl Machine {
    /// A replica as recovery left it, a Secondary. Its first command stores that it runs.
    #[must_use]
    pub fn new(config: Config, recovered: Recovered, now: Instant) -> Self {
        assert!(
            config.arena_bytes >= 8 << 20,
            "the configuration keeps the arena large enough for a few frames"
        );
        let mut pool = Pool::new(config.arena_bytes);
        let reserve = pool.take(FRAME_BYTES_MAX).expect("the arena is new");
        let mut trackers = recovered.trackers;
        let (layout, superblock) = (recovered.log.layout, &recovered.superblock);
        let peers = config.peers.iter().map(|peer| {
            let saved = trackers.iter().position(|(node, _)| *node == peer.node);
            let tracker = saved.map(|at| trackers.swap_remove(at).1);
            let tracker = tracker.unwrap_or_else(|| new_tracker(&layout, superblock));
            Peer::new(*peer, tracker, now)
        });
        let peers = peers.collect();
        let stable = recovered.stable.min(recovered.log.last());
        let mut meta = Meta::new(recovered.superblock);
        meta.current.window_bytes = meta.current.window_bytes.max(config.arena_bytes as u64);
        meta.change();
        let mut machine = Self {
            now,
            role: RoleState::Secondary,
            gather: Gather::new(),
            persist: Persist::new(stable, recovered.history),
            apply: Apply::new(reserve),
            checkpoint: Checkpoint::new(recovered.log.applied),
            reads: Reads::new(),
            peers,
            overlay: Extents::new(EXTENTS_MAX),
            overlay_through: Sequence(0),
            committed: stable,
            stable,
            recovered_end: recovered.log.last(),
            damaged: Sequence(0),
            pending: VecDeque::with_capacity(4096),
            flushes: VecDeque::with_capacity(1024),
            zeros_waiting: VecDeque::with_capacity(256),
            parked: VecDeque::with_capacity(64),
            spare_links: Vec::new(),
            orphan_chunks: Vec::new(),
            record_change: None,
            shrink_answer: None,
            lease: None,
            withheld: VecDeque::with_capacity(1024),
            is_forced: false,
            confirmations: Vec::new(),
            seal_answers: Vec::new(),
            probe: None,
            pace: Pace::new(now),
            block_reads: Vec::new(),
            intake: None,
            placing: None,
            intake_sync: None,
            drain_sync: None,
            saving: None,
            discard: None,
            has_failed: false,
            frozen: None,
            counters: Counters::default(),
            commands: VecDeque::with_capacity(4096),
            log: recovered.log,
            config,
            meta,
            pool,
        };
        machine.pump_meta();
        machine
    }

    /// Takes in one event. The bytes of the arena are read and written only where this machine owns them.
    pub fn handle(&mut self, now: Instant, event: Event<'_>, arena: &mut [u8]) {
        assert!(now >= self.now, "the driver's clock does not go back");
        assert!(arena.len() == self.config.arena_bytes, "the arena is the configured one");
        self.now = now;
        match event {
            Event::Write { request, offset, payload, fua } => {
                self.on_write(request, offset, payload, fua, arena);
            }
            Event::WriteAbandoned { payload } => self.on_write_abandoned(payload),
            Event::Zero { request, offset, length, kind, fua } => {
                self.on_zero(request, offset, length, kind, fua);
            }
            Event::Read { request, offset, destination } => self.on_read(request, offset, destination, arena),
            Event::Flush { request } => self.on_flush(request),
            Event::TurnEnd | Event::Timeout => self.pump(arena),
            Event::Message { link, envelope, body } => self.on_message(link, &envelope, body),
            Event::Frame { link, envelope, buffer } => self.on_frame(link, envelope, buffer, arena),
            Event::FrameAbandoned { buffer } => self.pool.give(buffer),
            Event::LinkUp { link, peer } => self.on_link_up(link, peer),
            Event::LinkDown { link, reason } => self.on_link_down(link, &reason),
            Event::FrameSent { link, token } => self.on_frame_sent(link, token),
            Event::Admin { id, action } => self.on_admin(id, action),
            other => self.on_completion(other, arena),
        }
    }

    fn on_completion(&mut self, event: Event<'_>, arena: &mut [u8]) {
        match event {
            Event::JournalWritten { token, result } => self.on_journal_written(token, result),
            Event::JournalSynced { token, result } if Io::MapSync.is(token) => self.on_map_synced(result),
            Event::JournalSynced { result, .. } => self.on_journal_synced(result),
            Event::JournalRead { token, result } if Io::Load.is(token) => {
                self.on_loaded(token, result, arena);
            }
            Event::JournalRead { token, result } => self.on_chunk_read(token, result),
            Event::DiskRead { token, result } if Io::BlockRead.is(token) => {
                self.on_block_read(index_of(token), result, arena);
            }
            Event::DiskRead { token, result } => self.on_disk_read(token, result),
            Event::DiskWritten { token, result } if Io::Place.is(token) => self.on_placed_write(result),
            Event::DiskWritten { result, .. } => self.on_disk_written(result),
            Event::DiskSynced { token, result } if Io::IntakeSync.is(token) => self.on_intake_synced(result),
            Event::DiskSynced { token, result } if Io::DrainSync.is(token) => self.on_drained(result),
            Event::DiskSynced { result, .. } => self.on_disk_synced(result),
            Event::SuperblockWritten { result, .. } => self.on_superblock_written(result),
            other => unreachable!("handled by the caller: {other:?}"),
        }
    }

    fn on_admin(&mut self, id: AdminId, action: AdminAction) {
        match action {
            AdminAction::Promote { force, reign } => self.on_promote(id, force, reign),
            AdminAction::Demote => self.on_demote(id),
            AdminAction::Shrink { node } => self.on_shrink(id, node),
            AdminAction::Invalidate => self.on_invalidate(id),
            AdminAction::Seal { .. }
            | AdminAction::OpenEpoch(_)
            | AdminAction::Record { .. }
            | AdminAction::Lease { .. }
            | AdminAction::Release => self.on_managed(id, action),
            AdminAction::Stop => self.on_stop(id),
        }
    }

    /// The next thing to do, if there is one.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Everything that follows from what changed. While a role changes, what the end of a pass brings about may be
    /// what its beginning waits for.
    fn pump(&mut self, arena: &mut [u8]) {
        self.pass(arena);
        if self.role.hurries() {
            self.pass(arena);
        }
    }

    /// One pass, in the order of the write path.
    fn pass(&mut self, arena: &mut [u8]) {
        self.learn_records();
        self.unpark(arena);
        self.advance_commit();
        self.close_frames(arena);
        self.advance_role(arena);
        self.advance_discard();
        self.write_mark(arena);
        self.pump_persist();
        self.track_held();
        self.pump_apply(arena);
        self.pump_checkpoint(arena);
        self.pump_peers(arena);
        self.pump_meta();
        self.check_invariants();
    }

    /// When [`Event::Timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let peers = self.peers.iter().filter_map(|peer| peer.next_timeout(&self.config));
        let resync = self.source_due().into_iter().chain(self.intake_due()).min();
        let own = [
            self.persist.due(),
            self.role.deadline(),
            self.shrink_due(),
            self.lease_due(),
            self.apply.retry_due(),
            resync,
        ];
        peers.chain(own.into_iter().flatten()).min()
    }

    /// Space for the payload of a write of `length` bytes (at most
    /// [`FRAME_PAYLOAD_BYTES_MAX`](crate::limits::FRAME_PAYLOAD_BYTES_MAX)), if there is some now. Up to
    /// [`GATHER_BYTES_MAX`](crate::limits::GATHER_BYTES_MAX) the payload must be copied and [`Event::Write`]
    /// given before anything else is asked of the machine; a larger one may be filled over time, and ends in
    /// `Write` or `WriteAbandoned`.
    pub fn place_write(&mut self, length: usize) -> Option<crate::units::Span> {
        self.place(length)
    }

    /// A buffer for the frame behind `envelope`, which came on `link`. `None`: none now, stop receiving on that link
    /// and ask again after the next `TurnEnd`. What the envelope says is taken in at once: it may be what makes room.
    pub fn place_frame(&mut self, link: LinkId, envelope: &Envelope) -> Option<Buffer> {
        self.on_frame_announced(link, envelope);
        let bytes = envelope.body_bytes as usize;
        // A frame is whole pages; what is not will be refused when it is decoded, but has to go somewhere.
        let bytes = bytes.max(FRAME_HEADER_BYTES);
        // Some pages stay free for marks: without them nothing that came could be applied and freed.
        let room =
            self.pool.free_pages() as usize > bytes.div_ceil(PAGE_BYTES) + self.pool.pages() as usize / 16;
        if !self.parked.is_empty() || !room {
            return None;
        }
        self.pool.take(bytes)
    }

    /// Memory of the arena for the driver (reads of clients). Some is always left for frames.
    pub fn take_buffer(&mut self, bytes: usize) -> Option<Buffer> {
        let keep = self.pool.pages() / 4;
        if bytes.div_ceil(PAGE_BYTES) + keep as usize > self.pool.free_pages() as usize {
            return None;
        }
        self.pool.take(bytes)
    }

    /// Gives back what [`Self::take_buffer`] gave.
    pub fn give_buffer(&mut self, buffer: Buffer) {
        self.pool.give(buffer);
    }

    /// Whether clients are served now.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.role, RoleState::Primary)
    }

    fn push(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    fn report(&mut self, report: Report) {
        self.push(Command::Report(report));
    }

    /// The copy can no longer be trusted to take or give data: it leaves service at once, and remembers it as
    /// far as its disks still can.
    fn fail_device(&mut self, what: &'static str, errno: Errno) {
        if self.meta.current.disk_state == DiskState::Failed {
            return;
        }
        self.report(Report::DeviceFailed { what, errno });
        self.meta.current.disk_state = DiskState::Failed;
        self.has_failed = true;
        self.meta.current.suspect = true;
        self.meta.change();
        self.leave_primary();
    }

    /// Whether the copy still takes part.
    fn is_failed(&self) -> bool {
        self.meta.current.disk_state == DiskState::Failed
    }

    fn device_ok(&mut self, what: &'static str, result: IoResult) -> bool {
        if let Err(errno) = result {
            self.fail_device(what, errno);
        }
        result.is_ok()
    }

    /// The relations that hold after every pass, in production, too.
    fn check_invariants(&self) {
        let (applied, log) = (self.log.applied.position.sequence, &self.log);
        assert!(
            self.meta.saved.applied_through.position.sequence <= applied
                || self.meta.saved.discards < self.meta.current.discards,
            "a checkpoint is not ahead of apply"
        );
        assert!(applied <= self.persist.durable_mark(log), "only what is known stable, durably, is applied");
        assert!(applied <= log.durable(), "only what is durable here is applied");
        assert!(log.durable() <= log.journaled() && log.journaled() <= log.last());
        assert!(self.meta.saved.record.epoch <= self.meta.saved.promised, "a record's epoch was promised");
        if self.role.is_sequencing() {
            assert!(self.stable <= self.committed && self.committed <= log.last());
        }
        assert!(self.gather.entries() <= FRAME_ENTRIES_MAX);
    }
}
