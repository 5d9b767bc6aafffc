//! reduce-stock.
