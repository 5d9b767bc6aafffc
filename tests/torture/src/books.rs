//! What the database says at the end, read with SQL of the checker's own: nothing of the runtime is trusted here.

use std::collections::HashSet;
use std::str::FromStr as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{AssertSqlSafe, MySql, MySqlPool, PgPool, Postgres, Row as _, SqlitePool, Transaction};

/// A row, each column as text.
pub(crate) type Row = Vec<Option<String>>;

/// The database, as a stranger reads it.
#[derive(Clone)]
pub(crate) enum Reader {
    Postgres(PgPool),
    MariaDb(MySqlPool),
    Sqlite(SqlitePool),
}

/// One effect of a handler or a compensation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) consumer: String,
    pub(crate) message_id: String,
    /// The order whose program it was.
    pub(crate) origin: String,
    pub(crate) phase: String,
    pub(crate) attempt: u32,
    pub(crate) reason: Option<String>,
    pub(crate) goods: u64,
}

/// One row of `hapax_inbox`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) consumer: String,
    pub(crate) message_id: String,
    /// 1 completed, 2 parked, 3 dead.
    pub(crate) status: i64,
}

/// One row of `hapax_parked`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parked {
    pub(crate) consumer: String,
    pub(crate) message_id: Option<String>,
    /// 1 retry, 2 running, 3 deferred, 4 dead, 5 discarded.
    pub(crate) state: i64,
    pub(crate) generation: u32,
    pub(crate) compensations: u32,
    pub(crate) attempts: u32,
    pub(crate) handler_attempts: u32,
    pub(crate) reason: Option<String>,
    pub(crate) routing_key: String,
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) effects: Vec<Effect>,
    pub(crate) known: Vec<Known>,
    pub(crate) parked: Vec<Parked>,
    /// Rows of `hapax_outbox` by state: 1 pending, 2 undeliverable.
    pub(crate) outbox: Vec<(i64, u64)>,
    /// What is left of each of the goods.
    pub(crate) stock: Vec<(u64, i64)>,
}

/// Rows that somebody holds, until they are released or this is dropped.
pub(crate) enum Held {
    Postgres(Transaction<'static, Postgres>),
    MariaDb(Transaction<'static, MySql>),
}

impl Held {
    /// Lets go of them.
    ///
    /// # Errors
    /// When the database has gone away, and the rows are free.
    pub(crate) async fn release(self) -> Result<()> {
        match self {
            Self::Postgres(transaction) => transaction.rollback().await?,
            Self::MariaDb(transaction) => transaction.rollback().await?,
        }
        Ok(())
    }
}

impl Reader {
    /// Connects.
    ///
    /// # Errors
    /// When the database does not let it in.
    pub(crate) async fn open(url: &str) -> Result<Self> {
        let scheme = url.split(':').next().unwrap_or_default();
        Ok(match scheme {
            "postgres" | "postgresql" => Self::Postgres(PgPool::connect(url).await?),
            "mysql" | "mariadb" => Self::MariaDb(MySqlPool::connect(url).await?),
            "sqlite" => {
                // As the host makes it, which may come later.
                let options = SqliteConnectOptions::from_str(url)?
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .busy_timeout(Duration::from_secs(30));
                Self::Sqlite(SqlitePool::connect_with(options).await?)
            }
            other => bail!("no database speaks {other}"),
        })
    }

    /// A column of numbers or text, as text.
    fn text(&self, column: &str) -> String {
        match self {
            Self::MariaDb(_) => format!("CAST({column} AS CHAR)"),
            Self::Postgres(_) | Self::Sqlite(_) => format!("CAST({column} AS TEXT)"),
        }
    }

    /// A column of bytes that are UTF-8, as text.
    fn bytes(&self, column: &str) -> String {
        match self {
            Self::Postgres(_) => format!("encode({column}, 'escape')"),
            Self::MariaDb(_) => format!("CONVERT({column} USING utf8mb4)"),
            Self::Sqlite(_) => format!("CAST({column} AS TEXT)"),
        }
    }

    /// Text as bytes, in SQL. It holds no quote.
    pub(crate) fn literal(&self, text: &str) -> String {
        match self {
            Self::Postgres(_) => format!("convert_to('{text}', 'UTF8')"),
            Self::MariaDb(_) => format!("'{text}'"),
            Self::Sqlite(_) => format!("CAST('{text}' AS BLOB)"),
        }
    }

    /// All rows of a query whose columns are text.
    ///
    /// # Errors
    /// When the database refuses it, or goes away.
    pub(crate) async fn rows(&self, sql: &str) -> Result<Vec<Row>> {
        macro_rules! read {
            ($pool:expr) => {{
                let rows = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_all($pool).await;
                let rows = rows.with_context(|| format!("asking {sql}"))?;
                rows.iter()
                    .map(|row| (0..row.len()).map(|column| Ok(row.try_get(column)?)).collect::<Result<Row>>())
                    .collect()
            }};
        }
        match self {
            Self::Postgres(pool) => read!(pool),
            Self::MariaDb(pool) => read!(pool),
            Self::Sqlite(pool) => read!(pool),
        }
    }

    /// Changes something.
    ///
    /// # Errors
    /// When the database refuses it, or goes away.
    pub(crate) async fn execute(&self, sql: &str) -> Result<()> {
        let statement = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(pool) => sqlx::query(statement).execute(pool).await.map(drop),
            Self::MariaDb(pool) => sqlx::query(statement).execute(pool).await.map(drop),
            Self::Sqlite(pool) => sqlx::query(statement).execute(pool).await.map(drop),
        }
        .with_context(|| format!("running {sql}"))
    }

    /// Holds rows that handlers change. None if it has lost against handlers, or where nobody else could write at all then.
    ///
    /// # Errors
    /// When the database goes away.
    pub(crate) async fn hold_rows(&self) -> Result<Option<Held>> {
        const HOLD: &str = "UPDATE stock SET quantity = quantity WHERE goods_id < 5";
        macro_rules! hold {
            ($pool:expr, $held:path) => {{
                let mut transaction = $pool.begin().await?;
                let holds = sqlx::query(HOLD).execute(&mut *transaction).await.is_ok();
                holds.then(|| $held(transaction))
            }};
        }
        Ok(match self {
            Self::Postgres(pool) => hold!(pool, Held::Postgres),
            Self::MariaDb(pool) => hold!(pool, Held::MariaDb),
            Self::Sqlite(_) => None,
        })
    }

    /// Whether some session waits for a lock.
    ///
    /// # Errors
    /// As [`number`](Self::number).
    pub(crate) async fn is_anybody_waiting(&self) -> Result<bool> {
        let waiting = match self {
            Self::Postgres(_) => "FROM pg_locks WHERE NOT granted",
            Self::MariaDb(_) => "FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
            Self::Sqlite(_) => return Ok(false),
        };
        Ok(self.number("COUNT(*)", waiting).await? > 0)
    }

    /// One number.
    ///
    /// # Errors
    /// As [`rows`](Self::rows), or when it is none.
    pub(crate) async fn number(&self, expression: &str, rest: &str) -> Result<i64> {
        let rows = self.rows(&format!("SELECT {} {rest}", self.text(expression))).await?;
        let cell = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
        cell.context("no number").and_then(|text| text.parse().with_context(|| format!("{text:?} is no number")))
    }

    /// The ids that a consumer knows.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub(crate) async fn known(&self, consumer: &str) -> Result<HashSet<String>> {
        let id = self.bytes("message_id");
        let rows = self.rows(&format!("SELECT {id} FROM hapax_inbox WHERE consumer = '{consumer}'")).await?;
        Ok(rows.into_iter().flatten().flatten().collect())
    }

    /// Reads everything.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub(crate) async fn books(&self) -> Result<Books> {
        let effects = format!(
            "SELECT consumer, message_id, origin, phase, {}, reason, {} FROM effects",
            self.text("attempt"),
            self.text("goods_id")
        );
        let known = format!(
            "SELECT {}, {}, {} FROM hapax_inbox",
            self.text("consumer"),
            self.bytes("message_id"),
            self.text("status")
        );
        let numbers = ["state", "generation", "compensations", "attempts", "handler_attempts"];
        let parked = format!(
            "SELECT {}, {}, {}, reason, {} FROM hapax_parked",
            self.text("consumer"),
            self.bytes("message_id"),
            numbers.map(|column| self.text(column)).join(", "),
            self.text("routing_key")
        );
        let outbox =
            format!("SELECT {}, {} FROM hapax_outbox GROUP BY state", self.text("state"), self.text("COUNT(*)"));
        let stock = format!("SELECT {}, {} FROM stock", self.text("goods_id"), self.text("quantity"));
        Ok(Books {
            effects: self.rows(&effects).await?.into_iter().map(effect).collect::<Result<_>>()?,
            known: self.rows(&known).await?.into_iter().map(known_row).collect::<Result<_>>()?,
            parked: self.rows(&parked).await?.into_iter().map(parked_row).collect::<Result<_>>()?,
            outbox: self.rows(&outbox).await?.into_iter().map(pair).collect::<Result<_>>()?,
            stock: self.rows(&stock).await?.into_iter().map(pair).collect::<Result<_>>()?,
        })
    }

    /// What the tables say of one message, in words.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub(crate) async fn history(&self, message_id: &str) -> Result<String> {
        let quoted = message_id.replace('\'', "''");
        let mut said = String::new();
        let wanted = [
            ("effects", &["consumer", "message_id", "phase", "attempt", "reason"][..]),
            ("hapax_inbox", &["consumer", "status", "updated_at"]),
            (
                "hapax_parked",
                &[
                    "consumer",
                    "state",
                    "phase",
                    "generation",
                    "attempts",
                    "crashes",
                    "compensations",
                    "reason",
                    "error",
                ],
            ),
            ("hapax_outbox", &["consumer", "state", "attempts", "routing_key", "error"]),
        ];
        for (table, columns) in wanted {
            let which = match table {
                "effects" => format!("'{quoted}' IN (message_id, origin)"),
                _ => format!("{} = '{quoted}'", self.bytes("message_id")),
            };
            let list: Vec<String> = columns.iter().map(|column| self.text(column)).collect();
            let rows = self.rows(&format!("SELECT {} FROM {table} WHERE {which}", list.join(", "))).await?;
            for row in rows {
                let cells = columns.iter().zip(row);
                let cells: Vec<String> =
                    cells.map(|(name, cell)| format!("{name} {}", cell.as_deref().unwrap_or("-"))).collect();
                said.push_str(&format!("    {table}: {}\n", cells.join(", ")));
            }
        }
        Ok(said)
    }
}

/// The cells of a row, taken one after the other.
struct Cells(std::vec::IntoIter<Option<String>>);

impl Cells {
    fn maybe(&mut self) -> Result<Option<String>> {
        self.0.next().context("a column is missing")
    }

    fn text(&mut self) -> Result<String> {
        self.maybe()?.context("a column is NULL")
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        let text = self.text()?;
        text.parse().ok().with_context(|| format!("{text:?} is no number"))
    }
}

fn effect(row: Row) -> Result<Effect> {
    let mut cells = Cells(row.into_iter());
    Ok(Effect {
        consumer: cells.text()?,
        message_id: cells.text()?,
        origin: cells.text()?,
        phase: cells.text()?,
        attempt: cells.number()?,
        reason: cells.maybe()?,
        goods: cells.number()?,
    })
}

fn known_row(row: Row) -> Result<Known> {
    let mut cells = Cells(row.into_iter());
    Ok(Known { consumer: cells.text()?, message_id: cells.text()?, status: cells.number()? })
}

fn parked_row(row: Row) -> Result<Parked> {
    let mut cells = Cells(row.into_iter());
    Ok(Parked {
        consumer: cells.text()?,
        message_id: cells.maybe()?,
        state: cells.number()?,
        generation: cells.number()?,
        compensations: cells.number()?,
        attempts: cells.number()?,
        handler_attempts: cells.number()?,
        reason: cells.maybe()?,
        routing_key: cells.text()?,
    })
}

fn pair<A: std::str::FromStr, B: std::str::FromStr>(row: Row) -> Result<(A, B)> {
    let mut cells = Cells(row.into_iter());
    Ok((cells.number()?, cells.number()?))
}
