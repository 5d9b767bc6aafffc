//! Four consumers in one process: memory while all of them work, and CPU time while none has anything to do.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::drain::settle;
use crate::extra::Run;
use crate::fleet::Fleet;
use crate::progress::{Progress, Span};
use crate::report::{Row, Section};
use crate::stage::Database;
use crate::variant::{Consumer, Handler, Hapax, hapax_toml};
use crate::workload::{Order, Shape, goods_of, orders};

const CONSUMERS: u64 = 4;

/// How long a process is left alone before it counts as idle.
const SETTLE: Duration = Duration::from_secs(5);

/// Measures them with the default of one lane each, and with four.
///
/// # Errors
/// When Hapax stops, gets stuck, or has not done exactly what it should.
pub(crate) async fn measure(run: &Run<'_>, title: &'static str) -> Result<Section> {
    let idle = Duration::from_secs(if run.quick { 20 } else { 60 });
    let mut rows = Vec::new();
    for (name, hapax) in [(ONE_LANE, Hapax::ONE_LANE), ("four lanes each", Hapax::USUAL)] {
        rows.push(Row::new(name, one(run, &hapax, idle).await?));
    }
    Ok(Section {
        title,
        legend: format!(
            "One process, four consumers on four queues, Postgres and Redis. Memory is the peak of the process tree while \
             it drains {} messages, each consumer those for goods of its own; then, without messages, CPU time over {} s, in percent of a core.",
            run.messages,
            idle.as_secs()
        ),
        rows,
    })
}

/// The row that the targets are about: the default config.
pub(crate) const ONE_LANE: &str = "one lane each";
/// Its figures.
pub(crate) const PEAK: &str = "peak MiB";
pub(crate) const IDLE: &str = "idle CPU %";

async fn one(run: &Run<'_>, hapax: &Hapax, idle: Duration) -> Result<Vec<(&'static str, f64)>> {
    let place = run.stage.place(Database::Postgres, false).await?;
    let module = run.programs.module(Handler::Rust)?;
    let (orders, unique) = orders(Shape::PLAIN, run.messages);
    let queues: Vec<String> = (1..=CONSUMERS).map(|number| format!("orders-{number}")).collect();
    for (queue, orders) in queues.iter().zip(apart(orders)) {
        place.vhost.declare_queue(queue, serde_json::json!({})).await?;
        place.fill(queue, &orders).await?;
    }
    let consumer = |queue| Consumer { name: queue, queue, module: &module, hapax, shape: Shape::PLAIN };
    let consumers: Vec<_> = queues.iter().map(|queue| consumer(queue.as_str())).collect();
    let mut progress = Progress::Effects(Box::new(place.effects().await?));
    let mut fleet = Fleet::hapax("four consumers", &place, &hapax_toml(&place, &consumers), 1)?;
    let span = Span::measure(run.stage, Database::Postgres, &mut fleet, &mut progress, 0, unique).await?;
    let peak = fleet.peak_memory()?;
    let mut effects = place.effects().await?;
    settle(&fleet, &mut effects).await?;
    tokio::time::sleep(SETTLE).await;
    let idle_percent = idle_percent(&fleet, idle).await?;
    fleet.stop().await?;
    let found = (effects.count().await?, effects.rows("hapax_inbox WHERE status = 1").await?);
    ensure!(found == (unique, unique), "{unique} orders, {} effects, {} remembered", found.0, found.1);
    let rate = span.rate(span.orders as f64);
    Ok(vec![("msg/s", rate), (PEAK, peak as f64 / f64::from(1 << 20)), (IDLE, idle_percent)])
}

/// Each consumer's orders, by the goods they are for: consumers that change the same rows in different orders would only
/// wait for each other.
fn apart(orders: Vec<Order>) -> Vec<Vec<Order>> {
    let mut apart = vec![Vec::new(); CONSUMERS as usize];
    for order in orders {
        let goods = goods_of(&order.body).unwrap_or_default();
        apart[(goods.unsigned_abs() % CONSUMERS) as usize].push(order);
    }
    apart
}

async fn idle_percent(fleet: &Fleet, idle: Duration) -> Result<f64> {
    let (began, before) = (Instant::now(), fleet.cpu_micros()?);
    tokio::time::sleep(idle).await;
    let spent = fleet.cpu_micros()? - before;
    Ok(spent as f64 / 1e6 / began.elapsed().as_secs_f64() * 100.0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_consumers_have_orders_for_the_same_goods() {
        let apart = apart(orders(Shape::PLAIN, 4_000).0);
        assert_eq!(apart.iter().map(Vec::len).sum::<usize>(), 4_000);
        assert!(apart.iter().all(|orders| orders.len() > 800));
        let goods = |orders: &Vec<Order>| orders.iter().map(|order| goods_of(&order.body)).collect::<HashSet<_>>();
        assert!(goods(&apart[0]).is_disjoint(&goods(&apart[1])));
    }
}
