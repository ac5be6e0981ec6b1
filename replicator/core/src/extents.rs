//! A map of disjoint extents of the volume to what covers them: the view that reads take of unapplied entries,
//! and the way a batch of entries is reduced to the bytes that are still wanted. A treap in one arena of nodes
//! taken at the start: no allocation afterwards.

use alloc::vec::Vec;

use crate::event::ZeroKind;
use crate::units::Sequence;

/// What covers an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes in the driver's arena, from this offset.
    Bytes {
        /// Offset in the arena of the extent's first byte.
        at: usize,
    },
    /// Zeros.
    Zero(ZeroKind),
}

/// A part of the volume that one entry covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the volume.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// The entry.
    pub sequence: Sequence,
    /// What it holds.
    pub content: Content,
}

impl Extent {
    /// The byte behind the last.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// The part of it that lies within `start..end`.
    #[must_use]
    pub fn clip(&self, start: u64, end: u64) -> Self {
        let from = self.start.max(start);
        let to = self.end().min(end);
        assert!(from < to, "only an overlapping extent is clipped");
        let content = match self.content {
            Content::Bytes { at } => {
                let skipped = usize::try_from(from - self.start).expect("an extent fits in the arena");
                Content::Bytes { at: at + skipped }
            }
            zero @ Content::Zero(_) => zero,
        };
        Self { start: from, len: to - from, sequence: self.sequence, content }
    }
}

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    extent: Extent,
    priority: u32,
    left: u32,
    right: u32,
}

/// Disjoint extents, ordered by their start.
#[derive(Debug)]
pub struct Extents {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    random: u32,
    capacity: usize,
}

impl Extents {
    /// An empty map of at most `capacity` extents.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let (nodes, free) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        Self { nodes, free, root: NONE, random: 0x9e37_79b9, capacity }
    }

    /// How many extents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root == NONE
    }

    /// Forgets all extents.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.free.clear();
        self.root = NONE;
    }

    /// Covers the extent's range by it, whatever covered it before. Adds at most two to [`Self::len`].
    pub fn insert(&mut self, extent: Extent) {
        assert!(extent.len > 0, "an extent has bytes");
        let (mut before, rest) = self.split(self.root, extent.start);
        let (inside, mut after) = self.split(rest, extent.end());
        for tree in [before, inside] {
            let Some(last) = self.rightmost(tree) else { continue };
            let covered = self.nodes[last as usize].extent;
            if covered.end() > extent.end() {
                let tail = self.add(covered.clip(extent.end(), covered.end()));
                after = self.merge(tail, after);
            }
            if covered.start < extent.start && covered.end() > extent.start {
                self.nodes[last as usize].extent.len = extent.start - covered.start;
            }
        }
        self.remove_tree(inside);
        let node = self.add(extent);
        before = self.merge(before, node);
        self.root = self.merge(before, after);
    }

    /// Calls `visit` with each extent that overlaps `start..end`, in order.
    pub fn overlapping(&self, start: u64, end: u64, mut visit: impl FnMut(&Extent)) {
        self.walk(self.root, start, end, &mut visit);
    }

    /// Whether anything overlaps `start..end`.
    #[must_use]
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        let mut found = false;
        self.overlapping(start, end, |_| found = true);
        found
    }

    /// Removes each extent that overlaps `start..end` and belongs to an entry up to `through`. Such an entry is
    /// applied as a whole, so its extents go as a whole.
    pub fn remove_through(&mut self, start: u64, end: u64, through: Sequence) {
        let (mut before, rest) = self.split(self.root, start);
        if let Some(last) = self.rightmost(before) {
            let extent = self.nodes[last as usize].extent;
            if extent.end() > start && extent.sequence <= through {
                let (left, single) = self.split(before, extent.start);
                self.remove_tree(single);
                before = left;
            }
        }
        let (inside, after) = self.split(rest, end);
        let kept = self.keep_newer(inside, through);
        let right = self.merge(kept, after);
        self.root = self.merge(before, right);
    }

    fn keep_newer(&mut self, tree: u32, through: Sequence) -> u32 {
        if tree == NONE {
            return NONE;
        }
        let node = self.nodes[tree as usize];
        let left = self.keep_newer(node.left, through);
        let right = self.keep_newer(node.right, through);
        if node.extent.sequence <= through {
            self.free.push(tree);
            return self.merge(left, right);
        }
        self.nodes[tree as usize].left = left;
        self.nodes[tree as usize].right = right;
        tree
    }

    fn walk(&self, tree: u32, start: u64, end: u64, visit: &mut impl FnMut(&Extent)) {
        if tree == NONE {
            return;
        }
        let node = &self.nodes[tree as usize];
        // Extents are disjoint, so what lies left of one that begins before `start` ends before it, too.
        if node.extent.start > start {
            self.walk(node.left, start, end, visit);
        }
        if node.extent.start < end && node.extent.end() > start {
            visit(&node.extent);
        }
        if node.extent.start < end {
            self.walk(node.right, start, end, visit);
        }
    }

    fn add(&mut self, extent: Extent) -> u32 {
        // xorshift: the treap wants priorities that do not follow the keys, nothing more.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        let node = Node { extent, priority: self.random, left: NONE, right: NONE };
        if let Some(index) = self.free.pop() {
            self.nodes[index as usize] = node;
            return index;
        }
        assert!(self.nodes.len() < self.capacity, "admission keeps the number of extents in bounds");
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).expect("bounded by the capacity")
    }

    fn remove_tree(&mut self, tree: u32) {
        if tree == NONE {
            return;
        }
        let node = self.nodes[tree as usize];
        self.free.push(tree);
        self.remove_tree(node.left);
        self.remove_tree(node.right);
    }

    fn rightmost(&self, tree: u32) -> Option<u32> {
        let mut at = tree;
        while at != NONE && self.nodes[at as usize].right != NONE {
            at = self.nodes[at as usize].right;
        }
        (at != NONE).then_some(at)
    }

    /// Splits into the extents that start before `key` and the others.
    fn split(&mut self, tree: u32, key: u64) -> (u32, u32) {
        if tree == NONE {
            return (NONE, NONE);
        }
        if self.nodes[tree as usize].extent.start < key {
            let (left, right) = self.split(self.nodes[tree as usize].right, key);
            self.nodes[tree as usize].right = left;
            (tree, right)
        } else {
            let (left, right) = self.split(self.nodes[tree as usize].left, key);
            self.nodes[tree as usize].left = right;
            (left, tree)
        }
    }

    /// Joins two trees, all of the first before all of the second.
    fn merge(&mut self, first: u32, second: u32) -> u32 {
        if first == NONE {
            return second;
        }
        if second == NONE {
            return first;
        }
        if self.nodes[first as usize].priority > self.nodes[second as usize].priority {
            let right = self.merge(self.nodes[first as usize].right, second);
            self.nodes[first as usize].right = right;
            first
        } else {
            let left = self.merge(first, self.nodes[second as usize].left);
            self.nodes[second as usize].left = left;
            second
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(start: u64, len: u64, sequence: u64) -> Extent {
        let at = usize::try_from(sequence * 10_000 + start).unwrap();
        Extent { start, len, sequence: Sequence(sequence), content: Content::Bytes { at } }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(u64, u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..200, 1u64..60).prop_map(|(start, len)| Step::Insert(start, len)),
            1 => (0u64..200, 1u64..60, 0u64..30).prop_map(|(start, len, age)| Step::Remove(start, len, age)),
        ]
    }

    proptest! {
        /// Against one value a byte: (sequence, arena offset).
        #[test]
        fn behaves_like_a_map_of_bytes(steps in prop::collection::vec(step(), 1..80)) {
            let mut extents = Extents::new(400);
            let mut model = [None; 300];
            for (index, step) in steps.iter().enumerate() {
                let sequence = index as u64 + 1;
                match *step {
                    Step::Insert(start, len) => {
                        extents.insert(bytes(start, len, sequence));
                        for byte in start..start + len {
                            let at = usize::try_from(sequence * 10_000 + byte).unwrap();
                            model[usize::try_from(byte).unwrap()] = Some((sequence, at));
                        }
                    }
                    Step::Remove(start, len, age) => {
                        let through = sequence.saturating_sub(age);
                        let mut gone = alloc::collections::BTreeSet::new();
                        extents.overlapping(start, start + len, |extent| {
                            if extent.sequence.0 <= through { gone.insert((extent.start, extent.end())); }
                        });
                        let ranges: Vec<_> = gone.into_iter().collect();
                        extents.remove_through(start, start + len, Sequence(through));
                        for (from, to) in ranges {
                            for byte in from..to {
                                model[usize::try_from(byte).unwrap()] = None;
                            }
                        }
                    }
                }
                let mut found = [None; 300];
                extents.overlapping(0, 300, |extent| {
                    let Content::Bytes { at } = extent.content else { unreachable!() };
                    for byte in extent.start..extent.end() {
                        let slot = &mut found[usize::try_from(byte).unwrap()];
                        assert!(slot.is_none(), "extents are disjoint");
                        *slot = Some((extent.sequence.0, at + usize::try_from(byte - extent.start).unwrap()));
                    }
                });
                prop_assert_eq!(found, model);
            }
        }
    }
}
