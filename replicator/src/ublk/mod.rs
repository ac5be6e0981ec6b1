//! The kernel's ublk driver, Linux 6.5 and later: a block device whose requests are served by a process.
//!
//! `spec` is its interface as numbers and bytes, [`Control`] makes, starts, stops and hands over devices. Whoever
//! controls a device need not be who serves it: requests are served by a volume's reactor, in `driver::ublk`.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

mod control;
pub(crate) mod spec;

pub use control::{Control, ControlError, DeviceInfo, DeviceState, NewDevice};

/// Requests that the kernel may have under way at one time.
pub const REQUESTS_MAX: u16 = 128;
/// Tags of a device: one more than requests. Up to Linux 6.14 the kernel notices the death of a server by the
/// commands that wait for requests, so one must wait at all times.
pub const TAGS: u16 = REQUESTS_MAX + 1;
/// Bytes of the longest read or write: what fits into one frame.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Bytes of the longest range that is discarded or zeroed at once.
pub const ZERO_BYTES_MAX: u64 = 1 << 30;

const _: () = assert!(REQUEST_BYTES_MAX as usize == replicator_core::limits::FRAME_PAYLOAD_BYTES_MAX);

/// Opens the file on which a device's requests are served. An error says what is wrong.
pub(crate) fn open_device(index: u32, tags: u16) -> Result<OwnedFd, String> {
    if tags == 0 || tags > spec::TAGS_MAX {
        return Err(format!("a ublk device has 1 to {} tags, not {tags}", spec::TAGS_MAX));
    }
    let path = format!("/dev/ublkc{index}");
    let opened = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    opened.map_err(|error| format!("cannot open {path}: {}", std::io::Error::from(error)))
}
