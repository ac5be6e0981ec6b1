//! The listening end: lets in who proves to be a node of this cluster, and hands its requests to a handler.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::units::NodeId;
use replicator::identity::{Identity, server_name};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::EndEntityCert;

use super::message::{Hello, Request, Response, read_frame, write_frame};

/// Connections at one time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// How long a stranger may take to say who it is.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// What is done with requests.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers a request of `from`.
    fn handle(self: &Arc<Self>, from: NodeId, request: Request) -> impl Future<Output = Response> + Send;
}

/// Serves until dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    identity: Identity,
    incarnation: u64,
    handler: Arc<impl Handler>,
) {
    let acceptor = TlsAcceptor::from(identity.server);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: others may give some back soon.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, handler) = (acceptor.clone(), Arc::clone(&handler));
        tokio::spawn(async move {
            if let Ok(Ok((stream, from))) =
                timeout(GREETING_TIMEOUT, greet(&acceptor, stream, incarnation)).await
            {
                // A peer that breaks off or speaks something else will dial again.
                let _ = answer(stream, from, &handler).await;
            }
            drop(place);
        });
    }
}

async fn greet(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    incarnation: u64,
) -> io::Result<(TlsStream<TcpStream>, NodeId)> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    let hello: Hello = read_frame(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = certificates.first().ok_or(io::ErrorKind::PermissionDenied)?;
    let certificate = EndEntityCert::try_from(certificate).map_err(io::Error::other)?;
    let name: ServerName<'_> = server_name(incarnation, hello.node.0);
    certificate.verify_is_valid_for_subject_name(&name).map_err(io::Error::other)?;
    Ok((stream, hello.node))
}

async fn answer(
    mut stream: TlsStream<TcpStream>,
    from: NodeId,
    handler: &Arc<impl Handler>,
) -> io::Result<()> {
    while let Some(request) = read_frame(&mut stream).await? {
        let response = handler.handle(from, request).await;
        write_frame(&mut stream, &response).await?;
    }
    Ok(())
}
