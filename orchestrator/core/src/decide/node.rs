//! What each node does about its own replicas: it follows the record, and serves only with a lease.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::policy::Policy;
use crate::record::{Change, ChangeKind, Record};
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
    /// This process, drawn when it started.
    pub process: u64,
    /// What it has asked for and may still come to be.
    pub requests: BTreeMap<VolumeId, Request>,
    /// Members that do not follow the primary here, and since when.
    pub unfollowed: BTreeMap<(VolumeId, NodeId), Instant>,
}

/// Something to do about a replica here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The volume.
    pub volume: VolumeId,
    /// What.
    pub kind: StepKind,
    /// Why.
    pub reason: String,
}

/// What to do about a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// It is to begin to serve.
    Promote {
        /// In an epoch not below this one.
        epoch: Epoch,
        /// Whether the record names no other member, so that it need not wait for the word of any.
        alone: bool,
    },
    /// It is to stop serving.
    Demote,
    /// It is to go on without a member that the record does not name any more.
    Shrink(NodeId),
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
            if replica.role == Role::Primary && record.primary == Some(me) {
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
        let has_lease = local.leases.get(volume).is_some_and(|until| local.now < *until);
        let mut step = |kind, reason| steps.push(Step { volume: *volume, kind, reason });
        match replica.role {
            Role::Secondary => {
                let is_mine = record.primary == Some(me) && !record.opened;
                if is_mine && has_lease {
                    let alone = record.in_sync == NodeSet::only(me);
                    step(
                        StepKind::Promote { epoch: record.epoch, alone },
                        format!("the record names it, epoch {}", record.epoch),
                    );
                }
            }
            // On its way up it may not arrive; on its way down, being asked again does no harm.
            Role::Primary | Role::Changing if record.primary != Some(me) => {
                let text = match record.primary {
                    Some(other) => format!("the record names {}", policy.node_name(other)),
                    None => String::from("the record names nobody"),
                };
                step(StepKind::Demote, text);
            }
            Role::Primary | Role::Changing if !has_lease => {
                step(StepKind::Demote, String::from("its lease has ended: somebody else may serve"));
            }
            Role::Changing => {}
            // What was asked for may come to be: until that is known, everybody in either set counts.
            Role::Primary if record.process != local.process || local.requests.contains_key(volume) => {}
            Role::Primary => {
                for (kind, reason) in leave_behind(policy, record, me, replica) {
                    step(kind, reason);
                }
            }
        }
    }
    steps
}

/// Whether node `me` may use, and ask for, the lease of a volume: only to serve, or to begin a reign that has not begun.
/// One that is of no use is given up at once, so that others need not wait until it ends.
#[must_use]
pub fn wants_lease(record: &Record, me: NodeId, view: Option<&ReplicaView>) -> bool {
    let Some(ReplicaView::Running(replica)) = view else { return false };
    record.primary == Some(me) && (!record.opened || replica.role != Role::Secondary)
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
/// A primary counts a member from when it comes into the replica's own set until a record read back is without it and
/// nothing is asked for: so the record's set is always within the set that it counts.
fn request(
    policy: &Policy,
    me: NodeId,
    record: &Record,
    replica: &Replica,
    local: &Local,
    volume: VolumeId,
) -> Option<Request> {
    let has_lease = local.leases.get(&volume).is_some_and(|until| local.now < *until);
    let is_mine = record.primary == Some(me) && replica.role == Role::Primary && has_lease;
    if !is_mine || replica.record.0 < record.epoch {
        return None;
    }
    let ask = |kind, reason| Some(Request { change: Change { expected: record.order(), kind }, reason });
    let name = policy.node_name(me);
    if record.process != local.process || !record.opened {
        return ask(ChangeKind::Opened { process: local.process }, format!("{name} serves"));
    }
    let committed = replica.committed;
    let outside = record.in_sync.difference(replica.in_sync);
    if !outside.is_empty() {
        // It was taken out there already, by an operator: the record must not say more than is so.
        let reason = format!("{name} goes on without {}", policy.names(outside.iter()));
        return ask(ChangeKind::Shrink { remove: outside, committed }, reason);
    }
    let is_late = |node: &NodeId| {
        let since = local.unfollowed.get(&(volume, *node));
        since.is_some_and(|since| local.now.since_ms(*since) >= policy.member_patience_ms)
    };
    let missing = record.in_sync.without(me).difference(replica.following);
    let lost: NodeSet = missing.iter().filter(is_late).collect();
    if !lost.is_empty() {
        let reason = format!("{name} is not followed by {}", policy.names(lost.iter()));
        return ask(ChangeKind::Shrink { remove: lost, committed }, reason);
    }
    let grown = replica.in_sync.difference(record.in_sync).intersection(replica.following);
    let add = grown.iter().next()?;
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

/// Members that the primary still waits for and the record does not name, nor can come to name.
fn leave_behind<'a>(
    policy: &'a Policy,
    record: &'a Record,
    me: NodeId,
    replica: &'a Replica,
) -> impl Iterator<Item = (StepKind, String)> + 'a {
    let gone = replica.in_sync.difference(record.in_sync).difference(replica.following).without(me);
    gone.iter().map(|node| {
        let name = policy.node_name(node);
        (StepKind::Shrink(node), format!("the record is without {name}, which does not follow"))
    })
}
