//! What the connections of one volume prove themselves with and are checked by, made of the cluster's secrets. It is made on
//! whatever thread has the time, and taken over by the reactor as a whole.

use std::sync::Arc;

use rustls::ServerConfig;

use crate::client_identity::{self, Authority};
use crate::identity::{CertificateError, Identity};
use crate::options::VolumeOptions;
use crate::secrets::Secrets;

/// The keys of one volume's connections.
pub(crate) struct Keyring {
    pub(crate) secrets: Secrets,
    /// What TLS with peers is spoken with, if it is.
    pub(crate) identity: Option<Identity>,
    /// What TLS with NBD clients is, if it is.
    pub(crate) nbd_tls: Option<Arc<ServerConfig>>,
}

impl Keyring {
    /// The keys that go with these options.
    pub(crate) fn new(options: &VolumeOptions) -> Result<Self, CertificateError> {
        let (core, secrets) = (&options.core, &options.secrets);
        let identity = || Identity::new(secrets, core.incarnation.0, core.node.0);
        let listener = || {
            let (name, names) = (&options.node_name, &options.nbd_names);
            client_identity::listener(secrets, Authority::NbdClients, name, names)
        };
        Ok(Self {
            secrets: secrets.clone(),
            identity: options.tls.then(identity).transpose()?,
            nbd_tls: options.nbd_tls.then(listener).transpose()?,
        })
    }
}
