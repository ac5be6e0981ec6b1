//! `holdfast cluster init` and `holdfast cluster join`: a machine gets its configuration and its secret, drawn here or given
//! by a member. Nothing that is there is overwritten, and the last words are what to type next.

use std::path::Path;

use anyhow::{Context, Result, bail};
use orchestrator::join::{Given, Token, join};
use replicator::config::{self, Cluster, Node, WithSecret};
use serde::Serialize;

use crate::cli::{InitArgs, JoinArgs};
use crate::new_file;
use crate::output::{print, print_json, say};

/// The secret, beside the configuration.
const SECRET_FILE: &str = "secret";

/// What was made, as JSON.
#[derive(Serialize)]
struct Made<'a> {
    cluster: &'a str,
    node: &'a str,
    config: &'a Path,
    secret: Option<&'a Path>,
}

/// Begins a cluster.
pub(crate) fn init(arguments: &InitArgs, json: bool) -> Result<()> {
    let path = arguments.config.as_path();
    let text = config::begin(&arguments.name, &arguments.nodes, SECRET_FILE);
    let cluster = config::parse(path, &text, WithSecret::No).context("this cluster cannot begin")?.cluster;
    let secret = cluster.secret_file.as_deref().context("the configuration names no secret file")?;
    new_file::prepare(path)?;
    new_file::prepare(secret)?;
    new_file::write(secret, config::fresh_secret().as_bytes())?;
    new_file::write(path, text.as_bytes())?;
    let first = &cluster.nodes[0];
    report(path, &cluster, first, json, || begun(path, &cluster, first))
}

fn begun(path: &Path, cluster: &Cluster, first: &Node) -> String {
    let (file, node) = (path.display(), &first.name);
    let mut out = format!("{} begins on {node}: {file}, and its secret beside it\n\nnext:\n", cluster.name);
    out.push_str(&format!(
        "  1. write the volumes into it, and see: holdfast config check {file}\n  \
         2. here: holdfast orchestrator --config {file} --node {node}\n     \
         (as a service: systemctl enable --now holdfast-orchestrator)\n  \
         3. for each of the others, here, and there what it prints:\n"
    ));
    for other in &cluster.nodes[1..] {
        out.push_str(&format!("       holdfast cluster token {}\n", other.name));
    }
    let create = format!("holdfast create VOLUME --config {file} --node {node}");
    out.push_str(&format!("  4. for each volume with a replica here: {create}\n     "));
    out.push_str(&format!("and: holdfast replicator --config {file} --node {node}\n\n"));
    out.push_str("The cluster decides when all of its nodes have come in.");
    out
}

/// Comes into a cluster.
pub(crate) fn come_in(arguments: &JoinArgs, json: bool) -> Result<()> {
    let path = arguments.config.as_path();
    let token: Token = arguments.token.parse()?;
    // Before the token is used up: what it is good for must have a place.
    new_file::prepare(path)?;
    let given = join(&token)?;
    let cluster = write(path, &given).with_context(|| {
        format!("{} was let in as {}, and the token is used up", given.cluster, given.node)
    })?;
    let node = cluster.node(&given.node)?;
    report(path, &cluster, node, json, || joined(path, &cluster, node, &given.by))
}

/// Writes what was given; the configuration last, so that it never names a secret that is not there.
fn write(path: &Path, given: &Given) -> Result<Cluster> {
    let cluster = config::parse(path, &given.configuration, WithSecret::No)?.cluster;
    match (&cluster.secret_file, given.secret()) {
        (Some(file), Some(secret)) => {
            new_file::prepare(file)?;
            new_file::write(file, &secret)?;
        }
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => bail!("{} gave a configuration without its secret", given.by),
    }
    new_file::write(path, given.configuration.as_bytes())?;
    // Files that the configuration names beside itself: passwords, scripts. They are not given.
    if let Err(error) = config::load(path, WithSecret::Yes) {
        say(&format!("before it is used here:\n{error}"));
    }
    Ok(cluster)
}

fn joined(path: &Path, cluster: &Cluster, node: &Node, by: &str) -> String {
    let (file, name) = (path.display(), &node.name);
    let mut out =
        format!("{by} let this machine into {} as {name}: {file}, and the secret\n\nnext:\n", cluster.name);
    for volume in cluster.volumes_of(node.id) {
        out.push_str(&format!("  holdfast create {} --config {file} --node {name}\n", volume.name));
    }
    if cluster.volumes_of(node.id).next().is_some() {
        out.push_str(&format!("  holdfast replicator --config {file} --node {name}\n"));
    }
    out.push_str(&format!("  holdfast orchestrator --config {file} --node {name}\n"));
    out.push_str("(as services: systemctl enable --now holdfast-replicator holdfast-orchestrator)");
    out
}

fn report(
    path: &Path,
    cluster: &Cluster,
    node: &Node,
    json: bool,
    text: impl FnOnce() -> String,
) -> Result<()> {
    if json {
        let secret = cluster.secret_file.as_deref();
        return print_json(&Made { cluster: &cluster.name, node: &node.name, config: path, secret }, true);
    }
    print(&text())
}
