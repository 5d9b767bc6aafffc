//! Whole files: what good ones mean, and how bad ones are reported.

mod bad;
mod fuzz;
mod good;
mod reference;

use super::{Config, Diagnostic};

/// The least that works, to be followed by more keys of its consumer.
const MINIMAL: &str = r#"
[broker]
url = "amqp://localhost/%2f"
[database]
url = "mysql://localhost/shop"
[consumers.orders]
queue = "orders"
module = "orders.wasm"
"#;

fn env(name: &str) -> Option<String> {
    match name {
        "AMQP_PASSWORD" => Some("s3cr3t/@".to_owned()),
        "EMPTY" => Some(String::new()),
        "LANES" => Some("3".to_owned()),
        "HOME" => Some("/home/shop".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
    Config::parse_with_env(text, "conf/hapax.toml", &env)
}

fn render(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

/// A config that has nothing wrong with it, not even a warning.
fn clean(text: &str) -> Config {
    match parse(text) {
        Ok((config, warnings)) if warnings.is_empty() => config,
        Ok((_, found)) | Err(found) => panic!("{}", render(&found)),
    }
}
