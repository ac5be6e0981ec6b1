//! Moving the journal of a replica that is at rest to another file or device. At every moment at most one of the two
//! holds a superblock, so that no start finds a journal that is out of date. Not the copy of a disk.
//!
//! ```text
//!            all but the superblock     parked on the old one,       superblock on the      nothing parked:
//!            is on the new one          "moved" in place of it       new one                it is over
//! (old) -------------------------> Copied ------------> Leaving ------------> Arrived ------------> (new)
//! ```
//!
//! Each step is durable before the next. Whoever is interrupted calls again with the same words: before Leaving it begins
//! anew, from there on it goes on with what is parked.

use std::io;
use std::path::{Path, PathBuf};

use replicator_core::bytes::{Reader, Writer};
use replicator_core::disk::layout::{MAPS_AT, SUPERBLOCK_AT, SUPERBLOCK_BYTES};
use replicator_core::disk::superblock::{self, Superblock};
use replicator_core::event::Errno;
use replicator_core::units::PAGE_BYTES;

use crate::create::sync_directory;
use crate::device::{Device, Kind, io_error};
use crate::error::{MoveError, Purpose};
use crate::options::VolumeOptions;

const MAGIC: u64 = u64::from_le_bytes(*b"HOLDMOVE");
const VERSION: u16 = 1;
/// Where the superblock lies that leaves.
const PARKED_AT: u64 = 512 << 10;
/// Bytes copied at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes that the path of a new journal may have.
const PATH_BYTES_MAX: usize = 2048;

const _: () = assert!(PARKED_AT + SUPERBLOCK_BYTES as u64 <= MAPS_AT && PARKED_AT > SUPERBLOCK_AT[1]);

/// How far a move goes; tests end it early, as a crash does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Copied,
    Parked,
    FirstGone,
    Leaving,
    FirstArrived,
    Arrived,
    Over,
}

/// What was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Where the journal is now.
    pub journal: PathBuf,
    /// Its bytes.
    pub journal_bytes: u64,
}

/// Moves the journal of a replica that does not run. The configuration names the old place until then.
///
/// # Errors
/// Whatever keeps it from being moved, and what to do.
pub fn move_journal(options: &VolumeOptions, to: &Path, force: bool) -> Result<Moved, MoveError> {
    move_until(options, to, force, Step::Over)
}

fn move_until(options: &VolumeOptions, to: &Path, force: bool, last: Step) -> Result<Moved, MoveError> {
    let to = std::path::absolute(to).map_err(|source| failed(to, "find it")(source))?;
    if to.as_os_str().len() > PATH_BYTES_MAX || to.to_str().is_none() {
        return Err(MoveError::Path { path: to, limit: PATH_BYTES_MAX });
    }
    let old = Device::open(&options.journal, Purpose::Journal)?;
    let (superblock, is_leaving) = what_leaves(options, &old, &to)?;
    let (mut new, _) = Device::open_or_create(&to, Purpose::Journal)?;
    if !is_leaving || !has_arrived(&new, &superblock) {
        check_target(&new, superblock.journal_bytes, force || is_leaving)?;
        copy(&old, &mut new, superblock.journal_bytes)?;
        let mut step = Step::Copied;
        for (next, work) in leaving(&old, &new, &superblock, &to) {
            if next <= last {
                work()?;
                step = next;
            }
        }
        assert!(step == last.min(Step::Arrived), "each step comes after the one before it");
    }
    if last == Step::Over {
        put(&old, PARKED_AT, &[0; SUPERBLOCK_BYTES])?;
    }
    Ok(Moved { journal: to, journal_bytes: superblock.journal_bytes })
}

type Work<'a> = Box<dyn Fn() -> Result<(), MoveError> + 'a>;

/// From Copied to Arrived. What was done before is done again, with the same bytes.
fn leaving<'a>(
    old: &'a Device,
    new: &'a Device,
    superblock: &Superblock,
    to: &Path,
) -> Vec<(Step, Work<'a>)> {
    let (bytes, gone) = (superblock.encode(), encode(to));
    let [first, second] = SUPERBLOCK_AT;
    let write = |device: &'a Device, at, bytes: [u8; SUPERBLOCK_BYTES]| -> Work<'a> {
        Box::new(move || put(device, at, &bytes))
    };
    vec![
        (Step::Parked, write(old, PARKED_AT, bytes)),
        (Step::FirstGone, write(old, first, gone)),
        (Step::Leaving, write(old, second, gone)),
        (Step::FirstArrived, write(new, first, bytes)),
        (Step::Arrived, write(new, second, bytes)),
    ]
}

/// The superblock to be moved, and whether it has begun to leave.
fn what_leaves(options: &VolumeOptions, old: &Device, to: &Path) -> Result<(Superblock, bool), MoveError> {
    let copies = SUPERBLOCK_AT.map(|at| read(old, at));
    let path = || old.path().to_owned();
    let found = superblock::choose([&copies[0], &copies[1]]);
    let (superblock, is_leaving) = match (found, decode(&copies[0]).or_else(|| decode(&copies[1]))) {
        (Ok((superblock, _)), _) => (superblock, false),
        (Err(_), Some(went)) => match Superblock::decode(&read(old, PARKED_AT)) {
            Ok(_) if went != to => return Err(MoveError::Elsewhere { path: path(), to: went }),
            Ok(superblock) => (superblock, true),
            Err(_) => return Err(MoveError::Over { path: path(), to: went }),
        },
        (Err(error), None) => return Err(MoveError::NoReplica { path: path(), error }),
    };
    let core = &options.core;
    if superblock.volume != core.volume || superblock.node != core.node {
        return Err(MoveError::Other {
            path: path(),
            volume: options.name.clone(),
            node: options.node_name.clone(),
        });
    }
    Ok((superblock, is_leaving))
}

fn has_arrived(new: &Device, superblock: &Superblock) -> bool {
    // One copy is enough: a start repairs the other, and it may have been used since.
    SUPERBLOCK_AT.iter().any(|at| {
        let found = Superblock::decode(&read(new, *at));
        found.is_ok_and(|found| found.replica == superblock.replica && found.sequence >= superblock.sequence)
    })
}

fn check_target(new: &Device, journal_bytes: u64, force: bool) -> Result<(), MoveError> {
    let path = || new.path().to_owned();
    if new.kind() == Kind::Block && new.size_bytes() < journal_bytes {
        return Err(MoveError::Small { path: path(), found_bytes: new.size_bytes(), journal_bytes });
    }
    let is_blank = new.size_bytes() == 0
        || new.is_blank().map_err(|errno| failed(new.path(), "read it")(io_error(errno)))?;
    if is_blank || force { Ok(()) } else { Err(MoveError::NotEmpty { path: path() }) }
}

/// Everything but the superblocks: the maps, the checksums, the ring.
fn copy(old: &Device, new: &mut Device, journal_bytes: u64) -> Result<(), MoveError> {
    let at = |path: &Path, action| {
        let path = path.to_owned();
        move |errno: Errno| failed(&path, action)(io_error(errno))
    };
    // An old superblock there goes first: from here on it holds no replica until this one has arrived.
    let new_path = new.path().to_owned();
    new.reset(journal_bytes, true).map_err(at(&new_path, "zero it"))?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut offset = MAPS_AT;
    while offset < journal_bytes {
        let len = PIECE_BYTES.min(usize::try_from(journal_bytes - offset).unwrap_or(PIECE_BYTES));
        old.read_at(offset, &mut piece[..len]).map_err(at(old.path(), "read it"))?;
        new.write_at(offset, &piece[..len]).map_err(at(&new_path, "write it"))?;
        offset += len as u64;
    }
    new.sync().map_err(at(&new_path, "sync it"))?;
    sync_directory(&new_path).map_err(failed(&new_path, "sync its directory"))
}

fn read(device: &Device, at: u64) -> [u8; SUPERBLOCK_BYTES] {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    // What is too short, or cannot be read, is no superblock.
    if device.read_at(at, &mut bytes).is_err() {
        bytes.fill(0);
    }
    bytes
}

fn put(device: &Device, at: u64, bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<(), MoveError> {
    let done = device.write_at(at, bytes).and_then(|()| device.sync());
    done.map_err(|errno| failed(device.path(), "write a superblock")(io_error(errno)))
}

fn failed(path: &Path, action: &'static str) -> impl Fn(io::Error) -> MoveError {
    let path = path.to_owned();
    move |source| MoveError::System { path: path.clone(), action, source }
}

/// What stands in place of a superblock that went to `to`.
fn encode(to: &Path) -> [u8; SUPERBLOCK_BYTES] {
    let path = to.to_str().expect("the caller looked").as_bytes();
    let mut bytes = [0; SUPERBLOCK_BYTES];
    let mut writer = Writer::new(&mut bytes);
    writer.u64(MAGIC).u32(0).u16(VERSION).u16(u16::try_from(path.len()).expect("bounded")).raw(path);
    let crc = crc32fast::hash(&bytes[12..]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Where the journal went whose superblock was here.
pub(crate) fn decode(bytes: &[u8]) -> Option<PathBuf> {
    let bytes = bytes.get(..SUPERBLOCK_BYTES)?;
    let mut reader = Reader::new(bytes);
    let (magic, crc, version) = (reader.u64().ok()?, reader.u32().ok()?, reader.u16().ok()?);
    if magic != MAGIC || version != VERSION || crc32fast::hash(&bytes[12..]) != crc {
        return None;
    }
    let len = usize::from(reader.u16().ok()?);
    let path = bytes[16..].get(..len.min(PATH_BYTES_MAX))?;
    Some(PathBuf::from(std::str::from_utf8(path).ok()?))
}

const _: () = assert!(16 + PATH_BYTES_MAX <= SUPERBLOCK_BYTES && SUPERBLOCK_BYTES == PAGE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create;
    use crate::start::tests::options as options_in;

    const STEPS: [Step; 7] = [
        Step::Copied,
        Step::Parked,
        Step::FirstGone,
        Step::Leaving,
        Step::FirstArrived,
        Step::Arrived,
        Step::Over,
    ];

    fn holds(path: &Path) -> bool {
        let device = Device::open(path, Purpose::Journal).unwrap();
        let copies = SUPERBLOCK_AT.map(|at| read(&device, at));
        superblock::choose([&copies[0], &copies[1]]).is_ok()
    }

    #[test]
    fn a_move_that_is_cut_off_anywhere_is_gone_on_with_and_never_leaves_two_journals() {
        for step in STEPS {
            let folder = tempfile::tempdir().unwrap();
            let options = options_in(folder.path());
            create(&options, crate::create::Content::Any, false).unwrap();
            let mark = [7; 4096];
            let ring = options.journal_bytes - 4096;
            std::os::unix::fs::FileExt::write_all_at(
                &std::fs::OpenOptions::new().write(true).open(&options.journal).unwrap(),
                &mark,
                ring,
            )
            .unwrap();
            let to = folder.path().join("other.journal");
            move_until(&options, &to, false, step).unwrap();
            assert!(!(holds(&options.journal) && holds(&to)), "{step:?}");
            if step < Step::Over {
                // A target that is written in part is overwritten when that is said, or when the old one has left.
                move_until(&options, &to, true, Step::Over).unwrap();
            }
            assert!(!holds(&options.journal) && holds(&to), "{step:?}");
            let mut bytes = [0; 4096];
            Device::open(&to, Purpose::Journal).unwrap().read_at(ring, &mut bytes).unwrap();
            assert_eq!(bytes, mark);
            let again = move_journal(&options, &to, true).unwrap_err().to_string();
            assert!(again.contains("was moved to") && again.contains("other.journal"), "{again}");
            let moved = VolumeOptions { journal: to.clone(), ..options.clone() };
            let started = crate::open(moved).unwrap();
            started.stop();
            started.wait().unwrap();
            let error = crate::open(options).unwrap_err().to_string();
            assert!(error.contains("was moved to") && error.contains("other.journal"), "{error}");
        }
    }

    #[test]
    fn what_is_there_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let options = options_in(folder.path());
        let to = folder.path().join("other.journal");
        std::fs::write(&to, "somebody's").unwrap();
        let error = move_journal(&options, &to, false).unwrap_err().to_string();
        assert!(error.contains("does not exist"), "{error}");
        create(&options, crate::create::Content::Any, false).unwrap();
        let error = move_journal(&options, &to, false).unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
        assert_eq!(std::fs::read(&to).unwrap(), b"somebody's");
        let other = VolumeOptions { journal: to, ..options };
        let error = move_journal(&other, &folder.path().join("third"), false).unwrap_err().to_string();
        assert!(error.contains("holds no replica"), "{error}");
    }
}
