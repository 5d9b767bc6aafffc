//! Which parts of a config file must not be shown, not even beside an error.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::scalar::suggest;

/// The ranges of a config text that hold secrets, sorted and apart from each other.
#[derive(Debug, Default)]
pub(super) struct Mask {
    secrets: Vec<Range<usize>>,
}

impl Mask {
    /// Finds the secrets: what is assigned to a key that looks like `password`, config values granted to guests, and
    /// passwords inside addresses. With `broken` syntax the tree may lack what a line holds, so that lines that name
    /// a secret are hidden too.
    pub(super) fn of(root: &DeTable<'_>, text: &str, broken: bool) -> Self {
        let mut secrets = Vec::new();
        collect(root, text, &mut secrets);
        collect_comments(text, &mut secrets);
        if broken {
            collect_broken_lines(text, &mut secrets);
        }
        secrets.sort_by_key(|range| (range.start, range.end));
        let mut merged: Vec<Range<usize>> = Vec::new();
        for range in secrets {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self { secrets: merged }
    }

    /// That part of the text, with `***` for every secret that reaches into it.
    pub(super) fn apply(&self, text: &str, range: Range<usize>) -> String {
        let mut result = String::new();
        let mut at = range.start;
        for secret in self.secrets.iter().filter(|secret| secret.start < range.end && secret.end > range.start) {
            result.push_str(text.get(at..secret.start.max(at)).unwrap_or_default());
            result.push_str("***");
            at = secret.end.min(range.end);
        }
        result.push_str(text.get(at..range.end).unwrap_or_default());
        result
    }
}

fn collect(table: &DeTable<'_>, text: &str, secrets: &mut Vec<Range<usize>>) {
    for (key, value) in table.iter() {
        if looks_secret(key.get_ref()) {
            secrets.push(with_comment(text, value.span()));
        } else if let ("config", DeValue::Table(values)) = (key.get_ref().as_ref(), value.get_ref()) {
            secrets.extend(values.values().map(|value| with_comment(text, value.span())));
        } else {
            collect_value(value, text, secrets);
        }
    }
}

/// A secret and the comment behind it, which may be its second half: in `password = "ab"#cd"` somebody forgot that a
/// quotation mark ends a string.
fn with_comment(text: &str, secret: Range<usize>) -> Range<usize> {
    let rest = text.get(secret.end..).unwrap_or_default().lines().next().unwrap_or_default();
    let end = if rest.contains('#') { secret.end + rest.len() } else { secret.end };
    secret.start..end
}

fn collect_value(value: &Spanned<DeValue<'_>>, text: &str, secrets: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::Table(table) => collect(table, text, secrets),
        DeValue::Array(items) => items.iter().for_each(|item| collect_value(item, text, secrets)),
        DeValue::String(_) => secrets.extend(password_in_address(text, value.span())),
        _ => {}
    }
}

/// `scheme://user:PASSWORD@host`. Up to the last `@`: rather too much than too little. Without an `@` whatever follows
/// the colon may be a password too, of which a `#` or a quotation mark cut off the end, unless it is a port. The address
/// of a socket has its password in a parameter, `pass=`.
fn password_in_address(text: &str, span: Range<usize>) -> Option<Range<usize>> {
    let literal = text.get(span.clone())?;
    if let Some((address, password)) = literal.split_once("pass=").filter(|(address, _)| address.contains("+unix:")) {
        return Some(
            span.start + address.len() + "pass=".len()..span.start + literal.len() - trailing_quotes(password),
        );
    }
    let authority = literal.find("://")? + 3;
    let at = literal.rfind('@').filter(|at| *at > authority);
    let end = at.unwrap_or(literal.len());
    let (host, rest) = literal.get(authority..end)?.split_once(':')?;
    let port = rest.split(['/', '?', '"', '\'']).next().unwrap_or_default();
    let is_port = port.chars().all(|c| c.is_ascii_digit()) || host.starts_with('[');
    (at.is_some() || !is_port).then(|| span.start + end - rest.len()..span.start + end)
}

fn trailing_quotes(text: &str) -> usize {
    text.len() - text.trim_end_matches(['"', '\'']).len()
}

/// The same for a line that could not be parsed: no port is taken for granted.
fn password_in_broken_address(line: &str) -> Option<Range<usize>> {
    let authority = line.find("://")? + 3;
    let colon = authority + line.get(authority..)?.find(':')? + 1;
    Some(colon..line.rfind('@').filter(|at| *at >= colon).unwrap_or(line.len()))
}

fn looks_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    ["pass", "pasw", "pwd", "secret", "token", "credential", "api_key", "apikey"].iter().any(|part| key.contains(part))
        || strsim::damerau_levenshtein(&key, "password") <= 3
        || suggest(&key, ["password"]).is_some()
}

/// What the tree does not hold: addresses and secrets in comments.
fn collect_comments(text: &str, secrets: &mut Vec<Range<usize>>) {
    for (start, line) in lines(text) {
        for (at, _) in line.match_indices("://") {
            let address = line[at..].split([' ', '\t', '"', '\'']).next().unwrap_or_default();
            secrets.extend(password_in_address(text, start + at..start + at + address.len()));
        }
        let comment = line.match_indices('#').find(|(at, _)| names_secret(&line[*at..]));
        secrets.extend(comment.map(|(at, _)| start + at + 1..start + line.len()));
    }
}

/// For text that could not be parsed: what follows `=` on a line that names a secret, and on the lines after it up to
/// the next assignment or header that is whole, since the value may have slipped there.
fn collect_broken_lines(text: &str, secrets: &mut Vec<Range<usize>>) {
    let mut after_secret = false;
    for (start, line) in lines(text) {
        secrets.extend(password_in_broken_address(line).map(|range| start + range.start..start + range.end));
        let names_secret = names_secret(line);
        if names_secret || after_secret && !is_header(line) {
            let (key, value) = line.split_once('=').unwrap_or(("", line));
            secrets.push(start + line.len() - value.len()..start + line.len());
            after_secret = names_secret || !is_key(key) || value.trim().is_empty();
        } else {
            after_secret = false;
        }
    }
}

fn is_header(line: &str) -> bool {
    line.trim_start().starts_with('[') && is_key(line.trim_matches(['[', ']', ' ', '\t'])) && line.ends_with(']')
}

/// A key without quotation marks.
fn is_key(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// Lines with the places where they begin.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n').scan(0, |next, line| {
        let start = *next;
        *next += line.len();
        Some((start, line.trim_end()))
    })
}

fn names_secret(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "config" || looks_secret(word))
}
