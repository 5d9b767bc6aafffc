use std::collections::BTreeSet;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::*;
use super::{MINIMAL, clean, env};

const REFERENCE: &str = include_str!("../../../reference.toml");

/// The keys that stand behind `#`: without a default, or with one that follows from other keys.
const WITHOUT_DEFAULT: [&str; 9] = [
    "#broker.password",
    "#consumer.database",
    "#consumer.dead_letter",
    "#consumer.partition_by",
    "#consumer.prefetch.messages",
    "#database.password",
    "#listen",
    "#lock.password",
    "#module_cache.dir",
];

/// `#key = …` becomes `key = …`; prose has a space after its `#`.
fn uncommented() -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest.to_owned(),
        _ => line.to_owned(),
    };
    REFERENCE.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

/// `[defaults]` and each consumer hold the same keys: both are called `consumer` here.
fn generic(path: &str) -> String {
    let parts: Vec<&str> = path.trim_start_matches('.').split('.').collect();
    match parts.as_slice() {
        ["defaults", rest @ ..] => ["consumer"].iter().chain(rest).copied().collect::<Vec<_>>().join("."),
        ["consumers", _, rest @ ..] => ["consumer"].iter().chain(rest).copied().collect::<Vec<_>>().join("."),
        _ => parts.join("."),
    }
}

fn keys_of(table: &DeTable<'_>, path: &str, keys: &mut BTreeSet<String>) {
    for (key, value) in table.iter() {
        let path = format!("{path}.{}", key.get_ref());
        keys.insert(generic(&path));
        match value.get_ref() {
            DeValue::Table(table) => keys_of(table, &path, keys),
            DeValue::Array(items) => {
                items.iter().map(Spanned::get_ref).filter_map(DeValue::as_table).for_each(|t| keys_of(t, &path, keys));
            }
            _ => {}
        }
    }
}

fn keys_in(text: &str) -> BTreeSet<String> {
    let root = DeTable::parse(text).unwrap();
    let mut keys = BTreeSet::new();
    keys_of(root.get_ref(), "", &mut keys);
    keys
}

/// Every key that reading asks for.
fn keys_asked(text: &str) -> BTreeSet<String> {
    let root = DeTable::parse(text).unwrap();
    let context = Context::new(&env, Path::new(""));
    read(&context, root.get_ref(), Path::new("reference.toml"));
    let asked: BTreeSet<String> = context.asked.borrow().iter().map(|path| generic(path)).collect();
    asked
}

#[test]
fn the_reference_shows_every_key_and_no_other() {
    // What follows `e.g.` or a colon in the comments of empty arrays is shown in words only.
    let in_words = ["consumer.grants.publish.", "consumer.bindings.", "consumer.database."];
    let asked = keys_asked(&uncommented());
    let shown = keys_in(&uncommented());
    let missing: Vec<_> = asked.difference(&shown).collect();
    assert!(missing.iter().all(|key| in_words.iter().any(|prefix| key.starts_with(prefix))), "{missing:?}");
    let unknown: Vec<_> = shown.difference(&asked).cloned().collect();
    assert_eq!(unknown, Vec::<String>::new());
}

#[test]
fn every_key_that_has_a_default_stands_uncommented() {
    let commented: Vec<String> =
        keys_in(&uncommented()).difference(&keys_in(REFERENCE)).map(|key| format!("#{key}")).collect();
    // The members of the example tables among them do not count on their own.
    let commented: Vec<&str> =
        commented.iter().map(String::as_str).filter(|key| !key.starts_with("#consumer.dead_letter.")).collect();
    assert_eq!(commented, WITHOUT_DEFAULT);
}

#[test]
fn the_reference_shows_the_true_defaults() {
    let minimal = MINIMAL
        .replace("[consumers.orders]", "[consumers.example]")
        .replace("orders.wasm", "handler.wasm")
        .replace("mysql://localhost/shop", "mysql://localhost/hapax");
    assert_eq!(clean(REFERENCE), clean(&minimal));
}

#[test]
fn the_examples_behind_comment_signs_are_valid() {
    let text = uncommented().replace("file:/run/secrets/redis", "x").replace("file:/run/secrets/db", "x");
    let text = text.replace("local:\"", "redis://localhost\"");
    let config = clean(&text);
    assert!(config.listen.is_some() && config.consumers[0].dead_letter.is_some());
}
