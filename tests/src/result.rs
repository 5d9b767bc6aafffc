//! The result of a test.

use std::convert::Infallible;

/// What a test returns: `?` on any error panics there and then.
///
/// So the failure names the line, and the processes that the test drops show the end of their logs, which they do in a
/// panic only.
///
/// ```should_panic
/// # fn main() -> hapax_tests::TestResult {
/// let number: u32 = "no number".parse()?;
/// # let _ = number;
/// # Ok(())
/// # }
/// ```
pub type TestResult<T = ()> = Result<T, TestFailure>;

/// Never made: making one panics. See [`TestResult`].
#[derive(Debug)]
pub struct TestFailure(Infallible);

impl<E: Into<anyhow::Error>> From<E> for TestFailure {
    #[track_caller]
    fn from(error: E) -> Self {
        let error: anyhow::Error = error.into();
        let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
        panic!("{}", causes.join("\nbecause: "))
    }
}
