//! How a statement is sent, so that the server converts what this program does not.
//!
//! A parameter whose value has no binary form for the reported type is sent as text, and its placeholder becomes
//! `CAST(CAST($1 AS text) AS schema.type)`. A result with columns of types that this program does not read becomes
//! `WITH hapax_q(c1, …) AS MATERIALIZED (statement) SELECT c1, format('%s', c2), …`: a common table expression and not
//! a sub-select, since statements that change data may stand there too, and materialized, which keeps the order.

use std::fmt::Write;
use std::sync::Arc;

use sqlx::postgres::PgTypeInfo;

use super::super::database::DbError;
use super::super::gate::invalid;
use super::super::scan::{Rules, Scanned, With, scan};
use super::decode::Reader;

/// At most this many ways to send one statement; then the oldest is forgotten.
const MAX_VARIANTS: usize = 16;

/// How a parameter crosses the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// NULL, which every way suits.
    Null,
    /// In the binary form of the reported type.
    Native,
    /// As text, cast by the server.
    Text,
    /// As text that is a point in time, cast by way of `timestamptz`: cast directly to `timestamp`, text loses its
    /// offset without a word.
    Instant,
    /// As `int8[]`, cast by the server.
    Ints,
    /// As `text[]`, cast by the server.
    Texts,
    /// As `bytea[]`, cast by the server.
    Blobs,
}

impl Wire {
    fn suits(self, other: Self) -> bool {
        self == other || other == Self::Null
    }

    /// The expression that takes a placeholder's place.
    fn cast(self, placeholder: u32, target: &str) -> Option<String> {
        let source = match self {
            Self::Null | Self::Native => return None,
            Self::Text => "pg_catalog.text",
            Self::Instant => {
                return Some(format!(
                    "CAST(CAST(CAST(${placeholder} AS pg_catalog.text) AS pg_catalog.timestamptz) AS {target})"
                ));
            }
            Self::Ints => "pg_catalog._int8",
            Self::Texts => "pg_catalog._text",
            Self::Blobs => "pg_catalog._bytea",
        };
        Some(format!("CAST(CAST(${placeholder} AS {source}) AS {target})"))
    }
}

/// What a type is called.
#[derive(Debug, Clone)]
pub(super) struct TypeName {
    /// With its schema, for a CAST.
    pub(super) qualified: String,
    /// As the database displays it.
    pub(super) display: String,
    /// Its text form is all there is to it: enums and relatives of text.
    pub(super) is_text: bool,
}

/// The name by which text can call a prepared statement: `hapax_` and this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// It was not asked for.
    NotYet,
    /// The server knows it.
    Is(u32),
    /// The server does not take the statement that way.
    Never,
}

impl Name {
    pub(super) fn number(self) -> Option<u32> {
        match self {
            Self::Is(number) => Some(number),
            Self::NotYet | Self::Never => None,
        }
    }
}

/// What is known of a statement once it was prepared.
pub(super) struct Plan {
    /// What it is called where several go in one round trip.
    pub(super) name: Name,
    /// The types reported for its parameters.
    pub(super) parameters: Vec<PgTypeInfo>,
    /// The names of its columns.
    pub(super) columns: Vec<String>,
    /// How its columns are read, if they come as they are or as text.
    pub(super) readers: Vec<Reader>,
    variants: Vec<Variant>,
}

/// One way to send a statement.
#[derive(Clone)]
pub(super) struct Variant {
    /// How each parameter crosses the wire.
    pub(super) wires: Vec<Wire>,
    wrapped: bool,
    /// What is sent.
    pub(super) sql: Arc<str>,
}

impl Plan {
    pub(super) fn new(parameters: Vec<PgTypeInfo>, columns: Vec<String>, readers: Vec<Reader>) -> Self {
        Self { name: Name::NotYet, parameters, columns, readers, variants: Vec::new() }
    }

    /// True where the result has to be wrapped to be readable.
    pub(super) fn needs_wrapping(&self) -> bool {
        self.readers.iter().any(|reader| matches!(reader, Reader::Cast(_)))
    }

    /// The way that suits these parameters, if it is known.
    pub(super) fn find(&self, wires: &[Wire], wrapped: bool) -> Option<&Variant> {
        self.variants.iter().find(|variant| {
            variant.wrapped == wrapped
                && variant.wires.len() == wires.len()
                && variant.wires.iter().zip(wires).all(|(have, need)| have.suits(*need))
        })
    }

    /// Remembers a way.
    pub(super) fn remember(&mut self, variant: Variant) {
        if self.variants.len() >= MAX_VARIANTS {
            self.variants.remove(0);
        }
        self.variants.push(variant);
    }
}

/// Writes a way to send a statement. `targets` names the type of each parameter that is cast.
pub(super) fn variant(
    sql: &str,
    wires: &[Wire],
    targets: &[Option<TypeName>],
    wrap: Option<&[Reader]>,
) -> Result<Variant, DbError> {
    // What is NULL now may be cast later.
    let wires: Vec<Wire> = wires.iter().map(|wire| if *wire == Wire::Null { Wire::Native } else { *wire }).collect();
    let scanned = scan(sql, Rules::Postgres);
    let text = match wrap {
        None => cast(sql, &scanned, 0..sql.len(), &wires, targets),
        Some(readers) => wrapped(sql, &scanned, &wires, targets, readers)?,
    };
    Ok(Variant { wires, wrapped: wrap.is_some(), sql: text.into() })
}

/// A part of a statement with its placeholders cast.
fn cast(
    sql: &str,
    scanned: &Scanned<'_>,
    part: std::ops::Range<usize>,
    wires: &[Wire],
    targets: &[Option<TypeName>],
) -> String {
    let mut text = String::with_capacity(sql.len() + 64);
    let mut copied = part.start;
    for (number, token) in scanned.placeholders().filter(|(_, token)| part.contains(&token.start)) {
        let index = (number as usize).wrapping_sub(1);
        let wire = wires.get(index).copied().unwrap_or(Wire::Native);
        let target = targets.get(index).and_then(Option::as_ref);
        if let Some(expression) = target.and_then(|target| wire.cast(number, &target.qualified)) {
            text.push_str(&sql[copied..token.start]);
            text.push_str(&expression);
            copied = token.end;
        }
    }
    text.push_str(&sql[copied..part.end]);
    text
}

fn wrapped(
    sql: &str,
    scanned: &Scanned<'_>,
    wires: &[Wire],
    targets: &[Option<TypeName>],
    readers: &[Reader],
) -> Result<String, DbError> {
    let end = scanned.end();
    let (list, main) = match scanned.with_list() {
        With::None => ("WITH ".to_owned(), 0),
        With::Main(at) if at <= end => (cast(sql, scanned, 0..at, wires, targets) + ", ", at),
        With::Main(_) | With::Unreadable => {
            return Err(invalid(
                "the result has a column of a type that is read as text only, and the statement's WITH list is not \
                 understood: cast the column to text in the statement",
            ));
        }
    };
    let names: Vec<String> = (1..=readers.len()).map(|number| format!("c{number}")).collect();
    let mut text = format!("{list}hapax_q({}) AS MATERIALIZED (\n", names.join(", "));
    text.push_str(&cast(sql, scanned, main..end, wires, targets));
    text.push_str("\n) SELECT ");
    for (index, (name, reader)) in names.iter().zip(readers).enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = match reader {
            // What the type's output function says. A cast to text is another function for some: an inet gets its
            // netmask. And format makes an empty text of NULL.
            Reader::Cast(_) => {
                write!(text, "{comma}CASE WHEN {name} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {name}) END")
            }
            _ => write!(text, "{comma}{name}"),
        };
    }
    text.push_str(" FROM hapax_q");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> TypeName {
        TypeName { qualified: name.to_owned(), display: name.to_owned(), is_text: false }
    }

    #[test]
    fn placeholders_are_cast_where_needed() {
        let sql = "UPDATE t SET a = $1, b = '$2' WHERE c = $2 AND d = $1 -- $2";
        let made = variant(sql, &[Wire::Native, Wire::Text], &[None, Some(named("pg_catalog.uuid"))], None)
            .expect("a variant");
        assert_eq!(
            &*made.sql,
            "UPDATE t SET a = $1, b = '$2' WHERE c = CAST(CAST($2 AS pg_catalog.text) AS pg_catalog.uuid) AND d = $1 -- $2"
        );
    }

    #[test]
    fn results_are_wrapped_behind_a_with_list() {
        let readers = [Reader::Int4, Reader::Cast(named("inet"))];
        let plain = variant("SELECT a, b FROM t ORDER BY a; -- end", &[], &[], Some(&readers)).expect("a variant");
        assert_eq!(
            &*plain.sql,
            "WITH hapax_q(c1, c2) AS MATERIALIZED (\nSELECT a, b FROM t ORDER BY a\n) SELECT c1, CASE WHEN c2 IS DISTINCT FROM NULL THEN pg_catalog.format('%s', c2) END FROM hapax_q"
        );
        let list = "WITH x AS (DELETE FROM t WHERE k = $1 RETURNING a, b) SELECT * FROM x WHERE a = $2";
        let made =
            variant(list, &[Wire::Instant, Wire::Native], &[Some(named("pg_catalog.date")), None], Some(&readers));
        assert_eq!(
            &*made.expect("a variant").sql,
            "WITH x AS (DELETE FROM t WHERE k = CAST(CAST(CAST($1 AS pg_catalog.text) AS pg_catalog.timestamptz) AS pg_catalog.date) RETURNING a, b) , \
             hapax_q(c1, c2) AS MATERIALIZED (\nSELECT * FROM x WHERE a = $2\n) SELECT c1, CASE WHEN c2 IS DISTINCT FROM NULL THEN pg_catalog.format('%s', c2) END FROM hapax_q"
        );
    }

    #[test]
    fn a_way_serves_nulls_too() {
        let mut plan = Plan::new(Vec::new(), Vec::new(), Vec::new());
        let made =
            variant("SELECT $1, $2", &[Wire::Text, Wire::Null], &[Some(named("x")), None], None).expect("a variant");
        plan.remember(made);
        assert!(plan.find(&[Wire::Null, Wire::Native], false).is_some());
        assert!(plan.find(&[Wire::Text, Wire::Null], false).is_some());
        assert!(plan.find(&[Wire::Native, Wire::Native], false).is_none());
        assert!(plan.find(&[Wire::Text, Wire::Null], true).is_none());
    }
}
