//! The bench's handler: one conditional UPDATE for each order, as in every variant.

use hapax_guest::{Context, Failure, handler, outbox, sql};
use serde::Deserialize;

/// An order.
#[derive(Debug, Deserialize)]
pub struct Order {
    goods_id: i64,
    quantity: i64,
    /// Is the first attempt to fail once it has changed something?
    #[serde(default)]
    fail_first: bool,
    /// Is someone to be told of it?
    #[serde(default)]
    tell: bool,
}

/// Reduces the stock, or fails for good.
#[handler]
pub fn reduce(order: Order) -> Result<(), Failure> {
    let Order { goods_id, quantity, fail_first, tell } = order;
    let reduced = sql::execute(
        "UPDATE stock SET quantity = quantity - ? WHERE goods_id = ? AND quantity >= ?",
        (quantity, goods_id, quantity),
    )?;
    if reduced.rows_affected == 0 {
        return Err(Failure::permanent("out-of-stock", format!("no stock for {goods_id}")));
    }
    if fail_first && Context.attempt() == 1 {
        return Err(Failure::transient("first-attempt", "the next attempt will do"));
    }
    if tell {
        outbox::publish("told", "stock.reduced").json(&goods_id)?.send()?;
    }
    Ok(())
}
