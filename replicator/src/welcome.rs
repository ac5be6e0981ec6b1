//! TLS with a machine that is no node yet: it has no certificate, and knows the cluster by the fingerprint of its authority,
//! from a token. Whoever answers proves to be of that authority before the newcomer says anything. What a newcomer must
//! prove, and what it is given, is the orchestrator's.

use std::sync::Arc;

use ::ring::digest::{SHA256, digest};
use rustls::client::Resumption;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError as Refused, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, RootCertStore,
    ServerConfig, SignatureScheme,
};

use crate::identity::{CertificateError, Certificates, make_certificates, provider};
use crate::options::Secret;

/// The name that a newcomer asks for, and that no node has.
pub const WELCOME_NAME: &str = "join.holdfast.internal";

/// What a cluster's authority is known by: SHA-256 of its public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

/// The fingerprint of the authority that is drawn from this secret.
///
/// # Errors
/// If there is no such authority.
pub fn fingerprint(secret: &Secret) -> Result<Fingerprint, CertificateError> {
    let made =
        make_certificates(secret, WELCOME_NAME).map_err(|error| CertificateError(error.to_string()))?;
    fingerprint_of(&made.authority).ok_or_else(|| CertificateError("its authority is none".to_owned()))
}

fn fingerprint_of(authority: &CertificateDer<'_>) -> Option<Fingerprint> {
    let anchor = webpki::anchor_from_trusted_cert(authority).ok()?;
    let hash = digest(&SHA256, &anchor.subject_public_key_info);
    hash.as_ref().try_into().ok().map(Fingerprint)
}

/// For the end that welcomes: it proves itself and asks for no certificate.
///
/// # Errors
/// If the system gives no random numbers.
pub fn welcoming(secret: &Secret) -> Result<Arc<ServerConfig>, CertificateError> {
    let made =
        make_certificates(secret, WELCOME_NAME).map_err(|error| CertificateError(error.to_string()))?;
    let Certificates { authority, mut chain, key } = made;
    // The newcomer knows the authority by its fingerprint alone.
    chain.push(authority);
    let configure = || -> Result<_, Error> {
        let mut server = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        server.send_tls13_tickets = 0;
        Ok(Arc::new(server))
    };
    configure().map_err(|error| CertificateError(error.to_string()))
}

/// For the newcomer: whoever answers must be of the authority with this fingerprint.
///
/// # Errors
/// If the ciphers cannot be used.
pub fn newcomer(fingerprint: Fingerprint) -> Result<Arc<ClientConfig>, CertificateError> {
    let provider = Arc::new(provider());
    let verifier = Pinned { fingerprint, provider: Arc::clone(&provider) };
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| CertificateError(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    client.resumption = Resumption::disabled();
    Ok(Arc::new(client))
}

/// Whether this is how a handshake ends with somebody of another authority.
#[must_use]
pub fn is_stranger(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(Refused::UnknownIssuer | Refused::BadSignature))
}

/// Takes for the authority what has the fingerprint, and then checks as always.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_it = |certificate: &&CertificateDer<'_>| fingerprint_of(certificate) == Some(self.fingerprint);
        let authority = intermediates.iter().find(is_it).ok_or(Refused::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::secrets::Secrets;

    fn secret(byte: u8) -> Secret {
        Secret(vec![byte; 32])
    }

    /// Runs the handshake of a newcomer that trusts `fingerprint`; what both ends then draw from the connection.
    fn shake(server: Arc<ServerConfig>, fingerprint: Fingerprint) -> Result<[[u8; 32]; 2], Error> {
        let name = ServerName::try_from(WELCOME_NAME).unwrap();
        let mut client = rustls::ClientConnection::new(newcomer(fingerprint).unwrap(), name).unwrap();
        let mut server = rustls::ServerConnection::new(server).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut sealed = Vec::new();
            client.write_tls(&mut sealed).unwrap();
            server.read_tls(&mut sealed.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut sealed = Vec::new();
            server.write_tls(&mut sealed).unwrap();
            client.read_tls(&mut sealed.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok([
            client.export_keying_material([0; 32], b"test", None)?,
            server.export_keying_material([0; 32], b"test", None)?,
        ])
    }

    #[test]
    fn the_cluster_of_the_fingerprint_is_believed_and_no_other() {
        let of = |byte| fingerprint(&secret(byte)).unwrap();
        let [client, server] = shake(welcoming(&secret(1)).unwrap(), of(1)).unwrap();
        assert_eq!(client, server);
        let refused = shake(welcoming(&secret(2)).unwrap(), of(1)).unwrap_err();
        assert!(is_stranger(&refused), "{refused}");
    }

    #[test]
    fn every_process_draws_the_same_fingerprint() {
        assert_eq!(fingerprint(&secret(1)).unwrap(), fingerprint(&secret(1)).unwrap());
        assert_ne!(fingerprint(&secret(1)).unwrap(), fingerprint(&secret(2)).unwrap());
    }

    #[test]
    fn the_authority_beside_somebody_else_s_certificate_proves_nothing() {
        let stolen = make_certificates(&secret(1), WELCOME_NAME).unwrap().authority;
        let mut own = make_certificates(&secret(2), WELCOME_NAME).unwrap();
        own.chain.push(stolen);
        let server = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(own.chain, own.key)
            .unwrap();
        let refused = shake(Arc::new(server), fingerprint(&secret(1)).unwrap()).unwrap_err();
        assert!(is_stranger(&refused), "{refused}");
    }

    #[test]
    fn a_newcomer_is_no_node() {
        let node = Identity::new(&Secrets::only(secret(1)), 1, 0).unwrap().server;
        assert!(shake(node, fingerprint(&secret(1)).unwrap()).is_err());
    }
}
