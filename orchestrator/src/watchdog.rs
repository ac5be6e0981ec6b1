//! A watchdog device: it resets the machine when nobody has fed it for its timeout. It is armed before anything is promoted
//! here, and fed only while what runs here may run. A regular file in its place is written to and resets nothing.
//!
//! ```text
//!            arm                    stop, nothing is primary here
//!   Closed ------> Armed (fed) ------------------------------------> Closed, disarmed
//!                    |   ^      stop otherwise
//!    not allowed any |   |  --------------------> Closed, armed: the machine is reset, unless it is armed anew
//!    more            v   | allowed again
//!                  Armed (not fed) --timeout--> the machine is reset
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use orchestrator_core::units::Instant;
use rustix::ioctl::{Updater, ioctl, opcode};

use crate::clock::now;

/// `WDIOC_SETTIMEOUT` of `linux/watchdog.h`: takes seconds, and gives back those that the device will keep.
const SET_TIMEOUT: rustix::ioctl::Opcode = opcode::read_write::<i32>(b'W', 6);
/// Any byte but `V` feeds it.
const FOOD: &[u8] = b"1";
/// Closing after this one disarms it.
const MAGIC_CLOSE: &[u8] = b"V";
/// It is fed this often within its timeout.
const FEEDINGS: u64 = 5;

/// A configured watchdog.
pub(crate) struct Watchdog {
    device: PathBuf,
    timeout_ms: u64,
    armed: Option<Armed>,
}

/// One that is armed.
struct Armed {
    timeout_ms: u64,
    shared: Arc<Shared>,
    /// Ends the feeding when it is dropped.
    stop: mpsc::Sender<()>,
    feeder: JoinHandle<()>,
}

struct Shared {
    allowed_until_ms: AtomicU64,
    /// Whether it is to be disarmed at the end.
    disarm: AtomicBool,
}

impl Watchdog {
    pub(crate) fn new(device: PathBuf, timeout_ms: u64) -> Self {
        Self { device, timeout_ms, armed: None }
    }

    /// The timeout of the device, if it is armed.
    pub(crate) fn armed_ms(&self) -> Option<u64> {
        self.armed.as_ref().filter(|armed| !armed.feeder.is_finished()).map(|armed| armed.timeout_ms)
    }

    /// Arms it, and has it fed until `until`.
    ///
    /// # Errors
    /// If the device cannot be used; then nothing here is reset.
    pub(crate) fn arm(&mut self, until: Instant) -> io::Result<()> {
        let (device, timeout_ms) = open(&self.device, self.timeout_ms)?;
        let disarm = AtomicBool::new(false);
        let shared = Arc::new(Shared { allowed_until_ms: AtomicU64::new(until.0), disarm });
        let (stop, stopped) = mpsc::channel();
        let fed = Arc::clone(&shared);
        let interval = Duration::from_millis((timeout_ms / FEEDINGS).max(1));
        let feeder = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || feed(device, &fed, interval, &stopped))?;
        self.armed = Some(Armed { timeout_ms, shared, stop, feeder });
        Ok(())
    }

    /// It is fed until then, and no longer.
    pub(crate) fn allow(&self, until: Instant) {
        if let Some(armed) = &self.armed {
            armed.shared.allowed_until_ms.store(until.0, Ordering::Relaxed);
        }
    }

    /// Ends the feeding. Disarms the device only if nothing here could serve: others may wait for it to fire.
    pub(crate) fn stop(&mut self, is_idle: bool) {
        let Some(Armed { shared, stop, feeder, .. }) = self.armed.take() else { return };
        shared.disarm.store(is_idle, Ordering::Relaxed);
        drop(stop);
        // One that has panicked feeds nothing, either.
        let _ = feeder.join();
    }
}

/// Opens the device and sets its timeout, which it may round up.
fn open(path: &Path, timeout_ms: u64) -> io::Result<(File, u64)> {
    let mut device = OpenOptions::new().write(true).open(path)?;
    if device.metadata()?.is_file() {
        device.write_all(FOOD)?;
        return Ok((device, timeout_ms));
    }
    let mut seconds = i32::try_from(timeout_ms.div_ceil(1000)).map_err(io::Error::other)?;
    // SAFETY: this request of `linux/watchdog.h` reads one `int` and writes one; any number in it is a valid one.
    let asked = unsafe { ioctl(&device, Updater::<SET_TIMEOUT, i32>::new(&mut seconds)) };
    asked?;
    device.write_all(FOOD)?;
    let kept = u64::try_from(seconds).map_err(io::Error::other)?;
    Ok((device, kept * 1000))
}

fn feed(mut device: File, shared: &Shared, interval: Duration, stopped: &mpsc::Receiver<()>) {
    while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(interval) {
        if now().0 < shared.allowed_until_ms.load(Ordering::Relaxed) {
            // If it cannot be fed the machine is reset, which is what not being fed means.
            let _ = device.write_all(FOOD);
        }
    }
    if shared.disarm.load(Ordering::Relaxed) {
        let _ = device.write_all(MAGIC_CLOSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(until: Instant) -> (tempfile::TempDir, Watchdog, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("watchdog");
        std::fs::write(&path, "").unwrap();
        let mut watchdog = Watchdog::new(path.clone(), 10);
        watchdog.arm(until).unwrap();
        (folder, watchdog, path)
    }

    fn wait_for(text: &str, holds: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(std::time::Instant::now() < deadline, "{text}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn it_is_fed_while_that_is_allowed_and_disarmed_when_nothing_serves() {
        let (_folder, mut watchdog, path) = armed(Instant(u64::MAX));
        assert_eq!(watchdog.armed_ms(), Some(10));
        wait_for("it is fed", || std::fs::read(&path).unwrap().len() > 5);
        watchdog.stop(true);
        assert_eq!(watchdog.armed_ms(), None);
        assert_eq!(std::fs::read(&path).unwrap().last(), Some(&b'V'));
    }

    #[test]
    fn it_is_not_fed_any_more_when_that_is_over() {
        let (_folder, mut watchdog, path) = armed(Instant(0));
        watchdog.allow(Instant(u64::MAX));
        wait_for("it is fed", || std::fs::read(&path).unwrap().len() > 2);
        watchdog.allow(Instant(0));
        let mut seen = usize::MAX;
        // At most one feeding was under way; then the length stays through many intervals.
        for _ in 0..2 {
            seen = std::fs::read(&path).unwrap().len();
            let until = std::time::Instant::now() + Duration::from_millis(100);
            wait_for("time passes", || std::time::Instant::now() >= until);
        }
        assert_eq!(std::fs::read(&path).unwrap().len(), seen);
        watchdog.stop(false);
        assert_eq!(std::fs::read(&path).unwrap().last(), Some(&b'1'), "it stays armed");
    }

    #[test]
    fn a_device_that_is_none_is_an_error() {
        assert!(Watchdog::new(PathBuf::from("/nowhere/watchdog"), 1000).arm(Instant(0)).is_err());
        assert!(
            Watchdog::new(PathBuf::from("/dev/null"), 1000).arm(Instant(0)).is_err(),
            "it has no timeout"
        );
    }
}
