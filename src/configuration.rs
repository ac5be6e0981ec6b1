//! `holdfast config`: checks a configuration file, or prints one to begin with.

use std::path::Path;

use anyhow::Result;
use replicator::config::{self, Cluster, ConfigError, Loaded, WithSecret, format_size};

use crate::cli::ConfigCommand;
use crate::output::{print, say};

/// Runs a subcommand.
pub(crate) fn run(command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Check { file, no_secret } => {
            check(file, if *no_secret { WithSecret::No } else { WithSecret::Yes })
        }
        ConfigCommand::New => print(&config::example()),
    }
}

fn check(file: &Path, with_secret: WithSecret) -> Result<()> {
    let Loaded { cluster, mut warnings } = config::load(file, with_secret)?;
    orchestrator::fence::check(&cluster, &mut warnings);
    if warnings.has_errors() {
        return Err(ConfigError::Invalid(warnings).into());
    }
    if !warnings.list().is_empty() {
        say(&warnings.to_string());
    }
    print(&format!("{} is sound", file.display()))?;
    print(&summary(&cluster))
}

fn summary(cluster: &Cluster) -> String {
    let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    let mut out = format!("  cluster {} with {}\n", cluster.name, names.join(", "));
    for device in &cluster.fence {
        out.push_str(&format!(
            "  fence device {} with {}, level {}, switches off {}\n",
            device.name,
            device.agent,
            device.level,
            cluster.node_name(device.target)
        ));
    }
    for volume in &cluster.volumes {
        let nodes: Vec<String> =
            volume.replicas.iter().map(|replica| cluster.node_name(replica.node)).collect();
        out.push_str(&format!(
            "  volume {}, {}, protocol {:?}, on {}\n",
            volume.name,
            format_size(volume.size_bytes),
            volume.protocol,
            nodes.join(", ")
        ));
    }
    out
}
