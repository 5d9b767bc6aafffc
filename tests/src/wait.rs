//! Waits that end, and say what they waited for.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks every 20 ms whether `condition` holds, for at most `limit`.
///
/// # Errors
/// When it does not hold in time; the error names `what`.
pub async fn wait_until(limit: Duration, what: impl Display, mut condition: impl AsyncFnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, condition()).await {
            Ok(true) => return Ok(()),
            Ok(false) if start.elapsed() < limit => tokio::time::sleep(PAUSE).await,
            Ok(false) => bail!("waited {limit:?} in vain for {what}"),
            Err(_) => bail!("waited {limit:?} in vain for {what} (the last look did not come back)"),
        }
    }
}

/// Tries every 20 ms until `attempt` succeeds, for at most `limit`, and returns what it returned.
///
/// # Errors
/// When no try succeeds in time; the error names `what`, and the last try's error is its source.
pub async fn wait_for<T>(
    limit: Duration,
    what: impl Display,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    let mut last = anyhow!("no try came back");
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = error,
            Err(_) => {}
        }
        if start.elapsed() >= limit {
            return Err(last).with_context(|| format!("waited {limit:?} in vain for {what}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Runs `work` to its end from code that cannot await, such as `Drop`: on a thread and a runtime of its own.
pub(crate) fn block_on<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("building a runtime")?.block_on(work)
    });
    thread.join().map_err(|_| anyhow!("the work panicked"))?
}
