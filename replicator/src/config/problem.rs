//! A mistake in the configuration file, and how it is shown: the place, the line with a caret, the cause, the cure.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Columns of a line that are shown.
const LINE_COLUMNS: usize = 120;
/// Of those, columns before the mistake.
const BEFORE_COLUMNS: usize = 40;
/// Characters of a message, which may quote what stands in the file.
const MESSAGE_CHARS_MAX: usize = 300;
/// Problems that are shown; a file with more is not the right file.
const PROBLEMS_SHOWN_MAX: usize = 50;
/// Stands for what is left out.
const ELLIPSIS: &str = "...";

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file is not accepted.
    Error,
    /// It is accepted and probably not what was meant.
    Warning,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Bytes of the file it is about.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

/// All problems of one file.
#[derive(Clone, Debug)]
pub struct Problems {
    path: PathBuf,
    text: String,
    list: Vec<Problem>,
}

impl Problems {
    pub(super) fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text, list: Vec::new() }
    }

    pub(super) fn error(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        self.push(Severity::Error, span, &message.into(), help.into());
    }

    pub(super) fn warning(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        self.push(Severity::Warning, span, &message.into(), help.into());
    }

    fn push(&mut self, severity: Severity, span: &Range<usize>, message: &str, help: Option<String>) {
        let message = shortened(message);
        self.list.push(Problem { severity, span: span.clone(), message, help });
    }

    /// Adds a problem that others than the reader of the file have found.
    pub fn add(&mut self, severity: Severity, span: &Range<usize>, message: &str, help: Option<String>) {
        self.push(severity, span, message, help);
    }

    /// Whether the file is not accepted.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// The problems, in the order they were found.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// Line and column, from 1, at which a problem begins.
    #[must_use]
    pub fn place(&self, problem: &Problem) -> (usize, usize) {
        let line = self.line_of(problem.span.start);
        (line.number, self.text[line.start..line.start + line.offset].chars().count() + 1)
    }

    fn line_of(&self, at: usize) -> Line<'_> {
        let at = floor_char_boundary(&self.text, at);
        let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let number = self.text[..start].matches('\n').count() + 1;
        let text = self.text[start..].lines().next().unwrap_or_default();
        Line { number, start, text, offset: (at - start).min(text.len()) }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        let line = self.line_of(problem.span.start);
        let (number, column) = self.place(problem);
        let severity = match problem.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let margin = " ".repeat(number.to_string().len());
        let end = floor_char_boundary(&self.text, problem.span.end).min(line.start + line.text.len());
        let width = self.text.get(line.start + line.offset..end).map_or(0, |s| s.chars().count()).max(1);
        let Excerpt { text, before, width } = excerpt(line.text, column - 1, width);
        writeln!(f, "{severity}: {}", problem.message)?;
        writeln!(f, "{margin}--> {}:{number}:{column}", self.path.display())?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {text}")?;
        write!(f, "{margin} | {before}{}", "^".repeat(width))?;
        if let Some(help) = &problem.help {
            write!(f, "\n{margin} = {help}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().take(PROBLEMS_SHOWN_MAX).enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            self.write(f, problem)?;
        }
        match self.list.len().saturating_sub(PROBLEMS_SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\n\nand {more} more"),
        }
    }
}

struct Line<'t> {
    number: usize,
    start: usize,
    text: &'t str,
    offset: usize,
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The part of a line that is shown, and what stands below it.
struct Excerpt {
    text: String,
    /// As wide as what comes before the mistake.
    before: String,
    /// Columns of the mistake that can be seen.
    width: usize,
}

/// The surroundings of the character `at`, where a mistake of `width` characters begins. Tabs stay tabs, so that the
/// caret stands below the right character on every terminal; other control characters are not for a terminal.
fn excerpt(line: &str, at: usize, width: usize) -> Excerpt {
    let shown = |c: char| if c.is_control() && c != '\t' { '\u{fffd}' } else { c };
    let count = line.chars().count();
    let start = if count <= LINE_COLUMNS { 0 } else { at.saturating_sub(BEFORE_COLUMNS) };
    let columns = (count - start).min(LINE_COLUMNS);
    let head = if start > 0 { ELLIPSIS } else { "" };
    let tail = if start + columns < count { ELLIPSIS } else { "" };
    let body: String = line.chars().skip(start).take(columns).map(shown).collect();
    let blank = |c: char| if c == '\t' { '\t' } else { ' ' };
    let before = head.chars().chain(line.chars().skip(start).take(at - start)).map(blank).collect();
    let width = width.min(columns.saturating_sub(at - start)).max(1);
    Excerpt { text: format!("{head}{body}{tail}"), before, width }
}

/// A message without the middle of what it quotes at length, and on one line.
fn shortened(message: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let count = message.chars().count();
    if count <= MESSAGE_CHARS_MAX {
        return message.chars().map(shown).collect();
    }
    let end = MESSAGE_CHARS_MAX / 3;
    let head = message.chars().take(MESSAGE_CHARS_MAX - end);
    let tail = message.chars().skip(count - end);
    head.chain(ELLIPSIS.chars()).chain(tail).map(shown).collect()
}
