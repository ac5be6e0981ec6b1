//! What a batch of entries leaves to be written: disjoint extents in the order of the disk, of each byte the newest,
//! neighbours joined. It knows nothing of frames or devices.

use alloc::vec::Vec;

use crate::extents::{Content, Extent, Extents};

/// The extents of a batch, being gathered or reduced.
#[derive(Debug)]
pub struct Batch {
    extents: Vec<Extent>,
    /// For the batches in which something is written twice.
    map: Extents,
}

impl Batch {
    /// An empty batch of at most `capacity` extents.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        // Each entry adds at most two extents to a map: itself, and the rest of one that it splits.
        Self { extents: Vec::with_capacity(2 * capacity), map: Extents::new(2 * capacity + 2) }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.extents.clear();
    }

    /// Adds what an entry covers. Entries come in the order of their sequence.
    pub fn add(&mut self, extent: Extent) {
        self.extents.push(extent);
    }

    /// Reduces the batch to what is to be written. Few batches write anything twice, so that is looked for first.
    pub fn reduce(&mut self) {
        self.extents.sort_unstable_by_key(|extent| (extent.start, extent.sequence));
        if self.extents.windows(2).any(|pair| pair[0].end() > pair[1].start) {
            self.extents.sort_unstable_by_key(|extent| extent.sequence);
            self.map.clear();
            for extent in self.extents.drain(..) {
                self.map.insert(extent);
            }
            let Self { extents, map } = self;
            map.overlapping(0, u64::MAX, |extent| extents.push(*extent));
        }
        self.extents.dedup_by(|next, last| join(last, next));
    }

    /// The extents: what was added, or after [`Self::reduce`] what is left of it.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }
}

/// Makes `last` cover `next`, too, if they are neighbours on the disk and in what they hold.
fn join(last: &mut Extent, next: &Extent) -> bool {
    let same = match (last.content, next.content) {
        (Content::Bytes { at }, Content::Bytes { at: next_at }) => at as u64 + last.len == next_at as u64,
        (Content::Zero(kind), Content::Zero(next_kind)) => kind == next_kind,
        _ => false,
    };
    let joins = same && last.end() == next.start;
    if joins {
        last.len += next.len;
        last.sequence = last.sequence.max(next.sequence);
    }
    joins
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ZeroKind;
    use crate::units::Sequence;
    use proptest::prelude::*;

    fn bytes(start: u64, len: u64, sequence: u64, at: usize) -> Extent {
        Extent { start, len, sequence: Sequence(sequence), content: Content::Bytes { at } }
    }

    #[test]
    fn neighbours_are_joined_only_if_their_bytes_are_neighbours() {
        let mut batch = Batch::new(8);
        batch.add(bytes(10, 5, 1, 105));
        batch.add(bytes(5, 5, 2, 100));
        batch.add(bytes(15, 5, 3, 200));
        batch.reduce();
        assert_eq!(batch.extents(), [bytes(5, 10, 2, 100), bytes(15, 5, 3, 200)]);
    }

    #[test]
    fn trims_and_zeroes_stay_apart() {
        let zero =
            |start, kind| Extent { start, len: 5, sequence: Sequence(1), content: Content::Zero(kind) };
        let mut batch = Batch::new(8);
        batch.add(zero(0, ZeroKind::Trim));
        batch.add(zero(5, ZeroKind::Trim));
        batch.add(zero(10, ZeroKind::Zeroes));
        batch.reduce();
        assert_eq!(batch.extents().iter().map(|extent| extent.len).collect::<Vec<_>>(), [10, 5]);
    }

    proptest! {
        /// Against writing the entries one after the other, a byte of the arena for each byte of the volume.
        #[test]
        fn a_batch_leaves_what_its_entries_leave(
            entries in prop::collection::vec((0u64..60, 1u64..20, any::<bool>()), 1..30),
        ) {
            let mut batch = Batch::new(30);
            let mut model = [None; 100];
            let mut at = 0;
            for (index, &(start, len, zero)) in entries.iter().enumerate() {
                let content =
                    if zero { Content::Zero(ZeroKind::Trim) } else { Content::Bytes { at } };
                batch.add(Extent { start, len, sequence: Sequence(index as u64 + 1), content });
                for byte in 0..usize::try_from(len).unwrap() {
                    model[usize::try_from(start).unwrap() + byte] = Some((!zero).then_some(at + byte));
                }
                at += usize::try_from(len).unwrap();
            }
            batch.reduce();
            let mut found = [None; 100];
            for extent in batch.extents() {
                for byte in 0..usize::try_from(extent.len).unwrap() {
                    let slot = &mut found[usize::try_from(extent.start).unwrap() + byte];
                    prop_assert!(slot.is_none(), "extents are disjoint");
                    *slot = Some(match extent.content {
                        Content::Bytes { at } => Some(at + byte),
                        Content::Zero(_) => None,
                    });
                }
            }
            prop_assert_eq!(found, model);
        }
    }
}
