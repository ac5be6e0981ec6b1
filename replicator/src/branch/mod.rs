//! Branches: what the loser of a fork held in the blocks that differ, each in a file of its own beside the journal.
//! Drawn in `docs/formats.md`. How one is written is in `keep`, how it is read over NBD in `serve`.
//!
//! ```text
//! header | map of the kept blocks | a CRC for each block | the blocks, each at its own place; what is not kept is a hole
//! ```

pub(crate) mod keep;
pub(crate) mod serve;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use replicator_core::bytes::{Reader, Short, Writer};
use replicator_core::dirty::{BLOCK_BYTES, DirtyMap};
use replicator_core::tracker::Base;
use replicator_core::units::{Chain, Epoch, PAGE_BYTES, Position, Sequence, VolumeId};

use crate::device::{io_error, read_all};

const MAGIC: u64 = u64::from_le_bytes(*b"HFBRANCH");
const VERSION: u16 = 1;
const SUFFIX: &str = ".branch";
/// Bytes of the map that are believed: a bit for each block of 1 PiB, and what stands before them.
const MAP_BYTES_MAX: u64 = 33 << 30;

/// What a branch says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchInfo {
    /// Its name: the end of the log that it was kept of.
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Where the logs parted.
    pub common: Base,
    /// The end of the loser's log.
    pub head: Base,
    /// When it was kept, in milliseconds since 1970.
    pub kept_ms: u64,
    /// Blocks of 4 KiB that it keeps.
    pub blocks: u64,
    /// It keeps all blocks, since it could not be told which differ.
    pub is_everything: bool,
    /// Bytes it takes on its file system.
    pub stored_bytes: u64,
    /// Where it lies.
    pub path: PathBuf,
}

/// Where the parts of a branch lie in its file.
#[derive(Clone, Copy, Debug)]
struct Layout {
    map_bytes: u64,
    crcs_at: u64,
    data_at: u64,
}

impl Layout {
    fn new(volume_bytes: u64, map_bytes: u64) -> Self {
        let page = PAGE_BYTES as u64;
        let crcs_at = page + map_bytes.next_multiple_of(page);
        let crcs_bytes = volume_bytes.div_ceil(BLOCK_BYTES) * 4;
        Self { map_bytes, crcs_at, data_at: crcs_at + crcs_bytes.next_multiple_of(page) }
    }
}

/// A branch that is open for reading.
#[derive(Debug)]
pub(crate) struct Branch {
    info: BranchInfo,
    map: DirtyMap,
    layout: Layout,
    file: File,
}

/// The name of a branch of the log that ends at `head`.
pub(crate) fn name_of(head: Base) -> String {
    let chain = head.chain.0 & u128::from(u32::MAX);
    format!("{}-{}-{chain:08x}", head.position.epoch, head.position.sequence)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("this is no sound branch: {what}"))
}

fn short(_: Short) -> io::Error {
    invalid("it is cut short")
}

/// The branches of one volume on this node.
#[derive(Clone, Debug)]
pub struct Branches {
    folder: PathBuf,
    volume_name: String,
    volume: VolumeId,
}

impl Branches {
    /// Those in `folder`, which is made when the first is kept.
    #[must_use]
    pub fn new(folder: &Path, volume_name: &str, volume: VolumeId) -> Self {
        Self { folder: folder.to_owned(), volume_name: volume_name.to_owned(), volume }
    }

    fn prefix(&self) -> String {
        format!("{}@", self.volume_name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}{name}{SUFFIX}", self.prefix()))
    }

    /// All of them that are sound, by name. Whatever else lies there is not looked at.
    ///
    /// # Errors
    /// If the folder cannot be read; one that is not there has none.
    pub fn list(&self) -> io::Result<Vec<BranchInfo>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut branches = Vec::new();
        for entry in entries {
            let file_name = entry?.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_prefix(&self.prefix()));
            let Some(name) = name.and_then(|name| name.strip_suffix(SUFFIX)) else { continue };
            if let Ok(branch) = self.open(name) {
                branches.push(branch.info);
            }
        }
        branches.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(branches)
    }

    /// Opens one.
    ///
    /// # Errors
    /// If it is not there, or not sound.
    pub(crate) fn open(&self, name: &str) -> io::Result<Branch> {
        let path = self.path(name);
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !is_name {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = File::open(&path)?;
        let branch = Branch::read(file, name, path)?;
        if branch.info.volume != self.volume {
            return Err(invalid("it is of another volume"));
        }
        Ok(branch)
    }

    /// Removes one. Whoever reads it goes on until he closes it.
    ///
    /// # Errors
    /// If it is not there, or cannot be removed.
    pub fn delete(&self, name: &str) -> io::Result<()> {
        drop(self.open(name)?);
        fs::remove_file(self.path(name))?;
        File::open(&self.folder)?.sync_all()
    }

    /// The blocks of the branch that was kept of the log that ended at `head`, if it is still there.
    pub(crate) fn blocks_of(&self, head: Base) -> Option<DirtyMap> {
        let branch = self.open(&name_of(head)).ok()?;
        (branch.info.head == head).then_some(branch.map)
    }
}

impl Branch {
    fn read(file: File, name: &str, path: PathBuf) -> io::Result<Self> {
        let mut page = [0; PAGE_BYTES];
        read_all(file.as_fd(), 0, &mut page).map_err(io_error)?;
        let metadata = file.metadata()?;
        let mut reader = Reader::new(&page);
        let (magic, crc) = (reader.u64().map_err(short)?, reader.u32().map_err(short)?);
        if magic != MAGIC {
            return Err(invalid("bad magic"));
        }
        if crc32fast::hash(&page[12..]) != crc {
            return Err(invalid("its header does not match its checksum"));
        }
        let version = reader.u16().map_err(short)?;
        if version != VERSION {
            return Err(invalid(&format!("version {version} is not known to this program")));
        }
        let (info, map_bytes) = decode_info(&mut reader, name, path, &metadata).map_err(short)?;
        if map_bytes > MAP_BYTES_MAX || map_bytes > metadata.len() || info.volume_bytes > 1 << 50 {
            return Err(invalid("a length is out of bounds"));
        }
        let layout = Layout::new(info.volume_bytes, map_bytes);
        let mut image = vec![0; usize::try_from(map_bytes).map_err(|_| invalid("its map is too large"))?];
        read_all(file.as_fd(), PAGE_BYTES as u64, &mut image).map_err(io_error)?;
        let mut map = DirtyMap::new(info.volume_bytes, keep::map_room(info.volume_bytes));
        map.decode(&image, info.kept_ms).map_err(|error| invalid(&error.to_string()))?;
        if map.dirty_blocks() != info.blocks {
            return Err(invalid("its map is another one"));
        }
        Ok(Self { info, map, layout, file })
    }

    /// Whether the branch keeps this block.
    fn keeps(&self, block: u64) -> bool {
        self.map.word(block / 64) >> (block % 64) & 1 == 1
    }

    /// Reads one block; one that is not kept is zero.
    ///
    /// # Errors
    /// If it cannot be read, or is not what was kept.
    fn read_block(&self, block: u64, bytes: &mut [u8]) -> io::Result<()> {
        if !self.keeps(block) {
            bytes.fill(0);
            return Ok(());
        }
        let mut crc = [0; 4];
        read_all(self.file.as_fd(), self.layout.crcs_at + 4 * block, &mut crc).map_err(io_error)?;
        read_all(self.file.as_fd(), self.layout.data_at + BLOCK_BYTES * block, bytes).map_err(io_error)?;
        if crc32fast::hash(bytes) != u32::from_le_bytes(crc) {
            return Err(invalid(&format!("block {block} does not match its checksum")));
        }
        Ok(())
    }
}

fn decode_info(
    reader: &mut Reader<'_>,
    name: &str,
    path: PathBuf,
    metadata: &fs::Metadata,
) -> Result<(BranchInfo, u64), Short> {
    use std::os::unix::fs::MetadataExt as _;
    reader.skip(2)?;
    let (volume, volume_bytes) = (VolumeId(reader.u128()?), reader.u64()?);
    let mut base = || -> Result<Base, Short> {
        let position = Position { epoch: Epoch(reader.u64()?), sequence: Sequence(reader.u64()?) };
        Ok(Base { position, chain: Chain(reader.u128()?) })
    };
    let (common, head) = (base()?, base()?);
    let (kept_ms, blocks, map_bytes) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let is_everything = reader.u8()? != 0;
    let (name, stored_bytes) = (name.to_owned(), metadata.blocks() * 512);
    let info = BranchInfo {
        name,
        volume,
        volume_bytes,
        common,
        head,
        kept_ms,
        blocks,
        is_everything,
        stored_bytes,
        path,
    };
    Ok((info, map_bytes))
}

fn encode_info(info: &BranchInfo, map_bytes: u64) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    let mut writer = Writer::new(&mut page);
    writer.u64(MAGIC).u32(0).u16(VERSION).u16(0).u128(info.volume.0).u64(info.volume_bytes);
    for base in [info.common, info.head] {
        writer.u64(base.position.epoch.0).u64(base.position.sequence.0).u128(base.chain.0);
    }
    writer.u64(info.kept_ms).u64(info.blocks).u64(map_bytes).u8(u8::from(info.is_everything));
    let crc = crc32fast::hash(&page[12..]);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
    page
}

/// A file that is not there before.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
}

#[cfg(test)]
mod tests;
