//! `holdfast sandbox`: a throwaway cluster on this machine. Each node is a real process with real files and TCP
//! between them; the demonstration, tests and benchmarks use the same machinery.

pub(crate) mod cluster;
pub(crate) mod node;
pub(crate) mod plan;
mod ports;
pub(crate) mod workspace;

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::cli::{OnOff, SandboxArgs};
use crate::output::{self, Style, arrow};
use crate::signals::StopFlag;
use crate::table::Table;

use cluster::SandboxCluster;
use plan::{Plan, VOLUME};

/// How often children are looked at while nothing else happens.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// The line that says that the sandbox is ready.
#[derive(Debug, Serialize)]
struct Ready {
    ready: bool,
    volume: &'static str,
    dir: String,
    config: String,
    nodes: Vec<ReadyNode>,
}

/// A node in it.
#[derive(Debug, Serialize)]
struct ReadyNode {
    name: String,
    pid: u32,
    control: String,
    nbd_uri: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbd_tcp_uri: Option<String>,
    disk: String,
    journal: String,
    log: String,
    role: String,
}

/// Runs a cluster until it is told to stop.
pub(crate) fn run(arguments: &SandboxArgs) -> Result<()> {
    let stop = StopFlag::install()?;
    let plan = Plan {
        nodes: arguments.nodes,
        protocol: arguments.protocol.letter(),
        size_bytes: arguments.size,
        journal_bytes: arguments.journal_size,
        on_peer_loss: arguments.on_peer_loss.word(),
        nbd_tcp: arguments.tcp,
        tls: arguments.tls,
        checksums: arguments.checksums.map(|choice| choice == OnOff::On),
    };
    let mut cluster = SandboxCluster::start(&plan, arguments.dir.as_deref(), arguments.keep, &stop)?;
    let result = serve(&mut cluster, arguments, &stop);
    let ended = cluster.end();
    // A start that was interrupted is an ending like any other.
    if stop.is_set() { ended } else { result.and(ended) }
}

fn serve(cluster: &mut SandboxCluster, arguments: &SandboxArgs, stop: &StopFlag) -> Result<()> {
    let deadline = Duration::from_millis(arguments.ready_within);
    cluster.make_ready(deadline)?;
    let ready = describe(cluster)?;
    if arguments.json {
        output::print_json(&ready, false)?;
    } else {
        output::print(&render(&ready, Style::stdout()))?;
    }
    while !stop.sleep(WATCH_INTERVAL) {
        for (name, ending) in cluster.reap() {
            output::say(&format!(
                "sandbox: node {name} has ended ({ending}); it is not restarted. To bring it back:\n  holdfast replicator --config {} --node {name}",
                cluster.config_path().display()
            ));
        }
    }
    Ok(())
}

fn describe(cluster: &mut SandboxCluster) -> Result<Ready> {
    let mut nodes = Vec::new();
    for node in cluster.nodes() {
        let report = node.client().volume(VOLUME)?;
        let tcp = report.nbd.iter().find(|uri| !uri.starts_with("nbd+unix:")).cloned();
        let role = report.replica.map_or_else(|| "unknown".to_owned(), |replica| replica.role);
        nodes.push(ReadyNode {
            name: node.name.clone(),
            pid: node.pid().unwrap_or(0),
            control: node.control.display().to_string(),
            nbd_uri: format!("nbd+unix:///{VOLUME}?socket={}", node.replica.nbd_socket.display()),
            nbd_tcp_uri: tcp,
            disk: node.replica.disk.display().to_string(),
            journal: node.replica.journal.display().to_string(),
            log: node.log.display().to_string(),
            role,
        });
    }
    Ok(Ready {
        ready: true,
        volume: VOLUME,
        dir: cluster.folder().display().to_string(),
        config: cluster.config_path().display().to_string(),
        nodes,
    })
}

fn render(ready: &Ready, style: Style) -> String {
    let mut table = Table::new(2, &["node", "process", "role", "NBD"]);
    for node in &ready.nodes {
        table.row([node.name.clone(), node.pid.to_string(), node.role.clone(), node.nbd_uri.clone()]);
        if let Some(uri) = &node.nbd_tcp_uri {
            table.row([String::new(), String::new(), String::new(), uri.clone()]);
        }
    }
    let primary = &ready.nodes[0];
    let config = &ready.config;
    let mut out = format!("{} in {}\n\n{}\n", style.bold("ready"), ready.dir, table.render());
    out.push_str("Try, in another terminal:\n");
    let mut lines = vec![
        format!("nbdinfo '{}'", primary.nbd_uri),
        format!("holdfast status --config {config} --node {}", primary.name),
    ];
    if let Some(other) = ready.nodes.get(1) {
        lines.push(format!(
            "kill -9 {}; sleep 1; holdfast promote {} --force --config {config} --node {}",
            primary.pid, ready.volume, other.name
        ));
        lines.push(format!("holdfast replicator --config {config} --node {}", primary.name));
    }
    for line in lines {
        out.push_str(&format!("  {line}\n"));
    }
    out.push_str(&format!("\n{} Ctrl-C ends it and removes what it made", arrow()));
    out
}
