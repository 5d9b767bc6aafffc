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
}

impl Shape {
    /// The plain workload.
    pub(crate) const PLAIN: Self = Self { goods: GOODS, duplicates: 0 };
    /// Every message changes the same row.
    pub(crate) const HOT: Self = Self { goods: 1, duplicates: 0 };
    /// Every second message is a duplicate.
    pub(crate) const HALF_DUPLICATES: Self = Self { goods: GOODS, duplicates: 50 };
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
            new_order(&mut chance, shape.goods)
        };
        orders.push(order);
    }
    (orders, unique)
}

fn new_order(chance: &mut StdRng, goods: u32) -> Order {
    let id = uuid::Builder::from_random_bytes(chance.random()).into_uuid().to_string();
    let head = format!(r#"{{"goods_id":{},"quantity":1,"note":""#, chance.random_range(0..goods));
    let body = format!("{head}{}\"}}", "x".repeat(BODY_BYTES - head.len() - 2));
    Order { id, body: body.into_bytes() }
}

/// The goods that a body is for; none for a body that is not an order.
pub(crate) fn goods_of(body: &[u8]) -> Option<i64> {
    let order: serde_json::Value = serde_json::from_slice(body).ok()?;
    order["goods_id"].as_i64()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
