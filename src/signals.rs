//! SIGTERM and SIGINT as a flag that long waits look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Whether the process was asked to end.
#[derive(Clone, Debug)]
pub(crate) struct StopFlag {
    flag: Arc<AtomicBool>,
}

impl StopFlag {
    /// Catches SIGTERM, SIGINT and SIGHUP from now on. The second one ends the process at once.
    pub(crate) fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&flag))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
                .context("cannot catch signals")?;
        }
        Ok(Self { flag })
    }

    /// Whether one came.
    pub(crate) fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Sleeps, but not beyond a signal. Says whether one came.
    pub(crate) fn sleep(&self, duration: Duration) -> bool {
        let end = Instant::now() + duration;
        while !self.is_set() {
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            std::thread::sleep(rest.min(Duration::from_millis(20)));
        }
        true
    }
}
