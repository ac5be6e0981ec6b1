//! The reactor of one volume: one thread, one ring, one machine. Each turn takes in all that has happened, hands it
//! to the machine as events, does what the machine asks, and enters the kernel once.
//!
//! ```text
//! completions, client bytes, peer bytes, requests of other threads, time
//!      |  events                                     commands  ^
//!      v                                                       |
//!   [ Machine ] -- TurnEnd --> WriteJournal, SendFrame, Complete, ... --> ring: one enter a turn
//! ```
//!
//! Nothing here waits but the ring, and nothing is allocated per request once the slabs have grown.

pub(crate) mod beside;
mod busy_poll;
mod clients;
mod context;
mod control;
mod dials;
pub(crate) mod handle;
pub(crate) mod inbox;
mod links;
pub(crate) mod listeners;
pub(crate) mod log;
pub(crate) mod outbox;
mod refusals;
pub(crate) mod slab;
mod storage;
pub(crate) mod ublk;
pub(crate) mod waiters;

use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Duration;

use nbd_frontend::{Availability, Export};
use replicator_core::command::{BranchPlan, Command, Report};
use replicator_core::event::{AdminAction, Errno, Event};
use replicator_core::machine::Machine;
use replicator_core::units::{Instant, NodeId, Token};
use replicator_core::wire::message::Message;

use crate::branch::BranchInfo;
use crate::config::format_uuid;
use crate::device::{Device, io_error};
use crate::error::{RingError, StartError};
use crate::frontend::Need;
use crate::keyring::Keyring;
use crate::latency::Latencies;
use crate::names::NodeNames;
use crate::options::{PeerAddress, VolumeOptions};
use crate::ring::{Completion, FileId, Memory, Ring};
use crate::{arena, clock};
use beside::Beside;
use busy_poll::BusyPoll;
use clients::{Clients, DiskView, ENDING_MAX};
use context::Context;
use control::Control;
use handle::{Request, VolumeStatus};
use links::{LINKS_MAX, Links};
use listeners::{Door, Listeners, UnixName};
use log::Log;
use refusals::Refusals;
use slab::Key;
use storage::{Storage, Unit, Work};
use ublk::Ublk;
use waiters::{Waiter, Waiters};

/// What the driver calls an operation of the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Another thread has something to say.
    Wake,
    /// A listener accepts.
    Accept(Door),
    /// An NBD connection receives.
    ClientReceive(Key),
    /// An NBD connection sends.
    ClientSend(Key),
    /// A link is being connected.
    LinkConnect(Key),
    /// A link receives.
    LinkReceive(Key),
    /// A link sends.
    LinkSend(Key),
    /// Work on disk or journal.
    Storage(Key),
    /// A command on a tag of the kernel device.
    Ublk(u16),
}

/// Files of the ring's table besides the NBD connections and links.
const FILES_OTHER: u32 = 16;
/// The exports of the volume itself, which stand first: under its name and as the default.
const VOLUME_EXPORTS: usize = 2;
/// What follows the volume's name in that of the frozen export.
pub(crate) const FROZEN: &str = "@frozen";
/// What stands between the volume's name and a branch's.
pub(crate) const BRANCH: &str = "@branch-";
/// The longest a turn waits: also how often slow connections are looked for.
const HOUSEKEEPING_MS: u64 = 500;
/// How long after a turn with news the machine is asked once more, if nothing happens before.
const SETTLE_MS: u64 = 1;
/// While somebody waits for memory that the machine frees without a word, it is asked again so often.
const RETRY: Duration = Duration::from_millis(1);

/// Everything that a volume's thread is started with.
pub(crate) struct Parts {
    pub(crate) options: VolumeOptions,
    pub(crate) machine: Machine,
    pub(crate) arena: Memory,
    pub(crate) disk: Device,
    pub(crate) journal: Device,
    pub(crate) listeners: Listeners,
    pub(crate) exports: Vec<Export>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) wake: OwnedFd,
    pub(crate) log: Log,
    pub(crate) beside: Beside,
}

/// The reactor.
pub(crate) struct Driver {
    cx: Context,
    storage: Storage,
    clients: Clients,
    ublk: Ublk,
    links: Links,
    control: Control,
    beside: Beside,
    /// What was kept of forks, as clients are offered it.
    branches: Vec<BranchInfo>,
    /// Whether the frozen export is open.
    is_frozen: bool,
    doors: Vec<(Door, FileId)>,
    /// Listeners to be armed again, after a failure.
    doors_shut: Vec<Door>,
    options: VolumeOptions,
    names: NodeNames,
    refusals: Refusals,
    completions: Vec<Completion<Op>>,
    busy_poll: BusyPoll,
    housekeeping: Instant,
    /// When to end a turn again although nothing has happened since: what the machine concluded last time may let
    /// it conclude more.
    settle: Option<Instant>,
    is_stopped: bool,
    disk_direct: bool,
    journal_direct: bool,
    backends: String,
    memory_locked: bool,
    /// Removed with the driver.
    _unix: Option<UnixName>,
}

impl Driver {
    /// Sets up the ring on the thread that will use it.
    pub(crate) fn new(parts: Parts) -> Result<Self, StartError> {
        let Parts { options, machine, arena, disk, journal, listeners, exports, requests, wake, log, beside } =
            parts;
        let pinned = if options.lock_memory { arena::pin() } else { arena::Pinned::default() };
        pinned.warnings.iter().for_each(|warning| log.line(warning));
        let links_max = u32::try_from(LINKS_MAX).expect("small");
        let files_max = options.nbd_connections_max.saturating_add(links_max + ENDING_MAX + FILES_OTHER);
        let mut ring = Ring::new(options.ring, arena, files_max)?;
        if !ring.arena_is_registered() {
            log.line(
                "the arena is not a registered buffer (limit of locked memory): disk I/O costs a little more",
            );
        }
        let system = |action| move |source| StartError::System { action, source };
        let now = clock::now();
        let backends = format!("disk {:?}, journal {:?}", disk.backend(), journal.backend());
        let (disk_direct, journal_direct) = (disk.is_direct(), journal.is_direct());
        let mut add = |file: OwnedFd| ring.add_file(file).map_err(|(_, error)| error);
        let (disk_kind, disk_backend) = (disk.kind(), disk.backend());
        let disk = Unit::new(add(disk.into_file()).map_err(system("register the disk"))?, disk_backend);
        let journal_backend = journal.backend();
        let journal =
            Unit::new(add(journal.into_file()).map_err(system("register the journal"))?, journal_backend);
        let mut doors = Vec::new();
        for (door, socket) in listeners.sockets {
            doors.push((door, add(socket).map_err(system("register a listener"))?));
        }
        let view = DiskView { file: disk.file, kind: disk_kind };
        let core = &options.core;
        let Keyring { secrets, identity, nbd_tls } = Keyring::new(&options)?;
        let links =
            Links::new(core.node, &options.peers, secrets, identity, core.volume, core.peer_timeout_ms, now);
        let control = Control::new(&mut ring, requests, wake).map_err(system("register the wake-up"))?;
        let storage = Storage::new(&mut ring, disk, journal).map_err(system("map memory"))?;
        let (waiters, latencies) = (Waiters::new(), Latencies::default());
        let cx = Context { ring, machine, now, log, waiters, latencies, freed: false, has_news: true };
        let mut driver = Self {
            cx,
            storage,
            clients: Clients::new(exports, view, options.nbd_connections_max, nbd_tls),
            ublk: Ublk::new(),
            links,
            control,
            branches: beside.list(),
            beside,
            is_frozen: false,
            doors_shut: doors.iter().map(|(door, _)| *door).collect(),
            doors,
            busy_poll: BusyPoll::new(options.busy_poll),
            names: options.names(),
            refusals: Refusals::default(),
            options,
            completions: Vec::with_capacity(1024),
            housekeeping: now,
            settle: None,
            is_stopped: false,
            disk_direct,
            journal_direct,
            backends,
            memory_locked: pinned.locked,
            _unix: listeners.unix,
        };
        let is_serving = driver.cx.machine.is_serving();
        driver.serve(is_serving);
        driver.list_exports();
        Ok(driver)
    }

    /// Turns until the machine has stopped.
    pub(crate) fn run(&mut self) -> Result<(), RingError> {
        while !self.is_stopped {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), RingError> {
        self.cx.now = clock::now();
        self.take_completions();
        self.take_direct_work();
        self.keep_time();
        self.cx.freed = false;
        self.links.resume(&mut self.cx);
        self.clients.resume(&mut self.cx);
        self.ublk.resume(&mut self.cx);
        self.resume_waiting(Need::Write);
        self.resume_waiting(Need::Read);
        self.hand_over_readers();
        let is_due = self.settle.is_some_and(|due| due <= self.cx.now);
        if self.cx.has_news || is_due {
            let was_news = self.cx.has_news;
            self.cx.give(Event::TurnEnd);
            self.cx.has_news = false;
            let did_something = self.obey();
            self.settle = (was_news || did_something).then(|| self.cx.now.plus_ms(SETTLE_MS));
        }
        self.links.flush(&mut self.cx);
        self.clients.flush(&mut self.cx);
        self.enter()?;
        // After the sends are on their way: a peer works while this thread writes.
        self.storage.perform(&mut self.cx.ring);
        Ok(())
    }

    /// Asks those who wait for memory, in their order.
    fn resume_waiting(&mut self, need: Need) {
        for _ in 0..self.cx.waiters.len(need) {
            let Some(waiter) = self.cx.waiters.ask(need) else { break };
            let still_waits = match waiter {
                Waiter::Client(key) => self.clients.resume_parked(&mut self.cx, key, need),
                Waiter::Ublk(tag) => self.ublk.resume_parked(&mut self.cx, tag, need),
            };
            self.cx.waiters.asked(need, still_waits);
            if still_waits {
                break;
            }
        }
    }

    fn take_completions(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.cx.ring.reap(&mut completions);
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
    }

    fn take_direct_work(&mut self) {
        while let Some(event) = self.storage.next_event(&mut self.cx.ring) {
            self.cx.give(event);
        }
    }

    fn complete(&mut self, completion: Completion<Op>) {
        let Completion { tag, result, accepted, more } = completion;
        let cx = &mut self.cx;
        match tag {
            Op::Wake => self.woken(),
            Op::Accept(door) => self.accepted(door, result, accepted, more),
            Op::ClientReceive(key) => self.clients.received(cx, key, result),
            Op::ClientSend(key) => self.clients.sent(cx, key, result),
            Op::Ublk(tag) => self.ublk.fetched(cx, tag, result),
            Op::LinkConnect(key) => self.links.connected(cx, key, result),
            Op::LinkReceive(key) => self.links.received(cx, key, result),
            Op::LinkSend(key) => self.links.sent(cx, key, result),
            Op::Storage(key) => {
                if let Some(event) = self.storage.complete(&mut cx.ring, key, result) {
                    cx.give(event);
                }
            }
        }
    }

    fn accepted(&mut self, door: Door, result: Result<usize, Errno>, accepted: Option<OwnedFd>, more: bool) {
        if let Some(socket) = accepted {
            match door {
                Door::ClientUnix => self.clients.accepted(&mut self.cx, socket, false),
                Door::ClientTcp => self.clients.accepted(&mut self.cx, socket, true),
                Door::Peer => self.links.accepted(&mut self.cx, socket),
            }
        }
        if let Err(error) = result {
            self.cx.log.line(format_args!("accepting connections failed: {}", io_error(error)));
        }
        if !more {
            // Not at once: with no descriptors left it would fail again and again.
            self.doors_shut.push(door);
        }
    }

    fn woken(&mut self) {
        self.control.woken(&mut self.cx.ring);
        while let Some(request) = self.control.next() {
            match request {
                Request::Admin { action, answer } => {
                    let id = self.control.expect(answer);
                    self.cx.give(Event::Admin { id, action });
                }
                Request::AddReplica { address, config, answer } => {
                    let id = self.control.expect(answer);
                    // Known by its name from here on, also in the answer.
                    self.know_peer(address);
                    self.cx.give(Event::Admin { id, action: AdminAction::AddReplica(config) });
                }
                Request::RemoveReplica { node, answer } => {
                    let id = self.control.expect(answer);
                    self.cx.give(Event::Admin { id, action: AdminAction::RemoveReplica { node } });
                }
                Request::Rekey { keyring, answer } => {
                    let Keyring { secrets, identity, nbd_tls } = *keyring;
                    self.clients.set_tls(nbd_tls);
                    let parted = self.links.rekey(&mut self.cx, secrets, identity);
                    let _ = answer.send(Ok(format!("the keys are taken over, {parted} links begin anew")));
                }
                Request::BranchKept { token, result } => self.cx.give(Event::BranchKept { token, result }),
                Request::DiskGrown { token, result } => self.cx.give(Event::DiskGrown { token, result }),
                Request::Branches(branches) => {
                    self.branches = branches;
                    self.list_exports();
                }
                Request::AttachUblk { new, answer } => {
                    let _ = answer.send(self.ublk.attach(&mut self.cx, new));
                }
                Request::BreakUblk { index, answer } => {
                    let _ = answer.send(self.ublk.break_off(&mut self.cx, index));
                }
                Request::Status { answer } => {
                    let _ = answer.send(self.status());
                }
            }
        }
    }

    fn status(&self) -> VolumeStatus {
        VolumeStatus {
            name: self.options.name.clone(),
            core: self.cx.machine.status(),
            latencies: self.cx.latencies,
            nbd_connections: u32::try_from(self.clients.len()).unwrap_or(u32::MAX),
            ublk: self.ublk.status(),
            disk_direct: self.disk_direct,
            journal_direct: self.journal_direct,
            backends: self.backends.clone(),
            ring_flags: self.cx.ring.flags().to_owned(),
            memory_locked: self.memory_locked,
        }
    }

    fn keep_time(&mut self) {
        let now = self.cx.now;
        if self.cx.machine.next_timeout().is_some_and(|due| due <= now) {
            self.cx.give(Event::Timeout);
        }
        if self.links.next_timeout().is_some_and(|due| due <= now) {
            self.links.expire(&mut self.cx);
        }
        if self.housekeeping <= now {
            self.housekeeping = now.plus_ms(HOUSEKEEPING_MS);
            self.cx.has_news = true;
            self.cx.machine.set_wall_clock(clock::wall_zero_ms());
            self.clients.expire(&mut self.cx);
            self.ublk.check_generation(&mut self.cx);
            self.ublk.retry_held();
            for door in self.doors_shut.drain(..) {
                for (_, file) in self.doors.iter().filter(|(other, _)| *other == door) {
                    self.cx.ring.accept(Op::Accept(door), *file);
                }
            }
        }
    }

    /// Does everything the machine asks for; says whether that was anything.
    fn obey(&mut self) -> bool {
        let mut is_something = false;
        while let Some(command) = self.cx.machine.poll_command() {
            is_something = true;
            match Work::of(&command) {
                Some((done, token, work)) => self.storage.begin(&mut self.cx.ring, done, token, work),
                None => self.obey_other(command),
            }
        }
        is_something
    }

    /// Does what is no work on disk or journal.
    fn obey_other(&mut self, command: Command) {
        let cx = &mut self.cx;
        match command {
            Command::Complete { request, result } if Ublk::owns(request) => {
                self.ublk.completed(cx, request, result);
            }
            Command::Complete { request, result } => self.clients.completed(cx, request, result),
            Command::WriteSuperblock { token, superblock } => {
                self.storage.begin_superblock(&mut cx.ring, token, superblock);
            }
            Command::Send { link, envelope, message } => self.links.send(cx, link, envelope, &message),
            Command::SendBare { link, envelope } => self.links.send(cx, link, envelope, &Message::Ping),
            Command::SendAck { link, envelope, ack } => self.links.send_ack(cx, link, envelope, ack),
            Command::SendFrame { link, token, envelope, span } => {
                self.links.send_frame(cx, link, token, &envelope, span);
            }
            Command::CloseLink { link, reason, retry } => self.links.close_by_id(cx, link, &reason, retry),
            Command::Answer { id, result } => self.control.answer(id, result),
            Command::Replicas => self.follow_replicas(),
            Command::Serve { open } => self.serve(open),
            Command::ServeFrozen { open } => self.serve_frozen(open),
            Command::KeepBranch { token, plan } => self.keep_branch(token, plan),
            Command::GrowDisk { token, bytes } => self.grow_disk(token, bytes),
            Command::VolumeSize { bytes } => self.resize(bytes),
            Command::Report(report) => self.report(&report),
            Command::Stopped => self.is_stopped = true,
            Command::WriteJournal { .. }
            | Command::SyncJournal { .. }
            | Command::ReadJournal { .. }
            | Command::ReadDisk { .. }
            | Command::WriteDisk { .. }
            | Command::ZeroDisk { .. }
            | Command::SyncDisk { .. } => unreachable!("that is work of the storage"),
        }
    }

    /// Opens or closes the export.
    fn serve(&mut self, open: bool) {
        let availability =
            if open { Availability::Ready } else { Availability::Refused { message: self.refusal() } };
        let description = self.description();
        for export in &mut self.clients.exports_mut()[..VOLUME_EXPORTS] {
            export.availability = availability.clone();
            export.description.clone_from(&description);
        }
        if !open {
            self.clients.close_all(&mut self.cx);
        }
        self.ublk.serve(&mut self.cx, open);
    }

    /// What the export is, for those who attach it from afar: a connection ends with the reign in which that was said.
    fn description(&self) -> String {
        let status = self.cx.machine.status();
        let (name, node) = (&self.options.name, &self.options.node_name);
        let uuid = format_uuid(self.options.core.volume.0);
        match status.sessions {
            Some(sessions) => format!("holdfast {name} {uuid} * {sessions}"),
            None => format!("holdfast {name} {uuid} {node} {}", status.export_generation),
        }
    }

    /// Opens or ends the frozen export.
    fn serve_frozen(&mut self, open: bool) {
        self.is_frozen = open;
        self.list_exports();
        if !open {
            self.clients.close_frozen(&mut self.cx);
        }
    }

    /// Offers, besides the volume, what it held at other times.
    fn list_exports(&mut self) {
        let options = &self.options;
        let status = self.cx.machine.status();
        let bookmarks: Vec<String> = status.bookmarks.into_iter().map(|bookmark| bookmark.name).collect();
        let frozen = self.is_frozen.then(|| format!("{}{FROZEN}", options.name));
        let branches = self.branches.iter().map(|branch| format!("{}{BRANCH}{}", options.name, branch.name));
        let names: Vec<String> = frozen.into_iter().chain(branches).collect();
        let exports = self.clients.exports_mut();
        exports.truncate(VOLUME_EXPORTS);
        exports.extend(names.iter().map(|name| Export {
            availability: Availability::Ready,
            // Only what stands still can be said to have changed since.
            bookmarks: if name.ends_with(FROZEN) { bookmarks.clone() } else { Vec::new() },
            ..crate::start::export(options, name, true)
        }));
    }

    fn keep_branch(&mut self, token: Token, plan: Box<BranchPlan>) {
        let disk = self.cx.ring.file(self.storage.disk.file).try_clone_to_owned();
        match disk {
            Ok(disk) => self.beside.keep(token, plan, self.options.size_bytes, disk),
            Err(error) => {
                self.cx.give(Event::BranchKept { token, result: Err(error.to_string()) });
            }
        }
    }

    /// Remembers where a replica is found that the machine may take in.
    fn know_peer(&mut self, address: PeerAddress) {
        self.options.peers.retain(|peer| peer.node != address.node);
        self.options.peers.push(address);
        self.names = self.options.names();
    }

    /// The machine knows other replicas than before: those are dialed and let in.
    fn follow_replicas(&mut self) {
        let now: Vec<NodeId> = self.cx.machine.status().peers.iter().map(|peer| peer.node).collect();
        let before = self.links.peers().to_vec();
        for node in before.iter().filter(|node| !now.contains(node)) {
            self.links.remove_peer(*node);
        }
        for node in now.iter().filter(|node| !before.contains(node)) {
            let address = self.options.peers.iter().find(|peer| peer.node == *node);
            let address = address.expect("whoever asks for a replica says where it is");
            self.links.add_peer(self.options.core.node, address, self.cx.now);
        }
    }

    fn grow_disk(&mut self, token: Token, bytes: u64) {
        let disk = self.cx.ring.file(self.storage.disk.file).try_clone_to_owned();
        match disk {
            Ok(disk) => self.beside.grow(token, bytes, disk),
            Err(error) => {
                let errno = Errno(error.raw_os_error().unwrap_or(libc::EMFILE));
                self.cx.give(Event::DiskGrown { token, result: Err(errno) });
            }
        }
    }

    /// Clients that connect from now on see the new size; those that are there may use it.
    fn resize(&mut self, bytes: u64) {
        self.options.size_bytes = bytes;
        self.clients.grow(bytes);
        for export in &mut self.clients.exports_mut()[..VOLUME_EXPORTS] {
            export.size_bytes = bytes;
        }
        self.list_exports();
    }

    /// Lets those who chose a branch go to where it is read.
    fn hand_over_readers(&mut self) {
        while let Some((reader, name)) = self.clients.next_reader(&mut self.cx) {
            if let Err(error) = self.beside.serve(reader, &name) {
                self.cx.log.line(format_args!("branch {name} cannot be read: {error}"));
            }
        }
    }

    /// Why clients are refused, and where to go instead.
    fn refusal(&self) -> String {
        let status = self.cx.machine.status();
        let node = &self.options.node_name;
        let primary = status.record.primary.filter(|primary| *primary != status.node);
        let name = |id| self.options.peers.iter().find(|peer| peer.node == id).map(|peer| &peer.name);
        match primary.and_then(name) {
            Some(primary) => {
                format!("{} is {} on {node}; Primary is {primary}", self.options.name, status.role)
            }
            None => format!("{} is {} on {node} and not served", self.options.name, status.role),
        }
    }

    fn report(&mut self, report: &Report) {
        let (log, names) = (&self.cx.log, &self.names);
        match report {
            Report::Role(text) => log.line(format_args!("role: {}", names.in_text(text))),
            Report::Peer { node, text } => {
                let peers = self.cx.machine.status().peers;
                let is_standalone = peers.iter().any(|peer| peer.node == *node && peer.reason.is_some());
                if self.refusals.is_news(*node, text, is_standalone) {
                    log.line(format_args!("peer {}: {}", names.of(*node), names.in_text(text)));
                }
            }
            Report::Record(text) => log.line(format_args!("record: {}", names.in_text(text))),
            Report::Cut { common, was } => {
                log.line(format_args!(
                    "an uncommitted tail was cut: the log ended at {was}, ends now at {common}"
                ));
            }
            Report::Frozen(text) => log.line(format_args!("I/O waits: {}", names.in_text(text))),
            Report::Thawed => log.line("I/O goes on"),
            Report::DeviceFailed { what, errno } => {
                log.line(format_args!("{what} failed: {}: the copy here is Failed", io_error(*errno)));
            }
            Report::DiskFull => {
                log.line("the backing disk has no space left: what is to be applied waits in the journal");
            }
            Report::Fork { node, fork } => log.line(format_args!(
                "fork: the logs here and on {} part after entry {}: here {} more ({} changed blocks, to {}), there {} \
                 more ({} changed blocks, to {}); holdfast status {} says what to do",
                names.of(*node),
                fork.common,
                fork.here.entries,
                fork.here.changed_blocks,
                fork.here.head,
                fork.there.entries,
                fork.there.changed_blocks,
                fork.there.head,
                self.options.name
            )),
            Report::Branch(text) => log.line(format_args!("fork: {}", names.in_text(text))),
            Report::FreezeBegan(position) => log.line(format_args!("apply is frozen at {position}")),
            Report::FreezeEnded(why) => log.line(format_args!("apply goes on, the frozen export ends: {why}")),
            Report::Grown { bytes } => log.line(format_args!(
                "the volume has {bytes} bytes now: write size = {bytes} into the configuration of all nodes"
            )),
            Report::DiskHasSpace => log.line("the backing disk has space again"),
            Report::Verify(text) => log.line(names.in_text(text)),
            Report::Unreadable { block } => {
                log.line(format_args!(
                    "the backing disk cannot read block {block}, at byte {}",
                    block * 4096
                ));
            }
            Report::Rotten { block } => {
                log.line(format_args!(
                    "block {block} of the backing disk, at byte {}, does not match its checksum: it is not what was \
                     written there",
                    block * 4096
                ));
            }
            Report::SumsLost { block, sectors } => log.line(format_args!(
                "checksums of blocks from {block} on cannot be believed ({sectors} sectors, each for 126 blocks): nothing \
                 is known of these blocks until they are written or scrubbed"
            )),
            Report::Scrub(text) => log.line(text),
            Report::Mended { block, from } => {
                let from = names.of(*from);
                log.line(format_args!("block {block} was written anew with what {from} holds"));
            }
        }
        if matches!(report, Report::Role(_) | Report::Record(_) | Report::Branch(_)) {
            // What this replica says of itself has changed, and with it perhaps what a peer refuses.
            self.links.retry_refused(self.cx.now);
        }
    }

    fn enter(&mut self) -> Result<(), RingError> {
        let waiting = !self.cx.waiters.is_empty() || self.links.is_waiting();
        let is_busy = self.is_stopped
            || self.storage.is_busy()
            || self.clients.is_ready()
            || self.ublk.is_ready()
            || self.cx.has_news
            || (self.cx.freed && waiting);
        if is_busy {
            // What is only to be received can wait for the end of the direct work.
            let can_wait = self.storage.is_urgent() && !self.cx.ring.has_sends_queued();
            return if can_wait || !self.cx.ring.has_queued() { Ok(()) } else { self.cx.ring.enter(None) };
        }
        let due = [self.cx.machine.next_timeout(), self.links.next_timeout(), self.settle];
        let due = due.into_iter().flatten().fold(self.housekeeping, Instant::min);
        let mut wait = clock::until(clock::now(), due);
        if waiting {
            wait = wait.min(RETRY);
        }
        self.wait(wait)
    }

    /// Waits for a completion: looks for one first, then sleeps.
    fn wait(&mut self, wait: Duration) -> Result<(), RingError> {
        let span = self.busy_poll.span().min(wait);
        if !span.is_zero() && self.cx.ring.poll(span)? {
            return Ok(());
        }
        let since = clock::now();
        self.cx.ring.enter(Some(wait - span))?;
        self.busy_poll.slept(clock::until(since, clock::now()));
        Ok(())
    }
}
