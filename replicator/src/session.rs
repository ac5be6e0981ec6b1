//! TLS 1.3 on one connection, between replicas or to an NBD client: bytes in, bytes out. No socket and no buffer of the ring is known here;
//! where bytes come from and go to is the caller's business.
//!
//! ```text
//! handshake --both have proven to be nodes--> open --the peer misbehaves--> (an error, the connection ends)
//! ```

use std::sync::Arc;

use replicator_core::units::NodeId;
use rustls::ServerConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{CertificateError, Error, InvalidMessage};
use thiserror::Error;
use webpki::EndEntityCert;

use crate::identity::{Identity, server_name};

/// What sealing may add, at most, to `bytes` in `pieces`: a header, a tag and a type for each record, and now and then a
/// message of TLS itself.
pub(crate) const fn sealed_bytes_max(bytes: usize, pieces: usize) -> usize {
    bytes + RECORD_OVERHEAD_BYTES * (bytes / RECORD_BYTES_MAX + pieces) + OWN_BYTES_MAX
}

/// The most that one record carries.
const RECORD_BYTES_MAX: usize = 16 << 10;
/// Its header, its tag, the type inside.
const RECORD_OVERHEAD_BYTES: usize = 5 + 16 + 1;
/// TLS's own messages between two pieces: a change of keys.
pub(crate) const OWN_BYTES_MAX: usize = 4 << 10;

/// Why a connection is not, or no longer, secure.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    /// It speaks something else.
    #[error("it does not speak TLS; `tls` must be the same in the configurations of all nodes")]
    Plain,
    /// Its certificate was made with another secret.
    #[error("it does not know the cluster's secret")]
    Authority,
    /// Its certificate is somebody else's.
    #[error("it is not the node that should be there, or of another incarnation of the cluster")]
    Name,
    /// It is a node of the cluster without a replica of this volume.
    #[error("it is none of the nodes that have a replica of this volume")]
    Stranger,
    /// Anything else.
    #[error("TLS: {0}")]
    Tls(Error),
}

impl From<Error> for SessionError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::Plain,
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
            | Error::AlertReceived(
                rustls::AlertDescription::UnknownCA | rustls::AlertDescription::DecryptError,
            ) => Self::Authority,
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => Self::Name,
            error => Self::Tls(error),
        }
    }
}

enum Connection {
    Dialer(UnbufferedClientConnection),
    Listener(UnbufferedServerConnection),
}

/// One end of one connection.
pub(crate) struct Session {
    connection: Connection,
    /// Records of TLS itself that are to be sent before anything else.
    said: Vec<u8>,
    is_open: bool,
}

/// What a step of the connection has come to.
enum Step {
    /// So many bytes that came in are done with; there may be more to do.
    On(usize),
    /// So many bytes that came in are done with; nothing more can be done before others come.
    Wait(usize),
}

impl Session {
    /// The dialing end of a connection to `peer`; it has something to say already.
    pub(crate) fn dial(identity: &Identity, peer: NodeId) -> Result<Self, SessionError> {
        let name = server_name(identity.incarnation, peer.0);
        let connection = UnbufferedClientConnection::new(identity.client.clone(), name)?;
        let mut session = Self::new(Connection::Dialer(connection));
        session.take_in(&mut [], |_| {})?;
        Ok(session)
    }

    /// The listening end.
    pub(crate) fn listen(identity: &Identity) -> Result<Self, SessionError> {
        Ok(Self::new(Connection::Listener(UnbufferedServerConnection::new(identity.server.clone())?)))
    }

    /// The end that serves clients, who prove to be whom `config` lets in.
    pub(crate) fn serve(config: Arc<ServerConfig>) -> Result<Self, SessionError> {
        Ok(Self::new(Connection::Listener(UnbufferedServerConnection::new(config)?)))
    }

    fn new(connection: Connection) -> Self {
        Self { connection, said: Vec::new(), is_open: false }
    }

    /// Whether the handshake is over, so that something can be said.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether TLS itself has something to send.
    pub(crate) fn has_to_say(&self) -> bool {
        !self.said.is_empty()
    }

    /// Takes in what came, from its beginning, and gives what it carried to `sink`. Returns how many bytes are done with;
    /// the rest is the beginning of a record. After an error there may be something to say: why.
    ///
    /// # Errors
    /// If the peer does not prove to be a node, or what came is not what it sent.
    pub(crate) fn take_in(
        &mut self,
        sealed: &mut [u8],
        mut sink: impl FnMut(&[u8]),
    ) -> Result<usize, SessionError> {
        let mut done = 0;
        loop {
            let rest = &mut sealed[done..];
            let step = match &mut self.connection {
                Connection::Dialer(dialer) => {
                    settle(dialer.process_tls_records(rest), &mut self.said, &mut sink)
                }
                Connection::Listener(listener) => {
                    settle(listener.process_tls_records(rest), &mut self.said, &mut sink)
                }
            };
            match step {
                Ok(Step::On(count)) => done += count,
                Ok(Step::Wait(count)) => {
                    self.is_open = !self.is_handshaking();
                    return Ok(done + count);
                }
                Err(error) => {
                    self.say_why();
                    return Err(error.into());
                }
            }
        }
    }

    fn is_handshaking(&self) -> bool {
        match &self.connection {
            Connection::Dialer(dialer) => dialer.is_handshaking(),
            Connection::Listener(listener) => listener.is_handshaking(),
        }
    }

    /// Has the alert that goes with an error said.
    fn say_why(&mut self) {
        let said = &mut self.said;
        // One step is enough for the one alert; that the connection has failed is known.
        let _ = match &mut self.connection {
            Connection::Dialer(dialer) => settle(dialer.process_tls_records(&mut []), said, &mut |_| {}),
            Connection::Listener(listener) => {
                settle(listener.process_tls_records(&mut []), said, &mut |_| {})
            }
        };
    }

    /// Which of `nodes` the other end has proven to be.
    ///
    /// # Errors
    /// If it is none of them.
    pub(crate) fn peer(
        &self,
        identity: &Identity,
        mut nodes: impl Iterator<Item = NodeId>,
    ) -> Result<NodeId, SessionError> {
        let certificates = match &self.connection {
            Connection::Dialer(dialer) => dialer.peer_certificates(),
            Connection::Listener(listener) => listener.peer_certificates(),
        };
        let certificate = certificates.and_then(<[_]>::first).ok_or(SessionError::Stranger)?;
        let certificate = EndEntityCert::try_from(certificate).map_err(|_| SessionError::Stranger)?;
        let is_its_name = |node: &NodeId| {
            let name = server_name(identity.incarnation, node.0);
            certificate.verify_is_valid_for_subject_name(&name).is_ok()
        };
        nodes.find(is_its_name).ok_or(SessionError::Stranger)
    }

    /// Moves what TLS itself has to say into `out`, as much as fits; returns how much that is.
    pub(crate) fn say(&mut self, out: &mut [u8]) -> usize {
        let count = self.said.len().min(out.len());
        out[..count].copy_from_slice(&self.said[..count]);
        self.said.drain(..count);
        count
    }

    /// Seals `plain` into `out`, which has room for [`sealed_bytes_max`]; returns how much of it is used. The session is
    /// open and has nothing else to say.
    pub(crate) fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> usize {
        assert!(self.is_open && self.said.is_empty(), "what TLS has to say goes first");
        match &mut self.connection {
            Connection::Dialer(dialer) => seal(dialer.process_tls_records(&mut []), plain, out),
            Connection::Listener(listener) => seal(listener.process_tls_records(&mut []), plain, out),
        }
    }
}

fn settle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    said: &mut Vec<u8>,
    sink: &mut impl FnMut(&[u8]),
) -> Result<Step, Error> {
    let mut done = status.discard;
    match status.state? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                done += record.discard;
                sink(record.payload);
            }
            Ok(Step::On(done))
        }
        ConnectionState::EncodeTlsData(mut encode) => {
            let at = said.len();
            if let Err(EncodeError::InsufficientSize(needed)) = encode.encode(&mut []) {
                said.resize(at + needed.required_size, 0);
                encode.encode(&mut said[at..]).expect("the room that was asked for");
            }
            Ok(Step::On(done))
        }
        ConnectionState::TransmitTlsData(transmit) => {
            // It is kept until it is sent, in its order.
            transmit.done();
            Ok(Step::On(done))
        }
        // The stream's own end is what counts.
        _ => Ok(Step::Wait(done)),
    }
}

fn seal<Data>(status: UnbufferedStatus<'_, '_, Data>, plain: &[u8], out: &mut [u8]) -> usize {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => {
            traffic.encrypt(plain, out).expect("there is room, and TLS 1.3 renews keys before they wear out")
        }
        other => panic!("an open session takes traffic, not {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Secret;
    use crate::secrets::Secrets;

    fn identity(secret: u8, incarnation: u64, node: u8) -> Identity {
        Identity::new(&Secrets::only(Secret(vec![secret; 32])), incarnation, node).unwrap()
    }

    /// Moves what `from` has to say to `to`, in pieces of at most `piece` bytes; whether there was anything.
    fn pass(from: &mut Session, to: &mut Session, piece: usize) -> Result<bool, SessionError> {
        let mut came = Vec::new();
        let mut passed = false;
        let mut out = vec![0; piece];
        while from.has_to_say() {
            let count = from.say(&mut out);
            came.extend_from_slice(&out[..count]);
            let done = to.take_in(&mut came, |_| panic!("nobody has said anything yet"))?;
            came.drain(..done);
            passed = true;
        }
        Ok(passed)
    }

    fn shake(dialer: &mut Session, listener: &mut Session, piece: usize) -> Result<(), SessionError> {
        while pass(dialer, listener, piece)? || pass(listener, dialer, piece)? {}
        Ok(())
    }

    fn pair(piece: usize) -> [Session; 2] {
        let mut dialer = Session::dial(&identity(7, 1, 0), NodeId(1)).unwrap();
        let mut listener = Session::listen(&identity(7, 1, 1)).unwrap();
        shake(&mut dialer, &mut listener, piece).unwrap();
        [dialer, listener]
    }

    #[test]
    fn what_one_end_seals_the_other_opens_however_it_is_cut() {
        for piece in [1, 7, 4096] {
            let [mut dialer, mut listener] = pair(piece);
            assert!(dialer.is_open() && listener.is_open(), "pieces of {piece} bytes");
            let plain: Vec<u8> = (0..40_000_u32).map(|index| (index % 251) as u8).collect();
            for (from, to) in [(0, 1), (1, 0)] {
                let ends = [&mut dialer, &mut listener];
                let mut out = vec![0; sealed_bytes_max(plain.len(), 1)];
                let count = ends[from].seal(&plain, &mut out);
                let (mut came, mut opened) = (Vec::new(), Vec::new());
                for piece in out[..count].chunks(piece.max(64)) {
                    came.extend_from_slice(piece);
                    let done = ends[to].take_in(&mut came, |bytes| opened.extend_from_slice(bytes)).unwrap();
                    came.drain(..done);
                }
                assert!(opened == plain && came.is_empty());
                assert!(
                    !out[..count].windows(64).any(|window| window == &plain[..64]),
                    "nothing of it is to be seen"
                );
            }
        }
    }

    #[test]
    fn each_end_knows_who_the_other_is() {
        let [dialer, listener] = pair(4096);
        let nodes = || [0, 1, 2].map(NodeId).into_iter();
        assert_eq!(dialer.peer(&identity(7, 1, 0), nodes()).unwrap(), NodeId(1));
        assert_eq!(listener.peer(&identity(7, 1, 1), nodes()).unwrap(), NodeId(0));
        let others = [NodeId(1), NodeId(2)].into_iter();
        assert!(matches!(listener.peer(&identity(7, 1, 1), others), Err(SessionError::Stranger)));
    }

    #[test]
    fn while_keys_are_rotated_nodes_of_neighbouring_stages_believe_each_other() {
        let secret = |byte| Secret(vec![byte; 32]);
        let stages = [
            Secrets::only(secret(7)),
            Secrets { own: secret(7), next: Some(secret(8)), old: None },
            Secrets { own: secret(8), next: None, old: Some(secret(7)) },
            Secrets::only(secret(8)),
        ];
        let meet = |one: &Secrets, other: &Secrets| {
            let mut dialer = Session::dial(&Identity::new(one, 1, 0).unwrap(), NodeId(1)).unwrap();
            let mut listener = Session::listen(&Identity::new(other, 1, 1).unwrap()).unwrap();
            let mut is_refused = false;
            for _ in 0..8 {
                is_refused |= pass(&mut dialer, &mut listener, 4096).is_err();
                is_refused |= pass(&mut listener, &mut dialer, 4096).is_err();
            }
            !is_refused && dialer.is_open() && listener.is_open()
        };
        for (one, stage) in stages.iter().enumerate() {
            for (other, its) in stages.iter().enumerate() {
                assert_eq!(meet(stage, its), one.abs_diff(other) < 2, "{one} and {other}");
            }
        }
    }

    #[test]
    fn who_does_not_know_the_secret_or_is_another_node_is_refused_and_told_why() {
        let mut dialer = Session::dial(&identity(8, 1, 0), NodeId(1)).unwrap();
        let mut listener = Session::listen(&identity(7, 1, 1)).unwrap();
        assert!(matches!(shake(&mut dialer, &mut listener, 4096), Err(SessionError::Authority)));
        assert!(
            matches!(pass(&mut dialer, &mut listener, 4096), Err(SessionError::Authority)),
            "the other end hears it"
        );

        for (incarnation, node) in [(1, 2), (2, 1)] {
            let mut dialer = Session::dial(&identity(7, 1, 0), NodeId(1)).unwrap();
            let mut listener = Session::listen(&identity(7, incarnation, node)).unwrap();
            assert!(matches!(shake(&mut dialer, &mut listener, 4096), Err(SessionError::Name)));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_sealed_message_ends_the_connection() {
        for byte in 0..60 {
            let [mut dialer, mut listener] = pair(4096);
            let mut out = vec![0; sealed_bytes_max(40, 1)];
            let count = dialer.seal(&[1; 40], &mut out);
            out[byte % count] ^= 1;
            let mut opened = Vec::new();
            let taken = listener.take_in(&mut out[..count], |bytes| opened.extend_from_slice(bytes));
            // The type and the version in a record's header are always the same: nobody looks at them.
            let is_idle = byte % count < 3;
            assert!(opened.is_empty() || (is_idle && opened == [1; 40]), "byte {byte}");
            // A length that was made greater waits for more than ever comes.
            assert!(taken.is_err() || is_idle || taken.is_ok_and(|done| done == 0), "byte {byte}");
        }
    }

    #[test]
    fn what_is_not_tls_is_called_so() {
        let mut listener = Session::listen(&identity(7, 1, 1)).unwrap();
        let mut plain = *b"HFhello1 and so on";
        assert!(matches!(listener.take_in(&mut plain, |_| {}), Err(SessionError::Plain)));
        for byte in 0..=255_u8 {
            let mut listener = Session::listen(&identity(7, 1, 1)).unwrap();
            // An error, or more is wanted; never a panic.
            let _ = listener.take_in(&mut [byte; 600], |_| panic!("nothing was said"));
        }
    }
}
