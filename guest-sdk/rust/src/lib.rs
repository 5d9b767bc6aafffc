//! Write message handlers for [Hapax](https://github.com/hapax-rs/hapax): one function in Rust, compiled to a
//! WebAssembly component.
//!
//! The host takes messages from AMQP queues and calls the handler so that what it does through this crate takes effect
//! once, whatever is duplicated or crashes: the SQL runs in the transaction that records the message as done, and the
//! outbox publishes if, and only if, that transaction commits. So a handler is business code and nothing else.
//!
//! ```
//! use hapax_guest::{Death, Failure, handler, compensation, outbox, sql};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! struct Order {
//!     goods_id: i64,
//!     quantity: i64,
//! }
//!
//! #[handler]
//! fn reduce_stock(order: Order) -> Result<(), Failure> {
//!     let reduced = sql::execute(
//!         "UPDATE stock SET quantity = quantity - ? WHERE goods_id = ? AND quantity >= ?",
//!         (order.quantity, order.goods_id, order.quantity),
//!     )?;
//!     if reduced.rows_affected == 0 {
//!         return Err(Failure::permanent("out-of-stock", format!("goods {} are out of stock", order.goods_id)));
//!     }
//!     outbox::publish("shop", "stock.reduced").json(&order.goods_id)?.send()?;
//!     Ok(())
//! }
//!
//! // Runs once if the message will never be handled.
//! #[compensation]
//! fn refuse(order: Order, death: Death) -> Result<(), Failure> {
//!     sql::execute("INSERT INTO refused (goods_id, reason) VALUES (?, ?)", (order.goods_id, death.reason))?;
//!     Ok(())
//! }
//!
//! // On the host, without wasm and without a database:
//! use hapax_guest::{Message, testing::Fake};
//!
//! let fake = Fake::new();
//! fake.when("UPDATE stock").affects(0);
//! let failure = fake.handle::<reduce_stock>(Message::text(r#"{"goods_id": 7, "quantity": 2}"#)).unwrap_err();
//! assert_eq!(failure.code.as_deref(), Some("out-of-stock"));
//! ```
//!
//! Build with `cargo build --release --target wasm32-wasip2`, from a library crate with `crate-type = ["cdylib", "rlib"]`.
//!
//! # What a handler may rely on
//! - It may be called again for the same message: after a crash, a failure or a lost connection. What it did through
//!   [`sql`] and [`outbox`] in an attempt that did not commit is gone. For other systems there is
//!   [`Context::idempotency_key`].
//! - Instances are reused: a `static` may survive from message to message, and may not.
//! - After any failed SQL statement the attempt is lost (see [`sql`]). A panic is a failed attempt, too.

// The macros name this crate, also in its own tests.
extern crate self as hapax_guest;

mod argument;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod bindings;
mod context;
mod failure;
mod message;
pub mod outbox;
pub mod sql;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

#[cfg(target_arch = "wasm32")]
use bindings::message_handler::hapax::handler as host;
#[cfg(not(target_arch = "wasm32"))]
use testing::host;

pub use argument::{Compensation, FromMessage, Handler, Json};
pub use context::Context;
pub use failure::{Advice, Death, Failure};
pub use hapax_guest_macros::{compensation, handler};
pub use message::{HeaderValue, Message, Properties};

/// The README's examples are tests.
#[cfg(all(doctest, not(target_arch = "wasm32")))]
#[doc = include_str!("../README.md")]
struct Readme;

/// What the macros' expansions call; no part of the public interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::argument::{ByFromMessage, ByJson, Returned, Tag, nothing_to_undo};
}
