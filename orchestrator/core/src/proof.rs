//! Fencing proofs: the facts that make it safe to let somebody else have a resource. A proof is evidence, not an action
//! and not a flag: each kind of resource says which suffice.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::record::{Record, Takeover};
use crate::units::NodeId;

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
    /// The old primary's watchdog has surely fired.
    WatchdogExpired,
    /// The old primary's node is off: a fence agent switched it off and read back that it is.
    PowerOff {
        /// The agent that read it back.
        agent: String,
    },
    /// Somebody says so and answers for it.
    Operator {
        /// Who.
        who: String,
    },
}

/// What somebody else is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            Self::WatchdogExpired => true,
            Self::LeaseExpired => !matches!(resource, Resource::Foreign),
            Self::EpochFenced => matches!(resource, Resource::Volume),
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
