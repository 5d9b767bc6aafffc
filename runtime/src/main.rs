//! Hapax.
fn main() {}
