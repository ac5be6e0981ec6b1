//! What a kernel device is attached to. The kernel keeps it as the device's backend identifier, so that devices can
//! be found again by whoever looks, and gives no connection to one that was attached to something else.

use std::fmt;
use std::str::FromStr;

const MARK: &str = "holdfast";

/// A volume as one node exports it, for as long as nothing that was acknowledged there is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Name of the volume.
    pub(crate) volume: String,
    /// Its UUID.
    pub(crate) uuid: String,
    /// The node whose replica it is.
    pub(crate) node: String,
    /// The replica's export generation.
    pub(crate) generation: u64,
}

impl Identity {
    /// Whether both are one volume, whatever happened to it since.
    pub(crate) fn is_same_volume(&self, other: &Self) -> bool {
        self.uuid == other.uuid && self.volume == other.volume
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK} {} {} {} {}", self.volume, self.uuid, self.node, self.generation)
    }
}

/// It is the identifier of somebody else's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotOurs;

impl FromStr for Identity {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let words: Vec<&str> = text.trim_end().split(' ').collect();
        let [MARK, volume, uuid, node, generation] = words[..] else { return Err(NotOurs) };
        let generation = generation.parse().map_err(|_| NotOurs)?;
        Ok(Self { volume: volume.into(), uuid: uuid.into(), node: node.into(), generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_writes_and_nothing_else() {
        let identity = Identity { volume: "r0".into(), uuid: "0-1".into(), node: "a".into(), generation: 3 };
        assert_eq!(identity.to_string(), "holdfast r0 0-1 a 3");
        assert_eq!("holdfast r0 0-1 a 3\n".parse(), Ok(identity));
        for other in ["", "rbd/image", "holdfast r0 0-1 a", "holdfast r0 0-1 a x", "holdfast r0 0-1 a 3 4"] {
            assert_eq!(other.parse::<Identity>(), Err(NotOurs), "{other}");
        }
    }
}
