//! How an attempt fails, and what becomes of a message that always does.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::{outbox, sql};

/// What the handler advises about a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// As the consumer's retry policy says.
    ByPolicy,
    /// After this many milliseconds; the policy's number of attempts still counts.
    AfterMs(u64),
    /// Never: the message becomes a dead letter at once.
    Never,
}

/// A failed attempt: the transaction is rolled back, and the message is tried again later or becomes a dead letter.
///
/// Every error converts into one, with [`Advice::ByPolicy`], so `?` works: errors of [`sql`] and [`outbox`] (codes
/// `sql-constraint`, `outbox-denied`, …: `sql-` or `outbox-` and the kind), any [`std::error::Error`] that is
/// `Send + Sync + 'static`, `anyhow::Error`, and plain text. SQL errors are not permanent by themselves: in a shared
/// transaction even a constraint may hold again later. Where you know better, say [`Failure::permanent`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What to do about it.
    pub advice: Advice,
    /// Groups failures for operators and metrics: `out-of-stock`. Short, kebab-case, no data in it.
    pub code: Option<String>,
    /// What happened, in one line.
    pub message: String,
    /// More, for example a stack trace; the host cuts it at 16 KiB.
    pub detail: Option<String>,
}

/// Why a message will never be handled: what a compensation is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// `exhausted`, `permanent`, `contention`, …; the list is open.
    pub reason: String,
    /// Failed attempts.
    pub attempts: u32,
    /// The handler's last word; none when no handler spoke.
    pub failure: Option<Failure>,
}

/// The code of a body that does not decode.
pub(crate) const UNDECODABLE: &str = "undecodable";

impl Failure {
    /// Retrying cannot help: the message becomes a dead letter, after its compensation.
    pub fn permanent(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Advice::Never, code, message)
    }

    /// Worth a retry, when the policy says.
    pub fn transient(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Advice::ByPolicy, code, message)
    }

    /// Worth a retry, not before `delay` (rounded up to milliseconds).
    pub fn retry_after(delay: Duration, code: impl Into<String>, message: impl Into<String>) -> Self {
        let milliseconds = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Self::new(Advice::AfterMs(milliseconds), code, message)
    }

    /// The same failure with a detail.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(crate) fn undecodable(message: impl Into<String>) -> Self {
        Self::permanent(UNDECODABLE, message)
    }

    fn new(advice: Advice, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { advice, code: Some(code.into()), message: message.into(), detail: None }
    }
}

/// Shown as `code: message`. `Failure` is deliberately no [`std::error::Error`]: that is what lets every error convert
/// into it.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "{code}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let code = if let Some(error) = error.downcast_ref::<sql::Error>() {
            Some(error.kind.code())
        } else {
            error.downcast_ref::<outbox::Error>().map(|error| error.kind.code())
        };
        Self { advice: Advice::ByPolicy, code: code.map(str::to_owned), message: chain(&*error), detail: None }
    }
}

/// `what: why: why`, leaving out causes that the text before them already tells.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.ends_with(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(error: impl Into<Failure>) -> Failure {
        error.into()
    }

    #[test]
    fn sql_and_outbox_errors_keep_their_kind_as_the_code() {
        let error = sql::Error::local(sql::ErrorKind::Constraint, "stock_pkey");
        assert_eq!(failing(error).code.as_deref(), Some("sql-constraint"));
        let error = outbox::Error { kind: outbox::ErrorKind::TooMany, message: "1001".into() };
        assert_eq!(failing(error).code.as_deref(), Some("outbox-too-many"));
    }

    #[test]
    fn other_errors_and_texts_become_failures_by_policy_with_their_causes() {
        #[derive(Debug)]
        struct Outer(std::num::ParseIntError);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("no price")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let failure = failing(Outer("x".parse::<i64>().unwrap_err()));
        assert_eq!(failure.message, "no price: invalid digit found in string");
        assert_eq!((failure.advice, failure.code), (Advice::ByPolicy, None));
        assert_eq!(failing("plain words").message, "plain words");
    }

    #[test]
    fn a_delay_is_rounded_up_to_milliseconds_and_never_overflows() {
        let advice = |delay| Failure::retry_after(delay, "later", "").advice;
        assert_eq!(advice(Duration::from_micros(1)), Advice::AfterMs(1));
        assert_eq!(advice(Duration::from_secs(3)), Advice::AfterMs(3000));
        assert_eq!(advice(Duration::MAX), Advice::AfterMs(u64::MAX));
    }
}
