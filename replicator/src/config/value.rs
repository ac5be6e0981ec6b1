//! Sizes and durations as people write them.

const SIZE_UNITS: [(&str, u32); 5] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];

/// Parses a size: a number of bytes, or a number with a binary unit: `KiB`, `MiB`, `GiB`, `TiB`, `PiB`, or its
/// first letter alone.
///
/// # Errors
/// What is wrong and what to write.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = split_number(text);
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("\"{text}\" is not a size: write a number and a unit, as in \"64MiB\""))?;
    let shift = match unit {
        "" | "B" => 0,
        _ => size_shift(text, digits, unit)?,
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("\"{text}\" is more than 64 bits can count"))
}

fn size_shift(text: &str, digits: &str, unit: &str) -> Result<u32, String> {
    for (letter, shift) in SIZE_UNITS {
        if unit.eq_ignore_ascii_case(letter) || unit.eq_ignore_ascii_case(&format!("{letter}iB")) {
            return Ok(shift);
        }
        if unit.eq_ignore_ascii_case(&format!("{letter}B")) {
            return Err(format!("\"{text}\": sizes are binary here, write \"{digits}{letter}iB\""));
        }
    }
    Err(format!("\"{text}\": no such unit, write one of KiB, MiB, GiB, TiB, PiB"))
}

/// Parses a duration in `ms`, `s`, `min` or `h` into milliseconds.
///
/// # Errors
/// What is wrong and what to write.
pub fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let (digits, unit) = split_number(text);
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("\"{text}\" is not a duration: write a number and a unit, as in \"500ms\""))?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "min" | "m" => 60_000,
        "h" => 3_600_000,
        "" => return Err(format!("\"{text}\" has no unit: write \"{digits}ms\" or \"{digits}s\"")),
        _ => return Err(format!("\"{text}\": no such unit, write one of ms, s, min, h")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("\"{text}\" is more than 64 bits can count"))
}

fn split_number(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// Writes a size with the largest binary unit that divides it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    SIZE_UNITS
        .iter()
        .rev()
        .find(|(_, shift)| bytes != 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(|| format!("{bytes}"), |(letter, shift)| format!("{}{letter}iB", bytes >> shift))
}

/// Writes a duration with the largest unit that divides it.
#[must_use]
pub fn format_duration_ms(duration_ms: u64) -> String {
    match duration_ms {
        ms if ms != 0 && ms.is_multiple_of(60_000) => format!("{}min", ms / 60_000),
        ms if ms != 0 && ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1K", 1024),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("1GiB", 1 << 30),
            ("1g", 1 << 30),
            ("2T", 2 << 40),
            ("1PiB", 1 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, part) in [
            ("", "not a size"),
            ("GiB", "not a size"),
            ("-1", "not a size"),
            ("1.5GiB", "no such unit"),
            ("1GB", "write \"1GiB\""),
            ("1x", "no such unit"),
            ("99999999999999999999", "not a size"),
            ("99999999PiB", "64 bits"),
        ] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [("10ms", 10), ("3s", 3000), ("1min", 60_000), ("2h", 7_200_000), ("5 s", 5000)] {
            assert_eq!(parse_duration_ms(text), Ok(ms), "{text}");
        }
        for (text, part) in [("10", "no unit"), ("fast", "not a duration"), ("3 weeks", "no such unit")] {
            let error = parse_duration_ms(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for bytes in [0, 1, 512, 1024, 1536, 1 << 20, 3 << 30, 1 << 50, u64::MAX] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
        for ms in [0, 1, 999, 1000, 1500, 60_000, 90_000] {
            assert_eq!(parse_duration_ms(&format_duration_ms(ms)), Ok(ms));
        }
    }
}
