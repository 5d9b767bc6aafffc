//! Starting in any order with one's servers: try, say what is waited for, try again.

use std::fmt;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::readiness::Component;

/// The first delay between two tries, and the longest; jitter may double it, so that hosts do not come in step.
const DELAYS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The same reason is logged again this seldom.
const REMIND_EVERY: Duration = Duration::from_secs(30);

/// Tries until it works, or until `stop`: then the answer is `None`.
///
/// `what` names the thing waited for as an operator knows it (`RabbitMQ at amqp://localhost:5672`). Failures are logged
/// when their reason changes, and then at most every 30 s; `component` is set to waiting with the same words. Whether
/// it is up in the end is its owner's to say.
///
/// ```
/// # use hapax::telemetry::{readiness::Readiness, waits::retry_forever};
/// # use tokio_util::sync::CancellationToken;
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let (component, stop) = (Readiness::new().component("broker"), CancellationToken::new());
/// let mut tries = 0;
/// let connected = retry_forever("the broker", &component, &stop, || {
///     tries += 1;
///     let answer = if tries < 3 { Err("connection refused") } else { Ok(tries) };
///     async move { answer }
/// });
/// assert_eq!(connected.await, Some(3));
/// # });
/// ```
pub async fn retry_forever<T, E, F>(
    what: &str,
    component: &Component,
    stop: &CancellationToken,
    mut attempt: impl FnMut() -> F,
) -> Option<T>
where
    // Not an async closure: the compiler cannot see yet that a task made of one may move between threads.
    F: Future<Output = Result<T, E>>,
    E: fmt::Display,
{
    let started = Instant::now();
    let mut delays = ExponentialBuilder::new()
        .with_min_delay(DELAYS.0)
        .with_max_delay(DELAYS.1)
        .without_max_times()
        .with_jitter()
        .build();
    let mut news = News::default();
    let tries = async {
        loop {
            match attempt().await {
                Ok(value) => break value,
                Err(error) => {
                    let reason = error.to_string();
                    component.waiting(format_args!("{what}: {reason}"));
                    if news.is_worth_telling(&reason, Instant::now()) {
                        warn!(component = component.name(), "waiting for {what}: {reason}");
                    }
                }
            }
            tokio::time::sleep(delays.next().unwrap_or(DELAYS.1)).await;
        }
    };
    let value = stop.run_until_cancelled(tries).await?;
    if news.last.is_some() {
        info!(component = component.name(), after = ?started.elapsed(), "{what} is there");
    }
    Some(value)
}

/// The reason told last, and when.
#[derive(Debug, Default)]
pub(crate) struct News {
    last: Option<(String, Instant)>,
}

impl News {
    /// True the first time, when the reason is another one, and every 30 s.
    pub(crate) fn is_worth_telling(&mut self, reason: &str, now: Instant) -> bool {
        let told = self.last.as_ref().is_some_and(|(last, at)| last == reason && now - *at < REMIND_EVERY);
        if !told {
            self.last = Some((reason.to_owned(), now));
        }
        !told
    }
}

#[cfg(test)]
mod tests {
    use super::super::readiness::Readiness;
    use super::*;

    #[test]
    fn a_reason_is_told_once_and_again_after_30_s_or_when_it_changes() {
        let mut news = News::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(news.is_worth_telling("refused", at(0)));
        assert!(!news.is_worth_telling("refused", at(29)));
        assert!(news.is_worth_telling("refused", at(30)));
        assert!(news.is_worth_telling("login", at(31)));
        assert!(news.is_worth_telling("refused", at(32)));
        assert!(!news.is_worth_telling("refused", at(33)));
    }

    #[tokio::test]
    async fn it_tries_again_until_it_works_and_says_meanwhile_what_it_waits_for() {
        let readiness = Readiness::new();
        let component = readiness.component("consumer c");
        let stop = CancellationToken::new();
        let mut tries = 0;
        let value = retry_forever("RabbitMQ", &component, &stop, || {
            tries += 1;
            if tries > 1 {
                assert_eq!(readiness.waiting_for()["consumer c"], "RabbitMQ: refused");
            }
            std::future::ready(if tries == 1 { Err("refused") } else { Ok(tries) })
        });
        assert_eq!(value.await, Some(2));
    }

    #[tokio::test]
    async fn it_runs_inside_a_spawned_task() {
        let component = Readiness::new().component("c");
        let server = std::sync::Arc::new("there".to_owned());
        let waiting = tokio::spawn(async move {
            let connect = || async {
                tokio::task::yield_now().await;
                Ok::<_, String>(std::sync::Arc::clone(&server))
            };
            retry_forever("a server", &component, &CancellationToken::new(), connect).await
        });
        assert_eq!(waiting.await.unwrap().unwrap().as_str(), "there");
    }

    #[tokio::test]
    async fn stopping_ends_it_at_once_even_inside_a_try() {
        let component = Readiness::new().component("c");
        let stop = CancellationToken::new();
        let hanging = retry_forever("a server that hangs", &component, &stop, || {
            stop.cancel();
            std::future::pending::<Result<(), String>>()
        });
        assert_eq!(hanging.await, None);
    }
}
