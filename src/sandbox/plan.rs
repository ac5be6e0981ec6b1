//! What a sandbox is made of, and the configuration file that says so.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use replicator::config::{format_uuid, fresh_uuid};

use super::ports;

/// The sandbox's volume.
pub(crate) const VOLUME: &str = "r0";

/// What a sandbox is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Nodes, called a, b, c ...
    pub(crate) nodes: u8,
    /// DRBD's letter.
    pub(crate) protocol: char,
    /// Bytes of the volume.
    pub(crate) size_bytes: u64,
    /// Bytes of each journal.
    pub(crate) journal_bytes: u64,
    /// What the primary does when a member is gone.
    pub(crate) on_peer_loss: &'static str,
    /// Whether NBD is served on TCP too.
    pub(crate) nbd_tcp: bool,
    /// Whether the nodes talk in TLS.
    pub(crate) tls: bool,
    /// Whether the replicas keep checksums of their blocks at rest, if that is said.
    pub(crate) checksums: Option<bool>,
}

impl Plan {
    /// The names of the nodes.
    pub(crate) fn names(&self) -> impl Iterator<Item = char> + use<> {
        (b'a'..b'a' + self.nodes).map(char::from)
    }

    /// The configuration file; all paths in it are relative to where it lies.
    pub(crate) fn configuration(&self) -> Result<String> {
        let mut ports = ports::free(2 * usize::from(self.nodes))?.into_iter();
        let mut text =
            String::from("# A throwaway cluster, made by holdfast.\n\n[cluster]\nname = \"sandbox\"\n");
        text.push_str("secret-file = \"secret\"\n");
        for name in self.names() {
            let _ = write!(
                text,
                "\n[[node]]\nname = \"{name}\"\naddress = \"127.0.0.1\"\ncontrol = \"{name}.ctl\"\n"
            );
        }
        let _ = write!(
            text,
            "\n[[volume]]\nname = \"{VOLUME}\"\nuuid = \"{}\"\nsize = {}\nprotocol = \"{}\"\non-peer-loss = \"{}\"\n",
            format_uuid(fresh_uuid()),
            self.size_bytes,
            self.protocol,
            self.on_peer_loss
        );
        if let Some(checksums) = self.checksums {
            let _ = writeln!(text, "checksums = \"{}\"", if checksums { "on" } else { "off" });
        }
        if self.tls {
            text.push_str("tls = \"on\"\nnbd-tls = \"on\"\n");
        }
        // Several nodes share this machine, and it may not allow an ordinary user to lock much memory.
        text.push_str("lock-memory = false\n");
        for name in self.names() {
            let port = ports.next().context("a port for each")?;
            let _ = write!(
                text,
                "\n[[volume.replica]]\nnode = \"{name}\"\ndisk = \"{name}.disk\"\njournal = \"{name}.journal\"\n\
                 journal-size = {}\nport = {port}\nnbd-socket = \"{name}.nbd\"\n",
                self.journal_bytes
            );
            if self.nbd_tcp {
                let port = ports.next().context("a port for each")?;
                let _ = writeln!(text, "nbd-listen = \"127.0.0.1:{port}\"");
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use replicator::config::{WithSecret, parse};

    use super::*;

    #[test]
    fn the_configuration_is_sound() {
        for (nodes, protocol, nbd_tcp) in [(1, 'C', false), (2, 'C', true), (3, 'B', true), (8, 'A', false)] {
            let plan = Plan {
                nodes,
                protocol,
                size_bytes: 1 << 30,
                journal_bytes: 64 << 20,
                on_peer_loss: "freeze",
                nbd_tcp,
                tls: nbd_tcp,
                checksums: nbd_tcp.then_some(true),
            };
            let text = plan.configuration().unwrap();
            let loaded = parse(Path::new("/tmp/x/holdfast.toml"), &text, WithSecret::No).unwrap();
            assert_eq!(loaded.cluster.nodes.len(), usize::from(nodes));
            assert_eq!(loaded.cluster.volumes[0].replicas.len(), usize::from(nodes));
            assert_eq!(loaded.cluster.volumes[0].replicas[0].nbd_listen.is_some(), nbd_tcp);
            assert_eq!(loaded.cluster.volumes[0].speaks_tls(), nbd_tcp);
        }
    }
}
