//! The classic scenario: thousands of orders that reduce stock, with everything a careless world does to them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use hapax::broker::Outgoing;
use hapax::ledger::value::Value;

use crate::world::{Consumer, Stage, World, message, on_stages};

on_stages! {
    stock_is_reduced_once_for_each_order_whatever_happens: [MariaDb, Postgres, Embedded];
}

mod scenarios {
    use hapax_tests::TestResult;

    use super::{Size, run};
    use crate::world::{PATIENCE, World};

    pub(super) async fn stock_is_reduced_once_for_each_order_whatever_happens(world: World) -> TestResult {
        Ok(run(&world, "reduce_stock", &Size { goods: 40, orders: 2000, patience: PATIENCE }).await?)
    }
}

/// How much there is to do.
pub(crate) struct Size {
    /// How many goods; the ids of the last two differ by one past 2^53.
    pub(crate) goods: usize,
    /// Orders, each with an id of its own.
    pub(crate) orders: usize,
    /// How long the host may take to start.
    pub(crate) patience: Duration,
}

/// The first of the goods ids: past 2^53, so that a program which reads them as floating point numbers confuses them.
const FIRST_GOODS: i64 = 1_234_567_890_123_456_700;

/// An order's id and body.
type Order = (String, String);

/// Numbers that look random and are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        usize::try_from(z % limit as u64).unwrap_or(0)
    }
}

/// Runs the scenario with a guest, and checks all of its outcome.
pub(crate) async fn run(world: &World, guest: &'static str, size: &Size) -> Result<()> {
    // Goods sell out if more orders come than there are on average.
    let stock = size.orders / size.goods;
    for number in 0..size.goods {
        let id = FIRST_GOODS + i64::try_from(number)?;
        world.prepare(&[&format!("INSERT INTO stock (goods_id, quantity) VALUES ({id}, {stock})")]).await?;
    }
    world.bind("reduced", "shop", "stock.reduced").await?;
    let _host = world.host_within(size.patience, consumer(world.stage, guest)).await?;

    let mut dice = Dice(7);
    let orders: Vec<Order> = (0..size.orders)
        .map(|number| {
            let goods = FIRST_GOODS + i64::try_from(dice.below(size.goods)).unwrap_or(0);
            (format!("order-{number}"), goods.to_string())
        })
        .collect();
    let misfits = size.orders / 50;
    world.publish(first_wave(&orders, misfits, &mut dice)).await?;
    let expected = Expected::of(&orders, stock);
    wait_settled(world, size.orders + misfits).await?;
    world.publish(second_wave(&orders, misfits, &mut dice)).await?;
    world.publish([message("the-last", "no order at all")]).await?;
    wait_settled(world, size.orders + misfits + 1).await?;
    world.wait_dead("id-conflict", i64::try_from(misfits)?).await?;
    world.quiet().await?;

    expected.check(world, misfits).await
}

/// Waits until that many messages are completed or dead.
async fn wait_settled(world: &World, wanted: usize) -> Result<()> {
    let sql = "SELECT COUNT(*) FROM hapax_inbox WHERE status IN (1, 3)";
    world.wait_number(sql, i64::try_from(wanted)?).await
}

fn consumer(stage: Stage, guest: &'static str) -> Consumer {
    let consumer = Consumer::default()
        .guest(guest)
        .with("retry = { max_attempts = 40, initial_interval = \"50ms\", multiplier = 1.0, jitter = 0.0 }")
        .with("limits = { memory = \"256MiB\", time = \"30s\" }")
        .with(
            "grants = { tables = { stock = [\"select\", \"update\"], refused_order = [\"insert\"] }, \
             publish = [{ exchange = \"shop\", routing_key = \"stock.*\" }], \
             config = { exchange = \"shop\", fail_after_update = \"0.5\" } }",
        );
    match stage {
        Stage::Embedded => consumer,
        // Orders of the same goods have the same body, and so never meet in two lanes.
        Stage::MariaDb | Stage::Postgres => consumer.with("concurrency = 4").with("partition_by = \"body\""),
    }
}

/// All orders, 15 % of them twice at once, and among them messages without an id and garbage.
fn first_wave(orders: &[Order], misfits: usize, dice: &mut Dice) -> Vec<Outgoing> {
    let mut wave = Vec::new();
    for (id, body) in orders {
        for _ in 0..if dice.below(100) < 15 { 2 } else { 1 } {
            wave.push(message(id, body.clone()));
        }
    }
    for (number, (_, body)) in orders.iter().enumerate().take(misfits) {
        let mut nameless = message("", body.clone());
        nameless.properties.message_id = None;
        wave.insert(dice.below(wave.len()), nameless);
        let garbage = message(&format!("garbage-{number}"), format!("garbage {number}"));
        wave.insert(dice.below(wave.len()), garbage);
    }
    wave
}

/// Late duplicates of 15 % of all orders, and other orders under ids that have been used.
fn second_wave(orders: &[Order], misfits: usize, dice: &mut Dice) -> Vec<Outgoing> {
    let mut wave: Vec<Outgoing> =
        orders.iter().filter(|_| dice.below(100) < 15).map(|(id, body)| message(id, body.clone())).collect();
    wave.extend(orders.iter().take(misfits).map(|(id, body)| message(id, format!(" {body}"))));
    wave
}

/// What must be left in the end.
struct Expected {
    /// Goods and what is left of them.
    stock: Vec<(i64, i64)>,
    sold: usize,
    refused: usize,
}

impl Expected {
    fn of(orders: &[Order], stock: usize) -> Self {
        let mut ordered = std::collections::BTreeMap::<i64, usize>::new();
        for (_, body) in orders {
            *ordered.entry(body.parse().unwrap_or(0)).or_default() += 1;
        }
        let left = |ordered: usize| i64::try_from(stock.saturating_sub(ordered)).unwrap_or(0);
        let sold = ordered.values().map(|&ordered| ordered.min(stock)).sum();
        Self {
            stock: ordered.iter().map(|(&goods, &ordered)| (goods, left(ordered))).collect(),
            sold,
            refused: orders.len() - sold,
        }
    }

    async fn check(&self, world: &World, misfits: usize) -> Result<()> {
        for (goods, left) in &self.stock {
            let found = world.number(&format!("SELECT quantity FROM stock WHERE goods_id = {goods}")).await?;
            assert_eq!(found, *left, "stock of goods {goods}");
        }
        assert!(self.refused > 0, "the scenario must sell something out");
        let refused = ids(world, "SELECT message_id FROM refused_order").await?;
        assert_eq!(refused.len(), self.refused, "orders refused");
        assert_eq!(refused.iter().collect::<BTreeSet<_>>().len(), self.refused, "none of them twice");
        assert_eq!(world.number("SELECT COUNT(*) FROM refused_order WHERE reason <> 'out-of-stock'").await?, 0);

        let misfits = i64::try_from(misfits)?;
        assert_eq!(world.dead("no-id").await?, misfits);
        assert_eq!(world.dead("id-conflict").await?, misfits);
        assert_eq!(world.dead("permanent").await?, i64::try_from(self.refused)? + misfits + 1);
        let dead = world.number("SELECT COUNT(*) FROM hapax_parked").await?;
        assert_eq!(dead, i64::try_from(self.refused)? + 3 * misfits + 1, "and no other dead letters");
        let completed = world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1").await?;
        assert_eq!(completed, i64::try_from(self.sold)?);

        let arrived = world
            .collect("reduced", |arrived| {
                arrived.iter().map(|message| &message.id).collect::<BTreeSet<_>>().len() >= self.sold
            })
            .await?;
        let told: BTreeSet<&str> = arrived.iter().map(|message| message.id.as_str()).collect();
        assert_eq!(told.len(), self.sold, "one outbox id for each order sold");
        let bodies: BTreeSet<&str> = arrived.iter().map(|message| message.body.as_str()).collect();
        assert_eq!(bodies.len(), self.sold, "and under each id another order");
        Ok(())
    }
}

async fn ids(world: &World, sql: &str) -> Result<Vec<String>> {
    let rows = world.rows(sql).await?;
    let id = |row: Vec<Value>| match row.into_iter().next() {
        Some(Value::Text(id)) => Ok(id),
        other => anyhow::bail!("{sql} returned {other:?}, not an id"),
    };
    rows.into_iter().map(id).collect()
}
