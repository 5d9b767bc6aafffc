//! Schema migrations.

use std::sync::Arc;

use hapax::ledger::database::{Database, Dialect};
use hapax::ledger::{mysql::MySql, postgres::Postgres, sqlite::Sqlite};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use crate::backend::{Backend, SETTINGS};

fn migration(version: i64, sql: &'static str) -> Migration {
    let sql = AssertSqlSafe(sql.to_owned()).into_sql_str();
    Migration::new(version, format!("step {version}").into(), MigrationType::Simple, sql, false)
}

/// The database under test with these migrations, which live as long as the test.
fn with(backend: &Backend, migrations: Vec<Migration>) -> Arc<dyn Database> {
    let migrations: &'static Migrator = Box::leak(Box::new(Migrator::with_migrations(migrations)));
    match backend.dialect {
        Dialect::Postgres => {
            Arc::new(Postgres::new(&backend.url, SETTINGS).expect("a URL").with_migrations(migrations))
        }
        Dialect::MySql => Arc::new(MySql::new(&backend.url, SETTINGS).expect("a URL").with_migrations(migrations)),
        Dialect::Sqlite => Arc::new(Sqlite::new(&backend.url, SETTINGS).expect("a URL").with_migrations(migrations)),
    }
}

const FIRST: &str = "CREATE TABLE hapax_meta (name VARCHAR(100) PRIMARY KEY, value VARCHAR(100)); \
                     INSERT INTO hapax_meta VALUES ('a', 'b;c')";
const SECOND: &str = "ALTER TABLE hapax_meta ADD COLUMN more INT";

pub(crate) async fn migrations_are_applied_once(backend: &Backend) {
    let first = with(backend, vec![migration(1, FIRST)]);
    let planned = first.migrate(true).await.expect("a dry run");
    assert_eq!(planned.iter().map(|step| step.version).collect::<Vec<_>>(), [1]);
    assert_eq!((planned[0].description.as_str(), planned[0].sql.as_str()), ("step 1", FIRST));
    assert_eq!(first.migrate(true).await.expect("a dry run changes nothing").len(), 1);
    // Two hosts start at once. Files are for one process.
    let shared = first.features().await.expect("features").shared;
    let (one, two) = if shared {
        tokio::join!(first.migrate(false), first.migrate(false))
    } else {
        (first.migrate(false).await, first.migrate(false).await)
    };
    let mut applied = one.expect("one host");
    applied.extend(two.expect("the other"));
    assert_eq!(applied, planned);
    let both = with(backend, vec![migration(1, FIRST), migration(2, SECOND)]);
    assert_eq!(both.migrate(true).await.expect("a dry run").len(), 1);
    assert_eq!(both.migrate(false).await.expect("an upgrade")[0].version, 2);
    assert!(both.migrate(false).await.expect("nothing to do").is_empty());
    let mut client = backend.connect().await;
    assert_eq!(client.query("SELECT name, value, more FROM hapax_meta", &[]).await.len(), 1);
    assert_eq!(client.query("SELECT version FROM hapax_migrations", &[]).await.len(), 2);
    // An older host does not touch a newer schema.
    let error = first.migrate(false).await.expect_err("a newer schema");
    assert!(error.message.contains("migration 2"), "{error}");
}

pub(crate) async fn changed_migrations_are_refused(backend: &Backend) {
    with(backend, vec![migration(1, FIRST)]).migrate(false).await.expect("a fresh database");
    let changed = with(backend, vec![migration(1, SECOND)]);
    for dry_run in [true, false] {
        let error = changed.migrate(dry_run).await.expect_err("another text");
        assert!(error.message.contains("migration 1"), "{error}");
    }
    let broken = with(backend, vec![migration(1, FIRST), migration(2, "ALTER TABLE missing ADD COLUMN x INT")]);
    let error = broken.migrate(false).await.expect_err("a wrong statement");
    assert!(error.message.contains("migration 2"), "{error}");
    let mut client = backend.connect().await;
    assert_eq!(client.query("SELECT version FROM hapax_migrations WHERE success", &[]).await.len(), 1);
}
