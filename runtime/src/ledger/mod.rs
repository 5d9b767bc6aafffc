//! The ledger: what SQL remembers of every message.

mod calendar;
pub mod database;
mod gate;
pub mod mysql;
pub mod postgres;
mod scan;
pub mod sqlite;
pub mod value;
