//! What differs from run to run in an output, replaced by words.

/// Replaces ids, times, digests and sizes of compiled files.
pub(crate) fn mask(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut word = String::new();
    for character in text.chars() {
        if character.is_ascii_alphanumeric() || "-:.+".contains(character) {
            word.push(character);
        } else {
            masked += &mask_word(&word);
            word.clear();
            masked.push(character);
        }
    }
    masked += &mask_word(&word);
    units(&masked)
}

fn mask_word(word: &str) -> String {
    let (core, end) = match word.strip_suffix(['.', ':']) {
        Some(core) => (core, &word[core.len()..]),
        None => (word, ""),
    };
    let (before, core) = core.strip_prefix("sha256:").map_or(("", core), |digest| ("sha256:", digest));
    let name = match core {
        _ if is_uuid(core) => "[ID]",
        _ if is_time(core) => "[TIME]",
        _ if [16, 32, 64].contains(&core.len()) && is_hex(core) => "[DIGEST]",
        _ => core,
    };
    format!("{before}{name}{end}")
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

/// A UUID, whole or cut in its last group.
fn is_uuid(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    // People shorten ids, and so do tests.
    matches!(lengths[..], [8, 4, 4, 4, 1..=12]) && text.split('-').all(is_hex)
}

fn is_time(text: &str) -> bool {
    text.len() == 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T' && text.starts_with("20")
}

/// Numbers before units of time and size become `[N]`, and units that depend on how large a number is one word:
/// `1.2 ms`, `3 seconds ago`.
fn units(text: &str) -> String {
    text.split('\n').map(units_of_line).collect::<Vec<_>>().join("\n")
}

fn units_of_line(line: &str) -> String {
    const ENDS: [char; 4] = [',', ')', ':', '.'];
    let words: Vec<&str> = line.split(' ').collect();
    let mut masked: Vec<String> = Vec::new();
    let mut index = 0;
    while index < words.len() {
        let (number, unit) = (words[index], words.get(index + 1).copied().unwrap_or_default());
        let ago = words.get(index + 2).is_some_and(|word| word.starts_with("ago")) || number.starts_with("(in");
        let name = match unit.trim_end_matches(ENDS) {
            "ms" | "µs" | "s" => "time",
            "KiB" | "MiB" => "size",
            "second" | "seconds" if ago || (index > 0 && words[index - 1] == "(in") => "seconds",
            _ => "",
        };
        let digits = number.trim_start_matches('(');
        if name.is_empty() || digits.parse::<f64>().is_err() {
            masked.push(number.to_owned());
            index += 1;
            continue;
        }
        masked.push(format!("{}[N]", &number[..number.len() - digits.len()]));
        masked.push(format!("{name}{}", &unit[unit.trim_end_matches(ENDS).len()..]));
        index += 2;
    }
    masked.join(" ")
}

#[test]
fn what_differs_is_masked() {
    let text = "id 0192f3a1-6c1e-7d0e-a2b5-1f0f5d1e7c11, sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n\
                2026-01-31T12:00:00Z (3 seconds ago), 1 row changed, 1.2 ms (and 3 µs)\n97 KiB, 12 rows";
    let masked =
        "id [ID], sha256:[DIGEST]\n[TIME] ([N] seconds ago), 1 row changed, [N] time (and [N] time)\n[N] size, 12 rows";
    assert_eq!(mask(text), masked);
}
