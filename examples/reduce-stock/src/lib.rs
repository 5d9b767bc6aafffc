//! Reduces stock once for each order: the classic example of an idempotent consumer, without its plumbing.
//!
//! An order is JSON, `{"goods_id": 1234567890123456789, "quantity": 2}`, with the id as a number or a string and a
//! quantity of 1 if there is none; or, as the classic producers send it, the bare goods id as text.

mod order;

use hapax_guest::{Context, Death, Failure, Message, compensation, handler, outbox, sql};
use serde::Serialize;

pub use order::Order;

/// What other services are told once the stock is reduced.
#[derive(Debug, Serialize)]
struct StockReduced<'a> {
    order: &'a str,
    goods_id: i64,
    quantity: i64,
}

/// Takes the quantity from the stock, or refuses the order for good; and says so to the exchange `shop`.
#[handler]
pub fn reduce_stock(order: Order, message: &Message) -> Result<(), Failure> {
    let Order { goods_id, quantity } = order;
    let reduced = sql::execute(
        "UPDATE stock SET quantity = quantity - ? WHERE goods_id = ? AND quantity >= ?",
        (quantity, goods_id, quantity),
    )?;
    if reduced.rows_affected == 0 {
        return Err(refusal(&order)?);
    }
    fail_sometimes(&message.id)?;
    let exchange = Context.config("exchange").unwrap_or_else(|| "shop".to_owned());
    outbox::publish(exchange, "stock.reduced")
        .json(&StockReduced { order: &message.id, goods_id, quantity })?
        .send()?;
    Ok(())
}

/// Why no row matched: the conditional UPDATE cannot tell, and only this rare case asks.
fn refusal(order: &Order) -> Result<Failure, sql::Error> {
    let goods_id = order.goods_id;
    let left: Option<i64> = sql::query_optional("SELECT quantity FROM stock WHERE goods_id = ?", (goods_id,))?;
    Ok(match left {
        Some(left) => {
            let message = format!("goods {goods_id}: {} ordered, {left} in stock", order.quantity);
            Failure::permanent("out-of-stock", message)
        }
        None => Failure::permanent("unknown-goods", format!("there are no goods {goods_id}")),
    })
}

/// Records an order that will never be fulfilled. Runs once, in the transaction that marks the message dead.
#[compensation]
pub fn refuse_order(order: Order, message: &Message, death: Death) -> Result<(), Failure> {
    let reason = death.failure.and_then(|failure| failure.code).unwrap_or(death.reason);
    sql::execute(
        "INSERT INTO refused_order (message_id, goods_id, quantity, reason) VALUES (?, ?, ?, ?)",
        (&message.id, order.goods_id, order.quantity, reason),
    )?;
    Ok(())
}

/// For demonstrations: the classic example throws half of the time after its UPDATE, to show that the UPDATE is rolled
/// back. Here the config value `fail_after_update` gives the share of attempts that do, 0 to 1. Which ones follows from
/// message id and attempt, so that a run can be repeated.
fn fail_sometimes(message_id: &str) -> Result<(), Failure> {
    let Some(share) = Context.config("fail_after_update") else { return Ok(()) };
    let share: f64 = match share.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => share,
        _ => {
            let message = format!("the config value fail_after_update is {share:?}; expected a number from 0 to 1");
            return Err(Failure::transient("bad-config", message));
        }
    };
    let attempt = Context.attempt();
    match unlucky(message_id, attempt, share) {
        true => Err(Failure::transient("simulated", format!("attempt {attempt} fails, as fail_after_update demands"))),
        false => Ok(()),
    }
}

/// Whether this attempt is one of the `share` that fail.
pub fn unlucky(message_id: &str, attempt: u32, share: f64) -> bool {
    // FNV-1a, and the finalizer of MurmurHash3, which spreads the last byte over all bits.
    let bytes = message_id.bytes().chain(attempt.to_le_bytes());
    let mut hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    let millionths = u32::try_from(hash % 1_000_000).unwrap_or(0);
    f64::from(millionths) < share * 1_000_000.0
}
