//! One connection per database, in a transaction that must never end, and what can be seen of its surroundings.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hapax::guest::sql_guard::Checked;
use hapax::ledger::database::Dialect;
use hapax_tests::servers::shared;
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection, Row, SqliteConnection, ValueRef};

/// A longest statement: random ones may recurse for ever.
const STATEMENT_LIMIT: Duration = Duration::from_secs(2);

/// A database with the tables of the corpora, and one open transaction on it.
pub(crate) enum Bench {
    Postgres(PgConnection),
    /// With the database's name, which stands in for the schema `shop`.
    MySql(MySqlConnection, String),
    Sqlite(SqliteConnection, Arc<AtomicBool>),
}

type Outcome<T = ()> = Result<T, sqlx::Error>;

impl Bench {
    pub(crate) async fn open(dialect: Dialect) -> anyhow::Result<Self> {
        let mut bench = match dialect {
            Dialect::Postgres => Self::Postgres(PgConnection::connect(&postgres_url().await?).await?),
            Dialect::MySql => {
                let mut connection = MySqlConnection::connect(&mysql_url().await?).await?;
                let name = sqlx::query_scalar("SELECT DATABASE()").fetch_one(&mut connection).await?;
                Self::MySql(connection, name)
            }
            Dialect::Sqlite => {
                let stop = Arc::new(AtomicBool::new(false));
                let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
                let stopped = Arc::clone(&stop);
                let carry_on = move || !stopped.load(Ordering::Relaxed);
                connection.lock_handle().await?.set_progress_handler(1_000, carry_on);
                Self::Sqlite(connection, stop)
            }
        };
        for statement in bench.setup() {
            bench.exec(statement).await.map_err(|error| anyhow::anyhow!("{statement}: {error}"))?;
        }
        Ok(bench)
    }

    fn setup(&self) -> Vec<&'static str> {
        let file = match self {
            Self::Postgres(_) => include_str!("postgres.sql"),
            Self::MySql(..) => include_str!("mysql.sql"),
            Self::Sqlite(..) => include_str!("sqlite.sql"),
        };
        file.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()).collect()
    }

    /// MySQL's schemas are databases, and a test has only its own.
    fn here(&self, sql: &str) -> String {
        match self {
            Self::MySql(_, name) => sql.replace("`shop`", &format!("`{name}`")),
            Self::Postgres(_) | Self::Sqlite(..) => sql.to_owned(),
        }
    }

    /// Runs a text as it is, by the protocol that allows several statements in it.
    pub(crate) async fn exec(&mut self, sql: &str) -> Outcome {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
            Self::MySql(connection, _) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
            Self::Sqlite(connection, _) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
        }
    }

    /// Runs a checked statement, with NULL for every value.
    pub(crate) async fn run(&mut self, checked: &Checked) -> Outcome {
        let sql = self.here(&checked.sql);
        if checked.parameters == 0 && !matches!(self, Self::Sqlite(..)) {
            return self.exec(&sql).await;
        }
        match self {
            Self::Postgres(_) => {
                self.exec(&format!("PREPARE probe AS {sql}")).await?;
                let nulls = vec!["NULL"; checked.parameters].join(", ");
                let outcome = self.exec(&format!("EXECUTE probe ({nulls})")).await;
                if outcome.is_err() {
                    self.exec("ROLLBACK TO SAVEPOINT start").await?;
                }
                self.exec("DEALLOCATE probe").await?;
                outcome
            }
            Self::MySql(connection, _) => {
                let mut query = sqlx::query(AssertSqlSafe(sql));
                for _ in &checked.order {
                    query = query.bind(None::<String>);
                }
                query.persistent(false).fetch_all(connection).await.map(drop)
            }
            Self::Sqlite(connection, stop) => {
                let mut query = sqlx::query(AssertSqlSafe(sql));
                for _ in &checked.order {
                    query = query.bind(None::<String>);
                }
                let flag = Arc::clone(stop);
                let timer = tokio::spawn(async move {
                    tokio::time::sleep(STATEMENT_LIMIT).await;
                    flag.store(true, Ordering::Relaxed);
                });
                let outcome = query.persistent(false).fetch_all(&mut *connection).await.map(drop);
                timer.abort();
                stop.store(false, Ordering::Relaxed);
                outcome
            }
        }
    }

    /// The bytes of the first column of the first row; none for NULL.
    pub(crate) async fn value(&mut self, sql: &str) -> Outcome<Option<Vec<u8>>> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(connection) => {
                let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
                let value = row.try_get_raw(0)?;
                Ok(if value.is_null() { None } else { value.as_bytes().ok().map(<[u8]>::to_vec) })
            }
            Self::MySql(connection, _) => {
                let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
                row.try_get_unchecked::<Option<Vec<u8>>, _>(0)
            }
            Self::Sqlite(connection, _) => {
                let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
                row.try_get_unchecked::<Option<Vec<u8>>, _>(0)
            }
        }
    }

    /// Prepares a checked statement: the server reads it, and looks its names and types up.
    pub(crate) async fn prepare(&mut self, sql: &str) -> Outcome {
        use sqlx::{Executor, SqlSafeStr};
        let sql = AssertSqlSafe(self.here(sql)).into_sql_str();
        match self {
            Self::Postgres(connection) => connection.prepare(sql).await.map(drop),
            Self::MySql(connection, _) => connection.prepare(sql).await.map(drop),
            Self::Sqlite(connection, _) => connection.prepare(sql).await.map(drop),
        }
    }

    /// Everything that no guest may move: the host's rows, the schema, the session, its locks, and the transaction.
    pub(crate) async fn surroundings(&mut self) -> Outcome<String> {
        let mut seen = Vec::new();
        for question in self.questions() {
            let answer = self.value(question).await?;
            seen.push(answer.map_or("NULL".to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned()));
        }
        Ok(seen.join("\n"))
    }

    fn questions(&self) -> &'static [&'static str] {
        match self {
            Self::Postgres(_) => &[
                "SELECT md5(string_agg(h::text, ';' ORDER BY h::text)) FROM hapax_inbox h",
                "SELECT md5(string_agg(h::text, ';' ORDER BY h::text)) FROM hapax_parked h",
                "SELECT string_agg(name || '=' || setting, ';' ORDER BY name) FROM pg_settings WHERE source = 'session'",
                "SELECT string_agg(oid::regclass::text, ';' ORDER BY oid) FROM pg_class WHERE relnamespace::regnamespace::text \
                 NOT IN ('pg_catalog', 'information_schema', 'pg_toast')",
                "SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory'",
                "SELECT coalesce(string_agg(channel, ';'), '') FROM pg_listening_channels() AS channel",
                "SELECT coalesce(string_agg(name, ';'), '') FROM pg_prepared_statements WHERE from_sql",
                "SELECT coalesce(string_agg(name, ';'), '') FROM pg_cursors WHERE name <> ''",
                "SELECT pg_current_xact_id()::text || ' ' || pg_backend_pid()",
            ],
            Self::MySql(..) => &[
                "SELECT MD5(GROUP_CONCAT(consumer, message_id, status ORDER BY message_id)) FROM hapax_inbox",
                "SELECT MD5(GROUP_CONCAT(consumer, state ORDER BY consumer)) FROM hapax_parked",
                "SELECT GROUP_CONCAT(VARIABLE_NAME, '=', SESSION_VALUE ORDER BY VARIABLE_NAME SEPARATOR ';') \
                 FROM information_schema.SYSTEM_VARIABLES WHERE VARIABLE_SCOPE LIKE 'SESSION%' AND VARIABLE_NAME NOT IN \
                 ('TIMESTAMP', 'RAND_SEED1', 'RAND_SEED2', 'ERROR_COUNT', 'WARNING_COUNT', 'LAST_INSERT_ID', 'IDENTITY', \
                 'INSERT_ID', 'LAST_GTID', 'PSEUDO_THREAD_ID')",
                "SELECT GROUP_CONCAT(TABLE_NAME ORDER BY 1 SEPARATOR ';') FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()",
                "SELECT CONCAT_WS(' ', @@in_transaction, @a, @b, IS_USED_LOCK('a'), CONNECTION_ID())",
                "SELECT trx_id FROM information_schema.INNODB_TRX WHERE trx_mysql_thread_id = CONNECTION_ID()",
            ],
            Self::Sqlite(..) => &[
                "SELECT group_concat(consumer || message_id || status) FROM hapax_inbox",
                "SELECT group_concat(consumer || state) FROM hapax_parked",
                "SELECT group_concat(type || name || coalesce(sql, '')) FROM sqlite_schema",
                "SELECT group_concat(name) FROM sqlite_temp_schema",
                "SELECT group_concat(name) FROM pragma_database_list",
                "SELECT user_version || ' ' || (SELECT foreign_keys FROM pragma_foreign_keys) FROM pragma_user_version",
            ],
        }
    }
}

async fn postgres_url() -> anyhow::Result<String> {
    Ok(kept(shared().postgres().await?.fresh_database("guard").await?))
}

async fn mysql_url() -> anyhow::Result<String> {
    Ok(kept(shared().mariadb().await?.fresh_database("guard").await?))
}

/// The URL of a database that lives as long as the process: the connections of this suite do.
fn kept(database: hapax_tests::servers::Database) -> String {
    let url = database.url().to_owned();
    std::mem::forget(database);
    url
}
