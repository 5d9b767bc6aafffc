//! ledger/postgres.
