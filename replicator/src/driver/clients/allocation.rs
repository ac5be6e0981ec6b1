//! Which parts of the backing disk are holes, for block status. A file system tells; a block device does not, and
//! is all data.

use std::os::fd::BorrowedFd;

use nbd_frontend::Extent;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::device::Kind;

/// The most extents told at once: each costs two system calls, and the volume waits meanwhile.
const EXTENTS_MAX: usize = 512;

/// Appends the extents of `offset..offset + length`, in order and without gaps, as far as they can be told.
pub(super) fn extents(file: BorrowedFd<'_>, kind: Kind, offset: u64, length: u64, extents: &mut Vec<Extent>) {
    let Kind::File { .. } = kind else { return };
    let end = offset.saturating_add(length);
    let mut at = offset;
    while at < end && extents.len() < EXTENTS_MAX {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            // No data up to the end of the file.
            Err(Errno::NXIO) => end,
            Err(_) => return,
        };
        if data > at {
            extents.push(Extent::allocation(data - at, true, true));
        }
        if data >= end {
            return;
        }
        let Ok(hole) = rustix::fs::seek(file, SeekFrom::Hole(data)) else { return };
        if hole <= data {
            return;
        }
        let hole = hole.min(end);
        extents.push(Extent::allocation(hole - data, false, false));
        at = hole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_and_data_alternate_without_gaps() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(&[1; 65536], 1 << 20).unwrap();
        let mut found = Vec::new();
        extents(file.as_fd(), Kind::File { inode: 0 }, 0, 4 << 20, &mut found);
        let run = |length_bytes, hole| Extent::allocation(length_bytes, hole, hole);
        assert_eq!(found, [run(1 << 20, true), run(65536, false), run((3 << 20) - 65536, true)]);
        found.clear();
        extents(file.as_fd(), Kind::Block, 0, 4 << 20, &mut found);
        assert!(found.is_empty());
    }
}
