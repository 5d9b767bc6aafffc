//! What is wrong with a config file, and where.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::mask::Mask;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The config cannot be used.
    Error,
    /// It can, but probably not as meant.
    Warning,
}

/// One thing wrong with a config file. `Display` renders it as plain text over several lines, with the line it is about
/// and a caret under the place; secrets in that line are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// The file.
    pub path: PathBuf,
    /// Where in the file; none when the file could not be read at all.
    pub place: Option<Place>,
    /// What to do about it.
    pub help: Option<String>,
}

/// A place in a config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The line, secrets masked.
    text: String,
    /// What stands before the caret, secrets masked.
    before: String,
    /// How many characters the caret underlines.
    width: usize,
    /// What stands beside the caret.
    label: String,
}

impl Diagnostic {
    /// True where the config cannot be used.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// An error about the file as a whole.
    pub(super) fn of_file(path: &Path, message: String, help: &str) -> Self {
        let help = Some(help.to_owned());
        Self { severity: Severity::Error, message, path: path.to_owned(), place: None, help }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.is_error() { "error" } else { "warning" };
        writeln!(f, "{severity}: {}", self.message)?;
        let mut gutter = String::from(" ");
        match &self.place {
            None => write!(f, "  --> {}", self.path.display())?,
            Some(place) => {
                let number = place.line.to_string();
                gutter = " ".repeat(number.len());
                writeln!(f, "{gutter} --> {}:{}:{}", self.path.display(), place.line, place.column)?;
                writeln!(f, "{gutter} |")?;
                writeln!(f, "{number} | {}", place.text)?;
                let indent: String = place.before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                let line = format!("{gutter} | {indent}{} {}", "^".repeat(place.width), place.label);
                f.write_str(line.trim_end())?;
            }
        }
        match &self.help {
            Some(help) => write!(f, "\n{gutter} = help: {help}"),
            None => Ok(()),
        }
    }
}

/// Something found wrong, before it is put beside its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// `None`: it is about the file as a whole.
    pub(super) span: Option<Range<usize>>,
    pub(super) message: String,
    pub(super) label: String,
    pub(super) help: Option<String>,
}

impl Finding {
    /// True where both are about the same place in the file, and as bad.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.span.is_some() && self.span == other.span && self.severity == other.severity
    }

    /// Puts the finding beside its line.
    pub(super) fn locate(self, path: &Path, text: &str, mask: &Mask) -> Diagnostic {
        let Self { severity, span, message, label, help } = self;
        let place = span.map(|span| Place::of(span, label, text, mask));
        Diagnostic { severity, message, path: path.to_owned(), place, help }
    }
}

impl Place {
    fn of(span: Range<usize>, label: String, text: &str, mask: &Mask) -> Self {
        let start = floor_boundary(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let line_end = line_start + text[line_start..line_end].trim_end_matches('\r').len();
        let end = floor_boundary(text, span.end).clamp(start, line_end.max(start));
        Self {
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: mask.apply(text, line_start..line_end),
            width: mask.apply(text, start..end).chars().count().max(1),
            before: mask.apply(text, line_start..start),
            label,
        }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
