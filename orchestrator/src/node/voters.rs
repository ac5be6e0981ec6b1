//! Who votes: a cluster that begins, and a node that comes back with another store. A part of the running orchestrator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::units::NodeId;

use super::{CALL_WITHIN, Orchestrator};
use crate::mind::Mind;
use crate::transport::message::{Request, Response};
use crate::transport::peer::Peer;

/// How often a cluster that has not begun is looked for.
const BEGIN_INTERVAL: Duration = Duration::from_millis(200);

impl Orchestrator {
    /// Begins the cluster, once: when every configured node answers that its store is empty. The lowest number begins.
    pub(super) async fn begin(self: Arc<Self>) {
        let mut peers: BTreeMap<NodeId, Peer> =
            self.addresses.iter().map(|(node, address)| (*node, Peer::new(address.clone()))).collect();
        while !self.consensus.is_initialized().await {
            let mut voters = BTreeSet::from([self.consensus.voter()]);
            let mut is_first = true;
            for (node, peer) in &mut peers {
                match peer.call(&Request::Identify, CALL_WITHIN).await {
                    Ok(Response::Identity { voter, initialized: false }) => drop(voters.insert(voter)),
                    _ => break,
                }
                is_first &= *node > self.options.me;
            }
            if is_first && voters.len() == self.options.nodes.len() {
                let text = match self.consensus.begin(&voters).await {
                    Ok(()) => format!("a new cluster of {} voters begins", voters.len()),
                    Err(error) => format!("a new cluster does not begin: {error}"),
                };
                self.mind().remember(text);
            }
            tokio::time::sleep(BEGIN_INTERVAL).await;
        }
    }

    /// Gives the lead to a node that is better suited.
    pub(super) fn hand_over(self: &Arc<Self>, mind: &mut Mind, next: NodeId) {
        let Some(voter) = mind.voter_of(next) else { return };
        let name = self.options.policy.node_name(next);
        mind.remember(format!("{name} is to lead, since a leader is best primary of nothing"));
        let this = Arc::clone(self);
        tokio::spawn(async move { this.consensus.hand_over(voter).await });
    }

    /// A node that lost its store comes back as another voter; the leader puts it in the place of the old one.
    pub(super) fn admit_new_stores(self: &Arc<Self>) {
        let mut mind = self.mind();
        if mind.admitting || !mind.leads_in(self.consensus.leadership()) {
            return;
        }
        let voters = self.consensus.voters();
        let Some(new) = mind.reported_voters().find(|voter| !voters.contains(voter)) else { return };
        mind.admitting = true;
        drop(mind);
        let node = crate::consensus::node_of(new);
        let kept = voters.into_iter().filter(|voter| crate::consensus::node_of(*voter) != node);
        let wanted: BTreeSet<u64> = kept.chain([new]).collect();
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let result = this.consensus.admit(wanted, new).await;
            let name = this.options.policy.node_name(node);
            let mut mind = this.mind();
            match result {
                Ok(()) => mind.remember(format!("{name} votes with a new store")),
                Err(error) => mind.remember(format!("{name} does not vote with its new store yet: {error}")),
            }
            mind.admitting = false;
        });
    }
}
