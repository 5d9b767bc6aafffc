//! An inbox of many million rows against an empty one, and what it costs to forget those rows meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hapax_tests::proc::Launch;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::drain;
use crate::extra::Run;
use crate::fleet::{CONSUMER, Fleet};
use crate::programs::Programs;
use crate::progress::{Progress, Span};
use crate::report::{Row, Section};
use crate::stage::{Database, Effects, Place};
use crate::variant::{Consumer, Hapax, Program, Variant, hapax_toml, named, names};
use crate::worker::QUEUE;
use crate::workload::{FIRST_MILLIS, Ids, Shape, orders, other_orders};

/// Rows of a large inbox.
pub(crate) const ROWS: u64 = 10_000_000;

/// Rows that one statement adds.
const PAGE: u64 = 500_000;

/// What a drain takes at least, in seconds, and how much faster than the first one a drain may be without ending before.
const SECONDS: f64 = 60.0;
const MARGIN: f64 = 1.2;

/// The rows are a day old: forgotten with the second of these retentions, kept with the first.
const DAY_MILLIS: u64 = 86_400_000;
const KEPT: Option<&str> = None;
const FORGOTTEN: Option<&str> = Some("1h");

/// How long `hapax migrate` may take.
const MIGRATE_LIMIT: Duration = Duration::from_secs(60);

/// The figures that the targets are about.
pub(crate) const TO_EMPTY: &str = "% of empty";
pub(crate) const TO_KEPT: &str = "% without forgetting";
pub(crate) const FORGOTTEN_RATE: &str = "rows forgotten/s";

/// Names of the rows.
pub(crate) fn full(ids: Ids) -> String {
    format!("{}, full", describe(ids))
}

/// The same while old rows are forgotten.
pub(crate) fn forgetting(ids: Ids) -> String {
    format!("{}, full, old rows are forgotten", describe(ids))
}

fn describe(ids: Ids) -> &'static str {
    match ids {
        Ids::TimeOrdered => "time-ordered ids",
        Ids::Random => "random ids",
    }
}

/// Measures both kinds of ids.
///
/// # Errors
/// When Hapax stops, gets stuck, or has not done exactly what it should.
pub(crate) async fn measure(run: &Run<'_>, title: &'static str) -> Result<Section> {
    // As in every drain while it is only tried out; else as many as a minute needs on this machine.
    let messages = match run.inbox_rows {
        ROWS.. => {
            let usual = drain::drain(run.stage, &named(names::HAPAX)?, run.messages, run.programs).await?;
            a_minute(usual.rate)
        }
        _ => run.messages,
    };
    let mut rows = Vec::new();
    for ids in [Ids::TimeOrdered, Ids::Random] {
        let shape = Shape { ids, ..Shape::PLAIN };
        let empty_place = run.stage.place(Database::Postgres, false).await?;
        let empty = one(run, &empty_place, shape, KEPT, Round { messages, number: 0 }).await?;
        drop(empty_place);
        let place = run.stage.place(Database::Postgres, false).await?;
        fill(&place, run.programs, ids, run.inbox_rows).await?;
        let kept = one(run, &place, shape, KEPT, Round { messages, number: 0 }).await?;
        let forgotten = one(run, &place, shape, FORGOTTEN, Round { messages, number: 1 }).await?;
        rows.push(Row::new(format!("{}, empty", describe(ids)), empty.figures()));
        let against = |rate: f64, other: &Found| rate / other.rate * 100.0;
        rows.push(Row::new(full(ids), kept.figures_and(&[(TO_EMPTY, against(kept.rate, &empty))])));
        let more = [(TO_KEPT, against(forgotten.rate, &kept)), (FORGOTTEN_RATE, forgotten.deleted / forgotten.seconds)];
        rows.push(Row::new(forgetting(ids), forgotten.figures_and(&more)));
    }
    Ok(Section {
        title,
        legend: format!(
            "{:?} with {messages} messages a drain, on an empty inbox and on one with {} completed rows. Rows are \
             forgotten by the retention of the same process, from its start on.",
            names::HAPAX,
            run.inbox_rows
        ),
        rows,
    })
}

/// How many messages are drained in a minute and somewhat more.
fn a_minute(rate: f64) -> u64 {
    (rate * SECONDS * MARGIN) as u64
}

/// Which messages a drain gets.
struct Round {
    messages: u64,
    /// Those of another number are others.
    number: u64,
}

/// What one drain came to.
struct Found {
    rate: f64,
    seconds: f64,
    /// Inbox rows deleted meanwhile.
    deleted: f64,
}

impl Found {
    fn figures(&self) -> Vec<(&'static str, f64)> {
        vec![("msg/s", self.rate), ("seconds", self.seconds)]
    }

    fn figures_and(&self, more: &[(&'static str, f64)]) -> Vec<(&'static str, f64)> {
        [&self.figures()[..], more].concat()
    }
}

async fn one(
    run: &Run<'_>,
    place: &Place,
    shape: Shape,
    retention: Option<&'static str>,
    round: Round,
) -> Result<Found> {
    let orders = match round.number {
        0 => orders(shape, round.messages).0,
        number => other_orders(shape, number, round.messages),
    };
    place.fill(QUEUE, &orders).await?;
    let variant = Variant { program: Program::Hapax(Hapax { retention, ..Hapax::USUAL }), ..named(names::HAPAX)? };
    let mut progress = Progress::Effects(Box::new(place.effects().await?));
    let mut effects = place.effects().await?;
    let before = effects.count().await?;
    let mut fleet = Fleet::start(&variant, place, run.programs)?;
    let goal = before + round.messages;
    progress.wait(&mut fleet, before + 1).await?;
    let (began, deleted_before) = (Instant::now(), deleted(&mut effects).await?);
    let span = Span::measure(run.stage, Database::Postgres, &mut fleet, &mut progress, before, goal).await?;
    let deleted = deleted(&mut effects).await?.saturating_sub(deleted_before);
    let seconds = began.elapsed().as_secs_f64();
    fleet.stop().await?;
    let (found, parked) = (effects.count().await?, effects.rows("hapax_parked").await?);
    ensure!((found, parked) == (goal, 0), "{goal} orders, {found} effects, {parked} messages parked");
    Ok(Found { rate: span.rate(span.orders as f64), seconds, deleted: deleted as f64 })
}

/// Inbox rows deleted so far, as Postgres counts them: about a second late, but without reading the table.
async fn deleted(effects: &mut Effects) -> Result<u64> {
    effects.number("SELECT CAST(n_tup_del AS text) FROM pg_stat_user_tables WHERE relname = 'hapax_inbox'").await
}

/// Makes the tables as Hapax makes them, and puts old rows into the inbox.
async fn fill(place: &Place, programs: &Programs, ids: Ids, rows: u64) -> Result<()> {
    migrate(place, programs).await?;
    let mut connection = PgConnection::connect(&place.database).await?;
    let mut first = 0;
    // Without its key, which is made once for all rows.
    execute(&mut connection, "ALTER TABLE hapax_inbox DROP CONSTRAINT hapax_inbox_pkey".to_owned()).await?;
    while first < rows {
        let last = (first + PAGE).min(rows) - 1;
        let inserted = execute(&mut connection, insert(ids, first, last, rows)).await?;
        ensure!(inserted == last + 1 - first, "the inbox took {inserted} rows of {}", last + 1 - first);
        first = last + 1;
    }
    execute(&mut connection, "ALTER TABLE hapax_inbox ADD PRIMARY KEY (consumer, message_id)".to_owned()).await?;
    // As a table that has been there for long: nothing to be cleaned up, and nothing left to be written.
    for statement in ["VACUUM ANALYZE hapax_inbox", "CHECKPOINT"] {
        execute(&mut connection, statement.to_owned()).await?;
    }
    connection.close().await.context("closing the connection")
}

/// The statement that adds the rows of these numbers, ids in the order of time before every order's.
fn insert(ids: Ids, first: u64, last: u64, rows: u64) -> String {
    let id = match ids {
        Ids::Random => "gen_random_uuid()::text".to_owned(),
        // The time in its first 48 bits, and version 7 where a random UUID has its version 4.
        Ids::TimeOrdered => {
            let millis = format!("lpad(to_hex({} + n / 20), 12, '0')", FIRST_MILLIS - rows);
            format!(
                "overlay(overlay(gen_random_uuid()::text placing substr({millis}, 1, 8) || '-' || substr({millis}, 9, 4) from 1 for 13) placing '7' from 15 for 1)"
            )
        }
    };
    format!(
        "INSERT INTO hapax_inbox (consumer, message_id, status, body_digest, module, updated_at) \
         SELECT '{CONSUMER}', convert_to({id}, 'UTF8'), 1, decode(md5(n::text), 'hex'), '\\x0123456789abcdef', \
         (extract(epoch FROM now()) * 1000)::bigint - {DAY_MILLIS} FROM generate_series({first}::bigint, {last}) AS n"
    )
}

/// Returns how many rows it changed.
async fn execute(connection: &mut PgConnection, statement: String) -> Result<u64> {
    let done = sqlx::query(AssertSqlSafe(statement.clone())).execute(connection).await;
    done.map(|done| done.rows_affected()).with_context(|| statement)
}

async fn migrate(place: &Place, programs: &Programs) -> Result<()> {
    let module = programs.module(Hapax::USUAL.handler)?;
    let consumer =
        Consumer { name: CONSUMER, queue: QUEUE, module: &module, hapax: &Hapax::USUAL, shape: Shape::PLAIN };
    let config = place.folder.path().join("migrate.toml");
    std::fs::write(&config, hapax_toml(place, &[consumer]))?;
    let mut migrate =
        Launch::hapax(["migrate".into(), "-c".into(), config.into_os_string()]).name("migrate").start()?;
    migrate.wait_success(MIGRATE_LIMIT).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_takes_a_minute_even_if_it_is_somewhat_faster_than_the_first() {
        let messages = a_minute(12_500.0);
        assert_eq!(messages, 900_000);
        assert!(messages as f64 / (1.15 * 12_500.0) > SECONDS);
    }
}
