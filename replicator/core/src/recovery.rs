//! Recovery: the journal is read from the last checkpoint to the end of its log. A record that does not check ends
//! the log, unless this journal knew it durable: then it is rot, and nothing is guessed.

use alloc::vec;
use alloc::vec::Vec;

use thiserror::Error;

use crate::dirty::DirtyMap;
use crate::disk::layout::{Layout, LayoutError};
use crate::disk::superblock::Superblock;
use crate::event::Errno;
use crate::frame::{self, EntryKind, FrameError, FrameHeader, LocalPart};
use crate::history::{History, Reign};
use crate::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use crate::log::Log;
use crate::tracker::{Base, Tracker};
use crate::units::{NodeId, PAGE_BYTES, RingOffset, Sequence};

/// Reads a journal device while the replica starts, before anything else runs.
pub trait JournalReader {
    /// Fills `bytes` from `device_offset`.
    ///
    /// # Errors
    /// What the device said.
    fn read_at(&mut self, device_offset: u64, bytes: &mut [u8]) -> Result<(), Errno>;
    /// Makes everything written to the journal durable.
    ///
    /// # Errors
    /// What the device said.
    fn sync(&mut self) -> Result<(), Errno>;
    /// Writes bytes again that were just read there. Whoever only looks leaves it out.
    ///
    /// # Errors
    /// What the device said.
    fn rewrite(&mut self, device_offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let _ = (device_offset, bytes);
        Ok(())
    }
}

/// What recovery found; the machine starts from it.
#[derive(Debug)]
pub struct Recovered {
    /// The superblock, with what the start changes in it.
    pub superblock: Superblock,
    /// The log; its frames are not in memory.
    pub log: Log,
    /// The newest stable mark found.
    pub stable: Sequence,
    /// The reigns of the log.
    pub history: History,
    /// What peers may lack, as far as it was saved.
    pub trackers: Vec<(NodeId, Tracker)>,
    /// Blocks that differ from what the copy is complete for, while it is being brought level after a fork. They are
    /// not in the journal: whoever keeps the branch puts them here.
    pub diverged: Option<DirtyMap>,
}

/// Why a journal cannot be recovered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecoverError {
    /// The superblock describes a journal that cannot be.
    #[error("the superblock describes a journal that cannot be: {0}")]
    Layout(#[from] LayoutError),
    /// The device failed.
    #[error("reading the journal failed at byte {device_offset} (error {})", errno.0)]
    Device {
        /// Where.
        device_offset: u64,
        /// What it said.
        errno: Errno,
    },
    /// A record that was durable is damaged.
    #[error(
        "the journal is damaged at byte {device_offset}: entry {} was durable here and cannot be read ({why}). \
         Nothing was changed. Promote another replica; this one must be created anew and resynced",
        sequence.0
    )]
    Rot {
        /// The first entry that cannot be read.
        sequence: Sequence,
        /// Where.
        device_offset: u64,
        /// What is wrong with it.
        why: FrameError,
    },
}

/// Reads the journal that `superblock` describes, to the end of its log.
///
/// # Errors
/// If the journal cannot be believed; nothing has been changed then.
pub fn recover(
    superblock: &Superblock,
    repaired: bool,
    boot_id: u128,
    reader: &mut impl JournalReader,
) -> Result<Recovered, RecoverError> {
    let layout = Layout::new(superblock.volume_bytes, superblock.journal_bytes)?;
    // What is read from here on is durable: a tail that lives in a cache only must not be counted on.
    reader.sync().map_err(|errno| RecoverError::Device { device_offset: 0, errno })?;
    let trackers = read_trackers(superblock, &layout, reader)?;
    let mut scan = Scan::new(superblock, layout, reader);
    scan.run()?;
    scan.check_for_rot()?;
    if !superblock.clean {
        scan.settle()?;
    }
    let Scan { log, stable, history, reign_ms, .. } = scan;
    let mut superblock = *superblock;
    let survived = superblock.clean || (superblock.boot_id == boot_id && !superblock.volatile_acks);
    superblock.proven &= survived;
    superblock.clean = false;
    superblock.reign_ms = reign_ms;
    superblock.boot_id = boot_id;
    superblock.repairs += u64::from(repaired);
    Ok(Recovered { superblock, log, stable, history, trackers, diverged: None })
}

/// A tracker of a peer of which nothing was saved: whoever is behind the checkpoint is not covered.
#[must_use]
pub fn new_tracker(layout: &Layout, superblock: &Superblock) -> Tracker {
    let applied = superblock.applied_through;
    let map = DirtyMap::new(superblock.volume_bytes, layout.map_bytes);
    Tracker::new(map, Base { position: applied.position, chain: applied.chain })
}

fn read_trackers(
    superblock: &Superblock,
    layout: &Layout,
    reader: &mut impl JournalReader,
) -> Result<Vec<(NodeId, Tracker)>, RecoverError> {
    let (maps, applied) = (&superblock.maps, superblock.applied_through);
    let mut trackers = Vec::new();
    for (slot, head) in maps.slots.iter().enumerate() {
        let Some(node) = head.node else { continue };
        let mut map = DirtyMap::new(superblock.volume_bytes, layout.map_bytes);
        let is_sound = if head.image_bytes == 0 {
            true
        } else if head.image_bytes > layout.map_bytes {
            false
        } else {
            let device_offset = layout.map_at(maps.copy, slot);
            let length = usize::try_from(head.image_bytes).expect("bounded by the layout");
            let mut bytes = vec![0; length.next_multiple_of(PAGE_BYTES)];
            let read = reader.read_at(device_offset, &mut bytes);
            read.map_err(|errno| RecoverError::Device { device_offset, errno })?;
            map.decode(&bytes[..length], maps.generation).is_ok()
        };
        // A damaged map covers nothing: its peer is compared in full when the journal does not reach back.
        let applied = Base { position: applied.position, chain: applied.chain };
        let tracker =
            if is_sound { Tracker::restore(map, head, applied) } else { new_tracker(layout, superblock) };
        trackers.push((node, tracker));
    }
    Ok(trackers)
}

/// The scan of one journal.
struct Scan<'a, R> {
    superblock: &'a Superblock,
    reader: &'a mut R,
    log: Log,
    stable: Sequence,
    /// What any mark seen so far says was durable here.
    known_durable: Sequence,
    history: History,
    /// When the newest reign began.
    reign_ms: u64,
    bytes: Vec<u8>,
    /// What was wrong where the log ends.
    stopped_by: FrameError,
}

impl<'a, R: JournalReader> Scan<'a, R> {
    fn new(superblock: &'a Superblock, layout: Layout, reader: &'a mut R) -> Self {
        let applied = superblock.applied_through;
        let mut history = superblock.history;
        history.truncate(applied.position.sequence);
        Self {
            superblock,
            reader,
            log: Log::new(layout, superblock.tail, applied, 4096),
            stable: superblock.stable,
            known_durable: superblock.durable.max(applied.position.sequence),
            history,
            reign_ms: superblock.reign_ms,
            bytes: vec![0; FRAME_BYTES_MAX],
            stopped_by: FrameError::Magic,
        }
    }

    fn read(&mut self, offset: RingOffset, from: usize, to: usize) -> Result<(), RecoverError> {
        let device_offset = self.log.layout.device_offset(offset) + from as u64;
        let bytes = &mut self.bytes[from..to];
        self.reader
            .read_at(device_offset, bytes)
            .map_err(|errno| RecoverError::Device { device_offset, errno })
    }

    fn run(&mut self) -> Result<(), RecoverError> {
        loop {
            let at = self.log.head.ring_offset;
            match self.frame_at(at)? {
                Ok((header, local)) => self.take(&header, &local),
                Err(error) => {
                    // The next frame may not have fitted before the end of the lap.
                    let lap = at.plus(self.log.layout.bytes_to_end(at));
                    let next = if at.0.is_multiple_of(self.log.layout.ring_bytes) { None } else { Some(lap) };
                    match next.map(|next| self.frame_at(next)).transpose()? {
                        Some(Ok((header, local))) => self.take(&header, &local),
                        _ => {
                            self.stopped_by = error;
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// The frame at `at`, if a whole one lies there that continues the log.
    fn frame_at(
        &mut self,
        at: RingOffset,
    ) -> Result<Result<(FrameHeader, LocalPart), FrameError>, RecoverError> {
        let room = self.log.layout.bytes_to_end(at);
        let used = at.0.saturating_sub(self.superblock.tail.ring_offset.0);
        if room < FRAME_HEADER_BYTES as u64 || used + FRAME_HEADER_BYTES as u64 > self.log.layout.ring_bytes {
            return Ok(Err(FrameError::Short));
        }
        self.read(at, 0, FRAME_HEADER_BYTES)?;
        let header = match self.check_header(at) {
            Ok((header, _)) if u64::from(header.total_bytes) > room => return Ok(Err(FrameError::Short)),
            Ok((header, _)) => header,
            Err(error) => return Ok(Err(error)),
        };
        self.read(at, FRAME_HEADER_BYTES, header.total_bytes as usize)?;
        let bytes = &self.bytes[..header.total_bytes as usize];
        let checked = frame::check_payloads(bytes, &header).and_then(|()| {
            let local = frame::decode_local(bytes)?;
            Ok((header, local))
        });
        Ok(checked)
    }

    fn check_header(&self, at: RingOffset) -> Result<(FrameHeader, LocalPart), FrameError> {
        let header = frame::decode(&self.bytes)?;
        let local = frame::decode_local(&self.bytes)?;
        let head = &self.log.head;
        if local.ring_offset != at || header.volume != self.superblock.volume {
            return Err(FrameError::Local);
        }
        if header.chain_before != head.chain || header.first != head.position.sequence.next() {
            return Err(FrameError::Chain);
        }
        // A log is never ahead of what its replica promised.
        if header.epoch > self.superblock.promised || frame::is_cut(&header, &local, self.superblock.cut) {
            return Err(FrameError::Bounds("epoch"));
        }
        frame::check_for_log(&self.bytes, &header, head.position.epoch, self.superblock.volume_bytes)?;
        Ok((header, local))
    }

    fn take(&mut self, header: &FrameHeader, local: &LocalPart) {
        let first = frame::entries(&self.bytes, header).next();
        if matches!(first, Some(Ok(entry)) if entry.kind == EntryKind::EpochStart) {
            self.reign_ms = header.closed_ms;
            self.history.push(Reign {
                epoch: header.epoch,
                reign: header.reign,
                first: header.first,
                chain_before: header.chain_before,
            });
        }
        self.stable = self.stable.max(local.stable).max(header.stable);
        self.known_durable = self.known_durable.max(local.durable);
        self.log.recover(header, local.ring_offset, local.stable);
    }

    /// Makes durable what is not known to be. A sync that succeeds says nothing of what an earlier one failed to store:
    /// the process may have died before it could note that its journal failed. So these frames are written again.
    fn settle(&mut self) -> Result<(), RecoverError> {
        let known = self.known_durable;
        let unsure: Vec<(RingOffset, usize)> = (self.log.first_unapplied()..self.log.next_number())
            .filter_map(|number| self.log.frame(number))
            .filter(|frame| frame.last() > known || (frame.entries == 0 && frame.last() == known))
            .map(|frame| (frame.ring_offset, frame.total_bytes as usize))
            .collect();
        for (offset, bytes) in &unsure {
            self.read(*offset, 0, *bytes)?;
            let device_offset = self.log.layout.device_offset(*offset);
            let outcome = self.reader.rewrite(device_offset, &self.bytes[..*bytes]);
            outcome.map_err(|errno| RecoverError::Device { device_offset, errno })?;
        }
        if !unsure.is_empty() {
            self.reader.sync().map_err(|errno| RecoverError::Device { device_offset: 0, errno })?;
        }
        Ok(())
    }

    /// Looks behind the end of the log, as far as unsynced frames can lie, for marks which say that what ends it
    /// was durable.
    fn check_for_rot(&mut self) -> Result<(), RecoverError> {
        let end = self.log.head;
        let window = self.superblock.window_bytes.saturating_add(2 * FRAME_BYTES_MAX as u64);
        let reach = window.min(self.log.layout.ring_bytes);
        let last = end.position.sequence;
        let mut passed = 0;
        while self.known_durable <= last && passed < reach {
            let at = end.ring_offset.plus(passed);
            let piece = (reach - passed).min(self.log.layout.bytes_to_end(at)).min(FRAME_BYTES_MAX as u64);
            let piece = usize::try_from(piece).expect("bounded by a frame");
            self.read(at, 0, piece)?;
            for place in (0..piece).step_by(PAGE_BYTES) {
                let bytes = &self.bytes[place..piece];
                let (Ok(header), Ok(local)) = (frame::decode(bytes), frame::decode_local(bytes)) else {
                    continue;
                };
                let here =
                    local.ring_offset == at.plus(place as u64) && header.volume == self.superblock.volume;
                if here && !frame::is_cut(&header, &local, self.superblock.cut) {
                    self.known_durable = self.known_durable.max(local.durable);
                }
            }
            passed += piece as u64;
        }
        if self.known_durable <= last {
            return Ok(());
        }
        let device_offset = self.log.layout.device_offset(end.ring_offset);
        Err(RecoverError::Rot { sequence: last.next(), device_offset, why: self.stopped_by })
    }
}
