//! The operators that guests may use: which token each is, and how it is written back.

use sqlparser::ast::{BinaryOperator, UnaryOperator};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Token;

use crate::ledger::database::Dialect;

/// Longer ones first.
const EVERYWHERE: &[(&str, Token)] = &[
    ("->>", Token::LongArrow),
    ("->", Token::Arrow),
    ("<=", Token::LtEq),
    (">=", Token::GtEq),
    ("<>", Token::Neq),
    ("!=", Token::Neq),
    ("||", Token::StringConcat),
    ("<<", Token::ShiftLeft),
    (">>", Token::ShiftRight),
    ("+", Token::Plus),
    ("-", Token::Minus),
    ("*", Token::Mul),
    ("/", Token::Div),
    ("%", Token::Mod),
    ("=", Token::Eq),
    ("<", Token::Lt),
    (">", Token::Gt),
    ("&", Token::Ampersand),
    ("|", Token::Pipe),
    ("~", Token::Tilde),
];

const POSTGRES: &[(&str, Token)] = &[
    ("!~~*", Token::ExclamationMarkDoubleTildeAsterisk),
    ("!~~", Token::ExclamationMarkDoubleTilde),
    ("!~*", Token::ExclamationMarkTildeAsterisk),
    ("~~*", Token::DoubleTildeAsterisk),
    ("#>>", Token::HashLongArrow),
    ("<->", Token::TwoWayArrow),
    ("!~", Token::ExclamationMarkTilde),
    ("~~", Token::DoubleTilde),
    ("~*", Token::TildeAsterisk),
    ("#>", Token::HashArrow),
    ("#-", Token::HashMinus),
    ("@>", Token::AtArrow),
    ("<@", Token::ArrowAt),
    ("@@", Token::AtAt),
    ("&&", Token::Overlap),
    ("^@", Token::CaretAt),
    ("=>", Token::RArrow),
    ("@", Token::AtSign),
    ("#", Token::Sharp),
    ("^", Token::Caret),
];

/// Only where `?` is no placeholder.
const POSTGRES_QUESTION: &[(&str, Token)] =
    &[("@?", Token::AtQuestion), ("?&", Token::QuestionAnd), ("?|", Token::QuestionPipe), ("?", Token::Question)];

const MYSQL: &[(&str, Token)] = &[("<=>", Token::Spaceship), ("&&", Token::Overlap), ("^", Token::Caret)];

const SQLITE: &[(&str, Token)] = &[("==", Token::DoubleEq)];

/// The operator that `rest` starts with, and its length; none if it is not one of ours.
pub(super) fn longest(dialect: Dialect, rest: &str, with_question: bool) -> Option<(Token, usize)> {
    let tables: &[&[(&str, Token)]] = match dialect {
        Dialect::Postgres if with_question => &[POSTGRES, POSTGRES_QUESTION, EVERYWHERE],
        Dialect::Postgres => &[POSTGRES, EVERYWHERE],
        Dialect::MySql => &[MYSQL, EVERYWHERE],
        Dialect::Sqlite => &[SQLITE, EVERYWHERE],
    };
    let known = |text: &str| {
        let all = tables.iter().flat_map(|table| table.iter());
        all.filter(|(operator, _)| text.starts_with(operator)).max_by_key(|(operator, _)| operator.len())
    };
    if dialect != Dialect::Postgres {
        return known(rest).map(|(operator, token)| (token.clone(), operator.len()));
    }
    // Postgres takes the whole run of operator characters as one operator, so a prefix of it is not what was meant.
    let run = postgres_run(rest, with_question);
    known(run).filter(|(operator, _)| operator.len() == run.len()).map(|(_, token)| (token.clone(), run.len()))
}

/// What Postgres reads as one operator: up to a comment, and without a trailing sign unless the operator holds one of
/// the characters that no SQL operator has. (See "Lexical Structure: Operators" in its manual.)
fn postgres_run(rest: &str, with_question: bool) -> &str {
    let part = |c: char| "+-*/<>=~!@#%^&|`".contains(c) || (with_question && c == '?');
    let mut run = &rest[..rest.find(|c| !part(c)).unwrap_or(rest.len())];
    for comment in ["--", "/*"] {
        run = run.find(comment).map_or(run, |at| &run[..at]);
    }
    let special = run.contains(|c| "~!@#%^&|`?".contains(c));
    while run.len() > 1 && !special && run.ends_with(['+', '-']) {
        run = &run[..run.len() - 1];
    }
    run
}

/// Whether each further one of these can make the tree one level deeper.
pub(super) fn chains(token: &Token) -> bool {
    match token {
        Token::Word(word) => {
            word.quote_style.is_none()
                && matches!(
                    word.keyword,
                    Keyword::AND
                        | Keyword::OR
                        | Keyword::XOR
                        | Keyword::NOT
                        | Keyword::IS
                        | Keyword::NOTNULL
                        | Keyword::IN
                        | Keyword::LIKE
                        | Keyword::ILIKE
                        | Keyword::SIMILAR
                        | Keyword::REGEXP
                        | Keyword::RLIKE
                        | Keyword::GLOB
                        | Keyword::MATCH
                        | Keyword::BETWEEN
                        | Keyword::COLLATE
                        | Keyword::AT
                        | Keyword::DIV
                        | Keyword::MOD
                        | Keyword::OVERLAPS
                        | Keyword::OPERATOR
                        | Keyword::BINARY
                        | Keyword::MEMBER
                        | Keyword::UNION
                        | Keyword::EXCEPT
                        | Keyword::INTERSECT
                        | Keyword::MINUS
                        | Keyword::CASE
                        | Keyword::SELECT
                        | Keyword::JOIN
                )
        }
        // `VALUES (-1), (-2)` is no chain, but telling that apart is not worth the risk.
        Token::Placeholder(_)
        | Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::SingleQuotedByteStringLiteral(_)
        | Token::HexStringLiteral(_)
        | Token::Comma
        | Token::LParen
        | Token::RParen
        | Token::RBracket
        | Token::Period
        | Token::SemiColon => false,
        _ => true,
    }
}

/// How a binary operator is written; none if it is not allowed in this dialect.
pub(super) fn binary(dialect: Dialect, operator: &BinaryOperator) -> Option<&'static str> {
    use BinaryOperator as B;
    use Dialect::{MySql, Postgres, Sqlite};
    let text = match (operator, dialect) {
        (B::Plus, _) => "+",
        (B::Minus, _) => "-",
        (B::Multiply, _) => "*",
        (B::Divide, _) => "/",
        (B::Modulo, _) => "%",
        (B::StringConcat, _) => "||",
        (B::Gt, _) => ">",
        (B::Lt, _) => "<",
        (B::GtEq, _) => ">=",
        (B::LtEq, _) => "<=",
        (B::Eq, _) => "=",
        (B::NotEq, _) => "<>",
        (B::And, _) => "AND",
        (B::Or, _) => "OR",
        (B::BitwiseOr, _) => "|",
        (B::BitwiseAnd, _) => "&",
        (B::PGBitwiseShiftLeft, _) => "<<",
        (B::PGBitwiseShiftRight, _) => ">>",
        (B::Arrow, _) => "->",
        (B::LongArrow, _) => "->>",
        (B::Spaceship, MySql) => "<=>",
        (B::Xor, MySql) => "XOR",
        (B::BitwiseXor, MySql) => "^",
        (B::MyIntegerDivide, MySql) => "DIV",
        (B::Match, Sqlite) => "MATCH",
        (B::Regexp, Sqlite) => "REGEXP",
        (B::Glob, Sqlite) => "GLOB",
        (B::PGExp, Postgres) => "^",
        (B::PGBitwiseXor, Postgres) => "#",
        (B::PGOverlap, Postgres) => "&&",
        (B::PGRegexMatch, Postgres) => "~",
        (B::PGRegexIMatch, Postgres) => "~*",
        (B::PGRegexNotMatch, Postgres) => "!~",
        (B::PGRegexNotIMatch, Postgres) => "!~*",
        (B::PGLikeMatch, Postgres) => "~~",
        (B::PGILikeMatch, Postgres) => "~~*",
        (B::PGNotLikeMatch, Postgres) => "!~~",
        (B::PGNotILikeMatch, Postgres) => "!~~*",
        (B::PGStartsWith, Postgres) => "^@",
        (B::HashArrow, Postgres) => "#>",
        (B::HashLongArrow, Postgres) => "#>>",
        (B::HashMinus, Postgres) => "#-",
        (B::AtAt, Postgres) => "@@",
        (B::AtArrow, Postgres) => "@>",
        (B::ArrowAt, Postgres) => "<@",
        (B::AtQuestion, Postgres) => "@?",
        (B::Question, Postgres) => "?",
        (B::QuestionAnd, Postgres) => "?&",
        (B::QuestionPipe, Postgres) => "?|",
        (B::LtDashGt, Postgres) => "<->",
        (B::Overlaps, Postgres) => "OVERLAPS",
        // `OPERATOR(schema.op)`, `:=`, and all that another database has.
        _ => return None,
    };
    Some(text)
}

/// How a prefix operator is written; none if it is not allowed.
pub(super) fn unary(operator: UnaryOperator) -> Option<&'static str> {
    match operator {
        UnaryOperator::Plus => Some("+"),
        UnaryOperator::Minus => Some("-"),
        UnaryOperator::Not => Some("NOT"),
        UnaryOperator::BitwiseNot => Some("~"),
        UnaryOperator::PGAbs => Some("@"),
        _ => None,
    }
}
