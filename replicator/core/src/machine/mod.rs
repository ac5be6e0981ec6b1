//! The machine: one replica of one volume, all its decisions and none of its I/O.
//!
//! ```text
//!   Event -->  handle(now, event, arena)  -->  poll_command() --> Command
//!                       |                            next_timeout()
//!     admit   what clients ask            commit    who has what; answers to clients
//!     gather  writes become frames        follow    a Secondary takes the stream
//!     persist journal writes and syncs    stream    a Primary sends it
//!     apply   entries reach the disk      greet     links and hellos
//!     delay   ... and not before their time
//!     checkpoint, superblock              role      begin and end a reign, stop
//!     promote an operator's promotion     members   who is in sync
//!     managed what an orchestrator asks   lease     until when clients are answered
//!     grow    the volume's size           replicas which ones there are
//!     maps    what peers may lack         source    a Primary sends blocks; target: a Secondary takes them
//!     bookmark    what changed since named points
//!     stage   it gathers them first       replay    what it gathered is put in place
//!     verify  a Primary compares copies   visit     a Secondary answers; mend: what cannot be read is fetched
//!     sums    checksums of blocks at rest scrub     a replica reads all it has; push: blocks that others want
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
mod batch_sums;
mod block_read;
mod bookmark;
mod checkpoint;
mod commit;
mod delay;
mod discard;
mod follow;
mod fork;
mod freeze;
mod gather;
mod greet;
mod grow;
mod lease;
mod managed;
mod maps;
mod members;
mod mend;
mod meta;
mod peer;
mod persist;
mod promote;
mod proof;
mod push;
mod read;
mod release;
mod replay;
mod replicas;
mod report;
mod resolve;
mod role;
mod scrub;
mod source;
mod stage;
mod stream;
mod sums;
mod target;
mod verify;
mod visit;
mod watch;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use crate::bookmarks::Bookmarks;
use crate::command::{Command, Report};
use crate::config::Config;
use crate::dirty::DirtyMap;
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
use crate::sums::Sums;
use crate::units::{AdminId, Buffer, Instant, LinkId, NodeId, PAGE_BYTES, RequestId, Sequence, Token};
use crate::wire::envelope::Envelope;

use apply::Apply;
use batch_sums::EDGE_PAGES;
use block_read::BlockRead;
use bookmark::BookmarkAsk;
use checkpoint::Checkpoint;
use delay::Delay;
use discard::Discard;
use freeze::Freeze;
use gather::Gather;
use grow::Grow;
use managed::Confirmation;
use maps::Saving;
use mend::Mends;
use meta::Meta;
use peer::{Link, Peer};
use persist::Persist;
use proof::ProofRead;
use push::Push;
use read::Reads;
use replay::Replay;
use resolve::Resolve;
use role::RoleState;
use scrub::Scrub;
use stage::StageIo;
use sums::AtRest;
use target::{Intake, Placing};
use verify::Verify;
use visit::{Found, Mending, Visits};
use watch::Watch;

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
    /// Reads of the disk by blocks.
    block_reads: Vec<Option<BlockRead>>,
    /// Blocks that come in.
    intake: Option<Box<Intake>>,
    /// Writes of what is gathered behind the log.
    stage_io: StageIo,
    /// The last attempt to gather did not fit.
    stage_unfit: bool,
    /// Gathered blocks that are being put in place.
    replay: Option<Box<Replay>>,
    /// Blocks that are being written in place.
    placing: Option<Placing>,
    /// The session whose blocks are being synced, and up to which item.
    intake_sync: Option<(LinkId, u64, u64)>,
    /// The link whose stream begins when the disk is synced.
    drain_sync: Option<LinkId>,
    /// Dirty maps that are being saved.
    saving: Option<Saving>,
    /// Named points in the past, with what changed here since.
    bookmarks: Bookmarks,
    /// Whom to answer when a change of them is saved.
    bookmark_asks: Vec<BookmarkAsk>,
    /// Superblock sequence that says that stored maps of bookmarks are behind, if it is said.
    bookmarks_behind_at: u64,
    /// Writes in place so far that no entry of the log says, but for those of a resync.
    bypasses: u64,
    /// The verify under way, or the last one.
    verify: Option<Box<Verify>>,
    /// A piece of the ring that is being read for it.
    proof_read: Option<ProofRead>,
    /// Verifies begun since the process started.
    verifies: u64,
    /// What a Primary that verifies asks here.
    visits: Option<Box<Visits>>,
    /// A block that it sent is being written.
    mending: Option<Mending>,
    /// The disk is being synced for it.
    visit_sync: bool,
    /// What the last verify by a Primary found here.
    found: Option<Box<Found>>,
    /// Blocks that are fetched from a peer since they cannot be believed here, and reads that wait for them.
    mends: Mends,
    /// Checksums of the blocks at rest, if there are any, and memory for the rests of blocks.
    at_rest: Option<Box<AtRest>>,
    edge_pages: Option<Buffer>,
    /// The scrub under way, or the last one.
    scrub: Option<Box<Scrub>>,
    /// Blocks that are bad at a peer and are sent there.
    pushes: Vec<Push>,
    /// The data here is about to be discarded, or that is being stored.
    discard: Option<Discard>,
    /// I/O that does not end.
    watch: Watch,
    /// What is here past a common point is being given up.
    resolve: Option<Box<Resolve>>,
    /// Blocks that differ from what the copy is complete for, while it is being brought level after a fork.
    diverged: Option<Box<DirtyMap>>,
    /// Why the last branch could not be kept.
    branch_failure: Option<String>,
    /// Whose data an operator gave up here; it is asked as soon as it says hello.
    discards_of: Option<NodeId>,
    /// Apply stands still at one position.
    freeze: Option<Freeze>,
    /// How far a configured delay lets apply go.
    delay: Delay,
    /// Frames below this number that wait for the end of a freeze or a delay have given up their memory.
    released: u64,
    /// The volume's size at the end of the log, and its growth.
    grow: Grow,
    /// What a wall clock showed when the driver's clock was 0, in milliseconds since 1970; 0 if not known.
    wall_zero_ms: u64,
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
    Mend = 18,
    VisitWrite = 19,
    VisitSync = 20,
    VerifySync = 21,
    Proof = 22,
    Branch = 23,
    SumsRead = 24,
    SumsWrite = 25,
    SumsSync = 26,
    Edge = 27,
    StageWrite = 28,
    StageSync = 29,
    ReplayRead = 30,
    ReplayWrite = 31,
    ReplaySync = 32,
    Grow = 33,
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
        let (at_rest, edge_pages) = if recovered.superblock.sums {
            let (replica, volume_bytes) = (recovered.superblock.replica, recovered.superblock.volume_bytes);
            let sums = Sums::new(replica, volume_bytes, config.sum_pages_max);
            let at_rest = AtRest::new(sums, &mut pool);
            (Some(Box::new(at_rest)), pool.take(EDGE_PAGES * PAGE_BYTES))
        } else {
            (None, None)
        };
        let gathered = recovered.superblock.gathered;
        let replay =
            gathered.filter(|_| recovered.superblock.disk_state == DiskState::Inconsistent).map(|gathered| {
                let buffer = Replay::take_buffer(&mut pool).expect("the arena is new");
                Box::new(Replay::new(gathered, buffer))
            });
        let lost_bookmarks = recovered.bookmarks.is_none();
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
        let mut diverged = recovered.diverged.filter(|_| meta.current.diverges).map(Box::new);
        if meta.current.diverges && diverged.is_none() {
            // Which blocks differ is not known any more: the copy is complete for nothing.
            (meta.current.diverges, meta.current.data_base) = (false, None);
            meta.current.discards += 1;
        }
        let limit = Some(meta.current.apply_limit).filter(|limit| *limit > Sequence(0));
        let touched = limit.into_iter().chain(meta.current.apply_reach).fold(stable, Sequence::min);
        let freeze =
            (meta.current.apply_limit > Sequence(0)).then_some(Freeze::Settling { id: None, saved: 0 });
        meta.current.window_bytes = meta.current.window_bytes.max(config.arena_bytes as u64);
        meta.change();
        let mut machine = Self {
            now,
            role: RoleState::Secondary,
            gather: Gather::new(),
            persist: Persist::new(stable, recovered.history),
            apply: Apply::new(reserve, touched),
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
            stage_io: StageIo::default(),
            stage_unfit: false,
            replay,
            placing: None,
            intake_sync: None,
            drain_sync: None,
            saving: None,
            bookmarks: recovered.bookmarks.unwrap_or_default(),
            bookmark_asks: Vec::new(),
            bookmarks_behind_at: 0,
            bypasses: 0,
            verify: None,
            proof_read: None,
            verifies: 0,
            visits: None,
            mending: None,
            visit_sync: false,
            found: None,
            mends: Mends::default(),
            at_rest,
            edge_pages,
            scrub: None,
            pushes: Vec::new(),
            discard: None,
            watch: Watch::new(config.disk_timeout_ms, now),
            resolve: None,
            diverged: diverged.take(),
            branch_failure: None,
            discards_of: None,
            freeze,
            delay: Delay::default(),
            released: 0,
            grow: Grow::new(recovered.sizes, config.disk_bytes),
            wall_zero_ms: 0,
            has_failed: false,
            frozen: None,
            counters: Counters::default(),
            commands: VecDeque::with_capacity(4096),
            log: recovered.log,
            config,
            meta,
            pool,
        };
        if machine.meta.current.yields {
            machine.resolve = Some(Box::new(Resolve::waiting(machine.empty_map())));
        }
        if lost_bookmarks {
            machine.lose_bookmarks();
        }
        machine.pump_meta();
        machine
    }

    /// Tells what a wall clock shows when the driver's clock is 0, in milliseconds since 1970; again whenever it was set. People
    /// are shown what follows from it, and a delayed replica applies by it: nothing that must be right depends on it.
    pub fn set_wall_clock(&mut self, at_zero_ms: u64) {
        self.wall_zero_ms = at_zero_ms;
    }

    /// Milliseconds since 1970; 0 if not known.
    fn wall_ms(&self) -> u64 {
        if self.wall_zero_ms == 0 { 0 } else { self.wall_zero_ms + self.now.0 / 1_000_000 }
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
            Event::ReadFrozen { request, offset, destination } => {
                self.on_read_frozen(request, offset, destination);
            }
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
        self.watch.end(&event, self.now);
        match event {
            Event::JournalWritten { token, result } if Io::SumsWrite.is(token) => {
                self.on_sums_written(token, result);
            }
            Event::JournalWritten { token, result } => self.on_journal_written(token, result),
            Event::JournalSynced { token, result } if Io::MapSync.is(token) => self.on_map_synced(result),
            Event::JournalSynced { token, result } if Io::SumsSync.is(token) => self.on_sums_synced(result),
            Event::JournalSynced { token, result } if Io::StageSync.is(token) => self.on_stage_synced(result),
            Event::JournalSynced { result, .. } => self.on_journal_synced(result),
            Event::JournalRead { token, result } if Io::Load.is(token) => {
                self.on_loaded(token, result, arena);
            }
            Event::JournalRead { token, result } if Io::ReplayRead.is(token) => {
                self.on_gathered_read(result, arena);
            }
            Event::JournalRead { token, result } if Io::Proof.is(token) => self.on_proof_read(result, arena),
            Event::JournalRead { token, result } if Io::SumsRead.is(token) => {
                self.on_sums_read(token, result, arena);
            }
            Event::JournalRead { token, result } => self.on_chunk_read(token, result),
            Event::DiskRead { token, result } if Io::BlockRead.is(token) => {
                self.on_block_read(index_of(token), result, arena);
            }
            Event::DiskRead { token, result } if Io::Edge.is(token) => {
                self.on_edge_read(token, result, arena);
            }
            Event::DiskRead { token, result } => self.on_disk_read(token, result, arena),
            Event::DiskWritten { token, result } if Io::Place.is(token) => self.on_placed_write(result),
            Event::DiskWritten { token, result } if Io::ReplayWrite.is(token) => {
                self.on_gathered_written(result);
            }
            Event::DiskWritten { token, result } if Io::Mend.is(token) => {
                self.on_mended(index_of(token), result);
            }
            Event::DiskWritten { token, result } if Io::VisitWrite.is(token) => self.on_visit_written(result),
            Event::DiskSynced { token, result } if Io::VisitSync.is(token) => self.on_visit_synced(result),
            Event::DiskSynced { token, result } if Io::VerifySync.is(token) => {
                self.on_verify_synced(result);
            }
            Event::DiskWritten { result, .. } => self.on_disk_written(result),
            Event::DiskSynced { token, result } if Io::ReplaySync.is(token) => self.on_replay_synced(result),
            Event::DiskSynced { token, result } if Io::IntakeSync.is(token) => self.on_intake_synced(result),
            Event::DiskSynced { token, result } if Io::DrainSync.is(token) => self.on_drained(result),
            Event::DiskSynced { result, .. } => self.on_disk_synced(result),
            Event::SuperblockWritten { result, .. } => self.on_superblock_written(result),
            Event::BranchKept { token, result } => self.on_branch_kept(token, result),
            Event::DiskGrown { token, result } => self.on_disk_grown(token, result),
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
            AdminAction::Verify { repair, trust } => self.on_verify(id, repair, trust),
            AdminAction::Grow { bytes } => self.on_grow(id, bytes),
            AdminAction::AddReplica(peer) => self.on_add_replica(id, peer),
            AdminAction::RemoveReplica { node } => self.on_remove_replica(id, node),
            AdminAction::StopVerify => self.on_stop_verify(id),
            AdminAction::Scrub => self.on_scrub(id),
            AdminAction::StopScrub => self.on_stop_scrub(id),
            AdminAction::Resolve { discard } => self.on_resolve(id, discard),
            AdminAction::FreezeApply { at } => self.on_freeze(id, at),
            AdminAction::Thaw => self.on_thaw(id),
            AdminAction::AddBookmark { name } => self.on_add_bookmark(id, name),
            AdminAction::DeleteBookmark { name } => self.on_delete_bookmark(id, name),
            AdminAction::Stop => self.on_stop(id),
        }
    }

    /// The next thing to do, if there is one.
    pub fn poll_command(&mut self) -> Option<Command> {
        let command = self.commands.pop_front()?;
        self.watch.begin(&command, self.now);
        Some(command)
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
        self.check_disks();
        self.learn_records();
        self.unpark(arena);
        self.advance_commit();
        self.close_frames(arena);
        self.advance_role(arena);
        self.advance_discard();
        self.advance_resolve();
        self.advance_freeze();
        self.advance_delay();
        self.advance_grow(arena);
        self.advance_replicas();
        self.answer_bookmarks();
        self.write_mark(arena);
        self.pump_persist();
        self.track_held();
        self.pump_sums(arena);
        self.pump_probes();
        self.pump_scrub();
        self.pump_apply(arena);
        self.pump_checkpoint(arena);
        self.pump_peers(arena);
        self.pump_pushes(arena);
        self.move_sums(arena);
        self.pump_meta();
        self.check_invariants();
    }

    /// When [`Event::Timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let peers = self.peers.iter().filter_map(|peer| peer.next_timeout(&self.config));
        let resync = [
            self.source_due(),
            self.intake_due(),
            self.verify_due(),
            self.mend_due(),
            self.scrub_due(),
            self.push_due(),
            self.disks_due(),
        ];
        let resync = resync.into_iter().flatten().min();
        let own = [
            self.persist.due(),
            self.role.deadline(),
            self.shrink_due(),
            self.lease_due(),
            self.apply.retry_due(),
            self.delay_due(),
            self.replay_due(),
            self.grow.due(),
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
        if self.parked.is_empty() { self.take_for_frame(bytes) } else { None }
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
        if self.has_failed {
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
        // What it had under way may still end: it must find a copy that takes part in nothing.
        assert!(!self.has_failed || self.is_failed(), "a copy that failed stays so as long as its process");
        assert!(self.gather.entries() <= FRAME_ENTRIES_MAX);
    }
}
