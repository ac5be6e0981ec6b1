//! What people see: lines on standard output, and failures with a cause and a cure.

use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::{Context, Result};
use replicator::control::ClientError;

/// Prints lines to standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end_matches('\n'))?;
    out.flush()?;
    Ok(())
}

/// Prints a value as one line of JSON, or as indented JSON for people.
pub(crate) fn print_json(value: &impl serde::Serialize, indented: bool) -> Result<()> {
    let to_text = if indented { serde_json::to_string_pretty } else { serde_json::to_string };
    print(&to_text(value).context("cannot write the answer as JSON")?)
}

/// Says on standard error why the command failed.
pub(crate) fn complain(error: &anyhow::Error) {
    let hint =
        error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()).and_then(ClientError::hint);
    let mut err = io::stderr().lock();
    // There is nowhere left to report a failure to write a failure.
    let _ = writeln!(err, "holdfast: {}", chain(error));
    if let Some(hint) = hint {
        let _ = writeln!(err, "  {} {hint}", arrow());
    }
}

/// The error with its causes. A cause that an error has already told is not told again.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Says something on standard error.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether the reader of our output has gone.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kind == Some(ErrorKind::BrokenPipe) && error.chain().count() == 1
}

/// What stands before a cure.
pub(crate) fn arrow() -> &'static str {
    "->"
}

/// Bytes for people: three digits and a binary unit.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scaled = bytes as f64;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 || scaled >= 100.0 || !(0.05..0.95).contains(&scaled.fract()) {
        format!("{scaled:.0} {}", UNITS[unit])
    } else {
        format!("{scaled:.1} {}", UNITS[unit])
    }
}

/// A number with thin groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// So many of something.
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}

/// Emphasis on a terminal, nothing elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    is_on: bool,
}

impl Style {
    /// For standard output.
    pub(crate) fn stdout() -> Self {
        Self { is_on: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// For text that is looked at by tests.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { is_on: false }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.paint("31;1", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.is_on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1536, "1.5 KiB"),
            (1 << 20, "1 MiB"),
            ((31 << 20) - 20_000, "31 MiB"),
            (200 << 30, "200 GiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        for (count, text) in [(0, "0 flushes"), (1, "1 flush"), (2000, "2,000 flushes")] {
            assert_eq!(counted(count, "flush", "flushes"), text);
        }
    }
}
