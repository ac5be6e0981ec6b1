//! `holdfast reload`, and its end in a running replicator: the configuration file is read again, and replicas of the
//! volumes here that are new in it, or gone from it, are taken in and let go. Nothing else changes without a restart, but the
//! cluster's keys, which the orchestrator has taken over while they are rotated.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use replicator::config::{self, Cluster, Node, SecretFiles, WithSecret};
use replicator::control::{Facts, Reload};
use replicator::options::VolumeOptions;
use replicator::{VolumeError, VolumeHandle};

use crate::cli::{NodeArgs, ReloadArgs};
use crate::{role, target};

/// How long a volume may take to let a replica go: a change of the in-sync set is stored, and a connection ends.
const WITHIN: Duration = Duration::from_secs(10);

/// Asks a running replicator to read its configuration file again.
pub(crate) fn run(arguments: &ReloadArgs) -> Result<()> {
    let client = target::client(&arguments.target)?;
    role::report(client.reload(), arguments.json)
}

/// What a replicator was started with, and what of it has changed since.
pub(crate) struct Reloader {
    file: NodeArgs,
    node: Node,
    volumes: Vec<VolumeHandle>,
    /// As it was read last.
    cluster: Mutex<Cluster>,
}

impl Reloader {
    pub(crate) fn new(file: NodeArgs, node: Node, volumes: Vec<VolumeHandle>, cluster: Cluster) -> Self {
        Self { file, node, volumes, cluster: Mutex::new(cluster) }
    }

    fn take_over(&self) -> Result<(Facts, String)> {
        let mut old = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        let new = config::load(&self.file.config, WithSecret::Yes)?.cluster;
        let changes = self.changes(&old, &new)?;
        let mut done = String::new();
        for (volume, options) in self.volumes.iter().zip(&changes) {
            follow(volume, options, &mut done).with_context(|| already(&done))?;
        }
        let facts = Facts::new(new.clone(), self.node.id);
        *old = new;
        drop(old);
        if done.is_empty() {
            done.push_str("nothing has changed that a running replicator takes over");
        }
        Ok((facts, done.trim_end().to_owned()))
    }

    /// Has every volume use and accept the keys that lie in the secret's files now.
    fn take_keys(&self) -> Result<String> {
        let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &cluster.secret_file else {
            return Ok("the secret stands in the configuration, which is read at a start".to_owned());
        };
        let secrets = Some(SecretFiles::at(file).load()?);
        if cluster.secrets == secrets {
            return Ok("the keys are the same".to_owned());
        }
        let new = Cluster { secrets, ..cluster.clone() };
        for volume in &self.volumes {
            match volume.rekey(&new.volume_options(&self.node.name, volume.name())?, WITHIN) {
                // One that has stopped proves nothing to anybody.
                Ok(_) | Err(VolumeError::Stopped) => {}
                Err(error) => bail!("{}: {error}", volume.name()),
            }
        }
        *cluster = new;
        Ok("the keys are taken over".to_owned())
    }

    /// The options of each volume here; an error if something has changed that cannot be taken over.
    fn changes(&self, old: &Cluster, new: &Cluster) -> Result<Vec<VolumeOptions>> {
        let name = &self.node.name;
        let node = new.node(name)?;
        let is_same = (node.id, &node.control, node.metrics_listen)
            == (self.node.id, &self.node.control, self.node.metrics_listen);
        if !is_same {
            bail!("`id`, `control` or `metrics-listen` of node {name} has changed: {RESTART}");
        }
        let names = |cluster: &Cluster| -> BTreeSet<String> {
            cluster.volumes_of(self.node.id).map(|volume| volume.name.clone()).collect()
        };
        let (had, has) = (names(old), names(new));
        if let Some(volume) = has.difference(&had).next() {
            bail!("volume {volume} is new on node {name}: {RESTART}");
        }
        if let Some(volume) = had.difference(&has).next() {
            bail!(
                "volume {volume} has no replica on node {name} any more: stop this replicator first, and {RESTART}"
            );
        }
        let changes = self.volumes.iter().map(|volume| {
            let options = new.volume_options(name, volume.name())?;
            let keys = old.volume_options(name, volume.name())?.changed_keys(&options);
            if keys.is_empty() {
                return Ok(options);
            }
            bail!("{}: {} cannot change in a running replicator: {RESTART}", volume.name(), keys.join(", "))
        });
        changes.collect()
    }
}

const RESTART: &str = "restart this node's replicator for that, a secondary at once, a primary after handing over. \
                       Nothing was changed now";

impl Reload for Reloader {
    fn reload(&self) -> Result<(Facts, String), String> {
        self.take_over().map_err(|error| format!("{error:#}"))
    }

    fn rekey(&self) -> Result<String, String> {
        self.take_keys().map_err(|error| format!("{error:#}"))
    }
}

/// Has a volume know the replicas that `options` names, and no others.
fn follow(volume: &VolumeHandle, options: &VolumeOptions, done: &mut String) -> Result<()> {
    let name = volume.name();
    let said = |error: VolumeError| anyhow!("{name}: {error}");
    let peers: Vec<_> = volume.status().map_err(said)?.core.peers.iter().map(|peer| peer.node).collect();
    // Whoever goes goes first: if that cannot be, nothing else has changed.
    for node in peers.iter().filter(|node| options.core.peers.iter().all(|peer| peer.node != **node)) {
        let text = volume.remove_replica(*node, WITHIN).map_err(said)?;
        let _ = writeln!(done, "{name}: {text}");
    }
    for config in options.core.peers.iter().filter(|peer| !peers.contains(&peer.node)) {
        let address = options.peers.iter().find(|peer| peer.node == config.node);
        let address = address.expect("each replica has an address").clone();
        let text = volume.add_replica(address, *config, WITHIN).map_err(said)?;
        let _ = writeln!(done, "{name}: {text}");
    }
    Ok(())
}

fn already(done: &str) -> String {
    match done.trim_end() {
        "" => "nothing was changed".to_owned(),
        done => format!("not all of it was done, only this: {}", done.replace('\n', "; ")),
    }
}
