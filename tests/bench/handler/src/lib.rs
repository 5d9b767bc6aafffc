//! The bench's handler: one conditional UPDATE for each order, as in every variant.

use hapax_guest::{Failure, handler, sql};
use serde::Deserialize;

/// An order.
#[derive(Debug, Deserialize)]
pub struct Order {
    goods_id: i64,
    quantity: i64,
}

/// Reduces the stock, or fails for good.
#[handler]
pub fn reduce(order: Order) -> Result<(), Failure> {
    let Order { goods_id, quantity } = order;
    let reduced = sql::execute(
        "UPDATE stock SET quantity = quantity - ? WHERE goods_id = ? AND quantity >= ?",
        (quantity, goods_id, quantity),
    )?;
    if reduced.rows_affected == 0 {
        return Err(Failure::permanent("out-of-stock", format!("no stock for {goods_id}")));
    }
    Ok(())
}
