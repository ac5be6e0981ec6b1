//! Machines that are no nodes yet: one is invited by an operator here, and given the configuration and the secret when it
//! proves to be the one. A part of the running orchestrator.

use std::path::Path;
use std::sync::MutexGuard;

use orchestrator_core::units::Instant;
use replicator::config::{Cluster, WithSecret, load};
use replicator::identity::CertificateError;
use replicator::welcome;

use super::Orchestrator;
use crate::clock::now;
use crate::join::{Answer, Ask, Binding, Given, Invitations, OneTimeKey, Reason, Token};

impl Orchestrator {
    /// A token with which one machine may come in as `node`, for so long.
    ///
    /// # Errors
    /// If the cluster has no authority.
    pub(crate) fn invite(&self, node: &str, valid_ms: u64) -> Result<Token, CertificateError> {
        let fingerprint = welcome::fingerprint(&self.keys.now().secrets.own)?;
        let key = OneTimeKey(crate::random());
        let until = Instant(now().0.saturating_add(valid_ms));
        self.invitations().invite(node, &key, until);
        Ok(Token::new(self.options.nodes[&self.options.me].clone(), fingerprint, key))
    }

    fn invitations(&self) -> MutexGuard<'_, Invitations> {
        self.invitations.lock().expect("nobody panics with the list in hand")
    }

    pub(super) async fn on_newcomer(&self, binding: Binding, ask: &Ask) -> Answer {
        let admitted = self.invitations().admit(&binding, &ask.proof(), now());
        let node = match admitted {
            Ok(node) => node,
            Err(reason) => return Answer::Refused(reason),
        };
        match self.configuration().await.and_then(|(text, cluster)| self.give(node, text, &cluster)) {
            Ok(given) => Answer::Given(given),
            Err(reason) => Answer::Refused(Reason::Member(reason)),
        }
    }

    fn give(&self, node: String, configuration: String, cluster: &Cluster) -> Result<Given, String> {
        cluster.node(&node).map_err(|error| error.to_string())?;
        let secrets = &self.keys.now().secrets;
        if secrets.is_rotating() {
            return Err("the cluster's keys are being rotated; make a new token when that is over".to_owned());
        }
        self.mind().remember(format!("a machine has come in as {node}"));
        let options = &self.options;
        let by = options.policy.node_name(options.me);
        let secret = cluster.secret_file.is_some().then_some(secrets.own.0.as_slice());
        Ok(Given::new(cluster.name.clone(), node, by, configuration, secret))
    }

    /// The configuration file as it is now, and what it says.
    pub(crate) async fn configuration(&self) -> Result<(String, Cluster), String> {
        let path = self.options.configuration.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        read.unwrap_or_else(|_| Err("its configuration cannot be read now".to_owned()))
    }
}

fn read(path: &Path) -> Result<(String, Cluster), String> {
    let loaded =
        load(path, WithSecret::No).map_err(|error| format!("its configuration is not sound: {error}"))?;
    let text = std::fs::read_to_string(path);
    Ok((text.map_err(|error| format!("its configuration cannot be read: {error}"))?, loaded.cluster))
}
