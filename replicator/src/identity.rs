//! The cluster's own authority, for all links between nodes: replication and orchestrators. Its key is derived from the
//! secret that all nodes share, so every node can make itself a certificate when it starts, and nobody without the
//! secret can. TLS 1.3 only, both ends prove who they are.

use std::sync::Arc;

use ::ring::hkdf::{HKDF_SHA256, Salt};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;

use crate::options::Secret;
use crate::secrets::Secrets;

/// What an Ed25519 private key begins with in PKCS#8, version 1: the 32 bytes of the seed follow.
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// What keys are drawn for: another purpose, another key.
const SALT: &[u8] = b"holdfast cluster 1";

/// Why there is no identity.
#[derive(Debug, Error)]
#[error("cannot make this node's certificate: {0}")]
pub struct CertificateError(pub(crate) String);

/// How this node proves itself and checks others.
#[derive(Clone)]
pub struct Identity {
    /// Number of the cluster's incarnation; it is part of every node's name.
    pub incarnation: u64,
    /// For the end that dials.
    pub client: Arc<ClientConfig>,
    /// For the end that listens.
    pub server: Arc<ServerConfig>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// A key of 32 bytes for one purpose.
#[must_use]
pub fn derive(secret: &Secret, purpose: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    let drawn = Salt::new(HKDF_SHA256, SALT).extract(&secret.0);
    let purpose = [purpose];
    let expanded = drawn.expand(&purpose, HKDF_SHA256).expect("one block is not too long");
    expanded.fill(&mut key).expect("one block is what was asked for");
    key
}

/// The name in a node's certificate.
fn name_of(incarnation: u64, node: u8) -> String {
    format!("n{node}.{incarnation}.holdfast.internal")
}

/// The name in a node's certificate, as the other end expects it.
#[must_use]
pub fn server_name(incarnation: u64, node: u8) -> ServerName<'static> {
    ServerName::try_from(name_of(incarnation, node)).expect("letters, digits and dots")
}

impl Identity {
    /// The identity of `node` in this incarnation of the cluster: it proves itself with the own secret, and believes who
    /// does with any that is accepted.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn new(secrets: &Secrets, incarnation: u64, node: u8) -> Result<Self, CertificateError> {
        let failed = |error: rcgen::Error| CertificateError(error.to_string());
        let name = name_of(incarnation, node);
        let Certificates { chain, key, .. } = make_certificates(&secrets.own, &name).map_err(failed)?;
        let authorities: Result<Vec<_>, rcgen::Error> =
            secrets.accepted().map(|secret| Ok(authority(secret)?.der().clone())).collect();
        let authorities = authorities.map_err(failed)?;
        let identity = || -> Result<Self, rustls::Error> {
            let mut roots = RootCertStore::empty();
            for authority in authorities {
                roots.add(authority)?;
            }
            let roots = Arc::new(roots);
            let provider = Arc::new(provider());
            let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(Arc::clone(&roots))
                .with_client_auth_cert(chain.clone(), key.clone_key())?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            let mut server = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain.clone(), key.clone_key())?;
            // Links are few and long: nothing is gained by resuming one, and nothing is to be kept of it.
            client.resumption = Resumption::disabled();
            server.send_tls13_tickets = 0;
            Ok(Self { incarnation, client: Arc::new(client), server: Arc::new(server) })
        };
        identity().map_err(|error| CertificateError(error.to_string()))
    }
}

/// The ciphers, the one that costs the least first.
pub(crate) fn provider() -> CryptoProvider {
    let cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    CryptoProvider { cipher_suites, ..default_provider() }
}

/// The PKCS#8 of the Ed25519 key with this seed.
pub(crate) fn pkcs8_of(seed: [u8; 32]) -> Vec<u8> {
    [&PKCS8_ED25519[..], &seed].concat()
}

/// What one process proves itself with, and by whose word.
pub(crate) struct Certificates {
    pub(crate) authority: CertificateDer<'static>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// The authority that the secret stands for.
fn authority(secret: &Secret) -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let key = PrivatePkcs8KeyDer::from(pkcs8_of(derive(secret, b"authority")));
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "holdfast cluster");
    CertifiedIssuer::self_signed(params, key)
}

/// A new certificate with this name, of the authority that the secret stands for.
pub(crate) fn make_certificates(secret: &Secret, name: &str) -> Result<Certificates, rcgen::Error> {
    let authority = authority(secret)?;
    let own = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&own, &authority)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der()));
    let (authority, chain) = (authority.der().clone(), vec![certificate.der().clone()]);
    Ok(Certificates { authority, chain, key })
}
