//! Which node a command is about: from flags, from the configuration, from the name of this host.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use replicator::config::{self, Cluster, Loaded, Node, WithSecret};
use replicator::control::Client;

use crate::cli::{NodeArgs, TargetArgs};
use crate::output;

const CONTROL_SOCKET: &str = "/run/holdfast/control.sock";

/// Reads a configuration; what is doubtful in it is said on standard error.
pub(crate) fn load(path: &Path, with_secret: WithSecret) -> Result<Cluster> {
    let Loaded { cluster, warnings } = config::load(path, with_secret)?;
    if !warnings.list().is_empty() {
        output::say(&warnings.to_string());
    }
    Ok(cluster)
}

/// Reads the configuration with its secret and finds the node.
pub(crate) fn node(arguments: &NodeArgs) -> Result<(Cluster, Node)> {
    let cluster = load(&arguments.config, WithSecret::Yes)?;
    let node = find(&cluster, arguments.node.as_deref())?;
    Ok((cluster, node))
}

/// The node called `name`, or the one with this host's name.
pub(crate) fn find(cluster: &Cluster, name: Option<&str>) -> Result<Node> {
    if let Some(name) = name {
        return Ok(cluster.node(name)?.clone());
    }
    let host = host_name();
    let short = host.split('.').next().unwrap_or_default();
    let found = cluster.nodes.iter().find(|node| node.name == host || node.name == short);
    let Some(node) = found else {
        let known: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
        bail!(
            "this host is called \"{host}\" and no node is; say which one with --node: {}",
            known.join(", ")
        );
    };
    Ok(node.clone())
}

/// A client of the node meant.
pub(crate) fn client(arguments: &TargetArgs) -> Result<Client> {
    Ok(Client::new(&control(arguments)?))
}

fn control(arguments: &TargetArgs) -> Result<PathBuf> {
    if let Some(control) = &arguments.control {
        return Ok(control.clone());
    }
    let Some(path) = &arguments.config else { return Ok(PathBuf::from(CONTROL_SOCKET)) };
    // Warnings belong to `config check` and to the start; repeating them at each question would drown the answer.
    let cluster = config::load(path, WithSecret::No)?.cluster;
    Ok(find(&cluster, arguments.node.as_deref())?.control)
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}
