//! What is mounted where, as the kernel tells it, and whether a device is still there. Nothing is changed here.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, major, minor, open};
use rustix::io::Errno;

/// Major and minor number of a device.
pub(super) type Number = (u32, u32);

/// Something mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The device that files on it seem to be on.
    pub(super) number: Number,
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// What is mounted, in the words of whoever did it.
    pub(super) source: PathBuf,
    /// Whether nothing can be written, there or anywhere.
    pub(super) is_read_only: bool,
}

/// What is mounted in the namespace of this thread, what is on top last.
pub(super) fn list() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/thread-self/mountinfo")?))
}

/// Reads a `mountinfo`; lines that are none are left out.
pub(super) fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point options tags - type source options`, with any number of tags.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let number = (number.0.parse().ok()?, number.1.parse().ok()?);
    let point = path(fields.nth(1)?);
    let here = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let source = path(fields.nth(1)?);
    let everywhere = fields.next()?;
    let is_ro = |options: &[u8]| options.split(|byte| *byte == b',').any(|option| option == b"ro");
    Some(Mount { number, point, source, is_read_only: is_ro(here) || is_ro(everywhere) })
}

/// Blanks and the like stand as three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), field);
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The block device at a path, links followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Its number.
    pub(super) number: Number,
    path: PathBuf,
}

impl Device {
    /// What is at `path`; nothing if it is no block device.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok().filter(|found| found.file_type().is_block_device())?;
        let number = (major(found.rdev()), minor(found.rdev()));
        Some(Self { number, path: fs::canonicalize(path).ok()? })
    }

    /// Whether this is what is mounted. Some file systems have numbers of their own, and are known by the path.
    pub(super) fn is_mounted_as(&self, mount: &Mount) -> bool {
        mount.number == self.number || fs::canonicalize(&mount.source).is_ok_and(|path| path == self.path)
    }

    /// Whether the kernel uses it: a file system that is mounted in any namespace, or another device on it.
    pub(super) fn is_claimed(&self) -> bool {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
        matches!(open(&self.path, flags, Mode::empty()), Err(Errno::BUSY))
    }
}

/// Whether what is mounted is on a block device that is no more there, or answers nobody.
pub(super) fn is_dead(mount: &Mount) -> bool {
    // Without a device of its own nothing can be said.
    if mount.number.0 == 0 {
        return !mount.source.exists() && mount.source.is_absolute();
    }
    let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", mount.number.0, mount.number.1));
    let Ok(real) = fs::canonicalize(&folder) else { return true };
    let is_nbd = real.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nbd"));
    // The kernel says who serves it while somebody does.
    let has_size = fs::read_to_string(folder.join("size")).is_ok_and(|size| size.trim() != "0");
    !has_size || (is_nbd && !folder.join("pid").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        let text = b"22 1 0:20 / /proc rw,nosuid - proc proc rw\n\
            36 35 98:0 / /srv/my\\040db rw,noatime master:1 shared:2 - ext3 /dev/root ro,errors=remount-ro\n\
            nothing of this kind\n\
            37 35 7:1 / /back\\134slash ro - ext4 /dev/loop1 rw\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 3);
        let db = Mount {
            number: (98, 0),
            point: "/srv/my db".into(),
            source: "/dev/root".into(),
            is_read_only: true,
        };
        assert_eq!(mounts[1], db);
        assert_eq!((mounts[2].point.as_path(), mounts[2].is_read_only), (Path::new("/back\\slash"), true));
        assert!(!mounts[0].is_read_only);
    }

    #[test]
    fn a_device_that_is_nowhere_is_dead() {
        let mount = |number, source: &str| Mount {
            number,
            point: "/x".into(),
            source: source.into(),
            is_read_only: false,
        };
        assert!(is_dead(&mount((4095, 1), "/dev/gone")));
        assert!(!is_dead(&mount((0, 40), "tmpfs")));
    }
}
