//! Hapax: a host runtime that consumes AMQP queues and calls business handlers compiled to WebAssembly components, so
//! that every message takes effect once. See `ARCHITECTURE.md` for the path of a message and the invariants.

pub mod broker;
pub mod cli;
pub mod config;
pub mod consumer;
pub mod guest;
pub mod host;
pub mod identity;
pub mod ledger;
pub mod lock;
pub mod message;
pub mod outcome;
pub mod pipeline;
pub mod relay;
pub mod retry;
pub mod sabotage;
pub mod telemetry;
