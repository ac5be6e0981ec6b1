//! The control server: a thread with a small runtime of its own, so that a slow client of the control interface
//! never touches a volume's thread.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

use super::activity::Activity;
use super::facts::LiveFacts;
use super::routes::{self, Figures, Shared};
use super::socket::{ControlSocket, SocketError};
use super::tcp::{Offer, TcpServer};
use super::{Reload, Volume};

/// Connections at one time. When there are as many, the one that has been idle for longest makes room.
const CONNECTIONS_MAX: usize = 32;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// How long a client may take to send the head of a request, and how long a connection may be idle between two.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the control server does not start.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Its socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An address cannot be used.
    #[error("cannot listen on {address} for HTTP: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Its thread or runtime cannot be had.
    #[error("cannot start the control server: {0}")]
    System(#[from] io::Error),
}

/// A running control server; stopped when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds `path` and serves `volumes`; `reload` reads the configuration again.
    ///
    /// # Errors
    /// If the socket is in use or cannot be bound.
    pub fn start(
        path: &Path,
        facts: LiveFacts,
        volumes: Vec<Arc<dyn Volume>>,
        reload: Arc<dyn Reload>,
    ) -> Result<Self, ServerError> {
        let (socket, listener) = ControlSocket::bind(path)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _guard = runtime.enter();
            UnixListener::from_std(listener)?
        };
        let router = routes::router(Arc::new(Shared { facts, volumes, reload }));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, router) => {}
                    _ = stopped => {}
                }
            });
            // A request that waits for a volume must not keep the process from ending.
            runtime.shutdown_background();
            drop(socket);
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

/// Tells figures of `volumes` at `address`, to anybody.
///
/// # Errors
/// If the address cannot be used.
pub fn serve_metrics(
    address: SocketAddr,
    facts: LiveFacts,
    volumes: Vec<Arc<dyn Volume>>,
) -> Result<TcpServer, ServerError> {
    let open = routes::open_router(Figures { facts, volumes });
    TcpServer::start(address, Offer { open, secure: None })
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: UnixListener, router: Router) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.make_room().await;
                connections.begin(|activity| serve(stream, with_activity(&router, activity)));
            }
            // Out of descriptors: others may give some back soon.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The routes, which know on which connection they are.
pub(super) fn with_activity(router: &Router, activity: Arc<Activity>) -> Router {
    router.clone().layer(Extension(activity))
}

/// The connections there are. Somebody who holds many and asks nothing takes nobody's place.
#[derive(Default)]
pub(super) struct Connections {
    tasks: JoinSet<()>,
    list: Vec<(AbortHandle, Arc<Activity>)>,
}

impl Connections {
    /// Sees to it that there are fewer than the most. Those whose request is being worked on are not ended for
    /// another; if all are, one of them has to come to its end.
    pub(super) async fn make_room(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        while self.tasks.len() >= CONNECTIONS_MAX {
            self.list.retain(|(task, _)| !task.is_finished());
            let idle = self.list.iter().filter_map(|(task, activity)| Some((activity.idle_since()?, task)));
            if let Some((_, task)) = idle.min_by_key(|(since, _)| *since) {
                task.abort();
            }
            self.tasks.join_next().await;
        }
        self.list.retain(|(task, _)| !task.is_finished());
    }

    pub(super) fn begin<F>(&mut self, serve: impl FnOnce(Arc<Activity>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let activity = Arc::new(Activity::new());
        self.list.push((self.tasks.spawn(serve(Arc::clone(&activity))), activity));
    }
}

/// Answers one request.
pub(super) async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        // One request, one answer: a client that asks on and on and reads nothing would hold its place for ever.
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A client that breaks off or speaks something else is its own problem; hyper has answered it if it could.
    let _ = connection.await;
}
