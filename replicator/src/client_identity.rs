//! Who may be a client from outside over TCP: of NBD, or of what operators ask and tell the orchestrators. Each has an
//! authority of its own beside the nodes', whose key is drawn from the cluster's secret, too. A certificate of one is of no
//! use for the other, nor between nodes, nor a node's for a client.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;

use crate::identity::{CertificateError, derive, pkcs8_of, provider};
use crate::options::Secret;
use crate::secrets::Secrets;

/// Whose certificates are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// Those of NBD clients.
    NbdClients,
    /// Those of operators.
    Operators,
}

impl Authority {
    /// What the authority's key is drawn for.
    fn purpose(self) -> &'static [u8] {
        match self {
            Self::NbdClients => b"nbd clients authority",
            Self::Operators => b"operators authority",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::NbdClients => "holdfast NBD clients",
            Self::Operators => "holdfast operators",
        }
    }
}

/// The names under which libnbd, and so nbdkit's and nbd-client's users, expect the files of a client.
const AUTHORITY_FILE: &str = "ca-cert.pem";
const CERTIFICATE_FILE: &str = "client-cert.pem";
const KEY_FILE: &str = "client-key.pem";

/// What a client proves itself with, and how it knows the cluster.
pub struct ClientFiles {
    authority: String,
    certificate: String,
    key: String,
}

/// Why a client has no identity.
#[derive(Debug, Error)]
pub enum ClientIdentityError {
    /// A file is missing or is no PEM.
    #[error("cannot read {path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The files do not go together.
    #[error("the certificate is not usable: {0}")]
    Unusable(#[from] rustls::Error),
}

fn issuer(secret: &Secret, of: Authority) -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let key = PrivatePkcs8KeyDer::from(pkcs8_of(derive(secret, of.purpose())));
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, of.name());
    CertifiedIssuer::self_signed(params, key)
}

/// The authorities of all secrets that are accepted.
fn authorities(
    secrets: &Secrets,
    of: Authority,
) -> Result<Vec<CertifiedIssuer<'static, KeyPair>>, rcgen::Error> {
    secrets.accepted().map(|secret| issuer(secret, of)).collect()
}

/// A certificate for one purpose, and its key.
fn issue(
    authority: &CertifiedIssuer<'static, KeyPair>,
    common_name: &str,
    addresses: &[String],
    purpose: ExtendedKeyUsagePurpose,
) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
    // GnuTLS does not read an Ed25519 key with the public one beside it, as it is made here.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(addresses)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok((params.signed_by(&key, authority)?, key))
}

/// How a listener proves itself and checks clients. `addresses` are the names and addresses under which clients find it.
/// While keys are rotated it is known by the old ones, and believes who has a certificate of the old or of the new.
///
/// # Errors
/// If the system gives no random numbers, or an address is no name.
pub fn listener(
    secrets: &Secrets,
    of: Authority,
    node: &str,
    addresses: &[String],
) -> Result<Arc<ServerConfig>, CertificateError> {
    let make = || -> Result<_, rcgen::Error> {
        let authority = issuer(secrets.known_to_clients(), of)?;
        let (certificate, key) = issue(&authority, node, addresses, ExtendedKeyUsagePurpose::ServerAuth)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((authorities(secrets, of)?, certificate.der().clone(), key))
    };
    let (accepted, certificate, key) = make().map_err(|error| CertificateError(error.to_string()))?;
    let configure = || -> Result<_, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for authority in accepted {
            roots.add(authority.der().clone())?;
        }
        let provider = Arc::new(provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)?;
        // Connections are few and long.
        server.send_tls13_tickets = 0;
        Ok(Arc::new(server))
    };
    configure().map_err(|error| CertificateError(error.to_string()))
}

impl ClientFiles {
    /// A new certificate for a client called `name`.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn issue(secrets: &Secrets, of: Authority, name: &str) -> Result<Self, CertificateError> {
        let make = || -> Result<_, rcgen::Error> {
            let authority = issuer(&secrets.own, of)?;
            let (certificate, key) = issue(&authority, name, &[], ExtendedKeyUsagePurpose::ClientAuth)?;
            // Listeners are known by the old one while keys are rotated, and by the new one afterwards.
            let known = authorities(secrets, of)?.iter().map(|authority| authority.pem()).collect();
            Ok(Self { authority: known, certificate: certificate.pem(), key: key.serialize_pem() })
        };
        make().map_err(|error| CertificateError(error.to_string()))
    }

    /// Writes them into `folder`, which is made if it is not there. Only their owner may read the key. Nothing that is
    /// there is overwritten.
    ///
    /// # Errors
    /// If one of them is there, or cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let files =
            [(AUTHORITY_FILE, &self.authority), (CERTIFICATE_FILE, &self.certificate), (KEY_FILE, &self.key)];
        for (name, text) in files {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(folder.join(name))?;
            file.write_all(text.as_bytes())?;
        }
        Ok(())
    }
}

/// What an NBD client uses that was given the files in `folder`.
///
/// # Errors
/// If they are not there, or do not go together.
pub fn dialer(folder: &Path) -> Result<Arc<ClientConfig>, ClientIdentityError> {
    let failed = |path: &Path, reason: &dyn std::fmt::Display| ClientIdentityError::File {
        path: path.display().to_string(),
        reason: reason.to_string(),
    };
    let certificate = |name: &str| {
        let path = folder.join(name);
        CertificateDer::from_pem_file(&path).map_err(|error| failed(&path, &error))
    };
    let mut roots = RootCertStore::empty();
    let path = folder.join(AUTHORITY_FILE);
    // More than one in a file that was made while keys were rotated.
    let authorities = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    for authority in authorities.map_err(|error| failed(&path, &error))? {
        roots.add(authority)?;
    }
    let path = folder.join(KEY_FILE);
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|error| failed(&path, &error))?;
    let mut client = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate(CERTIFICATE_FILE)?], key)?;
    client.resumption = Resumption::disabled();
    Ok(Arc::new(client))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;

    use super::*;
    use crate::session::{Session, SessionError};

    fn secret(byte: u8) -> Secrets {
        Secrets::only(Secret(vec![byte; 32]))
    }

    /// Runs the handshake of a client that was given `files` with the listener of `secret`, called `address`.
    fn shake(files: &Path, address: &str, secrets: &Secrets) -> Result<(), SessionError> {
        let server =
            listener(secrets, Authority::NbdClients, "a", &["10.0.0.1".to_owned(), "a".to_owned()]).unwrap();
        let name = ServerName::try_from(address.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(dialer(files).unwrap(), name).unwrap();
        let mut session = Session::serve(server)?;
        for _ in 0..8 {
            let mut sealed = Vec::new();
            client.write_tls(&mut sealed).unwrap();
            session.take_in(&mut sealed, |_| {})?;
            let mut said = vec![0; 64 << 10];
            let len = session.say(&mut said);
            client.read_tls(&mut &said[..len]).unwrap();
            client.process_new_packets()?;
        }
        assert!(session.is_open() && !client.is_handshaking());
        Ok(())
    }

    #[test]
    fn a_client_of_the_cluster_is_let_in_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, others) = (folder.path().join("ours"), folder.path().join("others"));
        ClientFiles::issue(&secret(1), Authority::NbdClients, "db1").unwrap().write(&ours).unwrap();
        ClientFiles::issue(&secret(2), Authority::NbdClients, "db1").unwrap().write(&others).unwrap();
        shake(&ours, "10.0.0.1", &secret(1)).unwrap();
        shake(&ours, "a", &secret(1)).unwrap();
        // Whoever answers must be who was called.
        assert!(shake(&ours, "10.0.0.2", &secret(1)).is_err());
        assert!(shake(&others, "10.0.0.1", &secret(1)).is_err());
        // A client that trusts the authority with a certificate of another one.
        std::fs::copy(ours.join(AUTHORITY_FILE), others.join(AUTHORITY_FILE)).unwrap();
        assert!(shake(&others, "10.0.0.1", &secret(1)).is_err());
    }

    #[test]
    fn clients_of_old_and_new_keys_come_in_until_the_old_ones_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let old = secret(1);
        let both = Secrets { own: secret(2).own, next: None, old: Some(old.own.clone()) };
        let issue = |secrets: &Secrets, name: &str| {
            let files = folder.path().join(name);
            ClientFiles::issue(secrets, Authority::NbdClients, "db1").unwrap().write(&files).unwrap();
            files
        };
        let (before, meanwhile) = (issue(&old, "before"), issue(&both, "meanwhile"));
        let accepting = Secrets { own: old.own.clone(), next: Some(secret(2).own), old: None };
        for stage in [&old, &accepting, &both] {
            shake(&before, "a", stage).unwrap();
        }
        shake(&meanwhile, "a", &both).unwrap();
        shake(&meanwhile, "a", &secret(2)).unwrap();
        assert!(shake(&before, "a", &secret(2)).is_err(), "an old certificate is good for ever");
    }

    #[test]
    fn an_operator_is_no_nbd_client() {
        let folder = tempfile::tempdir().unwrap();
        let (client, operator) = (folder.path().join("client"), folder.path().join("operator"));
        ClientFiles::issue(&secret(1), Authority::NbdClients, "db1").unwrap().write(&client).unwrap();
        ClientFiles::issue(&secret(1), Authority::Operators, "db1").unwrap().write(&operator).unwrap();
        // Also not one that trusts the other authority.
        std::fs::copy(client.join(AUTHORITY_FILE), operator.join(AUTHORITY_FILE)).unwrap();
        assert!(shake(&operator, "a", &secret(1)).is_err());
    }

    #[test]
    fn a_node_s_certificate_is_no_client_s() {
        let nodes = crate::identity::Identity::new(&secret(1), 1, 0).unwrap();
        let server = listener(&secret(1), Authority::NbdClients, "a", &["a".to_owned()]).unwrap();
        let name = ServerName::try_from("a").unwrap();
        let mut client = rustls::ClientConnection::new(nodes.client, name).unwrap();
        let mut session = Session::serve(server).unwrap();
        let mut sealed = Vec::new();
        client.write_tls(&mut sealed).unwrap();
        session.take_in(&mut sealed, |_| {}).unwrap();
        let mut said = vec![0; 64 << 10];
        let len = session.say(&mut said);
        client.read_tls(&mut &said[..len]).unwrap();
        assert!(client.process_new_packets().is_err(), "nodes do not trust the clients' authority");
    }

    #[test]
    fn nothing_is_overwritten_and_the_key_is_the_owner_s() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let files = ClientFiles::issue(&secret(1), Authority::NbdClients, "db1").unwrap();
        files.write(folder.path()).unwrap();
        let key = std::fs::metadata(folder.path().join(KEY_FILE)).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        assert_eq!(files.write(folder.path()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
