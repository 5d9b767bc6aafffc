//! lock/local.
