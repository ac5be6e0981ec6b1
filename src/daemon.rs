//! `holdfast replicator`: this node's replicas in the foreground, with their control socket.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use anyhow::{Context, Result, bail};
use replicator::config::{Cluster, Node};
use replicator::control::{Facts, LiveFacts, Reload, Server, ServerError, Volume, serve_metrics};
use replicator::{VolumeFault, VolumeHandle};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::ReplicatorArgs;
use crate::notify::notify;
use crate::output::{print, say};
use crate::reload::Reloader;
use crate::target;

/// What ends or changes a running replicator.
enum Happening {
    Signal,
    VolumeEnded(String, Result<(), VolumeFault>),
}

/// Runs until a signal comes or every volume has ended.
pub(crate) fn run(arguments: &ReplicatorArgs) -> Result<()> {
    if let Some(parent) = arguments.die_with {
        die_with(parent)?;
    }
    let (cluster, node) = target::node(&arguments.node)?;
    let (happened, happenings) = mpsc::channel();
    // Signals are caught before the first volume opens, so that none can end it half-way.
    watch_signals(happened.clone())?;
    make_folders(&cluster, &node)?;
    let volumes = open(&cluster, &node)?;
    let served: Vec<Arc<dyn Volume>> =
        volumes.iter().map(|volume| Arc::new(volume.clone()) as Arc<dyn Volume>).collect();
    let reloader = Reloader::new(arguments.node.clone(), node.clone(), volumes.clone(), cluster.clone());
    let reloader = Arc::new(reloader);
    let facts = LiveFacts::new(Facts::new(cluster, node.id));
    let servers = (|| {
        let metrics = node.metrics_listen.map(|at| serve_metrics(at, facts.clone(), served.clone()));
        let control = Server::start(&node.control, facts, served, Arc::clone(&reloader) as Arc<dyn Reload>)?;
        Ok::<_, ServerError>((metrics.transpose()?, control))
    })();
    let servers = match servers {
        Ok(servers) => servers,
        Err(error) => {
            stop_all(&volumes);
            return Err(error.into());
        }
    };
    // Who rotates the cluster's keys asks running replicators: this one may have read them a moment before it could be asked.
    if let Err(error) = reloader.rekey() {
        say(&format!("the cluster's keys are as they were read at the start: {error}"));
    }
    for volume in &volumes {
        watch_volume(volume.clone(), happened.clone())?;
    }
    let names: Vec<&str> = volumes.iter().map(VolumeHandle::name).collect();
    print(&format!(
        "ready: node {} with {}, control {}",
        node.name,
        names.join(", "),
        node.control.display()
    ))?;
    notify("READY=1");
    let result = attend(&volumes, &happenings);
    drop(servers);
    result
}

/// Opens every volume of the node; if one fails, those before it are stopped in order.
fn open(cluster: &Cluster, node: &Node) -> Result<Vec<VolumeHandle>> {
    let mut volumes = Vec::new();
    for volume in cluster.volumes_of(node.id) {
        let options = cluster.volume_options(&node.name, &volume.name)?;
        match replicator::open(options) {
            Ok(handle) => volumes.push(handle),
            Err(error) => {
                stop_all(&volumes);
                return Err(error).with_context(|| format!("volume {} does not start", volume.name));
            }
        }
    }
    if volumes.is_empty() {
        bail!("node {} has no replica in this configuration: there is nothing to run", node.name);
    }
    Ok(volumes)
}

/// Waits for what ends the volumes: a signal for all, or a fault of each.
fn attend(volumes: &[VolumeHandle], happenings: &Receiver<Happening>) -> Result<()> {
    let mut running = volumes.len();
    let mut failed = Vec::new();
    let mut stopping = false;
    while running > 0 {
        match happenings.recv().context("the watching threads have ended")? {
            Happening::Signal if stopping => bail!("ended by a second signal, not in order"),
            Happening::Signal => {
                stopping = true;
                notify("STOPPING=1");
                say("stopping in order; a second signal ends at once");
                volumes.iter().for_each(VolumeHandle::stop);
            }
            Happening::VolumeEnded(name, result) => {
                running -= 1;
                match result {
                    Ok(()) if stopping => say(&format!("{name}: stopped in order")),
                    Ok(()) => say(&format!("{name}: stopped")),
                    Err(fault) => {
                        say(&format!("{name}: {fault}"));
                        failed.push(name);
                    }
                }
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("did not end in order: {}", failed.join(", ")) }
}

fn stop_all(volumes: &[VolumeHandle]) {
    volumes.iter().for_each(VolumeHandle::stop);
    for volume in volumes {
        if let Err(fault) = volume.wait() {
            say(&format!("{}: {fault}", volume.name()));
        }
    }
}

fn watch_signals(happened: Sender<Happening>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot catch signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                // A terminal that goes away is no reason to stop serving.
                if signal != SIGHUP && happened.send(Happening::Signal).is_err() {
                    return;
                }
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

fn watch_volume(volume: VolumeHandle, happened: Sender<Happening>) -> Result<()> {
    std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            let result = volume.wait();
            // If nobody listens any more the process is ending anyway.
            let _ = happened.send(Happening::VolumeEnded(volume.name().to_owned(), result));
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Makes the folders of the sockets, which lie on a file system that is empty after a boot.
fn make_folders(cluster: &Cluster, node: &Node) -> Result<()> {
    let replicas = cluster.volumes_of(node.id).flat_map(|volume| &volume.replicas);
    let sockets =
        replicas.filter(|replica| replica.node == node.id).map(|replica| replica.nbd_socket.as_path());
    for folder in sockets.chain([node.control.as_path()]).filter_map(Path::parent) {
        if !folder.exists() {
            std::fs::create_dir(folder)
                .with_context(|| format!("cannot make the folder {} for sockets", folder.display()))?;
        }
    }
    Ok(())
}

pub(crate) fn die_with(parent: u32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot ask to die with the parent")?;
    // It may have ended before the kernel was asked.
    let is_parent = getppid().map(Pid::as_raw_pid) == i32::try_from(parent).ok();
    if is_parent { Ok(()) } else { bail!("the process that started this one has ended") }
}
