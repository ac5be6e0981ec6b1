//! The newtypes of the orchestrator: nodes, volumes, epochs, positions, instants. No behaviour beyond arithmetic that
//! cannot go wrong silently.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::limits::NODES_MAX;

/// Number of a node in everything stored and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u8);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A set of nodes. As JSON: the list of their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeSet(u64);

impl NodeSet {
    /// The set of one.
    #[must_use]
    pub fn only(node: NodeId) -> Self {
        Self::default().with(node)
    }

    /// This set and `node`.
    ///
    /// # Panics
    /// If the number is beyond [`NODES_MAX`].
    #[must_use]
    pub fn with(self, node: NodeId) -> Self {
        assert!(usize::from(node.0) < NODES_MAX, "node numbers are checked where they come in");
        Self(self.0 | 1 << node.0)
    }

    /// This set less `node`.
    #[must_use]
    pub fn without(self, node: NodeId) -> Self {
        if usize::from(node.0) < NODES_MAX { Self(self.0 & !(1 << node.0)) } else { self }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this and not in `other`.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether `node` is in it.
    #[must_use]
    pub fn contains(self, node: NodeId) -> bool {
        usize::from(node.0) < NODES_MAX && self.0 & 1 << node.0 != 0
    }

    /// Whether all of it is in `other`.
    #[must_use]
    pub fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Whether nobody is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many are in it.
    #[must_use]
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Its nodes, in order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        (0..64).map(NodeId).filter(move |node| self.0 & 1 << node.0 != 0)
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<T: IntoIterator<Item = NodeId>>(nodes: T) -> Self {
        nodes.into_iter().fold(Self::default(), Self::with)
    }
}

impl Serialize for NodeSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for NodeSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let nodes = Vec::<NodeId>::deserialize(deserializer)?;
        match nodes.iter().find(|node| usize::from(node.0) >= NODES_MAX) {
            Some(node) => Err(D::Error::custom(format!("{node} is no node: numbers end below {NODES_MAX}"))),
            None => Ok(nodes.into_iter().collect()),
        }
    }
}

/// Identity of a volume: its UUID. As JSON: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u128);

/// Identity of a reign, random, so that two of one epoch are told apart. As JSON: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReignId(pub u128);

/// Identity of one boot of a node: drawn by its kernel when it started, or by whoever stands for it. As JSON: 32
/// hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub u128);

macro_rules! hexadecimal {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                u128::from_str_radix(&text, 16).map(Self).map_err(D::Error::custom)
            }
        }
    };
}

hexadecimal!(VolumeId);
hexadecimal!(ReignId);
hexadecimal!(BootId);

/// Number of a reign; each promotion gets a higher one. Also the fencing token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    ///
    /// # Panics
    /// Never in the age of the universe.
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

/// `(epoch, sequence)` of an entry of a replica's log; totally ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The reign that sequenced the entry.
    pub epoch: Epoch,
    /// Its number in the log.
    pub sequence: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.sequence)
    }
}

/// A moment on this node's `CLOCK_BOOTTIME`, in milliseconds. Moments of two nodes are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(pub u64);

impl Instant {
    /// The moment `ms` milliseconds later.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this moment; 0 if it is not earlier.
    #[must_use]
    pub fn since_ms(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
