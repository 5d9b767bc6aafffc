//! ledger/mysql.
