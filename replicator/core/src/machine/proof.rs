//! Who is right: two copies differ in a block, and the journal may still hold the entries that wrote it. Their payloads
//! were checked when they came and are checked again here, so what they say the block must hold, it must.

use alloc::boxed::Box;
use alloc::vec;

use xxhash_rust::xxh3::xxh3_128;

use super::{Io, Machine};
use crate::command::Command;
use crate::dirty::BLOCK_BYTES;
use crate::event::IoResult;
use crate::frame::{self, EntryKind};
use crate::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use crate::status::Proof;
use crate::units::{Buffer, NodeId, RingOffset, SECTOR_BYTES, Sequence, Span};

/// Bytes of the ring read at a time: any frame fits.
const PIECE_BYTES: usize = FRAME_BYTES_MAX;
const SECTORS: usize = (BLOCK_BYTES / SECTOR_BYTES) as usize;

/// A block that differs, and what is known of it.
#[derive(Debug)]
pub(super) struct Clue {
    pub(super) node: NodeId,
    pub(super) block: u64,
    /// It was compared after this entry.
    point: Sequence,
    mine: u128,
    theirs: u128,
    /// What the journal says it holds, as far as it says it: a bit for each sector.
    expected: Option<Box<[u8]>>,
    covered: u8,
}

impl Clue {
    pub(super) fn new(node: NodeId, block: u64, point: Sequence, mine: u128, theirs: u128) -> Self {
        Self { node, block, point, mine, theirs, expected: None, covered: 0 }
    }

    /// Which of the two is right, as far as the journal tells.
    pub(super) fn verdict(&self) -> Proof {
        let Some(expected) = self.expected.as_ref().filter(|_| self.covered == u8::MAX) else {
            return Proof::None;
        };
        match xxh3_128(expected) {
            hash if hash == self.mine => Proof::Primary,
            hash if hash == self.theirs => Proof::Peer,
            _ => Proof::Neither,
        }
    }

    /// An entry wrote `bytes` (zeros if `None`) at `offset`. Entries come in their order, so the last one counts.
    fn note(&mut self, sequence: Sequence, offset: u64, length: u64, bytes: Option<&[u8]>) {
        let start = self.block * BLOCK_BYTES;
        let (from, to) = (offset.max(start), (offset + length).min(start + BLOCK_BYTES));
        if sequence > self.point || from >= to {
            return;
        }
        let expected = self.expected.get_or_insert_with(|| vec![0; BLOCK_BYTES as usize].into());
        let narrow = |n: u64| usize::try_from(n).expect("within a block or a frame");
        let place = narrow(from - start)..narrow(to - start);
        for sector in place.start / SECTOR_BYTES as usize..place.end / SECTOR_BYTES as usize {
            assert!(sector < SECTORS, "within the block");
            self.covered |= 1 << sector;
        }
        match bytes {
            Some(bytes) => {
                expected[place].copy_from_slice(&bytes[narrow(from - offset)..narrow(to - offset)]);
            }
            None => expected[place].fill(0),
        }
    }
}

/// A search of the ring under way.
#[derive(Debug)]
pub(super) struct Search {
    at: RingOffset,
    end: RingOffset,
}

/// A piece of the ring that is being read for a verify.
#[derive(Debug)]
pub(super) struct ProofRead {
    run: u64,
    buffer: Buffer,
    len: usize,
}

impl Machine {
    /// Begins to look through the ring, from its tail to what is applied.
    pub(super) fn begin_search(&mut self) {
        let (at, end) = (self.log.tail().ring_offset, self.log.applied.ring_offset);
        let verify = self.verify.as_deref_mut().expect("the caller has it");
        verify.search = Some(Search { at, end });
    }

    pub(super) fn search_ring(&mut self) {
        if self.proof_read.is_some() {
            return;
        }
        let tail = self.log.tail().ring_offset;
        let verify = self.verify.as_deref_mut().expect("the caller has it");
        let run = verify.run;
        let search = verify.search.as_mut().expect("it was begun");
        // What is gone meanwhile proves nothing of what it wrote last.
        if search.at < tail {
            search.at = tail;
        }
        if search.at >= search.end || verify.clues.is_empty() {
            return self.after_proving();
        }
        let at = search.at;
        let left = (search.end.0 - at.0).min(self.log.layout.bytes_to_end(at)).min(PIECE_BYTES as u64);
        let len = usize::try_from(left).expect("bounded by a piece");
        // Proof is a help, not a need: it does not take what others want.
        if self.pool.free_pages() < self.pool.pages() / 4 {
            return;
        }
        let Some(buffer) = self.pool.take(len) else { return };
        self.proof_read = Some(ProofRead { run, buffer, len });
        let device_offset = self.log.layout.device_offset(at);
        let span = Span { start: buffer.start(), len };
        self.push(Command::ReadJournal { token: Io::Proof.token(0), device_offset, span });
    }

    pub(super) fn on_proof_read(&mut self, result: IoResult, arena: &[u8]) {
        let tail = self.log.tail().ring_offset;
        let (cut, layout) = (self.meta.current.cut, self.log.layout);
        let ProofRead { run, buffer, len } = self.proof_read.take().expect("it was being read");
        self.pool.give(buffer);
        let Some(verify) = self.verify.as_deref_mut().filter(|verify| verify.run == run) else { return };
        let Some(search) = verify.search.as_mut() else { return };
        let at = search.at;
        if result.is_err() || at < tail {
            // A page that cannot be read proves nothing; what follows may.
            let skip = layout.bytes_to_end(at).min(PIECE_BYTES as u64);
            search.at = if at < tail { tail } else { at.plus(skip) };
            return;
        }
        let bytes = &arena[buffer.start()..buffer.start() + len];
        let mut done = 0;
        while len - done >= FRAME_HEADER_BYTES {
            let here = &bytes[done..];
            let (Ok(header), Ok(local)) = (frame::decode(here), frame::decode_local(here)) else {
                done += FRAME_HEADER_BYTES;
                continue;
            };
            let total = header.total_bytes as usize;
            if local.ring_offset != at.plus(done as u64) || frame::is_cut(&header, &local, cut) {
                done += FRAME_HEADER_BYTES;
                continue;
            }
            if total > here.len() {
                break;
            }
            if header.entries > 0 && frame::check_payloads(here, &header).is_ok() {
                for (sequence, entry) in (header.first.0..).zip(frame::entries(here, &header).flatten()) {
                    let bytes = match entry.kind {
                        EntryKind::Write => {
                            let from = entry.payload_at as usize;
                            let length = usize::try_from(entry.length).expect("within a frame");
                            Some(&here[from..from + length])
                        }
                        EntryKind::Trim | EntryKind::Zeroes | EntryKind::Resize => None,
                        EntryKind::EpochStart => continue,
                    };
                    for clue in &mut verify.clues {
                        clue.note(Sequence(sequence), entry.offset, entry.length, bytes);
                    }
                }
            }
            done += total;
        }
        // A frame that is longer than the piece begins one; nothing else leaves one without progress.
        search.at = at.plus(done.max(FRAME_HEADER_BYTES.min(len)) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_proven_when_entries_cover_all_of_it() {
        let (old, new) = ([1; 4096], [2; 4096]);
        let mine = xxh3_128(&new);
        let mut clue = Clue::new(NodeId(1), 3, Sequence(10), mine, xxh3_128(&old));
        assert_eq!(clue.verdict(), Proof::None);
        clue.note(Sequence(5), 3 * 4096 - 512, 4096, Some(&old));
        assert_eq!(clue.verdict(), Proof::None, "the last sector may be of an older entry");
        clue.note(Sequence(6), 3 * 4096, 4096, Some(&old));
        assert_eq!(clue.verdict(), Proof::Peer);
        clue.note(Sequence(9), 2 * 4096, 3 * 4096, Some(&[2; 3 * 4096]));
        assert_eq!(clue.verdict(), Proof::Primary);
        clue.note(Sequence(11), 3 * 4096, 4096, Some(&old));
        assert_eq!(clue.verdict(), Proof::Primary, "what came later was not compared");
        clue.note(Sequence(10), 3 * 4096, 512, None);
        assert_eq!(clue.verdict(), Proof::Neither);
    }
}
