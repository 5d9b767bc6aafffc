//! Random statements.

use proptest::prelude::*;

use super::{DIALECTS, check, guard};
use crate::guest::sql_guard::lexer;
use crate::ledger::database::Dialect;

/// A random expression, as text.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("qty".to_owned()),
        Just("s.id".to_owned()),
        Just("?".to_owned()),
        Just("NULL".to_owned()),
        (0u32..1_000_000).prop_map(|n| n.to_string()),
        "[ -~é😀]{0,12}".prop_map(|text| format!("'{}'", text.replace('\'', "''").replace('\\', "/"))),
    ];
    leaf.prop_recursive(5, 40, 4, |inner| {
        prop_oneof![
            (
                inner.clone(),
                prop::sample::select(&["+", "-", "*", "/", "%", "=", "<>", "<", ">=", "AND", "OR", "||"][..]),
                inner.clone()
            )
                .prop_map(|(a, op, b)| format!("{a} {op} {b}")),
            inner.clone().prop_map(|a| format!("({a})")),
            inner.clone().prop_map(|a| format!("NOT ({a})")),
            inner.clone().prop_map(|a| format!("- ({a})")),
            inner.clone().prop_map(|a| format!("({a}) IS NOT NULL")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("coalesce({a}, {b})")),
            (inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(a, b, c)| format!("CASE WHEN {a} THEN {b} ELSE {c} END")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) IN (1, {b})")),
            inner.prop_map(|a| format!("(SELECT max({a}) FROM orders AS s)")),
        ]
    })
}

fn statement() -> impl Strategy<Value = String> {
    prop_oneof![
        (expression(), expression())
            .prop_map(|(a, b)| format!("SELECT {a} AS x FROM stock AS s WHERE {b} ORDER BY 1 LIMIT 5")),
        (expression(), expression()).prop_map(|(a, b)| format!("UPDATE stock SET qty = {a} WHERE {b}")),
        expression().prop_map(|a| format!("DELETE FROM stock WHERE {a}")),
        (expression(), expression()).prop_map(|(a, b)| format!("INSERT INTO stock (id, qty) VALUES ({a}, {b})")),
        (expression(), expression())
            .prop_map(|(a, b)| format!("SELECT {a} FROM stock AS s UNION SELECT {b} FROM orders AS s")),
    ]
}

/// Pieces of hostile texts, to be glued together.
fn piece() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "SELECT",
        "FROM",
        "hapax_inbox",
        "stock",
        "'",
        "\"",
        "`",
        "\\",
        "--",
        "/*",
        "*/",
        "/*!",
        "#",
        ";",
        "(",
        ")",
        ",",
        ".",
        "?",
        "$1",
        "$$",
        "@",
        ":",
        "=",
        "UNION",
        "WITH",
        "AS",
        "1",
        "0x",
        "E'",
        "X'",
        "U&'",
        "N'",
        "\0",
        "\n",
        " ",
        "é",
        "\u{2028}",
        "INTO",
        "TABLE",
        "CASE",
        "END",
        "INSERT INTO stock VALUES",
        "UPDATE stock SET",
        "DELETE FROM",
        "::",
        "[",
        "]",
        "set_config",
        "ON CONFLICT",
        "RETURNING",
        "*",
        "-",
        "id",
    ];
    prop_oneof![4 => prop::sample::select(KNOWN).prop_map(str::to_owned), 1 => any::<char>().prop_map(String::from), 1 => "[a-z]{1,4}"]
}

/// The words and signs of a text, without the quotes of names.
fn signs(dialect: Dialect, sql: &str) -> Vec<String> {
    let lexed = lexer::lex(dialect, sql).unwrap();
    lexed
        .tokens
        .into_iter()
        .map(|token| match token.token {
            sqlparser::tokenizer::Token::Word(word) => word.value.to_lowercase(),
            other => other.to_string(),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Names get quotes; beyond that, what is sent is token for token what was written: nothing is regrouped or lost.
    #[test]
    fn plain_statements_pass_token_for_token(sql in statement()) {
        for dialect in DIALECTS {
            let checked = check(dialect, &sql);
            prop_assert!(checked.is_ok(), "{dialect:?}: {sql}: {checked:?}");
            let checked = checked.unwrap();
            prop_assert_eq!(signs(dialect, &checked.sql), signs(dialect, &sql));
            prop_assert_eq!(checked.order.len(), sql_placeholders(dialect, &checked.sql));
            prop_assert_eq!(&check(dialect, &checked.sql).unwrap().sql, &checked.sql);
        }
    }

    /// Whatever comes, the guard answers; and what it lets through names nothing of the host's and is stable.
    #[test]
    fn hostile_texts_neither_panic_nor_pass(pieces in prop::collection::vec(piece(), 1..30), blanks in any::<bool>()) {
        let sql = pieces.join(if blanks { " " } else { "" });
        for dialect in DIALECTS {
            if let Ok(checked) = check(dialect, &sql) {
                let words = signs(dialect, &checked.sql);
                prop_assert!(!words.iter().any(|word| word.starts_with("hapax_") || word == "set_config" || word == "into" && !words.contains(&"insert".to_owned())), "{}", checked.sql);
                prop_assert_eq!(&check(dialect, &checked.sql).unwrap().sql, &checked.sql);
            }
        }
    }

    /// One character changed, removed or added in a good statement.
    #[test]
    fn mutated_statements_never_panic(sql in statement(), at in any::<prop::sample::Index>(), with in "[ -~\\PC]{0,2}") {
        let chars: Vec<char> = sql.chars().collect();
        let at = at.index(chars.len());
        let mutated: String = chars[..at].iter().collect::<String>() + &with + &chars[at + 1..].iter().collect::<String>();
        for dialect in DIALECTS {
            let guard = guard(dialect);
            if let Ok(checked) = guard.check(&mutated) {
                prop_assert_eq!(&guard.check(&checked.sql).unwrap().sql, &checked.sql);
            }
        }
    }
}

fn sql_placeholders(dialect: Dialect, sql: &str) -> usize {
    let lexed = lexer::lex(dialect, sql).unwrap();
    lexed.tokens.iter().filter(|token| matches!(token.token, sqlparser::tokenizer::Token::Placeholder(_))).count()
}
