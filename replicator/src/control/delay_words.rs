//! Words of the control interface for replicas that apply late, and for places where apply is to stand still.

use replicator_core::event::FreezeAt;
use replicator_core::status::DelayStatus;
use replicator_core::units::{Epoch, Position, Sequence};
use serde::{Deserialize, Serialize};

/// A replica that applies late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayReport {
    /// How old an entry is when it is applied, in milliseconds.
    pub delay_ms: u64,
    /// Whether that counts now: not at a Primary, nor while apply is frozen or the copy is brought level by blocks.
    pub is_delaying: bool,
    /// What its disk holds, `epoch:sequence`.
    pub applied: String,
    /// When the newest of that was written, in milliseconds since 1970 by its Primary's clock, if that is known.
    pub applied_ms: Option<u64>,
    /// Entries that wait in the journal.
    pub waiting_entries: u64,
    /// Bytes of the journal that they have.
    pub waiting_bytes: u64,
    /// Bytes of the journal that may wait because of the delay.
    pub share_bytes: u64,
    /// How old the oldest of them is; none if none waits.
    pub lag_ms: Option<u64>,
    /// The journal decides when entries are applied, and not the delay: it is too small for that.
    pub gives_way: bool,
}

impl From<DelayStatus> for DelayReport {
    fn from(delay: DelayStatus) -> Self {
        Self {
            delay_ms: delay.delay_ms,
            is_delaying: delay.is_delaying,
            applied: delay.applied.to_string(),
            applied_ms: delay.applied_ms,
            waiting_entries: delay.waiting_entries,
            waiting_bytes: delay.waiting_bytes,
            share_bytes: delay.share_bytes,
            lag_ms: delay.lag_ms,
            gives_way: delay.gives_way,
        }
    }
}

/// Body of `POST .../freeze-apply`: where apply is to stand still; where it is, if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeApply {
    /// Behind this entry, `epoch:sequence`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Before the first entry that was written later than this, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
}

impl FreezeApply {
    /// What the core is asked; `None` if the words say nothing, or two things.
    pub(super) fn at(&self) -> Option<FreezeAt> {
        match (&self.position, self.time_ms) {
            (None, None) => Some(FreezeAt::Here),
            (Some(position), None) => parse_position(position).map(FreezeAt::Position),
            (None, Some(ms)) => Some(FreezeAt::Time { ms }),
            (Some(_), Some(_)) => None,
        }
    }
}

/// A position as it is written everywhere, `epoch:sequence`.
#[must_use]
pub fn parse_position(text: &str) -> Option<Position> {
    let (epoch, sequence) = text.split_once(':')?;
    Some(Position { epoch: Epoch(epoch.parse().ok()?), sequence: Sequence(sequence.parse().ok()?) })
}
