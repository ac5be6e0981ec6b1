//! One simulated node: a machine, its disks, and the I/O it has under way. It is a driver like the reactor, with
//! virtual time and no kernel.

use std::collections::VecDeque;

use replicator_core::command::{AdminError, Command, Report, RequestError};
use replicator_core::config::Config;
use replicator_core::disk::layout::SUPERBLOCK_AT;
use replicator_core::disk::superblock::{self, Superblock};
use replicator_core::event::{Errno, Event};
use replicator_core::machine::Machine;
use replicator_core::recovery::{JournalReader, RecoverError, recover};
use replicator_core::units::{AdminId, Buffer, Instant, LinkId, RequestId, Span, Token};
use replicator_core::wire::envelope::Envelope;

use crate::disk::SimDisk;
use crate::random::Random;

/// An I/O under way.
pub enum Io {
    WriteJournal {
        token: Token,
        offset: u64,
        bytes: Vec<u8>,
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
    /// A frame whose bytes the network has taken.
    Sent {
        link: LinkId,
        token: Token,
    },
}

/// What leaves a node.
pub enum Out {
    Message { link: LinkId, envelope: Envelope, body: Vec<u8> },
    Close { link: LinkId, retry: bool },
}

/// A node.
pub struct Node {
    pub config: Config,
    pub machine: Option<Machine>,
    pub arena: Vec<u8>,
    pub disk: SimDisk,
    pub journal: SimDisk,
    pub ios: Vec<Io>,
    pub out: VecDeque<Out>,
    pub completed: Vec<(RequestId, Result<(), RequestError>)>,
    pub answers: Vec<(AdminId, Result<String, AdminError>)>,
    pub reports: Vec<Report>,
    pub serving: bool,
    pub stopped: bool,
    pub boot_id: u128,
    pub needs_turn: bool,
    /// I/O errors to come: any write of the journal fails once it is below this.
    pub fail_journal_writes: bool,
}

struct Reader<'a>(&'a mut SimDisk);

impl JournalReader for Reader<'_> {
    fn read_at(&mut self, device_offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.0.read(device_offset, bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Errno> {
        let covered = self.0.completed();
        self.0.sync(covered);
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
        Self {
            arena: vec![0; config.arena_bytes],
            config,
            machine: None,
            disk: SimDisk::default(),
            journal,
            ios: Vec::new(),
            out: VecDeque::new(),
            completed: Vec::new(),
            answers: Vec::new(),
            reports: Vec::new(),
            serving: false,
            stopped: false,
            boot_id: 1,
            needs_turn: false,
            fail_journal_writes: false,
        }
    }

    /// The superblock as a start would find it.
    pub fn superblock(&self) -> (Superblock, bool) {
        let copies = SUPERBLOCK_AT.map(|at| {
            let mut bytes = vec![0; 4096];
            self.journal.read(at, &mut bytes);
            bytes
        });
        superblock::choose([&copies[0], &copies[1]]).expect("one copy is always sound")
    }

    /// Starts the process.
    pub fn start(&mut self, now: Instant) -> Result<(), RecoverError> {
        assert!(self.machine.is_none());
        let (superblock, repaired) = self.superblock();
        let recovered = recover(&superblock, repaired, self.boot_id, &mut Reader(&mut self.journal))?;
        self.arena = vec![0; self.config.arena_bytes];
        self.machine = Some(Machine::new(self.config.clone(), recovered, now));
        (self.serving, self.stopped) = (false, false);
        self.take_commands();
        Ok(())
    }

    /// Kills the process: what is under way may or may not reach the disks, in part.
    pub fn kill(&mut self, random: &mut Random) {
        for io in std::mem::take(&mut self.ios) {
            match io {
                Io::WriteJournal { offset, bytes, .. } => self.journal.tear(offset, &bytes, random),
                Io::Superblock { copy, bytes, .. } => self.journal.tear(SUPERBLOCK_AT[copy], &bytes, random),
                Io::WriteDisk { offset, bytes, .. } => self.disk.tear(offset, &bytes, random),
                _ => {}
            }
        }
        self.machine = None;
        self.out.clear();
        self.completed.clear();
        self.serving = false;
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
                self.ios.push(Io::WriteJournal { token, offset: device_offset, bytes });
            }
            Command::SyncJournal { token } => {
                self.ios.push(Io::SyncJournal { token, covered: self.journal.completed() });
            }
            Command::ReadJournal { token, device_offset, span } => {
                self.ios.push(Io::ReadJournal { token, offset: device_offset, span });
            }
            Command::ReadDisk { token, offset, span } => self.ios.push(Io::ReadDisk { token, offset, span }),
            Command::WriteDisk { token, offset, span } => {
                let bytes = self.copy(span);
                self.ios.push(Io::WriteDisk { token, offset, bytes });
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
        let mut body = [0; replicator_core::limits::MESSAGE_BODY_BYTES_MAX];
        match command {
            Command::Send { link, mut envelope, message } => {
                let len = message.encode(&mut body);
                envelope.body_bytes = u32::try_from(len).unwrap();
                self.out.push_back(Out::Message { link, envelope, body: body[..len].to_vec() });
            }
            Command::SendBare { link, envelope } => {
                self.out.push_back(Out::Message { link, envelope, body: Vec::new() });
            }
            Command::SendAck { link, mut envelope, ack } => {
                let len = replicator_core::wire::message::Message::Ack(ack).encode(&mut body);
                envelope.body_bytes = u32::try_from(len).unwrap();
                self.out.push_back(Out::Message { link, envelope, body: body[..len].to_vec() });
            }
            Command::SendFrame { link, token, envelope, span } => {
                let body = self.copy(span);
                self.out.push_back(Out::Message { link, envelope, body });
                self.ios.push(Io::Sent { link, token });
            }
            Command::CloseLink { link, retry, .. } => self.out.push_back(Out::Close { link, retry }),
            Command::Complete { request, result } => self.completed.push((request, result)),
            Command::Answer { id, result } => self.answers.push((id, result)),
            Command::Serve { open } => self.serving = open,
            Command::Report(report) => self.reports.push(report),
            Command::Stopped => self.stopped = true,
            _ => unreachable!("performed by the caller"),
        }
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
        let result = Ok(());
        let event = match self.ios.remove(index) {
            Io::WriteJournal { token, .. } if self.fail_journal_writes => {
                Event::JournalWritten { token, result: Err(Errno(5)) }
            }
            Io::WriteJournal { token, offset, bytes } => {
                self.journal.write(offset, &bytes);
                Event::JournalWritten { token, result }
            }
            Io::SyncJournal { token, covered } => {
                self.sync_journal(covered);
                Event::JournalSynced { token, result }
            }
            Io::ReadJournal { token, offset, span } => {
                self.journal.read(offset, &mut self.arena[span.range()]);
                Event::JournalRead { token, result }
            }
            Io::ReadDisk { token, offset, span } => {
                self.disk.read(offset, &mut self.arena[span.range()]);
                Event::DiskRead { token, result }
            }
            Io::WriteDisk { token, offset, bytes } => {
                self.disk.write(offset, &bytes);
                Event::DiskWritten { token, result }
            }
            Io::ZeroDisk { token, offset, length } => {
                self.disk.write(offset, &vec![0; usize::try_from(length).unwrap()]);
                Event::DiskWritten { token, result }
            }
            Io::SyncDisk { token, covered } => {
                for io in &mut self.ios {
                    if let Io::SyncDisk { covered: other, .. } = io {
                        *other = other.saturating_sub(covered);
                    }
                }
                self.disk.sync(covered);
                Event::DiskSynced { token, result }
            }
            Io::Superblock { token, copy, bytes } => {
                self.journal.write(SUPERBLOCK_AT[copy], &bytes);
                let all = self.journal.completed();
                self.sync_journal(all);
                if copy == 0 {
                    self.ios.push(Io::Superblock { token, copy: 1, bytes });
                    return;
                }
                Event::SuperblockWritten { token, result }
            }
            Io::Sent { link, token } => Event::FrameSent { link, token },
        };
        self.handle(now, event);
    }

    /// Makes the first `covered` writes durable; syncs under way cover fewer of what is left.
    fn sync_journal(&mut self, covered: usize) {
        self.journal.sync(covered);
        for io in &mut self.ios {
            if let Io::SyncJournal { covered: other, .. } = io {
                *other = other.saturating_sub(covered);
            }
        }
    }

    /// A buffer for a frame that arrives, filled.
    pub fn place(&mut self, link: LinkId, envelope: &Envelope, bytes: &[u8]) -> Option<Buffer> {
        assert!(envelope.body_bytes as usize == bytes.len());
        let buffer = self.machine.as_mut()?.place_frame(link, envelope)?;
        self.arena[buffer.start()..buffer.start() + bytes.len()].copy_from_slice(bytes);
        Some(buffer)
    }
}
