//! How a volume stands on this node at one moment, and whether that is what somebody asks for. If not, why not.

use orchestrator_core::record::Record;
use orchestrator_core::units::{Instant, NodeId};
use orchestrator_core::view::{Copy, Replica, ReplicaView, Role};

/// How a volume stands here.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) me: NodeId,
    pub(super) now: Instant,
    /// What is agreed on.
    pub(super) record: Option<Record>,
    /// What the replica here said last.
    pub(super) view: Option<ReplicaView>,
    /// Until when the lease held here lasts.
    pub(super) lease: Option<Instant>,
}

/// So, or why not.
pub(super) type Verdict = Result<(), String>;

impl Standing {
    /// How long the lease is held yet.
    pub(super) fn lease_ms(&self) -> u64 {
        self.lease.map_or(0, |until| until.since_ms(self.now))
    }

    /// What the replica does, in a word.
    pub(super) fn role(&self) -> Option<&'static str> {
        Some(match self.running().ok()?.role {
            Role::Primary => "primary",
            Role::Changing => "changing",
            Role::Secondary => "replica",
        })
    }

    /// In what state the replica is, in a word.
    pub(super) fn state(&self) -> &'static str {
        match &self.view {
            Some(ReplicaView::Running(_)) => "running",
            Some(ReplicaView::Stopped) => "stopped",
            Some(ReplicaView::Silent(_)) => "silent",
            None => "absent",
        }
    }

    fn running(&self) -> Result<&Replica, String> {
        match &self.view {
            Some(ReplicaView::Running(replica)) => Ok(replica),
            Some(ReplicaView::Stopped) => Err("the replicator here does not run".to_owned()),
            Some(ReplicaView::Silent(why)) => Err(format!("the replicator here does not answer: {why}")),
            None => Err("there is no replica of it here".to_owned()),
        }
    }

    /// The replica runs.
    pub(super) fn is_healthy(&self) -> Verdict {
        self.running().map(drop)
    }

    /// It is primary by what is agreed on, and the lease is held.
    pub(super) fn holds_lease(&self) -> Verdict {
        let record = self.record.as_ref().ok_or("nothing is agreed on about it yet")?;
        if record.primary != Some(self.me) {
            return Err("another node is primary, or none".to_owned());
        }
        if self.lease_ms() == 0 {
            return Err("no lease is held here, so nobody is answered".to_owned());
        }
        Ok(())
    }

    /// Clients are served here, and nowhere else as long as the lease lasts.
    pub(super) fn is_primary(&self) -> Verdict {
        self.holds_lease()?;
        let record = self.record.as_ref().ok_or("nothing is agreed on about it yet")?;
        if !record.opened {
            return Err("it is not opened yet in this epoch".to_owned());
        }
        let replica = self.running()?;
        if replica.role != Role::Primary || replica.record.0 != record.epoch {
            return Err("the replica here has not begun this epoch, or has ended it".to_owned());
        }
        Ok(())
    }

    /// A copy that somebody could go on with.
    pub(super) fn is_replica(&self) -> Verdict {
        let replica = self.running()?;
        if replica.role != Role::Secondary {
            return Err("the replica here is primary, or on the way".to_owned());
        }
        match &replica.copy {
            Copy::UpToDate => Ok(()),
            Copy::Unusable(why) => Err(format!("the copy here is {why}")),
        }
    }

    fn is_member(&self) -> Verdict {
        let is_member = self.record.as_ref().is_some_and(|record| record.in_sync.contains(self.me));
        if is_member { Ok(()) } else { Err("it is no member of the in-sync set".to_owned()) }
    }

    /// A replica that has every acknowledged write.
    pub(super) fn is_sync(&self) -> Verdict {
        self.is_replica().and_then(|()| self.is_member())
    }

    /// A replica that may lack some.
    pub(super) fn is_async(&self) -> Verdict {
        self.is_replica()?;
        if self.is_member().is_ok() { Err("it is a member of the in-sync set".to_owned()) } else { Ok(()) }
    }

    /// Serving, or fit to.
    pub(super) fn is_ready(&self) -> Verdict {
        self.is_primary().or_else(|_| self.is_sync())
    }
}

#[cfg(test)]
mod tests {
    use orchestrator_core::proof::Proof;
    use orchestrator_core::units::{Epoch, NodeSet, Position, ReignId};

    use super::*;

    const ME: NodeId = NodeId(0);

    fn standing(role: Role) -> Standing {
        let in_sync = NodeSet::only(ME).with(NodeId(1));
        let record = Record {
            epoch: Epoch(2),
            version: 1,
            primary: Some(if role == Role::Primary { ME } else { NodeId(1) }),
            reign: ReignId(1),
            opened: true,
            in_sync,
            generation: 1,
            proof: Proof::First,
            shrunk_at: None,
        };
        let replica = Replica {
            role,
            copy: Copy::UpToDate,
            proven: true,
            promised: Epoch(2),
            head: Position::default(),
            committed: Position::default(),
            record: (Epoch(2), 1),
            in_sync,
            following: NodeSet::default(),
            pending: NodeSet::default(),
        };
        let view = Some(ReplicaView::Running(replica));
        Standing { me: ME, now: Instant(1_000), record: Some(record), view, lease: Some(Instant(1_300)) }
    }

    /// What is asked for, as it is here: primary, replica, sync, async, ready.
    fn all(standing: &Standing) -> [bool; 5] {
        let all = [
            Standing::is_primary,
            Standing::is_replica,
            Standing::is_sync,
            Standing::is_async,
            Standing::is_ready,
        ];
        all.map(|check| check(standing).is_ok())
    }

    #[test]
    fn a_primary_with_a_lease_is_primary_and_ready() {
        assert_eq!(all(&standing(Role::Primary)), [true, false, false, false, true]);
    }

    #[test]
    fn nothing_less_is_primary() {
        let primary = standing(Role::Primary);
        let mut ended = primary.clone();
        ended.now = Instant(1_300);
        let mut never = primary.clone();
        never.lease = None;
        let mut unopened = primary.clone();
        unopened.record.as_mut().unwrap().opened = false;
        let mut followed = primary.clone();
        followed.record.as_mut().unwrap().primary = Some(NodeId(1));
        let mut next = primary.clone();
        next.record.as_mut().unwrap().epoch = Epoch(3);
        let mut dead = primary.clone();
        dead.view = Some(ReplicaView::Stopped);
        let mut silent = primary;
        silent.view = Some(ReplicaView::Silent("no answer".to_owned()));
        for (what, standing) in [
            ("its lease has ended", ended),
            ("it never had a lease", never),
            ("it is not opened", unopened),
            ("another one is primary", followed),
            ("its epoch is over", next),
            ("its replicator is dead", dead),
            ("its replicator hangs", silent),
        ] {
            assert!(standing.is_primary().is_err(), "{what}");
        }
    }

    #[test]
    fn a_member_that_follows_is_a_replica_in_sync() {
        let member = standing(Role::Secondary);
        assert_eq!(all(&member), [false, true, true, false, true]);
        let mut behind = member.clone();
        behind.record.as_mut().unwrap().in_sync = NodeSet::only(NodeId(1));
        assert_eq!(all(&behind), [false, true, false, true, false]);
        let mut rotten = member;
        let Some(ReplicaView::Running(replica)) = &mut rotten.view else { unreachable!() };
        replica.copy = Copy::Unusable("Inconsistent".to_owned());
        assert_eq!(all(&rotten), [false; 5]);
        assert!(rotten.is_healthy().is_ok(), "it runs");
    }
}
