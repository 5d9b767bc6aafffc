//! `grants`: what a consumer's module may do. Without a grant it may do nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::reader::{Field, Problem, Reader};
use super::secret::Secret;

/// What may be done to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// Read rows.
    Select,
    /// Add rows.
    Insert,
    /// Change rows.
    Update,
    /// Remove rows.
    Delete,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VERBS.iter().find(|(_, verb)| verb == self).map_or("", |(word, _)| word))
    }
}

const VERBS: [(&str, Verb); 4] =
    [("select", Verb::Select), ("insert", Verb::Insert), ("update", Verb::Update), ("delete", Verb::Delete)];

/// Where messages may be published to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishGrant {
    /// The exchange; empty for the default exchange.
    pub exchange: String,
    /// A topic pattern: words between dots, of which `*` stands for one and `#` for any number.
    pub routing_key: String,
}

/// The grants of one consumer. There is no grant for network access.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    /// Tables, as `name` or `schema.name`, and what may be done to each.
    pub tables: BTreeMap<String, BTreeSet<Verb>>,
    /// SQL functions beyond the built-in allow-list, in lower case.
    pub functions: BTreeSet<String>,
    /// Where messages may be published to.
    pub publish: Vec<PublishGrant>,
    /// Values that the module can read. They may be credentials, and are shown to nobody else.
    pub config: BTreeMap<String, Secret>,
}

/// Reads `grants`.
pub(super) fn grants(reader: &mut Reader<'_>) -> Grants {
    Grants { tables: tables(reader), functions: functions(reader), publish: publish(reader), config: config(reader) }
}

fn tables(reader: &mut Reader<'_>) -> BTreeMap<String, BTreeSet<Verb>> {
    let entries = reader.optional("tables", Field::entries).unwrap_or_default();
    let mut tables = BTreeMap::new();
    for (key, field) in entries {
        if let Err(problem) = table_name(&field.name) {
            reader.context.error(key, problem);
        }
        let verbs = field.check(Field::items).unwrap_or_default();
        let unknown = |word: &str| format!("`{word}` cannot be granted on a table");
        let verbs: BTreeSet<Verb> =
            verbs.iter().filter_map(|verb| verb.check(|f| f.choice_or(&VERBS, unknown))).collect();
        tables.insert(field.name, verbs);
    }
    tables
}

fn table_name(name: &str) -> Result<(), Problem> {
    let parts: Vec<&str> = name.split('.').map(|part| part.trim_matches(['"', '`', '[', ']', ' '])).collect();
    if parts.iter().any(|part| part.to_lowercase().starts_with("hapax_")) {
        return Err(Problem::new("the tables of Hapax itself cannot be granted"));
    }
    if name.contains('*') {
        return Err(Problem::new("tables are granted one by one, by name"));
    }
    if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) || parts.join(".") != name {
        return Err(Problem::new(format!("`{name}` is not the name of a table"))
            .help("write name, or \"schema.name\" in quotation marks, and none inside"));
    }
    Ok(())
}

fn functions(reader: &mut Reader<'_>) -> BTreeSet<String> {
    let items = reader.optional("functions", Field::items).unwrap_or_default();
    items.iter().filter_map(|item| item.check(function_name)).collect()
}

fn function_name(field: &Field<'_>) -> Result<String, Problem> {
    let name = field.text()?;
    let is_word = |word: &str| {
        !word.is_empty()
            && !word.starts_with(|c: char| c.is_ascii_digit())
            && word.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    if name.split('.').count() <= 2 && name.split('.').all(is_word) {
        return Ok(name.to_owned());
    }
    Err(Problem::new("not the name of a function").help("a name alone, without parentheses: \"similarity\""))
}

fn publish(reader: &mut Reader<'_>) -> Vec<PublishGrant> {
    let items = reader.optional("publish", Field::items).unwrap_or_default();
    items.iter().filter_map(|item| table_item(reader, "publish", item, publish_grant)).flatten().collect()
}

fn publish_grant(reader: &mut Reader<'_>) -> Option<PublishGrant> {
    let exchange = reader.require("exchange", "\"shop\"", Field::name_or_empty);
    let routing_key = reader.require("routing_key", "\"stock.*\"", |f| topic_pattern(f.name_or_empty()?));
    Some(PublishGrant { exchange: exchange?, routing_key: routing_key? })
}

fn topic_pattern(pattern: String) -> Result<String, Problem> {
    match pattern.split('.').find(|word| word.len() > 1 && word.contains(['*', '#'])) {
        None => Ok(pattern),
        Some(word) => Err(Problem::new(format!("`{word}` is not a word of a pattern"))
            .help("`*` stands for one whole word between dots, and `#` for any number of them: \"stock.*\"")),
    }
}

/// Reads one table of an array.
pub(super) fn table_item<'a, T>(
    reader: &Reader<'a>,
    key: &str,
    item: &Field<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> T,
) -> Option<T> {
    if item.node.get_ref().as_table().is_none() {
        reader.context.error(item.span(), item.mismatch("an array of tables"));
        return None;
    }
    Some(reader.below(key, Some(item), read))
}

fn config(reader: &mut Reader<'_>) -> BTreeMap<String, Secret> {
    let entries = reader.optional("config", Field::entries).unwrap_or_default();
    let value = |field: Field<'_>| Some((field.name.clone(), Secret::new(field.check(Field::text)?)));
    entries.into_iter().filter_map(|(_, field)| value(field)).collect()
}
