//! What the unit tests of this folder share.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::ahead::Line;
use super::grants::{ConsumerContext, Grants, Limits};
use super::{Call, Phase};
use crate::ledger::database::{Connection, DbError, Dialect, KillSwitch};
use crate::ledger::value::{Executed, Param, ResultSet, RowLimits, Value};
use crate::message::{Message, MessageId, Properties};

/// The first attempt at message `m-1`.
pub(crate) fn call() -> Call {
    Call {
        phase: Phase::Handle,
        id: MessageId::new("m-1").unwrap(),
        message: Arc::new(Message {
            exchange: "shop".into(),
            routing_key: "order.created".into(),
            properties: Properties::default(),
            body: Bytes::from_static(b"{}"),
        }),
        attempt: 1,
        max_attempts: 5,
        generation: 0,
        compensations: 0,
        time_limit: Duration::from_secs(5),
    }
}

/// A consumer named `shop`.
pub(crate) fn consumer(grants: Grants, limits: Limits) -> Arc<ConsumerContext> {
    let ping_every = Duration::from_secs(1);
    Arc::new(ConsumerContext::new("shop", "orders", Dialect::Sqlite, grants, limits, None, ping_every))
}

/// What a [`Fake`] was sent, and what it answers.
#[derive(Default)]
pub(crate) struct Script {
    /// Statements, with their number of parameters; `ping`; `kill`.
    pub(crate) sent: Vec<String>,
    /// Answers to the next statements; an empty queue means success.
    pub(crate) answers: Vec<Result<Executed, DbError>>,
    /// How long each statement takes.
    pub(crate) delay: Duration,
    /// Its statements are seen waiting for locks.
    pub(crate) waits: bool,
}

/// A connection that records, and does as it is told.
#[derive(Clone, Default)]
pub(crate) struct Fake(pub(crate) Arc<Mutex<Script>>);

impl Fake {
    pub(crate) fn sent(&self) -> Vec<String> {
        self.0.lock().unwrap().sent.clone()
    }

    pub(crate) fn answer(&self, answer: Result<Executed, DbError>) {
        self.0.lock().unwrap().answers.push(answer);
    }

    /// As it is lent.
    pub(crate) fn line(&self) -> Line {
        let connection: Box<dyn Connection> = Box::new(self.clone());
        connection.into()
    }

    async fn run(&self, what: String) -> Result<Executed, DbError> {
        let (delay, answer) = {
            let mut script = self.0.lock().unwrap();
            script.sent.push(what);
            let answer = if script.answers.is_empty() { None } else { Some(script.answers.remove(0)) };
            (script.delay, answer)
        };
        tokio::time::sleep(delay).await;
        answer.unwrap_or(Ok(Executed { rows_affected: 1, last_insert_id: None }))
    }
}

#[async_trait]
impl Connection for Fake {
    async fn begin(&mut self) -> Result<(), DbError> {
        Ok(())
    }
    async fn commit(&mut self) -> Result<(), DbError> {
        Ok(())
    }
    async fn rollback(&mut self) -> Result<(), DbError> {
        Ok(())
    }
    async fn savepoint(&mut self) -> Result<(), DbError> {
        Ok(())
    }
    async fn rollback_to_savepoint(&mut self) -> Result<(), DbError> {
        Ok(())
    }
    async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, DbError> {
        self.run(format!("{sql}/{}", params.len())).await
    }
    async fn query(&mut self, sql: &str, params: &[Param], _limits: RowLimits) -> Result<ResultSet, DbError> {
        self.run(format!("{sql}/{}", params.len())).await?;
        Ok(ResultSet { columns: vec!["n".into()], rows: vec![vec![Value::Int(7)]] })
    }
    async fn ping(&mut self) -> Result<(), DbError> {
        self.run("ping".to_owned()).await.map(drop)
    }
    fn kill_switch(&self) -> Arc<dyn KillSwitch> {
        Arc::new(self.clone())
    }
    async fn set_timeouts(&mut self, _lock: Duration, _statement: Duration) -> Result<(), DbError> {
        Ok(())
    }
}

#[async_trait]
impl KillSwitch for Fake {
    async fn is_waiting(&self) -> bool {
        self.0.lock().unwrap().waits
    }

    async fn kill(&self) {
        self.0.lock().unwrap().sent.push("kill".to_owned());
    }
}
