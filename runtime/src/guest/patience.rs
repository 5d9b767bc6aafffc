//! Time limits of guests and their statements.

use std::time::Duration;

use tokio::time::Instant;
use tokio::time::error::Elapsed;

/// A timer that goes off so much later than it should tells that this process stood still: it was stopped by a signal,
/// its container was paused, the machine slept.
const STOOD_STILL: Duration = Duration::from_millis(500);

/// How often that is believed: a machine so busy that timers are always late must not make a limit endless.
const RENEWALS: usize = 5;

/// As [`tokio::time::timeout`]; but time during which the whole process stood still is nobody's fault, and the work then
/// has `limit` anew. What it has waited for may have been there all the time.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut work = std::pin::pin!(work);
    for _ in 0..RENEWALS {
        let began = Instant::now();
        match tokio::time::timeout(limit, work.as_mut()).await {
            Err(_) if began.elapsed() > limit + STOOD_STILL => {
                tracing::debug!("this process stood still: a time limit of {limit:?} begins anew");
            }
            ended => return ended,
        }
    }
    tokio::time::timeout(limit, work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    /// Two waits of half the limit, so that the second begins when a late timer goes off.
    async fn halves() {
        tokio::time::sleep(LIMIT / 4).await;
        tokio::time::sleep(LIMIT / 4).await;
    }

    #[tokio::test]
    async fn what_takes_too_long_is_given_up() {
        assert!(within(LIMIT, std::future::pending::<()>()).await.is_err());
        assert!(within(LIMIT, halves()).await.is_ok());
    }

    #[tokio::test]
    async fn time_that_the_process_stood_still_does_not_count() {
        let frozen = tokio::spawn(async {
            tokio::task::yield_now().await;
            std::thread::sleep(LIMIT + STOOD_STILL + LIMIT);
        });
        assert!(within(LIMIT, halves()).await.is_ok(), "both timers went off late, and the work was not done");
        frozen.await.unwrap();
    }
}
