//! Arguments of what is asked of an orchestrator, or told it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use replicator::config::{NewNode, parse_duration_ms};

/// Arguments of `cluster`.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// What to ask or to say
    #[command(subcommand)]
    pub(crate) command: ClusterCommand,
    /// The orchestrator's control socket [default: /run/holdfast/orchestrator.sock]
    #[arg(long, global = true, value_name = "SOCKET", env = "HOLDFAST_ORCHESTRATOR")]
    pub(crate) control: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Which orchestrator, and how the answer is shown.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// The orchestrator's control socket [default: /run/holdfast/orchestrator.sock]
    #[arg(long, value_name = "SOCKET", env = "HOLDFAST_ORCHESTRATOR")]
    pub(crate) control: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The volume or the node
    #[arg(value_name = "VOLUME|NODE")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Only decisions about this volume
    #[arg(long, value_name = "VOLUME")]
    pub(crate) volume: Option<String>,
    /// Only decisions that concern this node
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Only the newest
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<u64>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Arguments of `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// What is remembered first, and not only what happens from now on
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Arguments of `fence`.
#[derive(Debug, Args)]
pub(crate) struct FenceArgs {
    /// The node
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) word: WordArgs,
}

/// Arguments of `confirm-off`.
#[derive(Debug, Args)]
pub(crate) struct ConfirmOffArgs {
    /// The node
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) word: WordArgs,
}

/// How a word about the power of a node is given.
#[derive(Debug, Args)]
pub(crate) struct WordArgs {
    /// Do it
    #[arg(long)]
    pub(crate) yes: bool,
    /// Whose word it is [default: your user name]
    #[arg(long, value_name = "NAME")]
    pub(crate) who: Option<String>,
    /// The orchestrator's control socket [default: /run/holdfast/orchestrator.sock]
    #[arg(long, value_name = "SOCKET", env = "HOLDFAST_ORCHESTRATOR")]
    pub(crate) control: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to ask the orchestrator, or to tell it.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Begin a cluster: write its configuration and its secret on the first node. Nothing is overwritten
    Init(InitArgs),
    /// Make a token with which one machine comes in as NODE, once; on a node that is in already
    Token {
        /// The node that the machine is to be; it stands in the configuration
        node: String,
        /// How long the token is good for
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration_ms)]
        valid: u64,
    },
    /// Come into a cluster: fetch the configuration and the secret for a token. Nothing is overwritten
    Join(JoinArgs),
    /// Give the cluster new keys while it is in use; goes on with a rotation that was cut off
    RotateKeys {
        /// Stop before the old keys are dropped, so that certificates of clients and operators can be made anew first
        #[arg(long)]
        keep_old: bool,
    },
    /// Have the orchestrator read its configuration again: nodes that are new vote, those that are gone do not
    Reload,
    /// Who leads, who is heard, who may write each volume, and why nothing else
    Status,
    /// What would happen, by the decisions themselves; nothing is changed
    #[command(group(ArgGroup::new("fault").args(["dead", "cut", "disk"])))]
    Plan {
        /// If this node died now
        #[arg(long, value_name = "NODE")]
        dead: Option<String>,
        /// If these two nodes heard each other no more
        #[arg(long, value_name = "NODE", num_args = 2)]
        cut: Vec<String>,
        /// If the disk of this node failed
        #[arg(long, value_name = "NODE")]
        disk: Option<String>,
        /// Only the disk of this volume
        #[arg(long, value_name = "VOLUME", requires = "disk")]
        volume: Option<String>,
    },
    /// Let a volume be primary on another node, with everything safe first
    Move {
        /// The volume, or a stack: its first volume then, which the others follow
        volume: String,
        /// Where to [default: nowhere in particular any more]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// Forget the failures of a stack, so that it is tried again
    Forgive {
        /// The stack
        stack: String,
    },
    /// Give a node nothing, and take from it what it has
    Standby {
        /// The node
        node: String,
        /// It may be given things again
        #[arg(long)]
        off: bool,
    },
    /// Let the orchestrator do nothing: about everything, a volume or a node
    Pause {
        /// Only this volume
        #[arg(long, value_name = "VOLUME", conflicts_with = "node")]
        volume: Option<String>,
        /// Only this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        /// Let it go on
        #[arg(long)]
        off: bool,
    },
}

/// Arguments of `cluster init`.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The cluster's name
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// A node and its IP address, this one first; perhaps with the port of its orchestrator
    #[arg(long = "node", value_name = "NAME=ADDRESS[:PORT]", required = true, value_parser = new_node)]
    pub(crate) nodes: Vec<NewNode>,
    /// Where to write; the secret lies beside it
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    pub(crate) config: PathBuf,
}

/// Arguments of `cluster join`.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// What `holdfast cluster token` printed
    pub(crate) token: String,
    /// Where to write; the secret lies where it says
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    pub(crate) config: PathBuf,
}

/// Where a machine's configuration lies unless told otherwise.
const CONFIG_FILE: &str = "/etc/holdfast/holdfast.toml";

fn new_node(text: &str) -> Result<NewNode, String> {
    let (name, at) = text.split_once('=').ok_or("write it as in a=10.0.0.1")?;
    let socket = at.parse::<SocketAddr>().ok();
    let address = at.parse().ok().or(socket.map(|at| at.ip()));
    let address = address.ok_or_else(|| format!("\"{at}\" is not an IP address; names are not looked up"))?;
    Ok(NewNode { name: name.to_owned(), address, port: socket.map(|at| at.port()) })
}

/// Arguments of `switchover`.
#[derive(Debug, Args)]
pub(crate) struct SwitchoverArgs {
    /// The volume or the stack
    pub(crate) what: String,
    /// Where to
    #[arg(long, value_name = "NODE")]
    pub(crate) to: String,
    /// How long to wait until it runs there; it goes on when that is over
    #[arg(long, value_name = "SECONDS", default_value = "120")]
    pub(crate) timeout: u64,
    /// The orchestrator's control socket [default: /run/holdfast/orchestrator.sock]
    #[arg(long, value_name = "SOCKET", env = "HOLDFAST_ORCHESTRATOR")]
    pub(crate) control: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
