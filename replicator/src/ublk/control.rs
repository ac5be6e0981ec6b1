//! Control of ublk devices: one command at a time, each waited for. Needs root.
//!
//! ```text
//!            add          start (with a server)
//!   (none) -------> Dead ---------------------> Live <--------------------+
//!     ^              ^                           | the server dies        | end_recovery
//!     | delete       | stop                      v                        | (with a new server)
//!     +--------------+----------------------- Quiesced --begin_recovery --+
//! ```

use std::io;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::spec::{self, Info, Parameters};
use super::{REQUEST_BYTES_MAX, TAGS, ZERO_BYTES_MAX};
use crate::ring::ControlRing;

const CONTROL_DEVICE: &str = "/dev/ublk-control";
/// What a device of ours needs of the driver.
const FLAGS: u64 = spec::FLAG_USER_COPY
    | spec::FLAG_USER_RECOVERY
    | spec::FLAG_USER_RECOVERY_REISSUE
    | spec::FLAG_IOCTL_ENCODE;
/// How long the kernel may take for a command: stopping waits until what was written back has failed or arrived.
const LIMIT: Duration = Duration::from_secs(30);
/// How long an old kernel may take to forget a device that somebody still has open.
const DELETE_LIMIT: Duration = Duration::from_secs(2);

/// Why the kernel did not do it.
#[derive(Debug, Error)]
pub enum ControlError {
    /// There is no driver.
    #[error(
        "this kernel has no ublk driver loaded: run `modprobe ublk_drv` (CONFIG_BLK_DEV_UBLK, Linux 6.5 or later), or \
         attach over NBD, without --ublk"
    )]
    NoDriver,
    /// The driver is too old.
    #[error(
        "this kernel's ublk driver is too old: it needs UBLK_F_USER_COPY, so Linux 6.5 or later; attach over NBD, \
         without --ublk"
    )]
    TooOld,
    /// The process may not.
    #[error("attaching needs root (CAP_SYS_ADMIN)")]
    Forbidden,
    /// The number is taken.
    #[error("there is a ublk device {0} already: choose another one, or none to get a free one")]
    Taken(u32),
    /// The old server is not gone yet, or there is no recovery to be made.
    #[error("the device still has a server")]
    Busy,
    /// There is no such device.
    #[error("there is no ublk device {0}")]
    NoDevice(u32),
    /// It takes too long.
    #[error("the kernel did not {what} the device within {} s; its server may hold requests of it", LIMIT.as_secs())]
    Deadline {
        /// What it was to do.
        what: &'static str,
    },
    /// Anything else it says.
    #[error("the kernel refuses to {what} the device: {source}; its log (dmesg) may say more")]
    Refused {
        /// What it was to do.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// What a device is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewDevice {
    /// Its number; the kernel chooses if there is none.
    pub index: Option<u32>,
    /// Bytes of it.
    pub size_bytes: u64,
    /// Bytes of a logical block, a power of two from 512 to 4096.
    pub logical_block_bytes: u32,
    /// Bytes of what is best read and written as a whole, at least a logical block.
    pub physical_block_bytes: u32,
    /// Whether the kernel refuses writes.
    pub read_only: bool,
    /// Kept with the device, of no meaning to the kernel.
    pub mark: u64,
}

/// How far a device is; see the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Made and not started, or stopped.
    Dead,
    /// It has a server.
    Live,
    /// Its server is gone: requests wait for a new one.
    Quiesced,
    /// In none of the states that a device of ours can be in.
    Other(u16),
}

/// What the kernel says of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub index: u32,
    /// How far it is.
    pub state: DeviceState,
    /// Process of the server that it has or had.
    pub server_pid: i32,
    /// How many tags it was made with.
    pub tags: u16,
    /// What was kept with it.
    pub mark: u64,
}

/// The driver's control device.
pub struct Control {
    ring: ControlRing,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl Control {
    /// Opens the control device and sees whether the driver has all that is needed.
    ///
    /// # Errors
    /// If it has not, or the process may not.
    pub fn open() -> Result<Self, ControlError> {
        let refused = |source| ControlError::Refused { what: "control", source };
        let opened = rustix::fs::open(CONTROL_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let file = opened.map_err(|error| match error {
            Errno::NOENT | Errno::NXIO | Errno::NODEV => ControlError::NoDriver,
            Errno::ACCESS | Errno::PERM => ControlError::Forbidden,
            other => refused(other.into()),
        })?;
        let mut control = Self { ring: ControlRing::new(file).map_err(refused)? };
        // Kernels that do not know this command do not know what is asked for either.
        let features = control
            .ask("control", spec::FEATURES, u32::MAX, vec![0; spec::FEATURES_BYTES], 0)
            .map(|bytes| spec::features(&bytes))
            .map_err(|error| match error {
                ControlError::Forbidden => error,
                _ => ControlError::TooOld,
            })?;
        if features & FLAGS == FLAGS { Ok(control) } else { Err(ControlError::TooOld) }
    }

    /// Makes a device, without starting it.
    ///
    /// # Errors
    /// If the kernel refuses; there is no device then.
    pub fn add(&mut self, new: &NewDevice) -> Result<DeviceInfo, ControlError> {
        let info = Info {
            tags: TAGS,
            state: spec::STATE_DEAD,
            request_bytes_max: REQUEST_BYTES_MAX,
            device: new.index.unwrap_or(u32::MAX),
            server_pid: -1,
            flags: FLAGS,
            mark: new.mark,
        };
        let made = self.ask("make", spec::ADD, info.device, info.encode(), 0);
        let made = Info::decode(&made.map_err(|error| match (&error, new.index) {
            (ControlError::Refused { source, .. }, Some(index))
                if source.kind() == io::ErrorKind::AlreadyExists =>
            {
                ControlError::Taken(index)
            }
            _ => error,
        })?);
        let parameters = Parameters {
            size_bytes: new.size_bytes,
            logical_block_bytes: new.logical_block_bytes,
            physical_block_bytes: new.physical_block_bytes,
            request_bytes_max: REQUEST_BYTES_MAX,
            zero_bytes_max: ZERO_BYTES_MAX,
            read_only: new.read_only,
        };
        let told = self.ask("describe", spec::SET_PARAMETERS, made.device, parameters.encode(), 0);
        if let Err(error) = told {
            self.delete(made.device)?;
            return Err(error);
        }
        Ok(DeviceInfo::from(made))
    }

    /// Starts a device whose server takes requests, or will in a moment.
    ///
    /// # Errors
    /// If the kernel refuses, or the server takes none.
    pub fn start(&mut self, index: u32, server_pid: u32) -> Result<(), ControlError> {
        self.tell("start", spec::START, index, u64::from(server_pid))
    }

    /// Stops a device: what is under way is waited for, what comes later fails. The device is gone as soon as nobody
    /// uses it.
    ///
    /// # Errors
    /// If the kernel refuses, or a server that lives does not answer requests.
    pub fn stop(&mut self, index: u32) -> Result<(), ControlError> {
        self.tell("stop", spec::STOP, index, 0)
    }

    /// Forgets a device, stopping it first. Its number is free as soon as nobody uses it.
    ///
    /// # Errors
    /// As for [`Self::stop`].
    pub fn delete(&mut self, index: u32) -> Result<(), ControlError> {
        let later = self.tell("delete", spec::DELETE_LATER, index, 0);
        match later {
            // Before Linux 6.9 there is only the command that waits until nobody has it open.
            Err(ControlError::Refused { source, .. }) if is_unknown(&source) => {
                let waited = self.ask_within("delete", spec::DELETE, index, Vec::new(), 0, DELETE_LIMIT);
                match waited {
                    Ok(_) | Err(ControlError::Deadline { .. }) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            other => other,
        }
    }

    /// Makes a quiesced device ready for a new server.
    ///
    /// # Errors
    /// [`ControlError::Busy`] while the old server still has the device.
    pub fn begin_recovery(&mut self, index: u32) -> Result<(), ControlError> {
        self.tell("hand over", spec::RECOVERY_BEGIN, index, 0)
    }

    /// Goes on with a new server, which takes requests, or will in a moment.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn end_recovery(&mut self, index: u32, server_pid: u32) -> Result<(), ControlError> {
        self.tell("hand over", spec::RECOVERY_END, index, u64::from(server_pid))
    }

    /// Gives a live device another size. Linux 6.16.
    ///
    /// # Errors
    /// If the kernel refuses, or does not know how to.
    pub fn resize(&mut self, index: u32, size_bytes: u64) -> Result<(), ControlError> {
        self.tell("resize", spec::UPDATE_SIZE, index, size_bytes / spec::SECTOR_BYTES)
    }

    /// What the kernel says of a device.
    ///
    /// # Errors
    /// If there is none, or the kernel refuses.
    pub fn info(&mut self, index: u32) -> Result<DeviceInfo, ControlError> {
        let bytes = self.ask("show", spec::INFO, index, vec![0; spec::INFO_BYTES], 0)?;
        Ok(DeviceInfo::from(Info::decode(&bytes)))
    }

    fn tell(&mut self, what: &'static str, number: u32, index: u32, data: u64) -> Result<(), ControlError> {
        self.ask(what, number, index, Vec::new(), data).map(drop)
    }

    fn ask(
        &mut self,
        what: &'static str,
        number: u32,
        index: u32,
        buffer: Vec<u8>,
        data: u64,
    ) -> Result<Vec<u8>, ControlError> {
        self.ask_within(what, number, index, buffer, data, LIMIT)
    }

    fn ask_within(
        &mut self,
        what: &'static str,
        number: u32,
        index: u32,
        buffer: Vec<u8>,
        data: u64,
        limit: Duration,
    ) -> Result<Vec<u8>, ControlError> {
        let len = buffer.len();
        let encode = |address| spec::control_command(index, len, if len == 0 { 0 } else { address }, data);
        self.ring.command(number, buffer, encode, limit).map_err(|source| {
            match Errno::from_io_error(&source) {
                _ if source.kind() == io::ErrorKind::TimedOut => ControlError::Deadline { what },
                Some(Errno::PERM | Errno::ACCESS) => ControlError::Forbidden,
                Some(Errno::BUSY) => ControlError::Busy,
                Some(Errno::NODEV) => ControlError::NoDevice(index),
                _ => ControlError::Refused { what, source },
            }
        })
    }
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::OPNOTSUPP | Errno::INVAL))
}

impl From<Info> for DeviceInfo {
    fn from(info: Info) -> Self {
        let state = match info.state {
            spec::STATE_DEAD => DeviceState::Dead,
            spec::STATE_LIVE => DeviceState::Live,
            spec::STATE_QUIESCED => DeviceState::Quiesced,
            other => DeviceState::Other(other),
        };
        Self { index: info.device, state, server_pid: info.server_pid, tags: info.tags, mark: info.mark }
    }
}
