//! Grants as they are written on the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use crate::guest::grants::{ConfigValues, ConsumerContext, Grants, Limits, PublishGrant};
use crate::guest::sql_guard::{TableGrants, Verb};
use crate::ledger::database::Dialect;

const VERBS: [Verb; 4] = [Verb::Select, Verb::Insert, Verb::Update, Verb::Delete];

/// One `--grant`.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Grant {
    /// `TABLE=VERB,…`
    Table(String, BTreeSet<Verb>),
    /// `publish:EXCHANGE=PATTERN`
    Publish(PublishGrant),
    /// `function:NAME`
    Function(String),
    /// `config:KEY=VALUE`
    Config(String, String),
}

impl FromStr for Grant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("function:") {
            return Ok(Self::Function(name.to_lowercase()));
        }
        let Some((what, value)) = text.split_once('=') else {
            return Err("write TABLE=select,update, publish:EXCHANGE=PATTERN, function:NAME or config:KEY=VALUE".into());
        };
        Ok(match what.split_once(':') {
            Some(("publish", exchange)) => {
                Self::Publish(PublishGrant { exchange: exchange.to_owned(), routing_key: value.to_owned() })
            }
            Some(("config", key)) => Self::Config(key.to_owned(), value.to_owned()),
            _ => Self::Table(what.to_owned(), value.split(',').map(verb).collect::<Result<_, _>>()?),
        })
    }
}

fn verb(word: &str) -> Result<Verb, String> {
    let found = VERBS.into_iter().find(|verb| verb.as_str().eq_ignore_ascii_case(word.trim()));
    found.ok_or_else(|| format!("`{word}` cannot be granted on a table; select, insert, update and delete can"))
}

/// What the handler may do in the sandbox: by default everything to its tables, and publish anywhere.
pub(super) fn context(given: &[Grant], tables: &[String]) -> ConsumerContext {
    let mut grants = Grants { config: ConfigValues(BTreeMap::new()), ..Grants::default() };
    for grant in given {
        match grant.clone() {
            Grant::Table(table, verbs) => grants.tables.0.entry(table).or_default().extend(verbs),
            Grant::Publish(publish) => grants.publish.push(publish),
            Grant::Function(name) => grants.functions.push(name),
            Grant::Config(key, value) => {
                grants.config.0.insert(key, value);
            }
        }
    }
    if grants.tables == TableGrants::default() {
        grants.tables = TableGrants(tables.iter().map(|table| (table.clone(), VERBS.into())).collect());
    }
    if grants.publish.is_empty() {
        grants.publish.push(PublishGrant::anywhere());
    }
    let (name, ping_every) = ("invoke", Duration::from_secs(60));
    ConsumerContext::new(name, name, Dialect::Sqlite, grants, Limits::default(), None, ping_every)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_read_from_the_command_line() {
        let publish = PublishGrant { exchange: String::new(), routing_key: "a=b".into() };
        for (text, grant) in [
            ("stock=select,UPDATE", Grant::Table("stock".into(), [Verb::Select, Verb::Update].into())),
            ("publish:=a=b", Grant::Publish(publish)),
            ("function:Soundex", Grant::Function("soundex".into())),
            ("config:url=http://x:1", Grant::Config("url".into(), "http://x:1".into())),
        ] {
            assert_eq!(text.parse(), Ok(grant), "{text}");
        }
        assert!("stock=drop".parse::<Grant>().unwrap_err().contains("`drop`"));
        assert!("stock".parse::<Grant>().unwrap_err().contains("TABLE=select"));
    }

    #[test]
    fn without_grants_the_tables_of_the_schema_and_every_exchange_are_free() {
        let free = context(&[], &["stock".to_owned()]).grants;
        assert_eq!(free.tables.0["stock"].len(), 4);
        assert!(free.publish[0].allows("shop", "a.b") && free.publish[0].allows("", "q"));
        let narrow =
            context(&["a=select".parse().unwrap(), "publish:x=y".parse().unwrap()], &["stock".to_owned()]).grants;
        assert!(!narrow.tables.0.contains_key("stock"));
        assert!(!narrow.publish.iter().any(|grant| grant.allows("shop", "y")));
    }
}
