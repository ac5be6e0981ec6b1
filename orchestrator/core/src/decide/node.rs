//! What each node does about its own replicas: it tells them the record, and begins and ends reigns as that says. Whether
//! clients are answered is the lease's matter, which the replica keeps itself.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::policy::Policy;
use crate::record::{Change, ChangeKind, Order, Record};
use crate::state::State;
use crate::units::{Epoch, Instant, NodeId, NodeSet, VolumeId};
use crate::view::{Replica, ReplicaView, Request, Role};

/// What a node knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Now.
    pub now: Instant,
    /// Its replicas.
    pub replicas: BTreeMap<VolumeId, ReplicaView>,
    /// Until when it may serve.
    pub leases: BTreeMap<VolumeId, Instant>,
    /// What it has asked for and may still come to be.
    pub requests: BTreeMap<VolumeId, Request>,
    /// Members that do not follow the primary here, and since when.
    pub unfollowed: BTreeMap<(VolumeId, NodeId), Instant>,
    /// Nodes whose orchestrator is not heard here.
    pub suspected: NodeSet,
}

/// Something to do about a replica here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The volume.
    pub volume: VolumeId,
    /// What.
    pub kind: StepKind,
    /// The record that it follows from.
    pub record: Record,
    /// Why.
    pub reason: String,
}

/// What to do about a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// It is to begin the reign of the record.
    Open(Epoch),
    /// It is to stop serving, with everything durable at the members.
    Release,
    /// It is to know the record as of this epoch and version. One that reigns by a lower epoch ends at once.
    Tell(Order),
}

impl Local {
    /// Takes note of members that do not follow the primaries here, since when, and forgets what cannot come to be.
    pub fn settle(&mut self, state: &State, me: NodeId) {
        self.requests = pending(state, &self.requests);
        let mut missing = BTreeMap::new();
        for (volume, view) in &self.replicas {
            let (ReplicaView::Running(replica), Some(record)) = (view, state.records.get(volume)) else {
                continue;
            };
            if reigns(record, me, replica) {
                for node in record.in_sync.without(me).difference(replica.following).iter() {
                    let since = self.unfollowed.get(&(*volume, node)).copied();
                    missing.insert((*volume, node), since.unwrap_or(self.now));
                }
            }
        }
        self.unfollowed = missing;
        self.leases.retain(|volume, _| keeps_lease(state.records.get(volume), me, self.replicas.get(volume)));
    }

    /// Asks for what is to be asked for, where nothing is under way.
    pub fn ask(&mut self, state: &State, policy: &Policy, me: NodeId) {
        for (volume, view) in &self.replicas {
            let (ReplicaView::Running(replica), Some(record)) = (view, state.records.get(volume)) else {
                continue;
            };
            if !self.requests.contains_key(volume)
                && let Some(request) = request(policy, me, record, replica, self, *volume)
            {
                self.requests.insert(*volume, request);
            }
        }
    }
}

/// What node `me` does now.
#[must_use]
pub fn node(state: &State, policy: &Policy, me: NodeId, local: &Local) -> Vec<Step> {
    let mut steps = Vec::new();
    for (volume, view) in &local.replicas {
        let (ReplicaView::Running(replica), Some(record)) = (view, state.records.get(volume)) else {
            continue;
        };
        let mut step = |kind, reason| {
            steps.push(Step { volume: *volume, kind, record: record.clone(), reason });
        };
        match replica.role {
            Role::Secondary => {
                // Without a lease, too: it answers nobody, and is ready when it has one.
                if record.primary == Some(me) && !record.opened && replica.record.0 < record.epoch {
                    let reason = format!("the record names it, epoch {}", record.epoch);
                    step(StepKind::Open(record.epoch), reason);
                }
            }
            Role::Primary | Role::Changing if replica.record.0 < record.epoch => {
                let reason =
                    format!("its epoch {} is over, the record is of {}", replica.record.0, record.epoch);
                step(StepKind::Tell(record.order()), reason);
            }
            // On its way up it may not arrive; on its way down, being asked again does no harm.
            Role::Primary | Role::Changing if !reigns(record, me, replica) => {
                let text = match record.primary {
                    Some(other) => format!("the record names {}", policy.node_name(other)),
                    None => String::from("the record names nobody"),
                };
                step(StepKind::Release, text);
            }
            Role::Primary | Role::Changing => {
                if replica.record.1 < record.version {
                    let members = policy.names(record.in_sync.iter());
                    step(StepKind::Tell(record.order()), format!("its members are {members} now"));
                }
            }
        }
    }
    steps
}

/// Whether the replica of node `me` is in the reign that the record names.
fn reigns(record: &Record, me: NodeId, replica: &Replica) -> bool {
    record.primary == Some(me) && replica.role != Role::Secondary && replica.record.0 == record.epoch
}

/// Whether node `me` may use, and ask for, the lease of a volume: only to serve, or to begin a reign that has not begun.
/// One that has begun and ended here, opened or not, is never continued. A lease that is of no use is given up at once, so
/// that others need not wait until it ends.
#[must_use]
pub fn wants_lease(record: &Record, me: NodeId, view: Option<&ReplicaView>) -> bool {
    let Some(ReplicaView::Running(replica)) = view else { return false };
    let may_begin = !record.opened && replica.record.0 < record.epoch;
    record.primary == Some(me) && (may_begin || replica.role != Role::Secondary)
}

/// Whether node `me` must keep counting a lease that it holds: what runs may answer until it has stopped.
fn keeps_lease(record: Option<&Record>, me: NodeId, view: Option<&ReplicaView>) -> bool {
    match view {
        // Nobody knows what it does.
        None | Some(ReplicaView::Silent(_)) => true,
        Some(ReplicaView::Stopped) => false,
        Some(ReplicaView::Running(replica)) => {
            replica.role != Role::Secondary || record.is_some_and(|record| wants_lease(record, me, view))
        }
    }
}

/// What a primary on node `me` asks of its record now, if nothing that it asked for before can still be made.
///
/// A primary counts a replica from when it is pending until it is told a later record that is without it. What is asked
/// for is decided on the record that it was told, and is not made on any other: so the record's set is always within the
/// set that it counts.
fn request(
    policy: &Policy,
    me: NodeId,
    record: &Record,
    replica: &Replica,
    local: &Local,
    volume: VolumeId,
) -> Option<Request> {
    if !reigns(record, me, replica) {
        return None;
    }
    let has_lease = local.leases.get(&volume).is_some_and(|until| local.now < *until);
    let ask = |kind, reason| Some(Request { change: Change { expected: record.order(), kind }, reason });
    let name = policy.node_name(me);
    if replica.role == Role::Primary && has_lease && !record.opened {
        return ask(ChangeKind::Opened, format!("{name} serves"));
    }
    if replica.record != record.order() {
        return None;
    }
    // Patience is for a replicator that may be back in a moment. A machine of which nothing is heard on any link, and whose
    // replicator answers nothing either, is not worth it while clients wait.
    let is_late = |node: &NodeId| {
        let since = local.unfollowed.get(&(volume, *node));
        let is_over = |since: &Instant| local.now.since_ms(*since) >= policy.member_patience_ms;
        since.is_some_and(|since| is_over(since) || local.suspected.contains(*node))
    };
    let missing = record.in_sync.without(me).difference(replica.following);
    let lost: NodeSet = missing.iter().filter(is_late).collect();
    if !lost.is_empty() {
        let reason = format!("{name} is not followed by {}", policy.names(lost.iter()));
        return ask(ChangeKind::Shrink { remove: lost, committed: replica.committed }, reason);
    }
    let add = replica.pending.difference(record.in_sync).iter().next()?;
    let reason = format!("{} follows {name} and has everything", policy.node_name(add));
    ask(ChangeKind::Grow { add }, reason)
}

/// What of the requests can still be made: those decided on the record as it is.
fn pending(state: &State, requests: &BTreeMap<VolumeId, Request>) -> BTreeMap<VolumeId, Request> {
    let is_current = |volume: &VolumeId, request: &Request| {
        state.records.get(volume).is_some_and(|record| record.order() == request.change.expected)
    };
    let current = requests.iter().filter(|(volume, request)| is_current(volume, request));
    current.map(|(volume, request)| (*volume, request.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Proof;
    use crate::units::{Position, ReignId};
    use crate::view::Copy;

    const ME: NodeId = NodeId(0);

    fn wants(opened: bool, role: Role, known: u64) -> bool {
        let (epoch, in_sync) = (Epoch(2), NodeSet::only(ME));
        let record = Record {
            epoch,
            version: 1,
            primary: Some(ME),
            reign: ReignId(1),
            opened,
            in_sync,
            generation: 1,
            proof: Proof::First,
            shrunk_at: None,
        };
        let replica = Replica {
            role,
            copy: Copy::UpToDate,
            proven: true,
            promised: epoch,
            head: Position::default(),
            committed: Position::default(),
            record: (Epoch(known), 1),
            in_sync,
            following: NodeSet::default(),
            pending: NodeSet::default(),
        };
        wants_lease(&record, ME, Some(&ReplicaView::Running(replica)))
    }

    #[test]
    fn a_lease_is_wanted_to_serve_and_to_begin() {
        assert!(wants(true, Role::Primary, 2) && wants(false, Role::Changing, 2));
        assert!(wants(false, Role::Secondary, 1));
    }

    #[test]
    fn no_lease_is_wanted_for_a_reign_that_has_ended_before_anybody_heard_that_it_began() {
        assert!(!wants(false, Role::Secondary, 2) && !wants(true, Role::Secondary, 2));
    }
}
