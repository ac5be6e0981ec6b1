//! The secret that all nodes share: from the file itself or from a file beside it. It is never printed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

use super::problem::Problems;
use super::section::At;
use crate::options::Secret;

/// Bytes a secret has at least.
const SECRET_BYTES_MIN: usize = 16;
/// Bytes a secret has at most.
const SECRET_BYTES_MAX: usize = 4096;

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
pub(super) fn inline(text: &At<String>, problems: &mut Problems) -> Option<Secret> {
    sound(text.value.as_bytes(), &text.span, "the secret", problems)
}

/// Reads the secret from a file of its own.
pub(super) fn from_file(path: &Path, at: &At<String>, problems: &mut Problems) -> Option<Secret> {
    let read = std::fs::metadata(path).and_then(|metadata| {
        let mode = metadata.permissions().mode() & 0o777;
        let too_large = metadata.len() > SECRET_BYTES_MAX as u64;
        let bytes = if too_large { Vec::new() } else { std::fs::read(path)? };
        Ok((mode, too_large, bytes))
    });
    let (mode, too_large, bytes) = match read {
        Ok(read) => read,
        Err(error) => {
            let message = format!("cannot read the secret file {}: {error}", path.display());
            let help = format!(
                "make one, the same on all nodes: umask 077; head -c 32 /dev/urandom | base64 > {}",
                path.display()
            );
            problems.error(&at.span, message, help);
            return None;
        }
    };
    if too_large {
        let message = format!("the secret file {} is over {SECRET_BYTES_MAX} bytes", path.display());
        problems.error(&at.span, message, "is it the right file?".to_owned());
        return None;
    }
    if mode & 0o077 != 0 {
        let message = format!("the secret file {} may be read by others (mode {mode:03o})", path.display());
        problems.warning(&at.span, message, format!("chmod 600 {}", path.display()));
    }
    let subject = format!("the secret in {}", path.display());
    sound(bytes.trim_ascii(), &at.span, &subject, problems)
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
