//! What must not be left behind once everything is done, and once the hosts are gone.

use std::time::Duration;

use anyhow::{Result, ensure};
use hapax_tests::wait_for;

use crate::books::Reader;
use crate::nemesis::Nemesis;

/// How long anything may be left: longer than a lease, a sweep and an idle look.
const LIMIT: Duration = Duration::from_secs(15);

/// How long it waits between two looks at transactions: InnoDB shows what it showed last as long as somebody looks more
/// often than every 100 ms.
const LOOK: Duration = Duration::from_millis(250);

/// Looks, and stops the hosts. Returns what was found, in words.
pub(crate) async fn look(nemesis: &mut Nemesis) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |result: Result<()>| found.extend(result.err().map(|error| format!("left behind: {error:#}")));
    say(no_transactions(&nemesis.stage.reader).await);
    say(no_locks(nemesis).await);
    for host in &mut nemesis.hosts {
        say(host.stop().await);
    }
    say(no_sessions(&nemesis.stage.reader).await);
    say(no_connections(nemesis).await);
    found
}

/// No transaction is open that has locked or changed something.
async fn no_transactions(reader: &Reader) -> Result<()> {
    let open = match reader {
        Reader::Postgres(_) => {
            "SELECT concat_ws(' ', pid, state, xact_start, query) FROM pg_stat_activity \
             WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
        }
        Reader::MariaDb(_) => {
            "SELECT CONCAT_WS(' ', trx_mysql_thread_id, trx_state, trx_started, trx_rows_locked, trx_rows_modified, \
             trx_tables_locked, p.host, p.time, p.info) FROM information_schema.innodb_trx \
             LEFT JOIN information_schema.processlist p ON p.id = trx_mysql_thread_id \
             WHERE trx_rows_locked > 0 OR trx_rows_modified > 0"
        }
        Reader::Sqlite(_) => return Ok(()),
    };
    wait_for(LIMIT, "every transaction to end", async || {
        tokio::time::sleep(LOOK).await;
        let open: Vec<String> = reader.rows(open).await?.into_iter().flatten().flatten().collect();
        ensure!(open.is_empty(), "open transactions: {}", open.join("; "));
        Ok(())
    })
    .await
}

/// No message is locked.
async fn no_locks(nemesis: &Nemesis) -> Result<()> {
    if nemesis.stage.redis.is_none() {
        return Ok(());
    }
    none_left("locks", async || nemesis.stage.ask_locks(&["DBSIZE"]).await).await
}

/// Every session of the hosts is closed.
async fn no_sessions(reader: &Reader) -> Result<()> {
    let (rest, ours) = match reader {
        Reader::Postgres(pool) => ("FROM pg_stat_activity WHERE datname = current_database()", pool.size()),
        Reader::MariaDb(pool) => ("FROM information_schema.processlist WHERE db = database()", pool.size()),
        Reader::Sqlite(_) => return Ok(()),
    };
    none_left("database sessions", async || Ok((reader.number("COUNT(*)", rest).await? - i64::from(ours)).max(0))).await
}

/// Every connection to the broker is closed.
async fn no_connections(nemesis: &Nemesis) -> Result<()> {
    let Some(vhost) = &nemesis.stage.vhost else { return Ok(()) };
    none_left("connections to the broker", async || Ok(i64::try_from(vhost.connections().await?.len())?)).await
}

async fn none_left(what: &str, mut count: impl AsyncFnMut() -> Result<i64>) -> Result<()> {
    wait_for(LIMIT, format!("no {what} to be left"), async || {
        let left = count().await?;
        ensure!(left == 0, "{left} {what}");
        Ok(())
    })
    .await
}
