//! Reading a file that somebody named: a regular file of a bounded size, or a reason why not. A device, a pipe or a
//! file without an end is refused before anything of it is read.

use std::fs::{FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Why a file is not read.
#[derive(Debug)]
pub(super) enum FileError {
    /// The system refused something.
    System(io::Error),
    /// It is something else than a file.
    NotRegular(&'static str),
    /// It has more bytes than it may have.
    TooLarge,
}

/// Reads the whole file at `path`, of at most `bytes_max`.
pub(super) fn read(path: &Path, bytes_max: u64) -> Result<(Metadata, Vec<u8>), FileError> {
    // Without O_NONBLOCK a pipe would wait for somebody to write into it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(FileError::System)?;
    let metadata = file.metadata().map_err(FileError::System)?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular(kind(metadata.file_type())));
    }
    // The length that was measured is no promise: a file may grow, and some that have none can be read for ever.
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(FileError::System)?;
    if bytes.len() as u64 > bytes_max { Err(FileError::TooLarge) } else { Ok((metadata, bytes)) }
}

fn kind(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        "a directory"
    } else if file_type.is_fifo() {
        "a pipe"
    } else if file_type.is_char_device() || file_type.is_block_device() {
        "a device"
    } else {
        "a socket"
    }
}
