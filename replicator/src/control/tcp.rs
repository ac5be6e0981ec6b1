//! HTTP over TCP, for load balancers, monitoring and operators elsewhere, on a thread of its own. In the clear there is only
//! what anybody may read. Whoever speaks TLS must have an operator's certificate, and may do everything.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::activity::Activity;
use super::routes::take_body;
use super::server::{Connections, HEAD_TIMEOUT, ServerError, serve, with_activity};

/// The first byte of a TLS connection: a record of the handshake. No method of HTTP begins so.
const TLS_HANDSHAKE: u8 = 0x16;

/// What TLS is spoken with: asked for each connection, since keys are rotated.
pub type TlsNow = Box<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// What is to be had.
pub struct Offer {
    /// By anybody.
    pub open: Router,
    /// By whoever has a certificate.
    pub secure: Option<(TlsNow, Router)>,
}

/// A running server; stopped when dropped.
#[derive(Debug)]
pub struct TcpServer {
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Listens at `address`.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn start(address: SocketAddr, mut offer: Offer) -> Result<Self, ServerError> {
        let listen = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = listen().map_err(|source| ServerError::Listen { address, source })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _guard = runtime.enter();
            TcpListener::from_std(listener)?
        };
        offer.open = offer.open.layer(from_fn(take_body));
        offer.secure = offer.secure.map(|(tls, router)| (tls, router.layer(from_fn(take_body))));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, Arc::new(offer)) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, offer: Arc<Offer>) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.make_room().await;
                let offer = Arc::clone(&offer);
                connections.begin(move |activity| answer(stream, offer, activity));
            }
            // Out of descriptors: others may give some back soon.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// One connection: the first byte says how it speaks.
async fn answer(stream: TcpStream, offer: Arc<Offer>, activity: Arc<Activity>) {
    // An answer is one piece, which need not wait for another.
    let _ = stream.set_nodelay(true);
    let mut first = [0];
    let Ok(Ok(1)) = timeout(HEAD_TIMEOUT, stream.peek(&mut first)).await else { return };
    match &offer.secure {
        Some((tls, router)) if first[0] == TLS_HANDSHAKE => {
            let accepted = timeout(HEAD_TIMEOUT, TlsAcceptor::from(tls()).accept(stream)).await;
            // Who has no certificate was told so by TLS itself.
            let Ok(Ok(stream)) = accepted else { return };
            serve(stream, with_activity(router, activity)).await;
        }
        _ => serve(stream, with_activity(&offer.open, activity)).await,
    }
}
