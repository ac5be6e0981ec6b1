//! A file that is not there yet: written as a whole or not at all, for its owner alone, and never over another.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Writes a new file, which is durable when this returns.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = folder(path);
    let written = (|| {
        let mut file = tempfile::Builder::new().prefix(".holdfast.").tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path)?;
        std::fs::File::open(folder)?.sync_all()
    })();
    written.map_err(|error: io::Error| already(path, error))
}

fn already(path: &Path, error: io::Error) -> anyhow::Error {
    let what = if error.kind() == io::ErrorKind::AlreadyExists {
        format!("{} is there already, and nothing is overwritten", path.display())
    } else {
        format!("{} is not written", path.display())
    };
    anyhow::Error::new(error).context(what)
}

/// Makes the folder of `path`, and makes sure that nothing is there and something can be.
pub(crate) fn prepare(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        bail!("{} is there already, and nothing is overwritten: move it away first", path.display());
    }
    let folder = folder(path);
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let trial = tempfile::Builder::new().prefix(".holdfast.").tempfile_in(folder);
    trial.with_context(|| format!("cannot write into the folder {}", folder.display())).map(drop)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write(&path, b"one").unwrap();
        assert!(format!("{:#}", write(&path, b"two").unwrap_err()).contains("is there already"));
        assert!(prepare(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing is left beside it");
    }
}
