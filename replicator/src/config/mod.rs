//! The configuration file: one TOML file, the same on all nodes. It is read as a whole, every mistake is
//! reported with its line and a cure, and what comes out has its units in types.
//!
//! ```text
//! text -> section (keys, types, unknown keys) -> reader (units, defaults) -> relations -> Cluster
//! ```

mod begin;
mod cluster;
mod example;
mod fence;
mod file;
mod hook;
mod orchestrator;
mod problem;
mod reader;
mod relations;
mod secret;
mod secret_files;
mod section;
mod stack;
mod tuning;
mod uuid;
mod value;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use thiserror::Error;

use file::FileError;

pub use begin::{NewNode, begin};
pub use cluster::{Cluster, Node, OptionsError, Replica, Volume, names_of};
pub use example::example;
pub use fence::{FenceDevice, FencePlaces};
pub use hook::{Hook, Occasion};
pub use orchestrator::{FenceMode, NodeOrchestrator, Orchestrator, Watchdog};
pub use problem::{Problem, Problems, Severity};
pub use secret::fresh_secret;
pub use secret_files::{SecretFileError, SecretFiles};
pub use stack::{
    AgentPlaces, AgentStep, CommandStep, FileSystemStep, Fsck, Holders, Stack, Step, StepKind, UnitStep,
};
pub use tuning::Tuning;
pub use uuid::{format_uuid, fresh_uuid, parse_uuid};
pub use value::{format_duration_ms, format_size, parse_duration_ms, parse_size};

/// Bytes a configuration file may have.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a sound configuration file says, and what is doubtful in it.
#[derive(Debug)]
pub struct Loaded {
    /// The cluster.
    pub cluster: Cluster,
    /// What works and is probably not what was meant.
    pub warnings: Problems,
}

/// Whether the cluster's secret is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithSecret {
    /// It is read and checked.
    Yes,
    /// It is left alone: enough to find a node's control socket.
    No,
}

/// Why a configuration file is not accepted.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no file.
    #[error("{} is {kind}, and a configuration is a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It is larger than any configuration.
    #[error("{}: {FILE_BYTES_MAX} bytes is the most a configuration file may have; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no text.
    #[error(
        "{}: line {line}, byte {column} of it (0x{byte:02x}) is not UTF-8; is it the right file, and saved as UTF-8?",
        path.display()
    )]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The byte of the line, from 1.
        column: usize,
        /// Its value.
        byte: u8,
    },
    /// It has mistakes.
    #[error("{0}")]
    Invalid(Problems),
}

/// Reads and checks the file at `path`.
///
/// # Errors
/// If it cannot be read or has mistakes; all of them are in the error.
pub fn load(path: &Path, with_secret: WithSecret) -> Result<Loaded, ConfigError> {
    let owned = || path.to_owned();
    let (_, bytes) = file::read(path, FILE_BYTES_MAX).map_err(|error| match error {
        FileError::System(source) => ConfigError::Read { path: owned(), source },
        FileError::NotRegular(kind) => ConfigError::NotRegular { path: owned(), kind },
        FileError::TooLarge => ConfigError::TooLarge { path: owned() },
    })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(path, text, with_secret),
        Err(error) => Err(not_text(path, &bytes, error.valid_up_to())),
    }
}

fn not_text(path: &Path, bytes: &[u8], at: usize) -> ConfigError {
    let before = &bytes[..at];
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    ConfigError::NotText { path: path.to_owned(), line, column: at - start + 1, byte: bytes[at] }
}

/// Checks the text of a file that lies, or would lie, at `path`; relative paths in it start there.
///
/// # Errors
/// If it has mistakes; all of them are in the error.
pub fn parse(path: &Path, text: &str, with_secret: WithSecret) -> Result<Loaded, ConfigError> {
    let mut problems = Problems::new(path, text.to_owned());
    let cluster = reader::read(text, path, with_secret, &mut problems);
    match cluster {
        Some(cluster) if !problems.has_errors() => Ok(Loaded { cluster, warnings: problems }),
        _ => Err(ConfigError::Invalid(problems)),
    }
}
