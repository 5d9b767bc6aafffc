//! What commands print, and in which words.
//!
//! Texts of messages and guests go through [`clean`]: a body must not be able to move a terminal's cursor.

use std::fmt;
use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{ContentArrangement, Table, presets};

use crate::ledger::value::{Param, Value};

/// Standard output was closed by whoever read it.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub(super) struct Closed;

/// Prints a line of results.
pub(super) fn line(text: fmt::Arguments<'_>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    written(writeln!(out, "{text}"))
}

/// Writes bytes to standard output as they are.
pub(super) fn raw(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    written(out.write_all(bytes).and_then(|()| out.flush()))
}

fn written(done: std::io::Result<()>) -> anyhow::Result<()> {
    match done {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
    }
}

/// Prints a line for people to standard error; if nobody reads it, so be it.
pub(super) fn aside(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `println!`, but an error instead of a panic where standard output is closed.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::output::line(format_args!($($text)*)) };
}
pub(super) use say;

/// `eprintln!`, but no panic where standard error is closed.
macro_rules! tell {
    ($($text:tt)*) => { $crate::cli::output::aside(format_args!($($text)*)) };
}
pub(super) use tell;

/// Text on one line: control characters are written as escapes.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for character in text.chars() {
        if is_plain(character) { cleaned.push(character) } else { cleaned.extend(character.escape_default()) }
    }
    cleaned
}

/// The same, but lines and tabs stay.
pub(super) fn clean_lines(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for character in text.chars() {
        if is_plain(character) || "\n\t".contains(character) {
            cleaned.push(character);
        } else {
            cleaned.extend(character.escape_default());
        }
    }
    cleaned
}

/// Neither a control character nor one that turns the direction of writing.
fn is_plain(character: char) -> bool {
    !character.is_control() && !matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// At most this many characters, with an ellipsis for the rest.
pub(super) fn cut(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        None => text.to_owned(),
        Some(_) => text.chars().take(characters.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// Every line indented.
pub(super) fn indented(text: &str, by: usize) -> String {
    let indent = " ".repeat(by);
    text.lines().map(|line| format!("{indent}{line}")).collect::<Vec<_>>().join("\n")
}

/// A body for people: its text, or base64 where it is none; cut.
pub(super) fn body(bytes: &[u8], characters: usize) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => cut(&clean(text), characters),
        Err(_) => {
            let some = &bytes[..bytes.len().min(characters * 3 / 4)];
            let text = base64::engine::general_purpose::STANDARD.encode(some);
            format!("(base64) {text}{}", if some.len() < bytes.len() { "…" } else { "" })
        }
    }
}

/// Milliseconds since the Unix epoch, as RFC 3339 in UTC.
pub(super) fn time(millis: i64) -> String {
    match DateTime::from_timestamp_millis(millis) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::Secs, true),
        None => format!("{millis} ms after 1970"),
    }
}

/// The same, and how far from now that is.
pub(super) fn when(millis: i64) -> String {
    let away = Utc::now().timestamp_millis().saturating_sub(millis);
    let span = rough(Duration::from_millis(away.unsigned_abs()));
    let away = if away >= 0 { format!("{span} ago") } else { format!("in {span}") };
    format!("{} ({away})", time(millis))
}

/// A duration with its largest unit only.
pub(super) fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => count(seconds, "second"),
        120..7200 => count(seconds / 60, "minute"),
        7200..172_800 => count(seconds / 3600, "hour"),
        _ => count(seconds / 86_400, "day"),
    }
}

/// A measured time.
pub(super) fn took(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 0.001 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{:.0} µs", seconds * 1e6),
    }
}

/// Bytes in a unit that people can compare.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => count(bytes, "byte"),
        10_240..1_048_576 => format!("{:.0} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// `1 row`, `2 rows`.
pub(super) fn count(number: u64, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) if !stem.ends_with(['a', 'e', 'o']) => format!("{number} {stem}ies"),
        _ => format!("{number} {noun}s"),
    }
}

/// A SQL value as one would write it.
pub(super) fn value(value: &Value) -> String {
    const SHOWN: usize = 120;
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Boolean(boolean) => boolean.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Blob(bytes) => {
            let hex: String = bytes.iter().take(SHOWN / 2).map(|byte| format!("{byte:02x}")).collect();
            format!("x'{hex}{}'", if bytes.len() > SHOWN / 2 { "…" } else { "" })
        }
        Value::Decimal(text) => clean(text),
        Value::Text(text)
        | Value::Uuid(text)
        | Value::Date(text)
        | Value::Time(text)
        | Value::Timestamp(text)
        | Value::Timestamptz(text)
        | Value::Json(text)
        | Value::Other { text, .. } => format!("'{}'", cut(&clean(text), SHOWN)),
    }
}

/// A parameter as one would write it.
pub(super) fn param(param: &Param) -> String {
    match param {
        Param::One(one) => value(one),
        Param::Ints(values) => count(values.len() as u64, "integer"),
        Param::Texts(values) => count(values.len() as u64, "text"),
        Param::Blobs(values) => count(values.len() as u64, "blob"),
    }
}

/// A table without lines: what `grep` and `awk` like as well as people do.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    table
}

/// A table's text without the spaces at the ends of its lines.
pub(super) fn trimmed(table: &Table) -> String {
    table.to_string().lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_messages_hold_cannot_steer_a_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\n\u{202e}c é"), "a\\u{1b}[2Jb\\n\\u{202e}c é");
        assert_eq!(clean_lines("a\n\tb\u{7}"), "a\n\tb\\u{7}");
        assert_eq!(body(&[0xff, 0], 80), "(base64) /wA=");
        assert_eq!(body(&[0xff; 100], 8), "(base64) ////////…");
    }

    #[test]
    fn numbers_come_with_words() {
        assert_eq!(
            (count(1, "byte"), count(2, "entry"), count(0, "day")),
            ("1 byte".into(), "2 entries".into(), "0 days".into())
        );
        assert_eq!((size(9), size(98_304), size(3 << 20)), ("9 bytes".into(), "96 KiB".into(), "3.0 MiB".into()));
        assert_eq!(took(Duration::from_micros(1234)), "1.2 ms");
        assert_eq!(
            (rough(Duration::from_secs(119)), rough(Duration::from_secs(7199))),
            ("119 seconds".into(), "119 minutes".into())
        );
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20Z");
        assert_eq!(cut("abcdef", 4), "abc…");
    }
}
