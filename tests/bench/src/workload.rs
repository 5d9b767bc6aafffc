//! The workload, the same for every variant. Frozen: a figure counts only against others of the same workload.
//!
//! Persistent messages of 100 bytes, each under a random UUIDv4, each reducing the stock of one of 1,000 goods, chosen
//! uniformly, by one: one conditional UPDATE, and a look whether it changed a row.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

/// Messages of a drain in a full run.
pub(crate) const MESSAGES: u64 = 200_000;
/// Messages of a drain with `--quick`.
pub(crate) const MESSAGES_QUICK: u64 = 20_000;
/// Goods in stock.
pub(crate) const GOODS: u32 = 1_000;
/// Of each: more than all messages together can take.
pub(crate) const STOCK: i64 = 1_000_000;
/// Length of a body in bytes.
pub(crate) const BODY_BYTES: usize = 100;
/// Where chance begins, the same in every round.
const SEED: u64 = 0x0048_6170_6178;

/// The conditional UPDATE, with MySQL's and SQLite's placeholders.
pub(crate) const UPDATE: &str = "UPDATE stock SET quantity = quantity - ? WHERE goods_id = ? AND quantity >= ?";
/// The same with Postgres's.
pub(crate) const UPDATE_POSTGRES: &str =
    "UPDATE stock SET quantity = quantity - $1 WHERE goods_id = $2 AND quantity >= $1";

/// What differs from the plain workload.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Shape {
    /// Goods that orders are for; 1 is a hot row.
    pub(crate) goods: u32,
    /// Share of messages that repeat the id and the body of an earlier one, in percent.
    pub(crate) duplicates: u32,
    /// Share of orders, chosen by their ids, whose first attempt fails after the UPDATE, in percent.
    pub(crate) failing: u32,
    /// Each order has the handler publish one message.
    pub(crate) told: bool,
    /// What the message ids look like.
    pub(crate) ids: Ids,
}

/// Kinds of message ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ids {
    /// UUIDv4.
    Random,
    /// UUIDv7, later than [`FIRST_MILLIS`].
    TimeOrdered,
}

/// The time in the first time-ordered id, in milliseconds since the Unix epoch, and how many ids have the same.
pub(crate) const FIRST_MILLIS: u64 = 1_800_000_000_000;
const IDS_A_MILLI: u64 = 20;

impl Shape {
    /// The plain workload.
    pub(crate) const PLAIN: Self = Self { goods: GOODS, duplicates: 0, failing: 0, told: false, ids: Ids::Random };
    /// Every message changes the same row.
    pub(crate) const HOT: Self = Self { goods: 1, ..Self::PLAIN };
    /// Few enough rows that workers often meet on one.
    pub(crate) const FEW_GOODS: Self = Self { goods: 100, ..Self::PLAIN };
    /// Every second message is a duplicate.
    pub(crate) const HALF_DUPLICATES: Self = Self { duplicates: 50, ..Self::PLAIN };
    /// Each order has the handler publish one message.
    pub(crate) const TOLD: Self = Self { told: true, ..Self::PLAIN };

    /// That share of first attempts fails.
    pub(crate) const fn failing(percent: u32) -> Self {
        Self { failing: percent, ..Self::PLAIN }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) body: Vec<u8>,
}

/// The messages of a drain, in their order, and how many different ones there are.
pub(crate) fn orders(shape: Shape, count: u64) -> (Vec<Order>, u64) {
    let mut chance = StdRng::seed_from_u64(SEED);
    let mut orders: Vec<Order> = Vec::with_capacity(count as usize);
    let mut unique = 0;
    for _ in 0..count {
        let repeats = !orders.is_empty() && chance.random_range(0..100) < shape.duplicates;
        let order = if repeats {
            orders[chance.random_range(0..orders.len())].clone()
        } else {
            unique += 1;
            new_order(&mut chance, shape, unique)
        };
        orders.push(order);
    }
    (orders, unique)
}

/// Orders that are in no drain of [`orders`]: other chance, other ids. Each `number` stands for others.
pub(crate) fn other_orders(shape: Shape, number: u64, count: u64) -> Vec<Order> {
    let mut chance = StdRng::seed_from_u64(SEED.wrapping_add(1 + number));
    (1..=count).map(|nth| new_order(&mut chance, shape, nth)).collect()
}

fn new_order(chance: &mut StdRng, shape: Shape, nth: u64) -> Order {
    let id = match shape.ids {
        Ids::Random => uuid::Builder::from_random_bytes(chance.random()).into_uuid(),
        Ids::TimeOrdered => {
            let millis = FIRST_MILLIS + nth / IDS_A_MILLI;
            uuid::Builder::from_unix_timestamp_millis(millis, &chance.random()).into_uuid()
        }
    };
    let id = id.to_string();
    let fails = if fails_first(&id, shape.failing) { r#""fail_first":true,"# } else { "" };
    let tells = if shape.told { r#""tell":true,"# } else { "" };
    let goods = chance.random_range(0..shape.goods);
    let head = format!(r#"{{"goods_id":{goods},"quantity":1,{fails}{tells}"note":""#);
    let body = format!("{head}{}\"}}", "x".repeat(BODY_BYTES - head.len() - 2));
    Order { id, body: body.into_bytes() }
}

/// Chooses by the id alone, so that everyone who sees a message chooses alike.
fn fails_first(id: &str, percent: u32) -> bool {
    // FNV-1a: small, and the same everywhere.
    let hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash % 100 < u64::from(percent)
}

/// The goods that a body is for; none for a body that is not an order.
pub(crate) fn goods_of(body: &[u8]) -> Option<i64> {
    let order: serde_json::Value = serde_json::from_slice(body).ok()?;
    order["goods_id"].as_i64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME_ORDERED: Shape = Shape { ids: Ids::TimeOrdered, ..Shape::PLAIN };

    #[test]
    fn the_workload_is_what_it_says_and_repeats_itself() {
        let (orders, unique) = super::orders(Shape::PLAIN, 500);
        assert_eq!(unique, 500);
        assert!(orders.iter().all(|order| order.body.len() == BODY_BYTES));
        assert!(orders.iter().all(|order| goods_of(&order.body).is_some_and(|goods| goods < i64::from(GOODS))));
        assert_eq!(super::orders(Shape::PLAIN, 500).0, orders);
        let (orders, unique) = super::orders(Shape::HALF_DUPLICATES, 2_000);
        let ids: std::collections::HashSet<_> = orders.iter().map(|order| &order.id).collect();
        assert_eq!(ids.len() as u64, unique);
        assert!((800..1_200).contains(&unique), "{unique}");
    }

    #[test]
    fn what_an_order_asks_for_does_not_make_it_longer() {
        for shape in [Shape::failing(20), Shape::TOLD, Shape { failing: 100, told: true, ..TIME_ORDERED }] {
            let (orders, _) = super::orders(shape, 500);
            assert!(orders.iter().all(|order| order.body.len() == BODY_BYTES), "{shape:?}");
        }
        let body = super::orders(Shape::TOLD, 1).0.remove(0).body;
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["tell"], true);
    }

    #[test]
    fn about_the_share_asked_for_fails_and_the_rest_is_as_in_the_plain_workload() {
        let plain = super::orders(Shape::PLAIN, 10_000).0;
        let orders = super::orders(Shape::failing(20), 10_000).0;
        let failing = orders.iter().filter(|order| order.body.windows(10).any(|part| part == b"fail_first")).count();
        assert!((1_800..2_200).contains(&failing), "{failing}");
        assert_eq!(orders.iter().zip(&plain).filter(|(one, other)| one == other).count(), 10_000 - failing);
        assert!(orders.iter().zip(&plain).all(|(one, other)| one.id == other.id));
    }

    #[test]
    fn time_ordered_ids_are_in_order_and_other_orders_are_others() {
        let orders = super::orders(TIME_ORDERED, 1_000).0;
        let times: Vec<&str> = orders.iter().map(|order| &order.id[..13]).collect();
        assert!(times.is_sorted() && times[0] < times[999]);
        assert!(orders.iter().all(|order| &order.id[14..15] == "7"));
        let plain = super::orders(Shape::PLAIN, 100).0;
        let others = [other_orders(Shape::PLAIN, 0, 100), other_orders(Shape::PLAIN, 1, 100), plain].concat();
        let ids: std::collections::HashSet<_> = others.iter().map(|order| &order.id).collect();
        assert_eq!(ids.len(), 300);
    }
}
