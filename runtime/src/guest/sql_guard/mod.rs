//! The SQL guard: what a guest's statement may be, and the text that is sent in its place.
//!
//! ```
//! use std::collections::{BTreeMap, BTreeSet};
//! use hapax::guest::sql_guard::{Guard, TableGrants, Verb};
//! use hapax::ledger::database::Dialect;
//!
//! let grants = TableGrants(BTreeMap::from([("stock".to_owned(), BTreeSet::from([Verb::Update]))]));
//! let guard = Guard::new(Dialect::Postgres, grants, []);
//! let checked = guard.check("UPDATE stock SET left_over = left_over - 1 WHERE id = ?").unwrap();
//! assert_eq!(checked.sql, r#"UPDATE "stock" SET "left_over" = "left_over" - 1 WHERE "id" = $1"#);
//! assert!(guard.check("SELECT * FROM hapax_inbox").is_err());
//! ```
//!
//! A statement goes through four steps, and is refused by whichever does not know it:
//!
//! 1. `lexer`: text to tokens, by the database's own rules.
//! 2. `grammar`: tokens to sqlparser's tree, with bounded depth and work.
//! 3. [`write`]: the tree is checked and written in one pass, so that nothing is sent that was not checked, and nothing
//!    is checked in another form than it is sent. It takes nodes apart field by field: a field that a new sqlparser adds
//!    breaks the build. All names are quoted, so a server cannot take one for a keyword, a function or a hint; all
//!    literals are written by one function; the order of the tokens, and so the precedence, is the guest's.
//! 4. What was written goes through steps 1 to 3 again, and has to come out as itself.
//!
//! The database never sees the guest's text, so a difference between how it and we read that text can change what a
//! statement means to its author, and nothing else.
//!
//! Decisions:
//! - Reading the target's own columns in UPDATE, DELETE, MERGE or ON CONFLICT needs no `select`. RETURNING does, and so
//!   does every other table that is read.
//! - `SELECT … FOR UPDATE` and `FOR SHARE` need `update` or `delete` on the tables in FROM: a row lock holds up writers.
//! - REPLACE and OR REPLACE need `insert` and `delete`; ON CONFLICT DO UPDATE and ON DUPLICATE KEY UPDATE need `update`.
//! - A name without a schema is another one than the same name with it; each is granted as it is written. Names compare
//!   exactly (Postgres: after its folding of unquoted names to lower case), on SQLite without ASCII case.
//! - `hapax_*` is refused as a name of anything, and so are the system catalogs as tables; grants do not change that.
//! - CTEs are renamed (`cte:NAME`), so that no rule of scope of any database can make one's name mean a table.
//! - On Postgres, `?` is the jsonb operator in a text that holds a `$n`, and a placeholder in every other.
//! - User-defined functions run on Postgres where they are named like a column of a row: `stock.f` means `f(stock)` if
//!   there is no column `f`. The guard cannot know the columns; it refuses the names that no grant opens. Who has
//!   functions over a granted table's row type that guests must not call revokes EXECUTE on them.
//! - What the text relies on in a session: UTF-8 as its encoding (`client_encoding`, `SET NAMES utf8mb4`), and nothing
//!   else. `sql_mode` and `standard_conforming_strings` could only change values, never where a literal ends.
//! - Types that a database does not bring along are granted like functions: a cast calls their input function.

mod calls;
mod expressions;
mod functions;
mod grammar;
mod lexer;
mod names;
mod operators;
mod queries;
mod sources;
mod statements;
mod types;
mod write;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use sqlparser::tokenizer::Token;

use crate::ledger::database::Dialect;

/// How many statement texts a guard remembers, with what became of them.
const CACHED: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Longer texts are not remembered, so that a guest cannot fill the host's memory with them.
const MAX_CACHED_BYTES: usize = 8 * 1024;
/// Room for the parser's recursion: guests run on small stacks of their own.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// What may be done to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Read rows.
    Select,
    /// Add rows.
    Insert,
    /// Change rows, and lock them.
    Update,
    /// Remove rows.
    Delete,
}

impl Verb {
    /// As it is written in a config.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Select => "select",
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// `grants.tables` of a consumer: what may be done to which table. A key is a table's name as the database has it, with
/// its schema or without (`shop.stock`, `stock`), and means only statements that write it the same way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableGrants(pub BTreeMap<String, BTreeSet<Verb>>);

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only reads.
    Read,
    /// It changes rows, locks them, or calls a granted function, which may do either.
    Write,
}

/// A statement that may be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What to send: written from the checked tree, placeholders in the database's own style (`$1`; `?`; `?1`).
    pub sql: String,
    /// How many values the caller supplies.
    pub parameters: usize,
    /// For each position that `sql` binds, the index into the caller's values. Longer than `parameters` where MySQL
    /// needs one value twice; the identity elsewhere.
    pub order: Vec<usize>,
    /// What it does.
    pub kind: Kind,
    /// It answers with rows: a query, or a RETURNING clause.
    pub returns_rows: bool,
}

/// Why a statement is not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// The guard understands it and forbids it.
    #[error("denied: {what}; hint: {hint}")]
    Denied {
        /// What is forbidden.
        what: String,
        /// How to have it allowed, or what to do instead.
        hint: String,
    },
    /// The guard cannot read it.
    #[error("invalid statement: {message}")]
    Invalid {
        /// What is wrong, and where.
        message: String,
    },
}

impl GuardError {
    fn denied(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Denied { what: what.into(), hint: hint.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into() }
    }
}

type Verdict = Result<Arc<Checked>, GuardError>;

/// Decides what a consumer's module may send to a database. Shared by the consumer's lanes.
#[derive(Debug)]
pub struct Guard {
    grants: names::Grants,
    /// By text, both kinds.
    verdicts: Mutex<LruCache<Box<str>, Verdict>>,
}

impl Guard {
    /// A guard with a consumer's grants. `functions` are names, with a schema where statements call them with one.
    pub fn new(dialect: Dialect, tables: TableGrants, functions: impl IntoIterator<Item = String>) -> Self {
        Self { grants: names::Grants::new(dialect, tables, functions), verdicts: Mutex::new(LruCache::new(CACHED)) }
    }

    /// What to send in place of `sql`, or why nothing is sent. Remembers both, by text.
    pub fn check(&self, sql: &str) -> Result<Arc<Checked>, GuardError> {
        if sql.len() > MAX_CACHED_BYTES {
            return self.decide(sql).map(Arc::new);
        }
        let remembered = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some(verdict) = remembered {
            return verdict;
        }
        let verdict = self.decide(sql).map(Arc::new);
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).put(sql.into(), verdict.clone());
        verdict
    }

    fn decide(&self, sql: &str) -> Result<Checked, GuardError> {
        if sql.len() > lexer::MAX_BYTES {
            return Err(GuardError::invalid(format!(
                "the statement has {} bytes; at most {} are accepted: bind long values as parameters",
                sql.len(),
                lexer::MAX_BYTES
            )));
        }
        let checked = stacker::grow(STACK_BYTES, || self.rewrite(sql))?.checked;
        let again = stacker::grow(STACK_BYTES, || self.rewrite(&checked.sql));
        // The last line of defence: what is sent reads as what was checked, and holds no comment.
        match again {
            Ok(again) if again.checked.sql == checked.sql && !again.comments => Ok(checked),
            _ => Err(GuardError::invalid(
                "the statement does not survive being read and written back; write it more plainly",
            )),
        }
    }

    fn rewrite(&self, sql: &str) -> Result<Rewritten, GuardError> {
        let dialect = self.grants.dialect;
        let lexed = lexer::lex(dialect, sql)?;
        first_word(&lexed.tokens[0].token)?;
        let statement = grammar::parse(dialect, lexed.tokens).map_err(|error| self.explain(sql, error))?;
        let checked = write::statement(&self.grants, &statement, lexed.parameters)?;
        Ok(Rewritten { checked, comments: lexed.comments })
    }

    fn explain(&self, sql: &str, error: sqlparser::parser::ParserError) -> GuardError {
        use sqlparser::parser::ParserError as P;
        let message = match error {
            P::RecursionLimitExceeded => "the statement is nested too deeply, or too much work to read".to_owned(),
            P::ParserError(message) | P::TokenizerError(message) => message,
        };
        if self.grants.dialect == Dialect::Postgres && sql.contains('?') {
            return GuardError::invalid(format!(
                "{message}. (`?` is a placeholder unless the text uses `$1`, `$2`, …)"
            ));
        }
        GuardError::invalid(message)
    }
}

struct Rewritten {
    checked: Checked,
    comments: bool,
}

/// Names what is refused for its first word: sqlparser knows a hundred kinds of statements.
fn first_word(first: &Token) -> Result<(), GuardError> {
    let Token::Word(word) = first else {
        return if *first == Token::LParen {
            Ok(())
        } else {
            Err(GuardError::invalid(format!("a statement starts with a word, not `{first}`")))
        };
    };
    match word.value.to_ascii_uppercase().as_str() {
        "SELECT" | "INSERT" | "UPDATE" | "DELETE" | "WITH" | "VALUES" | "MERGE" | "REPLACE"
            if word.quote_style.is_none() =>
        {
            Ok(())
        }
        "BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE" | "XA" => {
            Err(GuardError::denied(
                format!("`{}`: the transaction is the host's", word.value),
                "return from the handler to commit, or return a failure to roll back",
            ))
        }
        _ => Err(GuardError::denied(
            format!("a statement that starts with `{}`", word.value),
            "guests may send SELECT, INSERT, UPDATE, DELETE, MERGE, REPLACE and WITH",
        )),
    }
}
