//! Serves the control socket on the orchestrator's own runtime.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use super::routes;
use crate::node::Orchestrator;

/// Connections at one time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until dropped.
pub(crate) async fn serve(listener: UnixListener, orchestrator: Arc<Orchestrator>) {
    let router = routes::router(orchestrator);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: others may give some back soon.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            // A client that breaks off or speaks something else is its own problem.
            let _ = connection.await;
            drop(place);
        });
    }
}
