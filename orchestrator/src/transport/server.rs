//! The listening end: lets in who proves to be a node of this cluster, and hands its requests to a handler. A newcomer, who
//! is no node yet, asks under a name of its own; it may say one thing.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::units::NodeId;
use replicator::identity::server_name;
use replicator::welcome::WELCOME_NAME;
use rustls::pki_types::ServerName;
use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::EndEntityCert;

use super::message::{Hello, Request, Response, read_frame, read_frame_of, write_frame};
use crate::join::{ASK_BYTES_MAX, Answer, Ask, BINDING_LABEL, Binding};
use crate::keys::{KeySet, Keys};

/// Connections at one time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// How long a stranger may take to say who it is.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a newcomer may take to ask and to take the answer.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// What is done with requests.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers a request of `from`.
    fn handle(self: &Arc<Self>, from: NodeId, request: Request) -> impl Future<Output = Response> + Send;

    /// Answers a newcomer, at the other end of the connection that `binding` was drawn from.
    fn welcome(self: &Arc<Self>, binding: Binding, ask: Ask) -> impl Future<Output = Answer> + Send;
}

/// Who has been let in.
enum Caller {
    Node(TlsStream<TcpStream>, NodeId),
    Newcomer(TlsStream<TcpStream>),
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, keys: Keys, handler: Arc<impl Handler>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: others may give some back soon.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (keys, handler) = (keys.clone(), Arc::clone(&handler));
        tokio::spawn(async move {
            let now = Arc::clone(&keys.borrow());
            let greeted = timeout(GREETING_TIMEOUT, greet(&now, stream)).await;
            // A peer that breaks off or speaks something else will dial again.
            let _ = match greeted {
                Ok(Ok(Caller::Node(stream, from))) => answer(stream, from, keys, now.drops, &handler).await,
                Ok(Ok(Caller::Newcomer(stream))) => {
                    timeout(WELCOME_TIMEOUT, welcome(stream, &handler)).await.unwrap_or(Ok(()))
                }
                Ok(Err(_)) | Err(_) => Ok(()),
            };
            drop(place);
        });
    }
}

async fn greet(keys: &KeySet, stream: TcpStream) -> io::Result<Caller> {
    stream.set_nodelay(true)?;
    let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    if begun.client_hello().server_name() == Some(WELCOME_NAME) {
        return Ok(Caller::Newcomer(begun.into_stream(Arc::clone(&keys.welcoming)).await?));
    }
    let identity = &keys.identity;
    let mut stream = begun.into_stream(Arc::clone(&identity.server)).await?;
    let hello: Hello = read_frame(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = certificates.first().ok_or(io::ErrorKind::PermissionDenied)?;
    let certificate = EndEntityCert::try_from(certificate).map_err(io::Error::other)?;
    let name: ServerName<'_> = server_name(identity.incarnation, hello.node.0);
    certificate.verify_is_valid_for_subject_name(&name).map_err(io::Error::other)?;
    Ok(Caller::Node(stream, hello.node))
}

/// Answers until the peer goes, or a key is dropped: it dials anew then.
async fn answer(
    mut stream: TlsStream<TcpStream>,
    from: NodeId,
    mut keys: Keys,
    drops: u64,
    handler: &Arc<impl Handler>,
) -> io::Result<()> {
    loop {
        let request = tokio::select! {
            request = read_frame(&mut stream) => request?,
            _ = keys.wait_for(|keys| keys.drops != drops) => None,
        };
        let Some(request) = request else { return Ok(()) };
        let response = handler.handle(from, request).await;
        write_frame(&mut stream, &response).await?;
    }
}

/// One question, one answer.
async fn welcome(mut stream: TlsStream<TcpStream>, handler: &Arc<impl Handler>) -> io::Result<()> {
    let connection = stream.get_ref().1;
    let binding =
        connection.export_keying_material([0; 32], BINDING_LABEL, None).map_err(io::Error::other)?;
    let ask = read_frame_of(&mut stream, ASK_BYTES_MAX).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let answer = handler.welcome(binding, ask).await;
    write_frame(&mut stream, &answer).await?;
    stream.shutdown().await
}
