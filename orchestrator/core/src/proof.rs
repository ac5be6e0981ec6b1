//! Fencing proofs: the facts that make it safe to let somebody else have a resource. A proof is evidence, not an action
//! and not a flag: each kind of resource says which suffice.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::power::{Means, Off};
use crate::record::{Record, Takeover};
use crate::units::{NodeId, NodeSet};

/// A fact that makes a takeover safe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// Nobody had it before.
    First,
    /// The old primary itself has stopped serving and said so, or its process has ended and its node says so.
    Released,
    /// The old primary needs the new one's word for every acknowledgement, and does not get it any more.
    EpochFenced,
    /// The old primary's lease has surely ended.
    LeaseExpired,
    /// The watchdogs of nodes that may have served have surely fired: they were armed, and fed by nobody since.
    WatchdogExpired {
        /// The nodes.
        nodes: NodeSet,
    },
    /// Nodes that may have served are off: fence agents switched them off and read back that they are.
    PowerOff {
        /// The evidence.
        off: Vec<Off>,
    },
    /// Somebody says so and answers for it.
    Operator {
        /// Who.
        who: String,
        /// The nodes that are off by that word. Without any, it is the loss of what others may hold that somebody answers
        /// for.
        off: Vec<Off>,
    },
}

/// What somebody else is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Write access to a replicated volume.
    Volume,
    /// Answers to clients of a replicated volume: reads of an old primary are not stopped by epochs.
    VolumeService,
    /// An address with a kernel lifetime.
    Address,
    /// Something that nothing here can take away: a command, a service without a volume of ours.
    Foreign,
}

impl Proof {
    /// Whether this proof lets somebody else have a resource of that kind.
    #[must_use]
    pub fn suffices_for(&self, resource: Resource) -> bool {
        match self {
            Self::First | Self::Released | Self::PowerOff { .. } | Self::Operator { .. } => true,
            Self::WatchdogExpired { .. } => true,
            Self::LeaseExpired => !matches!(resource, Resource::Foreign),
            Self::EpochFenced => matches!(resource, Resource::Volume),
        }
    }

    /// The proof that evidence of nodes that are off makes: as strong as the word it rests on.
    #[must_use]
    pub fn of_power(off: Vec<Off>) -> Self {
        let operator = off.iter().find_map(|off| match &off.means {
            Means::Operator { who } => Some(who.clone()),
            Means::Agent { .. } => None,
        });
        match operator {
            Some(who) => Self::Operator { who, off },
            None => Self::PowerOff { off },
        }
    }

    /// What it rests on, in words.
    #[must_use]
    pub fn text(&self, policy: &Policy) -> String {
        let each = |off: &[Off]| {
            let texts: Vec<String> = off
                .iter()
                .map(|off| format!("{} {}", policy.node_name(off.node), off.means.text(policy)))
                .collect();
            texts.join("; ")
        };
        match self {
            Self::First => String::from("First"),
            Self::Released => String::from("Released"),
            Self::EpochFenced => String::from("EpochFenced"),
            Self::LeaseExpired => String::from("LeaseExpired"),
            Self::WatchdogExpired { nodes } => format!("WatchdogExpired: {}", policy.names(nodes.iter())),
            Self::PowerOff { off } => format!("PowerOff: {}", each(off)),
            Self::Operator { who, off } if off.is_empty() => format!("Operator: {who}"),
            Self::Operator { off, .. } => format!("Operator: {}", each(off)),
        }
    }

    /// Why it makes a takeover safe, as a sentence.
    #[must_use]
    pub fn meaning(&self) -> &'static str {
        match self {
            Self::First => "nobody had it before",
            Self::Released => "the old primary had stopped and said so",
            Self::EpochFenced => "the old primary needs the word of the new one for every acknowledgement",
            Self::LeaseExpired => "the lease of the old primary had surely ended",
            Self::WatchdogExpired { .. } => "the watchdog of the old primary had surely fired",
            Self::PowerOff { .. } => "the old primary was switched off, and that was read back",
            Self::Operator { .. } => "somebody answers for it",
        }
    }

    /// Whether the proof is true of this takeover, as far as the record can tell.
    pub(crate) fn holds_for(&self, record: &Record, takeover: &Takeover) -> bool {
        match self {
            Self::First => false,
            // Only one that the old primary had to wait for can deny it its word.
            Self::EpochFenced => is_fencing(record, takeover.primary),
            _ => true,
        }
    }
}

/// Whether `candidate`, once sealed, keeps the primary of `record` from acknowledging anything: it is a member, and
/// another one.
#[must_use]
pub fn is_fencing(record: &Record, candidate: NodeId) -> bool {
    record.in_sync.contains(candidate) && record.primary != Some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_resource_says_which_proofs_suffice() {
        let nodes = NodeSet::only(NodeId(0));
        let table = [
            (Proof::EpochFenced, [true, false, false, false]),
            (Proof::LeaseExpired, [true, true, true, false]),
            (Proof::WatchdogExpired { nodes }, [true; 4]),
            (Proof::PowerOff { off: Vec::new() }, [true; 4]),
            (Proof::Operator { who: String::from("root"), off: Vec::new() }, [true; 4]),
            (Proof::Released, [true; 4]),
            (Proof::First, [true; 4]),
        ];
        for (proof, suffices) in table {
            let all = [Resource::Volume, Resource::VolumeService, Resource::Address, Resource::Foreign];
            assert_eq!(all.map(|resource| proof.suffices_for(resource)), suffices, "{proof:?}");
        }
    }
}
