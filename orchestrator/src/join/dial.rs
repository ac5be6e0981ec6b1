//! The newcomer's end: finds the member of a token, makes sure that it is of the token's cluster, proves the key, and takes
//! what it is given.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use replicator::identity::CertificateError;
use replicator::welcome::{self, WELCOME_NAME};
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::invitations::prove;
use super::message::{Answer, Ask, BINDING_LABEL, Binding, Given, Reason};
use super::token::Token;
use crate::transport::message::{read_frame, write_frame};

/// How long a member may take to be found at one of its addresses.
const DIAL_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why a machine has not come in.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The member is not there.
    #[error(
        "nobody answers at {tried}: does the orchestrator of the member that made the token run, and can this machine \
         reach it? ({source})"
    )]
    Unreachable {
        /// Where it was looked for.
        tried: String,
        /// What the system said of the last.
        source: io::Error,
    },
    /// Somebody else is there.
    #[error(
        "who answers at {at} is not of the cluster that the token is from, or its keys were rotated since: make a new \
         token there. Nothing was told to it"
    )]
    Foreign {
        /// Where.
        at: SocketAddr,
    },
    /// It is of the cluster and does not do its part.
    #[error("the member at {at} broke off: {source}; make a new token and try again")]
    Broken {
        /// Where.
        at: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody was faster.
    #[error(
        "the token is used up: a machine has been let in with it already. If that was not yours, somebody else has the \
         cluster's secret now, and `holdfast cluster rotate-keys` makes that worthless; for another machine make another token"
    )]
    UsedUp,
    /// It is too late.
    #[error("the token has expired: make a new one on a member with: holdfast cluster token NODE")]
    Expired,
    /// It is of the cluster and has never made this token, or has forgotten it.
    #[error(
        "the member at {at} does not know the token: its orchestrator was restarted since, which takes tokens back; make \
         a new one"
    )]
    Unknown {
        /// Where.
        at: SocketAddr,
    },
    /// It has nothing to give.
    #[error("the member at {at} lets nobody in now: {reason}")]
    Member {
        /// Where.
        at: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// This machine cannot.
    #[error(transparent)]
    Tls(#[from] CertificateError),
    /// The system refused something.
    #[error("cannot begin to join: {0}")]
    System(io::Error),
}

/// Asks the member of `token` for what a node needs. The token is used up when this succeeds.
///
/// # Errors
/// If nothing was given.
pub fn join(token: &Token) -> Result<Given, JoinError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(JoinError::System)?.block_on(async {
        let (at, stream) = dial(token).await?;
        ask(token, at, stream).await
    })
}

async fn dial(token: &Token) -> Result<(SocketAddr, TcpStream), JoinError> {
    let mut source = io::Error::from(io::ErrorKind::NotFound);
    for at in &token.addresses {
        match timeout(DIAL_WITHIN, TcpStream::connect(at)).await {
            Ok(Ok(stream)) => return Ok((*at, stream)),
            Ok(Err(error)) => source = error,
            Err(_) => source = io::ErrorKind::TimedOut.into(),
        }
    }
    let tried: Vec<String> = token.addresses.iter().map(ToString::to_string).collect();
    Err(JoinError::Unreachable { tried: tried.join(" or "), source })
}

async fn ask(token: &Token, at: SocketAddr, stream: TcpStream) -> Result<Given, JoinError> {
    let connector = TlsConnector::from(welcome::newcomer(token.fingerprint)?);
    let name = ServerName::try_from(WELCOME_NAME).expect("letters and dots");
    let exchange = async {
        let mut stream = connector.connect(name, stream).await?;
        let proof = prove(&token.key, &binding(&stream)?);
        write_frame(&mut stream, &Ask::new(&proof)).await?;
        let answer: Answer = read_frame(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok::<_, io::Error>(answer)
    };
    let answer = timeout(ANSWER_WITHIN, exchange).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
    match answer.map_err(|source| failed(at, source))? {
        Answer::Given(given) => Ok(given),
        Answer::Refused(Reason::UsedUp) => Err(JoinError::UsedUp),
        Answer::Refused(Reason::Expired) => Err(JoinError::Expired),
        Answer::Refused(Reason::Unknown) => Err(JoinError::Unknown { at }),
        Answer::Refused(Reason::Member(reason)) => Err(JoinError::Member { at, reason }),
    }
}

fn binding(stream: &TlsStream<TcpStream>) -> io::Result<Binding> {
    let connection = stream.get_ref().1;
    connection.export_keying_material([0; 32], BINDING_LABEL, None).map_err(io::Error::other)
}

/// What an error on the way means.
fn failed(at: SocketAddr, source: io::Error) -> JoinError {
    let tls = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let speaks_no_tls = |error: &rustls::Error| matches!(error, rustls::Error::InvalidMessage(_));
    match tls {
        Some(error) if welcome::is_stranger(error) || speaks_no_tls(error) => JoinError::Foreign { at },
        _ => JoinError::Broken { at, source },
    }
}
