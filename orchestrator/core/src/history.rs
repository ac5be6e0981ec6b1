//! The history: what was agreed on, when by the clock of whoever proposed it, and why. It is a part of the committed state,
//! so every voter has the same one, and it survives restarts and snapshots. Nothing is decided by it.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::power::PowerChange;
use crate::record::{Change, ChangeKind, Takeover};
use crate::state::{Command, Scope};
use crate::units::{NodeId, VolumeId};

/// Decisions that are kept; older ones are forgotten.
pub const KEPT_MAX: usize = 256;
/// Bytes of a reason that are kept.
const REASON_BYTES_MAX: usize = 400;

/// An entry of the log: a command, and what people will want to know about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What is to be so.
    pub command: Command,
    /// When it was proposed, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Why.
    pub reason: String,
}

impl core::fmt::Display for Entry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}, since {}", self.command, self.reason)
    }
}

/// Something that was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// Counts from 1, without a gap.
    pub number: u64,
    /// The entry as it was agreed on.
    pub entry: Entry,
}

/// What was decided, as far as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Decisions so far.
    count: u64,
    kept: VecDeque<Decided>,
}

impl History {
    /// Takes note of an entry that has changed something.
    pub(crate) fn note(&mut self, entry: &Entry) {
        self.count += 1;
        let mut entry = entry.clone();
        let mut end = entry.reason.len().min(REASON_BYTES_MAX);
        while !entry.reason.is_char_boundary(end) {
            end -= 1;
        }
        entry.reason.truncate(end);
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(Decided { number: self.count, entry });
    }

    /// The number of the newest decision; 0 if there is none.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What is kept, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Decided> {
        self.kept.iter()
    }
}

impl Decided {
    /// The volume that it is about.
    #[must_use]
    pub fn volume(&self) -> Option<VolumeId> {
        match &self.entry.command {
            Command::Create { volume, .. }
            | Command::Change { volume, .. }
            | Command::Want { volume, .. }
            | Command::Leave { volume, .. } => Some(*volume),
            Command::Pause { scope: Scope::Volume(volume), .. } => Some(*volume),
            Command::Standby { .. }
            | Command::Power { .. }
            | Command::Pause { .. }
            | Command::Forgive { .. } => None,
        }
    }

    /// The node that it is about, if it is about one alone.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        match &self.entry.command {
            Command::Power { node, .. } | Command::Standby { node, .. } => Some(*node),
            Command::Pause { scope: Scope::Node(node), .. } => Some(*node),
            Command::Create { .. }
            | Command::Change { .. }
            | Command::Want { .. }
            | Command::Leave { .. }
            | Command::Forgive { .. }
            | Command::Pause { .. } => None,
        }
    }

    /// Whether it is about a node, or has changed what that node is to do.
    #[must_use]
    pub fn concerns(&self, node: NodeId) -> bool {
        match &self.entry.command {
            Command::Create { primary, in_sync, .. } => *primary == node || in_sync.contains(node),
            Command::Change { change, .. } => match &change.kind {
                ChangeKind::Shrink { remove, .. } => remove.contains(node),
                ChangeKind::Grow { add } => *add == node,
                ChangeKind::Takeover(takeover) => takeover.primary == node || takeover.in_sync.contains(node),
                ChangeKind::Opened | ChangeKind::Release => false,
            },
            Command::Want { node: wanted, .. } => *wanted == Some(node),
            Command::Power { node: about, .. } | Command::Standby { node: about, .. } => *about == node,
            Command::Pause { scope, .. } => *scope == Scope::Node(node),
            Command::Leave { .. } | Command::Forgive { .. } => false,
        }
    }

    /// What was decided, in words, without the reason.
    #[must_use]
    pub fn text(&self, policy: &Policy) -> String {
        let volume = |id: VolumeId| {
            policy.volume(id).map_or_else(|| format!("volume {id}"), |volume| volume.name.clone())
        };
        let name = |node: NodeId| policy.node_name(node);
        match &self.entry.command {
            Command::Create { volume: id, epoch, primary, in_sync, .. } => format!(
                "{} begins: {} is primary of epoch {epoch}, members {}",
                volume(*id),
                name(*primary),
                policy.names(in_sync.iter())
            ),
            Command::Change { volume: id, change } => {
                format!("{}: {}", volume(*id), change_text(policy, change))
            }
            Command::Want { volume: id, node: Some(node) } => {
                format!("{} is wanted on {}", volume(*id), name(*node))
            }
            Command::Want { volume: id, node: None } => {
                format!("{} is wanted nowhere in particular", volume(*id))
            }
            Command::Leave { volume: id, on: true, epoch } => {
                format!("{}: what runs on it is to stop, epoch {epoch} is to end", volume(*id))
            }
            Command::Leave { volume: id, on: false, .. } => {
                format!("{}: what runs on it may stay", volume(*id))
            }
            Command::Forgive { stack } => format!("the failures of {stack} are forgotten"),
            Command::Standby { node, on: true } => format!("{} is in standby", name(*node)),
            Command::Standby { node, on: false } => format!("{} is no more in standby", name(*node)),
            Command::Power { node, change } => format!("{} {}", name(*node), power_text(policy, change)),
            Command::Pause { scope, on } => {
                let what = match scope {
                    Scope::Cluster => String::from("everything"),
                    Scope::Node(node) => name(*node),
                    Scope::Volume(id) => volume(*id),
                };
                format!("{what} {}", if *on { "is paused" } else { "is paused no more" })
            }
        }
    }
}

fn change_text(policy: &Policy, change: &Change) -> String {
    match &change.kind {
        ChangeKind::Shrink { remove, committed } => format!(
            "{} is taken out of the in-sync set, everything up to {committed} was acknowledged then",
            policy.names(remove.iter())
        ),
        ChangeKind::Grow { add } => format!("{} comes into the in-sync set", policy.node_name(*add)),
        ChangeKind::Opened => String::from("its primary answers clients"),
        ChangeKind::Release => String::from("its primary is to stop, and nobody is primary"),
        ChangeKind::Takeover(Takeover { epoch, primary, in_sync, proof, breaks_sessions, .. }) => {
            let broken = if *breaks_sessions { "; clients' sessions are broken" } else { "" };
            let (primary, members) = (policy.node_name(*primary), policy.names(in_sync.iter()));
            let proof = proof.text(policy);
            format!("{primary} is primary of epoch {epoch}, members {members}; safe by {proof}{broken}")
        }
    }
}

fn power_text(policy: &Policy, change: &PowerChange) -> String {
    match change {
        PowerChange::Runs { boot, watchdog_ms: None } => format!("runs under boot {boot}"),
        PowerChange::Runs { boot, watchdog_ms: Some(ms) } => {
            format!("runs under boot {boot}, with a watchdog of {ms} ms")
        }
        PowerChange::Fence { by, .. } => format!("is to be switched off by {}", policy.node_name(*by)),
        PowerChange::Spare { number, .. } => {
            format!("need not be switched off any more, order {number} ends")
        }
        PowerChange::Fenced { outcome: Ok(agent), .. } => {
            format!("is off: {agent} switched it off and read that back")
        }
        PowerChange::Fenced { outcome: Err(why), .. } => format!("is not known to be off: {why}"),
        PowerChange::ConfirmOff { who, .. } => format!("is off by the word of {who}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;

    fn standby(node: u8, on: bool) -> Entry {
        let command = Command::Standby { node: NodeId(node), on };
        Entry { command, at_unix_ms: 7, reason: String::from("somebody wants it") }
    }

    #[test]
    fn what_changes_nothing_is_not_in_the_history() {
        let mut state = State::default();
        let refused = Entry {
            command: Command::Want { volume: VolumeId(1), node: None },
            at_unix_ms: 0,
            reason: String::new(),
        };
        assert!(state.commit(&refused).is_err());
        state.commit(&standby(1, true)).unwrap();
        assert_eq!(state.history.iter().map(|decided| decided.number).collect::<alloc::vec::Vec<_>>(), [1]);
    }

    #[test]
    fn the_history_is_bounded_and_its_numbers_go_on() {
        let mut state = State::default();
        for turn in 0..KEPT_MAX + 10 {
            state.commit(&standby(1, turn % 2 == 0)).unwrap();
        }
        assert_eq!((state.history.iter().count(), state.history.count()), (KEPT_MAX, KEPT_MAX as u64 + 10));
        assert_eq!(state.history.iter().next().map(|decided| decided.number), Some(11));
    }

    #[test]
    fn a_reason_is_cut_where_a_character_ends() {
        let mut entry = standby(1, true);
        entry.reason = "\u{e4}".repeat(REASON_BYTES_MAX);
        let mut state = State::default();
        state.commit(&entry).unwrap();
        assert_eq!(
            state.history.iter().next().map(|decided| decided.entry.reason.len()),
            Some(REASON_BYTES_MAX)
        );
    }
}
