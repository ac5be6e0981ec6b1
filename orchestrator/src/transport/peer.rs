//! A connection to another orchestrator: dialed when it is first needed, dropped at the first error, and when the node is
//! better reached over another link. A call that gives up while the connection is being made leaves that to the next one:
//! calls may have less time than a handshake takes, and would never get through.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::units::NodeId;
use replicator::identity::server_name;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::message::{Hello, Request, Response, read_frame, write_frame};
use crate::keys::Keys;

/// How long a connection may take to be made. The first packet to a machine that was away for a moment is sent again after
/// a second, so another attempt is better than patience.
const DIAL_WITHIN: Duration = Duration::from_secs(1);

/// Whom to dial, and as whom.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) me: NodeId,
    pub(crate) node: NodeId,
    /// Its address on each link.
    pub(crate) at: Vec<SocketAddr>,
    /// The link over which it is best reached, as its heartbeats say.
    pub(crate) link: watch::Receiver<usize>,
    pub(crate) keys: Keys,
}

/// A connection, or the place for one.
pub(crate) struct Peer {
    address: Address,
    connection: Option<Connection>,
    dialing: Option<Dialing>,
    dial_within: Duration,
}

/// One that was made.
struct Connection {
    stream: TlsStream<TcpStream>,
    /// How many keys had been dropped then: no connection outlasts a key.
    drops: u64,
}

/// A connection that is being made. It is given up with this.
struct Dialing(JoinHandle<io::Result<Connection>>);

impl Dialing {
    fn begin(address: Address, link: usize, within: Duration) -> Self {
        Self(tokio::spawn(async move {
            timeout(within, address.dial(link)).await.map_err(|_| io::ErrorKind::TimedOut)?
        }))
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Peer {
    pub(crate) fn new(address: Address) -> Self {
        Self { address, connection: None, dialing: None, dial_within: DIAL_WITHIN }
    }

    /// Asks something. After an error the next call dials anew.
    pub(crate) async fn call(&mut self, request: &Request, within: Duration) -> io::Result<Response> {
        let mut link = self.address.link.clone();
        let is_left = self.address.link.has_changed().unwrap_or(false);
        let drops = self.address.keys.borrow().drops;
        let at = *self.address.link.borrow_and_update();
        // Taken out, so that a call that is dropped half-way leaves no stream with half an answer in it.
        let connection = self.connection.take().filter(|made| !is_left && made.drops == drops);
        if is_left {
            self.dialing = None;
        }
        let (address, dialing, dial_within) = (&self.address, &mut self.dialing, self.dial_within);
        let exchange = async {
            let mut connection = match connection {
                Some(connection) => connection,
                None => {
                    let task =
                        dialing.get_or_insert_with(|| Dialing::begin(address.clone(), at, dial_within));
                    let dialed = (&mut task.0).await;
                    *dialing = None;
                    dialed.map_err(io::Error::other)??
                }
            };
            let stream = &mut connection.stream;
            write_frame(stream, request).await?;
            let answer = read_frame(stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok::<_, io::Error>((connection, answer))
        };
        let left = async {
            // Whoever watches the links ends when this process does.
            if link.wait_for(|link| *link != at).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let (connection, answer) = tokio::select! {
            result = timeout(within, exchange) => match result {
                Ok(result) => result?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            },
            // No answer will come over a link that is lost.
            () = left => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        self.connection = Some(connection);
        Ok(answer)
    }
}

impl Address {
    async fn dial(&self, link: usize) -> io::Result<Connection> {
        let keys = Arc::clone(&self.keys.borrow());
        let at = self.at.get(link).or(self.at.first()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let stream = TcpStream::connect(at).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&keys.identity.client));
        let name = server_name(keys.identity.incarnation, self.node.0);
        let mut stream = connector.connect(name, stream).await?;
        write_frame(&mut stream, &Hello { node: self.me }).await?;
        Ok(Connection { stream, drops: keys.drops })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use replicator::options::Secret;
    use replicator::secrets::Secrets;
    use tokio::net::TcpListener;
    use tokio::sync::Notify;

    use super::super::server::{Handler, serve};
    use super::*;
    use crate::join::{Answer, Ask, Binding, Reason};
    use crate::keys::KeyStore;

    struct Empty;

    impl Handler for Empty {
        async fn handle(self: &Arc<Self>, _from: NodeId, _request: Request) -> Response {
            Response::Identity { voter: 1, initialized: false }
        }

        async fn welcome(self: &Arc<Self>, _binding: Binding, _ask: Ask) -> Answer {
            Answer::Refused(Reason::Unknown)
        }
    }

    /// Lets each connection through when it is told to, and counts them.
    async fn hold_back(listener: TcpListener, to: SocketAddr, gate: Arc<Notify>, count: Arc<AtomicU32>) {
        loop {
            let (mut near, _) = listener.accept().await.expect("it listens");
            count.fetch_add(1, Ordering::Relaxed);
            let gate = Arc::clone(&gate);
            tokio::spawn(async move {
                gate.notified().await;
                let mut far = TcpStream::connect(to).await.expect("the server listens");
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    }

    #[tokio::test]
    async fn a_handshake_that_takes_longer_than_a_call_is_awaited_by_the_next_one() {
        let secrets = Secrets::only(Secret(b"0123456789abcdef".to_vec()));
        let keys =
            |node| KeyStore::new(secrets.clone(), None, 1, node, None).expect("there are random numbers");
        let (own, its) = (keys(NodeId(0)), keys(NodeId(1)));
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let front = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (to, at) = (server.local_addr().expect("it has one"), front.local_addr().expect("it has one"));
        let count = Arc::new(AtomicU32::new(0));
        tokio::spawn(serve(server, its.watch(), Arc::new(Empty)));
        let gate = Arc::new(Notify::new());
        tokio::spawn(hold_back(front, to, Arc::clone(&gate), Arc::clone(&count)));
        let (_links, link) = watch::channel(0);
        let (me, node) = (NodeId(0), NodeId(1));
        let address = Address { me, node, at: vec![at], link, keys: own.watch() };
        // However slow the machine is.
        let patience = Duration::from_secs(60);
        let mut peer = Peer { dial_within: patience, ..Peer::new(address) };
        let first = peer.call(&Request::Identify, Duration::from_millis(100)).await;
        assert_eq!(first.err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
        gate.notify_one();
        peer.call(&Request::Identify, patience).await.expect("the first handshake is waited for");
        assert_eq!(count.load(Ordering::Relaxed), 1, "each call dialed anew");
    }
}
