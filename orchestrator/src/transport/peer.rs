//! A connection to another orchestrator: dialed when it is first needed, dropped at the first error, and when the node is
//! better reached over another link.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use orchestrator_core::units::NodeId;
use replicator::identity::{Identity, server_name};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::message::{Hello, Request, Response, read_frame, write_frame};

/// Whom to dial, and as whom.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) me: NodeId,
    pub(crate) node: NodeId,
    /// Its address on each link.
    pub(crate) at: Vec<SocketAddr>,
    /// The link over which it is best reached, as its heartbeats say.
    pub(crate) link: watch::Receiver<usize>,
    pub(crate) incarnation: u64,
    pub(crate) identity: Identity,
}

/// A connection, or the place for one.
pub(crate) struct Peer {
    address: Address,
    stream: Option<TlsStream<TcpStream>>,
}

impl Peer {
    pub(crate) fn new(address: Address) -> Self {
        Self { address, stream: None }
    }

    /// Asks something. After an error the next call dials anew.
    pub(crate) async fn call(&mut self, request: &Request, within: Duration) -> io::Result<Response> {
        let mut link = self.address.link.clone();
        let is_left = self.address.link.has_changed().unwrap_or(false);
        let at = *self.address.link.borrow_and_update();
        // Taken out, so that a call that is dropped half-way leaves no stream with half an answer in it.
        let stream = self.stream.take().filter(|_| !is_left);
        let address = &self.address;
        let exchange = async {
            let mut stream = match stream {
                Some(stream) => stream,
                None => address.dial(at).await?,
            };
            write_frame(&mut stream, request).await?;
            let answer = read_frame(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok::<_, io::Error>((stream, answer))
        };
        let left = async {
            // Whoever watches the links ends when this process does.
            if link.wait_for(|link| *link != at).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let (stream, answer) = tokio::select! {
            result = timeout(within, exchange) => match result {
                Ok(result) => result?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            },
            // No answer will come over a link that is lost.
            () = left => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        self.stream = Some(stream);
        Ok(answer)
    }
}

impl Address {
    async fn dial(&self, link: usize) -> io::Result<TlsStream<TcpStream>> {
        let at = self.at.get(link).or(self.at.first()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let stream = TcpStream::connect(at).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(self.identity.client.clone());
        let mut stream = connector.connect(server_name(self.incarnation, self.node.0), stream).await?;
        write_frame(&mut stream, &Hello { node: self.me }).await?;
        Ok(stream)
    }
}
