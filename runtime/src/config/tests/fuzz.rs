//! Texts that somebody may take for a config.

use super::{parse, render};

/// Whatever a config says, it is read or refused, and what is said of it names a line that it has.
#[test]
fn any_text_is_read_or_refused() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        // A password may be in a file, and this is no place to read any.
        if text.contains("file:") {
            return;
        }
        let found = match parse(&text) {
            Ok((_, warnings)) => warnings,
            Err(errors) => {
                assert!(errors.iter().any(super::Diagnostic::is_error), "refused without a word: {text}");
                errors
            }
        };
        let lines = text.split('\n').count();
        for place in found.iter().filter_map(|diagnostic| diagnostic.place.as_ref()) {
            assert!((1..=lines).contains(&place.line), "line {} of {lines}", place.line);
        }
        let _ = render(&found);
    });
}
