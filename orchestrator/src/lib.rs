//! The orchestrator's shell: consensus, transport, heartbeats, the link to the replicator, control. It decides nothing:
//! decisions are `orchestrator-core`'s.

mod api;
mod clock;
mod consensus;
pub mod control;
pub mod fence;
mod happening;
mod heartbeat;
mod hook;
pub mod join;
mod keys;
mod leases;
mod link;
mod mind;
mod node;
mod options;
mod power;
mod process;
mod rotation;
pub mod stack;
mod transport;
mod watchdog;

use std::sync::Arc;

use replicator::control::ControlSocket;
use tokio::net::UnixListener;
use tokio::sync::watch;

pub use consensus::StartError;
pub use consensus::wal::WalError;
pub use link::{ControlLink, Link, LinkError};
pub use mind::{Event, EventKind};
pub use node::{Ended, RunError};
pub use options::{Options, OptionsError, worst};

/// Runs one node's orchestrator until `stop` says so; `ready` is called when it takes part.
///
/// # Errors
/// If it cannot start. Once it runs, it goes on.
pub fn run(
    options: Options,
    link: Arc<dyn Link>,
    stop: watch::Receiver<bool>,
    ready: impl FnOnce(),
) -> Result<Ended, RunError> {
    let (socket, listener) = ControlSocket::bind(&options.control).map_err(std::io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let listener = UnixListener::from_std(listener)?;
        let orchestrator = node::Orchestrator::start(options, link).await?;
        tokio::spawn(control::serve(listener, Arc::clone(&orchestrator)));
        let api = api::start(&orchestrator)?;
        ready();
        let ended = orchestrator.run(stop).await;
        drop(api);
        Ok(ended)
    });
    // A step that waits for the replicator must not keep the process from ending.
    runtime.shutdown_background();
    drop(socket);
    result
}

/// Random bytes of the system.
fn random<const N: usize>() -> [u8; N] {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}
