//! The newtypes of the replicator: positions, ids, offsets, instants. No behaviour beyond arithmetic that
//! cannot go wrong silently.

use core::fmt;

/// Bytes of a sector, the smallest unit a client may address.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of a page: the alignment of frames in memory, in the journal and of the pool's buffers.
pub const PAGE_BYTES: usize = 4096;

/// Number of a reign; each promotion gets the next one. Also the fencing token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("an epoch per promotion never exhausts 64 bits"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of an entry in its log. The first entry has sequence 1; 0 is "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The sequence `count` entries further.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.checked_add(count).expect("a sequence per entry never exhausts 64 bits"))
    }

    /// The sequence after this one.
    #[must_use]
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// The sequence before this one; `Sequence(0)` has none and stays.
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// `(epoch, sequence)` of an entry; totally ordered; what two replicas compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The reign that sequenced the entry.
    pub epoch: Epoch,
    /// Its number in the log.
    pub sequence: Sequence,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.sequence)
    }
}

/// A 128-bit hash over everything up to an entry: equal position and chain prove equal logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chain(pub u128);

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Random identity of one promotion, so that two promotions to the same epoch can be told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReignId(pub u128);

/// Identity of a volume, the same on all its replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VolumeId(pub u128);

/// Number of the cluster's incarnation; recreating a lost majority makes the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// A node of the cluster: its place in the shared configuration, 0 to 31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u8);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A set of nodes, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeSet(pub u32);

impl NodeSet {
    /// The set that holds only `node`.
    #[must_use]
    pub fn only(node: NodeId) -> Self {
        Self(0).with(node)
    }

    /// This set and `node`.
    #[must_use]
    pub fn with(self, node: NodeId) -> Self {
        assert!(node.0 < 32, "node ids are checked against the limit when the configuration is read");
        Self(self.0 | 1 << node.0)
    }

    /// This set without `node`.
    #[must_use]
    pub fn without(self, node: NodeId) -> Self {
        Self(self.0 & !(1 << node.0))
    }

    /// Whether `node` is in the set.
    #[must_use]
    pub fn contains(self, node: NodeId) -> bool {
        node.0 < 32 && self.0 & 1 << node.0 != 0
    }

    /// The nodes, lowest id first.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        (0..32u8).map(NodeId).filter(move |node| self.contains(*node))
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Offset in the journal's ring that only grows; the place on the device is this modulo the ring's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingOffset(pub u64);

impl RingOffset {
    /// The offset `bytes` further.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// Nanoseconds on a monotonic clock of the driver's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// The instant `ms` milliseconds later.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Nanoseconds since `earlier`, 0 if it is not earlier.
    #[must_use]
    pub fn since_ns(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A client's request, named by the driver; completed exactly once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// An operator's request, named by the driver; answered exactly once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdminId(pub u64);

/// One authenticated connection to a peer, named by the driver and never reused in a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Names an I/O that the core asked for; the completion carries it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// A run of pages in the driver's arena, handed out by the [`Pool`](crate::pool::Pool).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// Index of the first page.
    pub page: u32,
    /// Number of pages.
    pub pages: u32,
}

impl Buffer {
    /// Offset of the first byte in the arena.
    #[must_use]
    pub fn start(self) -> usize {
        self.page as usize * PAGE_BYTES
    }

    /// Bytes it holds.
    #[must_use]
    pub fn len_bytes(self) -> usize {
        self.pages as usize * PAGE_BYTES
    }

    /// The whole buffer as a span of the arena.
    #[must_use]
    pub fn span(self) -> Span {
        Span { start: self.start(), len: self.len_bytes() }
    }
}

/// A span of bytes in the driver's arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// Offset of the first byte in the arena.
    pub start: usize,
    /// Number of bytes.
    pub len: usize,
}

impl Span {
    /// The span as a range, to index the arena with.
    #[must_use]
    pub fn range(self) -> core::ops::Range<usize> {
        self.start..self.start + self.len
    }
}
