//! A block device of the kernel as the system shows it: what it is attached to, its queue, its link in
//! /dev/holdfast.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;

use super::identity::Identity;
use super::record::Record;

const DEVICES: &str = "/sys/block";
const LINKS: &str = "/dev/holdfast";
/// Longer requests would not be faster, and keep shorter ones waiting.
const REQUEST_BYTES_USEFUL: u32 = 1 << 20;

/// Which of the kernel's drivers makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Driver {
    Nbd,
    Ublk,
}

impl Driver {
    /// What the names of its devices begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::Ublk => "ublkb",
        }
    }
}

/// `/dev/nbdN` or `/dev/ublkbN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Device {
    pub(crate) driver: Driver,
    pub(crate) index: u32,
}

impl Device {
    pub(crate) fn nbd(index: u32) -> Self {
        Self { driver: Driver::Nbd, index }
    }

    pub(crate) fn ublk(index: u32) -> Self {
        Self { driver: Driver::Ublk, index }
    }

    /// Reads `/dev/nbd3`, `ublkb3`, or a link to one.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let path = fs::canonicalize(text).unwrap_or_else(|_| PathBuf::from(text));
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Self::named(name).with_context(|| {
            format!("{text} is no NBD or ublk device; they are called /dev/nbd0 and /dev/ublkb0")
        })
    }

    fn named(name: &str) -> Option<Self> {
        let index = |driver: Driver| name.strip_prefix(driver.prefix())?.parse().ok();
        [Driver::Nbd, Driver::Ublk]
            .into_iter()
            .find_map(|driver| index(driver).map(|index| Self { driver, index }))
    }

    fn name(self) -> String {
        format!("{}{}", self.driver.prefix(), self.index)
    }

    pub(crate) fn path(self) -> PathBuf {
        Path::new("/dev").join(self.name())
    }

    /// What it is attached to; nothing if it is not attached, or to something else.
    pub(crate) fn identity(self) -> Option<Identity> {
        match self.driver {
            Driver::Nbd => fs::read_to_string(self.attribute("backend")).ok()?.parse().ok(),
            // Without the device the record is of the past.
            Driver::Ublk => self
                .attribute("size")
                .exists()
                .then(|| Record::read(self.index))?
                .map(|record| record.identity),
        }
    }

    /// Bytes of it.
    pub(crate) fn size_bytes(self) -> Option<u64> {
        let sectors: u64 = fs::read_to_string(self.attribute("size")).ok()?.trim_end().parse().ok()?;
        sectors.checked_mul(512)
    }

    /// How many connections it was made with: the kernel gives each a hardware queue.
    pub(crate) fn connections(self) -> Result<u8> {
        let path = self.attribute("mq");
        let queues = fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?.count();
        u8::try_from(queues).with_context(|| format!("{} has {queues} queues", self.path().display()))
    }

    /// Sets the queue so that requests come as they are, and not longer than the server takes them.
    pub(crate) fn tune(self, request_bytes_max: u32) -> Result<()> {
        let longest_kib = request_bytes_max.min(REQUEST_BYTES_USEFUL) / 1024;
        self.set("queue/scheduler", "none")?;
        self.set("queue/max_sectors_kb", &longest_kib.to_string())
    }

    /// Sets when the kernel looks again at a request that has no answer.
    pub(crate) fn look_again_after(self, time: Duration) -> Result<()> {
        self.set("queue/io_timeout", &time.as_millis().to_string())
    }

    /// Sets how many requests may be under way.
    pub(crate) fn limit_requests(self, requests: u16) -> Result<()> {
        self.set("queue/nr_requests", &requests.to_string())
    }

    /// Makes sure that nobody uses it, and that what was written to it has arrived.
    pub(crate) fn settle(self) -> Result<()> {
        let path = self.path();
        let mut options = OpenOptions::new();
        // On a block device this asks for it to be nobody else's: no mounted file system, no swap, no RAID.
        options.custom_flags(OFlags::EXCL.bits().cast_signed());
        let opened = options.read(true).write(true).open(&path).or_else(|error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                options.write(false).open(&path)
            }
            _ => Err(error),
        });
        let file: File = match opened {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                bail!("{} is in use: unmount what lies on it first", path.display())
            }
            other => other.with_context(|| format!("cannot open {}", path.display()))?,
        };
        file.sync_all().with_context(|| format!("cannot write back what waits for {}", path.display()))
    }

    /// Makes the link by which people find it.
    pub(crate) fn link(self, volume: &str) -> Result<()> {
        let link = link_of(volume);
        let made = fs::create_dir_all(LINKS).and_then(|()| {
            // Made beside it and moved over it: whoever looks meanwhile finds the old one or the new one.
            let fresh = Path::new(LINKS).join(format!(".{volume}.{}", std::process::id()));
            symlink(self.path(), &fresh).and_then(|()| fs::rename(&fresh, &link))
        });
        made.with_context(|| format!("cannot make the link {}", link.display()))?;
        self.announce();
        Ok(())
    }

    /// Has udev look again: at the kernel's last word of the device it could not be seen what it is attached to. Where
    /// nobody listens nobody needs to know.
    pub(crate) fn announce(self) {
        let _ = fs::write(self.attribute("uevent"), "change");
    }

    fn attribute(self, name: &str) -> PathBuf {
        Path::new(DEVICES).join(self.name()).join(name)
    }

    fn set(self, name: &str, value: &str) -> Result<()> {
        let path = self.attribute(name);
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
    }
}

/// The link of a volume's device.
pub(crate) fn link_of(volume: &str) -> PathBuf {
    Path::new(LINKS).join(volume)
}

/// Removes a volume's link, if there is one.
pub(crate) fn unlink(volume: &str) -> Result<()> {
    match fs::remove_file(link_of(volume)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the link {}", link_of(volume).display()))
        }
        _ => Ok(()),
    }
}

/// All devices that are attached to volumes, in the order of their drivers and numbers.
pub(crate) fn attached() -> Result<Vec<(Device, Identity)>> {
    let entries = fs::read_dir(DEVICES).with_context(|| format!("cannot list {DEVICES}"))?;
    let mut found: Vec<(Device, Identity)> = entries
        .filter_map(|entry| {
            let device = Device::named(entry.ok()?.file_name().to_str()?)?;
            device.identity().map(|identity| (device, identity))
        })
        .collect();
    found.sort_by_key(|(device, _)| *device);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_called_as_the_kernel_calls_them() {
        assert_eq!(Device::parse("/dev/nbd12").unwrap(), Device::nbd(12));
        assert_eq!(Device::parse("nbd0").unwrap().path(), Path::new("/dev/nbd0"));
        assert_eq!(Device::parse("/dev/ublkb3").unwrap(), Device::ublk(3));
        for other in ["/dev/sda", "nbd", "/dev/nbd0p1", "3", "/dev/ublkc3"] {
            assert!(Device::parse(other).is_err(), "{other}");
        }
    }
}
