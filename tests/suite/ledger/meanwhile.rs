//! What others do between two statements of ours.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use hapax::ledger::database::{Connection, DbError, KillSwitch};
use hapax::ledger::parked::{Carried, ParkedMove, Take, Which};
use hapax::ledger::value::{Executed, Param, ResultSet, RowLimits};
use hapax_tests::TestResult;

use crate::subject::*;

/// A lane that somebody gets ahead of, once, after its first query.
struct Overtaken {
    lane: Box<dyn Connection>,
    meanwhile: Option<BoxFuture<'static, Result<(), DbError>>>,
}

#[async_trait]
impl Connection for Overtaken {
    async fn begin(&mut self) -> Result<(), DbError> {
        self.lane.begin().await
    }

    async fn commit(&mut self) -> Result<(), DbError> {
        self.lane.commit().await
    }

    async fn rollback(&mut self) -> Result<(), DbError> {
        self.lane.rollback().await
    }

    async fn savepoint(&mut self) -> Result<(), DbError> {
        self.lane.savepoint().await
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), DbError> {
        self.lane.rollback_to_savepoint().await
    }

    async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, DbError> {
        self.lane.execute(sql, params).await
    }

    async fn query(&mut self, sql: &str, params: &[Param], limits: RowLimits) -> Result<ResultSet, DbError> {
        let found = self.lane.query(sql, params, limits).await;
        if let Some(meanwhile) = self.meanwhile.take() {
            meanwhile.await?;
        }
        found
    }

    async fn ping(&mut self) -> Result<(), DbError> {
        self.lane.ping().await
    }

    fn kill_switch(&self) -> Arc<dyn KillSwitch> {
        self.lane.kill_switch()
    }

    async fn set_timeouts(&mut self, lock: Duration, statement: Duration) -> Result<(), DbError> {
        self.lane.set_timeouts(lock, statement).await
    }
}

/// What a lane takes in order that saw two rows due, while another host took the first of them, which failed once more,
/// to be due again after `delay`: names and attempts.
async fn taken_behind_another_host(subject: Subject, delay: Duration) -> TestResult<Vec<(String, u32)>> {
    let in_order = Take { in_order: true, ..everything(Which::Innocent) };
    for name in ["first", "second"] {
        subject.retry(Carried { slot: 7, ..carried(name) }, Duration::ZERO).await?;
    }
    let subject = Arc::new(subject);
    let other = Arc::clone(&subject);
    let meanwhile = async move {
        let (token, rows) = other.take_as(&Take { in_order: true, limit: 1, ..everything(Which::Innocent) }).await?;
        let failed = ParkedMove::retry(&rows[0], token, 2, delay, Some(&failure("again")), None);
        committed!(other, |lane| other.ledger.move_parked(lane, &[failed]).await?);
        Ok(())
    };
    let mut lane = Overtaken { lane: subject.lane().await?, meanwhile: Some(Box::pin(meanwhile)) };
    let (_, rows) = subject.ledger.take_due(&mut lane, &in_order).await?;
    assert!(lane.meanwhile.is_none(), "somebody got ahead");
    let of = |row: &hapax::ledger::parked::ParkedRow| {
        let id = row.message.properties.message_id.clone().unwrap_or_default();
        (id, row.attempts)
    };
    Ok(rows.iter().map(of).collect())
}

pub(crate) async fn what_another_host_ran_meanwhile_is_taken_as_it_is_now(subject: Subject) -> TestResult {
    // A file has one writer: nobody gets between.
    if !subject.features().concurrent_writers {
        return Ok(());
    }
    let taken = taken_behind_another_host(subject, Duration::ZERO).await?;
    assert_eq!(taken, [("first".to_owned(), 2), ("second".to_owned(), 1)]);
    Ok(())
}

pub(crate) async fn what_another_host_put_off_meanwhile_is_not_overtaken(subject: Subject) -> TestResult {
    if !subject.features().concurrent_writers {
        return Ok(());
    }
    assert_eq!(taken_behind_another_host(subject, LONG).await?, [], "nor what comes after it");
    Ok(())
}
