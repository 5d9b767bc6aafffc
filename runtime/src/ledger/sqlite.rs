//! ledger/sqlite.
