//! Medians, CPU time, options of the command line, and tables.

use std::fmt::Write as _;
use std::time::Duration;

/// The middle of `values`; of an even number the upper of the two.
///
/// # Panics
/// Without values.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "a benchmark measures at least one round");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of this process so far, user and system, all threads with the kernel's workers for it.
#[must_use]
pub fn cpu_time() -> Duration {
    // SAFETY: `rusage` is plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    assert!(result == 0, "RUSAGE_SELF is always there");
    let one = |time: libc::timeval| {
        let (seconds, micros) = (time.tv_sec.unsigned_abs(), time.tv_usec.unsigned_abs());
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    one(usage.ru_utime) + one(usage.ru_stime)
}

/// The value that follows `--name` on the command line, or `default`.
///
/// # Panics
/// With a message for the user, if the value is missing or is not one.
#[must_use]
pub fn option<T: std::str::FromStr>(name: &str, default: T) -> T {
    let flag = format!("--{name}");
    let mut arguments = std::env::args().skip(1);
    if !arguments.any(|argument| argument == flag) {
        return default;
    }
    let value = arguments.next().and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("{flag} needs a value of the kind its default is of"))
}

/// Rows of text with a heading, in columns.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column headings.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|text| (*text).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        assert!(cells.len() == self.rows[0].len(), "a row has a cell for each heading");
        self.rows.push(cells);
    }

    /// The table as text: the first column to the left, numbers to the right.
    #[must_use]
    pub fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let done = if column == 0 {
                    write!(text, "{cell:<width$}")
                } else {
                    write!(text, "  {cell:>width$}")
                };
                done.expect("a string takes text");
            }
            text.push('\n');
            if index == 0 {
                let total = widths.iter().sum::<usize>() + 2 * (columns - 1);
                text.push_str(&"-".repeat(total));
                text.push('\n');
            }
        }
        text
    }

    /// Prints the table under `title`.
    pub fn print(&self, title: &str) {
        println!("\n{title}\n\n{}", self.render());
    }
}

/// A number with thousands set apart.
#[must_use]
pub fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_set_apart() {
        assert_eq!(thousands(0.4), "0");
        assert_eq!(thousands(999.0), "999");
        assert_eq!(thousands(1_234_567.0), "1,234,567");
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
