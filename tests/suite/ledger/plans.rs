//! Plans: with 100,000 inbox rows and 10,000 parked ones, no statement of a message's path reads a whole table.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use hapax::ledger::database::{Connection, DbError, Dialect};
use hapax::ledger::statements::{Args, Statement, Statements};
use hapax::ledger::value::{ResultSet, RowLimits, Value};
use hapax_tests::{TestResult, wait_until};

use crate::subject::*;

/// How many rows a batch has.
const BATCH: usize = 64;

/// 16 bytes that begin with a number in hexadecimal, as the keys made below do.
fn key(number: usize) -> Vec<u8> {
    format!("{number:016x}").into_bytes()
}

/// Numbers from 0, as a table expression.
fn numbers(dialect: Dialect, count: usize) -> String {
    let last = count - 1;
    match dialect {
        Dialect::Postgres => format!("(SELECT generate_series(0, {last}) AS n) AS numbers"),
        Dialect::MySql => format!("(SELECT seq AS n FROM seq_0_to_{last}) AS numbers"),
        Dialect::Sqlite => format!(
            "(WITH RECURSIVE t (n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM t WHERE n < {last}) SELECT n FROM t) AS numbers"
        ),
    }
}

/// The key of row `n`, in SQL.
fn key_sql(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => "convert_to(lpad(to_hex(n), 16, '0'), 'UTF8')",
        Dialect::MySql => "LPAD(LOWER(HEX(n)), 16, '0')",
        Dialect::Sqlite => "CAST(printf('%016x', n) AS BLOB)",
    }
}

/// One parked row in a hundred runs, four wait and are due, fifteen wait and are not, the rest is dead.
async fn fill(subject: &Subject) -> TestResult {
    let dialect = subject.dialect();
    let key = key_sql(dialect);
    subject
        .sql(&format!(
            "INSERT INTO hapax_inbox (consumer, message_id, status, parked_id, body_digest, module, updated_at)
             SELECT CASE WHEN n % 10 = 0 THEN 'another' ELSE '{CONSUMER}' END, {key},
                    CASE WHEN n % 10 = 1 THEN 2 ELSE 1 END, CASE WHEN n % 10 = 1 THEN {key} END, {key}, NULL, n
             FROM {}",
            numbers(dialect, 100_000)
        ))
        .await?;
    subject
        .sql(&format!(
            "INSERT INTO hapax_parked (id, consumer, message_id, state, phase, generation, due_at, slot, attempts,
                    handler_attempts, crashes, compensations, run_token, incarnation, taken_at, body_digest, exchange,
                    routing_key, properties, body, body_bytes, created_at, updated_at)
             SELECT {key}, '{CONSUMER}', {key}, CASE WHEN n % 100 = 0 THEN 2 WHEN n % 100 < 20 THEN 1 ELSE 4 END, 1, 0,
                    CASE WHEN n % 100 = 0 OR n % 100 >= 20 THEN NULL WHEN n % 100 < 5 THEN n ELSE 4000000000000 + n END,
                    n % 256, 1, 0, 0, 0, CASE WHEN n % 100 = 0 THEN {key} END, NULL,
                    CASE WHEN n % 100 = 0 THEN n END, {key}, '', 'key', '{{}}', {key}, 16, n, n
             FROM {}",
            numbers(dialect, 10_000)
        ))
        .await?;
    subject
        .sql(&format!(
            "INSERT INTO hapax_outbox (id, consumer, message_id, parked_id, exchange, routing_key, properties, body, state,
                    attempts, next_at, created_at)
             SELECT {key}, '{CONSUMER}', {key}, NULL, '', 'key', '{{}}', {key}, CASE WHEN n % 10 = 0 THEN 1 ELSE 2 END, 0,
                    CASE WHEN n % 100 = 0 THEN n ELSE 4000000000000 + n END, n
             FROM {}",
            numbers(dialect, 10_000)
        ))
        .await?;
    subject
        .sql(&format!(
            "INSERT INTO hapax_parked_chunks (parked_id, ordinal, bytes) SELECT {key}, 0, {key} FROM {}",
            numbers(dialect, 10_000)
        ))
        .await?;
    let mut lane = subject.lane().await?;
    for table in ["hapax_inbox", "hapax_parked", "hapax_parked_chunks", "hapax_outbox"] {
        match dialect {
            Dialect::Postgres => drop(lane.execute(&format!("ANALYZE {table}"), &[]).await?),
            Dialect::MySql => drop(lane.query(&format!("ANALYZE TABLE {table}"), &[], RowLimits::NONE).await?),
            // Nobody runs ANALYZE on an embedded file.
            Dialect::Sqlite => {}
        }
    }
    Ok(())
}

fn keys_of(numbers: impl Iterator<Item = usize>) -> impl Iterator<Item = Option<Vec<u8>>> {
    numbers.map(|number| Some(key(number)))
}

/// The statements of the path with what a batch of 64, and a lane that owns a quarter of the slots, would ask.
fn path(statements: &Statements) -> Vec<(&'static str, &Statement, Args)> {
    let of = || Args::new().one("consumer", CONSUMER);
    let rows = || (0..BATCH).map(|n| n * 100);
    let nulls = || (0..BATCH).map(|_| None::<Vec<u8>>);
    let ints = |value: i64| (0..BATCH).map(move |_| Some(value));
    let texts = || (0..BATCH).map(|_| None::<String>);
    let ids = || Args::new().blobs("row_id", keys_of(rows()));
    let token = key(100);
    let lane = || of().one("first_slot", 64).one("last_slot", 127);
    let claim = || {
        of().blobs("message_id", keys_of(100_000..100_000 + BATCH))
            .ints("status", ints(1))
            .blobs("parked_id", nulls())
            .blobs("body_digest", keys_of(rows()))
            .blobs("module", nulls())
    };
    let moves = ids()
        .blobs("run_token", keys_of(rows()))
        .ints("state", ints(1))
        .ints("phase", ints(1))
        .ints("generation", ints(0))
        .ints("delay", ints(3000))
        .ints("attempts", ints(2))
        .ints("handler_attempts", ints(0))
        .ints("crashes", ints(0))
        .ints("compensations", ints(0))
        .texts("reason", texts())
        .texts("code", texts())
        .texts("error", texts())
        .blobs("module", nulls());
    let inbox_moves = of()
        .blobs("message_id", keys_of(rows().map(|n| n + 1)))
        .ints("was", ints(2))
        .blobs("was_parked", keys_of(rows().map(|n| n + 1)))
        .ints("status", ints(1))
        .blobs("parked_id", nulls())
        .blobs("module", nulls());
    vec![
        ("claim", &statements.claim, claim()),
        ("claim_silently", &statements.claim_silently, claim()),
        ("inbox_existing", &statements.inbox_existing, of().blobs("message_id", keys_of(rows()))),
        ("unclaim", &statements.unclaim, of().blobs("message_id", keys_of(rows()))),
        ("inbox_move", &statements.inbox_move, inbox_moves),
        ("due_slots", &statements.due_slots, of().one("horizon", 60_000)),
        ("due", &statements.due, lane().one("limit", 64)),
        ("due_suspect", &statements.due_suspect, lane()),
        ("due_in_order", &statements.due_in_order, lane().one("limit", 64)),
        ("due_rows", &statements.due_rows, ids()),
        ("slots_blocked", &statements.slots_blocked, lane()),
        ("take", &statements.take, ids().one("run_token", token.clone()).one("incarnation", token.clone())),
        ("lock_running", &statements.lock_running, ids().one("run_token", token.clone())),
        ("parked_move", &statements.parked_move, moves),
        ("parked_delete", &statements.parked_delete, ids().one("run_token", token.clone())),
        ("taken", &statements.taken, of().one("run_token", token.clone()).one("incarnation", token.clone())),
        ("give_back", &statements.give_back, ids().one("run_token", token.clone()).one("delay", 0)),
        (
            "orphans",
            &statements.orphans,
            of().one("age", 60_000).one("limit", 100).blobs("alive", [Some(HOST.0.to_vec())]),
        ),
        ("running", &statements.running, of()),
        ("strays", &statements.strays, of().one("age", 60_000).one("incarnation", HOST.0.as_slice())),
        ("chunks", &statements.chunks, Args::new().one("parked_id", token.clone())),
        ("chunks_delete", &statements.chunks_delete, Args::new().blobs("parked_id", keys_of(rows().take(2)))),
        ("outbox_due", &statements.outbox_due, Args::new().one("limit", 256)),
        ("outbox_bodies", &statements.outbox_bodies, ids()),
        ("outbox_copies", &statements.outbox_copies, ids()),
        ("outbox_hold", &statements.outbox_hold, ids().one("grace", 1000)),
        ("outbox_done", &statements.outbox_done, ids()),
        (
            "redrive",
            &statements.redrive,
            Args::new().one("id", token.clone()).one("generation", 0).one("delay", 0).one("forced", 0),
        ),
        ("parked_of_message", &statements.parked_of_message, of().one("message_id", token.clone())),
        ("outbox_of_message", &statements.outbox_of_message, of().one("message_id", token.clone())),
        ("retention_page", &statements.retention_page, of().one("age", 1000).one("after", token).one("limit", 2000)),
        ("retention_delete", &statements.retention_delete, of().one("age", 1000).blobs("message_id", keys_of(rows()))),
        ("retention_discarded", &statements.retention_discarded, of().one("age", 1000).one("limit", 2000)),
        (
            "retention_discarded_inbox",
            &statements.retention_discarded_inbox,
            of().blobs("message_id", keys_of(rows())).blobs("row_id", keys_of(rows())),
        ),
    ]
}

async fn explain(
    lane: &mut dyn Connection,
    dialect: Dialect,
    statement: &Statement,
    args: Args,
) -> Result<ResultSet, DbError> {
    let (sql, params) = statement.bind(args);
    let verb = if dialect == Dialect::Sqlite { "EXPLAIN QUERY PLAN" } else { "EXPLAIN" };
    lane.query(&format!("{verb} {sql}"), &params, RowLimits::NONE).await
}

/// A plan's lines, and those of them that read a whole table or index of ours.
fn read(dialect: Dialect, plan: &ResultSet) -> (Vec<String>, Vec<String>) {
    let text = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Int(int) => int.to_string(),
        _ => "-".to_owned(),
    };
    let lines: Vec<Vec<String>> = plan.rows.iter().map(|row| row.iter().map(text).collect()).collect();
    let is_full = |line: &Vec<String>| match dialect {
        Dialect::Postgres => line[0].contains("Seq Scan on hapax_"),
        // Columns: id, select_type, table, type, …; ours are no derived tables.
        Dialect::MySql => matches!(&*line[3], "ALL" | "index") && !line[2].starts_with('<') && line[1] != "INSERT",
        Dialect::Sqlite => {
            let detail = line.last().map_or("", String::as_str);
            ["SCAN p", "SCAN i", "SCAN hapax_"].iter().any(|scan| detail.starts_with(scan))
        }
    };
    let joined = |line: &Vec<String>| line.join(" | ");
    (lines.iter().map(joined).collect(), lines.iter().filter(|line| is_full(line)).map(joined).collect())
}

pub(crate) async fn every_statement_of_the_path_finds_its_rows_by_an_index(subject: Subject) -> TestResult {
    fill(&subject).await?;
    let dialect = subject.dialect();
    let schema = match dialect {
        Dialect::Postgres => "public".to_owned(),
        Dialect::Sqlite => "main".to_owned(),
        Dialect::MySql => match subject.sql("SELECT DATABASE()").await?.rows.remove(0).remove(0) {
            Value::Text(name) => name,
            other => panic!("{other:?} is no name"),
        },
    };
    let statements = Statements::load(dialect, &schema);
    let mut lane = subject.lane().await?;
    let (mut report, mut full) = (String::new(), Vec::new());
    for (name, statement, args) in path(&statements) {
        lane.begin().await?;
        let plan = explain(lane.as_mut(), dialect, statement, args).await?;
        lane.rollback().await?;
        let (lines, scans) = read(dialect, &plan);
        writeln!(report, "{name}\n    {}", lines.join("\n    "))?;
        full.extend(scans.into_iter().map(|scan| format!("{name}: {scan}")));
    }
    // Past the capture of test output, where somebody asks for it.
    if std::env::var_os("HAPAX_TEST_SHOW_PLANS").is_some() {
        writeln!(std::io::stderr(), "Plans of {dialect:?}\n{report}")?;
    }
    assert!(full.is_empty(), "these read a whole table:\n{}\n\n{report}", full.join("\n"));
    Ok(())
}

/// Rows of the inbox that the server has read; it counts those of a connection when that ends.
async fn rows_read(subject: &Subject) -> TestResult<i64> {
    let sql = "SELECT (seq_tup_read + idx_tup_fetch)::bigint FROM pg_stat_user_tables WHERE relname = 'hapax_inbox'";
    Ok(subject.count(sql).await?)
}

pub(crate) async fn plans_made_for_an_empty_table_do_not_outlive_it(subject: Subject) -> TestResult {
    const ROWS: usize = 50_000;
    const TRANSACTIONS: usize = 100;
    // As it is for the first minute of every new table.
    subject.sql("ALTER TABLE hapax_inbox SET (autovacuum_enabled = off)").await?;
    let mut lane = subject.lane().await?;
    let own = (0..2 * BATCH).map(|n| format!("own-{n}")).collect::<Vec<_>>();
    let (known, taken_back) = own.split_at(BATCH);
    subject.claim(&claims(known)).await?;
    let ids: Vec<_> = taken_back.iter().map(|name| id(name)).collect();
    let ids: Vec<_> = ids.iter().collect();
    for transaction in 0..TRANSACTIONS {
        if transaction == 12 {
            // The plans are made. Now others fill the table.
            let key = key_sql(Dialect::Postgres);
            let numbers = numbers(Dialect::Postgres, ROWS);
            let columns = "consumer, message_id, status, updated_at";
            subject
                .sql(&format!("INSERT INTO hapax_inbox ({columns}) SELECT '{CONSUMER}', {key}, 1, n FROM {numbers}"))
                .await?;
        }
        lane.begin().await?;
        subject.ledger.claim(lane.as_mut(), CONSUMER, &claims(&own)).await?;
        subject.ledger.unclaim(lane.as_mut(), CONSUMER, &ids).await?;
        lane.commit().await?;
    }
    drop(lane);
    // Each transaction looks for 64 rows and deletes 64. Until the plans are dropped, at the sixteenth, it reads all.
    let mut read = 0;
    wait_until(Duration::from_secs(60), "the server to count what was read", async || {
        read = rows_read(&subject).await.unwrap_or_default();
        read >= (TRANSACTIONS * 2 * BATCH) as i64
    })
    .await?;
    assert!(read < 10 * ROWS as i64, "{read} rows were read for {TRANSACTIONS} batches");
    Ok(())
}
