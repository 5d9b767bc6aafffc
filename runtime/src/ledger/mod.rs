//! The ledger: what SQL remembers of every message.

pub mod database;
pub mod mysql;
pub mod postgres;
pub mod sqlite;
pub mod value;
