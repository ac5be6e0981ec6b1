//! Reading a replica at rest: both superblock copies and the frames of its ring, as plain data for people. It
//! changes nothing, trusts nothing, and is total on hostile bytes.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use replicator_core::disk::layout::{Layout, LayoutError, SUPERBLOCK_AT, SUPERBLOCK_BYTES};
use replicator_core::disk::superblock::{Superblock, SuperblockError};
use replicator_core::frame::{self, Entry, FrameError, FrameHeader, LocalPart};
use replicator_core::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
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
    /// The frames from the tail on, as many as were asked for.
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
    let journal_bytes =
        rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|error| failed("measure it", error))?;
    let in_use = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err();
    let mut blocks = [[0; SUPERBLOCK_BYTES]; 2];
    let copies = [0, 1].map(|index: usize| {
        read_all(file.as_fd(), SUPERBLOCK_AT[index], &mut blocks[index])
            .map_err(|_| SuperblockError::Short)?;
        Superblock::decode(&blocks[index])
    });
    let current = current(&copies);
    let mut inspection = Inspection {
        journal: path.to_owned(),
        journal_bytes,
        in_use,
        copies,
        current,
        layout: None,
        frames: Vec::new(),
        end: FramesEnd::NoSuperblock,
    };
    if let Some(superblock) = current.and_then(|index| copies[index].ok()) {
        let layout = Layout::new(superblock.volume_bytes, superblock.journal_bytes);
        inspection.layout = Some(layout);
        if let Ok(layout) = layout {
            let tail = superblock.tail.ring_offset;
            (inspection.frames, inspection.end) = read_frames(file.as_fd(), layout, tail, frames_max);
        }
    }
    Ok(inspection)
}

fn current(copies: &[Result<Superblock, SuperblockError>; 2]) -> Option<usize> {
    let sequences = copies.map(|copy| copy.map(|superblock| superblock.sequence).ok());
    match sequences {
        [None, None] => None,
        [a, b] => Some(usize::from(b > a)),
    }
}

/// Walks the ring as recovery does, without its judgement of where the log ends.
fn read_frames(
    file: BorrowedFd<'_>,
    layout: Layout,
    tail: RingOffset,
    frames_max: usize,
) -> (Vec<InspectedFrame>, FramesEnd) {
    let mut frames = Vec::new();
    let mut block = vec![0; FRAME_BYTES_MAX];
    let mut at = tail;
    loop {
        if frames.len() == frames_max {
            return (frames, FramesEnd::Limit);
        }
        let (ring_offset, frame) = match read_frame(file, layout, at, &mut block) {
            Err(FramesEnd::NoFrame { .. } | FramesEnd::Stale { .. }) if wraps(layout, at) => {
                // A frame that would not fit before the physical end lies at the beginning.
                let wrapped = at.plus(layout.bytes_to_end(at));
                (wrapped, read_frame(file, layout, wrapped, &mut block))
            }
            read => (at, read),
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(end) => return (frames, end),
        };
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

fn wraps(layout: Layout, at: RingOffset) -> bool {
    layout.bytes_to_end(at) < FRAME_BYTES_MAX as u64 && at.0.checked_add(layout.ring_bytes).is_some()
}

fn read_frame(
    file: BorrowedFd<'_>,
    layout: Layout,
    ring_offset: RingOffset,
    block: &mut [u8],
) -> Result<InspectedFrame, FramesEnd> {
    let no_frame = |error| FramesEnd::NoFrame { ring_offset, error };
    let unreadable = |error| FramesEnd::Unreadable { ring_offset, error: io_error(error).to_string() };
    let device_offset = layout.device_offset(ring_offset);
    if layout.bytes_to_end(ring_offset) < FRAME_HEADER_BYTES as u64 {
        return Err(no_frame(FrameError::Short));
    }
    read_all(file, device_offset, &mut block[..FRAME_HEADER_BYTES]).map_err(unreadable)?;
    let header = frame::decode(&block[..FRAME_HEADER_BYTES]).map_err(no_frame)?;
    let total = header.total_bytes as usize;
    if total as u64 > layout.bytes_to_end(ring_offset) {
        return Err(no_frame(FrameError::Bounds("length")));
    }
    let local = frame::decode_local(block);
    if local.is_ok_and(|local| local.ring_offset != ring_offset) {
        return Err(FramesEnd::Stale { ring_offset });
    }
    read_all(file, device_offset, &mut block[..total]).map_err(unreadable)?;
    let entries = frame::entries(block, &header).collect::<Result<Vec<_>, _>>().map_err(no_frame)?;
    let payloads = frame::check_payloads(&block[..total], &header);
    Ok(InspectedFrame { ring_offset, header, local, entries, payloads })
}
