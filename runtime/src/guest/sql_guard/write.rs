//! The pen: checks the tree and writes it, in one pass. The parts of the grammar are in the files beside this one.

use sqlparser::ast::{Ident, ObjectName, Statement, Value};

use super::names::{self, Grants};
use super::{Checked, GuardError, Kind, Verb};
use crate::ledger::database::Dialect;
use crate::ledger::together::quote;

/// Shorthand of this module's many fallible steps.
pub(super) type Step = Result<(), GuardError>;

/// What CTEs are renamed to start with. No table has such a name, so a CTE and a table can never be taken for each
/// other, whatever a database thinks of their scopes.
const CTE: &str = "cte:";

/// Checks a statement and writes it.
pub(super) fn statement(grants: &Grants, statement: &Statement, parameters: usize) -> Result<Checked, GuardError> {
    let mut pen =
        Pen { grants, out: String::new(), after_dot: false, order: Vec::new(), ctes: Vec::new(), kind: Kind::Read };
    let returns_rows = pen.statement(statement)?;
    let Pen { out, mut order, kind, .. } = pen;
    if grants.dialect != Dialect::MySql {
        order = (0..parameters).collect();
    }
    Ok(Checked { sql: out, parameters, order, kind, returns_rows })
}

/// Writes one statement.
pub(super) struct Pen<'a> {
    pub(super) grants: &'a Grants,
    out: String,
    /// A name follows that belongs to the name before it.
    after_dot: bool,
    /// The caller's index of each placeholder written.
    order: Vec<usize>,
    /// Names of the CTEs in scope, innermost last.
    pub(super) ctes: Vec<String>,
    pub(super) kind: Kind,
}

impl Pen<'_> {
    pub(super) fn dialect(&self) -> Dialect {
        self.grants.dialect
    }

    /// Writes keywords and punctuation of ours, set off by blanks so that no two tokens can become one.
    pub(super) fn put(&mut self, text: &str) {
        let glued =
            self.out.is_empty() || self.out.ends_with(['(', ' ', '.', '[']) || text.starts_with([')', ',', ']']);
        if !glued {
            self.out.push(' ');
        }
        self.out.push_str(text);
    }

    /// Writes without a blank: what has to touch the token before it.
    pub(super) fn glue(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// Writes items separated by commas.
    pub(super) fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T) -> Step) -> Step {
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.put(",");
            }
            each(self, item)?;
        }
        Ok(())
    }

    /// Writes items in parentheses.
    pub(super) fn parens<T>(&mut self, items: &[T], each: impl FnMut(&mut Self, &T) -> Step) -> Step {
        self.put("(");
        self.list(items, each)?;
        self.put(")");
        Ok(())
    }

    /// Writes a name, quoted. Host names are refused whatever they stand for.
    pub(super) fn name(&mut self, name: &str) -> Step {
        self.check_name(name)?;
        let quote = match self.dialect() {
            Dialect::Postgres => '"',
            Dialect::MySql | Dialect::Sqlite => '`',
        };
        let doubled = name.replace(quote, &format!("{quote}{quote}"));
        self.put(&format!("{quote}{doubled}{quote}"));
        Ok(())
    }

    pub(super) fn check_name(&self, name: &str) -> Step {
        if names::is_own(name.strip_prefix(CTE).unwrap_or(name)) {
            return Err(GuardError::denied(
                format!("`{name}`: names that start with hapax_ are the host's"),
                "use another name; the host's tables are never open to guests",
            ));
        }
        // Postgres cuts longer names, so two of them could be one.
        let fits = match self.dialect() {
            Dialect::Postgres => name.len() <= 63,
            Dialect::MySql => name.chars().count() <= 64 && !name.ends_with(' '),
            Dialect::Sqlite => name.len() <= 255,
        };
        if fits && !name.is_empty() {
            return Ok(());
        }
        Err(GuardError::invalid(format!("`{name}` is too long for a name, or ends in a blank")))
    }

    pub(super) fn ident(&mut self, ident: &Ident) -> Step {
        if self.dialect() == Dialect::Postgres && ident.quote_style == Some('\'') {
            return Err(GuardError::invalid(format!("{ident} is a literal, where a name is expected")));
        }
        let meaning = names::meaning(self.dialect(), ident);
        self.name(&meaning)
    }

    /// Writes a dotted name that is no table, function or type.
    pub(super) fn path(&mut self, idents: &[&Ident]) -> Step {
        for (index, ident) in idents.iter().enumerate() {
            if index > 0 {
                self.glue(".");
                self.after_dot = true;
            }
            self.ident(ident)?;
        }
        Ok(())
    }

    /// Writes the name of a column, with its table and schema where given.
    pub(super) fn column(&mut self, idents: &[&Ident]) -> Step {
        let Some((last, qualifiers)) = idents.split_last() else {
            return Err(GuardError::invalid("a column without a name"));
        };
        if qualifiers.len() > 2 || qualifiers.iter().any(|part| names::is_system_schema(&part.value)) {
            return Err(GuardError::denied(
                "a column of a system catalog",
                "guests see the tables of grants.tables only",
            ));
        }
        // Postgres reads `t.f` as `f(t)` where t has no column f.
        if !qualifiers.is_empty() && self.dialect() == Dialect::Postgres && super::functions::is_never(&last.value) {
            return Err(GuardError::denied(
                format!("`{}` after a dot: Postgres may call the function of that name", last.value),
                "use a column of another name",
            ));
        }
        self.path(idents)
    }

    /// Checks `verbs` on a table and writes its name. CTEs are not meant.
    pub(super) fn table(&mut self, name: &ObjectName, verbs: &[Verb]) -> Step {
        let idents = names::idents(name)?;
        let meanings = names::meanings(self.dialect(), name)?;
        for meaning in &meanings {
            self.check_name(meaning)?;
        }
        for verb in verbs {
            self.grants.table(&meanings, *verb)?;
            if *verb != Verb::Select {
                self.kind = Kind::Write;
            }
        }
        self.path(&idents)
    }

    /// What a CTE is called in the text that is sent.
    pub(super) fn cte_name(&self, ident: &Ident) -> String {
        let meaning = names::meaning(self.dialect(), ident);
        if meaning.starts_with(CTE) { meaning } else { format!("{CTE}{meaning}") }
    }

    /// The CTE that a table name means, if it means one: by the name it is sent under.
    pub(super) fn cte(&self, name: &ObjectName) -> Option<String> {
        let idents = names::idents(name).ok()?;
        let [one] = idents.as_slice() else { return None };
        let wanted = self.cte_name(one);
        let same = |known: &&String| match self.dialect() {
            Dialect::Sqlite => known.eq_ignore_ascii_case(&wanted),
            Dialect::Postgres | Dialect::MySql => **known == wanted,
        };
        self.ctes.iter().rev().find(same).cloned()
    }

    /// Writes a literal or placeholder.
    pub(super) fn value(&mut self, value: &Value) -> Step {
        match value {
            Value::Number(digits, false) => {
                if !digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-')) {
                    return Err(GuardError::invalid(format!("`{digits}` is no number")));
                }
                self.put(digits);
            }
            Value::SingleQuotedString(text) => self.string(text)?,
            Value::HexStringLiteral(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
                self.put(&format!("X'{digits}'"));
            }
            Value::SingleQuotedByteStringLiteral(bits) if bits.bytes().all(|b| matches!(b, b'0' | b'1')) => {
                self.put(&format!("B'{bits}'"));
            }
            Value::Boolean(true) => self.put("TRUE"),
            Value::Boolean(false) => self.put("FALSE"),
            Value::Null => self.put("NULL"),
            Value::Placeholder(number) => self.placeholder(number)?,
            other => return Err(GuardError::invalid(format!("literal {other} is of a kind that is not supported"))),
        }
        Ok(())
    }

    /// Writes a string, the one place that does. Quotes are doubled everywhere; backslashes escape on MySQL alone, and
    /// on Postgres they get the form in which they always do, whatever `standard_conforming_strings` says.
    pub(super) fn string(&mut self, text: &str) -> Step {
        let mut quoted = String::with_capacity(text.len() + 3);
        quote(self.dialect(), &mut quoted, text)
            .ok_or_else(|| GuardError::invalid("a NUL character in a literal: bind it as a parameter"))?;
        self.put(&quoted);
        Ok(())
    }

    fn placeholder(&mut self, number: &str) -> Step {
        // The lexer numbers all of them from 1.
        let number: usize = number
            .strip_prefix('$')
            .and_then(|number| number.parse().ok())
            .filter(|number| *number > 0)
            .ok_or_else(|| GuardError::invalid(format!("`{number}` is no placeholder")))?;
        self.order.push(number - 1);
        match self.dialect() {
            Dialect::Postgres => self.put(&format!("${number}")),
            Dialect::MySql => self.put("?"),
            Dialect::Sqlite => self.put(&format!("?{number}")),
        }
        Ok(())
    }
}

/// Refuses a feature by name.
pub(super) fn unsupported<T>(what: impl std::fmt::Display) -> Result<T, GuardError> {
    Err(GuardError::denied(
        brief(&what.to_string()),
        "guests may use plain SELECT, INSERT, UPDATE, DELETE, MERGE and REPLACE",
    ))
}

/// Refuses a feature where it is present.
pub(super) fn absent(present: bool, what: &str) -> Step {
    if present { unsupported(what) } else { Ok(()) }
}

/// A fragment of a statement, short enough for a message.
pub(super) fn brief(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
