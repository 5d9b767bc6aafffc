//! A connection that answers at once, and always well.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hapax::ledger::database::{Connection, DbError, KillSwitch};
use hapax::ledger::value::{Executed, Param, ResultSet, RowLimits};

/// Every statement changes one row.
pub(super) struct MemorySql;

#[async_trait]
impl Connection for MemorySql {
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
    async fn execute(&mut self, _sql: &str, _params: &[Param]) -> Result<Executed, DbError> {
        Ok(Executed { rows_affected: 1, last_insert_id: None })
    }
    async fn query(&mut self, _sql: &str, _params: &[Param], _limits: RowLimits) -> Result<ResultSet, DbError> {
        Ok(ResultSet { columns: Vec::new(), rows: Vec::new() })
    }
    async fn ping(&mut self) -> Result<(), DbError> {
        Ok(())
    }
    fn kill_switch(&self) -> Arc<dyn KillSwitch> {
        Arc::new(Self)
    }
    async fn set_timeouts(&mut self, _lock: Duration, _statement: Duration) -> Result<(), DbError> {
        Ok(())
    }
}

#[async_trait]
impl KillSwitch for MemorySql {
    async fn kill(&self) {}
}
