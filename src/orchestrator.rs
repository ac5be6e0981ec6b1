//! `holdfast orchestrator`: this node's vote, and the hands that promote and demote its replicas.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use orchestrator::{ControlLink, Ended, Options};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::watch;

use crate::cli::OrchestratorArgs;
use crate::daemon::die_with;
use crate::notify::notify;
use crate::output::{print, say};
use crate::target;

/// Runs until a signal comes.
pub(crate) fn run(arguments: &OrchestratorArgs) -> Result<()> {
    if let Some(parent) = arguments.die_with {
        die_with(parent)?;
    }
    let (cluster, node) = target::node(&arguments.node)?;
    let options = Options::new(&arguments.node.config, &cluster, &node)?;
    if let Some(folder) = node.orchestrator.as_ref().and_then(|own| own.control.parent())
        && !folder.exists()
    {
        let made = std::fs::create_dir(folder);
        made.with_context(|| format!("cannot make the folder {} for sockets", folder.display()))?;
    }
    let (stop, stopped) = watch::channel(false);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot catch signals")?;
    let watching = std::thread::Builder::new().name("signals".to_owned());
    watching
        .spawn(move || {
            for signal in signals.forever() {
                // A terminal that goes away is no reason to stop voting.
                if signal != SIGHUP {
                    notify("STOPPING=1");
                    say("stopping");
                    stop.send_replace(true);
                }
            }
        })
        .context("cannot start a thread")?;
    let link = Arc::new(ControlLink::new(&cluster, &node));
    let ready = || {
        // Nobody reading it is no reason not to vote.
        let _ = print(&format!("ready: orchestrator of node {}", node.name));
        notify("READY=1");
    };
    match orchestrator::run(options, link, stopped, ready)? {
        Ended::Stopped => Ok(()),
        Ended::Again => begin_anew(),
    }
}

/// The same process with the same arguments: what it started stays its own, and nobody who watches over it sees it end.
fn begin_anew() -> Result<()> {
    say("the configuration is read again");
    let error = Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec();
    Err(error).context("cannot begin anew")
}
