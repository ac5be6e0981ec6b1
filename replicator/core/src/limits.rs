//! Every bound of the replicator in one place, with the relations between them checked at compile time.

use crate::dirty::{WORD_BLOCKS, WORD_BYTES};
use crate::units::PAGE_BYTES;

/// Nodes a cluster may have; a [`NodeSet`](crate::units::NodeSet) has as many bits.
pub const NODES_MAX: usize = 32;
/// Bytes of the header block in front of a frame's payloads.
pub const FRAME_HEADER_BYTES: usize = PAGE_BYTES;
/// Entries one frame may have: what fits in its header block.
pub const FRAME_ENTRIES_MAX: usize = (FRAME_HEADER_BYTES - 192) / 32;
/// Payload bytes one frame may have.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Bytes of the largest frame.
pub const FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX;
/// A write up to this size is gathered with others in a frame; a larger one gets a frame of its own.
pub const GATHER_BYTES_MAX: usize = 64 << 10;
/// Payload bytes after which a gathering frame is closed.
pub const GATHER_FRAME_BYTES: usize = 256 << 10;
/// Entries that may wait to be applied, in memory at one time.
pub const ENTRIES_UNAPPLIED_MAX: usize = 1 << 16;
/// Extents of unapplied data the overlay may hold.
pub const EXTENTS_MAX: usize = 2 * ENTRIES_UNAPPLIED_MAX + 2;
/// Epochs a superblock remembers.
pub const HISTORY_MAX: usize = 56;
/// Ring bytes kept back for control entries, so that a full journal never blocks a takeover.
pub const RING_RESERVE_BYTES: u64 = 64 * PAGE_BYTES as u64;
/// Smallest ring that a journal may have.
pub const RING_BYTES_MIN: u64 = 16 << 20;
/// Bytes of the largest message body that is not a frame.
pub const MESSAGE_BODY_BYTES_MAX: usize = 8192;
/// Bytes of the largest item of blocks: its header page and one word's blocks.
pub const BLOCKS_BYTES_MAX: usize = PAGE_BYTES + WORD_BYTES as usize;
/// Items of blocks that may wait at a target to be written.
pub const ITEMS_WAITING_MAX: usize = 8;
/// Items of blocks that may be written at a target and not known to be durable.
pub const ITEMS_UNDURABLE_MAX: usize = 512;
/// Words of a volume that a verify compares at one time.
pub const VERIFY_WORDS_MAX: usize = 16;
/// Questions of a verify or a repair that may wait at a Secondary: a word's blocks to write, and the rest.
pub const VISITS_MAX: usize = 4 * WORD_BLOCKS as usize + 2 * VERIFY_WORDS_MAX;
/// Largest volume: 1 PiB.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;

const _: () = assert!(FRAME_PAYLOAD_BYTES_MAX.is_multiple_of(PAGE_BYTES));
const _: () = assert!(GATHER_BYTES_MAX <= GATHER_FRAME_BYTES);
const _: () = assert!(GATHER_FRAME_BYTES <= FRAME_PAYLOAD_BYTES_MAX);
const _: () = assert!(MESSAGE_BODY_BYTES_MAX >= 32 + 16 * WORD_BLOCKS as usize);
const _: () = assert!(MESSAGE_BODY_BYTES_MAX >= 64 + crate::dirty::BLOCK_BYTES as usize);
const _: () = assert!(BLOCKS_BYTES_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(RING_BYTES_MIN > 8 * FRAME_BYTES_MAX as u64 + RING_RESERVE_BYTES);
