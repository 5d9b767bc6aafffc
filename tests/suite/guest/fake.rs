//! A connection that records what it is sent. The tables that a statement names decide what becomes of it: a table
//! `deadlock` is one, and so on; all other statements succeed at once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hapax::ledger::database::{Connection, DbError, DbErrorKind, KillSwitch};
use hapax::ledger::value::{Executed, Param, ResultSet, RowLimits, Value};

/// Tables that misbehave.
pub(crate) const TABLES: [&str; 6] = ["deadlock", "down", "lost", "taken", "slow", "held"];

/// What was sent, in order: statements with their parameters, `ping`, `kill`.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Vec<Sent>>>);

/// A text, and the values bound to it.
type Sent = (String, Vec<Value>);

impl Fake {
    pub(crate) fn boxed(&self) -> Box<dyn Connection> {
        Box::new(self.clone())
    }

    /// The texts of everything that was sent.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(text, _)| text.clone()).collect()
    }

    /// How often `text` was sent.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|(sent, _)| sent.contains(text)).count()
    }

    /// What chaos wrote under `name` with `into`.
    pub(crate) fn written(&self, name: &str) -> Vec<Option<String>> {
        let sent = self.0.lock().unwrap();
        let named = sent.iter().filter(|(_, params)| params.first() == Some(&Value::Text(name.to_owned())));
        named
            .map(|(_, params)| match params.get(1) {
                Some(Value::Text(text)) => Some(text.clone()),
                Some(Value::Null) | None => None,
                Some(other) => Some(format!("{other:?}")),
            })
            .collect()
    }

    fn note(&self, text: &str, params: &[Param]) {
        let params = params.iter().filter_map(|param| match param {
            Param::One(value) => Some(value.clone()),
            _ => None,
        });
        self.0.lock().unwrap().push((text.to_owned(), params.collect()));
    }

    async fn run(&self, sql: &str, params: &[Param]) -> Result<(), DbError> {
        self.note(sql, params);
        let error = |kind, lost| {
            Err(DbError {
                kind,
                code: Some("40001".to_owned()),
                constraint: None,
                message: "as the test wants it".to_owned(),
                connection_lost: lost,
            })
        };
        match TABLES.iter().find(|table| sql.contains(*table)) {
            Some(&"deadlock") => error(DbErrorKind::Contention, false),
            Some(&"down") => error(DbErrorKind::Infrastructure, false),
            Some(&"lost") => error(DbErrorKind::Infrastructure, true),
            Some(&"taken") => error(DbErrorKind::Constraint, false),
            Some(_) => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                Ok(())
            }
            None => Ok(()),
        }
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
        self.run(sql, params).await?;
        Ok(Executed { rows_affected: 1, last_insert_id: None })
    }
    async fn query(&mut self, sql: &str, params: &[Param], _limits: RowLimits) -> Result<ResultSet, DbError> {
        self.run(sql, params).await?;
        Ok(ResultSet { columns: vec!["n".to_owned()], rows: vec![vec![Value::Int(7)]] })
    }
    async fn ping(&mut self) -> Result<(), DbError> {
        self.note("ping", &[]);
        Ok(())
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
        self.sent().last().is_some_and(|sql| sql.contains("held"))
    }

    async fn kill(&self) {
        self.note("kill", &[]);
    }
}
