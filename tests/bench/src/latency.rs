//! From publishing to the commit, while messages come at a rate that everyone can keep up with.
//!
//! Times of commits are Postgres's own, which notes them on request: nobody has to be asked whether something is done
//! yet. It notes one just before it writes the commit to disk, so that last write is in nobody's figures.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use hapax_tests::servers::Postgres;
use lapin::{Connection, ConnectionProperties};
use tokio::time::Instant;

use crate::drain::finish;
use crate::extra::Run;
use crate::fleet::Fleet;
use crate::progress::Progress;
use crate::report::{Row, Section};
use crate::stage::{Place, publish};
use crate::stats::percentile;
use crate::variant::{Variant, named, names};
use crate::worker::QUEUE;
use crate::workload::{Order, Shape, orders, other_orders};

/// Messages a second.
pub(crate) const RATES: [u64; 2] = [100, 1000];

/// Messages that come before those that count: they open connections and prepare statements.
const WARM_UP: u64 = 200;

/// Measures everyone at every rate.
///
/// # Errors
/// When a program stops, gets stuck, or has not done exactly what it should.
pub(crate) async fn measure(run: &Run<'_>, title: &'static str) -> Result<Section> {
    let seconds = if run.quick { 10 } else { 30 };
    let postgres = postgres().await?;
    let mut rows = Vec::new();
    for rate in RATES {
        for variant in [named(&baseline())?, named(names::HAPAX)?] {
            let Load { mut millis, .. } = at_rate(run, &postgres, &variant, rate, seconds).await?;
            let figures = vec![(P50, percentile(&mut millis, 50.0)), (P99, percentile(&mut millis, 99.0))];
            rows.push(Row::new(row_name(&variant.name, rate), figures));
        }
    }
    Ok(Section {
        title,
        legend: format!(
            "From just before publishing to the commit, over {seconds} s at a steady rate. Commit times are Postgres's \
             own (track_commit_timestamp), noted just before the commit is synced to disk."
        ),
        rows,
    })
}

/// A Postgres that notes when it commits.
///
/// # Errors
/// When it does not start.
pub(crate) async fn postgres() -> Result<Postgres> {
    let mut postgres = Postgres::start().await?;
    postgres.set("track_commit_timestamp", "on").await?;
    Ok(postgres)
}

/// The figures of a row.
pub(crate) const P50: &str = "p50 ms";
pub(crate) const P99: &str = "p99 ms";

/// The name of a row.
pub(crate) fn row_name(variant: &str, rate: u64) -> String {
    format!("{variant}, {rate} msg/s")
}

/// The classic recipe as it does best under load, and Hapax.
pub(crate) fn baseline() -> String {
    format!("{}, 32 workers", names::CLASSIC)
}

/// What came of publishing at a rate.
pub(crate) struct Load {
    /// What each message took.
    pub(crate) millis: Vec<f64>,
    /// Messages a second that were really published.
    pub(crate) published: f64,
}

/// Publishes at a rate, `rate * seconds` messages in all.
///
/// # Errors
/// When the program stops, gets stuck, or has not done exactly what it should.
pub(crate) async fn at_rate(
    run: &Run<'_>,
    postgres: &Postgres,
    variant: &Variant,
    rate: u64,
    seconds: u64,
) -> Result<Load> {
    let place = run.stage.place_on(postgres).await?;
    let warm_up = other_orders(Shape::PLAIN, 0, WARM_UP);
    let (orders, unique) = orders(Shape::PLAIN, rate * seconds);
    let mut progress = Progress::of(variant, &place).await?;
    let mut fleet = Fleet::start(variant, &place, run.programs)?;
    publish_at(&place, &warm_up, rate).await?;
    progress.wait(&mut fleet, WARM_UP).await?;
    let published = publish_at(&place, &orders, rate).await?;
    let all = WARM_UP + unique;
    progress.wait(&mut fleet, all).await?;
    let committed = committed(variant, &mut progress).await?;
    finish(&mut fleet, &mut progress, variant, all, all).await?;
    let published_micros = match &published[..] {
        [(_, first), .., (_, last)] => last - first,
        _ => 0,
    };
    let millis = published.iter().map(|(id, micros)| {
        let committed = committed.get(id).with_context(|| format!("{id} was never committed"))?;
        Ok(committed.saturating_sub(*micros) as f64 / 1e3)
    });
    Ok(Load {
        millis: millis.collect::<Result<_>>()?,
        published: (published.len() as f64 - 1.0) * 1e6 / published_micros as f64,
    })
}

/// Publishes one order after the other, each at its time, whatever became of those before. Returns when each was, in
/// microseconds since the Unix epoch.
async fn publish_at(place: &Place, orders: &[Order], rate: u64) -> Result<Vec<(String, u64)>> {
    let connection = Connection::connect(place.vhost.url(), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let began = Instant::now();
    let mut published = Vec::with_capacity(orders.len());
    for (number, order) in orders.iter().enumerate() {
        tokio::time::sleep_until(began + Duration::from_micros(number as u64 * 1_000_000 / rate)).await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        published.push((order.id.clone(), u64::try_from(now.as_micros())?));
        publish(&channel, QUEUE, order).await?;
    }
    connection.close(200, "published".into()).await?;
    Ok(published)
}

/// When each message was committed, in microseconds since the Unix epoch.
async fn committed(variant: &Variant, progress: &mut Progress) -> Result<HashMap<String, u64>> {
    let (id, table) = match variant.is_hapax() {
        true => ("convert_from(message_id, 'UTF8')", "hapax_inbox"),
        false => ("message_id", "message_flow"),
    };
    let query = format!(
        "SELECT {id}, CAST(CAST(extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000 AS bigint) AS text) \
         FROM {table}"
    );
    let rows = progress.effects().context("there is no database")?.pairs(&query).await?;
    ensure!(!rows.is_empty(), "nothing was committed");
    rows.into_iter().map(|(id, micros)| Ok((id, micros.parse()?))).collect()
}
