//! Every metric, named once, with its unit and help text.
//!
//! [`Metrics::install`] makes this process record them; until then, and in tests, recording costs and does nothing.
//! Paths that run for every batch use a [`ConsumerMetrics`], whose counters are looked up once.

#![expect(clippy::disallowed_macros, reason = "this is the one place where metrics are named")]

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// A metric's kind; histograms with the upper bounds of their buckets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram(&'static [f64]),
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// Its name, unit included.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// What is counted.
    pub unit: Unit,
    /// What it says, labels included.
    pub help: &'static str,
}

/// From a reused Rust instance's microseconds to a handler's time limit.
const HANDLER_BUCKETS: &[f64] =
    &[0.000_01, 0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0];
/// From SQLite without contention to a database in trouble.
const COMMIT_BUCKETS: &[f64] = &[0.000_1, 0.000_3, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0];
/// Powers of two up to the largest sensible batch.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Declares every metric as a constant, and lists them all.
macro_rules! metrics {
    ($($constant:ident = $kind:expr, $unit:ident, $name:literal, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric { name: $name, kind: $kind, unit: Unit::$unit, help: $help };
        )+
        /// Every metric of Hapax.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

use Kind::{Counter as C, Gauge as G, Histogram as H};
metrics! {
    RECEIVED = C, Count, "hapax_deliveries_received_total", "Deliveries taken from the broker, by consumer";
    COMPLETED = C, Count, "hapax_messages_completed_total", "Messages that took effect, by consumer";
    DUPLICATES = C, Count, "hapax_duplicates_total",
        "Deliveries of messages that SQL owned already, acknowledged without effect, by consumer";
    ATTEMPTS_FAILED = C, Count, "hapax_attempts_failed_total",
        "Attempts that failed, by consumer and kind (transient, permanent, trap, timeout)";
    ATTEMPTS_REFUTED = C, Count, "hapax_attempts_refuted_total",
        "Attempts made again, uncounted, because a statement that they had run ahead of was answered differently, by consumer";
    PARKED = C, Count, "hapax_parked_total", "Messages parked for a later attempt, by consumer";
    DEFERRED = C, Count, "hapax_deferred_total",
        "Deliveries stored because another attempt held the message, by consumer";
    DEAD = C, Count, "hapax_dead_total", "Messages that became dead letters, by consumer and reason";
    REDRIVEN = C, Count, "hapax_redriven_total", "Dead letters taken up again, by consumer";
    IN_FLIGHT = G, Count, "hapax_in_flight", "Messages that lanes have taken and not yet settled, by consumer: locked, handled or committed now";
    HANDLER_SECONDS = H(HANDLER_BUCKETS), Seconds, "hapax_handler_seconds", "Time inside the handler, by consumer";
    COMMIT_SECONDS = H(COMMIT_BUCKETS), Seconds, "hapax_commit_seconds", "Time to commit a batch, by consumer";
    BATCH_SIZE = H(BATCH_BUCKETS), Count, "hapax_batch_size", "Handler calls that one commit made good, by consumer; duplicates cost none";
    MODULE_SWAPS = C, Count, "hapax_module_swaps_total",
        "Changed module files, by consumer and result (swapped, refused)";
    LOCK_ERRORS = C, Count, "hapax_lock_errors_total", "Calls of the lock server that failed";
    DATABASE_ERRORS = C, Count, "hapax_database_errors_total", "Failures of the database that are nobody's attempt";
    BROKER_ERRORS = C, Count, "hapax_broker_errors_total", "Lost connections, refused subscriptions and channels";
    OUTBOX_PUBLISHED = C, Count, "hapax_outbox_published_total", "Outbox messages confirmed by the broker";
    OUTBOX_UNDELIVERABLE = C, Count, "hapax_outbox_undeliverable_total",
        "Outbox messages that the broker refused or returned";
    OUTBOX_OLDEST_SECONDS = G, Seconds, "hapax_outbox_oldest_seconds",
        "Age of the oldest outbox message that waits to be published, 0 when none does, by consumer";
    OUTBOX_PENDING = G, Count, "hapax_outbox_pending", "Outbox messages that wait to be published, by consumer";
    PARKED_ROWS = G, Count, "hapax_parked_rows",
        "Parked messages now, by consumer and state (retry, running, deferred, dead, discarded)";
    PAUSED = G, Count, "hapax_paused", "1 while a consumer takes no deliveries, by consumer and reason";
    COMPENSATIONS = C, Count, "hapax_compensations_total", "Compensations, by consumer and result (done, failed)";
    CRASHES = C, Count, "hapax_crashes_total",
        "Parked messages whose host vanished while it ran them, by consumer";
    LEASES_LOST = C, Count, "hapax_leases_lost_total", "Locks that were lost while their attempt ran";
}

/// Kinds of failed attempts, in the order of their counters.
const FAILURE_KINDS: [&str; 4] = ["transient", "permanent", "trap", "timeout"];

/// This process's metrics, in Prometheus' text form.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

/// Another library of this process records metrics already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("metrics cannot be recorded: another recorder is installed in this process")]
pub struct MetricsError;

impl Metrics {
    /// Makes this process record metrics; every later call gives the same ones.
    ///
    /// # Errors
    /// When another recorder is installed.
    pub fn install() -> Result<Self, MetricsError> {
        static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = &*installed {
            return Ok(Self { handle: handle.clone() });
        }
        let recorder = with_buckets(PrometheusBuilder::new()).build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|_| MetricsError)?;
        describe_all();
        *installed = Some(handle.clone());
        Ok(Self { handle })
    }

    /// All metrics as Prometheus reads them.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Moves recorded samples into their buckets now and then, so that memory stays bounded when nobody scrapes. Ends
    /// with `stop`.
    pub async fn keep_up(self, stop: CancellationToken) {
        keep_up(&self.handle, KEEP_UP_EVERY, &stop).await;
    }
}

/// How often samples are moved into their buckets: seldom enough to cost nothing, often enough that a busy host's samples
/// of one round are some megabytes.
const KEEP_UP_EVERY: Duration = Duration::from_secs(5);

async fn keep_up(handle: &PrometheusHandle, every: Duration, stop: &CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        handle.run_upkeep();
    }
}

fn with_buckets(builder: PrometheusBuilder) -> PrometheusBuilder {
    ALL.iter().fold(builder, |builder, metric| match metric.kind {
        Kind::Histogram(buckets) => builder
            .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
            .expect("no list of buckets above is empty"),
        Kind::Counter | Kind::Gauge => builder,
    })
}

/// Gives every metric its help text, and those without labels their first value: a metric that only appears with the
/// first error cannot be alerted on.
fn describe_all() {
    for Metric { name, kind, unit, help } in ALL.iter().copied() {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, unit, help),
            Kind::Gauge => metrics::describe_gauge!(name, unit, help),
            Kind::Histogram(_) => metrics::describe_histogram!(name, unit, help),
        }
    }
    for metric in [LOCK_ERRORS, DATABASE_ERRORS, BROKER_ERRORS, OUTBOX_PUBLISHED, OUTBOX_UNDELIVERABLE, LEASES_LOST] {
        counter!(metric.name).absolute(0);
    }
}

/// A call of the lock server failed.
pub fn lock_failed() {
    counter!(LOCK_ERRORS.name).increment(1);
}

/// A lock was lost while its attempt ran.
pub fn lease_lost() {
    counter!(LEASES_LOST.name).increment(1);
}

/// The database failed, and it was nobody's attempt.
pub fn database_failed() {
    counter!(DATABASE_ERRORS.name).increment(1);
}

/// The broker went away or refused.
pub fn broker_failed() {
    counter!(BROKER_ERRORS.name).increment(1);
}

/// The broker confirmed that many outbox messages.
pub fn outbox_published(messages: u64) {
    counter!(OUTBOX_PUBLISHED.name).increment(messages);
}

/// The broker refused or returned that many outbox messages.
pub fn outbox_undeliverable(messages: u64) {
    counter!(OUTBOX_UNDELIVERABLE.name).increment(messages);
}

/// What became of a changed module file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The new module runs.
    Swapped,
    /// The old one stays: the new one failed to load, link or check.
    Refused,
}

/// How a compensation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compensation {
    /// It took effect.
    Done,
    /// It failed for good.
    Failed,
}

/// One consumer's metrics. Create it after [`Metrics::install`], once, and share it.
pub struct ConsumerMetrics {
    consumer: String,
    received: Counter,
    completed: Counter,
    duplicates: Counter,
    attempts_failed: [Counter; FAILURE_KINDS.len()],
    attempts_refuted: Counter,
    parked: Counter,
    deferred: Counter,
    redriven: Counter,
    in_flight: Gauge,
    handler_seconds: Histogram,
    commit_seconds: Histogram,
    batch_size: Histogram,
    crashes: Counter,
    outbox_pending: Gauge,
    outbox_oldest: Gauge,
}

impl ConsumerMetrics {
    /// Looks up every counter of the consumer of that name, which makes them appear with the value 0.
    pub fn new(consumer: &str) -> Self {
        let counter = |metric: Metric| {
            let counter = counter!(metric.name, "consumer" => consumer.to_owned());
            counter.absolute(0);
            counter
        };
        let gauge = |metric: Metric| {
            let gauge = gauge!(metric.name, "consumer" => consumer.to_owned());
            gauge.set(0.0);
            gauge
        };
        let histogram = |metric: Metric| histogram!(metric.name, "consumer" => consumer.to_owned());
        Self {
            consumer: consumer.to_owned(),
            received: counter(RECEIVED),
            completed: counter(COMPLETED),
            duplicates: counter(DUPLICATES),
            attempts_failed: FAILURE_KINDS.map(|kind| failures(consumer, kind)),
            attempts_refuted: counter(ATTEMPTS_REFUTED),
            parked: counter(PARKED),
            deferred: counter(DEFERRED),
            redriven: counter(REDRIVEN),
            in_flight: gauge!(IN_FLIGHT.name, "consumer" => consumer.to_owned()),
            handler_seconds: histogram(HANDLER_SECONDS),
            commit_seconds: histogram(COMMIT_SECONDS),
            batch_size: histogram(BATCH_SIZE),
            crashes: counter(CRASHES),
            outbox_pending: gauge(OUTBOX_PENDING),
            outbox_oldest: gauge(OUTBOX_OLDEST_SECONDS),
        }
    }

    /// Deliveries came from the broker.
    pub fn received(&self, deliveries: usize) {
        self.received.increment(deliveries as u64);
    }

    /// Messages took effect: their transaction committed.
    pub fn completed(&self, messages: usize) {
        self.completed.increment(messages as u64);
    }

    /// Deliveries were acknowledged because SQL owned their messages already.
    pub fn duplicates(&self, deliveries: usize) {
        self.duplicates.increment(deliveries as u64);
    }

    /// An attempt failed; `kind` is `transient`, `permanent`, `trap` or `timeout`.
    pub fn attempt_failed(&self, kind: &'static str) {
        match FAILURE_KINDS.iter().position(|known| *known == kind) {
            Some(known) => self.attempts_failed[known].increment(1),
            None => failures(&self.consumer, kind).increment(1),
        }
    }

    /// An attempt is made again because a statement that it had run ahead of was answered differently.
    pub fn attempt_refuted(&self) {
        self.attempts_refuted.increment(1);
    }

    /// Messages were parked for a later attempt.
    pub fn parked(&self, messages: usize) {
        self.parked.increment(messages as u64);
    }

    /// Deliveries were stored because another attempt held their message.
    pub fn deferred(&self, deliveries: usize) {
        self.deferred.increment(deliveries as u64);
    }

    /// A message became a dead letter. Reasons are the host's own words, never a guest's: each is a series for ever.
    pub fn dead(&self, reason: &'static str) {
        counter!(DEAD.name, "consumer" => self.consumer.clone(), "reason" => reason).increment(1);
    }

    /// So many of its outbox messages wait to be published, the oldest for that long.
    pub fn outbox_waiting(&self, pending: u64, oldest: Duration) {
        self.outbox_pending.set(pending as f64);
        self.outbox_oldest.set(oldest.as_secs_f64());
    }

    /// Dead letters were taken up again.
    pub fn redriven(&self, messages: usize) {
        self.redriven.increment(messages as u64);
    }

    /// That many messages were taken into work; they are settled or given back when the guard goes.
    pub fn in_flight(&self, messages: usize) -> InFlight {
        let messages = messages as f64;
        self.in_flight.increment(messages);
        InFlight { gauge: self.in_flight.clone(), messages }
    }

    /// A handler was called for that long.
    pub fn handler_took(&self, elapsed: Duration) {
        self.handler_seconds.record(elapsed);
    }

    /// A COMMIT took that long, after that many calls of the handler.
    pub fn committed(&self, calls: usize, elapsed: Duration) {
        self.batch_size.record(calls as f64);
        self.commit_seconds.record(elapsed);
    }

    /// A changed module file was taken up or refused.
    pub fn module_file_changed(&self, swap: Swap) {
        let result = match swap {
            Swap::Swapped => "swapped",
            Swap::Refused => "refused",
        };
        counter!(MODULE_SWAPS.name, "consumer" => self.consumer.clone(), "result" => result).increment(1);
    }

    /// The consumer takes no deliveries, for that reason, until [`ConsumerMetrics::resumed`] is told the same one.
    pub fn paused(&self, reason: &'static str) {
        self.paused_gauge(reason).set(1.0);
    }

    /// The reason for a pause is gone.
    pub fn resumed(&self, reason: &'static str) {
        self.paused_gauge(reason).set(0.0);
    }

    /// So many parked messages are in that state now.
    pub fn parked_rows(&self, state: &'static str, rows: u64) {
        gauge!(PARKED_ROWS.name, "consumer" => self.consumer.clone(), "state" => state).set(rows as f64);
    }

    /// A compensation ended.
    pub fn compensated(&self, compensation: Compensation) {
        let result = match compensation {
            Compensation::Done => "done",
            Compensation::Failed => "failed",
        };
        counter!(COMPENSATIONS.name, "consumer" => self.consumer.clone(), "result" => result).increment(1);
    }

    /// Parked messages were found whose host vanished while it ran them.
    pub fn crashed(&self, messages: usize) {
        self.crashes.increment(messages as u64);
    }

    fn paused_gauge(&self, reason: &'static str) -> Gauge {
        gauge!(PAUSED.name, "consumer" => self.consumer.clone(), "reason" => reason)
    }
}

fn failures(consumer: &str, kind: &'static str) -> Counter {
    counter!(ATTEMPTS_FAILED.name, "consumer" => consumer.to_owned(), "kind" => kind)
}

/// Messages in work; dropping it takes them off the gauge, however that ended.
#[must_use = "the messages count as in flight until this is dropped"]
pub struct InFlight {
    gauge: Gauge,
    messages: f64,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.decrement(self.messages);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Records on a recorder of its own: the process's one belongs to all tests at once.
    fn rendered(record: impl FnOnce()) -> String {
        let recorder = with_buckets(PrometheusBuilder::new()).build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe_all();
            record();
        });
        handle.render()
    }

    #[test]
    fn names_are_unique_follow_prometheus_custom_and_have_a_help_text() {
        let mut names = HashSet::new();
        for metric in ALL {
            assert!(names.insert(metric.name), "{} twice", metric.name);
            assert!(metric.name.starts_with("hapax_") && !metric.help.is_empty(), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert_eq!(metric.name.ends_with("_seconds"), metric.unit == Unit::Seconds, "{}", metric.name);
            if let Kind::Histogram(buckets) = metric.kind {
                assert!(!buckets.is_empty() && buckets.is_sorted(), "{}", metric.name);
            }
        }
    }

    #[test]
    fn what_can_be_alerted_on_is_there_before_it_happens() {
        let text = rendered(|| drop(ConsumerMetrics::new("reduce-stock")));
        for line in [
            "hapax_lock_errors_total 0",
            "hapax_leases_lost_total 0",
            "hapax_outbox_oldest_seconds{consumer=\"reduce-stock\"} 0",
            "hapax_messages_completed_total{consumer=\"reduce-stock\"} 0",
            "hapax_attempts_failed_total{consumer=\"reduce-stock\",kind=\"trap\"} 0",
        ] {
            assert!(text.contains(&format!("{line}\n")), "no {line} in:\n{text}");
        }
        assert!(text.contains("# HELP hapax_lock_errors_total Calls of the lock server that failed\n"), "{text}");
    }

    #[test]
    fn every_metric_can_be_recorded_and_histograms_have_their_buckets() {
        let text = rendered(|| {
            let consumer = ConsumerMetrics::new("c");
            consumer.received(3);
            consumer.completed(2);
            consumer.duplicates(1);
            consumer.attempt_failed("timeout");
            consumer.attempt_failed("odd");
            consumer.parked(1);
            consumer.deferred(1);
            consumer.dead("exhausted");
            consumer.redriven(1);
            consumer.handler_took(Duration::from_micros(20));
            consumer.committed(64, Duration::from_millis(4));
            consumer.module_file_changed(Swap::Refused);
            consumer.paused("database");
            consumer.parked_rows("retry", 7);
            consumer.compensated(Compensation::Done);
            consumer.crashed(1);
            outbox_published(5);
            outbox_undeliverable(1);
            consumer.outbox_waiting(9, Duration::from_millis(1500));
            [lock_failed, lease_lost, database_failed, broker_failed].iter().for_each(|record| record());
            drop(consumer.in_flight(4));
        });
        for metric in ALL {
            assert!(text.contains(&format!("# HELP {} ", metric.name)), "{} was not recorded", metric.name);
        }
        for line in [
            "hapax_deliveries_received_total{consumer=\"c\"} 3",
            "hapax_attempts_failed_total{consumer=\"c\",kind=\"odd\"} 1",
            "hapax_dead_total{consumer=\"c\",reason=\"exhausted\"} 1",
            "hapax_paused{consumer=\"c\",reason=\"database\"} 1",
            "hapax_in_flight{consumer=\"c\"} 0",
            "hapax_batch_size_bucket{consumer=\"c\",le=\"64\"} 1",
            "hapax_batch_size_bucket{consumer=\"c\",le=\"32\"} 0",
            "hapax_handler_seconds_bucket{consumer=\"c\",le=\"0.00003\"} 1",
            "hapax_outbox_oldest_seconds{consumer=\"c\"} 1.5",
            "hapax_outbox_pending{consumer=\"c\"} 9",
        ] {
            assert!(text.contains(&format!("{line}\n")), "no {line} in:\n{text}");
        }
    }

    /// What upkeep has moved is rendered as what it has not, and it ends when told to.
    #[tokio::test]
    async fn keeping_up_loses_no_sample_and_ends_with_the_host() {
        let recorder = with_buckets(PrometheusBuilder::new()).build_recorder();
        let handle = recorder.handle();
        let consumer = metrics::with_local_recorder(&recorder, || ConsumerMetrics::new("c"));
        let stop = CancellationToken::new();
        let kept_up = {
            let (handle, stop) = (handle.clone(), stop.clone());
            tokio::spawn(async move { keep_up(&handle, Duration::from_millis(1), &stop).await })
        };
        for _ in 0..10 {
            consumer.handler_took(Duration::from_millis(2));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), kept_up).await.unwrap().unwrap();
        consumer.handler_took(Duration::from_millis(2));
        let text = handle.render();
        assert!(text.contains("hapax_handler_seconds_count{consumer=\"c\"} 11\n"), "{text}");
    }

    #[test]
    fn installing_twice_gives_the_same_metrics() {
        let first = Metrics::install().unwrap();
        Metrics::install().unwrap();
        ConsumerMetrics::new("twice").received(1);
        assert!(first.render().contains("hapax_deliveries_received_total{consumer=\"twice\"} 1"));
    }
}
