//! The sandbox's folder: made or taken over empty, and left as it was found.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use replicator::config::fresh_secret;

/// Bytes a unix socket's path may have.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Bytes of the longest name of a socket in the folder, while it is being bound, with its separator.
const SOCKET_NAME_BYTES: usize = "/a.ctl.new".len();

/// A folder that holds a sandbox.
#[derive(Debug)]
pub(crate) struct Workspace {
    folder: PathBuf,
    made_folder: bool,
    keep: bool,
}

impl Workspace {
    /// Makes the folder, or takes it over if it is there and empty.
    pub(crate) fn open(folder: Option<&Path>, keep: bool) -> Result<Self> {
        let (folder, made_folder) = match folder {
            Some(folder) => {
                let made_folder = !folder.exists();
                if made_folder {
                    fs::create_dir_all(folder)
                        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
                }
                let folder = folder
                    .canonicalize()
                    .with_context(|| format!("cannot use the folder {}", folder.display()))?;
                (folder, made_folder)
            }
            None => (fresh_folder()?, true),
        };
        let workspace = Self { folder, made_folder, keep };
        workspace.check()?;
        Ok(workspace)
    }

    fn check(&self) -> Result<()> {
        let folder = self.folder.display();
        let mut entries =
            fs::read_dir(&self.folder).with_context(|| format!("cannot read the folder {folder}"))?;
        if entries.next().is_some() {
            bail!("the folder {folder} is not empty; a sandbox begins with an empty one");
        }
        let length_bytes = self.folder.as_os_str().len();
        let length_bytes_max = SOCKET_PATH_BYTES_MAX - SOCKET_NAME_BYTES;
        if length_bytes > length_bytes_max {
            self.remove();
            bail!(
                "the path {folder} has {length_bytes} bytes; {length_bytes_max} is the most, since unix sockets lie in it: choose a shorter one with --dir"
            );
        }
        Ok(())
    }

    /// Writes the configuration and a fresh secret; gives the configuration's path.
    pub(crate) fn write(&self, configuration: &str) -> Result<PathBuf> {
        let path = self.folder.join("holdfast.toml");
        fs::write(&path, configuration).with_context(|| format!("cannot write {}", path.display()))?;
        let secret = self.folder.join("secret");
        let written = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&secret)
            .and_then(|mut file| file.write_all(fresh_secret().as_bytes()));
        written.with_context(|| format!("cannot write {}", secret.display()))?;
        Ok(path)
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the files stay.
    pub(crate) fn is_kept(&self) -> bool {
        self.keep
    }

    /// Lets the files stay.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }

    /// Removes what the sandbox made, unless it is to be kept.
    pub(crate) fn remove(&self) {
        if self.keep {
            return;
        }
        // It was empty when the sandbox began, so everything in it is the sandbox's.
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if let Err(error) = fs::remove_file(&path) {
                crate::output::say(&format!("cannot remove {}: {error}", path.display()));
            }
        }
        if self.made_folder
            && let Err(error) = fs::remove_dir(&self.folder)
        {
            crate::output::say(&format!("cannot remove {}: {error}", self.folder.display()));
        }
    }
}

fn fresh_folder() -> Result<PathBuf> {
    let folder = tempfile::Builder::new().prefix("holdfast-").tempdir();
    let folder =
        folder.with_context(|| format!("cannot make a folder in {}", std::env::temp_dir().display()))?;
    Ok(folder.keep())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_leaves_what_it_found() {
        let parent = tempfile::tempdir().unwrap();
        let fresh = parent.path().join("fresh");
        let workspace = Workspace::open(Some(&fresh), false).unwrap();
        workspace.write("").unwrap();
        workspace.remove();
        assert!(!fresh.exists());

        let taken = parent.path().join("taken");
        fs::create_dir(&taken).unwrap();
        let workspace = Workspace::open(Some(&taken), false).unwrap();
        workspace.write("").unwrap();
        workspace.remove();
        assert_eq!(fs::read_dir(&taken).unwrap().count(), 0);

        let kept = Workspace::open(Some(&taken), true).unwrap();
        kept.write("").unwrap();
        kept.remove();
        let error = Workspace::open(Some(&taken), false).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
    }

    #[test]
    fn long_paths_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let long = parent.path().join("x".repeat(100));
        let error = Workspace::open(Some(&long), false).unwrap_err().to_string();
        assert!(error.contains("--dir"), "{error}");
        assert!(!long.exists());
    }
}
