//! Recovery: the journal is read from the last checkpoint to the end of its log. A record that does not check ends
//! the log, unless this journal knew it durable: then it is rot, and nothing is guessed.

use alloc::vec;
use alloc::vec::Vec;

use thiserror::Error;

use crate::bookmarks::{Bookmarks, TABLE_BYTES, Table};
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
    /// The entries that are not applied and change the volume's size, and to what.
    pub sizes: Vec<(Sequence, u64)>,
    /// What peers may lack, as far as it was saved.
    pub trackers: Vec<(NodeId, Tracker)>,
    /// The bookmarks; `None` if there were some and which ones cannot be told any more.
    pub bookmarks: Option<Bookmarks>,
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
    let layout = superblock.layout()?;
    // What is read from here on is durable: a tail that lives in a cache only must not be counted on.
    reader.sync().map_err(|errno| RecoverError::Device { device_offset: 0, errno })?;
    let trackers = read_trackers(superblock, &layout, reader)?;
    let bookmarks = read_bookmarks(superblock, &layout, reader)?;
    let mut scan = Scan::new(superblock, layout, reader);
    scan.run()?;
    scan.check_for_rot()?;
    if !superblock.clean {
        scan.settle()?;
    }
    let Scan { log, stable, history, reign_ms, sizes, .. } = scan;
    let mut superblock = *superblock;
    let survived = superblock.clean || (superblock.boot_id == boot_id && !superblock.volatile_acks);
    superblock.proven &= survived;
    superblock.clean = false;
    superblock.reign_ms = reign_ms;
    superblock.boot_id = boot_id;
    superblock.repairs += u64::from(repaired);
    Ok(Recovered { superblock, log, stable, history, trackers, sizes, bookmarks, diverged: None })
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
        let image = read_image(layout.map_at(maps.copy, slot), head.image_bytes, layout, reader)?;
        let decode = |bytes: &Vec<u8>| bytes.is_empty() || map.decode(bytes, maps.generation).is_ok();
        let is_sound = image.as_ref().is_some_and(decode);
        // A damaged map covers nothing: its peer is compared in full when the journal does not reach back.
        let applied = Base { position: applied.position, chain: applied.chain };
        let tracker =
            if is_sound { Tracker::restore(map, head, applied) } else { new_tracker(layout, superblock) };
        trackers.push((node, tracker));
    }
    Ok(trackers)
}

/// An image of a map, empty if there is none; nothing if it cannot be as long as it is said to be.
fn read_image(
    device_offset: u64,
    image_bytes: u64,
    layout: &Layout,
    reader: &mut impl JournalReader,
) -> Result<Option<Vec<u8>>, RecoverError> {
    if image_bytes > layout.map_bytes {
        return Ok(None);
    }
    let length = usize::try_from(image_bytes).expect("bounded by the layout");
    let mut bytes = vec![0; length.next_multiple_of(PAGE_BYTES)];
    if length > 0 {
        let read = reader.read_at(device_offset, &mut bytes);
        read.map_err(|errno| RecoverError::Device { device_offset, errno })?;
    }
    bytes.truncate(length);
    Ok(Some(bytes))
}

fn read_bookmarks(
    superblock: &Superblock,
    layout: &Layout,
    reader: &mut impl JournalReader,
) -> Result<Option<Bookmarks>, RecoverError> {
    if !superblock.bookmarks || !superblock.bookmark_room {
        return Ok(Some(Bookmarks::default()));
    }
    let (copy, generation) = (superblock.maps.copy, superblock.maps.generation);
    let device_offset = layout.bookmarks_at(copy);
    let mut bytes = vec![0; TABLE_BYTES];
    let read = reader.read_at(device_offset, &mut bytes);
    read.map_err(|errno| RecoverError::Device { device_offset, errno })?;
    let Some(table) = Table::decode(&bytes, generation) else { return Ok(None) };
    let mut images = Vec::new();
    for (index, image_bytes) in table.image_bytes().enumerate() {
        images.push(read_image(layout.bookmark_map_at(copy, index), image_bytes, layout, reader)?);
    }
    let empty = DirtyMap::new(superblock.volume_bytes, layout.map_bytes);
    let is_behind = superblock.bookmarks_behind;
    Ok(Some(Bookmarks::restore(&table, &images, generation, is_behind, &empty)))
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
    /// The entries that are not applied and change the volume's size, and to what.
    sizes: Vec<(Sequence, u64)>,
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
            sizes: Vec::new(),
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
        let volume_bytes = self.sizes.last().map_or(self.superblock.volume_bytes, |(_, bytes)| *bytes);
        frame::check_for_log(&self.bytes, &header, head.position.epoch, volume_bytes)?;
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
        if let Some(bytes) = frame::size_after(&self.bytes, header)
            && header.first > self.superblock.applied_through.position.sequence
        {
            self.sizes.push((header.first, bytes.max(self.superblock.volume_bytes)));
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
