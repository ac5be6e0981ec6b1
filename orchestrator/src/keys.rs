//! This node's keys while it runs: everything that proves or checks takes them from here, so that a rotation reaches all of
//! it at once. Which secret is used when is `rotation`'s.

use std::sync::Arc;

use orchestrator_core::units::NodeId;
use replicator::client_identity::{self, Authority};
use replicator::config::SecretFiles;
use replicator::identity::{CertificateError, Identity, derive};
use replicator::options::Secret;
use replicator::secrets::Secrets;
use replicator::welcome;
use ring::hmac;
use rustls::ServerConfig;
use tokio::sync::watch;

/// Everything that is made of the secrets as they are at one time.
pub(crate) struct KeySet {
    pub(crate) secrets: Secrets,
    /// To nodes.
    pub(crate) identity: Identity,
    /// To newcomers.
    pub(crate) welcoming: Arc<ServerConfig>,
    /// To operators who come over TCP, if they may.
    pub(crate) operators: Option<Arc<ServerConfig>>,
    /// How many times a key has been dropped since the process began. No connection that was made before may go on.
    pub(crate) drops: u64,
    /// Of heartbeats: those that are accepted, the own first.
    heartbeats: Vec<hmac::Key>,
}

/// The newest keys, for all who use them.
pub(crate) type Keys = watch::Receiver<Arc<KeySet>>;

/// By which names a node is found by operators.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) node: String,
    pub(crate) addresses: Vec<String>,
}

/// The keys, and where they are kept.
pub(crate) struct KeyStore {
    me: NodeId,
    incarnation: u64,
    names: Option<Names>,
    /// `None` if the secret stands in the configuration itself, where nobody changes it.
    pub(crate) files: Option<SecretFiles>,
    current: watch::Sender<Arc<KeySet>>,
}

impl KeySet {
    pub(crate) fn new(
        secrets: Secrets,
        incarnation: u64,
        me: NodeId,
        names: Option<&Names>,
    ) -> Result<Self, CertificateError> {
        let heartbeat = |secret: &Secret| hmac::Key::new(hmac::HMAC_SHA256, &derive(secret, b"heartbeat"));
        let operators = |names: &Names| {
            client_identity::listener(&secrets, Authority::Operators, &names.node, &names.addresses)
        };
        Ok(Self {
            identity: Identity::new(&secrets, incarnation, me.0)?,
            welcoming: welcome::welcoming(&secrets.own)?,
            operators: names.map(operators).transpose()?,
            drops: 0,
            heartbeats: secrets.accepted().map(heartbeat).collect(),
            secrets,
        })
    }

    /// What goes behind a heartbeat.
    pub(crate) fn sign(&self, heartbeat: &[u8]) -> hmac::Tag {
        hmac::sign(&self.heartbeats[0], heartbeat)
    }

    /// Whether a node of the cluster has said this.
    pub(crate) fn verify(&self, heartbeat: &[u8], tag: &[u8]) -> bool {
        self.heartbeats.iter().any(|key| hmac::verify(key, heartbeat, tag).is_ok())
    }
}

impl KeyStore {
    pub(crate) fn new(
        secrets: Secrets,
        files: Option<SecretFiles>,
        incarnation: u64,
        me: NodeId,
        names: Option<Names>,
    ) -> Result<Self, CertificateError> {
        let keys = KeySet::new(secrets, incarnation, me, names.as_ref())?;
        Ok(Self { me, incarnation, names, files, current: watch::Sender::new(Arc::new(keys)) })
    }

    /// The newest keys, and to be told of newer ones.
    pub(crate) fn watch(&self) -> Keys {
        self.current.subscribe()
    }

    /// The newest keys.
    pub(crate) fn now(&self) -> Arc<KeySet> {
        Arc::clone(&self.current.borrow())
    }

    /// Everything here uses and accepts these from now on.
    pub(crate) fn take_over(&self, secrets: Secrets) -> Result<(), CertificateError> {
        let before = self.now();
        let is_kept = |secret: &Secret| secrets.accepted().any(|accepted| accepted == secret);
        let has_dropped = !before.secrets.accepted().all(is_kept);
        let drops = before.drops + u64::from(has_dropped);
        let keys = KeySet::new(secrets, self.incarnation, self.me, self.names.as_ref())?;
        self.current.send_replace(Arc::new(KeySet { drops, ..keys }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_end_when_a_key_is_dropped_and_not_before() {
        let secret = |byte| Secret(vec![byte; 32]);
        let only = Secrets::only(secret(1));
        let store = KeyStore::new(only, None, 1, NodeId(0), None).unwrap();
        let drops = |secrets: Secrets| {
            store.take_over(secrets).unwrap();
            store.now().drops
        };
        assert_eq!(drops(Secrets { own: secret(1), next: Some(secret(2)), old: None }), 0);
        assert_eq!(drops(Secrets { own: secret(2), next: None, old: Some(secret(1)) }), 0);
        assert_eq!(drops(Secrets::only(secret(2))), 1);
        assert_eq!(drops(Secrets::only(secret(2))), 1);
    }
}
