//! The tracker: what this replica knows one peer may lack. The journal has the newest entries; what has been applied
//! and the peer is not known to hold durably goes into its dirty map, so that the journal may forget it.
//!
//! ```text
//! sequence:   base ............ held ........... applied ........ head
//!              | in the map, or  | in the map, or  | in the journal |
//!              | held by it      | recent          |                |
//! ```
//!
//! The promise: a peer whose copy is complete for `base`, or for anything later, lacks at most the dirty blocks, what
//! is recent, and what the journal has beyond `applied`. Bits go in three ways only: the peer holds everything that was
//! folded; the peer wrote the blocks durably in a resync and nothing was folded there since; or this replica's own
//! copy is replaced.

use alloc::collections::VecDeque;

use crate::dirty::{BLOCK_BYTES, DirtyMap, WORD_BYTES};
use crate::disk::superblock::MapHead;
use crate::units::{Chain, NodeId, Position, Sequence};

/// Entries that are applied here and on their way to a peer that follows; more of them are folded into its map.
const RECENT_MAX: usize = 1024;

/// A position with the chain there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The position.
    pub position: Position,
    /// Chain after it.
    pub chain: Chain,
}

/// Which copy of the data: bits that one copy has made clean say nothing of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyId {
    /// Identity of the replica.
    pub replica: u128,
    /// How often its data was discarded.
    pub discards: u64,
}

/// An entry that is applied here, and not known to be durable there.
#[derive(Clone, Copy, Debug)]
struct Recent {
    sequence: Sequence,
    offset: u64,
    length: u64,
}

/// Blocks that were sent and are not known to be durable there.
#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u64,
    word: u64,
    /// What the acknowledgement makes clean: not what was folded since.
    bits: u64,
}

/// What one peer may lack.
#[derive(Debug)]
pub struct Tracker {
    map: DirtyMap,
    base: Base,
    /// Every block was dirty once, and only the copy of `stamp` has made some clean: no base is needed.
    everything: bool,
    /// The copy that a resync has made blocks clean for.
    stamp: Option<CopyId>,
    /// It holds everything up to here durably.
    held: Sequence,
    applied: Base,
    /// Nothing newer than this has been folded.
    folded: Base,
    recent: VecDeque<Recent>,
    sent: VecDeque<Sent>,
    /// It follows this replica.
    is_live: bool,
    /// Its resync has not ended, though its stream may have: bits go one by one, the base stays, whatever its log holds.
    is_resyncing: bool,
    /// The map differs from its saved image.
    pub changed: bool,
}

impl Tracker {
    /// Nothing is dirty: a peer that is behind `applied` is not covered.
    #[must_use]
    pub fn new(map: DirtyMap, applied: Base) -> Self {
        Self {
            map,
            base: applied,
            everything: false,
            stamp: None,
            held: Sequence(0),
            applied,
            folded: applied,
            recent: VecDeque::new(),
            sent: VecDeque::new(),
            is_live: false,
            is_resyncing: false,
            changed: false,
        }
    }

    /// As it was saved, at a checkpoint that covered everything up to `applied`.
    #[must_use]
    pub fn restore(map: DirtyMap, head: &MapHead, applied: Base) -> Self {
        let stamp = head.stamp;
        let (base, everything, held) = (head.base, head.everything, head.held);
        Self { base, everything, stamp, held, is_resyncing: stamp.is_some(), ..Self::new(map, applied) }
    }

    /// What the superblock says of it.
    #[must_use]
    pub fn head(&self, node: NodeId, image_bytes: u64) -> MapHead {
        let Self { base, everything, stamp, held, .. } = *self;
        MapHead { node: Some(node), everything, stamp, held, base, image_bytes }
    }

    /// Blocks that are dirty, or may become so.
    #[must_use]
    pub fn dirty_blocks(&self) -> u64 {
        self.map.dirty_blocks() + self.recent.len() as u64
    }

    /// The map.
    #[must_use]
    pub fn map(&self) -> &DirtyMap {
        &self.map
    }

    /// The volume has `volume_bytes` from now on.
    pub fn grow(&mut self, volume_bytes: u64) {
        self.map.grow(volume_bytes);
        self.changed |= !self.map.is_empty();
    }

    /// Whether every block was dirty once: what is left is compared.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// The peer holds everything up to here durably.
    #[must_use]
    pub fn held(&self) -> Sequence {
        self.held
    }

    /// Where the map begins.
    #[must_use]
    pub fn base(&self) -> Base {
        self.base
    }

    /// An entry of this range is applied here. Call [`Self::applied`] when all of a batch are.
    pub fn note(&mut self, sequence: Sequence, offset: u64, length: u64) {
        if sequence <= self.held {
            return;
        }
        if !self.is_live {
            return self.fold(offset, length);
        }
        if self.recent.len() == RECENT_MAX {
            let oldest = self.recent.pop_front().expect("it is full");
            self.fold(oldest.offset, oldest.length);
        }
        self.recent.push_back(Recent { sequence, offset, length });
    }

    /// Everything up to `point` is applied here, and was noted unless the peer is known to hold it.
    pub fn applied(&mut self, point: Base) {
        self.applied = point;
        // What was folded on the way is not newer than this.
        if !self.map.is_empty() {
            self.folded = point;
        }
        self.settle();
    }

    /// The peer holds everything up to `sequence` durably, now and for good.
    pub fn hold(&mut self, sequence: Sequence) {
        if sequence > self.held {
            self.held = sequence;
            self.recent.retain(|recent| recent.sequence > sequence);
            self.settle();
        }
    }

    fn settle(&mut self) {
        if self.is_resyncing {
            return;
        }
        if !self.map.is_empty() && self.folded.position.sequence <= self.held {
            self.map.clear();
            (self.everything, self.stamp, self.base) = (false, None, self.folded);
            self.changed = true;
        }
        if self.map.is_empty() && self.recent.is_empty() && self.applied.position.sequence <= self.held {
            (self.everything, self.stamp, self.base) = (false, None, self.applied);
        }
    }

    fn fold(&mut self, offset: u64, length: u64) {
        self.map.set_bytes(offset, length);
        (self.changed, self.folded) = (true, self.applied);
        for sent in &mut self.sent {
            let start = sent.word * WORD_BYTES;
            let (from, to) = (offset.max(start), (offset + length).min(start + WORD_BYTES));
            if from < to {
                let (first, end) = ((from - start) / BLOCK_BYTES, (to - start).div_ceil(BLOCK_BYTES));
                let touched = (u64::MAX >> (64 - (end - first))) << first;
                sent.bits &= !touched;
            }
        }
    }

    /// Puts what is recent into the map: whoever saves it saves all there is.
    pub fn fold_recent(&mut self) {
        while let Some(recent) = self.recent.pop_front() {
            self.fold(recent.offset, recent.length);
        }
    }

    /// Whether the map says everything that the copy `copy` may lack, whose log ends at `end` and whose blocks are
    /// complete for `complete`, if for anything.
    #[must_use]
    pub fn covers(&self, copy: CopyId, complete: Option<Sequence>, end: Sequence) -> bool {
        if end < self.held {
            return false;
        }
        if self.everything {
            return self.stamp == Some(copy);
        }
        let is_usable = self.stamp.is_none_or(|stamp| stamp == copy);
        is_usable && complete.is_some_and(|complete| complete >= self.base.position.sequence)
    }

    /// The peer follows from entry `end` on, without a resync.
    pub fn begin_stream(&mut self, end: Sequence) {
        if end < self.held {
            // It lost what it had said to hold. The journal still brings it level; the map cannot.
            self.map.clear();
            (self.everything, self.stamp, self.base) = (false, None, self.applied);
            self.changed = true;
        }
        (self.held, self.is_live, self.is_resyncing) = (end, true, false);
    }

    /// The peer follows from entry `end` on and is resynced. `is_covered` says what [`Self::covers`] did.
    pub fn begin_resync(&mut self, copy: CopyId, end: Sequence, is_covered: bool) {
        if !is_covered {
            self.map.set_all();
            (self.everything, self.base) = (true, Base::default());
        }
        self.stamp = Some(copy);
        (self.held, self.is_live, self.is_resyncing, self.changed) = (end, true, true, true);
    }

    /// The blocks of `map` differ at the peer although it is complete for what it says: those that it changed alone.
    pub fn add_diverged(&mut self, map: &DirtyMap) {
        self.map.add(map);
        (self.changed, self.folded) = (true, self.applied);
    }

    /// The blocks that were applied here since `common`, where the log of the copy `copy` parted from this one.
    /// `None` if that cannot be told.
    #[must_use]
    pub fn changed_since(&self, copy: CopyId, common: Sequence) -> Option<&DirtyMap> {
        let is_known = !self.everything && self.recent.is_empty() && self.covers(copy, Some(common), common);
        is_known.then_some(&self.map)
    }

    /// The peer follows no more: what was on its way may not have arrived.
    pub fn end_stream(&mut self) {
        self.sent.clear();
        self.fold_recent();
        self.is_live = false;
    }

    /// The copy there is UpToDate, durably.
    pub fn finish_resync(&mut self) {
        self.is_resyncing = false;
        self.sent.clear();
        self.settle();
    }

    /// Blocks `bits` of word `word` were sent as item `number`, as they are at this point of the stream.
    pub fn note_sent(&mut self, number: u64, word: u64, bits: u64) {
        self.sent.push_back(Sent { number, word, bits });
    }

    /// Every item up to `number` is durable there.
    pub fn note_durable(&mut self, number: u64) {
        while let Some(sent) = self.sent.front().copied().filter(|sent| sent.number <= number) {
            self.sent.pop_front();
            self.map.clear_word(sent.word, sent.bits);
            self.changed = true;
        }
    }

    /// Items that were sent and are not known to be durable there.
    #[must_use]
    pub fn undurable_items(&self) -> usize {
        self.sent.len()
    }

    /// Whether word `word` is under way.
    #[must_use]
    pub fn is_sent(&self, word: u64) -> bool {
        self.sent.iter().any(|sent| sent.word == word)
    }

    /// This replica's own copy was replaced by one that begins at `point`: whoever is behind that is not covered.
    pub fn restart(&mut self, point: Base) {
        self.map.clear();
        self.recent.clear();
        self.sent.clear();
        (self.everything, self.stamp, self.held) = (false, None, Sequence(0));
        (self.base, self.applied, self.folded) = (point, point, point);
        (self.is_live, self.is_resyncing, self.changed) = (false, false, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Epoch;

    const A: CopyId = CopyId { replica: 7, discards: 0 };
    const B: CopyId = CopyId { replica: 8, discards: 0 };

    fn at(sequence: u64) -> Base {
        Base { position: Position { epoch: Epoch(1), sequence: Sequence(sequence) }, chain: Chain(9) }
    }

    fn tracker() -> Tracker {
        Tracker::new(DirtyMap::new(1 << 20, 4096), at(10))
    }

    fn write(tracker: &mut Tracker, sequence: u64, block: u64) {
        tracker.note(Sequence(sequence), block * 4096, 512);
        tracker.applied(at(sequence));
    }

    #[test]
    fn what_a_missing_peer_lacks_is_in_its_map_and_goes_when_it_holds_it() {
        let mut tracker = tracker();
        tracker.hold(Sequence(12));
        write(&mut tracker, 11, 1);
        write(&mut tracker, 12, 2);
        assert!(tracker.map().is_empty());
        assert_eq!(tracker.base(), at(12));
        write(&mut tracker, 13, 3);
        write(&mut tracker, 14, 70);
        assert_eq!((tracker.map().word(0), tracker.map().word(1)), (8, 64));
        assert_eq!(tracker.base(), at(12));
        assert!(tracker.covers(A, Some(Sequence(12)), Sequence(12)));
        assert!(
            !tracker.covers(A, Some(Sequence(11)), Sequence(12)),
            "it is complete for less than the base"
        );
        assert!(!tracker.covers(A, Some(Sequence(20)), Sequence(11)), "it lost what it held");
        tracker.hold(Sequence(13));
        assert!(!tracker.map().is_empty());
        tracker.hold(Sequence(14));
        assert!(tracker.map().is_empty());
        assert_eq!(tracker.base(), at(14));
    }

    #[test]
    fn what_is_on_its_way_is_folded_only_when_the_stream_ends() {
        let mut tracker = tracker();
        tracker.begin_stream(Sequence(10));
        write(&mut tracker, 11, 1);
        write(&mut tracker, 12, 2);
        tracker.hold(Sequence(11));
        assert!(tracker.map().is_empty());
        assert_eq!(tracker.base(), at(10), "the base does not pass what is on its way");
        tracker.end_stream();
        assert_eq!(tracker.map().word(0), 4);
        assert!(tracker.covers(A, Some(Sequence(11)), Sequence(11)));
    }

    #[test]
    fn a_durable_block_is_clean_unless_it_was_folded_since() {
        let mut tracker = tracker();
        write(&mut tracker, 11, 1);
        write(&mut tracker, 12, 2);
        tracker.begin_resync(A, Sequence(12), true);
        tracker.note_sent(1, 0, 0b110);
        write(&mut tracker, 13, 2);
        tracker.fold_recent();
        tracker.note_durable(1);
        assert_eq!(tracker.map().word(0), 0b100);
        assert!(tracker.covers(A, Some(Sequence(10)), Sequence(12)));
        assert!(!tracker.covers(B, Some(Sequence(10)), Sequence(12)), "another copy has nothing of it");
        tracker.end_stream();
        tracker.note_durable(9);
        assert_eq!(tracker.map().word(0), 0b100, "what was sent in a session that is over counts no more");
    }

    #[test]
    fn a_full_map_serves_only_the_copy_it_was_filled_for() {
        let mut tracker = tracker();
        tracker.begin_resync(A, Sequence(12), false);
        assert_eq!(tracker.map().dirty_blocks(), 256);
        tracker.note_sent(1, 0, u64::MAX);
        tracker.note_durable(1);
        tracker.end_stream();
        assert!(tracker.covers(A, None, Sequence(12)));
        assert!(!tracker.covers(B, Some(Sequence(100)), Sequence(100)));
        assert!(!tracker.covers(CopyId { discards: 1, ..A }, None, Sequence(12)));
        tracker.begin_resync(A, Sequence(12), true);
        for word in 1..4 {
            tracker.note_sent(word + 1, word, u64::MAX);
        }
        tracker.note_durable(4);
        tracker.finish_resync();
        tracker.hold(Sequence(12));
        assert!(tracker.map().is_empty());
        assert!(tracker.covers(B, Some(Sequence(12)), Sequence(12)));
    }

    #[test]
    fn what_a_resync_still_owes_is_not_made_up_for_by_the_log() {
        let mut tracker = tracker();
        write(&mut tracker, 11, 1);
        tracker.begin_resync(A, Sequence(11), true);
        tracker.hold(Sequence(12));
        tracker.end_stream();
        write(&mut tracker, 12, 2);
        assert_eq!(tracker.map().word(0), 0b10, "it has entry 12 in its log, and not the block");
    }

    #[test]
    fn more_than_can_be_kept_apart_is_folded() {
        let mut tracker = tracker();
        tracker.begin_stream(Sequence(10));
        for n in 0..RECENT_MAX as u64 + 5 {
            write(&mut tracker, 11 + n, n % 256);
        }
        assert_eq!(tracker.map().dirty_blocks(), 5);
        tracker.hold(Sequence(11 + RECENT_MAX as u64 + 4));
        assert!(tracker.map().is_empty());
    }
}
