//! Texts that stand for something: sizes, durations, `${VARIABLES}`; and "did you mean".

use std::time::Duration;

/// The longest duration a config may hold: ten years, so that no sum of a time and a duration overflows anywhere.
pub(super) const FOREVER: Duration = Duration::from_secs(315_576_000);

const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// `64MiB`, `1 MB`, `512 B`; units in any case.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() {
        return Err("a size begins with a whole number".to_owned());
    }
    if unit.is_empty() {
        return Err("the unit is missing".to_owned());
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
        return Err("unknown unit; there are B, kB, MB, GB, TB and KiB, MiB, GiB, TiB".to_owned());
    };
    let number = number.parse::<u64>().ok();
    number.and_then(|number| number.checked_mul(*factor)).ok_or_else(|| "it is too large".to_owned())
}

/// A size in the largest binary unit that is exact.
pub(super) fn format_size(bytes: u64) -> String {
    let exact = UNITS.iter().rev().find(|(name, factor)| {
        (name.contains('i') || *factor == 1) && bytes >= *factor && bytes.is_multiple_of(*factor)
    });
    exact.map_or_else(|| format!("{bytes}B"), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// `3s`, `200ms`, `1h 30m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text.trim()).map_err(|error| error.to_string())?;
    if duration > FOREVER { Err("it is longer than ten years".to_owned()) } else { Ok(duration) }
}

/// Replaces `${NAME}` and `${NAME:-default}` by what `env` knows; `$$` is one dollar sign, and a `$` before anything
/// else is itself. As in a shell, the default also stands in for an empty variable.
pub(super) fn interpolate(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let (inside, after) = after.split_once('}').ok_or("`${` without `}`; a dollar sign is written `$$`")?;
            result.push_str(&variable(inside, env)?);
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    Ok(result)
}

fn variable(inside: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let valid = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !valid || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(
            "`${…}` takes the name of an environment variable, as in `${NAME}` or `${NAME:-default}`".to_owned()
        );
    }
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("the environment variable `{name}` is not set")),
    }
}

/// What someone who wrote `word` probably meant.
pub(super) fn suggest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    known
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size(" 1 mb "), Ok(1_000_000));
        assert_eq!(parse_size("0B"), Ok(0));
        for wrong in ["", "MiB", "64", "64 M", "1.5GiB", "-1B", "99999999999TiB", "1e3B"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(format_size(64 << 20), "64MiB");
        assert_eq!(format_size(1000), "1000B");
        assert_eq!(format_size(0), "0B");
    }

    #[test]
    fn durations_have_units_and_an_end() {
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("200ms"), Ok(Duration::from_millis(200)));
        for wrong in ["", "3", "3 parsecs", "11years", "-1s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn variables_are_replaced() {
        let env = |name: &str| match name {
            "USER_1" => Some("shop".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let ok = |text: &str| interpolate(text, &env).unwrap();
        assert_eq!(ok("a${USER_1}b${USER_1:-x}"), "ashopbshop");
        assert_eq!(ok("${EMPTY}|${EMPTY:-x}|${NONE:-}|${NONE:-a:-b}"), "|x||a:-b");
        assert_eq!(ok("$$ $${USER_1} $5 $"), "$ ${USER_1} $5 $");
        for wrong in ["${NONE}", "${", "${}", "${1A}", "${a b}"] {
            assert!(interpolate(wrong, &env).is_err(), "{wrong}");
        }
    }

    #[test]
    fn suggestions_are_near() {
        assert_eq!(suggest("quue", ["queue", "module"]), Some("queue"));
        assert_eq!(suggest("max-attempts", ["max_attempts"]), Some("max_attempts"));
        assert_eq!(suggest("colour", ["queue", "module"]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,40}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
            let _ = interpolate(&text, &|_| None);
        }

        #[test]
        fn what_is_written_is_read_again(bytes in any::<u64>()) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn text_without_dollar_signs_stays(text in "[^$]{0,40}") {
            prop_assert_eq!(interpolate(&text, &|_| None), Ok(text));
        }
    }
}
