//! Keeping a branch: a thread beside the reactor reads the blocks from the backing disk, on which nothing is written
//! meanwhile, and writes the file. It has its name only when it is complete and durable.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use replicator_core::command::BranchPlan;
use replicator_core::dirty::{BLOCK_BYTES, DirtyMap, WORD_BLOCKS, WORD_BYTES};
use replicator_core::units::PAGE_BYTES;

use super::{BranchInfo, Branches, Layout, create, encode_info, name_of};
use crate::device::{io_error, read_all, write_all};

/// Bytes that the image of a map of a volume may take.
pub(super) fn map_room(volume_bytes: u64) -> u64 {
    replicator_core::disk::layout::map_bytes_of(volume_bytes)
}

/// Memory for a word's blocks that begins at a page: the disk may be open for direct I/O.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new() -> Self {
        let bytes = usize::try_from(WORD_BYTES).expect("256 KiB");
        Self(vec![0; bytes + PAGE_BYTES])
    }

    fn bytes(&mut self) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(PAGE_BYTES);
        &mut self.0[skip..skip + usize::try_from(WORD_BYTES).expect("256 KiB")]
    }
}

impl Branches {
    /// Keeps what `disk` holds in the blocks of `plan`, complete and durable, or leaves nothing.
    ///
    /// # Errors
    /// Whatever kept it from being kept; there is no part of it then.
    pub(crate) fn keep(
        &self,
        plan: &BranchPlan,
        volume_bytes: u64,
        now_ms: u64,
        disk: BorrowedFd<'_>,
    ) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let name = name_of(plan.head);
        let draft = self.folder.join(format!(".{}{name}.draft", self.prefix()));
        let kept = self.write(&draft, &name, plan, volume_bytes, now_ms, disk).and_then(|()| {
            fs::rename(&draft, self.path(&name))?;
            fs::File::open(&self.folder)?.sync_all()
        });
        if kept.is_err() {
            // Whether this works or not: a draft is never taken for a branch.
            let _ = fs::remove_file(&draft);
        }
        kept
    }

    fn write(
        &self,
        draft: &std::path::Path,
        name: &str,
        plan: &BranchPlan,
        volume_bytes: u64,
        now_ms: u64,
        disk: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let file = create(draft)?;
        let image = plan.blocks.encode(now_ms);
        // An image may name more blocks than its map, so that it fits: what it names is what is kept.
        let mut blocks = DirtyMap::new(volume_bytes, map_room(volume_bytes));
        blocks.decode(&image, now_ms).map_err(|error| io::Error::other(error.to_string()))?;
        let layout = Layout::new(volume_bytes, image.len() as u64);
        file.set_len(layout.data_at + volume_bytes)?;
        write_all(file.as_fd(), PAGE_BYTES as u64, &image).map_err(io_error)?;
        let mut memory = Aligned::new();
        let mut word = blocks.next_word(0);
        while let Some(index) = word {
            keep_word(file.as_fd(), &layout, index, blocks.word(index), volume_bytes, disk, memory.bytes())?;
            word = blocks.next_word(index + 1);
        }
        let info = BranchInfo {
            name: name.to_owned(),
            volume: self.volume,
            volume_bytes,
            common: plan.common,
            head: plan.head,
            kept_ms: now_ms,
            blocks: blocks.dirty_blocks(),
            is_everything: plan.is_everything,
            stored_bytes: 0,
            path: draft.to_owned(),
        };
        write_all(file.as_fd(), 0, &encode_info(&info, layout.map_bytes)).map_err(io_error)?;
        file.sync_all()
    }
}

/// Keeps the blocks `bits` of a word: their CRCs, and the bytes of those that are not zero.
fn keep_word(
    file: BorrowedFd<'_>,
    layout: &Layout,
    word: u64,
    bits: u64,
    volume_bytes: u64,
    disk: BorrowedFd<'_>,
    memory: &mut [u8],
) -> io::Result<()> {
    let start = word * WORD_BYTES;
    let bytes = &mut memory[..usize::try_from(WORD_BYTES.min(volume_bytes - start)).expect("256 KiB")];
    read_all(disk, start, bytes).map_err(io_error)?;
    for bit in (0..WORD_BLOCKS).filter(|bit| bits >> bit & 1 == 1) {
        let block = word * WORD_BLOCKS + bit;
        let from = usize::try_from(bit * BLOCK_BYTES).expect("256 KiB");
        let bytes = &bytes[from..bytes.len().min(from + PAGE_BYTES)];
        let crc = crc32fast::hash(bytes).to_le_bytes();
        write_all(file, layout.crcs_at + 4 * block, &crc).map_err(io_error)?;
        if bytes.iter().any(|byte| *byte != 0) {
            write_all(file, layout.data_at + BLOCK_BYTES * block, bytes).map_err(io_error)?;
        }
    }
    Ok(())
}
