//! The log: one line per event to standard error, where the service manager keeps it.

use std::fmt;

/// Writes lines that begin with the volume's name.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    volume: String,
}

impl Log {
    pub(crate) fn new(volume: &str) -> Self {
        Self { volume: volume.to_owned() }
    }

    /// One line. Text from elsewhere may be in it, so control characters are made visible.
    pub(crate) fn line(&self, text: impl fmt::Display) {
        let mut line = format!("holdfast[{}]: ", self.volume);
        for c in text.to_string().chars() {
            if c.is_control() {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
        line.push('\n');
        // A log that nobody reads any more must not end the volume.
        let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), line.as_bytes());
    }
}
