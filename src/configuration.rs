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
    orchestrator::stack::check(&cluster, &mut warnings);
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
    if let Some(times) = orchestrator::worst(cluster) {
        out.push_str(&format!(
            "  failover: when a machine dies, another may answer clients after about {}, and after {} at most: it is \
             noticed within {}, another leader takes {} if it led, its lease lasts {}\n",
            human_ms(times.usual_ms),
            human_ms(times.total_ms),
            human_ms(times.detect_ms),
            human_ms(times.elect_ms),
            human_ms(times.lease_ms)
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

fn human_ms(ms: u64) -> String {
    if ms < 1_000 { format!("{ms} ms") } else { format!("{}.{:02} s", ms / 1_000, ms % 1_000 / 10) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use replicator::config::parse;

    use super::*;

    #[test]
    fn a_check_says_how_long_a_failover_takes() {
        let node = |name: &str, last: u8| {
            format!("[[node]]\nname = \"{name}\"\naddress = \"10.0.0.{last}\"\n[node.orchestrator]\n")
        };
        let text = format!(
            "[cluster]\nname = \"c\"\nsecret = \"0123456789abcdef\"\n[orchestrator]\nlease = \"1s\"\n{}{}{}",
            node("a", 1),
            node("b", 2),
            node("w", 3)
        );
        let loaded = parse(Path::new("/tmp/x/holdfast.toml"), &text, WithSecret::No).unwrap();
        let summary = summary(&loaded.cluster);
        assert!(summary.contains("after about 1.05 s, and after 2.25 s at most"), "{summary}");
        assert!(summary.contains("its lease lasts 1.00 s"), "{summary}");
    }
}
