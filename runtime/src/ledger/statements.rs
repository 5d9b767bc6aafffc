//! The host's own SQL: one file a dialect, named statements, named parameters.
//!
//! A file holds sections `-- name: claim` followed by one statement. Inside it
//! - `:name` is a parameter, a single value or, on Postgres, a whole column for `unnest`;
//! - `{ … }` on MySQL and SQLite is repeated for each row of the columns named in it, joined by a comma, or by what
//!   follows a `|` in it: `{SELECT :id AS id | UNION ALL }`;
//! - `@now` is the server's clock at the start of the statement, in milliseconds since the Unix epoch;
//! - every `hapax_` is qualified with the schema that the tables live in, except for an index in a hint.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use super::database::Dialect;
use super::value::{Param, Value};

/// A value for a named parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Arg {
    /// The same for the whole statement.
    One(Value),
    /// One for each row.
    Column(Column),
}

/// A column of values, as long as the statement has rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Integers.
    Ints(Vec<Option<i64>>),
    /// Texts.
    Texts(Vec<Option<String>>),
    /// Byte strings.
    Blobs(Vec<Option<Vec<u8>>>),
}

impl Column {
    fn len(&self) -> usize {
        match self {
            Self::Ints(values) => values.len(),
            Self::Texts(values) => values.len(),
            Self::Blobs(values) => values.len(),
        }
    }

    fn get(&self, row: usize) -> Value {
        match self {
            Self::Ints(values) => values.get(row).cloned().flatten().into(),
            Self::Texts(values) => values.get(row).cloned().flatten().into(),
            Self::Blobs(values) => values.get(row).cloned().flatten().into(),
        }
    }

    fn into_param(self) -> Param {
        match self {
            Self::Ints(values) => Param::Ints(values),
            Self::Texts(values) => Param::Texts(values),
            Self::Blobs(values) => Param::Blobs(values),
        }
    }
}

/// Named arguments of one call.
#[derive(Debug, Clone, Default)]
pub struct Args(Vec<(&'static str, Arg)>);

impl Args {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a single value.
    pub fn one(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.0.push((name, Arg::One(value.into())));
        self
    }

    /// Adds a column of integers.
    pub fn ints(mut self, name: &'static str, values: impl IntoIterator<Item = Option<i64>>) -> Self {
        self.0.push((name, Arg::Column(Column::Ints(values.into_iter().collect()))));
        self
    }

    /// Adds a column of texts.
    pub fn texts(mut self, name: &'static str, values: impl IntoIterator<Item = Option<String>>) -> Self {
        self.0.push((name, Arg::Column(Column::Texts(values.into_iter().collect()))));
        self
    }

    /// Adds a column of byte strings.
    pub fn blobs(mut self, name: &'static str, values: impl IntoIterator<Item = Option<Vec<u8>>>) -> Self {
        self.0.push((name, Arg::Column(Column::Blobs(values.into_iter().collect()))));
        self
    }

    fn rows(&self) -> usize {
        self.0
            .iter()
            .find_map(|(_, arg)| match arg {
                Arg::Column(column) => Some(column.len()),
                Arg::One(_) => None,
            })
            .unwrap_or(0)
    }

    fn find(&self, name: &str) -> &Arg {
        let found = self.0.iter().find(|(key, _)| *key == name);
        debug_assert!(found.is_some(), "no argument for :{name}");
        found.map_or(&Arg::One(Value::Null), |(_, arg)| arg)
    }
}

/// A piece of a statement as it stands in its file.
#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    Name(String),
    Rows { body: Vec<Piece>, separator: String },
}

/// One named statement.
#[derive(Debug)]
pub struct Statement {
    dialect: Dialect,
    pieces: Vec<Piece>,
    /// SQL by number of rows; bounded by the largest batch.
    expanded: RwLock<HashMap<usize, Arc<str>>>,
}

impl Statement {
    fn new(dialect: Dialect, text: &str) -> Self {
        Self { dialect, pieces: pieces(text), expanded: RwLock::default() }
    }

    /// The SQL to send and its parameters in order.
    pub fn bind(&self, args: Args) -> (Arc<str>, Vec<Param>) {
        let rows = args.rows();
        let per_row = self.pieces.iter().any(|piece| matches!(piece, Piece::Rows { .. }));
        (self.sql(if per_row { rows } else { 0 }), self.params(args, rows))
    }

    fn sql(&self, rows: usize) -> Arc<str> {
        if let Some(sql) = self.expanded.read().unwrap_or_else(|poison| poison.into_inner()).get(&rows) {
            return sql.clone();
        }
        let mut sql = String::new();
        let mut names = Vec::new();
        write_sql(&self.pieces, rows, self.dialect, &mut names, &mut sql);
        let sql: Arc<str> = sql.into();
        self.expanded.write().unwrap_or_else(|poison| poison.into_inner()).insert(rows, sql.clone());
        sql
    }

    fn params(&self, args: Args, rows: usize) -> Vec<Param> {
        let mut params = Vec::new();
        match self.dialect {
            // `$n` is numbered by first appearance; a name used twice is sent once.
            Dialect::Postgres => {
                let mut names: Vec<String> = Vec::new();
                collect_names(&self.pieces, &mut names);
                for name in names {
                    params.push(match args.find(&name).clone() {
                        Arg::One(value) => Param::One(value),
                        Arg::Column(column) => column.into_param(),
                    });
                }
            }
            Dialect::MySql | Dialect::Sqlite => push_params(&self.pieces, &args, None, rows, &mut params),
        }
        params
    }
}

fn collect_names(pieces: &[Piece], names: &mut Vec<String>) {
    for piece in pieces {
        if let Piece::Name(name) = piece
            && !names.contains(name)
        {
            names.push(name.clone());
        }
    }
}

fn push_params(pieces: &[Piece], args: &Args, row: Option<usize>, rows: usize, params: &mut Vec<Param>) {
    for piece in pieces {
        match piece {
            Piece::Text(_) => {}
            Piece::Name(name) => params.push(Param::One(match args.find(name) {
                Arg::One(value) => value.clone(),
                Arg::Column(column) => column.get(row.unwrap_or(0)),
            })),
            Piece::Rows { body, .. } => {
                for row in 0..rows {
                    push_params(body, args, Some(row), rows, params);
                }
            }
        }
    }
}

fn write_sql(pieces: &[Piece], rows: usize, dialect: Dialect, names: &mut Vec<String>, sql: &mut String) {
    for piece in pieces {
        match piece {
            Piece::Text(text) => sql.push_str(text),
            Piece::Name(name) if dialect == Dialect::Postgres => {
                let known = names.iter().position(|known| known == name);
                let number = known.unwrap_or_else(|| {
                    names.push(name.clone());
                    names.len() - 1
                });
                sql.push_str(&format!("${}", number + 1));
            }
            Piece::Name(_) => sql.push('?'),
            Piece::Rows { body, separator } => {
                for row in 0..rows {
                    if row > 0 {
                        sql.push_str(separator);
                    }
                    write_sql(body, rows, dialect, names, sql);
                }
            }
        }
    }
}

/// Cuts a statement into pieces. The files hold no string literal with a colon or a brace in it.
fn pieces(text: &str) -> Vec<Piece> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find([':', '{']) {
        let (before, tail) = rest.split_at(at);
        push_text(&mut found, before);
        if let Some(group) = tail.strip_prefix('{') {
            let end = group.find('}').unwrap_or(group.len());
            let (body, separator) = group[..end].split_once('|').unwrap_or((&group[..end], ", "));
            found.push(Piece::Rows { body: pieces(body), separator: separator.to_owned() });
            rest = group.get(end + 1..).unwrap_or("");
        } else if let Some(cast) = tail.strip_prefix("::") {
            push_text(&mut found, "::");
            rest = cast;
        } else {
            let name = &tail[1..];
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
            found.push(Piece::Name(name[..end].to_owned()));
            rest = &name[end..];
        }
    }
    push_text(&mut found, rest);
    found
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        Some(Piece::Text(last)) => last.push_str(text),
        _ if text.is_empty() => {}
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Every statement of the host, for one dialect and one schema.
        #[derive(Debug)]
        pub struct Statements { $($(#[$doc])* pub $name: Statement,)* }

        impl Statements {
            /// Cuts a dialect's file up. The names of all statements must be in it; a test sees to that.
            pub fn load(dialect: Dialect, schema: &str) -> Self {
                let mut sections = sections(source(dialect), dialect, schema);
                Self { $($name: Statement::new(dialect, &sections.remove(stringify!($name)).unwrap_or_default()),)* }
            }

            #[cfg(test)]
            fn names() -> Vec<&'static str> {
                vec![$(stringify!($name)),*]
            }
        }
    };
}

statements! {
    /// Inserts inbox rows, leaves existing ones alone, returns the ids that went in.
    claim,
    /// The same where the server cannot return them.
    claim_silently,
    /// Inbox rows of some ids.
    inbox_existing,
    /// Takes claims back.
    unclaim,
    /// Moves inbox rows from one status to another, under guard.
    inbox_move,
    /// Inserts parked rows; one that exists stays.
    park,
    /// Inserts one chunk of a large body.
    park_chunk,
    /// The chunks of a body, in order.
    chunks,
    /// Deletes the chunks of some rows.
    chunks_delete,
    /// Which slots have something due, and when.
    due_slots,
    /// Locks due rows.
    due,
    /// Locks pending rows, oldest first, whether due or not.
    due_in_order,
    /// Locks one due row that crashed a host before.
    due_suspect,
    /// Reads due rows by key, and locks them.
    due_rows,
    /// Marks rows as running under a token.
    take,
    /// Locks what was taken, by its token.
    lock_running,
    /// Moves running rows on, under their token.
    parked_move,
    /// Deletes running rows, under their token.
    parked_delete,
    /// Running rows of one run of one host.
    taken,
    /// Puts running rows back, uncounted, under their token.
    give_back,
    /// Whether any row of a consumer runs.
    running,
    /// Runs of a host, by token.
    strays,
    /// Running rows that nobody has locked for a while.
    orphans,
    /// Counts parked rows by state.
    parked_counts,
    /// Is anything parked for these slots that must run before what comes later?
    slots_blocked,
    /// Inserts outbox rows.
    outbox_add,
    /// Locks outbox rows that are due.
    outbox_due,
    /// The bodies of outbox rows.
    outbox_bodies,
    /// The sizes of the dead letters that outbox rows are copies of.
    outbox_copies,
    /// Puts off outbox rows while somebody publishes them.
    outbox_hold,
    /// Deletes outbox rows that the broker confirmed.
    outbox_done,
    /// Records that a row cannot be published as it is.
    outbox_undeliverable,
    /// Records a failed publication, to be tried again.
    outbox_retry,
    /// How many rows wait, and since when.
    outbox_stats,
    /// Makes undeliverable rows pending again.
    outbox_requeue,
    /// Lists parked rows for people.
    dead_list,
    /// One parked row by its id.
    parked_get,
    /// Parked rows of one message.
    parked_of_message,
    /// Outbox rows of one message.
    outbox_of_message,
    /// Reopens a dead letter, under guard.
    redrive,
    /// Reopens a dead letter that has no inbox row of its own, as a deferred delivery.
    redrive_as_delivery,
    /// Discards a dead letter, under guard.
    discard,
    /// A page of the inbox in key order, for retention.
    retention_page,
    /// Deletes completed inbox rows.
    retention_delete,
    /// Discarded rows whose time has passed.
    retention_discarded,
    /// Deletes discarded rows.
    retention_discarded_delete,
    /// Deletes the inbox rows of discarded messages.
    retention_discarded_inbox,
    /// Makes sure that a lease row exists.
    lease_seed,
    /// Takes or renews a lease.
    lease_take,
    /// Who holds leases of a range of names.
    lease_holders,
    /// Gives a lease up.
    lease_end,
    /// Deletes leases of a range of names that expired long ago.
    lease_forget,
}

fn source(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => include_str!("sql/postgres.sql"),
        Dialect::MySql => include_str!("sql/mysql.sql"),
        Dialect::Sqlite => include_str!("sql/sqlite.sql"),
    }
}

/// The clock of the server at the start of the statement, in milliseconds since the Unix epoch.
fn now(dialect: Dialect) -> &'static str {
    match dialect {
        // Not clock_timestamp(), which may differ from row to row, so that no index can be searched by it.
        Dialect::Postgres => "(extract(epoch FROM statement_timestamp()) * 1000)::bigint",
        Dialect::MySql => "CAST(UNIX_TIMESTAMP(CURRENT_TIMESTAMP(3)) * 1000 AS SIGNED)",
        Dialect::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    }
}

fn sections(source: &str, dialect: Dialect, schema: &str) -> HashMap<String, String> {
    source
        .split("-- name: ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'))
        .map(|(name, body)| {
            let sql: Vec<&str> = body.lines().map(str::trim).filter(|line| !line.starts_with("--")).collect();
            let sql = sql.join(" ").trim().replace("@now", now(dialect));
            (name.trim().to_owned(), qualify(&sql, schema))
        })
        .collect()
}

/// Says in which schema each table is. Names of indexes, in hints, stay as they are.
fn qualify(sql: &str, schema: &str) -> String {
    let mut qualified = String::with_capacity(sql.len() + 64);
    for (n, part) in sql.split("hapax_").enumerate() {
        if n > 0 {
            if !qualified.ends_with("INDEX (") && !qualified.ends_with("INDEXED BY ") {
                qualified.push_str(schema);
                qualified.push('.');
            }
            qualified.push_str("hapax_");
        }
        qualified.push_str(part);
    }
    qualified
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_has_every_statement_and_no_other() {
        for dialect in [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite] {
            let mut found: Vec<String> = sections(source(dialect), dialect, "s").into_keys().collect();
            let mut wanted: Vec<String> = Statements::names().into_iter().map(str::to_owned).collect();
            found.sort();
            wanted.sort();
            assert_eq!(found, wanted, "{dialect:?}");
        }
    }

    #[test]
    fn tables_are_qualified_and_indexes_are_not() {
        let sql = "SELECT 1 FROM hapax_a AS a FORCE INDEX (hapax_i), hapax_b INDEXED BY hapax_i WHERE hapax_a.id = 1";
        let qualified =
            "SELECT 1 FROM s.hapax_a AS a FORCE INDEX (hapax_i), s.hapax_b INDEXED BY hapax_i WHERE s.hapax_a.id = 1";
        assert_eq!(qualify(sql, "s"), qualified);
    }

    #[test]
    fn postgres_numbers_a_name_once_and_leaves_casts_alone() {
        let statement = Statement::new(Dialect::Postgres, "SELECT :a::bytea, :b, :a");
        let (sql, params) = statement.bind(Args::new().one("b", 2).one("a", 1));
        assert_eq!(&*sql, "SELECT $1::bytea, $2, $1");
        assert_eq!(params, [Param::One(Value::Int(1)), Param::One(Value::Int(2))]);
    }

    #[test]
    fn groups_are_repeated_for_each_row() {
        let statement = Statement::new(Dialect::MySql, "X {(:c, :id)} Y {SELECT :id| UNION ALL } Z :c");
        let ids = [Some(vec![1]), None];
        let (sql, params) = statement.bind(Args::new().one("c", "k").blobs("id", ids));
        assert_eq!(&*sql, "X (?, ?), (?, ?) Y SELECT ? UNION ALL SELECT ? Z ?");
        let k = || Param::One(Value::Text("k".into()));
        let one = || Param::One(Value::Blob(vec![1]));
        let null = || Param::One(Value::Null);
        assert_eq!(params, [k(), one(), k(), null(), one(), null(), k()]);
    }
}
