//! Messages that have all been handled before. They have no effect to be seen by, so a few new orders stand at the front
//! of the queue and a few at its end: measured is from the first of them to the last.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sqlx::{Connection as _, PgConnection};

use crate::drain::{Figures, finish, settle};
use crate::fleet::Fleet;
use crate::programs::Programs;
use crate::progress::{Progress, Span};
use crate::stage::{Place, Stage};
use crate::variant::{Remembered, Variant};
use crate::worker::QUEUE;
use crate::workload::{Order, orders, other_orders};

/// New orders at each end.
const MARKERS: u64 = 64;

/// As many messages as a process may be expected to remember: it gets them again and again.
const RECENT: usize = 20_000;

/// Handles messages, fills the queue with them again, and drains it.
///
/// # Errors
/// When the program stops, gets stuck, or has not done exactly what it should.
pub(crate) async fn drain(
    stage: &Stage,
    variant: &Variant,
    remembered: Remembered,
    messages: u64,
    programs: &Programs,
) -> Result<Figures> {
    let (orders, unique) = orders(variant.shape, messages);
    let place = stage.place(variant.database, variant.quorum).await?;
    let mut progress = Progress::of(variant, &place).await?;
    let before = handle_once(&place, variant, remembered, &orders, &mut progress, programs).await?;
    let (mut fleet, effects, started) = match before {
        Before::Running(mut fleet) => {
            fleet.freeze()?;
            fill(&place, variant, &last_ones(&orders)).await?;
            fleet.thaw()?;
            (fleet, unique, Instant::now())
        }
        Before::Ended { effects } => {
            fill(&place, variant, &orders).await?;
            let started = Instant::now();
            (Fleet::start(variant, &place, programs)?, effects, started)
        }
    };
    let goal = effects + 2 * MARKERS;
    let span = Span::measure(stage, variant.database, &mut fleet, &mut progress, effects, goal).await?;
    let share = messages as f64 + span.orders as f64;
    let memory = fleet.peak_memory()?;
    let deadlocks = finish(&mut fleet, &mut progress, variant, goal, unique + 2 * MARKERS).await?;
    let start_millis = match remembered {
        Remembered::ByItself => f64::NAN,
        Remembered::ByAnother | Remembered::InTable => span.first.duration_since(started).as_secs_f64() * 1e3,
    };
    let seconds = span.took.as_secs_f64();
    Ok(Figures { messages, rate: span.rate(share), seconds, cpu: span.cpu(share), memory, start_millis, deadlocks })
}

/// Who has handled the messages.
enum Before {
    /// A process that still runs.
    Running(Fleet),
    /// Someone else, with that many effects.
    Ended { effects: u64 },
}

async fn handle_once(
    place: &Place,
    variant: &Variant,
    remembered: Remembered,
    orders: &[Order],
    progress: &mut Progress,
    programs: &Programs,
) -> Result<Before> {
    if remembered == Remembered::InTable {
        fill_flow_table(&place.database, orders).await?;
        return Ok(Before::Ended { effects: 0 });
    }
    place.fill(QUEUE, orders).await?;
    let mut fleet = Fleet::start(variant, place, programs)?;
    let (_, effects) = progress.wait(&mut fleet, orders.len() as u64).await?;
    settle(&fleet, progress.effects().context("there is no database")?).await?;
    if remembered == Remembered::ByItself {
        return Ok(Before::Running(fleet));
    }
    fleet.stop().await?;
    Ok(Before::Ended { effects })
}

/// The orders again, between new ones.
async fn fill(place: &Place, variant: &Variant, again: &[Order]) -> Result<()> {
    place.fill(QUEUE, &other_orders(variant.shape, 0, MARKERS)).await?;
    place.fill(QUEUE, again).await?;
    place.fill(QUEUE, &other_orders(variant.shape, 1, MARKERS)).await
}

/// As many messages as there are orders, but of the last orders only.
fn last_ones(orders: &[Order]) -> Vec<Order> {
    let recent = &orders[orders.len().saturating_sub(RECENT)..];
    recent.iter().cycle().take(orders.len()).cloned().collect()
}

async fn fill_flow_table(database: &str, orders: &[Order]) -> Result<()> {
    let mut connection = PgConnection::connect(database).await?;
    for orders in orders.chunks(10_000) {
        let ids: Vec<&str> = orders.iter().map(|order| order.id.as_str()).collect();
        let inserted = sqlx::query("INSERT INTO message_flow (message_id) SELECT unnest($1::text[])")
            .bind(&ids)
            .execute(&mut connection)
            .await
            .context("filling the flow table")?;
        ensure!(inserted.rows_affected() == ids.len() as u64, "the flow table did not take all ids");
    }
    // As a table that was not filled a moment ago.
    sqlx::query("VACUUM ANALYZE message_flow").execute(&mut connection).await?;
    connection.close().await.context("closing the connection")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Shape;

    #[test]
    fn the_last_orders_come_again_and_again() {
        let (orders, _) = orders(Shape::PLAIN, RECENT as u64 + 7);
        let last = last_ones(&orders);
        assert_eq!(last.len(), orders.len());
        assert_eq!((&last[0], &last[RECENT]), (&orders[7], &orders[7]));
        assert_eq!(last_ones(&orders[..9]), orders[..9]);
    }
}
