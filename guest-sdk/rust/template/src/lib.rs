//! {{name}}: a message handler for Hapax.

use hapax_guest::{Death, Failure, compensation, handler, outbox, sql};
use serde::{Deserialize, Serialize};

/// What the messages carry, as JSON.
#[derive(Debug, Deserialize, Serialize)]
pub struct Order {
    pub id: i64,
    pub customer: String,
    pub amount: i64,
}

/// Handles one message. It may be called again for the same message; what it does through `sql` and `outbox` takes
/// effect once.
#[handler]
pub fn accept_order(order: Order) -> Result<(), Failure> {
    if order.amount <= 0 {
        return Err(Failure::permanent("invalid-amount", format!("order {}: amount {}", order.id, order.amount)));
    }
    sql::execute(
        "INSERT INTO orders (id, customer, amount) VALUES (?, ?, ?)",
        (order.id, &order.customer, order.amount),
    )?;
    outbox::publish("orders", "order.accepted").json(&order)?.send()?;
    Ok(())
}

/// Runs once if a message will never be handled. Delete it if there is nothing to undo.
#[compensation]
pub fn refuse_order(order: Order, death: Death) -> Result<(), Failure> {
    sql::execute("INSERT INTO refused_orders (id, reason) VALUES (?, ?)", (order.id, death.reason))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use hapax_guest::testing::Fake;
    use hapax_guest::{Message, sql::ErrorKind};

    use super::*;

    fn message(amount: i64) -> Message {
        Message::json(&Order { id: 7, customer: "Ada".into(), amount })
    }

    #[test]
    fn an_order_is_stored_and_announced() {
        let fake = Fake::new();
        fake.when("INSERT INTO orders").affects(1);
        fake.handle::<accept_order>(message(100)).unwrap();
        assert_eq!(fake.statements()[0].params, [7.into(), "Ada".into(), 100.into()]);
        assert_eq!(fake.outbox()[0].routing_key, "order.accepted");
    }

    #[test]
    fn an_order_without_an_amount_is_refused_for_good() {
        let fake = Fake::new();
        let failure = fake.handle::<accept_order>(message(0)).unwrap_err();
        assert_eq!(failure.code.as_deref(), Some("invalid-amount"));
    }

    #[test]
    fn nothing_is_announced_when_the_database_refuses() {
        let fake = Fake::new();
        fake.when("INSERT INTO orders").fails(ErrorKind::Constraint);
        assert!(fake.handle::<accept_order>(message(100)).is_err());
        assert!(fake.outbox().is_empty());
    }

    #[test]
    fn a_refused_order_is_recorded() {
        let fake = Fake::new();
        fake.when("INSERT INTO refused_orders").affects(1);
        let death = Death { reason: "permanent".into(), attempts: 1, failure: None };
        fake.compensate::<refuse_order>(message(0), death).unwrap();
    }
}
