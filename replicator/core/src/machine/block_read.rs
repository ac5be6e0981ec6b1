//! Reads of the disk by blocks: for a resync, a verify, or a repair, at either end. What cannot be read as a whole is
//! read block by block, so that what is bad is known to the block.

use super::{Io, Machine};
use crate::command::Command;
use crate::dirty::{BLOCK_BYTES, WORD_BYTES};
use crate::event::IoResult;
use crate::units::{Buffer, LinkId, PAGE_BYTES, Span};

/// For whom blocks are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// The source of a resync, in this session of this link, to send them.
    Source(LinkId, u64),
    /// The target of a resync, to say what it has.
    Hashes(LinkId, u64),
    /// A Primary that verifies.
    Verify,
    /// A Secondary that was asked to compare: this question of this session.
    Check(LinkId, u64, u64),
    /// A Secondary that was asked for a block: this question of this session.
    Fetch(LinkId, u64, u64),
    /// A Primary that looks for what it cannot read.
    Probe,
    /// A replica that looks through its own disk.
    Scrub,
    /// A Primary that was asked for a block that is bad elsewhere.
    Push,
}

/// A read of some blocks of one word, into the buffer behind its first page.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockRead {
    pub(super) reader: Reader,
    pub(super) word: u64,
    pub(super) bits: u64,
    pub(super) buffer: Buffer,
    /// What the volume had when the read began: the last block may be a part of one, and become a whole one meanwhile.
    volume_bytes: u64,
    /// The block being read, once they are read one by one.
    piece: Option<u32>,
    /// Those that cannot be read, or that are not what they should be.
    pub(super) bad: u64,
    /// Those of them that can be read.
    pub(super) rotten: u64,
    /// Those whose checksum was looked at.
    pub(super) checked: u64,
    /// It waits for checksums.
    is_read: bool,
}

impl BlockRead {
    /// Blocks of a volume of `volume_bytes`.
    pub(super) fn new(reader: Reader, word: u64, bits: u64, buffer: Buffer, volume_bytes: u64) -> Self {
        let (piece, bad, rotten, checked, is_read) = (None, 0, 0, 0, false);
        Self { reader, word, bits, buffer, volume_bytes, piece, bad, rotten, checked, is_read }
    }

    /// The range that is read: (first byte in the volume, bytes).
    fn range(&self) -> (u64, usize) {
        let first = self.word * WORD_BYTES + u64::from(self.bits.trailing_zeros()) * BLOCK_BYTES;
        let end = self.word * WORD_BYTES + u64::from(64 - self.bits.leading_zeros()) * BLOCK_BYTES;
        (first, usize::try_from(end.min(self.volume_bytes) - first).expect("a word's blocks"))
    }

    /// Where block `bit` lies in the buffer.
    pub(super) fn block(&self, bit: u32) -> Span {
        let (first, _) = self.range();
        let at = self.word * WORD_BYTES + u64::from(bit) * BLOCK_BYTES;
        let len = usize::try_from(BLOCK_BYTES.min(self.volume_bytes - at)).expect("a block");
        let skip = usize::try_from(at - first).expect("within the range");
        Span { start: self.buffer.start() + PAGE_BYTES + skip, len }
    }

    /// Whether what is read must not change while it is; that it has checksums makes a difference for some.
    fn is_exact(&self, has_sums: bool) -> bool {
        match self.reader {
            Reader::Hashes(..) => false,
            Reader::Probe => has_sums,
            _ => true,
        }
    }
}

/// Whether two ranges (first, end) have something in common.
pub(super) fn overlaps(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// The blocks of word `word` that a volume of `volume_bytes` has, a bit each.
pub(super) fn valid_bits(word: u64, volume_bytes: u64) -> u64 {
    let blocks = volume_bytes.div_ceil(BLOCK_BYTES).saturating_sub(word.saturating_mul(64)).min(64);
    match blocks {
        0 => 0,
        blocks => u64::MAX >> (64 - blocks),
    }
}

/// The bits of a word, one by one.
pub(super) fn each_bit(bits: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |bit| bits >> bit & 1 == 1)
}

impl Machine {
    /// Memory for the blocks of a word: of what is plenty, or for one word at a time of what is left. So it goes on
    /// however much clients write.
    pub(super) fn take_block_buffer(&mut self) -> Option<Buffer> {
        let plenty = self.pool.free_pages() > self.pool.pages() / 4;
        let sources = self.peers.iter().filter_map(|peer| peer.link.as_ref()?.resync.as_ref());
        let holds = sources.into_iter().any(|source| source.holds()) || self.holds_for_verify();
        let alone = !holds && self.block_reads.iter().all(Option::is_none);
        if plenty || alone { self.pool.take(PAGE_BYTES + WORD_BYTES as usize) } else { None }
    }

    pub(super) fn begin_block_read(&mut self, read: BlockRead) {
        let slot = self.block_reads.iter().position(Option::is_none).unwrap_or_else(|| {
            self.block_reads.push(None);
            self.block_reads.len() - 1
        });
        self.block_reads[slot] = Some(read);
        let (offset, len) = read.range();
        let span = Span { start: read.buffer.start() + PAGE_BYTES, len };
        self.push(Command::ReadDisk { token: Io::BlockRead.token(slot as u64), offset, span });
    }

    /// Whether blocks that are being read must not change under that.
    pub(super) fn blocks_are_read(&self, start: u64, end: u64) -> bool {
        let has_sums = self.at_rest.is_some();
        self.block_reads.iter().flatten().any(|read| {
            let from = read.word * WORD_BYTES;
            read.is_exact(has_sums) && overlaps((from, from + WORD_BYTES), (start, end))
        })
    }

    /// Blocks that are being read, by those that `which` names.
    pub(super) fn count_reads(&self, which: impl Fn(&Reader) -> bool) -> usize {
        self.block_reads.iter().flatten().filter(|read| which(&read.reader)).count()
    }

    pub(super) fn on_block_read(&mut self, slot: u64, result: IoResult, arena: &mut [u8]) {
        let index = usize::try_from(slot).expect("a slot");
        let read = self.block_reads[index].as_mut().expect("it was being read");
        if result.is_err() {
            // One block alone is what it is; of several, each is tried.
            match (read.piece, read.bits.count_ones()) {
                (Some(bit), _) => read.bad |= 1 << bit,
                (None, 1) => read.bad = read.bits,
                (None, _) => {}
            }
        }
        let next = match read.piece {
            Some(bit) => each_bit(read.bits).find(|other| *other > bit),
            None if result.is_err() && read.bad == 0 => Some(read.bits.trailing_zeros()),
            None => None,
        };
        if let Some(bit) = next {
            read.piece = Some(bit);
            let read = *read;
            let span = read.block(bit);
            let offset = read.word * WORD_BYTES + u64::from(bit) * BLOCK_BYTES;
            return self.push(Command::ReadDisk { token: Io::BlockRead.token(slot), offset, span });
        }
        read.is_read = true;
        self.check_block_read(index, arena);
    }

    /// Hands a read over once its blocks are checked.
    fn check_block_read(&mut self, index: usize, arena: &mut [u8]) {
        let mut read = self.block_reads[index].expect("it was being read");
        let is_checked = self.check_blocks(&mut read, arena);
        self.block_reads[index] = (!is_checked).then_some(read);
        if is_checked {
            self.hand_over_read(read, arena);
        }
    }

    /// Looks again at those that wait for checksums.
    pub(super) fn check_waiting_blocks(&mut self, arena: &mut [u8]) {
        for index in 0..self.block_reads.len() {
            if self.block_reads[index].is_some_and(|read| read.is_read) {
                self.check_block_read(index, arena);
            }
        }
    }

    fn hand_over_read(&mut self, read: BlockRead, arena: &mut [u8]) {
        match read.reader {
            Reader::Source(link, session) | Reader::Hashes(link, session) => {
                let Some(index) = self.peer_in_session(link, session) else {
                    return self.pool.give(read.buffer);
                };
                if matches!(read.reader, Reader::Source(..)) {
                    self.send_item(index, read, arena);
                } else {
                    self.send_hashes(index, read, arena);
                }
            }
            Reader::Verify => self.send_check(read, arena),
            Reader::Check(link, session, number) => self.answer_check(link, session, number, read, arena),
            Reader::Fetch(link, session, number) => self.answer_fetch(link, session, number, read, arena),
            Reader::Probe => self.on_probed(read),
            Reader::Scrub => self.on_scrubbed(read, arena),
            Reader::Push => self.on_push_read(read, arena),
        }
    }

    /// The peer at the other end of a link, if this session of it still goes on.
    pub(super) fn peer_in_session(&mut self, link: LinkId, session: u64) -> Option<usize> {
        match self.find_link(link) {
            Some(place @ super::greet::Place::Peer(index)) => {
                let link = self.link_mut(place);
                (link.session == session && link.state != super::peer::LinkState::Closing).then_some(index)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_has_the_blocks_that_are_left() {
        assert_eq!(valid_bits(0, 1 << 20), u64::MAX);
        assert_eq!(valid_bits(1, WORD_BYTES + 2 * BLOCK_BYTES + 512), 0b111);
        assert_eq!(valid_bits(1, WORD_BYTES), 0);
        assert_eq!(valid_bits(u64::MAX, WORD_BYTES), 0);
    }
}
