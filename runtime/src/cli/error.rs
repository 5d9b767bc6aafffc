//! How a command fails: what happened, because of what, and what to do about it.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use super::USAGE;
use super::output::{Closed, clean_lines, tell};
use crate::broker::BrokerError;

/// An error that says what to do about it.
#[derive(Debug)]
pub(super) struct Advised {
    message: String,
    hint: String,
    code: u8,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Advised {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl Advised {
    /// It happened because of something else.
    pub(super) fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// A failure, exit code 1.
pub(super) fn failure(message: impl Into<String>, hint: impl Into<String>) -> Advised {
    Advised { message: message.into(), hint: hint.into(), code: 1, source: None }
}

/// A command used wrongly, exit code 2.
pub(super) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Advised {
    Advised { message: message.into(), hint: hint.into(), code: USAGE, source: None }
}

/// Prints an error, each of its causes and what to do on a line of its own, and says what to exit with.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Closed>() {
        // Whoever was reading (`head`, a pager) has seen enough.
        return ExitCode::SUCCESS;
    }
    for (index, cause) in error.chain().enumerate() {
        let label = if index == 0 { "error" } else { "  because" };
        tell!("{label}: {}", clean_lines(&cause.to_string()));
    }
    let mut code = 1;
    for cause in error.chain() {
        if let Some(advised) = cause.downcast_ref::<Advised>() {
            code = advised.code;
            tell!("  hint: {}", advised.hint);
        }
        if let Some(hint) = cause.downcast_ref().and_then(BrokerError::hint) {
            tell!("  hint: {}", clean_lines(hint));
        }
    }
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_found_under_context() {
        let error = anyhow::Error::new(usage("a", "b").because("c")).context("d");
        let words: Vec<_> = error.chain().map(ToString::to_string).collect();
        assert_eq!(words, ["d", "a", "c"]);
        let advised = error.chain().find_map(|cause| cause.downcast_ref::<Advised>()).unwrap();
        assert_eq!((advised.hint.as_str(), advised.code), ("b", USAGE));
    }
}
