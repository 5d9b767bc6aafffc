//! What `hapax new` writes: its source compiles, and its own tests pass, as part of this crate's.
#![cfg(not(target_arch = "wasm32"))]

#[expect(unreachable_pub, reason = "there it is the root of a crate")]
#[path = "../template/src/lib.rs"]
mod template;

/// Every file, as `hapax new` embeds it.
const FILES: [(&str, &str); 7] = [
    ("Cargo.toml", include_str!("../template/Cargo.toml")),
    ("src/lib.rs", include_str!("../template/src/lib.rs")),
    ("README.md", include_str!("../template/README.md")),
    ("hapax.toml", include_str!("../template/hapax.toml")),
    ("schema.sql", include_str!("../template/schema.sql")),
    ("message.json", include_str!("../template/message.json")),
    (".gitignore", include_str!("../template/gitignore")),
];

#[test]
fn only_known_placeholders_are_used() {
    for (name, text) in FILES {
        let filled = text.replace("{{name}}", "my-handler").replace("{{hapax-guest}}", "\"0.1.0\"");
        assert!(!filled.contains("{{"), "{name}: {filled}");
    }
}

#[test]
fn its_message_is_one_that_its_handler_takes() {
    let fake = hapax_guest::testing::Fake::new();
    fake.when("INSERT INTO orders").affects(1);
    let message = hapax_guest::Message::new(include_str!("../template/message.json"));
    fake.handle::<template::accept_order>(message).unwrap();
}

#[test]
fn its_config_grants_what_its_handler_uses() {
    let config = include_str!("../template/hapax.toml");
    let source = include_str!("../template/src/lib.rs");
    for (used, grant) in [("INSERT INTO orders", "orders = ["), ("INSERT INTO refused_orders", "refused_orders = [")] {
        assert!(source.contains(used) && config.contains(grant), "{used}");
    }
}
