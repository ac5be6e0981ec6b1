//! What others want to know as soon as it happens: drawn from what is agreed on, from who is heard and leads, and from what
//! the replicas here do. Not here: who is told of it, which is `hook`'s.

use std::collections::BTreeMap;

use orchestrator_core::history::Decided;
use orchestrator_core::policy::Policy;
use orchestrator_core::power::PowerChange;
use orchestrator_core::proof::Proof;
use orchestrator_core::record::ChangeKind;
use orchestrator_core::state::{Command, State};
use orchestrator_core::units::{NodeId, VolumeId};
use orchestrator_core::view::{ReplicaView, Role};
use replicator::config::Occasion;

/// Happenings that wait to be told; more than the log of a turn can hold.
const NEW_MAX: usize = 1_000;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Happening {
    pub(crate) occasion: Occasion,
    /// The volume that it is about.
    pub(crate) volume: Option<String>,
    /// The node that it is about.
    pub(crate) node: Option<String>,
    /// The reign.
    pub(crate) epoch: Option<u64>,
    /// Who is primary now, and who was before.
    pub(crate) primary: Option<String>,
    pub(crate) old_primary: Option<String>,
    /// What a replica is now, and what it was before.
    pub(crate) roles: Option<(&'static str, &'static str)>,
    /// What, and why.
    pub(crate) text: String,
    pub(crate) reason: String,
}

impl Happening {
    pub(crate) fn new(occasion: Occasion, text: String, reason: String) -> Self {
        Self {
            occasion,
            volume: None,
            node: None,
            epoch: None,
            primary: None,
            old_primary: None,
            roles: None,
            text,
            reason,
        }
    }
}

/// What was before, and what is new.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Who was primary last.
    primaries: BTreeMap<VolumeId, NodeId>,
    /// Whether the replica here was primary, as far as that was seen.
    was_primary: BTreeMap<VolumeId, bool>,
    new: Vec<Happening>,
    counts: BTreeMap<(Occasion, Option<String>), u64>,
}

impl Watch {
    /// Takes what is agreed on for what was before.
    pub(crate) fn know(&mut self, state: &State) {
        let primaries = state.records.iter().filter_map(|(volume, record)| Some((*volume, record.primary?)));
        self.primaries.extend(primaries);
    }

    /// Something happened.
    pub(crate) fn happened(&mut self, happening: Happening) {
        *self.counts.entry((happening.occasion, happening.volume.clone())).or_default() += 1;
        if self.new.len() < NEW_MAX {
            self.new.push(happening);
        }
    }

    /// What is new since the last time.
    pub(crate) fn take_new(&mut self) -> Vec<Happening> {
        std::mem::take(&mut self.new)
    }

    /// How often it happened since the process began; with a volume where it is about one.
    pub(crate) fn count(&self, occasion: Occasion, volume: Option<&str>) -> u64 {
        self.counts.get(&(occasion, volume.map(str::to_owned))).copied().unwrap_or(0)
    }

    /// Something was agreed on.
    pub(crate) fn decided(&mut self, decided: &Decided, policy: &Policy) {
        let old_primary = decided.volume().and_then(|volume| self.primaries.get(&volume)).copied();
        let (occasion, epoch, primary, node) = match &decided.entry.command {
            Command::Create { volume, primary, .. } => {
                self.primaries.insert(*volume, *primary);
                return;
            }
            Command::Change { volume, change } => match &change.kind {
                ChangeKind::Shrink { remove, .. } => {
                    (Occasion::MemberLost, change.expected.0, old_primary, remove.iter().next())
                }
                ChangeKind::Grow { add } => {
                    (Occasion::MemberBack, change.expected.0, old_primary, Some(*add))
                }
                ChangeKind::Takeover(takeover) => {
                    let occasion = match takeover.proof {
                        Proof::First | Proof::Released => Occasion::Switchover,
                        _ => Occasion::Failover,
                    };
                    self.primaries.insert(*volume, takeover.primary);
                    (occasion, takeover.epoch, Some(takeover.primary), None)
                }
                ChangeKind::Opened | ChangeKind::Release => return,
            },
            Command::Power { node, change } if !matches!(change, PowerChange::Runs { .. }) => {
                let mut happening = self.told(Occasion::Fence, decided, policy);
                happening.node = Some(policy.node_name(*node));
                return self.happened(happening);
            }
            _ => return,
        };
        let mut happening = self.told(occasion, decided, policy);
        let name = |node: NodeId| policy.node_name(node);
        happening.node = node.map(name);
        happening.epoch = Some(epoch.0);
        happening.primary = primary.map(name);
        let is_other = matches!(occasion, Occasion::Failover | Occasion::Switchover);
        happening.old_primary = old_primary.filter(|_| is_other).map(name);
        self.happened(happening);
    }

    fn told(&self, occasion: Occasion, decided: &Decided, policy: &Policy) -> Happening {
        let mut happening = Happening::new(occasion, decided.text(policy), decided.entry.reason.clone());
        let volume = decided.volume().and_then(|volume| policy.volume(volume));
        happening.volume = volume.map(|volume| volume.name.clone());
        happening
    }

    /// The replicas here do this now. What they did before this process looked first is no happening.
    pub(crate) fn seen(&mut self, replicas: &BTreeMap<VolumeId, ReplicaView>, policy: &Policy, me: NodeId) {
        for (volume, view) in replicas {
            let (is_primary, epoch) = match view {
                ReplicaView::Running(replica) if replica.role == Role::Changing => continue,
                ReplicaView::Running(replica) => (replica.role == Role::Primary, Some(replica.record.0)),
                ReplicaView::Stopped => (false, None),
                ReplicaView::Silent(_) => continue,
            };
            let before = self.was_primary.insert(*volume, is_primary);
            let Some(name) = policy.volume(*volume).map(|volume| volume.name.clone()) else { continue };
            if before.is_none_or(|before| before == is_primary) {
                continue;
            }
            let (now, was) = if is_primary { ("primary", "secondary") } else { ("secondary", "primary") };
            let node = policy.node_name(me);
            let text = format!("{name}: the replica on {node} is {now}");
            let mut happening = Happening::new(Occasion::Role, text, String::new());
            happening.epoch = epoch.map(|epoch| epoch.0);
            (happening.volume, happening.node) = (Some(name), Some(node));
            happening.roles = Some((now, was));
            self.happened(happening);
        }
    }
}

#[cfg(test)]
mod tests {
    use orchestrator_core::fence::Rules;
    use orchestrator_core::history::Entry;
    use orchestrator_core::lease::Terms;
    use orchestrator_core::policy::{Detection, Node, Volume};
    use orchestrator_core::record::{Change, Takeover};
    use orchestrator_core::units::{Epoch, NodeSet, ReignId};

    use super::*;

    fn policy() -> Policy {
        let node = |id, name: &str| Node { id: NodeId(id), name: name.to_owned() };
        let replicas = vec![NodeId(0), NodeId(1)];
        Policy {
            nodes: vec![node(0, "a"), node(1, "b")],
            volumes: vec![Volume { id: VolumeId(7), name: "r0".to_owned(), replicas }],
            lease: Terms { duration_ms: 600, drift_ppm: 1_000 },
            detection: Detection::default(),
            unproven_grace_ms: 0,
            member_patience_ms: 0,
            fence: Rules::default(),
            stacks: Vec::new(),
        }
    }

    fn takeover(proof: Proof) -> Decided {
        let takeover = Takeover {
            epoch: Epoch(2),
            primary: NodeId(1),
            reign: ReignId(1),
            in_sync: NodeSet::only(NodeId(1)),
            proof,
            breaks_sessions: false,
        };
        let change = Change { expected: (Epoch(1), 1), kind: ChangeKind::Takeover(takeover) };
        let command = Command::Change { volume: VolumeId(7), change };
        Decided { number: 1, entry: Entry { command, at_unix_ms: 0, reason: "a is gone".to_owned() } }
    }

    #[test]
    fn a_takeover_without_the_old_primarys_word_is_a_failover() {
        for (proof, occasion) in [
            (Proof::EpochFenced, Occasion::Failover),
            (Proof::LeaseExpired, Occasion::Failover),
            (Proof::Released, Occasion::Switchover),
        ] {
            let mut watch = Watch::default();
            watch.primaries.insert(VolumeId(7), NodeId(0));
            watch.decided(&takeover(proof), &policy());
            let new = watch.take_new();
            assert_eq!(new.len(), 1);
            let told = (&new[0].occasion, new[0].primary.as_deref(), new[0].old_primary.as_deref());
            assert_eq!(told, (&occasion, Some("b"), Some("a")));
            assert_eq!((new[0].epoch, new[0].reason.as_str()), (Some(2), "a is gone"));
            assert_eq!(watch.count(occasion, Some("r0")), 1);
            assert!(watch.take_new().is_empty(), "it is told once");
        }
    }

    #[test]
    fn what_a_replica_did_before_anybody_looked_is_no_happening() {
        let mut watch = Watch::default();
        let stopped = BTreeMap::from([(VolumeId(7), ReplicaView::Stopped)]);
        watch.seen(&stopped, &policy(), NodeId(0));
        assert!(watch.take_new().is_empty());
        watch.was_primary.insert(VolumeId(7), true);
        watch.seen(
            &BTreeMap::from([(VolumeId(7), ReplicaView::Silent(String::new()))]),
            &policy(),
            NodeId(0),
        );
        assert!(watch.take_new().is_empty(), "nothing is known of it");
        watch.seen(&stopped, &policy(), NodeId(0));
        assert_eq!(watch.take_new()[0].roles, Some(("secondary", "primary")));
    }
}
