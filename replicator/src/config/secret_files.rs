//! Where a node's secrets lie, and how they change there: `FILE` is what it uses, `FILE.next` what it accepts already,
//! `FILE.old` what it accepts still. Each change is one rename or one removal, so that a crash leaves the stage before it
//! or the stage after it.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::file::{self, FileError};
use super::secret::{SECRET_BYTES_MAX, SECRET_BYTES_MIN};
use crate::options::Secret;
use crate::secrets::Secrets;

/// The files of one node's secrets.
#[derive(Clone, Debug)]
pub struct SecretFiles {
    own: PathBuf,
    next: PathBuf,
    old: PathBuf,
}

/// Why secrets cannot be read or changed.
#[derive(Debug, Error)]
pub enum SecretFileError {
    /// The system refused something.
    #[error("cannot {action} the secret file {}: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It is no secret.
    #[error("{} is no secret: {reason}", path.display())]
    NotOne {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl SecretFiles {
    /// The files around the one that the configuration names.
    #[must_use]
    pub fn at(own: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut path = own.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        };
        Self { own: own.to_owned(), next: beside(".next"), old: beside(".old") }
    }

    /// The secrets as they are now.
    ///
    /// # Errors
    /// If there is none, or one cannot be read.
    pub fn load(&self) -> Result<Secrets, SecretFileError> {
        let own =
            read(&self.own)?.ok_or_else(|| system(&self.own, "read", io::ErrorKind::NotFound.into()))?;
        let (next, old) = self.load_others()?;
        Ok(Secrets { own, next, old })
    }

    /// What is accepted beside the secret that is used: the next and the old one.
    ///
    /// # Errors
    /// If one is there and cannot be read.
    pub fn load_others(&self) -> Result<(Option<Secret>, Option<Secret>), SecretFileError> {
        Ok((read(&self.next)?, read(&self.old)?))
    }

    /// Accepts another secret, in the place of one that was to be the next.
    ///
    /// # Errors
    /// If it is not stored; what was accepted before still is then.
    pub fn accept(&self, next: &Secret) -> Result<(), SecretFileError> {
        write(&self.next, next)
    }

    /// Uses the next secret, and accepts the one that was used until now.
    ///
    /// # Errors
    /// If it is not stored; the one that was used until now still is then.
    pub fn use_next(&self) -> Result<(), SecretFileError> {
        let Secrets { own, .. } = self.load()?;
        // First the old one: a crash between the two leaves it accepted twice, never not at all.
        write(&self.old, &own)?;
        std::fs::rename(&self.next, &self.own).map_err(|source| system(&self.own, "replace", source))?;
        sync_folder(&self.own)
    }

    /// Accepts the old secret no more.
    ///
    /// # Errors
    /// If it is not removed.
    pub fn forget_old(&self) -> Result<(), SecretFileError> {
        match std::fs::remove_file(&self.old) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(system(&self.old, "remove", source))
            }
            _ => sync_folder(&self.old),
        }
    }
}

fn system(path: &Path, action: &'static str, source: io::Error) -> SecretFileError {
    SecretFileError::System { path: path.to_owned(), action, source }
}

/// Reads one; `None` if it is not there.
fn read(path: &Path) -> Result<Option<Secret>, SecretFileError> {
    let not_one = |reason: String| SecretFileError::NotOne { path: path.to_owned(), reason };
    let bytes = match file::read(path, SECRET_BYTES_MAX as u64) {
        Ok((_, bytes)) => bytes,
        Err(FileError::System(source)) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(FileError::System(source)) => return Err(system(path, "read", source)),
        Err(FileError::NotRegular(kind)) => return Err(not_one(format!("it is {kind}"))),
        Err(FileError::TooLarge) => return Err(not_one(format!("it is over {SECRET_BYTES_MAX} bytes"))),
    };
    let secret = bytes.trim_ascii();
    if secret.len() < SECRET_BYTES_MIN {
        return Err(not_one(format!("it has {} bytes, and one has {SECRET_BYTES_MIN}", secret.len())));
    }
    Ok(Some(Secret(secret.to_vec())))
}

/// Writes one, for its owner alone, as a whole or not at all.
fn write(path: &Path, secret: &Secret) -> Result<(), SecretFileError> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    let draft = PathBuf::from(draft);
    let written = (|| {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&secret.0)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    })();
    written.map_err(|source| system(path, "write", source))?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> Result<(), SecretFileError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| system(path, "sync the folder of", source))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret(vec![byte; 32])
    }

    fn files() -> (tempfile::TempDir, SecretFiles) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, [&[b'o'; 32][..], b"\n"].concat()).unwrap();
        (folder, SecretFiles::at(&path))
    }

    #[test]
    fn a_rotation_accepts_then_uses_then_forgets() {
        let (folder, files) = files();
        let (old, new) = (secret(b'o'), secret(b'n'));
        assert_eq!(files.load().unwrap(), Secrets::only(old.clone()));
        files.accept(&secret(b'x')).unwrap();
        files.accept(&new).unwrap();
        let accepting = Secrets { own: old.clone(), next: Some(new.clone()), old: None };
        assert_eq!(files.load().unwrap(), accepting);
        files.use_next().unwrap();
        assert_eq!(files.load().unwrap(), Secrets { own: new.clone(), next: None, old: Some(old) });
        let mode = std::fs::metadata(folder.path().join("secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        files.forget_old().unwrap();
        files.forget_old().unwrap();
        assert_eq!(files.load().unwrap(), Secrets::only(new));
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "a draft is left");
    }

    #[test]
    fn a_crash_in_the_middle_of_a_change_leaves_both_accepted() {
        let (folder, files) = files();
        files.accept(&secret(b'n')).unwrap();
        // As if it had ended between the two renames.
        std::fs::write(folder.path().join("secret.old"), [b'o'; 32]).unwrap();
        let secrets = files.load().unwrap();
        assert_eq!(secrets.own, secret(b'o'));
        assert!(secrets.accepted().any(|accepted| *accepted == secret(b'n')));
        files.use_next().unwrap();
        assert_eq!(files.load().unwrap().own, secret(b'n'));
    }

    #[test]
    fn what_is_no_secret_is_named() {
        let (folder, files) = files();
        assert!(files.use_next().is_err(), "there is no next one");
        std::fs::write(folder.path().join("secret.next"), b"short").unwrap();
        assert!(files.load().unwrap_err().to_string().contains("secret.next is no secret"));
        std::fs::remove_file(folder.path().join("secret")).unwrap();
        assert!(files.load().is_err());
    }
}
