//! `hapax --version`: what this binary was built from, and what it was tested with.

/// The wasm engine's version; a test compares it with `Cargo.lock`.
macro_rules! wasmtime {
    () => {
        "48.0.8"
    };
}

/// For `-V`.
pub(super) const SHORT: &str = env!("CARGO_PKG_VERSION");

/// For `--version`.
pub(super) const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit    ",
    env!("HAPAX_COMMIT"),
    "\ncompiler  ",
    env!("HAPAX_RUSTC"),
    "\nengine    wasmtime ",
    wasmtime!(),
    "\ncontract  hapax:handler@0.1.0",
    "\ntested    RabbitMQ 3.10, Redis 7.0, MariaDB 10.11, PostgreSQL 15, SQLite bundled",
);

#[cfg(test)]
mod tests {
    #[test]
    fn the_engine_is_the_one_that_is_linked() {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap();
        assert!(lock.contains(concat!("name = \"wasmtime\"\nversion = \"", wasmtime!(), "\"")));
    }

    #[test]
    fn the_contract_is_the_one_that_is_served() {
        assert!(super::LONG.contains(&format!("hapax:handler@{}\n", crate::guest::module::CONTRACT)));
    }
}
