//! A file of batches, each synced before anybody relies on it. Not here: what a batch means.
//!
//! ```text
//! batch:  magic u32 | bytes u32 | crc32 u32 | payload           little-endian; the CRC covers `bytes` and the payload
//! ```
//!
//! A batch is written only when the one before it is durable, so a power cut can spoil the last one and no other. A bad
//! batch with a good one behind it is rot, and a store that has rotted votes no more.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

const MAGIC: u32 = 0x4c57_4648;
const HEAD_BYTES: usize = 12;
/// Bytes of one batch; a snapshot of the whole state is far smaller.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// Why a file of batches cannot be used.
#[derive(Debug, Error)]
pub enum WalError {
    /// The system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It was written and is no more what it was.
    #[error(
        "{} has rotted at byte {at}: a vote that was given may be forgotten, so this node must not vote with it again; \
         remove the folder, and the others will take this node in anew", path.display()
    )]
    Rot {
        /// The file.
        path: PathBuf,
        /// Where the first bad batch begins.
        at: usize,
    },
}

/// A file of batches, open for more.
#[derive(Debug)]
pub(crate) struct Wal {
    path: PathBuf,
    file: File,
    len_bytes: u64,
}

impl Wal {
    /// Opens or makes the file at `path`, and gives the payloads in it. A torn last batch is cut off.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Vec<u8>>), WalError> {
        let system = |action| move |source| WalError::System { path: path.to_owned(), action, source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(system("open"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(system("read"))?;
        let (payloads, end) = split(&bytes);
        if (end + 1..bytes.len()).any(|at| read_batch(&bytes[at..]).is_some()) {
            return Err(WalError::Rot { path: path.to_owned(), at: end });
        }
        file.set_len(end as u64).map_err(system("cut"))?;
        file.seek(SeekFrom::Start(end as u64)).map_err(system("seek in"))?;
        file.sync_all().map_err(system("sync"))?;
        sync_folder(path).map_err(system("sync the folder of"))?;
        Ok((Self { path: path.to_owned(), file, len_bytes: end as u64 }, payloads))
    }

    /// Writes a batch and waits until it is durable. After an error nothing more may be written: what the disk has is
    /// unknown.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<(), WalError> {
        let path = &self.path;
        let system = |action| move |source| WalError::System { path: path.clone(), action, source };
        let batch = encode(payload);
        self.file.write_all(&batch).map_err(system("write to"))?;
        self.file.sync_data().map_err(system("sync"))?;
        self.len_bytes += batch.len() as u64;
        Ok(())
    }

    /// Puts one batch in the place of everything so far, in one step.
    pub(crate) fn replace(&mut self, payload: &[u8]) -> Result<(), WalError> {
        let (file, len_bytes) = write_aside(&self.path, payload)?;
        self.file = file;
        self.len_bytes = len_bytes;
        Ok(())
    }

    /// Bytes of the file.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

/// Reads a file that holds one batch; `None` if there is no such file.
pub(crate) fn read_one(path: &Path) -> Result<Option<Vec<u8>>, WalError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(WalError::System { path: path.to_owned(), action: "read", source }),
    };
    match read_batch(&bytes) {
        Some((payload, _)) => Ok(Some(payload.to_vec())),
        // It was put in place whole, so what is wrong with it came later.
        None => Err(WalError::Rot { path: path.to_owned(), at: 0 }),
    }
}

/// Makes the file at `path` hold one batch, in one step.
pub(crate) fn write_one(path: &Path, payload: &[u8]) -> Result<(), WalError> {
    write_aside(path, payload).map(|_| ())
}

fn write_aside(path: &Path, payload: &[u8]) -> Result<(File, u64), WalError> {
    let system = |action| move |source| WalError::System { path: path.to_owned(), action, source };
    let draft = path.with_extension("new");
    let mut options = OpenOptions::new();
    let open = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&draft);
    let mut file = open.map_err(system("write beside"))?;
    let batch = encode(payload);
    file.write_all(&batch).map_err(system("write beside"))?;
    file.sync_all().map_err(system("sync"))?;
    std::fs::rename(&draft, path).map_err(system("replace"))?;
    sync_folder(path).map_err(system("sync the folder of"))?;
    Ok((file, batch.len() as u64))
}

fn encode(payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() <= BATCH_BYTES_MAX, "a batch of the control plane is small");
    let len = u32::try_from(payload.len()).expect("below the limit").to_le_bytes();
    let mut batch = Vec::with_capacity(HEAD_BYTES + payload.len());
    batch.extend_from_slice(&MAGIC.to_le_bytes());
    batch.extend_from_slice(&len);
    batch.extend_from_slice(&crc(len, payload).to_le_bytes());
    batch.extend_from_slice(payload);
    batch
}

fn crc(len: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len);
    hasher.update(payload);
    hasher.finalize()
}

/// The payloads from the beginning on, and where the last good batch ends.
fn split(bytes: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let (mut payloads, mut at) = (Vec::new(), 0);
    while let Some((payload, len_bytes)) = read_batch(&bytes[at..]) {
        payloads.push(payload.to_vec());
        at += len_bytes;
    }
    (payloads, at)
}

fn read_batch(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    if word(0)? != MAGIC {
        return None;
    }
    let len = usize::try_from(word(4)?).ok().filter(|len| *len <= BATCH_BYTES_MAX)?;
    let payload = bytes.get(HEAD_BYTES..HEAD_BYTES + len)?;
    let sound = crc(word(4)?.to_le_bytes(), payload) == word(8)?;
    sound.then_some((payload, HEAD_BYTES + len))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(payloads: &[&[u8]]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (mut wal, found) = Wal::open(&path).unwrap();
        assert!(found.is_empty());
        payloads.iter().for_each(|payload| wal.append(payload).unwrap());
        (folder, path)
    }

    #[test]
    fn what_was_appended_is_read_back() {
        let (_folder, path) = written(&[b"one", b"", b"three"]);
        let (mut wal, found) = Wal::open(&path).unwrap();
        assert_eq!(found, [b"one".to_vec(), Vec::new(), b"three".to_vec()]);
        wal.append(b"four").unwrap();
        assert_eq!(Wal::open(&path).unwrap().1.len(), 4);
        wal.replace(b"all").unwrap();
        wal.append(b"more").unwrap();
        assert_eq!(Wal::open(&path).unwrap().1, [b"all".to_vec(), b"more".to_vec()]);
    }

    #[test]
    fn a_last_batch_torn_anywhere_is_as_if_it_had_not_been_written() {
        let (_folder, path) = written(&[b"one", b"two"]);
        let whole = std::fs::read(&path).unwrap();
        let first = HEAD_BYTES + 3;
        for len in first..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let (mut wal, found) = Wal::open(&path).unwrap();
            assert_eq!(found, [b"one".to_vec()]);
            wal.append(b"again").unwrap();
            assert_eq!(Wal::open(&path).unwrap().1, [b"one".to_vec(), b"again".to_vec()]);
        }
    }

    #[test]
    fn a_bad_batch_before_a_good_one_is_rot() {
        let (_folder, path) = written(&[b"one", b"two", b"three"]);
        let whole = std::fs::read(&path).unwrap();
        let last = whole.len() - HEAD_BYTES - 5;
        for at in 0..last {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(matches!(Wal::open(&path), Err(WalError::Rot { .. })), "byte {at}");
        }
    }

    #[test]
    fn a_file_of_one_batch_is_whole_or_rotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        assert!(read_one(&path).unwrap().is_none());
        write_one(&path, b"state").unwrap();
        assert_eq!(read_one(&path).unwrap().unwrap(), b"state");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD_BYTES] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(read_one(&path), Err(WalError::Rot { .. })));
    }
}
