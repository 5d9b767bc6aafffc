//! What the suites stand on: private servers, hosts as child processes, and waits that end.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use std::time::Duration;
//!
//! use hapax_tests::proc::Launch;
//! use hapax_tests::servers::shared;
//! use hapax_tests::wait_until;
//!
//! let vhost = shared().rabbit().await?.vhost("orders").await?;
//! let database = shared().mariadb().await?.fresh_database("orders").await?;
//! vhost.declare_queue("orders", serde_json::json!({})).await?;
//! println!("broker {}, ledger {}", vhost.url(), database.url());
//!
//! let mut host = Launch::hapax(["run", "-c", "hapax.toml"]).name("host-a").start()?;
//! wait_until(Duration::from_secs(30), "the queue to drain", async || {
//!     vhost.queue("orders").await.is_ok_and(|queue| queue.messages == 0)
//! })
//! .await?;
//! host.kill9().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything started here dies with the process that started it, also when that is killed with SIGKILL.

pub mod admin;
pub mod component;
mod guard;
pub mod proc;
pub mod proxy;
pub mod relay;
mod result;
pub mod servers;
mod tree;
pub mod usage;
pub mod vhost;
mod wait;

pub use result::{TestFailure, TestResult};
pub use tree::{descendants, is_stopped};
pub use wait::{wait_for, wait_until};
