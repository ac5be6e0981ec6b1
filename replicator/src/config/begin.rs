//! The commented file that `holdfast cluster init` writes: nodes with orchestrators, and how a volume would look.

use std::net::IpAddr;

use super::uuid::{format_uuid, fresh_uuid};

/// A node of a cluster that begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// Its name.
    pub name: String,
    /// Where the others reach it.
    pub address: IpAddr,
    /// Port of its orchestrator, if not the usual one.
    pub port: Option<u16>,
}

/// The configuration of a new cluster. Its secret lies in a file called `secret_file` beside it.
#[must_use]
pub fn begin(cluster: &str, nodes: &[NewNode], secret_file: &str) -> String {
    let mut text = HEAD.replace("@NAME@", cluster).replace("@SECRET@", secret_file);
    for node in nodes {
        text.push_str(&section(node));
    }
    let replicas: Vec<String> =
        nodes.iter().take(2).map(|node| REPLICA.replace("@NODE@", &node.name)).collect();
    text.push_str(
        &VOLUME.replace("@UUID@", &format_uuid(fresh_uuid())).replace("@REPLICAS@", &replicas.concat()),
    );
    text
}

fn section(node: &NewNode) -> String {
    let NewNode { name, address, port } = node;
    let port = port.map_or_else(|| "# port = 7787".to_owned(), |port| format!("port = {port}"));
    format!("\n[[node]]\nname = \"{name}\"\naddress = \"{address}\"\n[node.orchestrator]\n{port}\n")
}

const HEAD: &str = r#"# Holdfast: one file, the same on all nodes. Check it with: holdfast config check FILE
# Every key is described in docs/configuration.md; what stands behind a # is the default, or an example.

[cluster]
name = "@NAME@"
# Whoever knows the secret is one of us: it is for root alone. `holdfast cluster join` brings it to the other machines.
secret-file = "@SECRET@"

# Orchestrators decide who may write, and promote another node when one dies.
[orchestrator]
# heartbeat = "50ms"
# suspect-after = "300ms"
# lease = "600ms"

# Nodes that keep copies of volumes, and at least one more machine that votes. A node without replicas is a witness.
# Below [node.orchestrator]: links = ["10.1.0.1"] for heartbeats on a link of their own.
"#;

const VOLUME: &str = r#"
# A volume: take the # away, here and below, and correct sizes and paths.
# [[volume]]
# name = "r0"
# uuid = "@UUID@"
# size = "10GiB"
@REPLICAS@"#;

const REPLICA: &str = r#"#
# [[volume.replica]]
# node = "@NODE@"
# disk = "/var/lib/holdfast/r0.disk"          # a file or a block device
# journal = "/var/lib/holdfast/r0.journal"    # best on another fast device
# port = 7788
"#;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{WithSecret, parse};
    use super::*;

    fn nodes() -> Vec<NewNode> {
        let node = |name: &str, address: &str, port| NewNode {
            name: name.to_owned(),
            address: address.parse().unwrap(),
            port,
        };
        vec![node("a", "10.0.0.1", None), node("b", "fd00::2", Some(7000)), node("w", "10.0.0.3", None)]
    }

    #[test]
    fn the_file_is_sound_and_says_what_was_asked_for() {
        let text = begin("prod", &nodes(), "secret");
        let cluster = parse(Path::new("/x/holdfast.toml"), &text, WithSecret::No).unwrap().cluster;
        assert_eq!(cluster.name, "prod");
        assert_eq!(cluster.secret_file.as_deref(), Some(Path::new("/x/secret")));
        let listen = |node: usize| cluster.nodes[node].orchestrator.as_ref().unwrap().listen.to_string();
        assert_eq!((listen(0), listen(1)), ("10.0.0.1:7787".to_owned(), "[fd00::2]:7000".to_owned()));
    }

    #[test]
    fn its_volume_is_one_without_the_marks_in_front() {
        let text = begin("prod", &nodes(), "secret");
        let at = text.find("# [[volume]]").unwrap();
        let volume: Vec<&str> = text[at..].lines().map(|line| line.trim_start_matches(['#', ' '])).collect();
        let text = format!("{}{}", &text[..at], volume.join("\n"));
        let cluster = parse(Path::new("/x/holdfast.toml"), &text, WithSecret::No).unwrap().cluster;
        assert_eq!(cluster.volumes[0].replicas.len(), 2);
    }
}
