//! One table of the file while it is read: keys are asked for by type, and what nobody asked for is unknown.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problems;
use super::value::{parse_duration_ms, parse_size};

/// Bytes of a word that may be a known one with a mistake in it.
const WORD_BYTES_MAX: usize = 64;

/// A value and where it stands in the file.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

impl<T> At<T> {
    pub(super) fn map<U>(self, map: impl FnOnce(T) -> U) -> At<U> {
        At { value: map(self.value), span: self.span }
    }
}

/// A table being read.
pub(super) struct Section<'t> {
    /// What messages call it: `[[node]]` as it is written, or the file.
    name: &'static str,
    table: &'t DeTable<'t>,
    /// Where its header stands: what a missing key is reported at.
    pub(super) span: Range<usize>,
    asked: Vec<&'static str>,
}

impl<'t> Section<'t> {
    pub(super) fn new(name: &'static str, table: &'t DeTable<'t>, span: Range<usize>) -> Self {
        Self { name, table, span, asked: Vec::new() }
    }

    fn get(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.asked.push(key);
        self.table.get(key)
    }

    /// Reads `key`, if it is there, with `parse`; its error says what is wrong.
    fn read<T>(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
        parse: impl FnOnce(&'t DeValue<'t>) -> Result<T, (String, Option<String>)>,
    ) -> Option<At<T>> {
        let found = self.get(key)?;
        match parse(found.get_ref()) {
            Ok(value) => Some(At { value, span: found.span() }),
            Err((message, help)) => {
                problems.error(&found.span(), format!("`{key}`: {message}"), help);
                None
            }
        }
    }

    pub(super) fn text(&mut self, key: &'static str, problems: &mut Problems) -> Option<At<String>> {
        self.read(key, problems, |value| {
            value.as_str().map(str::to_owned).ok_or_else(|| wrong_type(value, "text in quotes"))
        })
    }

    /// A list of texts; empty if the key is not there.
    pub(super) fn texts(&mut self, key: &'static str, problems: &mut Problems) -> Vec<At<String>> {
        let Some(found) = self.get(key) else { return Vec::new() };
        let Some(array) = found.get_ref().as_array() else {
            let help = format!("write {key} = [\"...\"]");
            problems.error(&found.span(), format!("`{key}` is a list of texts"), help);
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in array {
            match item.get_ref().as_str() {
                Some(text) => texts.push(At { value: text.to_owned(), span: item.span() }),
                None => {
                    let (message, _) = wrong_type(item.get_ref(), "text in quotes");
                    problems.error(&item.span(), format!("`{key}`: {message}"), None);
                }
            }
        }
        texts
    }

    /// The keys of the table at `key` and their values as text, whatever they are called; empty if it is not there.
    pub(super) fn pairs(
        &mut self,
        key: &'static str,
        name: &'static str,
        problems: &mut Problems,
    ) -> Vec<(String, At<String>)> {
        let Some(table) = self.table(key, name, problems) else { return Vec::new() };
        let mut pairs = Vec::new();
        for (key, found) in table.table {
            let value = match found.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Boolean(value) => u8::from(*value).to_string(),
                other => match integer_of(other) {
                    Some(number) => number.to_string(),
                    None => {
                        let (message, _) = wrong_type(other, "text in quotes, a whole number, true or false");
                        problems.error(&found.span(), format!("`{}`: {message}", key.get_ref()), None);
                        continue;
                    }
                },
            };
            pairs.push((key.get_ref().to_string(), At { value, span: found.span() }));
        }
        pairs
    }

    pub(super) fn boolean(&mut self, key: &'static str, problems: &mut Problems) -> Option<At<bool>> {
        self.read(key, problems, |value| value.as_bool().ok_or_else(|| wrong_type(value, "true or false")))
    }

    pub(super) fn integer(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        problems: &mut Problems,
    ) -> Option<At<u64>> {
        self.read(key, problems, |value| {
            let number = integer_of(value).ok_or_else(|| wrong_type(value, "a whole number"))?;
            if range.contains(&number) {
                return Ok(number);
            }
            Err((format!("{number} is out of range; it may be {} to {}", range.start(), range.end()), None))
        })
    }

    pub(super) fn size(&mut self, key: &'static str, problems: &mut Problems) -> Option<At<u64>> {
        self.read(key, problems, |value| match value.as_str() {
            Some(text) => parse_size(text).map_err(|message| (message, None)),
            None => integer_of(value).ok_or_else(|| wrong_type(value, "a size as in \"1GiB\"")),
        })
    }

    pub(super) fn duration_ms(&mut self, key: &'static str, problems: &mut Problems) -> Option<At<u64>> {
        self.read(key, problems, |value| match value.as_str() {
            Some(text) => parse_duration_ms(text).map_err(|message| (message, None)),
            None => Err(wrong_type(value, "a duration as in \"10ms\"")),
        })
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
        problems: &mut Problems,
    ) -> Option<At<T>> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let list = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
        self.read(key, problems, |value| {
            let text = value.as_str().ok_or_else(|| wrong_type(value, &list))?;
            let found = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
            found.ok_or_else(|| {
                let near = nearest(text, &words).map(|word| format!("did you mean \"{word}\"?"));
                (format!("\"{text}\" is not known; it may be {list}"), near)
            })
        })
    }

    /// Says that `key` is missing unless it is there (and, if wrong, was reported as such).
    pub(super) fn require<T>(
        &self,
        key: &'static str,
        value: Option<T>,
        help: impl Into<Option<String>>,
        problems: &mut Problems,
    ) -> Option<T> {
        if value.is_none() && !self.table.contains_key(key) {
            problems.error(&self.span, format!("`{key}` is missing in {}", self.name), help);
        }
        value
    }

    /// Whether `key` stands in the table.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The table at `key`.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        name: &'static str,
        problems: &mut Problems,
    ) -> Option<Self> {
        let found = self.get(key)?;
        match found.get_ref().as_table() {
            Some(table) => Some(Self::new(name, table, found.span())),
            None => {
                problems.error(&found.span(), format!("`{key}` is a table"), format!("write {name}"));
                None
            }
        }
    }

    /// The tables of the array at `key`.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
        name: &'static str,
        problems: &mut Problems,
    ) -> Vec<Self> {
        let Some(found) = self.get(key) else { return Vec::new() };
        let Some(array) = found.get_ref().as_array() else {
            let help = format!("write {name}, with two brackets on each side");
            problems.error(&found.span(), format!("`{key}` is a list of tables"), help);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in array {
            match item.get_ref().as_table() {
                Some(table) => sections.push(Self::new(name, table, item.span())),
                None => {
                    let message = format!("`{key}` is a list of tables");
                    problems.error(&item.span(), message, format!("write {name}"));
                }
            }
        }
        sections
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(self, problems: &mut Problems) {
        for key in self.table.keys() {
            let text = key.get_ref().as_ref();
            if self.asked.contains(&text) {
                continue;
            }
            let help = match nearest(text, &self.asked) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", self.asked.join(", ")),
            };
            problems.error(&key.span(), format!("unknown key `{text}` in {}", self.name), help);
        }
    }
}

fn integer_of(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn wrong_type(value: &DeValue<'_>, expected: &str) -> (String, Option<String>) {
    let found = match value {
        DeValue::Integer(_) if integer_of(value).is_none() => "a number out of range",
        _ => value.type_str(),
    };
    (format!("expected {expected}, found {found}"), None)
}

/// The word that was probably meant.
fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    if text.len() > WORD_BYTES_MAX {
        return None;
    }
    let lower = text.to_lowercase().replace('_', "-");
    let distance = |word: &&&str| strsim::damerau_levenshtein(&lower, &word.to_lowercase());
    let best = words.iter().min_by_key(distance)?;
    let distance_max = (best.len() / 3).max(1);
    (strsim::damerau_levenshtein(&lower, &best.to_lowercase()) <= distance_max).then_some(*best)
}
