//! What the three drivers share: the state of a connection and its transaction, limits of time and size, migrations.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{AppliedMigration, Migrate, MigrateError, Migrator};

use super::database::{DbError, DbErrorKind, KillSwitch, Migration};
use super::value::{ResultSet, RowLimits, Value};
use crate::sabotage::{self, Step};

/// How long opening a connection may take, with everything that is set on it.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long a kill switch may take, and a look at what a statement waits for.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(2);

/// The least time between two looks at what a statement waits for.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// How much longer than the statement time limit an answer may take before the server counts as vanished.
pub(super) const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// How long a migration waits for one lock.
pub(super) const MIGRATION_LOCK_LIMIT: Duration = Duration::from_secs(60);

/// How long all migrations together may take.
pub(super) const MIGRATION_LIMIT: Duration = Duration::from_secs(3600);

/// Where the migrations that were applied are remembered.
pub(super) const MIGRATIONS_TABLE: &str = "hapax_migrations";

/// The state of a connection, asked before and told after every call.
///
/// sqlx is not safe to cancel: a future dropped in the middle of a statement leaves half a conversation behind. So
/// `busy` is set before a call and cleared after it, and who finds it set knows that the connection is lost.
#[derive(Debug, Default)]
pub(super) struct Gate {
    busy: bool,
    abandoned: bool,
    lost: Option<String>,
    transaction: Transaction,
    savepoint: bool,
}

#[derive(Debug, Default)]
enum Transaction {
    #[default]
    None,
    Open,
    /// A statement failed. `gone`: the database has already rolled the whole transaction back.
    Failed {
        why: DbError,
        gone: bool,
    },
}

impl Gate {
    /// Before a statement. Refused after a failed one, on every database as on Postgres: on MariaDB what follows a
    /// deadlock would otherwise run in a transaction of its own.
    pub(super) fn statement(&mut self) -> Result<(), DbError> {
        if let Transaction::Failed { why, .. } = &self.transaction {
            return Err(refused("statement refused", why));
        }
        self.enter()
    }

    /// Before `BEGIN`.
    pub(super) fn begin(&mut self) -> Result<(), DbError> {
        match self.transaction {
            Transaction::None => self.enter(),
            _ => Err(DbError::infrastructure("a transaction is already open on this connection")),
        }
    }

    /// Before `COMMIT`. Never sent after a failed statement: Postgres would answer it with success.
    pub(super) fn commit(&mut self) -> Result<(), DbError> {
        match &self.transaction {
            Transaction::Open => self.enter(),
            Transaction::Failed { why, .. } => Err(refused("COMMIT refused", why)),
            Transaction::None => Err(DbError::infrastructure("COMMIT without a transaction")),
        }
    }

    /// Before `ROLLBACK`. False where there is nothing to send.
    pub(super) fn rollback(&mut self) -> Result<bool, DbError> {
        match self.transaction {
            Transaction::None => Ok(false),
            _ => self.enter().map(|()| true),
        }
    }

    /// Before `SAVEPOINT`. Tells whether one is set already.
    pub(super) fn savepoint(&mut self) -> Result<bool, DbError> {
        match &self.transaction {
            Transaction::Open => self.enter().map(|()| self.savepoint),
            Transaction::Failed { why, .. } => Err(refused("SAVEPOINT refused", why)),
            Transaction::None => Err(DbError::infrastructure("SAVEPOINT without a transaction")),
        }
    }

    /// Before `ROLLBACK TO SAVEPOINT`. Where the database has rolled everything back, the error that told so again.
    pub(super) fn rollback_to_savepoint(&mut self) -> Result<(), DbError> {
        match &self.transaction {
            Transaction::Failed { why, gone: true } => Err(why.clone()),
            Transaction::Open | Transaction::Failed { .. } if self.savepoint => self.enter(),
            _ => Err(DbError::infrastructure("ROLLBACK TO SAVEPOINT without a savepoint")),
        }
    }

    /// Before anything that is no part of a transaction's work.
    pub(super) fn enter(&mut self) -> Result<(), DbError> {
        if self.busy {
            self.lost = Some("a call was abandoned in the middle of a statement".to_owned());
            self.abandoned = true;
            self.busy = false;
        }
        match &self.lost {
            Some(why) => Err(lost(format!("this connection cannot be used any more: {why}"))),
            None => {
                self.busy = true;
                Ok(())
            }
        }
    }

    /// After any call.
    pub(super) fn leave<T>(&mut self, result: Result<T, DbError>) -> Result<T, DbError> {
        self.busy = false;
        if let Err(error) = &result {
            if error.connection_lost {
                self.lost = Some(error.message.clone());
            }
            if let Transaction::Open = self.transaction {
                self.transaction = Transaction::Failed { why: error.clone(), gone: false };
            }
        }
        result
    }

    /// Says that the database has ended the transaction itself. Only the first failure is remembered.
    pub(super) fn transaction_gone(&mut self) {
        if let Transaction::Failed { gone, .. } = &mut self.transaction {
            *gone = true;
        }
    }

    /// True where the database has ended the transaction itself.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.transaction, Transaction::Failed { gone: true, .. })
    }

    /// After `BEGIN`.
    pub(super) fn begun(&mut self, result: Result<(), DbError>) -> Result<(), DbError> {
        let result = self.leave(result);
        if result.is_ok() {
            self.transaction = Transaction::Open;
            self.savepoint = false;
        }
        result
    }

    /// After `COMMIT`. What does not certainly mean that nothing was committed makes the connection lost, so that
    /// nobody takes the answer for a verdict.
    pub(super) fn committed(&mut self, result: Result<(), DbError>) -> Result<(), DbError> {
        let result = result.map_err(|mut error| {
            let certain =
                matches!(error.kind, DbErrorKind::Constraint | DbErrorKind::Invalid | DbErrorKind::Contention);
            error.connection_lost |= !certain;
            error
        });
        self.leave(result)
    }

    /// After `ROLLBACK`, or a `COMMIT` that ended the transaction.
    pub(super) fn ended(&mut self) {
        self.transaction = Transaction::None;
        self.savepoint = false;
    }

    /// After `SAVEPOINT`.
    pub(super) fn savepoint_set(&mut self, result: Result<(), DbError>) -> Result<(), DbError> {
        let result = self.leave(result);
        self.savepoint |= result.is_ok();
        result
    }

    /// After `ROLLBACK TO SAVEPOINT`.
    pub(super) fn rolled_back_to_savepoint(&mut self, result: Result<(), DbError>) -> Result<(), DbError> {
        let result = self.leave(result);
        if result.is_ok() {
            self.transaction = Transaction::Open;
        }
        result
    }

    /// True inside of a transaction.
    pub(super) fn in_transaction(&self) -> bool {
        !matches!(self.transaction, Transaction::None)
    }

    /// True where a call was abandoned, so that the server may still be at work.
    pub(super) fn is_abandoned(&self) -> bool {
        self.busy || self.abandoned
    }
}

fn refused(what: &str, why: &DbError) -> DbError {
    DbError {
        code: Some("25P02".to_owned()),
        ..DbError::infrastructure(format!("{what}: an earlier statement of this transaction failed: {why}"))
    }
}

/// An infrastructure failure after which the connection is of no use.
pub(super) fn lost(message: impl Into<String>) -> DbError {
    DbError { connection_lost: true, ..DbError::infrastructure(message) }
}

/// A mistake in a statement or its data, noticed before it reached the server.
pub(super) fn invalid(message: impl Into<String>) -> DbError {
    DbError { kind: DbErrorKind::Invalid, ..DbError::infrastructure(message) }
}

/// What the statement got wrong about its parameters.
pub(super) fn wrong_count(expected: usize, given: usize) -> DbError {
    invalid(format!("the statement has {expected} placeholders, and {given} parameters were given"))
}

/// Errors of sqlx that are not the server's answer.
pub(super) fn driver_error(error: &sqlx::Error) -> DbError {
    use sqlx::Error;
    match error {
        Error::Configuration(why) => DbError::infrastructure(format!("the database URL is not usable: {why}")),
        Error::Encode(why) => invalid(format!("a parameter cannot be sent: {why}")),
        Error::Io(why) => lost(format!("the connection to the database failed: {why}")),
        Error::Tls(why) => lost(format!("TLS to the database failed: {why}")),
        Error::Protocol(why) => lost(format!("unexpected answer of the database: {why}")),
        other => lost(format!("database driver: {other}")),
    }
}

/// Waits for an answer no longer than `limit`; then the server is told to stop, and the connection is lost.
pub(super) async fn within<T>(
    limit: Duration,
    kind: DbErrorKind,
    kill: &Arc<dyn KillSwitch>,
    answer: impl Future<Output = Result<T, DbError>>,
) -> Result<T, DbError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(result) => result,
        Err(_) => {
            kill.kill().await;
            Err(DbError {
                kind,
                ..lost(format!("no answer of the database within {}", humantime::format_duration(limit)))
            })
        }
    }
}

/// Waits for the answer to statements that may take `limit` each. One that runs into that limit is nobody's fault if it
/// was seen waiting for locks of others.
///
/// A wait that is too long for one lock ends with an error of its own, but a statement may wait for several, one after the
/// other, none of them too long. The server does not say so when it ends the statement, and then it is too late to ask. So
/// another connection looks from half of the limit on, which one wait for one lock does not reach by default.
pub(super) async fn watched<T>(
    limit: Duration,
    outside: &dyn KillSwitch,
    answer: impl Future<Output = Result<T, DbError>>,
) -> Result<T, DbError> {
    let looks = async {
        tokio::time::sleep(limit / 2).await;
        while !outside.is_waiting().await {
            tokio::time::sleep((limit / 8).max(LEAST_PAUSE)).await;
        }
    };
    let (mut looks, mut answer) = (pin!(looks), pin!(answer));
    let answered = tokio::select! {
        biased;
        answered = &mut answer => return answered,
        () = &mut looks => answer.await,
    };
    answered.map_err(|error| match error.kind {
        DbErrorKind::TimedOut => DbError {
            kind: DbErrorKind::Contention,
            message: format!("{}; it has waited for locks of other transactions", error.message),
            ..error
        },
        _ => error,
    })
}

/// Asks about a connection from another one, no longer than [`KILL_LIMIT`]. False where there is no answer.
pub(super) async fn looked(look: impl Future<Output = Result<bool, DbError>>) -> bool {
    match tokio::time::timeout(KILL_LIMIT, look).await {
        Ok(Ok(waits)) => waits,
        Ok(Err(error)) => {
            tracing::debug!(%error, "cannot see what a statement waits for");
            false
        }
        Err(_) => false,
    }
}

/// Opens a connection no longer than [`CONNECT_LIMIT`].
pub(super) async fn connecting<T>(
    to: &str,
    connection: impl Future<Output = Result<T, DbError>>,
) -> Result<T, DbError> {
    match tokio::time::timeout(CONNECT_LIMIT, connection).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(DbError {
            kind: DbErrorKind::Infrastructure,
            message: format!("cannot connect to {to}: {}", error.message),
            ..error
        }),
        Err(_) => {
            Err(lost(format!("cannot connect to {to}: no answer within {}", humantime::format_duration(CONNECT_LIMIT))))
        }
    }
}

/// Ends a connection that is dropped in the middle of a statement: the server would run it to its end.
pub(super) fn kill_in_background(kill: Arc<dyn KillSwitch>) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move { kill.kill().await });
    }
}

/// Milliseconds for a server's setting: at least 1, since 0 often means "no limit", and no more than 32 bits hold.
pub(super) fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// Whole seconds for a server's setting, rounded up, at least 1.
pub(super) fn seconds(duration: Duration) -> i32 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(whole).unwrap_or(i32::MAX).max(1)
}

/// The beginning of a statement, for messages.
pub(super) fn excerpt(sql: &str) -> String {
    let mut words = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = words.char_indices().nth(100) {
        words.truncate(cut);
        words.push('…');
    }
    words
}

/// Collects rows up to a limit; what comes later is only counted.
#[derive(Debug)]
pub(super) struct Rows {
    set: ResultSet,
    limits: RowLimits,
    bytes: u64,
    over: Option<&'static str>,
}

impl Rows {
    pub(super) fn new(limits: RowLimits) -> Self {
        Self { set: ResultSet::default(), limits, bytes: 0, over: None }
    }

    pub(super) fn set_columns(&mut self, columns: Vec<String>) {
        self.set.columns = columns;
    }

    pub(super) fn has_columns(&self) -> bool {
        !self.set.columns.is_empty()
    }

    /// Takes a row that has so many bytes as the driver holds it, decoding it only if there is room: a copy of what is too
    /// large would be made for nothing.
    pub(super) fn push(
        &mut self,
        raw_bytes: u64,
        decode: impl FnOnce() -> Result<Vec<Value>, DbError>,
    ) -> Result<(), DbError> {
        if self.over.is_some() {
            return Ok(());
        }
        if self.set.rows.len() as u64 >= self.limits.rows {
            self.overflow("rows");
            return Ok(());
        }
        if self.bytes.saturating_add(raw_bytes) > self.limits.bytes {
            self.overflow("bytes");
            return Ok(());
        }
        let row = decode()?;
        self.bytes = row.iter().fold(self.bytes, |bytes, value| bytes.saturating_add(value.size()));
        if self.bytes > self.limits.bytes {
            self.overflow("bytes");
            return Ok(());
        }
        self.set.rows.push(row);
        Ok(())
    }

    fn overflow(&mut self, what: &'static str) {
        self.over = Some(what);
        self.set.rows = Vec::new();
    }

    pub(super) fn finish(self) -> Result<ResultSet, DbError> {
        let limit = match self.over {
            None => return Ok(self.set),
            Some("rows") => self.limits.rows,
            Some(_) => self.limits.bytes,
        };
        Err(DbError {
            kind: DbErrorKind::TooLarge,
            ..DbError::infrastructure(format!(
                "the query returned more than {limit} {}: ask for less (LIMIT), or raise the limit of the consumer",
                self.over.unwrap_or_default()
            ))
        })
    }
}

/// The migrations that are pending, as far as can be told without a lock. None where some have to be applied, under a
/// lock, by [`apply_migrations`].
///
/// Nothing is created or locked where nothing is pending, so that a host without DDL rights works on tables made
/// beforehand.
pub(super) async fn plan_migrations<C: Migrate>(
    connection: &mut C,
    migrator: &Migrator,
    table_exists: bool,
    dry_run: bool,
) -> Result<Option<Vec<Migration>>, MigrateError> {
    // Where a migration is not done in one transaction, another host that is at it looks like one that was interrupted
    // at it. Who wants to apply something asks again under the lock.
    let interrupted = if table_exists { connection.dirty_version(MIGRATIONS_TABLE).await? } else { None };
    if let (Some(version), true) = (interrupted, dry_run) {
        return Err(MigrateError::Dirty(version));
    }
    let applied = if table_exists { connection.list_applied_migrations(MIGRATIONS_TABLE).await? } else { Vec::new() };
    let waiting = pending(migrator, &applied)?;
    let is_done = dry_run || (waiting.is_empty() && interrupted.is_none());
    Ok(is_done.then(|| waiting.into_iter().map(describe).collect()))
}

/// Applies the migrations that are pending now that the caller has the lock: another host may have migrated before.
pub(super) async fn apply_migrations<C: Migrate>(
    connection: &mut C,
    migrator: &Migrator,
) -> Result<Vec<Migration>, MigrateError> {
    connection.ensure_migrations_table(MIGRATIONS_TABLE).await?;
    if let Some(version) = connection.dirty_version(MIGRATIONS_TABLE).await? {
        return Err(MigrateError::Dirty(version));
    }
    let applied = connection.list_applied_migrations(MIGRATIONS_TABLE).await?;
    let mut done = Vec::new();
    for migration in pending(migrator, &applied)? {
        sabotage::at(Step::Migrating);
        connection.apply(MIGRATIONS_TABLE, migration).await?;
        done.push(describe(migration));
    }
    Ok(done)
}

fn pending<'m>(
    migrator: &'m Migrator,
    applied: &[AppliedMigration],
) -> Result<Vec<&'m sqlx::migrate::Migration>, MigrateError> {
    if let Some(unknown) = applied.iter().find(|done| !migrator.version_exists(done.version)) {
        return Err(MigrateError::VersionMissing(unknown.version));
    }
    let mut waiting = Vec::new();
    for migration in migrator.iter().filter(|migration| !migration.migration_type.is_down_migration()) {
        match applied.iter().find(|done| done.version == migration.version) {
            Some(done) if done.checksum != migration.checksum => {
                return Err(MigrateError::VersionMismatch(migration.version));
            }
            Some(_) => {}
            None => waiting.push(migration),
        }
    }
    Ok(waiting)
}

fn describe(migration: &sqlx::migrate::Migration) -> Migration {
    Migration {
        version: migration.version,
        description: migration.description.to_string(),
        sql: migration.sql.as_str().to_owned(),
    }
}

/// A failed migration in words; `database_error` classifies the server's own answer.
pub(super) fn migration_error(error: MigrateError, database_error: impl FnOnce(&sqlx::Error) -> DbError) -> DbError {
    let failed = |what: String, error: DbError| DbError {
        kind: DbErrorKind::Infrastructure,
        message: format!("{what}: {}", error.message),
        ..error
    };
    match error {
        MigrateError::Execute(why) => failed("migrating the hapax_* tables failed".to_owned(), database_error(&why)),
        MigrateError::ExecuteMigration(why, version) => {
            failed(format!("migration {version} of the hapax_* tables failed"), database_error(&why))
        }
        MigrateError::Dirty(version) => DbError::infrastructure(format!(
            "migration {version} was interrupted: finish or undo its statements by hand (`hapax migrate --dry-run` \
             prints them), then set success in {MIGRATIONS_TABLE}, or delete the row"
        )),
        MigrateError::VersionMissing(version) => DbError::infrastructure(format!(
            "the database has migration {version}, which this version of Hapax does not know: run the version that \
             made it, or a newer one"
        )),
        MigrateError::VersionMismatch(version) => DbError::infrastructure(format!(
            "migration {version} in the database is not the one of this version of Hapax: its text differs from what \
             {MIGRATIONS_TABLE} remembers"
        )),
        other => DbError::infrastructure(format!("migrating the hapax_* tables failed: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_not_even_decoded() {
        let mut rows = Rows::new(RowLimits { rows: 10, bytes: 1_000 });
        rows.push(400, || Ok(vec![Value::Text("x".repeat(400))])).unwrap();
        rows.push(u64::MAX, || panic!("there is no room for it")).unwrap();
        rows.push(1, || panic!("nor for anything after it")).unwrap();
        let error = rows.finish().unwrap_err();
        assert!(error.kind == DbErrorKind::TooLarge && error.message.contains("1000 bytes"), "{error}");
    }
}
