//! Arguments of what makes a volume a block device.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use replicator::config::parse_duration_ms;

use super::TargetArgs;

/// Arguments of `attach`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["volume", "status"])))]
pub(crate) struct AttachArgs {
    /// The volume
    pub(crate) volume: Option<String>,
    /// The device, as /dev/nbd0 or /dev/ublkb0 [default: a free one]
    #[arg(requires = "volume")]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Show what is attached on this host
    #[arg(long)]
    pub(crate) status: bool,
    /// By the kernel's ublk driver instead of its NBD client: faster, needs Linux 6.5 with ublk_drv
    #[arg(long, requires = "volume")]
    pub(crate) ublk: bool,
    /// Stay, and connect the device again whenever the replicator was restarted
    #[arg(long, requires = "volume")]
    pub(crate) follow: bool,
    /// Where the nodes of another cluster serve the volume over NBD with TLS, as HOST:PORT; the one that does is found
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', requires_all = ["certificates", "follow"],
        conflicts_with_all = ["ublk", "control", "config"])]
    pub(crate) remote: Vec<String>,
    /// Folder that holdfast client-certificate has made
    #[arg(long, value_name = "DIR", requires = "remote")]
    pub(crate) certificates: Option<PathBuf>,
    /// Connections, and so hardware queues. With more than one a request that waits for longer than
    /// --request-timeout costs its connection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16), conflicts_with = "ublk")]
    pub(crate) connections: u8,
    /// How long I/O waits for a replicator that has gone, before it fails; whole seconds
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = parse_duration_ms)]
    pub(crate) dead_time: u64,
    /// When the kernel looks again at a request without an answer [default: 2s, with several connections 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms, conflicts_with = "ublk")]
    pub(crate) request_timeout: Option<u64>,
    /// The device's logical blocks, 512 to 4096 bytes [default: the volume's]
    #[arg(long, value_name = "BYTES")]
    pub(crate) block_size: Option<u32>,
    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `client-certificate`.
#[derive(Debug, Args)]
pub(crate) struct ClientCertificateArgs {
    /// What to call the client; it stands in the certificate
    pub(crate) name: String,
    /// Folder for ca-cert.pem, client-cert.pem and client-key.pem; nothing in it is overwritten
    pub(crate) folder: PathBuf,
    /// The cluster's configuration file
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG")]
    pub(crate) config: PathBuf,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// The volume, or its device
    pub(crate) what: String,
    /// Though it is in use, or what was written to it cannot be written back: that fails and is lost
    #[arg(long)]
    pub(crate) force: bool,
}
