//! One ledger in a database of its own, and short names for what the facts do with it.

use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use hapax::guest::{Advice, Failure};
use hapax::ledger::Ledger;
use hapax::ledger::database::{
    Connection, Database, DbError, DbErrorKind, Dialect, Features, Migration, SessionSettings, open,
};
use hapax::ledger::inbox::{Claim, Claimed, InboxRow, Status};
use hapax::ledger::parked::{Carried, Incarnation, NewParked, ParkedId, ParkedRow, RunToken, State, Take, Which};
use hapax::ledger::upkeep::{RescuePolicy, Rescued};
use hapax::ledger::value::{ResultSet, RowLimits, Value};
use hapax::message::{BodyDigest, Message, MessageId, Properties};
use hapax::outcome::Reason;
use hapax_tests::servers::{self, shared};

/// The consumer that most facts are about.
pub(crate) const CONSUMER: &str = "reduce-stock";

/// The host that takes rows, unless another is named.
pub(crate) const HOST: Incarnation = Incarnation(*b"the-only-host-on");
/// The host that looks after what others have lost.
pub(crate) const RESCUER: Incarnation = Incarnation(*b"the-host-that-is");

/// The module that handles everything.
pub(crate) const MODULE: [u8; 8] = *b"module-1";

/// The slot of a message that no fact puts elsewhere.
pub(crate) const SLOT: u16 = 7;

/// Long enough that it does not end while a test runs.
pub(crate) const LONG: Duration = Duration::from_secs(600);

/// One database, and the ledger in it.
pub(crate) struct Subject {
    pub(crate) ledger: Arc<Ledger>,
    _kept: Kept,
}

/// What goes when the subject does.
enum Kept {
    Database(#[expect(dead_code, reason = "it is dropped, that is its use")] servers::Database),
    Folder(#[expect(dead_code, reason = "it is dropped, that is its use")] tempfile::TempDir),
}

impl Subject {
    pub(crate) async fn postgres() -> Result<Self> {
        let database = shared().postgres().await?.fresh_database("ledger").await?;
        Self::ready("postgres", open(database.url(), settings())?, Kept::Database(database)).await
    }

    pub(crate) async fn mariadb() -> Result<Self> {
        let database = shared().mariadb().await?.fresh_database("ledger").await?;
        Self::ready("mariadb", open(database.url(), settings())?, Kept::Database(database)).await
    }

    pub(crate) async fn mysql_8() -> Result<Self> {
        let database = shared().mariadb().await?.fresh_database("ledger").await?;
        let denying =
            Arc::new(Disguised { database: open(database.url(), settings())?, as_what: Disguise::WithoutReturning });
        Self::ready("mysql_8", denying, Kept::Database(database)).await
    }

    pub(crate) async fn sqlite() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let url = format!("sqlite://{}", folder.path().join("ledger.db").display());
        Self::ready("sqlite", open(&url, settings())?, Kept::Folder(folder)).await
    }

    async fn ready(name: &str, database: Arc<dyn Database>, kept: Kept) -> Result<Self> {
        let ledger = Ledger::open(database).await.context("opening the ledger")?;
        ledger.migrate().await.context("migrating")?;
        show(name, &ledger).await?;
        Ok(Self { ledger: Arc::new(ledger), _kept: kept })
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.ledger.database().dialect()
    }

    pub(crate) fn features(&self) -> Features {
        self.ledger.features()
    }

    /// A connection as a lane has one.
    pub(crate) async fn lane(&self) -> Result<Box<dyn Connection>, DbError> {
        self.ledger.connect().await
    }

    /// One that waits for locks no longer than a second.
    pub(crate) async fn impatient_lane(&self) -> Result<Box<dyn Connection>, DbError> {
        let mut lane = self.lane().await?;
        lane.set_timeouts(Duration::from_secs(1), Duration::from_secs(60)).await?;
        Ok(lane)
    }

    /// Runs a statement of the test's own, and commits it.
    pub(crate) async fn sql(&self, sql: &str) -> Result<ResultSet, DbError> {
        let mut lane = self.lane().await?;
        lane.begin().await?;
        let found = match sql.starts_with("SELECT") {
            true => lane.query(sql, &[], RowLimits::NONE).await?,
            false => lane.execute(sql, &[]).await.map(|_| ResultSet::default())?,
        };
        lane.commit().await?;
        Ok(found)
    }

    /// The one number that a statement of the test's own returns.
    pub(crate) async fn count(&self, sql: &str) -> Result<i64> {
        match self.sql(sql).await?.rows.first().and_then(|row| row.first()) {
            Some(Value::Int(count)) => Ok(*count),
            other => anyhow::bail!("{sql}: {other:?} is no number"),
        }
    }

    /// Makes everything in a table older.
    pub(crate) async fn age(&self, table: &str, column: &str, by: Duration) -> Result<(), DbError> {
        self.sql(&format!("UPDATE {table} SET {column} = {column} - {}", by.as_millis())).await.map(drop)
    }

    /// Bytes in the SQL of this database.
    pub(crate) fn literal(&self, bytes: &[u8]) -> String {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self.dialect() {
            Dialect::Postgres => format!("'\\x{hex}'::bytea"),
            Dialect::MySql | Dialect::Sqlite => format!("x'{hex}'"),
        }
    }

    /// Claims in a transaction of its own. Where the server cannot tell what went in, a lost race is run again, as
    /// lanes do; and since it was rolled back, two that waited for it may meet in a deadlock, and run again too.
    pub(crate) async fn claim(&self, claims: &[Claim]) -> Result<Vec<Claimed>, DbError> {
        let mut lane = self.lane().await?;
        loop {
            lane.begin().await?;
            match self.ledger.claim(lane.as_mut(), CONSUMER, claims).await {
                Ok(found) => return lane.commit().await.map(|()| found),
                Err(error) if error.kind == DbErrorKind::Contention && !self.features().insert_returning => {
                    lane.rollback().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Parks rows, and claims their ids for them where they own one.
    pub(crate) async fn park(&self, owner: Option<Status>, rows: &[(Carried, NewParked)]) -> Result<(), DbError> {
        let mut lane = self.lane().await?;
        lane.begin().await?;
        if let Some(status) = owner {
            let claims: Vec<Claim> = rows.iter().map(|(carried, _)| owning(carried, status)).collect();
            let found = self.ledger.claim(lane.as_mut(), CONSUMER, &claims).await?;
            assert!(found.iter().all(|found| *found == Claimed::New), "{found:?}");
        }
        let rows: Vec<NewParked> = rows.iter().map(|(_, row)| row.clone()).collect();
        self.ledger.park(lane.as_mut(), CONSUMER, &rows).await?;
        lane.commit().await
    }

    /// absent → retry.
    pub(crate) async fn retry(&self, carried: Carried, delay: Duration) -> Result<ParkedId, DbError> {
        let row = NewParked::retry(carried.clone(), 1, delay, Some(&failure("first")));
        let id = row.id;
        self.park(Some(Status::Parked), &[(carried, row)]).await.map(|()| id)
    }

    /// unknown → deferred.
    pub(crate) async fn defer(&self, carried: Carried, delay: Duration) -> Result<ParkedId, DbError> {
        let row = NewParked::deferred(carried.clone(), delay);
        let id = row.id;
        self.park(None, &[(carried, row)]).await.map(|()| id)
    }

    /// absent → dead.
    pub(crate) async fn bury(&self, carried: Carried) -> Result<ParkedRow> {
        let row = NewParked::dead(carried.clone(), Reason::Permanent, 3, Some(&failure("never")));
        let id = row.id;
        self.park(Some(Status::Dead), &[(carried, row)]).await?;
        self.row(id).await
    }

    /// Takes what is due, from all slots.
    pub(crate) async fn take(&self, which: Which) -> Result<(RunToken, Vec<ParkedRow>), DbError> {
        self.take_as(&everything(which)).await
    }

    /// The same, in detail.
    pub(crate) async fn take_as(&self, take: &Take<'_>) -> Result<(RunToken, Vec<ParkedRow>), DbError> {
        let mut lane = self.lane().await?;
        self.ledger.take_due(lane.as_mut(), take).await
    }

    /// Takes the only row that is due.
    pub(crate) async fn take_one(&self) -> Result<(RunToken, ParkedRow), DbError> {
        let (token, mut rows) = self.take(Which::Innocent).await?;
        assert_eq!(rows.len(), 1, "{rows:?}");
        Ok((token, rows.remove(0)))
    }

    /// Puts back everything that runs, as if its host had died.
    pub(crate) async fn crash(&self, max_crashes: u32) -> Result<Vec<Rescued>, DbError> {
        self.age("hapax_parked", "taken_at", LONG * 2).await?;
        self.ledger.rescue(CONSUMER, RESCUER, rescue_after(LONG, max_crashes), |_| None).await
    }

    /// A parked row that must be there.
    pub(crate) async fn row(&self, id: ParkedId) -> Result<ParkedRow> {
        self.ledger.parked_row(id).await?.with_context(|| format!("there is no parked row {id}"))
    }

    /// What the inbox says of an id.
    pub(crate) async fn inbox(&self, name: &str) -> Result<Option<InboxRow>, DbError> {
        Ok(self.ledger.known(CONSUMER, &id(name)).await?.inbox)
    }

    /// The same, in short.
    pub(crate) async fn status(&self, name: &str) -> Result<Option<(Status, Option<ParkedId>)>, DbError> {
        Ok(self.inbox(name).await?.map(|row| (row.status, row.parked_id)))
    }
}

/// Runs a body in a committed transaction on a lane of its own.
macro_rules! committed {
    ($subject:expr, |$connection:ident| $body:expr) => {{
        let mut lane = $subject.lane().await?;
        lane.begin().await?;
        let done = {
            let $connection = lane.as_mut();
            $body
        };
        lane.commit().await?;
        done
    }};
}
pub(crate) use committed;

fn settings() -> SessionSettings {
    SessionSettings {
        lock_timeout: Duration::from_secs(60),
        statement_timeout: Duration::from_secs(60),
        idle_in_transaction: Duration::from_secs(120),
    }
}

/// Past the capture of test output: every run shows what it ran against.
async fn show(name: &str, ledger: &Ledger) -> Result<()> {
    static SHOWN: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let is_new = {
        let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
        shown.get_or_insert_default().insert(name.to_owned())
    };
    if is_new {
        let server = ledger.database().describe().await?;
        writeln!(std::io::stderr(), "{name}: {server}, {:?}", ledger.features())?;
    }
    Ok(())
}

pub(crate) const ALL_STATES: std::ops::RangeInclusive<State> = State::Retry..=State::Discarded;

pub(crate) fn everything(which: Which) -> Take<'static> {
    Take { consumer: CONSUMER, slots: 0..=255, limit: 100, incarnation: HOST, which, in_order: false }
}

/// Only what nothing older is in the way of.
pub(crate) fn in_order(which: Which) -> Take<'static> {
    Take { in_order: true, ..everything(which) }
}

pub(crate) fn rescue_after(after: Duration, max_crashes: u32) -> RescuePolicy {
    RescuePolicy { after, max_crashes, delay: Duration::ZERO }
}

pub(crate) fn id(name: &str) -> MessageId {
    MessageId::new(name).expect("a name that can be a message id")
}

pub(crate) fn digest(body: &str) -> BodyDigest {
    BodyDigest::of(body.as_bytes())
}

/// A message whose body is its name.
pub(crate) fn carried(name: &str) -> Carried {
    carrying(name, name.as_bytes().to_vec())
}

pub(crate) fn carrying(name: &str, body: Vec<u8>) -> Carried {
    Carried {
        row_id: ParkedId::new(),
        id: Some(id(name)),
        slot: SLOT,
        digest: BodyDigest::of(&body),
        message: Arc::new(Message {
            exchange: "shop".into(),
            routing_key: "order.created".into(),
            properties: Properties { message_id: Some(name.to_owned()), ..Properties::default() },
            body: body.into(),
        }),
        module: Some(MODULE),
    }
}

/// The claim of a message about to be handled, whose body is its name.
pub(crate) fn claim(name: &str) -> Claim {
    Claim { id: id(name), status: Status::Completed, parked_id: None, digest: Some(digest(name)), module: Some(MODULE) }
}

pub(crate) fn claims<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Vec<Claim> {
    names.into_iter().map(|name| claim(name.as_ref())).collect()
}

/// The claim that makes a parked row the one that counts for its id.
pub(crate) fn owning(carried: &Carried, status: Status) -> Claim {
    Claim {
        id: carried.id.clone().expect("a message with an id"),
        status,
        parked_id: Some(carried.row_id),
        digest: Some(carried.digest),
        module: carried.module,
    }
}

/// A failure with a code, a message and a detail.
pub(crate) fn failure(message: &str) -> Failure {
    Failure {
        advice: Advice::ByPolicy,
        code: Some("out-of-stock".into()),
        message: message.into(),
        detail: Some("at line 1\nat line 2".into()),
    }
}

/// A guard found a row changed: the transaction is to be rolled back and decided again.
pub(crate) fn lost_a_race(error: &DbError) -> bool {
    error.kind == DbErrorKind::Contention && error.message.contains("changed by somebody else")
}

#[track_caller]
pub(crate) fn assert_guarded<T: std::fmt::Debug>(result: Result<T, DbError>) {
    match result {
        Err(error) if lost_a_race(&error) => assert!(!error.connection_lost, "{error:?}"),
        other => panic!("expected the guard's error, got {other:?}"),
    }
}

#[track_caller]
pub(crate) fn assert_contention<T: std::fmt::Debug>(result: Result<T, DbError>) {
    match result {
        Err(error) if error.kind == DbErrorKind::Contention => assert!(!error.connection_lost, "{error:?}"),
        other => panic!("expected contention, got {other:?}"),
    }
}

/// Keys of rows, for comparing.
pub(crate) fn keys(rows: &[ParkedRow]) -> Vec<ParkedId> {
    rows.iter().map(|row| row.id).collect()
}

/// State, due or not, attempts: what most transitions are about.
pub(crate) fn standing(row: &ParkedRow) -> (State, bool, u32) {
    (row.state, row.due_at.is_some(), row.attempts)
}

/// A database that is not quite what it is.
pub(crate) struct Disguised {
    pub(crate) database: Arc<dyn Database>,
    pub(crate) as_what: Disguise,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disguise {
    /// MariaDB looks like MySQL 8, which cannot return what it inserts.
    WithoutReturning,
    /// Handlers are allowed next to no time.
    Hasty,
}

/// What handlers are allowed by a database in haste.
pub(crate) const HASTE: Duration = Duration::from_millis(50);

#[async_trait]
impl Database for Disguised {
    fn dialect(&self) -> Dialect {
        self.database.dialect()
    }

    async fn features(&self) -> Result<Features, DbError> {
        let features = self.database.features().await?;
        let insert_returning = features.insert_returning && self.as_what != Disguise::WithoutReturning;
        Ok(Features { insert_returning, ..features })
    }

    async fn describe(&self) -> Result<String, DbError> {
        self.database.describe().await
    }

    fn settings(&self) -> SessionSettings {
        match self.as_what {
            Disguise::WithoutReturning => self.database.settings(),
            Disguise::Hasty => {
                SessionSettings { lock_timeout: HASTE, statement_timeout: HASTE, ..self.database.settings() }
            }
        }
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, DbError> {
        let mut connection = self.database.connect().await?;
        if self.as_what == Disguise::Hasty {
            connection.set_timeouts(HASTE, HASTE).await?;
        }
        Ok(connection)
    }

    async fn migrate(&self, dry_run: bool) -> Result<Vec<Migration>, DbError> {
        self.database.migrate(dry_run).await
    }
}
