//! Who votes: a cluster that begins, and nodes that come, come back with another store, and go. A part of the running
//! orchestrator; who is to vote is decided in `consensus/voters`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::units::NodeId;

use super::{CALL_WITHIN, Orchestrator};
use crate::consensus::node_of;
use crate::consensus::voters::{Change, Known, change};
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

    /// At the leader: the nodes of its configuration vote, and no others. A node that lost its store comes back as another
    /// voter, in the place of the old one.
    pub(super) fn change_voters(self: &Arc<Self>) {
        let mut mind = self.mind();
        if mind.changing_voters || !mind.leads_in(self.consensus.leadership()) {
            return;
        }
        let voters = self.consensus.voters();
        let reported = mind.reported_voters().chain([self.consensus.voter()]).collect();
        let configured = self.options.nodes.keys().copied().collect();
        let known = Known { voters: &voters, reported: &reported, configured: &configured };
        let Some(change) = change(&known) else { return };
        mind.changing_voters = true;
        drop(mind);
        let text = self.voters_text(&change, &voters);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let result = this.consensus.change_voters(change).await;
            let mut mind = this.mind();
            match result {
                Ok(()) => mind.remember(text),
                Err(error) => mind.remember(format!("not yet: {text}: {error}")),
            }
            mind.changing_voters = false;
        });
    }

    fn voters_text(&self, change: &Change, before: &BTreeSet<u64>) -> String {
        let policy = &self.options.policy;
        match change {
            Change::Joins { new, .. } => {
                let node = node_of(*new);
                let has_voted = before.iter().any(|voter| node_of(*voter) == node);
                let with = if has_voted { "votes with a new store" } else { "votes from now on" };
                format!("{} {with}", policy.node_name(node))
            }
            Change::Leaves { gone, .. } => {
                let gone: Vec<String> = gone.iter().map(|node| node.0.to_string()).collect();
                format!("node number {} has left the configuration, and votes no more", gone.join(", "))
            }
        }
    }

    /// Another node does not know this one: its configuration, which is newer or older than the one here, has none such.
    pub(super) fn note_excluded(&self, by: Option<NodeId>) {
        let mut mind = self.mind();
        if mind.excluded_by == by {
            return;
        }
        mind.excluded_by = by;
        let text = match by {
            Some(other) => excluded_text(&self.options.policy.node_name(other)),
            None => "this node is a part of the cluster".to_owned(),
        };
        mind.remember(text);
    }
}

/// What an orchestrator says of itself that its cluster does not know.
pub(crate) fn excluded_text(other: &str) -> String {
    format!(
        "the configuration of {other} does not have this node: it votes no more and does nothing. If it was taken out, \
         stop this orchestrator; if it is new, have the others read their configuration: holdfast cluster reload"
    )
}
