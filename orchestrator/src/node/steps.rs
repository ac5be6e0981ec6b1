//! What a node does about its own replicas: it sees what they do, and carries out what the record asks of them. A part of
//! the running orchestrator.

use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::decide::{self, Step, StepKind};
use orchestrator_core::units::{Instant, VolumeId};
use orchestrator_core::view::{ReplicaView, Role};

use super::Orchestrator;
use crate::mind::Mind;

/// How often the replicator is asked what it does.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(50);

impl Orchestrator {
    /// What the record asks of the replicas here, as far as it is known to be new enough.
    pub(super) fn own_steps(&self, mind: &mut Mind, now: Instant) -> Vec<Step> {
        let applied = self.consensus.applied();
        // Nobody tells a node that is out what is agreed on.
        if mind.excluded_by.is_some() || mind.told.is_none_or(|told| applied.index < told) {
            return Vec::new();
        }
        let (state, policy, me) = (&applied.state, &self.options.policy, self.options.me);
        mind.local.now = now;
        let health = self.heartbeats.health(now);
        mind.local.suspected =
            health.iter().filter(|(_, (health, _))| !health.is_heard()).map(|(node, _)| *node).collect();
        mind.local.settle(state, me);
        mind.local.ask(state, policy, me);
        decide::node(state, policy, me, &mind.local)
    }

    /// Carries out a step on a thread that may block.
    pub(super) fn take(self: &Arc<Self>, step: &Step) {
        let this = Arc::clone(self);
        let (step, volume, kind) = (step.clone(), step.volume, step.kind);
        let name = self.options.policy.volume(volume).map_or_else(String::new, |volume| volume.name.clone());
        let what = match step.kind {
            StepKind::Open(epoch) => format!("begin epoch {epoch}"),
            StepKind::Release => "release".to_owned(),
            StepKind::Tell((epoch, version)) => format!("tell it epoch {epoch} version {version}"),
        };
        self.mind().remember(format!("{name}: {what}, since {}", step.reason));
        tokio::task::spawn_blocking(move || {
            let lease = this.mind().local.leases.get(&volume).copied();
            let result = this.link.act(&step, lease);
            // Seen at once, so that the next turn does not decide on what was before.
            let local = this.link.observe();
            let mut mind = this.mind();
            match result {
                Ok(text) => mind.remember(format!("{name}: {what}: {text}")),
                Err(error) => mind.remember(format!("{name}: {what} failed: {error}")),
            }
            mind.local.replicas = local;
            mind.end(volume, kind);
            drop(mind);
            this.wake.notify_one();
            // One that was granted meanwhile.
            this.hand_lease(volume);
        });
    }

    /// Tells the replica here until when it may answer clients, if it reigns. Blocks.
    pub(super) fn hand_lease(&self, volume: VolumeId) {
        let mut mind = self.mind();
        let replica = match mind.local.replicas.get(&volume) {
            Some(ReplicaView::Running(replica)) if replica.role != Role::Secondary => replica.record.0,
            _ => return,
        };
        let Some(until) = mind.local.leases.get(&volume).copied() else { return };
        if !mind.leasing.insert(volume) {
            return;
        }
        drop(mind);
        // If it does not come there, the next one will.
        let _ = self.link.lease(volume, replica, until);
        self.mind().leasing.remove(&volume);
    }

    /// Asks the replicator again and again.
    pub(super) async fn observe(self: Arc<Self>) {
        loop {
            let link = Arc::clone(&self.link);
            if let Ok(local) = tokio::task::spawn_blocking(move || link.observe()).await {
                self.mind().local.replicas = local;
            }
            tokio::time::sleep(OBSERVE_INTERVAL).await;
        }
    }
}
