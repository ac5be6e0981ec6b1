//! The committed state: what every voter has after applying the same log. `apply` is the whole state machine.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::history::{Entry, History};
use crate::power::{Power, PowerChange};
use crate::proof::Proof;
use crate::record::{Change, ChangeKind, Record, Refused};
use crate::units::{Epoch, NodeId, NodeSet, ReignId, VolumeId};

/// What the cluster has agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Who may write each volume.
    pub records: BTreeMap<VolumeId, Record>,
    /// Where operators want volumes; forgotten once they are there.
    pub wanted: BTreeMap<VolumeId, NodeId>,
    /// Nodes that are to be given nothing, and to give away what they have.
    pub standby: BTreeSet<NodeId>,
    /// What nothing is to be done about.
    pub paused: Paused,
    /// Which nodes run, are to be switched off, or are off.
    #[serde(default)]
    pub power: Power,
    /// What was decided.
    #[serde(default)]
    pub history: History,
    /// Volumes that are to be handed over when the stacks on them are stopped, and the reign in which that was decided.
    #[serde(default)]
    pub leaving: BTreeMap<VolumeId, Epoch>,
    /// How often operators have had the failures of a stack forgotten.
    #[serde(default)]
    pub forgiven: BTreeMap<String, u64>,
}

/// What nothing is to be done about, at three levels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Everything.
    pub cluster: bool,
    /// What happens on these nodes.
    pub nodes: BTreeSet<NodeId>,
    /// These volumes.
    pub volumes: BTreeSet<VolumeId>,
}

/// What an operator may pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Everything.
    Cluster,
    /// What happens on a node.
    Node(NodeId),
    /// A volume.
    Volume(VolumeId),
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// A volume gets its first record.
    Create {
        /// The volume.
        volume: VolumeId,
        /// Above every promise of its replicas.
        epoch: Epoch,
        /// Who is to write.
        primary: NodeId,
        /// Drawn at random.
        reign: ReignId,
        /// Who holds everything.
        in_sync: NodeSet,
    },
    /// A volume's record changes.
    Change {
        /// The volume.
        volume: VolumeId,
        /// How.
        change: Change,
    },
    /// An operator wants a volume somewhere, or nowhere in particular any more.
    Want {
        /// The volume.
        volume: VolumeId,
        /// Where.
        node: Option<NodeId>,
    },
    /// The stacks on a volume are to be stopped, so that it can be handed over; or that is not wanted any more.
    Leave {
        /// The volume.
        volume: VolumeId,
        /// The reign that is to end.
        epoch: Epoch,
        /// Whether it is to end.
        on: bool,
    },
    /// The failures of a stack are forgotten.
    Forgive {
        /// Its name.
        stack: String,
    },
    /// A node goes into standby, or returns from it.
    Standby {
        /// The node.
        node: NodeId,
        /// Whether it is to be given nothing.
        on: bool,
    },
    /// Something is known or wanted of the power of a node.
    Power {
        /// The node.
        node: NodeId,
        /// What.
        change: PowerChange,
    },
    /// Something is paused, or goes on.
    Pause {
        /// What.
        scope: Scope,
        /// Whether nothing is to be done about it.
        on: bool,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { volume, epoch, primary, .. } => {
                write!(f, "first record of {volume}: epoch {epoch}, primary {primary}")
            }
            Self::Change { volume, change } => write!(f, "change of {volume}: {:?}", change.kind),
            Self::Want { volume, node: Some(node) } => write!(f, "{volume} wanted on {node}"),
            Self::Want { volume, node: None } => write!(f, "{volume} wanted nowhere in particular"),
            Self::Leave { volume, on, .. } => write!(f, "{volume} is to be left: {on}"),
            Self::Forgive { stack } => write!(f, "failures of {stack} forgotten"),
            Self::Standby { node, on } => write!(f, "standby of {node}: {on}"),
            Self::Power { node, change } => write!(f, "power of {node}: {change:?}"),
            Self::Pause { scope, on } => write!(f, "pause of {scope:?}: {on}"),
        }
    }
}

impl State {
    /// Applies one entry of the log, and takes note of it if it has changed something.
    ///
    /// # Errors
    /// As [`State::apply`].
    pub fn commit(&mut self, entry: &Entry) -> Result<(), Refused> {
        self.apply(&entry.command)?;
        self.history.note(entry);
        Ok(())
    }

    /// Applies the command of one entry.
    ///
    /// # Errors
    /// If the entry changes nothing, as it was decided on another state. That is an answer, not a failure: every voter
    /// comes to the same one.
    pub fn apply(&mut self, command: &Command) -> Result<(), Refused> {
        match command {
            Command::Create { volume, epoch, primary, reign, in_sync } => {
                if self.records.contains_key(volume) {
                    return Err(Refused::Exists);
                }
                if !in_sync.contains(*primary) {
                    return Err(Refused::Set);
                }
                let record = Record {
                    epoch: *epoch,
                    version: 1,
                    primary: Some(*primary),
                    reign: *reign,
                    opened: false,
                    in_sync: *in_sync,
                    generation: 1,
                    proof: Proof::First,
                    shrunk_at: None,
                };
                self.records.insert(*volume, record);
            }
            Command::Change { volume, change } => {
                let record = self.records.get_mut(volume).ok_or(Refused::NoRecord)?;
                let next = record.changed(change)?;
                if let ChangeKind::Takeover(takeover) = &change.kind
                    && !self.power.bears_out(&takeover.proof)
                {
                    return Err(Refused::Proof);
                }
                *record = next;
                if self.leaving.get(volume).is_some_and(|left| *left != record.epoch) {
                    self.leaving.remove(volume);
                }
                if self.wanted.get(volume).is_some_and(|wanted| record.primary == Some(*wanted)) {
                    self.wanted.remove(volume);
                }
            }
            Command::Want { volume, node } => {
                let record = self.records.get(volume).ok_or(Refused::NoRecord)?;
                match node {
                    Some(node) if record.primary != Some(*node) => self.wanted.insert(*volume, *node),
                    _ => self.wanted.remove(volume),
                };
            }
            Command::Leave { volume, epoch, on } => {
                let record = self.records.get(volume).ok_or(Refused::NoRecord)?;
                if record.epoch != *epoch {
                    return Err(Refused::Stale(record.order()));
                }
                if *on {
                    self.leaving.insert(*volume, *epoch);
                } else {
                    self.leaving.remove(volume);
                }
            }
            Command::Forgive { stack } => {
                *self.forgiven.entry(stack.clone()).or_default() += 1;
            }
            Command::Power { node, change } => return self.power.apply(*node, change),
            Command::Standby { node, on } => set(&mut self.standby, *node, *on),
            Command::Pause { scope: Scope::Cluster, on } => self.paused.cluster = *on,
            Command::Pause { scope: Scope::Node(node), on } => set(&mut self.paused.nodes, *node, *on),
            Command::Pause { scope: Scope::Volume(volume), on } => {
                set(&mut self.paused.volumes, *volume, *on);
            }
        }
        Ok(())
    }
}

fn set<T: Ord>(set: &mut BTreeSet<T>, item: T, on: bool) {
    if on {
        set.insert(item);
    } else {
        set.remove(&item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Takeover;
    use crate::units::BootId;

    #[test]
    fn a_takeover_whose_evidence_has_ended_meanwhile_changes_nothing() {
        let (volume, old, new) = (VolumeId(1), NodeId(0), NodeId(1));
        let (in_sync, reign) = (NodeSet::only(old).with(new), ReignId(1));
        let mut state = State::default();
        state.apply(&Command::Create { volume, epoch: Epoch(1), primary: old, reign, in_sync }).unwrap();
        let power = |change| Command::Power { node: old, change };
        let boot = |id| PowerChange::Runs { boot: BootId(id), watchdog_ms: None };
        state.apply(&power(boot(1))).unwrap();
        let (who, at_unix_ms) = (String::from("root"), 5);
        state.apply(&power(PowerChange::ConfirmOff { boot: Some(BootId(1)), who, at_unix_ms })).unwrap();
        let takeover = Takeover {
            epoch: Epoch(2),
            primary: new,
            reign: ReignId(2),
            in_sync: NodeSet::only(new),
            proof: Proof::of_power(alloc::vec![state.power.off(old).expect("it is off").clone()]),
            breaks_sessions: false,
        };
        let change = Change { expected: (Epoch(1), 1), kind: ChangeKind::Takeover(takeover) };
        let takeover = Command::Change { volume, change };

        let mut runs_again = state.clone();
        runs_again.apply(&power(boot(2))).unwrap();
        let before = runs_again.clone();
        assert_eq!(runs_again.apply(&takeover), Err(Refused::Proof));
        assert_eq!(runs_again, before);
        assert_eq!(state.apply(&takeover), Ok(()));
    }
}
