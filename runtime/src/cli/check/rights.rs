//! Which rights a database user has on the tables that it needs, and the commands that grant those it lacks.
//!
//! Postgres and MySQL are asked what they would allow; nothing is tried out, except a DELETE of no row on MySQL, whose
//! catalog says nothing about it in one place. SQLite has files, not rights: there, tables exist or not.

use std::collections::BTreeSet;

use super::super::open::Place;
use super::super::output::clean_lines;
use super::Report;
use crate::config::Verb;
use crate::ledger::database::{Connection, Database, DbError, Dialect};
use crate::ledger::value::{Param, ResultSet, RowLimits, Value};

/// The tables of Hapax itself.
const OWN: [&str; 5] = ["hapax_inbox", "hapax_parked", "hapax_parked_chunks", "hapax_outbox", "hapax_leases"];

const ALL: [Verb; 4] = [Verb::Select, Verb::Insert, Verb::Update, Verb::Delete];

/// A right as a config has it.
pub(super) fn word(verb: Verb) -> &'static str {
    match verb {
        Verb::Select => "select",
        Verb::Insert => "insert",
        Verb::Update => "update",
        Verb::Delete => "delete",
    }
}

/// What is known of one table.
struct Found {
    exists: bool,
    missing: Vec<Verb>,
}

/// Checks the tables of Hapax (if they are there) and those that consumers are granted.
pub(super) async fn check(database: &dyn Database, place: &Place<'_>, migrated: bool, report: &mut Report) {
    if let Err(error) = check_all(database, place, migrated, report).await {
        report.problem(&format!("cannot look at tables and rights: {}", clean_lines(&error.to_string())), None);
    }
}

async fn check_all(
    database: &dyn Database,
    place: &Place<'_>,
    migrated: bool,
    report: &mut Report,
) -> Result<(), DbError> {
    let dialect = database.dialect();
    let mut connection = database.connect().await?;
    let user = user(dialect, connection.as_mut()).await?;
    let mut wanted: Vec<(String, BTreeSet<Verb>, String)> = Vec::new();
    if migrated {
        wanted.extend(OWN.map(|table| (table.to_owned(), ALL.into(), "Hapax itself".to_owned())));
    } else {
        may_create(dialect, connection.as_mut(), &user, report).await?;
    }
    for consumer in &place.consumers {
        let granted = consumer.grants.tables.iter();
        wanted.extend(
            granted.map(|(table, verbs)| (table.clone(), verbs.clone(), format!("consumer {}", consumer.name))),
        );
    }
    let mut good = Vec::new();
    for (table, verbs, whose) in wanted {
        let found = look(dialect, connection.as_mut(), &table, &verbs).await?;
        let table_name = clean_lines(&table);
        if !found.exists {
            let text =
                format!("{whose} needs table {table_name}, which does not exist, or which {user} has no right to");
            let remedy = (dialect != Dialect::Sqlite).then(|| grant(dialect, &table, &verbs, &user));
            report.problem(&text, Some(&remedy.map_or("create it".to_owned(), |sql| format!("create it, or: {sql}"))));
        } else if !found.missing.is_empty() {
            let words: Vec<&str> = found.missing.iter().map(|verb| word(*verb)).collect();
            let text = format!("{whose}: {user} may not {} {table_name}", words.join(" or "));
            report.problem(&text, Some(&grant(dialect, &table, &found.missing.iter().copied().collect(), &user)));
        } else if !OWN.contains(&table.as_str()) {
            good.push(table_name);
        }
    }
    if !good.is_empty() {
        report.fact("granted", &format!("tables that are there, with the rights on them: {}", good.join(", ")));
    }
    Ok(())
}

/// One question, in a transaction that is rolled back.
async fn ask(connection: &mut dyn Connection, sql: &str, params: &[Param]) -> Result<ResultSet, DbError> {
    connection.begin().await?;
    let answer = connection.query(sql, params, RowLimits::NONE).await;
    if answer.as_ref().err().is_none_or(|error| !error.connection_lost) {
        connection.rollback().await?;
    }
    answer
}

fn first_text(found: &ResultSet) -> Option<&str> {
    match found.rows.first()?.first()? {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn is_true(value: Option<&Value>) -> bool {
    matches!(value, Some(Value::Boolean(true))) || matches!(value, Some(Value::Int(number)) if *number != 0)
}

/// Who we are, as a GRANT has it.
async fn user(dialect: Dialect, connection: &mut dyn Connection) -> Result<String, DbError> {
    Ok(match dialect {
        Dialect::Sqlite => "this user".to_owned(),
        Dialect::Postgres => {
            let found = ask(connection, "SELECT quote_ident(current_user::text)", &[]).await?;
            first_text(&found).unwrap_or("this user").to_owned()
        }
        Dialect::MySql => {
            let found = ask(connection, "SELECT CURRENT_USER()", &[]).await?;
            let (name, host) = first_text(&found).and_then(|user| user.rsplit_once('@')).unwrap_or(("this user", "%"));
            format!("'{}'@'{}'", name.replace('\'', "''"), host.replace('\'', "''"))
        }
    })
}

/// Where migrations are pending: may this user make tables?
async fn may_create(
    dialect: Dialect,
    connection: &mut dyn Connection,
    user: &str,
    report: &mut Report,
) -> Result<(), DbError> {
    match dialect {
        Dialect::Sqlite => {}
        Dialect::Postgres => {
            let sql = "SELECT has_schema_privilege(current_schema(), 'CREATE'), quote_ident(current_schema()::text)";
            let found = ask(connection, sql, &[]).await?;
            let row = found.rows.first();
            if !is_true(row.and_then(|row| row.first())) {
                let schema = match row.and_then(|row| row.get(1)) {
                    Some(Value::Text(name)) => name.clone(),
                    _ => "public".to_owned(),
                };
                let remedy = format!(
                    "GRANT USAGE, CREATE ON SCHEMA {schema} TO {user};\n\
                     or run `hapax migrate` as a user that may, and grant the rights on its tables"
                );
                report.problem(&format!("{user} may not create tables in schema {schema}"), Some(&remedy));
            }
        }
        Dialect::MySql => {
            // Rights by way of a role are not in these tables: no more than a note.
            let sql = "SELECT COUNT(*), DATABASE() FROM (\
                       SELECT grantee FROM information_schema.user_privileges WHERE privilege_type = 'CREATE' \
                       UNION ALL SELECT grantee FROM information_schema.schema_privileges \
                       WHERE privilege_type = 'CREATE' AND DATABASE() LIKE table_schema) AS p WHERE grantee = ?";
            let found = ask(connection, sql, &[Value::from(user).into()]).await?;
            let row = found.rows.first();
            if !is_true(row.and_then(|row| row.first())) {
                let schema = match row.and_then(|row| row.get(1)) {
                    Some(Value::Text(name)) => name.replace('`', "``"),
                    _ => String::new(),
                };
                report.note(&format!(
                    "{user} seems to have no right to create tables; if so:\n\
                     GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE, DELETE ON `{schema}`.* TO {user};\n\
                     or run `hapax migrate` as a user that may, and grant the rights on its tables"
                ));
            }
        }
    }
    Ok(())
}

async fn look(
    dialect: Dialect,
    connection: &mut dyn Connection,
    table: &str,
    verbs: &BTreeSet<Verb>,
) -> Result<Found, DbError> {
    match dialect {
        Dialect::Sqlite => look_sqlite(connection, table).await,
        Dialect::Postgres => look_postgres(connection, table, verbs).await,
        Dialect::MySql => look_mysql(connection, table, verbs).await,
    }
}

async fn look_sqlite(connection: &mut dyn Connection, table: &str) -> Result<Found, DbError> {
    let name = table.rsplit('.').next().unwrap_or(table);
    let sql = "SELECT COUNT(*) FROM sqlite_master WHERE type IN ('table', 'view') AND name = ?1 COLLATE NOCASE";
    let found = ask(connection, sql, &[Value::from(name).into()]).await?;
    Ok(Found { exists: is_true(found.rows.first().and_then(|row| row.first())), missing: Vec::new() })
}

async fn look_postgres(connection: &mut dyn Connection, table: &str, verbs: &BTreeSet<Verb>) -> Result<Found, DbError> {
    let sql = "SELECT t IS NOT NULL, COALESCE(has_table_privilege(t, 'SELECT') OR has_any_column_privilege(t, 'SELECT'), false), \
               COALESCE(has_table_privilege(t, 'INSERT') OR has_any_column_privilege(t, 'INSERT'), false), \
               COALESCE(has_table_privilege(t, 'UPDATE') OR has_any_column_privilege(t, 'UPDATE'), false), \
               COALESCE(has_table_privilege(t, 'DELETE'), false) FROM (SELECT to_regclass($1)::oid AS t) AS found";
    let found = ask(connection, sql, &[Value::from(quoted(Dialect::Postgres, table)).into()]).await?;
    let row = found.rows.first();
    let column = |index: usize| is_true(row.and_then(|row| row.get(index)));
    let missing = ALL.into_iter().enumerate().filter(|(index, verb)| verbs.contains(verb) && !column(index + 1));
    Ok(Found { exists: column(0), missing: missing.map(|(_, verb)| verb).collect() })
}

async fn look_mysql(connection: &mut dyn Connection, table: &str, verbs: &BTreeSet<Verb>) -> Result<Found, DbError> {
    let (schema, name) = match table.split_once('.') {
        Some((schema, name)) => (Some(schema), name),
        None => (None, table),
    };
    // Of each column, what the present user may do with it: `select,insert,update,references`.
    let sql = "SELECT DISTINCT CAST(privileges AS CHAR) FROM information_schema.columns \
               WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";
    let found = ask(connection, sql, &[Value::from(schema).into(), Value::from(name).into()]).await?;
    let allowed: BTreeSet<String> = found
        .rows
        .iter()
        .filter_map(|row| match row.first() {
            Some(Value::Text(words)) => Some(words.split(',').map(|word| word.trim().to_lowercase())),
            _ => None,
        })
        .flatten()
        .collect();
    let exists = !found.rows.is_empty();
    let mut missing: Vec<Verb> = ALL
        .into_iter()
        .filter(|verb| *verb != Verb::Delete && verbs.contains(verb) && !allowed.contains(word(*verb)))
        .collect();
    if exists && verbs.contains(&Verb::Delete) && !may_delete(connection, table).await? {
        missing.push(Verb::Delete);
    }
    Ok(Found { exists, missing })
}

/// Deletes no row, and rolls back.
async fn may_delete(connection: &mut dyn Connection, table: &str) -> Result<bool, DbError> {
    const TABLE_ACCESS_DENIED: &str = "1142";
    connection.begin().await?;
    let sql = format!("DELETE FROM {} WHERE 1 = 0", quoted(Dialect::MySql, table));
    let tried = connection.execute(&sql, &[]).await;
    if tried.as_ref().err().is_none_or(|error| !error.connection_lost) {
        connection.rollback().await?;
    }
    match tried {
        Ok(_) => Ok(true),
        Err(error) if error.code.as_deref().is_some_and(|code| code.contains(TABLE_ACCESS_DENIED)) => Ok(false),
        Err(error) if error.message.contains("command denied") => Ok(false),
        Err(error) => Err(error),
    }
}

/// A table's name as a config has it, in the database's quotes.
fn quoted(dialect: Dialect, table: &str) -> String {
    let quote = if dialect == Dialect::MySql { '`' } else { '"' };
    let part = |part: &str| format!("{quote}{}{quote}", part.replace(quote, &format!("{quote}{quote}")));
    table.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// The command that grants rights on a table.
fn grant(dialect: Dialect, table: &str, verbs: &BTreeSet<Verb>, user: &str) -> String {
    let words: Vec<String> = verbs.iter().map(|verb| word(*verb).to_uppercase()).collect();
    format!("GRANT {} ON {} TO {user};", words.join(", "), quoted(dialect, table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_names_table_and_user_in_the_databases_quotes() {
        let verbs = BTreeSet::from([Verb::Select, Verb::Update]);
        assert_eq!(
            grant(Dialect::Postgres, "shop.stock", &verbs, "shop"),
            "GRANT SELECT, UPDATE ON \"shop\".\"stock\" TO shop;"
        );
        assert_eq!(
            grant(Dialect::MySql, "sto`ck", &verbs, "'shop'@'%'"),
            "GRANT SELECT, UPDATE ON `sto``ck` TO 'shop'@'%';"
        );
    }
}
