//! One simulated node: a machine, its disks, and the I/O it has under way. It is a driver like the reactor, with
//! virtual time and no kernel. What it does on its disks and says to others is noted down for the [`ledger`].
//!
//! [`ledger`]: crate::ledger

use std::collections::VecDeque;

use replicator_core::command::{AdminError, Command, Report, RequestError};
use replicator_core::config::Config;
use replicator_core::disk::layout::SUPERBLOCK_AT;
use replicator_core::disk::superblock::{self, Superblock, SuperblockError};
use replicator_core::event::{Errno, Event};
use replicator_core::machine::Machine;
use replicator_core::recovery::{JournalReader, RecoverError, recover};
use replicator_core::units::{AdminId, Buffer, Instant, LinkId, RequestId, Span, Token};
use replicator_core::wire::envelope::Envelope;
use replicator_core::wire::message::{Ack, Message, Sealed};
use thiserror::Error;

use crate::branch::Branch;
use crate::checker::{STALE, stamp};
use crate::disk::{SECTOR, SimDisk};
use crate::random::Random;
use crate::rule::broken;

/// An I/O under way.
#[derive(Debug)]
pub enum Io {
    WriteJournal {
        token: Token,
        offset: u64,
        bytes: Vec<u8>,
        /// Of a dirty map; if not, a frame.
        map: bool,
    },
    SyncJournal {
        token: Token,
        covered: usize,
    },
    ReadJournal {
        token: Token,
        offset: u64,
        span: Span,
    },
    ReadDisk {
        token: Token,
        offset: u64,
        span: Span,
    },
    WriteDisk {
        token: Token,
        offset: u64,
        span: Span,
        bytes: Vec<u8>,
    },
    ZeroDisk {
        token: Token,
        offset: u64,
        length: u64,
    },
    SyncDisk {
        token: Token,
        covered: usize,
    },
    /// The copy that is written next, and the bytes.
    Superblock {
        token: Token,
        copy: usize,
        bytes: Vec<u8>,
    },
    /// The disk is being enlarged.
    GrowDisk {
        token: Token,
        bytes: u64,
    },
    /// A branch that is being kept, and what the disk held in its blocks when that began.
    Branch {
        token: Token,
        branch: Box<Branch>,
    },
    /// A frame whose bytes the network has taken.
    Sent {
        link: LinkId,
        token: Token,
    },
}

/// What leaves a node.
pub enum Out {
    Message { link: LinkId, envelope: Envelope, body: Vec<u8> },
    Close { link: LinkId, reason: String, retry: bool },
}

/// What a node was seen to do.
pub enum Seen {
    /// It asked for a write of its journal.
    JournalAsked { offset: u64, bytes: Vec<u8> },
    /// That write is done.
    JournalWritten { offset: u64 },
    /// These ranges of the journal are durable.
    JournalDurable(Vec<(u64, usize)>),
    /// It asked for a write of its disk.
    DiskAsked { offset: u64, bytes: Vec<u8> },
    /// One copy of the superblock is written and synced.
    SuperblockCopy,
    /// Both copies are.
    SuperblockSaved(Box<Superblock>),
    /// It said what it holds.
    Acked(Envelope, Ack),
    /// It answered a seal.
    Sealed(Box<Sealed>),
    /// It refused a peer.
    Refused(String),
    /// It opened or closed its export.
    Serve(bool),
    /// It opened its frozen export.
    Frozen,
    /// Its volume has so many bytes for clients.
    VolumeSize(u64),
    /// It read its journal: into the start of the arena only what recovery left is ever loaded.
    JournalRead { into_reserve: bool },
}

/// A node.
pub struct Node {
    pub config: Config,
    pub machine: Option<Machine>,
    pub arena: Vec<u8>,
    pub disk: SimDisk,
    pub journal: SimDisk,
    pub ios: Vec<Io>,
    /// I/O that hangs, and until when.
    pub hung: Vec<(u64, Io)>,
    pub out: VecDeque<Out>,
    pub completed: Vec<(RequestId, Result<(), RequestError>)>,
    pub answers: Vec<(AdminId, Result<String, AdminError>)>,
    pub reports: Vec<Report>,
    pub seen: Vec<Seen>,
    pub serving: bool,
    /// What its time of day was when its other clock was 0, in milliseconds since 1970.
    pub wall_zero_ms: u64,
    /// The frozen export is open.
    pub frozen: bool,
    /// The branch kept last.
    pub branch: Option<Branch>,
    pub stopped: bool,
    pub boot_id: u128,
    pub needs_turn: bool,
    /// Processes so far.
    pub starts: u64,
    /// Where the ring begins on the journal device.
    ring_at: u64,
    /// Any write of the journal fails.
    pub fail_journal_writes: bool,
    /// As large as the backing disk can be.
    pub disk_bytes: u64,
    /// The backing disk has no space.
    pub disk_is_full: bool,
}

/// Why a replica did not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("{0}")]
    Superblock(SuperblockError),
    /// A driver opens no such device.
    #[error("the superblock is another node's")]
    OtherNode,
    #[error("{0}")]
    Recover(RecoverError),
}

struct Reader<'a>(&'a mut SimDisk);

impl JournalReader for Reader<'_> {
    fn read_at(&mut self, device_offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        if !self.0.is_readable(device_offset, bytes.len()) {
            return Err(Errno(5));
        }
        self.0.read(device_offset, bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Errno> {
        let covered = self.0.completed();
        self.0.sync(covered);
        Ok(())
    }

    fn rewrite(&mut self, device_offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.0.write(device_offset, bytes);
        Ok(())
    }
}

impl Node {
    /// A node with a fresh replica.
    pub fn new(config: Config, superblock: &Superblock) -> Self {
        let mut journal = SimDisk::default();
        for at in SUPERBLOCK_AT {
            journal.write(at, &superblock.encode());
        }
        journal.sync(2);
        let layout = superblock.layout();
        let layout = layout.expect("the sizes go together");
        let mut disk = SimDisk::default();
        for sector in superblock.volume_bytes / SECTOR as u64..config.disk_bytes / SECTOR as u64 {
            let index = usize::try_from(sector).unwrap();
            disk.write(sector * SECTOR as u64, &stamp(STALE, index));
        }
        let written = disk.completed();
        disk.sync(written);
        Self {
            arena: vec![0; config.arena_bytes],
            ring_at: layout.ring_at,
            machine: None,
            disk,
            journal,
            ios: Vec::new(),
            hung: Vec::new(),
            out: VecDeque::new(),
            completed: Vec::new(),
            answers: Vec::new(),
            reports: Vec::new(),
            seen: Vec::new(),
            serving: false,
            frozen: false,
            branch: None,
            stopped: false,
            boot_id: 1,
            wall_zero_ms: 0,
            needs_turn: false,
            starts: 0,
            fail_journal_writes: false,
            disk_bytes: config.disk_bytes,
            config,
            disk_is_full: false,
        }
    }

    /// The superblock as a start would find it, and whether a copy was bad.
    ///
    /// # Errors
    /// If no copy can be believed.
    pub fn read_superblock(&self) -> Result<(Superblock, bool), SuperblockError> {
        let copies = SUPERBLOCK_AT.map(|at| {
            let mut bytes = vec![0; 4096];
            self.journal.read(at, &mut bytes);
            bytes
        });
        superblock::choose([&copies[0], &copies[1]])
    }

    /// The superblock of a node whose disks are sound.
    pub fn superblock(&self) -> (Superblock, bool) {
        self.read_superblock().expect("one copy is always sound")
    }

    /// The time of day is set: what it was when the clock that never goes back was 0.
    pub fn set_wall_clock(&mut self, at_zero_ms: u64) {
        self.wall_zero_ms = at_zero_ms;
        if let Some(machine) = &mut self.machine {
            machine.set_wall_clock(at_zero_ms);
        }
    }

    /// Starts the process.
    ///
    /// # Errors
    /// If what lies on the disks cannot be believed.
    pub fn start(&mut self, now: Instant) -> Result<(), StartError> {
        assert!(self.machine.is_none());
        let (superblock, repaired) = self.read_superblock().map_err(StartError::Superblock)?;
        if superblock.node != self.config.node {
            return Err(StartError::OtherNode);
        }
        let mut recovered = recover(&superblock, repaired, self.boot_id, &mut Reader(&mut self.journal))
            .map_err(StartError::Recover)?;
        let branch = self.branch.as_ref().filter(|branch| branch.plan.head == superblock.branch);
        recovered.diverged = branch.map(|branch| branch.plan.blocks.clone());
        self.arena = vec![0; self.config.arena_bytes];
        let mut machine = Machine::new(self.config.clone(), recovered, now);
        machine.set_wall_clock(self.wall_zero_ms);
        self.machine = Some(machine);
        (self.serving, self.frozen, self.stopped) = (false, false, false);
        self.starts += 1;
        self.take_commands();
        Ok(())
    }

    /// Kills the process: what is under way may or may not reach the disks, in part.
    pub fn kill(&mut self, random: &mut Random) {
        let hung = std::mem::take(&mut self.hung).into_iter().map(|(_, io)| io);
        for io in std::mem::take(&mut self.ios).into_iter().chain(hung) {
            match io {
                Io::WriteJournal { offset, bytes, .. } => self.journal.tear(offset, &bytes, random),
                Io::Superblock { copy, bytes, .. } => self.journal.tear(SUPERBLOCK_AT[copy], &bytes, random),
                Io::WriteDisk { offset, bytes, .. } => self.disk.tear(offset, &bytes, random),
                Io::ZeroDisk { offset, length, .. } => {
                    self.disk.tear(offset, &vec![0; usize::try_from(length).unwrap()], random);
                }
                _ => {}
            }
        }
        self.machine = None;
        self.out.clear();
        self.completed.clear();
        (self.serving, self.frozen) = (false, false);
        self.needs_turn = false;
    }

    /// Power fails under the machine.
    pub fn lose_power(&mut self, random: &mut Random) {
        self.kill(random);
        self.journal.lose_power(random);
        self.disk.lose_power(random);
        self.boot_id += 1;
    }

    /// Gives the machine an event.
    pub fn handle(&mut self, now: Instant, event: Event<'_>) {
        let Some(machine) = &mut self.machine else { return };
        machine.handle(now, event, &mut self.arena);
        self.needs_turn = true;
        self.take_commands();
    }

    /// Ends the turn.
    pub fn turn(&mut self, now: Instant) {
        self.handle(now, Event::TurnEnd);
        self.needs_turn = false;
    }

    fn take_commands(&mut self) {
        while let Some(command) = self.machine.as_mut().and_then(Machine::poll_command) {
            self.perform(command);
        }
    }

    fn copy(&self, span: Span) -> Vec<u8> {
        self.arena[span.range()].to_vec()
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::WriteJournal { token, device_offset, span } => {
                let bytes = self.copy(span);
                let map = device_offset < self.ring_at;
                if !map {
                    self.seen.push(Seen::JournalAsked { offset: device_offset, bytes: bytes.clone() });
                }
                self.ios.push(Io::WriteJournal { token, offset: device_offset, bytes, map });
            }
            Command::SyncJournal { token } => {
                self.ios.push(Io::SyncJournal { token, covered: self.journal.completed() });
            }
            Command::ReadJournal { token, device_offset, span } => {
                self.seen.push(Seen::JournalRead { into_reserve: span.start == 0 });
                self.ios.push(Io::ReadJournal { token, offset: device_offset, span });
            }
            Command::ReadDisk { token, offset, span } => self.ios.push(Io::ReadDisk { token, offset, span }),
            Command::WriteDisk { .. } | Command::ZeroDisk { .. } if self.frozen => {
                broken("frozen-disk-written", "apply goes on though the frozen export is open");
            }
            Command::WriteDisk { token, offset, span } => {
                let bytes = self.copy(span);
                self.seen.push(Seen::DiskAsked { offset, bytes: bytes.clone() });
                self.ios.push(Io::WriteDisk { token, offset, span, bytes });
            }
            Command::ZeroDisk { token, offset, length, .. } => {
                self.ios.push(Io::ZeroDisk { token, offset, length });
            }
            Command::SyncDisk { token } => {
                self.ios.push(Io::SyncDisk { token, covered: self.disk.completed() });
            }
            Command::WriteSuperblock { token, superblock } => {
                let bytes = superblock.encode().to_vec();
                self.ios.push(Io::Superblock { token, copy: 0, bytes });
            }
            other => self.perform_other(other),
        }
    }

    fn perform_other(&mut self, command: Command) {
        match command {
            Command::Send { link, envelope, message } => {
                match &*message {
                    Message::Sealed(sealed) => self.seen.push(Seen::Sealed(Box::new(*sealed))),
                    Message::Refuse(reason) => self.seen.push(Seen::Refused(reason.clone())),
                    _ => {}
                }
                self.send(link, envelope, &message);
            }
            Command::SendBare { link, envelope } => {
                self.out.push_back(Out::Message { link, envelope, body: Vec::new() });
            }
            Command::SendAck { link, envelope, ack } => {
                self.seen.push(Seen::Acked(envelope, ack));
                self.send(link, envelope, &Message::Ack(ack));
            }
            Command::SendFrame { link, token, envelope, span } => {
                let body = self.copy(span);
                self.out.push_back(Out::Message { link, envelope, body });
                self.ios.push(Io::Sent { link, token });
            }
            Command::CloseLink { link, reason, retry } => {
                self.out.push_back(Out::Close { link, reason, retry });
            }
            Command::Complete { request, result } => self.completed.push((request, result)),
            Command::Answer { id, result } => self.answers.push((id, result)),
            Command::Serve { open } => {
                self.serving = open;
                self.seen.push(Seen::Serve(open));
            }
            Command::ServeFrozen { open } => {
                self.frozen = open;
                if open {
                    self.seen.push(Seen::Frozen);
                }
            }
            Command::GrowDisk { token, bytes } => self.ios.push(Io::GrowDisk { token, bytes }),
            // Links are made by the world, whoever takes part.
            Command::Replicas => {}
            Command::VolumeSize { bytes } => self.seen.push(Seen::VolumeSize(bytes)),
            Command::KeepBranch { token, plan } => {
                let branch = Box::new(Branch::of(*plan, &self.disk));
                self.ios.push(Io::Branch { token, branch });
            }
            Command::Report(report) => self.reports.push(report),
            Command::Stopped => self.stopped = true,
            _ => unreachable!("performed by the caller"),
        }
    }

    fn send(&mut self, link: LinkId, mut envelope: Envelope, message: &Message) {
        let mut body = [0; replicator_core::limits::MESSAGE_BODY_BYTES_MAX];
        let len = message.encode(&mut body);
        envelope.body_bytes = u32::try_from(len).unwrap();
        self.out.push_back(Out::Message { link, envelope, body: body[..len].to_vec() });
    }

    /// What may complete next: frames of one link leave in order.
    pub fn ready(&self) -> impl Iterator<Item = usize> {
        let is_first = |index: usize| match self.ios[index] {
            Io::Sent { link, .. } => {
                !self.ios[..index].iter().any(|io| matches!(io, Io::Sent { link: of, .. } if *of == link))
            }
            _ => true,
        };
        (0..self.ios.len()).filter(move |index| is_first(*index))
    }

    /// Completes the I/O at `index`.
    pub fn finish(&mut self, index: usize, now: Instant) {
        let event = match self.ios.remove(index) {
            Io::WriteJournal { token, .. } if self.fail_journal_writes => {
                Event::JournalWritten { token, result: Err(Errno(5)) }
            }
            Io::WriteJournal { token, offset, bytes, .. } => {
                self.journal.write(offset, &bytes);
                self.seen.push(Seen::JournalWritten { offset });
                Event::JournalWritten { token, result: Ok(()) }
            }
            Io::SyncJournal { token, covered } => {
                self.sync_journal(covered);
                Event::JournalSynced { token, result: Ok(()) }
            }
            Io::ReadJournal { token, offset, span } => {
                self.journal.read(offset, &mut self.arena[span.range()]);
                Event::JournalRead { token, result: readable(&self.journal, offset, span.len) }
            }
            Io::ReadDisk { token, offset, span } => {
                self.disk.read(offset, &mut self.arena[span.range()]);
                Event::DiskRead { token, result: readable(&self.disk, offset, span.len) }
            }
            Io::WriteDisk { token, .. } if self.disk_is_full => {
                Event::DiskWritten { token, result: Err(Errno(28)) }
            }
            Io::WriteDisk { token, offset, span, bytes } => {
                // The device reads the memory when it likes.
                if self.copy(span) != bytes {
                    broken(
                        "written-from-given-up-memory",
                        format!("what goes to {offset} of the disk was overwritten"),
                    );
                }
                self.disk.write(offset, &bytes);
                Event::DiskWritten { token, result: Ok(()) }
            }
            Io::ZeroDisk { token, offset, length } => {
                self.disk.write(offset, &vec![0; usize::try_from(length).unwrap()]);
                Event::DiskWritten { token, result: Ok(()) }
            }
            Io::SyncDisk { token, covered } => {
                let before = self.disk.completed();
                self.disk.sync(covered);
                self.syncs_cover_less(false, before - self.disk.completed());
                Event::DiskSynced { token, result: Ok(()) }
            }
            Io::Superblock { token, copy, bytes } => {
                self.journal.write(SUPERBLOCK_AT[copy], &bytes);
                let all = self.journal.completed();
                self.sync_journal(all);
                if copy == 0 {
                    self.seen.push(Seen::SuperblockCopy);
                    self.ios.push(Io::Superblock { token, copy: 1, bytes });
                    return;
                }
                let superblock = Superblock::decode(&bytes).expect("it was just encoded");
                self.seen.push(Seen::SuperblockSaved(Box::new(superblock)));
                Event::SuperblockWritten { token, result: Ok(()) }
            }
            Io::GrowDisk { token, bytes } => {
                let bytes = bytes.min(self.disk_bytes);
                Event::DiskGrown { token, result: Ok(bytes) }
            }
            Io::Branch { token, branch } => {
                let now_held = Branch::of(branch.plan.clone(), &self.disk);
                if now_held.blocks != branch.blocks {
                    broken("overwritten-before-kept", "blocks of a branch changed before it was durable");
                }
                self.branch = Some(*branch);
                Event::BranchKept { token, result: Ok(()) }
            }
            Io::Sent { link, token } => Event::FrameSent { link, token },
        };
        self.handle(now, event);
    }

    /// The I/O at `index` fails.
    pub fn fail(&mut self, index: usize, now: Instant, errno: i32, random: &mut Random) {
        let result = Err(Errno(errno));
        let event = match self.ios.remove(index) {
            Io::WriteJournal { token, offset, bytes, .. } => {
                self.journal.tear(offset, &bytes, random);
                Event::JournalWritten { token, result }
            }
            Io::SyncJournal { token, covered } => {
                self.journal.fail_sync(covered, random);
                self.syncs_cover_less(true, covered);
                Event::JournalSynced { token, result }
            }
            Io::ReadJournal { token, .. } => Event::JournalRead { token, result },
            Io::ReadDisk { token, .. } => Event::DiskRead { token, result },
            Io::WriteDisk { token, offset, bytes, .. } => {
                self.disk.tear(offset, &bytes, random);
                Event::DiskWritten { token, result }
            }
            Io::ZeroDisk { token, .. } => Event::DiskWritten { token, result },
            Io::SyncDisk { token, covered } => {
                self.disk.fail_sync(covered, random);
                self.syncs_cover_less(false, covered);
                Event::DiskSynced { token, result }
            }
            Io::Superblock { token, copy, bytes } => {
                self.journal.tear(SUPERBLOCK_AT[copy], &bytes, random);
                Event::SuperblockWritten { token, result }
            }
            Io::GrowDisk { token, .. } => Event::DiskGrown { token, result: Err(Errno(errno)) },
            Io::Branch { token, .. } => {
                Event::BranchKept { token, result: Err("no space for it".to_owned()) }
            }
            sent @ Io::Sent { .. } => {
                self.ios.insert(index, sent);
                return self.finish(index, now);
            }
        };
        self.handle(now, event);
    }

    /// Makes the first `covered` writes durable; syncs under way cover fewer of what is left.
    fn sync_journal(&mut self, covered: usize) {
        let before = self.journal.completed();
        let ranges = self.journal.sync(covered);
        self.syncs_cover_less(true, before - self.journal.completed());
        self.seen.push(Seen::JournalDurable(ranges));
    }

    fn syncs_cover_less(&mut self, journal: bool, count: usize) {
        let hung = self.hung.iter_mut().map(|(_, io)| io);
        for io in self.ios.iter_mut().chain(hung) {
            match io {
                Io::SyncJournal { covered, .. } if journal => *covered = covered.saturating_sub(count),
                Io::SyncDisk { covered, .. } if !journal => *covered = covered.saturating_sub(count),
                _ => {}
            }
        }
    }

    /// A buffer for a frame that begins to arrive.
    pub fn place(&mut self, link: LinkId, envelope: &Envelope) -> Option<Buffer> {
        self.machine.as_mut()?.place_frame(link, envelope)
    }

    /// Fills a buffer that [`Self::place`] gave.
    pub fn fill(&mut self, buffer: Buffer, bytes: &[u8]) {
        self.arena[buffer.start()..buffer.start() + bytes.len()].copy_from_slice(bytes);
    }
}

fn readable(disk: &SimDisk, offset: u64, len: usize) -> Result<(), Errno> {
    if disk.is_readable(offset, len) { Ok(()) } else { Err(Errno(5)) }
}
