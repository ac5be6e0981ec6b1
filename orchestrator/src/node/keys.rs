//! The cluster's keys are rotated: this node carries out the steps that it is told, and leads a rotation when an operator asks
//! it here. Which step is next is `rotation`'s. A part of the running orchestrator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use orchestrator_core::units::{Instant, NodeId};
use replicator::config::fresh_secret;
use replicator::options::Secret;
use replicator::secrets::{KeyId, Secrets};

use super::{CALL_WITHIN, Orchestrator};
use crate::clock::now;
use crate::rotation::{Held, Next, next};
use crate::transport::message::{KeyOrder, KeysRequest, Request, Response};
use crate::transport::peer::Peer;

/// How long a node may take to carry out a step: it stores it, and its replicator takes it over.
const STEP_WITHIN: Duration = Duration::from_secs(6);
/// How long a node carries out the steps of one leader and of nobody else after it has last heard of it.
const RESERVED_MS: u64 = 15_000;
/// Steps of one rotation, and one to look whether it is over.
const STEPS_MAX: usize = 5;

/// Whose rotation this node takes part in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reserved {
    by: u64,
    until: Instant,
}

impl Orchestrator {
    /// Carries out a step of a rotation, here.
    pub(super) async fn on_keys(self: &Arc<Self>, request: KeysRequest) -> Result<Held, String> {
        let mut reserved = self.reserved.lock().await;
        if reserved.by != request.by && now() < reserved.until {
            return Err("another rotation of the keys is under way; wait until it is over".to_owned());
        }
        if matches!(request.order, KeyOrder::Release) {
            *reserved = Reserved::default();
            return Ok(Held::of(&self.keys.now().secrets));
        }
        *reserved = Reserved { by: request.by, until: Instant(now().0 + RESERVED_MS) };
        let this = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || this.change_keys(&request.order)).await;
        done.unwrap_or_else(|_| Err("it was stopped".to_owned()))
    }

    /// Blocks: files are written, and the replicator is told.
    fn change_keys(&self, order: &KeyOrder) -> Result<Held, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let files = self.keys.files.as_ref().ok_or(
            "the secret stands in the configuration itself; move it into a file of its own (secret-file = \"secret\") on all \
             nodes, and start their orchestrators and replicators again",
        )?;
        let Secrets { own, next, .. } = self.keys.now().secrets.clone();
        let is_named = |secret: &Secret, key: u64| KeyId::of(secret).0 == key;
        match order {
            KeyOrder::Tell | KeyOrder::Release => {}
            KeyOrder::Accept { secret } => {
                files.accept(&Secret(secret.clone())).map_err(|error| text(&error))?;
            }
            KeyOrder::Use { key } if is_named(&own, *key) => {}
            KeyOrder::Use { key } if next.is_some_and(|next| is_named(&next, *key)) => {
                files.use_next().map_err(|error| text(&error))?;
            }
            KeyOrder::Use { .. } => return Err("it is to use a key that it does not accept yet".to_owned()),
            KeyOrder::Drop { used } if is_named(&own, *used) => {
                files.forget_old().map_err(|error| text(&error))?;
            }
            KeyOrder::Drop { .. } => return Err("it is to drop a key that it still uses".to_owned()),
        }
        let secrets = files.load().map_err(|error| text(&error))?;
        if secrets.own != own && !matches!(order, KeyOrder::Use { .. }) {
            return Err("its secret file is not what it was started with: put that back, or start its orchestrator and its \
                        replicator again"
                .to_owned());
        }
        let held = Held::of(&secrets);
        if secrets != self.keys.now().secrets {
            self.keys.take_over(secrets).map_err(|error| text(&error))?;
            self.mind().remember(format!("the cluster's keys: {}", order.text()));
        }
        // Also when nothing is new here: a step is done when the replicator has done it, too.
        self.link.rekey().map_err(|error| format!("its replicator does not take over the keys: {error}"))?;
        Ok(held)
    }

    /// Rotates the keys of the whole cluster, or goes on with it from where the nodes stand; what was done.
    ///
    /// # Errors
    /// Who did not do its part, and how it stands.
    pub(crate) async fn rotate_keys(self: &Arc<Self>, keep_old: bool) -> Result<String, String> {
        let by = u64::from_le_bytes(crate::random()).max(1);
        let result = self.lead_rotation(by, keep_old).await;
        // Who does not hear of it waits a while before it takes part in another.
        join_all(self.options.nodes.keys().map(|node| self.order(by, *node, &KeyOrder::Release))).await;
        result.map_err(|error| {
            let stands = if self.keys.now().secrets.is_rotating() {
                "The rotation waits where it is: all nodes understand each other, and the old keys are still good. The same \
                 command goes on"
            } else {
                "Nothing was changed here. The same command tries again"
            };
            format!("{error}. {stands}; a node that is gone for good is taken out of the configuration first")
        })
    }

    async fn lead_rotation(self: &Arc<Self>, by: u64, keep_old: bool) -> Result<String, String> {
        let me = self.options.me;
        let mut has_begun = false;
        for _ in 0..STEPS_MAX {
            // Who cannot be asked cannot be told: nothing is begun, and nothing goes further, without any node.
            let held = self.ask_all(by).await?;
            let (nodes, order) = match next(&held, me) {
                Next::Rest if has_begun => {
                    return Ok(format!(
                        "the keys of all {} nodes are new, and the old ones are of no use",
                        held.len()
                    ));
                }
                Next::Rest => (held.keys().copied().collect(), self.accept()),
                Next::Accept(nodes) => (nodes, self.accept()),
                Next::Use(key, nodes) => (nodes, KeyOrder::Use { key: key.0 }),
                Next::Drop(_) if keep_old => {
                    return Ok("all nodes use the new keys, and accept the old ones still".to_owned());
                }
                Next::Drop(nodes) => {
                    let used = KeyId::of(&self.keys.now().secrets.own).0;
                    (nodes, KeyOrder::Drop { used })
                }
                Next::Apart(nodes) => {
                    let names = self.options.policy.names(nodes);
                    return Err(format!("the keys of {names} are of no rotation that this node knows of"));
                }
            };
            has_begun = true;
            self.tell(by, nodes, &order).await?;
        }
        Err("the nodes do not come to rest".to_owned())
    }

    /// The next key, which is drawn if this node has none.
    fn accept(&self) -> KeyOrder {
        let next = self.keys.now().secrets.next.clone();
        KeyOrder::Accept { secret: next.map_or_else(|| fresh_secret().into_bytes(), |next| next.0) }
    }

    async fn ask_all(self: &Arc<Self>, by: u64) -> Result<BTreeMap<NodeId, Held>, String> {
        let nodes = self.options.nodes.keys();
        let asked =
            join_all(nodes.map(|node| async { Ok((*node, self.order(by, *node, &KeyOrder::Tell).await?)) }));
        asked.await.into_iter().collect()
    }

    /// Tells nodes a step, one after the other and this one first: it has what others are told then.
    async fn tell(
        self: &Arc<Self>,
        by: u64,
        mut nodes: BTreeSet<NodeId>,
        order: &KeyOrder,
    ) -> Result<(), String> {
        let first = nodes.take(&self.options.me);
        for node in first.into_iter().chain(nodes) {
            self.order(by, node, order).await?;
        }
        Ok(())
    }

    async fn order(self: &Arc<Self>, by: u64, node: NodeId, order: &KeyOrder) -> Result<Held, String> {
        let request = KeysRequest { by, order: order.clone() };
        let within = if matches!(order, KeyOrder::Release) { CALL_WITHIN } else { STEP_WITHIN };
        let name = self.options.policy.node_name(node);
        let answer = match self.addresses.get(&node) {
            None => self.on_keys(request).await,
            Some(address) => {
                let answer = Peer::new(address.clone()).call(&Request::Keys(request), within).await;
                match answer {
                    Ok(Response::Keys(held)) => Ok(held),
                    Ok(Response::Failed(reason)) => Err(reason),
                    Ok(_) => Err("it answers something else".to_owned()),
                    Err(error) => {
                        Err(format!("it does not answer ({error}), and no node may be left behind"))
                    }
                }
            }
        };
        answer.map_err(|reason| format!("{name}: {reason}"))
    }
}
