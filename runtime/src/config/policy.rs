//! What a consumer may use, and how it behaves: `retry`, `prefetch`, `batch`, `limits`, `lock`, `reuse`, `mass_failure`.

use std::time::Duration;

use super::reader::{Field, Reader};
use super::scalar::FOREVER;
use crate::retry::{RetryMode, RetryPolicy};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// How much may be delivered and not yet settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Deliveries; never 0.
    pub messages: u16,
    /// Bytes of bodies, about.
    pub bytes: u64,
}

/// How many messages share a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// At most this many; never 0.
    pub max_messages: u16,
    /// No member starts later than this after the first one.
    pub max_time: Duration,
    /// Handlers may go on with the answers that their statements always have, before the database has given them.
    pub run_ahead: bool,
}

/// What one attempt may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of the instance, in bytes.
    pub memory: u64,
    /// Wall-clock time. One that is up while a statement waits for locks counts as contention, not as an attempt.
    pub time: Duration,
    /// Rows of one query.
    pub sql_rows: u64,
    /// Bytes of one query's values, about.
    pub sql_bytes: u64,
    /// Rows that all statements together may change.
    pub sql_rows_affected: u64,
    /// Bytes of one statement's text.
    pub sql_text: u64,
    /// Time of one statement, its waits included. One that goes by in waiting for locks counts as contention too.
    pub sql_time: Duration,
    /// How long one statement waits for a row lock.
    pub sql_lock_time: Duration,
    /// Statements.
    pub sql_statements: u32,
    /// Messages put into the outbox.
    pub outbox_messages: u32,
    /// Bytes of their bodies and headers.
    pub outbox_bytes: u64,
    /// Bytes of standard output and error that reach the log.
    pub output: u64,
}

/// What happens while the lock server cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnavailable {
    /// Go on: SQL alone decides.
    Continue,
    /// Wait until it is back.
    Pause,
}

/// How message ids are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockPolicy {
    /// The lease; renewed while an attempt runs.
    pub ttl: Duration,
    /// Without a lock server.
    pub on_unavailable: OnUnavailable,
    /// How long a delivery waits in memory for a lock that another holds, before it is deferred.
    pub wait: Duration,
}

/// When an instance is discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reuse {
    /// After this many calls; 1 gives every message a fresh instance.
    pub calls: u32,
    /// When its memory has grown by this many bytes.
    pub memory: u64,
}

/// When failures are taken for an outage of something that the handler depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MassFailure {
    /// Above this share of transient failures, 0 to 1 …
    pub threshold: f64,
    /// … among this many last verdicts.
    pub window: u32,
}

/// Of the two intervals, one that is not set keeps to the other.
pub(super) fn retry(reader: &mut Reader<'_>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let interval = |f: &Field<'_>| f.duration(Duration::ZERO..=FOREVER);
    let initial_interval = reader.optional("initial_interval", interval);
    let max_interval = reader.optional("max_interval", interval);
    let modes = [("delayed", RetryMode::Delayed), ("blocking", RetryMode::Blocking)];
    RetryPolicy {
        max_attempts: reader.get("max_attempts", default.max_attempts, |f| f.integer(1..=1_000_000)),
        initial_interval: initial_interval.unwrap_or_else(|| {
            max_interval.map_or(default.initial_interval, |most| most.min(default.initial_interval))
        }),
        multiplier: reader.get("multiplier", default.multiplier, |f| f.number(1.0..=1000.0)),
        max_interval: max_interval
            .unwrap_or_else(|| initial_interval.map_or(default.max_interval, |first| first.max(default.max_interval))),
        jitter: reader.get("jitter", default.jitter, |f| f.number(0.0..=1.0)),
        mode: reader.get("mode", default.mode, |f| f.choice(&modes)),
    }
}

/// By default four batches for each lane.
pub(super) fn prefetch(reader: &mut Reader<'_>, lanes: u16, batch: Batch) -> Prefetch {
    let messages = 4 * u32::from(lanes) * u32::from(batch.max_messages);
    let messages = u16::try_from(messages).unwrap_or(u16::MAX);
    Prefetch {
        messages: reader.get("messages", messages, |f| f.integer(1..=u64::from(u16::MAX))),
        bytes: reader.get("bytes", 64 * MIB, |f| f.size(1..=u64::MAX)),
    }
}

/// A default never exceeds the time of one attempt.
pub(super) fn batch(reader: &mut Reader<'_>, limits: Limits) -> Batch {
    Batch {
        // One claim is one statement, and databases take some ten thousand parameters in one.
        max_messages: reader.get("max_messages", 64, |f| f.integer(1..=4096)),
        max_time: reader.get("max_time", SECOND.min(limits.time), |f| f.duration(MILLISECOND..=10 * MINUTE)),
        run_ahead: reader.get("run_ahead", true, Field::boolean),
    }
}

pub(super) fn limits(reader: &mut Reader<'_>) -> Limits {
    let time = reader.get("time", 30 * SECOND, |f| f.duration(MILLISECOND..=24 * HOUR));
    let sql_time = reader.get("sql_time", (5 * SECOND).min(time), |f| f.duration(MILLISECOND..=24 * HOUR));
    Limits {
        memory: reader.get("memory", 64 * MIB, |f| f.size(MIB..=4 * GIB)),
        time,
        sql_rows: reader.get("sql_rows", 10_000, |f| f.integer(1..=u64::MAX)),
        sql_bytes: reader.get("sql_bytes", 16 * MIB, |f| f.size(1024..=GIB)),
        sql_rows_affected: reader.get("sql_rows_affected", 100_000, |f| f.integer(0..=u64::MAX)),
        // Reading a statement takes time and stack: what is long is data, and data belongs into parameters.
        sql_text: reader.get("sql_text", 64 * KIB, |f| f.size(1..=64 * KIB)),
        sql_time,
        sql_lock_time: reader.get("sql_lock_time", (2 * SECOND).min(sql_time / 2), |f| f.duration(MILLISECOND..=HOUR)),
        sql_statements: reader.get("sql_statements", 1000, |f| f.integer(0..=u64::from(u32::MAX))),
        outbox_messages: reader.get("outbox_messages", 1000, |f| f.integer(0..=1_000_000)),
        outbox_bytes: reader.get("outbox_bytes", 16 * MIB, |f| f.size(0..=GIB)),
        output: reader.get("output", 64 * KIB, |f| f.size(0..=GIB)),
    }
}

pub(super) fn lock(reader: &mut Reader<'_>) -> LockPolicy {
    let choices = [("continue", OnUnavailable::Continue), ("pause", OnUnavailable::Pause)];
    LockPolicy {
        ttl: reader.get("ttl", 10 * SECOND, |f| f.duration(SECOND..=10 * MINUTE)),
        on_unavailable: reader.get("on_unavailable", OnUnavailable::Continue, |f| f.choice(&choices)),
        wait: reader.get("wait", 200 * MILLISECOND, |f| f.duration(Duration::ZERO..=MINUTE)),
    }
}

/// `true`, `false` or a table; `false` is one call an instance.
pub(super) fn reuse(reader: &mut Reader<'_>) -> Reuse {
    let reuse = reader.switch("reuse", true, |reader| Reuse {
        calls: reader.get("calls", 10_000, |f| f.integer(1..=u64::from(u32::MAX))),
        memory: reader.get("memory", 16 * MIB, |f| f.size(64 * 1024..=4 * GIB)),
    });
    reuse.unwrap_or(Reuse { calls: 1, memory: 16 * MIB })
}

pub(super) fn mass_failure(reader: &mut Reader<'_>) -> Option<MassFailure> {
    reader.switch("mass_failure", true, |reader| MassFailure {
        threshold: reader.get("threshold", 0.9, |f| f.number(0.01..=1.0)),
        window: reader.get("window", 100, |f| f.integer(10..=10_000)),
    })
}

pub(super) fn max_crashes(reader: &mut Reader<'_>) -> u32 {
    reader.get("max_crashes", 3, |f| f.integer(0..=1000))
}

pub(super) fn retention(reader: &mut Reader<'_>) -> Duration {
    reader.get("retention", 30 * 24 * HOUR, |f| f.duration(MINUTE..=FOREVER))
}

pub(super) fn rescue_after(reader: &mut Reader<'_>) -> Duration {
    reader.get("rescue_after", 5 * SECOND, |f| f.duration(SECOND..=HOUR))
}

/// `parked.max` and `outbox.max`: rows beyond which a consumer takes no more deliveries.
pub(super) fn max_rows(reader: &mut Reader<'_>) -> u64 {
    reader.get("max", 100_000, |f| f.integer(1..=u64::MAX))
}
