//! A database of its own for each test, on servers given by their URLs.

use hapax_tests::servers::shared;
use std::sync::Arc;
use std::time::Duration;

use hapax::ledger::database::{Connection, Database, DbError, Dialect, SessionSettings, Statement, open};
use hapax::ledger::value::{Executed, Param, ResultSet, RowLimits, Value};
use tempfile::TempDir;

/// What sessions of the suite are set to, unless a test is about that.
pub(crate) const SETTINGS: SessionSettings = SessionSettings {
    lock_timeout: Duration::from_secs(10),
    statement_timeout: Duration::from_secs(20),
    idle_in_transaction: Duration::from_secs(60),
};

/// A Postgres server on which databases may be used as the URL says.
async fn postgres_url() -> String {
    shared().postgres().await.expect("a Postgres server").url().to_owned()
}

/// A MariaDB or MySQL server on which databases may be created.
async fn mysql_url() -> String {
    shared().mariadb().await.expect("a MariaDB server").url().to_owned()
}

/// An empty database, and how to open it.
pub(crate) struct Backend {
    pub(crate) dialect: Dialect,
    pub(crate) url: String,
    server: String,
    pub(crate) name: String,
    directory: Option<TempDir>,
}

impl Backend {
    pub(crate) async fn postgres() -> Self {
        let server = postgres_url().await;
        let name = fresh_name();
        run_on(&server, &format!("CREATE SCHEMA {name}")).await;
        let join = if server.contains('?') { '&' } else { '?' };
        let url = format!("{server}{join}options[search_path]={name}");
        Self { dialect: Dialect::Postgres, url, server, name, directory: None }
    }

    pub(crate) async fn mysql() -> Self {
        let server = mysql_url().await;
        let name = fresh_name();
        run_on(&server, &format!("CREATE DATABASE {name}")).await;
        let mut url = url::Url::parse(&server).expect("a URL");
        url.set_path(&name);
        Self { dialect: Dialect::MySql, url: url.into(), server, name, directory: None }
    }

    pub(crate) async fn sqlite() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let url = format!("sqlite://{}/ledger.db", directory.path().display());
        let directory = Some(directory);
        Self { dialect: Dialect::Sqlite, server: String::new(), name: String::new(), url, directory }
    }

    /// Removes the database.
    pub(crate) async fn finish(self) {
        match self.dialect {
            Dialect::Postgres => run_on(&self.server, &format!("DROP SCHEMA {} CASCADE", self.name)).await,
            Dialect::MySql => run_on(&self.server, &format!("DROP DATABASE {}", self.name)).await,
            Dialect::Sqlite => drop(self.directory),
        }
    }

    pub(crate) fn database(&self) -> Arc<dyn Database> {
        self.database_with(SETTINGS)
    }

    pub(crate) fn database_with(&self, settings: SessionSettings) -> Arc<dyn Database> {
        open(&self.url, settings).expect("a usable URL")
    }

    pub(crate) async fn connect(&self) -> Client {
        self.connect_with(SETTINGS).await
    }

    pub(crate) async fn connect_with(&self, settings: SessionSettings) -> Client {
        let connection = self.database_with(settings).connect().await.expect("a connection");
        Client { connection, dialect: self.dialect }
    }

    /// True where one writer comes after the other, and so none waits for a row; the back end says so itself.
    pub(crate) async fn writers_take_turns(&self) -> bool {
        let take_turns = self.dialect == Dialect::Sqlite;
        assert_eq!(self.database().features().await.expect("features").concurrent_writers, !take_turns);
        take_turns
    }

    /// One of three, by dialect.
    pub(crate) fn pick<T>(&self, postgres: T, mysql: T, sqlite: T) -> T {
        match self.dialect {
            Dialect::Postgres => postgres,
            Dialect::MySql => mysql,
            Dialect::Sqlite => sqlite,
        }
    }
}

fn fresh_name() -> String {
    format!("hapax_test_{}", uuid::Uuid::new_v4().simple())
}

async fn run_on(server: &str, sql: &str) {
    let database = open(server, SETTINGS).expect("a usable URL");
    let mut connection = database.connect().await.expect("a connection to the server under test");
    connection.execute(sql, &[]).await.expect(sql);
}

/// A connection with shorter names. `?` is written as the dialect has it.
pub(crate) struct Client {
    pub(crate) connection: Box<dyn Connection>,
    pub(crate) dialect: Dialect,
}

impl Client {
    fn sql(&self, sql: &str) -> String {
        if self.dialect != Dialect::Postgres {
            return sql.to_owned();
        }
        let mut number = 0;
        let mut text = String::new();
        for character in sql.chars() {
            if character == '?' {
                number += 1;
                text.push_str(&format!("${number}"));
            } else {
                text.push(character);
            }
        }
        text
    }

    pub(crate) async fn try_run(&mut self, sql: &str, params: &[Value]) -> Result<Executed, DbError> {
        let params: Vec<Param> = params.iter().cloned().map(Param::One).collect();
        self.connection.execute(&self.sql(sql), &params).await
    }

    /// Each with one parameter. An error comes with what those before it have changed.
    pub(crate) async fn try_run_all(
        &mut self,
        statements: &[(&str, &Value)],
    ) -> Result<Vec<Executed>, (Vec<Executed>, DbError)> {
        let owned: Vec<(String, [Param; 1])> =
            statements.iter().map(|(sql, value)| (self.sql(sql), [Param::One((*value).clone())])).collect();
        let statements: Vec<Statement<'_>> = owned.iter().map(|(sql, params)| Statement { sql, params }).collect();
        let mut executed = Vec::new();
        match self.connection.execute_all(&statements, &mut executed).await {
            Ok(()) => Ok(executed),
            Err(error) => Err((executed, error)),
        }
    }

    pub(crate) async fn run(&mut self, sql: &str, params: &[Value]) -> Executed {
        self.try_run(sql, params).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub(crate) async fn try_query(&mut self, sql: &str, params: &[Value]) -> Result<ResultSet, DbError> {
        let params: Vec<Param> = params.iter().cloned().map(Param::One).collect();
        self.connection.query(&self.sql(sql), &params, RowLimits::NONE).await
    }

    pub(crate) async fn query(&mut self, sql: &str, params: &[Value]) -> Vec<Vec<Value>> {
        self.try_query(sql, params).await.unwrap_or_else(|error| panic!("{sql}: {error}")).rows
    }

    /// The one value of a result.
    pub(crate) async fn value(&mut self, sql: &str, params: &[Value]) -> Value {
        let mut rows = self.query(sql, params).await;
        assert_eq!((rows.len(), rows[0].len()), (1, 1), "{sql}");
        rows.remove(0).remove(0)
    }

    pub(crate) async fn begin(&mut self) {
        self.connection.begin().await.expect("BEGIN");
    }

    pub(crate) async fn commit(&mut self) {
        self.connection.commit().await.expect("COMMIT");
    }

    pub(crate) async fn rollback(&mut self) {
        self.connection.rollback().await.expect("ROLLBACK");
    }
}

/// A table with one integer key and one integer value.
pub(crate) async fn make_stock(client: &mut Client, keys: i64) {
    let engine = if client.dialect == Dialect::MySql { " ENGINE = InnoDB" } else { "" };
    client.run(&format!("CREATE TABLE stock (id BIGINT PRIMARY KEY, amount BIGINT NOT NULL){engine}"), &[]).await;
    for key in 1..=keys {
        client.run("INSERT INTO stock VALUES (?, 100)", &[Value::Int(key)]).await;
    }
}

pub(crate) async fn amount(client: &mut Client, key: i64) -> Value {
    client.value("SELECT amount FROM stock WHERE id = ?", &[Value::Int(key)]).await
}

pub(crate) fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

pub(crate) fn other(type_name: &str, text: &str) -> Value {
    Value::Other { type_name: type_name.to_owned(), text: text.to_owned() }
}
