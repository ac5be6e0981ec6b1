//! The replica's disk and journal while it runs: each command of the core becomes operations on the ring, or direct
//! system calls on a memory file system, and ends as one event. It decides nothing about what is written where.

use std::collections::VecDeque;
use std::io;

use replicator_core::command::Command;
use replicator_core::disk::layout::{SUPERBLOCK_AT, SUPERBLOCK_BYTES};
use replicator_core::disk::superblock::Superblock;
use replicator_core::event::{Errno, Event, IoResult, ZeroKind};
use replicator_core::units::{Span, Token};
use rustix::fs::FallocateFlags;

use super::Op;
use super::slab::{Key, Slab};
use crate::device::Backend;
use crate::ring::{FileId, MemoryId, Place, Ring};

/// Bytes of zeros written at once where the disk cannot zero by itself.
const ZEROS_BYTES: usize = 1 << 20;

/// Writes in the background that are done in one turn.
const BACKGROUND_MAX: usize = 32;

/// One of the two devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The backing disk.
    Disk,
    /// The journal.
    Journal,
}

/// Which event ends the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    JournalWritten,
    JournalSynced,
    JournalRead,
    DiskRead,
    DiskWritten,
    DiskSynced,
    SuperblockWritten,
}

/// How a range is being zeroed: the ways in the order they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZeroWay {
    Range,
    Punch,
    Write,
}

/// What is left to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Fill a place.
    Read { offset: u64, place: Place },
    /// Write a place.
    Write { offset: u64, place: Place },
    /// Make durable.
    Sync,
    /// Zero a range.
    Zero { offset: u64, length: u64, kind: ZeroKind },
    /// Write and sync the copies of the superblock; so many of the four steps are done.
    Superblock { step: usize },
}

impl Work {
    /// The work a command asks for, if it is one, and what ends it.
    pub(crate) fn of(command: &Command) -> Option<(Done, Token, Self)> {
        let read = |offset, span| Self::Read { offset, place: Place::Arena(span) };
        let write = |offset, span| Self::Write { offset, place: Place::Arena(span) };
        Some(match *command {
            Command::WriteJournal { token, device_offset, span } => {
                (Done::JournalWritten, token, write(device_offset, span))
            }
            Command::ReadJournal { token, device_offset, span } => {
                (Done::JournalRead, token, read(device_offset, span))
            }
            Command::SyncJournal { token } => (Done::JournalSynced, token, Self::Sync),
            Command::ReadDisk { token, offset, span } => (Done::DiskRead, token, read(offset, span)),
            Command::WriteDisk { token, offset, span } => (Done::DiskWritten, token, write(offset, span)),
            Command::ZeroDisk { token, offset, length, kind } => {
                (Done::DiskWritten, token, Self::Zero { offset, length, kind })
            }
            Command::SyncDisk { token } => (Done::DiskSynced, token, Self::Sync),
            _ => return None,
        })
    }
}

struct Io {
    done: Done,
    token: Token,
    target: Target,
    work: Work,
    /// How a range is being zeroed now; other work may meanwhile have found out that this is no way.
    way: ZeroWay,
}

/// A device in the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    pub(crate) file: FileId,
    pub(crate) backend: Backend,
    cannot_zero_range: bool,
    cannot_punch: bool,
}

impl Unit {
    pub(crate) fn new(file: FileId, backend: Backend) -> Self {
        Self { file, backend, cannot_zero_range: false, cannot_punch: false }
    }

    fn zero_way(&self, kind: ZeroKind) -> ZeroWay {
        match (kind, self.cannot_zero_range, self.cannot_punch) {
            (ZeroKind::Zeroes, false, _) | (ZeroKind::Trim, false, true) => ZeroWay::Range,
            (ZeroKind::Trim, _, false) | (ZeroKind::Zeroes, true, false) => ZeroWay::Punch,
            (_, true, true) => ZeroWay::Write,
        }
    }

    /// Remembers that a way is none; whether another one is left.
    fn refuse_zero_way(&mut self, way: ZeroWay, error: Errno) -> bool {
        // Devices refuse ranges smaller than their own granularity with EINVAL.
        if ![libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL].contains(&error.0) {
            return false;
        }
        match way {
            ZeroWay::Range => self.cannot_zero_range = true,
            ZeroWay::Punch => self.cannot_punch = true,
            ZeroWay::Write => return false,
        }
        true
    }
}

/// Both devices and all work on them.
pub(crate) struct Storage {
    pub(crate) disk: Unit,
    journal: Unit,
    works: Slab<Io>,
    /// Work for direct system calls that somebody waits for, done after the turn's sends have been submitted.
    inline: VecDeque<Key>,
    /// The same for what is applied in the background: so much a turn, lest a burst of it hold up clients.
    background: VecDeque<Key>,
    /// What came of it, told in the next turn.
    inline_done: VecDeque<(Key, Result<usize, Errno>)>,
    superblocks: VecDeque<(Token, Box<Superblock>)>,
    superblock_memory: MemoryId,
    zeros: Option<MemoryId>,
}

impl Storage {
    pub(crate) fn new(ring: &mut Ring<Op>, disk: Unit, journal: Unit) -> io::Result<Self> {
        Ok(Self {
            disk,
            journal,
            works: Slab::with_capacity(1024),
            inline: VecDeque::with_capacity(1024),
            background: VecDeque::with_capacity(1024),
            inline_done: VecDeque::with_capacity(1024),
            superblocks: VecDeque::with_capacity(8),
            superblock_memory: ring.add_memory(SUPERBLOCK_BYTES)?,
            zeros: None,
        })
    }

    /// Begins work that ends in the event `done`.
    pub(crate) fn begin(&mut self, ring: &mut Ring<Op>, done: Done, token: Token, work: Work) {
        let target = match done {
            Done::DiskRead | Done::DiskWritten | Done::DiskSynced => Target::Disk,
            _ => Target::Journal,
        };
        let key = self.works.insert(Io { done, token, target, work, way: ZeroWay::Write });
        self.issue(ring, key);
    }

    /// Begins to write a superblock, after those asked for before.
    pub(crate) fn begin_superblock(
        &mut self,
        ring: &mut Ring<Op>,
        token: Token,
        superblock: Box<Superblock>,
    ) {
        self.superblocks.push_back((token, superblock));
        if self.superblocks.len() == 1 {
            self.next_superblock(ring);
        }
    }

    fn next_superblock(&mut self, ring: &mut Ring<Op>) {
        let Some((token, superblock)) = self.superblocks.front() else { return };
        let token = *token;
        ring.memory_mut(self.superblock_memory).copy_from_slice(&superblock.encode());
        self.begin(ring, Done::SuperblockWritten, token, Work::Superblock { step: 0 });
    }

    /// Whether direct work waits to be done or told, so that the turn must not wait.
    pub(crate) fn is_busy(&self) -> bool {
        self.is_urgent() || !self.background.is_empty() || !self.inline_done.is_empty()
    }

    /// Whether somebody waits for direct work.
    pub(crate) fn is_urgent(&self) -> bool {
        !self.inline.is_empty()
    }

    /// Does the direct work of a turn.
    pub(crate) fn perform(&mut self, ring: &mut Ring<Op>) {
        let background = self.background.len().min(BACKGROUND_MAX);
        self.inline.extend(self.background.drain(..background));
        while let Some(key) = self.inline.pop_front() {
            let result = self.perform_one(ring, key);
            self.inline_done.push_back((key, result));
        }
    }

    /// The next event of direct work that is done.
    pub(crate) fn next_event(&mut self, ring: &mut Ring<Op>) -> Option<Event<'static>> {
        while let Some((key, result)) = self.inline_done.pop_front() {
            let event = self.complete(ring, key, result);
            if event.is_some() {
                return event;
            }
        }
        None
    }

    fn unit(&self, target: Target) -> &Unit {
        match target {
            Target::Disk => &self.disk,
            Target::Journal => &self.journal,
        }
    }

    fn issue(&mut self, ring: &mut Ring<Op>, key: Key) {
        let io = self.works.get(key).expect("work is issued while it lasts");
        let (target, work) = (io.target, io.work);
        let unit = *self.unit(target);
        let way = match work {
            Work::Zero { kind, .. } => unit.zero_way(kind),
            _ => ZeroWay::Write,
        };
        self.works.get_mut(key).expect("as above").way = way;
        if unit.backend == Backend::Inline {
            let is_background = self.works.get(key).expect("as above").done == Done::DiskWritten;
            let queue = if is_background { &mut self.background } else { &mut self.inline };
            return queue.push_back(key);
        }
        let tag = Op::Storage(key);
        match work {
            Work::Read { offset, place } => ring.read(tag, unit.file, offset, place),
            Work::Write { offset, place } => ring.write(tag, unit.file, offset, place),
            Work::Sync => ring.sync(tag, unit.file),
            Work::Superblock { step } if step % 2 == 1 => ring.sync(tag, unit.file),
            Work::Superblock { step } => {
                let place = Place::Local(self.superblock_memory, Span { start: 0, len: SUPERBLOCK_BYTES });
                ring.write(tag, unit.file, SUPERBLOCK_AT[step / 2], place);
            }
            Work::Zero { offset, length, .. } => match mode(way) {
                Some(mode) => {
                    let mode = i32::try_from(mode.bits()).expect("small flags");
                    ring.allocate(tag, unit.file, mode, offset, length);
                }
                None => match self.zeros(ring, length) {
                    Ok(place) => ring.write(tag, unit.file, offset, place),
                    Err(error) => self.inline_done.push_back((key, Err(error))),
                },
            },
        }
    }

    fn zeros(&mut self, ring: &mut Ring<Op>, length: u64) -> Result<Place, Errno> {
        let memory = match self.zeros {
            Some(memory) => memory,
            None => {
                let memory = ring.add_memory(ZEROS_BYTES).map_err(|_| Errno(libc::ENOMEM))?;
                *self.zeros.insert(memory)
            }
        };
        let len = usize::try_from(length).map_or(ZEROS_BYTES, |length| length.min(ZEROS_BYTES));
        Ok(Place::Local(memory, Span { start: 0, len }))
    }

    fn perform_one(&mut self, ring: &mut Ring<Op>, key: Key) -> Result<usize, Errno> {
        let io = self.works.get(key).expect("work is performed while it lasts");
        let (target, work, way) = (io.target, io.work, io.way);
        let unit = *self.unit(target);
        match work {
            Work::Read { offset, place } => ring.read_now(unit.file, offset, place),
            Work::Write { offset, place } => ring.write_now(unit.file, offset, place),
            Work::Sync => ring.sync_now(unit.file),
            Work::Superblock { step } if step % 2 == 1 => ring.sync_now(unit.file),
            Work::Superblock { step } => {
                let place = Place::Local(self.superblock_memory, Span { start: 0, len: SUPERBLOCK_BYTES });
                ring.write_now(unit.file, SUPERBLOCK_AT[step / 2], place)
            }
            Work::Zero { offset, length, .. } => match mode(way) {
                Some(mode) => ring.allocate_now(unit.file, mode, offset, length),
                None => {
                    let place = self.zeros(ring, length)?;
                    ring.write_now(unit.file, offset, place)
                }
            },
        }
    }

    /// An operation is done: goes on with the rest of its work, or ends it with its event.
    pub(crate) fn complete(
        &mut self,
        ring: &mut Ring<Op>,
        key: Key,
        result: Result<usize, Errno>,
    ) -> Option<Event<'static>> {
        let io = self.works.get_mut(key).expect("work lasts until its last operation");
        let again = [libc::EINTR, libc::EAGAIN];
        let outcome = match (result, &mut io.work) {
            (Err(error), _) if again.contains(&error.0) => None,
            (Err(error), Work::Zero { .. }) => {
                let unit = if io.target == Target::Disk { &mut self.disk } else { &mut self.journal };
                if unit.refuse_zero_way(io.way, error) { None } else { Some(Err(error)) }
            }
            (Err(error), _) => Some(Err(error)),
            (Ok(count), Work::Read { offset, place } | Work::Write { offset, place }) => {
                advance(offset, place, count)
            }
            (Ok(_), Work::Sync) => Some(Ok(())),
            (Ok(count), Work::Superblock { step }) => {
                if *step % 2 == 0 && count != SUPERBLOCK_BYTES {
                    Some(Err(Errno(libc::EIO)))
                } else {
                    *step += 1;
                    (*step == 2 * SUPERBLOCK_AT.len()).then_some(Ok(()))
                }
            }
            // A fallocate does all or nothing and says 0; a write of zeros says how far it came.
            (Ok(0), Work::Zero { .. }) => Some(Ok(())),
            (Ok(count), Work::Zero { offset, length, .. }) => {
                *offset += count as u64;
                *length -= count as u64;
                (*length == 0).then_some(Ok(()))
            }
        };
        match outcome {
            None => {
                self.issue(ring, key);
                None
            }
            Some(result) => Some(self.end(ring, key, result)),
        }
    }

    fn end(&mut self, ring: &mut Ring<Op>, key: Key, result: IoResult) -> Event<'static> {
        let Io { done, token, .. } = self.works.remove(key).expect("it was just there");
        if done == Done::SuperblockWritten {
            self.superblocks.pop_front();
            self.next_superblock(ring);
        }
        match done {
            Done::JournalWritten => Event::JournalWritten { token, result },
            Done::JournalSynced => Event::JournalSynced { token, result },
            Done::JournalRead => Event::JournalRead { token, result },
            Done::DiskRead => Event::DiskRead { token, result },
            Done::DiskWritten => Event::DiskWritten { token, result },
            Done::DiskSynced => Event::DiskSynced { token, result },
            Done::SuperblockWritten => Event::SuperblockWritten { token, result },
        }
    }
}

/// The mode of `fallocate(2)` of a way, if it has one.
fn mode(way: ZeroWay) -> Option<FallocateFlags> {
    match way {
        ZeroWay::Range => Some(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
        ZeroWay::Punch => Some(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
        ZeroWay::Write => None,
    }
}

/// Takes away what is read or written; says whether that was all.
fn advance(offset: &mut u64, place: &mut Place, count: usize) -> Option<IoResult> {
    let (Place::Arena(span) | Place::Local(_, span)) = place;
    if count == 0 {
        // The device ends before the volume does.
        return Some(Err(Errno(libc::EIO)));
    }
    assert!(count <= span.len, "no more than was asked for");
    span.start += count;
    span.len -= count;
    *offset += count as u64;
    (span.len == 0).then_some(Ok(()))
}

#[cfg(test)]
mod tests;
