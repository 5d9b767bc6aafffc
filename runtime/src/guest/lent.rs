//! The lane's connection, lent to a guest for one call.
//!
//! The call's driver and the guest's statements share it: the driver pings it while the guest is busy elsewhere, and
//! takes it back, in whatever state it is. A connection with a statement on its way is never given back: the answer
//! would be taken for that of the next statement.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

use super::ahead::{Line, Refuted};
use super::patience::within;
use super::sql_guard::{Checked, Kind};
use crate::ledger::database::{Connection, DbError, DbErrorKind, Statement};
use crate::ledger::together::times;
use crate::ledger::value::{Executed, Param, ResultSet, RowLimits};

/// How long the caller waits for a statement to be looked at and stopped at the server; both go on without it.
const KILL_WAIT: Duration = Duration::from_secs(4);

/// How long a ping that is on its way when the guest ends may take; then its connection is given up.
const PING_WAIT: Duration = Duration::from_secs(2);

/// A place for a connection.
#[derive(Default)]
pub(crate) struct Lent {
    line: Mutex<Option<Line>>,
    /// A statement is on its way, or was when its future was dropped.
    busy: AtomicBool,
    /// An error said that the connection is gone.
    lost: AtomicBool,
    /// The statement that was killed waited for locks of other transactions.
    waited: AtomicBool,
    last_used: StdMutex<Option<Instant>>,
}

impl Lent {
    /// Lends a connection for a call.
    pub(crate) async fn lend(&self, line: Line) {
        *self.line.lock().await = Some(line);
        self.busy.store(false, Ordering::Relaxed);
        self.lost.store(false, Ordering::Relaxed);
        self.waited.store(false, Ordering::Relaxed);
        self.used();
    }

    /// Waits for the connection's other user, if there is one.
    pub(crate) async fn session(&self) -> Session<'_> {
        Session { line: self.line.lock().await, lent: self }
    }

    /// Waits for guest code, and keeps the connection alive beside it. The second answer is the error of a ping that
    /// failed.
    pub(crate) async fn beside<T>(&self, every: Duration, guest: impl Future<Output = T>) -> (T, Option<DbError>) {
        let mut keep_alive = std::pin::pin!(self.keep_alive(every));
        let mut failed = None;
        let ended = {
            let mut guest = std::pin::pin!(guest);
            loop {
                tokio::select! {
                    biased;
                    ended = &mut guest => break ended,
                    error = &mut keep_alive, if failed.is_none() => failed = Some(error),
                }
            }
        };
        if self.is_busy() {
            // Either the guest's statement, whose future is gone by now, or a ping, which may finish.
            let settled = async {
                tokio::select! {
                    biased;
                    _ = self.session() => {}
                    error = &mut keep_alive, if failed.is_none() => failed = Some(error),
                }
            };
            let _ = tokio::time::timeout(PING_WAIT, settled).await;
        }
        (ended, failed)
    }

    /// Sends a ping each time the connection has not been used for `every`; returns only with the error of one.
    async fn keep_alive(&self, every: Duration) -> DbError {
        loop {
            let idle = self.last_used().map_or(Duration::ZERO, |last| last.elapsed());
            tokio::time::sleep(every.saturating_sub(idle).max(Duration::from_millis(1))).await;
            if self.last_used().is_some_and(|last| last.elapsed() < every) {
                continue;
            }
            // Held by a statement: that is a sign of life in itself, and its end will be the next.
            let Ok(line) = self.line.try_lock() else {
                tokio::time::sleep(every).await;
                continue;
            };
            let mut session = Session { line, lent: self };
            if let Err(error) = session.ping(every).await {
                return error;
            }
        }
    }

    /// Whether a statement is on its way, or was when the call ended.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Ends the loan. None: the connection was lost, or had to be killed.
    pub(crate) async fn take_back(&self) -> Option<Line> {
        let line = self.line.lock().await.take()?;
        if self.is_busy() {
            let killed = kill(line.connection, true);
            // It runs in a task of its own, so that giving up the wait does not give up the kill.
            let waited = matches!(tokio::time::timeout(KILL_WAIT, killed).await, Ok(Ok(true)));
            self.waited.store(waited, Ordering::Relaxed);
            None
        } else if self.lost.load(Ordering::Relaxed) {
            None
        } else {
            Some(line)
        }
    }

    /// Whether the statement that was killed at the end of the loan waited for locks of other transactions.
    pub(crate) fn waited(&self) -> bool {
        self.waited.load(Ordering::Relaxed)
    }

    fn used(&self) {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn last_used(&self) -> Option<Instant> {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A whole call that is dropped halfway must not leave its statement running at the server.
impl Drop for Lent {
    fn drop(&mut self) {
        if self.is_busy()
            && tokio::runtime::Handle::try_current().is_ok()
            && let Some(line) = self.line.get_mut().take()
        {
            drop(kill(line.connection, false));
        }
    }
}

/// Tells whether the statement waited for locks of other transactions, if anybody wants to know.
fn kill(connection: Box<dyn Connection>, asked: bool) -> tokio::task::JoinHandle<bool> {
    let switch = connection.kill_switch();
    tokio::spawn(async move {
        let waited = asked && switch.is_waiting().await;
        switch.kill().await;
        drop(connection);
        waited
    })
}

/// Exclusive use of the lent connection.
pub(crate) struct Session<'a> {
    line: MutexGuard<'a, Option<Line>>,
    lent: &'a Lent,
}

impl Session<'_> {
    /// Runs a statement for at most `limit`.
    pub(crate) async fn execute(&mut self, sql: &str, params: &[Param], limit: Duration) -> Result<Executed, DbError> {
        let Line { connection, ahead } = self.line.as_mut().ok_or_else(gone)?;
        ahead.arrived();
        let executed = self.lent.timed(sql, connection.execute(sql, params), limit).await?;
        ahead.answered(sql, executed);
        Ok(executed)
    }

    /// Runs a statement once for each list of parameters, each for at most `limit`. Returns the rows changed by all.
    pub(crate) async fn execute_all(
        &mut self,
        sql: &str,
        rows: &[Vec<Param>],
        limit: Duration,
    ) -> Result<u64, DbError> {
        let Line { connection, ahead } = self.line.as_mut().ok_or_else(gone)?;
        ahead.arrived();
        let statements: Vec<Statement<'_>> = rows.iter().map(|params| Statement { sql, params }).collect();
        let mut executed = Vec::with_capacity(rows.len());
        let all = connection.execute_all(&statements, &mut executed);
        self.lent.timed(sql, all, times(limit, rows.len())).await?;
        Ok(executed.iter().fold(0, |sum, done| done.rows_affected.saturating_add(sum)))
    }

    /// Runs a query for at most `limit`.
    pub(crate) async fn query(
        &mut self,
        checked: &Checked,
        params: &[Param],
        rows: RowLimits,
        limit: Duration,
    ) -> Result<ResultSet, DbError> {
        let Line { connection, ahead } = self.line.as_mut().ok_or_else(gone)?;
        if checked.kind == Kind::Write {
            ahead.arrived();
        }
        let result = self.lent.timed(&checked.sql, connection.query(&checked.sql, params, rows), limit).await;
        if result.is_err() {
            // One that only reads leaves nothing behind, unless it fails: the transaction has to go back then.
            ahead.arrived();
        }
        result
    }

    /// The answer that need not be waited for, if there is one.
    pub(crate) fn expected(&mut self, sql: &str) -> Option<Executed> {
        self.line.as_mut()?.ahead.expected(sql)
    }

    /// Puts a statement to those that wait, sending these first if there is no room.
    pub(crate) async fn put_off(
        &mut self,
        checked: &Arc<Checked>,
        params: Vec<Param>,
        expected: Executed,
        limit: Duration,
    ) -> Result<(), Refuted> {
        if self.line.as_ref().is_some_and(|line| line.ahead.is_full()) {
            self.catch_up(limit).await?;
        }
        if let Some(line) = self.line.as_mut() {
            line.ahead.put_off(checked, params, expected);
        }
        Ok(())
    }

    /// Sends the statements that handlers have run ahead of, each for at most `limit`.
    pub(crate) async fn catch_up(&mut self, limit: Duration) -> Result<(), Refuted> {
        let Some(Line { connection, ahead }) = self.line.as_mut() else { return Ok(()) };
        if ahead.is_level() {
            return Ok(());
        }
        let (place, limit) = (ahead.first(), times(limit, ahead.waiting()));
        let mut refuted = None;
        let sent = async {
            let Err(found) = ahead.catch_up(connection.as_mut()).await else { return Ok(()) };
            let error = found.error.clone();
            refuted = Some(found);
            error.map_or(Ok(()), Err)
        };
        let sent = self.lent.timed("(run ahead of)", sent, limit).await;
        match (refuted, sent) {
            (Some(refuted), _) => Err(refuted),
            (None, Err(error)) => Err(Refuted { place, error: Some(error) }),
            (None, Ok(())) => Ok(()),
        }
    }

    async fn ping(&mut self, limit: Duration) -> Result<(), DbError> {
        let Line { connection, .. } = self.line.as_mut().ok_or_else(gone)?;
        let pinged = self.lent.timed("(ping)", connection.ping(), limit).await;
        // A server that does not answer a ping in time is down; it is not the handler that was slow.
        pinged.map_err(|error| DbError { kind: DbErrorKind::Infrastructure, ..error })
    }
}

impl Lent {
    async fn timed<T>(
        &self,
        sql: &str,
        statement: impl Future<Output = Result<T, DbError>>,
        limit: Duration,
    ) -> Result<T, DbError> {
        let started = Instant::now();
        self.busy.store(true, Ordering::Relaxed);
        let result = match within(limit, statement).await {
            Ok(result) => result,
            // Still busy: it must be killed.
            Err(_) => return Err(out_of_time(limit)),
        };
        // Without its parameters: they are the message's.
        tracing::trace!(target: "hapax::guest::sql", sql, elapsed = ?started.elapsed(), ok = result.is_ok());
        self.busy.store(false, Ordering::Relaxed);
        self.used();
        if result.as_ref().is_err_and(|error| error.connection_lost) {
            self.lost.store(true, Ordering::Relaxed);
        }
        result
    }
}

fn out_of_time(limit: Duration) -> DbError {
    DbError {
        kind: DbErrorKind::TimedOut,
        code: Some("timeout".to_owned()),
        constraint: None,
        message: format!("no answer from the database within {limit:.1?}; the statement was stopped"),
        connection_lost: true,
    }
}

/// The error of a connection that was lost.
pub(crate) fn gone() -> DbError {
    DbError { connection_lost: true, ..DbError::infrastructure("the connection to the database is gone") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::testing::Fake;

    #[tokio::test]
    async fn a_connection_that_nobody_uses_is_pinged() {
        let (lent, fake) = (Lent::default(), Fake::default());
        lent.lend(fake.line()).await;
        // Stops between two pings: one that is cut off would cost the connection, as a statement does.
        let pinged_thrice = async {
            while fake.sent().len() < 3 || lent.is_busy() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            error = lent.keep_alive(Duration::from_millis(5)) => panic!("a ping that succeeds is not reported: {error}"),
            () = pinged_thrice => {}
        }
        assert!(fake.sent().iter().all(|sent| sent == "ping"));
        assert!(lent.take_back().await.is_some());
    }

    #[tokio::test]
    async fn nobody_is_woken_again_and_again_while_a_statement_runs() {
        let lent = Lent::default();
        lent.lend(Fake::default().line()).await;
        let _statement = lent.session().await;
        let mut keep_alive = std::pin::pin!(lent.keep_alive(Duration::from_millis(30)));
        let mut wakes = 0;
        let counted = std::future::poll_fn(|context| {
            wakes += 1;
            keep_alive.as_mut().poll(context)
        });
        assert!(tokio::time::timeout(Duration::from_millis(300), counted).await.is_err());
        assert!((3..=20).contains(&wakes), "{wakes} times");
    }

    #[tokio::test]
    async fn a_statement_that_takes_too_long_costs_the_connection() {
        let (lent, fake) = (Lent::default(), Fake::default());
        fake.0.lock().unwrap().delay = Duration::from_secs(60);
        lent.lend(fake.line()).await;
        let error = lent.session().await.execute("SELECT 1", &[], Duration::from_millis(20)).await.unwrap_err();
        assert_eq!((error.kind, error.connection_lost), (DbErrorKind::TimedOut, true));
        assert!(lent.take_back().await.is_none());
        assert_eq!(fake.sent(), ["SELECT 1/0", "kill"]);
    }

    #[tokio::test]
    async fn a_statement_that_is_killed_tells_whether_it_waited() {
        let (lent, fake) = (Lent::default(), Fake::default());
        for waits in [true, false] {
            {
                let mut server = fake.0.lock().unwrap();
                (server.delay, server.waits) = (Duration::from_secs(60), waits);
            }
            lent.lend(fake.line()).await;
            assert!(!lent.waited(), "of this loan");
            let call = async { lent.session().await.execute("SELECT 1", &[], Duration::from_secs(90)).await };
            assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
            assert!(lent.take_back().await.is_none());
            assert_eq!(lent.waited(), waits);
        }
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_halfway_kills_its_statement() {
        let (lent, fake) = (Lent::default(), Fake::default());
        fake.0.lock().unwrap().delay = Duration::from_secs(60);
        lent.lend(fake.line()).await;
        let call = async { lent.session().await.execute("SELECT 1", &[], Duration::from_secs(90)).await };
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
        drop(lent);
        tokio::task::yield_now().await;
        assert_eq!(fake.sent(), ["SELECT 1/0", "kill"]);
    }

    #[tokio::test]
    async fn a_lost_connection_is_not_given_back() {
        let (lent, fake) = (Lent::default(), Fake::default());
        fake.answer(Err(gone()));
        lent.lend(fake.line()).await;
        assert!(lent.session().await.execute("SELECT 1", &[], Duration::from_secs(1)).await.is_err());
        assert!(lent.take_back().await.is_none());
        assert_eq!(fake.sent(), ["SELECT 1/0"], "there is nothing left to kill");
    }
}
