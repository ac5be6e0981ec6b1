//! The secret that all nodes share: from the file itself or from a file beside it. It is never printed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

use super::file::{self, FileError};
use super::problem::Problems;
use super::secret_files::SecretFiles;
use super::section::At;
use crate::options::Secret;
use crate::secrets::Secrets;

/// Bytes a secret has at least.
pub(super) const SECRET_BYTES_MIN: usize = 16;
/// Bytes a secret has at most.
pub(super) const SECRET_BYTES_MAX: usize = 4096;

/// A fresh random secret: 256 bits in hexadecimal.
///
/// # Panics
/// If the kernel gives no random bytes.
#[must_use]
pub fn fresh_secret() -> String {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes the secret that stands in the configuration file.
pub(super) fn inline(text: &At<String>, problems: &mut Problems) -> Option<Secrets> {
    sound(text.value.as_bytes(), &text.span, "the secret", problems).map(Secrets::only)
}

/// Reads the secret from a file of its own, and those beside it that are there while keys are rotated.
pub(super) fn from_file(path: &Path, at: &At<String>, problems: &mut Problems) -> Option<Secrets> {
    let bytes = read(path, at, problems)?;
    let subject = format!("the secret in {}", path.display());
    let own = sound(bytes.trim_ascii(), &at.span, &subject, problems)?;
    match SecretFiles::at(path).load_others() {
        Ok((next, old)) => Some(Secrets { own, next, old }),
        Err(error) => {
            let help = "it is there while keys are rotated: holdfast cluster rotate-keys goes on".to_owned();
            problems.error(&at.span, error.to_string(), help);
            None
        }
    }
}

fn read(path: &Path, at: &At<String>, problems: &mut Problems) -> Option<Vec<u8>> {
    let (metadata, bytes) = match file::read(path, SECRET_BYTES_MAX as u64) {
        Ok(read) => read,
        Err(error) => {
            let (message, help) = unreadable(path, &error);
            problems.error(&at.span, message, help);
            return None;
        }
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let message = format!("the secret file {} may be read by others (mode {mode:03o})", path.display());
        problems.warning(&at.span, message, format!("chmod 600 {}", path.display()));
    }
    Some(bytes)
}

/// Reads a password for a device from a file of its own: one line.
pub(super) fn password(path: &Path, at: &At<String>, problems: &mut Problems) -> Option<Secret> {
    let bytes = read(path, at, problems)?;
    let line = bytes.trim_ascii();
    if line.is_empty() || line.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        let message = format!("the password in {} is not one line of text", path.display());
        problems.error(&at.span, message, None);
        return None;
    }
    Some(Secret(line.to_vec()))
}

fn unreadable(path: &Path, error: &FileError) -> (String, String) {
    let path = path.display();
    let right = || "is it the right file?".to_owned();
    match error {
        FileError::System(error) => (
            format!("cannot read the secret file {path}: {error}"),
            format!("make one, the same on all nodes: umask 077; head -c 32 /dev/urandom | base64 > {path}"),
        ),
        FileError::NotRegular(kind) => {
            (format!("the secret file {path} is {kind}, and must be a regular file"), right())
        }
        FileError::TooLarge => (format!("the secret file {path} is over {SECRET_BYTES_MAX} bytes"), right()),
    }
}

fn sound(
    bytes: &[u8],
    span: &std::ops::Range<usize>,
    subject: &str,
    problems: &mut Problems,
) -> Option<Secret> {
    if (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
        return Some(Secret(bytes.to_vec()));
    }
    let message =
        format!("{subject} has {} bytes; it must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}", bytes.len());
    problems.error(span, message, format!("for example, freshly drawn: {}", fresh_secret()));
    None
}
