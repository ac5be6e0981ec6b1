//! All nodes of a sandbox together: made, started, connected, promoted, ended.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use replicator::config::{self, WithSecret};
use replicator::control::json::{PeerReport, ReplicaReport};
use replicator::control::{Client, ClientError};

use super::node::SandboxNode;
use super::plan::{Plan, VOLUME};
use super::workspace::Workspace;
use crate::output::say;
use crate::signals::StopFlag;

/// How often nodes are asked while something is awaited.
const POLL_INTERVAL: Duration = Duration::from_millis(25);
/// How long nodes may take to end in order.
const END_WITHIN: Duration = Duration::from_secs(20);

/// A running sandbox. Its processes end and its files go when it is dropped.
#[derive(Debug)]
pub(crate) struct SandboxCluster {
    workspace: Workspace,
    config: PathBuf,
    nodes: Vec<SandboxNode>,
    stop: StopFlag,
    ended: bool,
}

impl SandboxCluster {
    /// Makes all replicas and starts all nodes; does not wait for them.
    pub(crate) fn start(plan: &Plan, folder: Option<&Path>, keep: bool, stop: &StopFlag) -> Result<Self> {
        let workspace = Workspace::open(folder, keep)?;
        let mut cluster = Self {
            config: workspace.folder().join("holdfast.toml"),
            workspace,
            nodes: Vec::new(),
            stop: stop.clone(),
            ended: false,
        };
        cluster.make(plan)?;
        for node in &mut cluster.nodes {
            node.start(&cluster.config)?;
        }
        Ok(cluster)
    }

    fn make(&mut self, plan: &Plan) -> Result<()> {
        self.config = self.workspace.write(&plan.configuration()?)?;
        let cluster = config::load(&self.config, WithSecret::Yes)?.cluster;
        let volume = cluster.volume(VOLUME)?;
        for replica in &volume.replicas {
            let node = cluster.node(&cluster.node_name(replica.node))?;
            let options = cluster.volume_options(&node.name, VOLUME)?;
            replicator::create(&options, replicator::Content::Any, false)
                .with_context(|| format!("the replica of node {} is not created", node.name))?;
            let folder = self.workspace.folder();
            self.nodes.push(SandboxNode::new(&node.name, &node.control, replica.clone(), folder));
        }
        Ok(())
    }

    /// Waits until all nodes are connected, promotes the first, and waits until it serves with all in sync.
    pub(crate) fn make_ready(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        self.wait_for(deadline, "all nodes to be up and connected", |nodes| {
            // A peer that is being brought level is connected, too, but nobody is Primary yet that could do that.
            let is_idle = |peer: &PeerReport| peer.connection == "Connected";
            nodes
                .iter()
                .all(|node| node_replica(node).is_some_and(|replica| replica.peers.iter().all(is_idle)))
        })?;
        self.promote_first(deadline)?;
        self.wait_for(deadline, "the primary to serve with every replica in place", |nodes| {
            node_replica(&nodes[0]).is_some_and(|replica| {
                let is_level = |peer: &PeerReport| {
                    peer.connection == "Established" && (peer.member || peer.protocol == "A")
                };
                replica.serving && replica.frozen.is_none() && replica.peers.iter().all(is_level)
            })
        })
    }

    /// Promotes the first node. A link may break at the very moment it is asked, so a refusal is no last word.
    fn promote_first(&mut self, deadline: Instant) -> Result<()> {
        let mut refusal = None;
        let promoted = self.wait_for(deadline, "the first node to be promoted", |nodes| {
            match nodes[0].client().promote(VOLUME, false) {
                Ok(_) => true,
                Err(error) => {
                    // Whether it was done though the answer was lost shows in its role.
                    let is_primary = node_replica(&nodes[0]).is_some_and(|replica| replica.role == "Primary");
                    refusal = Some(error);
                    is_primary
                }
            }
        });
        match (promoted, refusal) {
            (Err(error), Some(refusal)) => Err(error.context(refusal)),
            (result, _) => result,
        }
    }

    /// Waits until `condition` holds; fails at the deadline, at a signal, or when a node has ended.
    pub(crate) fn wait_for(
        &mut self,
        deadline: Instant,
        what: &str,
        mut condition: impl FnMut(&[SandboxNode]) -> bool,
    ) -> Result<()> {
        loop {
            for node in &mut self.nodes {
                if let Some(status) = node.reap() {
                    bail!(
                        "node {} has ended ({status}) while waiting for {what}{}",
                        node.name,
                        node.log_tail()
                    );
                }
            }
            if condition(&self.nodes) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let logs: String = self.nodes.iter().map(SandboxNode::log_tail).collect();
                let problems: String = self.nodes.iter().map(problems).collect();
                bail!("waited in vain for {what}{problems}{logs}");
            }
            if self.stop.sleep(POLL_INTERVAL) {
                bail!("interrupted while waiting for {what}");
            }
        }
    }

    /// The nodes.
    pub(crate) fn nodes(&self) -> &[SandboxNode] {
        &self.nodes
    }

    /// The node at `index`.
    pub(crate) fn node_mut(&mut self, index: usize) -> &mut SandboxNode {
        &mut self.nodes[index]
    }

    /// Starts the node at `index` again.
    pub(crate) fn restart(&mut self, index: usize) -> Result<()> {
        let config = self.config.clone();
        self.nodes[index].start(&config)
    }

    /// The configuration file.
    pub(crate) fn config_path(&self) -> &Path {
        &self.config
    }

    /// Where everything lies.
    pub(crate) fn folder(&self) -> &Path {
        self.workspace.folder()
    }

    /// Lets the files stay when it ends.
    pub(crate) fn keep(&mut self) {
        self.workspace.keep();
    }

    /// The nodes that have ended since this was last asked, and how.
    pub(crate) fn reap(&mut self) -> Vec<(String, String)> {
        let reap = |node: &mut SandboxNode| node.reap().map(|status| (node.name.clone(), status.to_string()));
        self.nodes.iter_mut().filter_map(reap).collect()
    }

    /// Stops all nodes in order, a primary before those it needs, and waits. Says which did not end in order.
    pub(crate) fn stop_nodes(&mut self) -> Result<Vec<String>> {
        let is_primary = |node: &SandboxNode| {
            node.pid().is_some() && node_replica(node).is_some_and(|replica| replica.role == "Primary")
        };
        let primary: Vec<bool> = self.nodes.iter().map(is_primary).collect();
        let mut disorderly = Vec::new();
        for turn in [true, false] {
            let mut nodes: Vec<&mut SandboxNode> = self
                .nodes
                .iter_mut()
                .zip(&primary)
                .filter(|(_, is)| **is == turn)
                .map(|(node, _)| node)
                .collect();
            nodes.iter().for_each(|node| node.terminate());
            let deadline = Instant::now() + END_WITHIN;
            for node in &mut nodes {
                let was_running = node.pid().is_some();
                if !node.wait(deadline)? && was_running {
                    disorderly.push(node.name.clone());
                }
            }
        }
        Ok(disorderly)
    }

    /// Ends the sandbox: stops its nodes and removes its files.
    pub(crate) fn end(mut self) -> Result<()> {
        self.ended = true;
        // Children that ended before were reported then; what they were does not make the end a failure.
        self.reap();
        let disorderly = self.stop_nodes()?;
        self.leave_strangers();
        for name in &disorderly {
            let node = self.nodes.iter().find(|node| node.name == *name);
            let tail = node.map(SandboxNode::log_tail).unwrap_or_default();
            say(&format!("sandbox: node {name} did not end in order{tail}"));
        }
        if self.workspace.is_kept() {
            say(&format!("sandbox: everything is kept in {}", self.workspace.folder().display()));
        }
        self.workspace.remove();
        if disorderly.is_empty() { Ok(()) } else { bail!("not all nodes ended in order") }
    }

    /// A node that somebody else started again lives on; so its files must.
    fn leave_strangers(&mut self) {
        for node in &self.nodes {
            if let Ok(status) = node.client().status() {
                say(&format!(
                    "sandbox: node {} runs as process {}, which the sandbox did not start; it and the files in {} are left",
                    node.name,
                    status.pid,
                    self.workspace.folder().display()
                ));
                self.workspace.keep();
            }
        }
    }
}

impl Drop for SandboxCluster {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        for node in &mut self.nodes {
            if let Err(error) = node.kill() {
                say(&format!("{error:#}"));
            }
        }
        self.workspace.remove();
    }
}

/// What the node's replica says, if it answers.
pub(crate) fn node_replica(node: &SandboxNode) -> Option<ReplicaReport> {
    node.client().volume(VOLUME).ok()?.replica
}

fn problems(node: &SandboxNode) -> String {
    let answer: Result<_, ClientError> = Client::volume(&node.client(), VOLUME);
    match answer {
        Ok(report) => {
            report.problems.iter().map(|problem| format!("\n  {}: {}", node.name, problem.text)).collect()
        }
        Err(error) => format!("\n  {}: {error}", node.name),
    }
}
