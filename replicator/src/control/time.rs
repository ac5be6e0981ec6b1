//! Times of day as people read and write them: in UTC, to the second.

use crate::config::parse_duration_ms;

const SECONDS_A_DAY: u64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01. Years are counted from March, so that leap days come last.
const DAYS_BEFORE_1970: u64 = 719_468;
const DAYS_OF_AN_ERA: u64 = 146_097;

/// Milliseconds since 1970 as a time in UTC, to the second.
#[must_use]
pub fn format_time(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, second) = (seconds / SECONDS_A_DAY, seconds % SECONDS_A_DAY);
    let shifted = days + DAYS_BEFORE_1970;
    let (era, day_of_era) = (shifted / DAYS_OF_AN_ERA, shifted % DAYS_OF_AN_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// A time as [`format_time`] writes it, also with `T` and `Z`, or a duration before `now_ms`; in milliseconds since 1970. What
/// is said to the second means all of that second.
#[must_use]
pub fn parse_time(text: &str, now_ms: u64) -> Option<u64> {
    if let Ok(ago_ms) = parse_duration_ms(text) {
        return now_ms.checked_sub(ago_ms);
    }
    let text = text.trim();
    let text = text.strip_suffix(" UTC").or_else(|| text.strip_suffix('Z')).unwrap_or(text);
    let (date, time) = text.split_once(['T', ' '])?;
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let is_sound = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !is_sound || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let month_from_march = (month + 9) % 12;
    let year_from_march = year - u64::from(month <= 2);
    let (era, year_of_era) = (year_from_march / 400, year_from_march % 400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * DAYS_OF_AN_ERA + day_of_era).checked_sub(DAYS_BEFORE_1970)?;
    let ms = (days * SECONDS_A_DAY + hour * 3600 + minute * 60 + second) * 1000 + 999;
    // The 31st of June is another day.
    format_time(ms).starts_with(date).then_some(ms)
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let parts: Vec<&str> = text.split(separator).collect();
    let [a, b, c] = parts[..] else { return None };
    Some([a.parse().ok()?, b.parse().ok()?, c.parse().ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for ms in [0, 951_782_399_000, 951_782_400_000, 1_790_000_000_000, 4_102_444_799_000] {
            assert_eq!(parse_time(&format_time(ms), 0), Some(ms + 999), "{}", format_time(ms));
        }
        assert_eq!(parse_time("2000-02-29T00:00:00Z", 0), Some(951_782_400_999));
        assert_eq!(parse_time("2000-02-29 00:00:00", 0), Some(951_782_400_999));
    }

    #[test]
    fn so_long_ago_is_a_time_and_other_things_are_none() {
        assert_eq!(parse_time("10min", 1_000_000), Some(400_000));
        for text in
            ["", "3:1042", "2001-02-29 00:00:00", "2000-13-01 00:00:00", "2000-01-01", "24h", "yesterday"]
        {
            assert_eq!(parse_time(text, 1000), None, "{text}");
        }
    }
}
