//! Reading a replica at rest: both superblock copies and the frames of its ring, as plain data for people. It
//! changes nothing, trusts nothing, and is total on hostile bytes.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use replicator_core::disk::layout::{Layout, LayoutError, SUPERBLOCK_AT, SUPERBLOCK_BYTES};
use replicator_core::disk::superblock::{Superblock, SuperblockError};
use replicator_core::event::Errno;
use replicator_core::frame::{self, Entry, FrameError, FrameHeader, LocalPart};
use replicator_core::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use replicator_core::recovery::{self, JournalReader, RecoverError};
use replicator_core::units::RingOffset;
use rustix::fs::{FlockOperation, Mode, OFlags, SeekFrom};

use crate::device::{io_error, read_all};
use crate::error::InspectError;

/// What lies in a journal.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The journal.
    pub journal: PathBuf,
    /// Its bytes.
    pub journal_bytes: u64,
    /// Whether a process holds it now: what was read may be torn.
    pub in_use: bool,
    /// Both copies of the superblock.
    pub copies: [Result<Superblock, SuperblockError>; 2],
    /// Which of them counts.
    pub current: Option<usize>,
    /// The areas, if a copy is sound.
    pub layout: Option<Result<Layout, LayoutError>>,
    /// Where a start would find the end of the log, or why it would refuse; absent without a layout.
    pub log_end: Option<Result<RingOffset, RecoverError>>,
    /// The frames of the log from the tail on, as many as were asked for. If the end of the log cannot be told, as far
    /// as frames lie behind each other.
    pub frames: Vec<InspectedFrame>,
    /// Why the list of frames ends.
    pub end: FramesEnd,
}

/// One frame of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedFrame {
    /// Where it lies.
    pub ring_offset: RingOffset,
    /// Its header.
    pub header: FrameHeader,
    /// What this journal knew when it wrote the frame.
    pub local: Result<LocalPart, FrameError>,
    /// Its entries.
    pub entries: Vec<Entry>,
    /// Whether its payloads match their checksums.
    pub payloads: Result<(), FrameError>,
}

/// Why the list of frames ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FramesEnd {
    /// There is no sound superblock to begin from.
    NoSuperblock,
    /// As many as were asked for; there may be more.
    Limit,
    /// What comes next is no frame: the end of the log, or damage.
    NoFrame {
        /// Where.
        ring_offset: RingOffset,
        /// Why not.
        error: FrameError,
    },
    /// What comes next was in the log and was cut off: it is no part of the volume's history any more.
    Cut {
        /// Where.
        ring_offset: RingOffset,
    },
    /// What comes next is a frame of an earlier lap of the ring, or of another log.
    Stale {
        /// Where.
        ring_offset: RingOffset,
    },
    /// The device could not be read further.
    Unreadable {
        /// Where.
        ring_offset: RingOffset,
        /// What the system said.
        error: String,
    },
}

impl Inspection {
    /// What is damaged, each as a sentence; nothing of a journal that is in use, since what was read of it may be
    /// half-written.
    #[must_use]
    pub fn damage(&self) -> Vec<String> {
        if self.in_use {
            return Vec::new();
        }
        let mut damage = Vec::new();
        match &self.copies {
            [Err(first), Err(second)] => {
                damage.push(format!("no copy of the superblock is sound (0: {first}; 1: {second})"));
            }
            [first, second] => {
                for (index, error) in [first, second].into_iter().map(|copy| copy.err()).enumerate() {
                    let said = error.map(|error| {
                        format!("superblock copy {index} is damaged ({error}); the next start repairs it from the other")
                    });
                    damage.extend(said);
                }
            }
        }
        if let Some(superblock) = self.superblock()
            && superblock.journal_bytes > self.journal_bytes
        {
            let (had, has) = (superblock.journal_bytes, self.journal_bytes);
            damage.push(format!("the journal has {has} bytes, it had {had} when it was created"));
        }
        match (&self.layout, &self.log_end) {
            (Some(Err(error)), _) => {
                damage.push(format!("the superblock describes a journal that cannot be: {error}"));
            }
            (_, Some(Err(error))) => damage.push(error.to_string()),
            _ => {}
        }
        damage
    }

    /// The copy of the superblock that counts.
    #[must_use]
    pub fn superblock(&self) -> Option<&Superblock> {
        self.copies.get(self.current?)?.as_ref().ok()
    }
}

/// Reads the journal at `path`: superblock copies and up to `frames_max` frames.
///
/// # Errors
/// If it cannot be opened; everything else is part of the answer.
pub fn inspect(path: &Path, frames_max: usize) -> Result<Inspection, InspectError> {
    let failed = |action, source: rustix::io::Errno| InspectError::System {
        path: path.to_owned(),
        action,
        source: source.into(),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed("open it", error))?;
    let kind = rustix::fs::fstat(&file).map_err(|error| failed("look at it", error))?.st_mode;
    if rustix::fs::FileType::from_raw_mode(kind) == rustix::fs::FileType::Directory {
        return Err(failed("read it as a journal", rustix::io::Errno::ISDIR));
    }
    let journal_bytes =
        rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|error| failed("measure it", error))?;
    let in_use = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err();
    let copies = read_copies(file.as_fd()).map(|copy| Superblock::decode(&copy));
    let current = current(&copies);
    let mut inspection = Inspection {
        journal: path.to_owned(),
        journal_bytes,
        in_use,
        copies,
        current,
        layout: None,
        log_end: None,
        frames: Vec::new(),
        end: FramesEnd::NoSuperblock,
    };
    if let Some(superblock) = current.and_then(|index| copies[index].ok()) {
        let layout = superblock.layout();
        inspection.layout = Some(layout);
        if let Ok(layout) = layout {
            let log_end = log_end(file.as_fd(), &superblock);
            let ring =
                Ring { file: file.as_fd(), layout, superblock, log_end: log_end.as_ref().ok().copied() };
            (inspection.frames, inspection.end) = ring.read_frames(frames_max);
            inspection.log_end = Some(log_end);
        }
    }
    Ok(inspection)
}

/// Both places of the superblock. One that cannot be read is empty, which no superblock is.
pub(crate) fn read_copies(file: BorrowedFd<'_>) -> [Vec<u8>; 2] {
    SUPERBLOCK_AT.map(|offset| {
        let mut copy = vec![0; SUPERBLOCK_BYTES];
        read_all(file, offset, &mut copy).map_or_else(|_| Vec::new(), |()| copy)
    })
}

fn current(copies: &[Result<Superblock, SuperblockError>; 2]) -> Option<usize> {
    let sequences = copies.map(|copy| copy.map(|superblock| superblock.sequence).ok());
    match sequences {
        [None, None] => None,
        [a, b] => Some(usize::from(b > a)),
    }
}

/// Where recovery ends the log: what it would do at the next start, with nothing written.
fn log_end(file: BorrowedFd<'_>, superblock: &Superblock) -> Result<RingOffset, RecoverError> {
    let recovered = recovery::recover(superblock, false, superblock.boot_id, &mut ReadOnly(file))?;
    Ok(recovered.log.head.ring_offset)
}

/// Recovery's way to a journal that must not be changed.
pub(crate) struct ReadOnly<'f>(pub(crate) BorrowedFd<'f>);

impl JournalReader for ReadOnly<'_> {
    fn read_at(&mut self, device_offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        read_all(self.0, device_offset, bytes)
    }

    /// Nothing relies on what is found here.
    fn sync(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

/// The ring of a journal at rest.
struct Ring<'f> {
    file: BorrowedFd<'f>,
    layout: Layout,
    superblock: Superblock,
    /// Where the log ends, if that can be told.
    log_end: Option<RingOffset>,
}

impl Ring<'_> {
    /// Walks the ring as recovery does.
    fn read_frames(&self, frames_max: usize) -> (Vec<InspectedFrame>, FramesEnd) {
        let (layout, tail) = (self.layout, self.superblock.tail.ring_offset);
        let mut frames = Vec::new();
        let mut block = vec![0; FRAME_BYTES_MAX];
        let mut at = tail;
        loop {
            if frames.len() == frames_max {
                return (frames, FramesEnd::Limit);
            }
            let (ring_offset, frame) = match self.read_frame(at, &mut block) {
                Err(FramesEnd::NoFrame { .. } | FramesEnd::Stale { .. } | FramesEnd::Cut { .. })
                    if wraps(layout, at) =>
                {
                    // A frame that would not fit before the physical end lies at the beginning.
                    let wrapped = at.plus(layout.bytes_to_end(at));
                    (wrapped, self.read_frame(wrapped, &mut block))
                }
                read => (at, read),
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(end) => return (frames, end),
            };
            if self.log_end == Some(at) {
                // It looks like one, but recovery does not take it: it is torn, or does not continue the log.
                let error = frame.payloads.err().unwrap_or(FrameError::Chain);
                return (frames, FramesEnd::NoFrame { ring_offset, error });
            }
            let Some(next) = ring_offset.0.checked_add(u64::from(frame.header.total_bytes)) else {
                return (frames, FramesEnd::Limit);
            };
            // One lap at most, whatever the bytes say.
            if next.saturating_sub(tail.0) > layout.ring_bytes {
                return (frames, FramesEnd::Stale { ring_offset });
            }
            frames.push(frame);
            at = RingOffset(next);
        }
    }

    fn read_frame(&self, ring_offset: RingOffset, block: &mut [u8]) -> Result<InspectedFrame, FramesEnd> {
        let no_frame = |error| FramesEnd::NoFrame { ring_offset, error };
        let unreadable = |error| FramesEnd::Unreadable { ring_offset, error: io_error(error).to_string() };
        let device_offset = self.layout.device_offset(ring_offset);
        if self.layout.bytes_to_end(ring_offset) < FRAME_HEADER_BYTES as u64 {
            return Err(no_frame(FrameError::Short));
        }
        read_all(self.file, device_offset, &mut block[..FRAME_HEADER_BYTES]).map_err(unreadable)?;
        let header = frame::decode(&block[..FRAME_HEADER_BYTES]).map_err(no_frame)?;
        let total = header.total_bytes as usize;
        if total as u64 > self.layout.bytes_to_end(ring_offset) {
            return Err(no_frame(FrameError::Bounds("length")));
        }
        let local = frame::decode_local(block);
        if local.is_ok_and(|local| local.ring_offset != ring_offset) {
            return Err(FramesEnd::Stale { ring_offset });
        }
        if local.is_ok_and(|local| frame::is_cut(&header, &local, self.superblock.cut)) {
            return Err(FramesEnd::Cut { ring_offset });
        }
        read_all(self.file, device_offset, &mut block[..total]).map_err(unreadable)?;
        let entries = frame::entries(block, &header).collect::<Result<Vec<_>, _>>().map_err(no_frame)?;
        let payloads = frame::check_payloads(&block[..total], &header);
        Ok(InspectedFrame { ring_offset, header, local, entries, payloads })
    }
}

fn wraps(layout: Layout, at: RingOffset) -> bool {
    layout.bytes_to_end(at) < FRAME_BYTES_MAX as u64 && at.0.checked_add(layout.ring_bytes).is_some()
}
