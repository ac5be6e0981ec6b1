//! What one connection to the control socket is doing: idle, which includes sending a request slowly, or having a whole
//! request worked on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Shared by the server, which asks, and the connection's requests, which say.
#[derive(Debug)]
pub(super) struct Activity {
    /// `None` while a request is worked on.
    idle_since: Mutex<Option<Instant>>,
}

impl Activity {
    /// Of a connection that was just accepted.
    pub(super) fn new() -> Self {
        Self { idle_since: Mutex::new(Some(Instant::now())) }
    }

    /// Since when it has been idle, if it is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A whole request is there; it is worked on until the guard goes.
    pub(super) fn work(self: &Arc<Self>) -> Working {
        self.set(None);
        Working(Arc::clone(self))
    }

    fn set(&self, since: Option<Instant>) {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

/// A request being worked on.
#[derive(Debug)]
pub(super) struct Working(Arc<Activity>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.set(Some(Instant::now()));
    }
}
