//! A connection to another orchestrator: dialed when it is first needed, dropped at the first error.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use orchestrator_core::units::NodeId;
use replicator::identity::{Identity, server_name};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::message::{Hello, Request, Response, read_frame, write_frame};

/// Whom to dial, and as whom.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) me: NodeId,
    pub(crate) node: NodeId,
    pub(crate) at: SocketAddr,
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
        // Taken out, so that a call that is dropped half-way leaves no stream with half an answer in it.
        let stream = self.stream.take();
        let exchange = async {
            let mut stream = match stream {
                Some(stream) => stream,
                None => self.address.dial().await?,
            };
            write_frame(&mut stream, request).await?;
            let answer = read_frame(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok::<_, io::Error>((stream, answer))
        };
        let (stream, answer) = match timeout(within, exchange).await {
            Ok(result) => result?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        self.stream = Some(stream);
        Ok(answer)
    }
}

impl Address {
    async fn dial(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.at).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(self.identity.client.clone());
        let mut stream = connector.connect(server_name(self.incarnation, self.node.0), stream).await?;
        write_frame(&mut stream, &Hello { node: self.me }).await?;
        Ok(stream)
    }
}
