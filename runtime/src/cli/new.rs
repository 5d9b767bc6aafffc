//! `hapax new`: a handler project.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::error::{failure, usage};
use super::output::{say, tell};

pub(super) const HELP: &str = "\
Examples:
  hapax new accept-order
  cd accept-order && cargo test

What is in it: src/lib.rs (a handler, its compensation and their tests), schema.sql and message.json to try it with \
`hapax invoke`, hapax.toml to run it on files without a server, and a README with every command.

Exit codes: 0 made, 1 a file could not be written, or the folder is there already, 2 the name cannot be a project's.";

/// Make a handler project in Rust: a handler, its tests, a config
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The name of project, consumer and queue: lower-case letters, digits, `-` and `_`
    name: String,
    /// Where to make it; a folder of that name here by default
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// A checkout of the SDK (its folder `guest-sdk/rust`), instead of the published crate
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

macro_rules! template {
    ($file:literal) => {
        include_str!(concat!("../../../guest-sdk/rust/template/", $file))
    };
}

/// The files of the template, and where they go.
const FILES: [(&str, &str); 7] = [
    ("Cargo.toml", template!("Cargo.toml")),
    ("README.md", template!("README.md")),
    (".gitignore", template!("gitignore")),
    ("hapax.toml", template!("hapax.toml")),
    ("message.json", template!("message.json")),
    ("schema.sql", template!("schema.sql")),
    ("src/lib.rs", template!("src/lib.rs")),
];

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check_name(&args.name)?;
    let folder = args.path.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let sdk = dependency(args.sdk.as_deref())?;
    if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        let hint = "choose another name, or another folder with --path DIR";
        return Err(failure(format!("{} is there already, and not empty", folder.display()), hint).into());
    }
    for (name, content) in FILES {
        let path = folder.join(name);
        let content = content.replace("{{name}}", &args.name).replace("{{hapax-guest}}", &sdk);
        let write = || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(&path, content)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    say!("made {} in {}:", args.name, folder.display())?;
    FILES.iter().try_for_each(|(name, _)| say!("  {name}"))?;
    say!("\nnext:")?;
    say!("  cd {}", folder.display())?;
    say!("  cargo test")?;
    say!("  rustup target add wasm32-wasip2 && cargo build --release --target wasm32-wasip2")?;
    let module = "target/wasm32-wasip2/release/handler.wasm";
    say!("  hapax invoke {module} --message message.json --schema schema.sql")?;
    if args.sdk.is_none() {
        tell!("note: it takes hapax-guest {} from crates.io; --sdk DIR takes a checkout", env!("CARGO_PKG_VERSION"));
    }
    Ok(ExitCode::SUCCESS)
}

/// It becomes the name of a crate, a consumer, a queue and a file.
fn check_name(name: &str) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let reserved = ["test", "core", "std", "alloc", "handler", "hapax-guest"];
    let hint = "lower-case letters, digits, `-` and `_`, a letter first, at most 60: accept-order";
    let bad = !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(plain) || name.len() > 60;
    if bad || reserved.contains(&name) {
        return Err(usage(format!("`{name}` cannot be the name of a project"), hint).into());
    }
    Ok(())
}

/// What stands behind `hapax-guest =` in the manifest.
fn dependency(sdk: Option<&Path>) -> anyhow::Result<String> {
    let Some(folder) = sdk else {
        return Ok(format!("\"{}\"", env!("CARGO_PKG_VERSION")));
    };
    let absolute = folder.canonicalize().with_context(|| format!("cannot find the SDK in {}", folder.display()))?;
    let path = toml::Value::String(absolute.display().to_string());
    Ok(format!("{{ path = {path} }}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_suit_a_crate_and_a_queue() {
        for name in ["accept-order", "a", "a_1"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "1a", "A", "a b", "../a", "ä", "test", &"a".repeat(61)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn every_placeholder_of_the_template_is_known() {
        for (file, content) in FILES {
            let left = content.replace("{{name}}", "").replace("{{hapax-guest}}", "");
            assert!(!left.contains("{{"), "{file}");
        }
    }
}
