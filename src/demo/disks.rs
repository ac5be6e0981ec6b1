//! The disks of two replicas at rest, compared byte for byte.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::ledger::{Ledger, Verdict};
use super::writer::check_with;

const CHUNK_BYTES: usize = 1 << 20;

/// The first byte at which two disks differ, if they do. A disk that ends earlier differs there.
pub(super) fn first_difference(one: &Path, other: &Path) -> Result<Option<u64>> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let (mut one, mut other) = (open(one)?, open(other)?);
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut offset = 0;
    loop {
        let (left_bytes, right_bytes) = (fill(&mut one, &mut left)?, fill(&mut other, &mut right)?);
        let common = left_bytes.min(right_bytes);
        if left[..common] != right[..common] {
            let at = (0..common).find(|at| left[*at] != right[*at]).unwrap_or(0);
            return Ok(Some(offset + at as u64));
        }
        offset += common as u64;
        if left_bytes != right_bytes {
            return Ok(Some(offset));
        }
        if common < CHUNK_BYTES {
            return Ok(None);
        }
    }
}

fn fill(file: &mut File, bytes: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]).context("cannot read a disk")? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Looks for every record on the disk itself.
pub(super) fn check(ledgers: &mut [Ledger], disk: &Path) -> Result<Verdict> {
    let file = File::open(disk).with_context(|| format!("cannot read {}", disk.display()))?;
    let verdict = check_with(ledgers, |offset, bytes| file.read_exact_at(bytes, offset));
    verdict.with_context(|| format!("cannot read {}", disk.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut bytes = vec![7; 3 * CHUNK_BYTES + 5];
        std::fs::write(path("a"), &bytes).unwrap();
        std::fs::write(path("b"), &bytes).unwrap();
        assert_eq!(first_difference(&path("a"), &path("b")).unwrap(), None);
        bytes[2 * CHUNK_BYTES + 9] = 8;
        std::fs::write(path("b"), &bytes).unwrap();
        assert_eq!(first_difference(&path("a"), &path("b")).unwrap(), Some(2 * CHUNK_BYTES as u64 + 9));
        std::fs::write(path("b"), &bytes[..CHUNK_BYTES]).unwrap();
        assert_eq!(first_difference(&path("a"), &path("b")).unwrap(), Some(CHUNK_BYTES as u64));
    }
}
