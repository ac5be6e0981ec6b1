//! Promises of replicas: asked for wherever the replica is, given here. A part of the running orchestrator.

use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::decide::Seal;

use super::Orchestrator;
use crate::clock::now;
use crate::transport::message::{Request, Response};
use crate::transport::peer::Peer;

/// How long a replica may take to give its promise: a sync of its journal and its superblock.
const SEAL_WITHIN: Duration = Duration::from_millis(2_000);

impl Orchestrator {
    /// Asks a replica for its promise, wherever it is. All that are asked are asked at the same time.
    pub(super) fn ask_seal(self: &Arc<Self>, seal: Seal) {
        if !self.mind().begin_seal(seal) {
            return;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let response = match this.addresses.get(&seal.node).cloned() {
                Some(address) => Peer::new(address).call(&Request::Seal(seal), SEAL_WITHIN).await.ok(),
                None => Some(this.on_seal(seal).await),
            };
            let mut mind = this.mind();
            let (report, failure) = match response {
                Some(Response::Sealed(report)) => (Some(report), None),
                Some(Response::Failed(text)) => (None, Some(text)),
                _ => (None, Some("its orchestrator does not answer".to_owned())),
            };
            if let Some(text) = failure {
                let name = this.options.policy.node_name(seal.node);
                mind.remember(format!("{name} does not promise epoch {}: {text}", seal.epoch));
            }
            mind.end_seal(seal, report, now());
            drop(mind);
            this.wake.notify_one();
        });
    }

    /// Has the replica here promise an epoch, and says how this node is then.
    pub(super) async fn on_seal(self: &Arc<Self>, seal: Seal) -> Response {
        let this = Arc::clone(self);
        let sealed = tokio::task::spawn_blocking(move || {
            let sealed = this.link.seal(seal.volume, seal.epoch);
            sealed.map(|_| this.link.observe())
        });
        match sealed.await {
            Ok(Ok(replicas)) => {
                let mut mind = self.mind();
                mind.local.replicas = replicas;
                // A lease that was for a reign which has ended is of no use to anybody.
                mind.local.settle(&self.consensus.applied().state, self.options.me);
                drop(mind);
                Response::Sealed(self.next_report(now()).0)
            }
            Ok(Err(error)) => Response::Failed(error.to_string()),
            Err(_) => Response::Failed("the request failed inside the orchestrator; see its log".to_owned()),
        }
    }
}
