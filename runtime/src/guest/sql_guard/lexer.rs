//! Text to tokens, by each database's own rules.
//!
//! sqlparser's tokenizer reads `qty>=?` on Postgres as one operator, expands MySQL's versioned comments in place, and
//! cannot tell SQLite's `0x10` from a blob. So this lexer makes the tokens, and sqlparser only the tree. It knows less
//! than the databases do, on purpose: what it does not know is an error. Nothing here has to be trusted for safety,
//! since the database never sees the text that is read here, only what [`write`](super::write) makes of its tree.
//!
//! All ways to write a string become one token, and placeholders are numbered: `?` by position, `$3` and `?3` by name.

use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan};

use super::GuardError;
use super::operators;
use crate::ledger::database::Dialect;

/// Longest statement in bytes.
pub(super) const MAX_BYTES: usize = 64 * 1024;
/// How deep parentheses and brackets may nest.
const MAX_NESTING: usize = 40;
/// How many tokens may each add a level to the tree from the left (`a AND b AND c …`): bounds its depth.
const MAX_CHAIN: usize = 1_000;

/// What the text says, and how it names its parameters.
#[derive(Debug)]
pub(super) struct Lexed {
    /// For the parser; placeholders are `$1` and so on.
    pub(super) tokens: Vec<TokenWithSpan>,
    /// How many values the caller supplies.
    pub(super) parameters: usize,
    /// The text held a comment. What we write never does.
    pub(super) comments: bool,
}

/// Which way of naming parameters the text has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Question,
    Numbered,
}

/// Reads `sql`. On Postgres `?` is a placeholder unless the text holds a `$n`; then it is the jsonb operator.
pub(super) fn lex(dialect: Dialect, sql: &str) -> Result<Lexed, GuardError> {
    if dialect != Dialect::Postgres {
        return Lexer::new(dialect, sql, true).run();
    }
    let mut lexer = Lexer::new(dialect, sql, true);
    let outcome = lexer.run();
    if lexer.saw_dollar { Lexer::new(dialect, sql, false).run() } else { outcome }
}

struct Lexer<'a> {
    dialect: Dialect,
    sql: &'a str,
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    /// Bytes read.
    at: usize,
    line: u64,
    column: u64,
    question_is_placeholder: bool,
    saw_dollar: bool,
    comments: bool,
    style: Option<Style>,
    parameters: usize,
    used: Vec<bool>,
    open: Vec<char>,
    chain: usize,
    tokens: Vec<TokenWithSpan>,
}

impl<'a> Lexer<'a> {
    fn new(dialect: Dialect, sql: &'a str, question_is_placeholder: bool) -> Self {
        Self {
            dialect,
            sql,
            chars: sql.chars().peekable(),
            at: 0,
            line: 1,
            column: 1,
            question_is_placeholder,
            saw_dollar: false,
            comments: false,
            style: None,
            parameters: 0,
            used: Vec::new(),
            open: Vec::new(),
            chain: 0,
            tokens: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<Lexed, GuardError> {
        while let Some(first) = self.peek() {
            let start = Location { line: self.line, column: self.column };
            if let Some(token) = self.token(first)? {
                self.count(&token)?;
                let span = Span::new(start, Location { line: self.line, column: self.column });
                self.tokens.push(TokenWithSpan { token, span });
            }
        }
        if let Some(bracket) = self.open.last() {
            return Err(self.invalid(format!("`{bracket}` is never closed")));
        }
        self.drop_last_semicolon()?;
        if let Some(missing) = self.used.iter().position(|used| !used) {
            return Err(GuardError::invalid(format!(
                "placeholder {} is not used, but a later one is: number them without gaps",
                missing + 1
            )));
        }
        Ok(Lexed { tokens: std::mem::take(&mut self.tokens), parameters: self.parameters, comments: self.comments })
    }

    /// One statement may end in `;`. Anything after that would be another one.
    fn drop_last_semicolon(&mut self) -> Result<(), GuardError> {
        while self.tokens.last().is_some_and(|last| last.token == Token::SemiColon) {
            self.tokens.pop();
        }
        if self.tokens.iter().any(|each| each.token == Token::SemiColon) {
            return Err(GuardError::denied("several statements in one text", "send them one by one"));
        }
        if self.tokens.is_empty() {
            return Err(GuardError::invalid("the statement is empty"));
        }
        Ok(())
    }

    fn peek(&mut self) -> Option<char> {
        self.chars.peek().copied()
    }

    fn rest(&self) -> &'a str {
        &self.sql[self.at..]
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.chars.next()?;
        self.at += next.len_utf8();
        if next == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(next)
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.bump();
        }
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let from = self.at;
        while self.peek().is_some_and(&accept) {
            self.bump();
        }
        &self.sql[from..self.at]
    }

    fn invalid(&self, message: impl std::fmt::Display) -> GuardError {
        GuardError::invalid(format!("{message} (line {}, column {})", self.line, self.column))
    }

    /// The next token; none for blanks and comments.
    fn token(&mut self, first: char) -> Result<Option<Token>, GuardError> {
        if matches!(first, ' ' | '\t' | '\n' | '\r' | '\u{c}') {
            self.bump();
            return Ok(None);
        }
        if self.comment()? {
            self.comments = true;
            return Ok(None);
        }
        if let Some(token) = self.string(first)? {
            return Ok(Some(token));
        }
        let second = self.rest().chars().nth(1);
        let token = match first {
            '0'..='9' => self.number()?,
            '.' if second.is_some_and(|c| c.is_ascii_digit()) && !self.follows_name() => self.number()?,
            '$' => self.dollar()?,
            '?' if self.question_is_placeholder => self.question()?,
            ':' if self.rest().starts_with("::") && self.dialect == Dialect::Postgres => {
                self.skip(2);
                Token::DoubleColon
            }
            ':' if self.open.last() == Some(&'[') && !self.rest().starts_with(":=") => {
                self.bump();
                Token::Colon
            }
            ':' if self.rest().starts_with(":=") => {
                return Err(GuardError::denied(
                    "`:=`, which assigns a session variable",
                    "keep values in the handler and bind them as parameters",
                ));
            }
            ':' => return Err(self.invalid("named placeholders are not supported: write `?`")),
            '@' if self.dialect != Dialect::Postgres => return Err(self.variable()),
            '(' | ')' | '[' | ']' | ',' | ';' | '.' => self.punctuation(first)?,
            _ if is_name_start(self.dialect, first) => self.word(),
            _ => self.operator()?,
        };
        Ok(Some(token))
    }

    fn variable(&self) -> GuardError {
        let name: String = self.rest().chars().take_while(|c| !c.is_whitespace()).take(40).collect();
        GuardError::denied(
            format!("`{name}`: session and system variables outlive the message"),
            "keep values in the handler and bind them as parameters",
        )
    }

    /// `t.1`: the dot belongs to a name.
    fn follows_name(&self) -> bool {
        let here = Location { line: self.line, column: self.column };
        self.tokens.last().is_some_and(|last| matches!(last.token, Token::Word(_)) && last.span.end == here)
    }

    fn punctuation(&mut self, first: char) -> Result<Token, GuardError> {
        let token = match first {
            '(' | '[' => {
                if self.open.len() == MAX_NESTING {
                    return Err(self.invalid(format!("nested deeper than {MAX_NESTING} levels")));
                }
                self.open.push(first);
                if first == '(' { Token::LParen } else { Token::LBracket }
            }
            ')' | ']' => {
                let expected = if first == ')' { '(' } else { '[' };
                if self.open.pop() != Some(expected) {
                    return Err(self.invalid(format!("`{first}` closes nothing")));
                }
                if first == ')' { Token::RParen } else { Token::RBracket }
            }
            ',' => Token::Comma,
            ';' => Token::SemiColon,
            _ => Token::Period,
        };
        self.bump();
        Ok(token)
    }

    /// Skips a comment. Those that a server would execute are refused even though they would not be sent.
    fn comment(&mut self) -> Result<bool, GuardError> {
        let rest = self.rest();
        if rest.starts_with("/*") {
            self.block_comment()?;
            return Ok(true);
        }
        let mysql = self.dialect == Dialect::MySql;
        if let Some(after) = rest.strip_prefix("--") {
            if mysql && after.chars().next().is_some_and(|c| !c.is_ascii_whitespace() && !c.is_ascii_control()) {
                return Err(
                    self.invalid("`--` without a blank is two minus signs here: write `- -`, or `-- ` for a comment")
                );
            }
        } else if !(mysql && rest.starts_with('#')) {
            return Ok(false);
        }
        self.take_while(|c| c != '\n' && c != '\r');
        Ok(true)
    }

    fn block_comment(&mut self) -> Result<(), GuardError> {
        let body = &self.rest()[2..];
        if body.starts_with(['!', '+']) || body.starts_with("M!") || body.starts_with("m!") {
            return Err(GuardError::denied(
                "a comment that the server would execute or take as a hint (`/*! */`, `/*M! */`, `/*+ */`)",
                "write plain SQL",
            ));
        }
        self.skip(2);
        let mut depth = 1usize;
        while depth > 0 {
            if self.rest().starts_with("*/") {
                self.skip(2);
                depth -= 1;
            } else if self.dialect == Dialect::Postgres && self.rest().starts_with("/*") {
                self.skip(2);
                depth += 1;
            } else if self.bump().is_none() {
                return Err(self.invalid("a comment is never closed"));
            }
        }
        Ok(())
    }

    /// A literal in quotes, or a quoted name.
    fn string(&mut self, first: char) -> Result<Option<Token>, GuardError> {
        use Dialect::{MySql, Postgres, Sqlite};
        let rest = self.rest();
        let prefixed = |prefix: char| {
            let mut chars = rest.chars();
            chars.next().is_some_and(|c| c.eq_ignore_ascii_case(&prefix)) && chars.next() == Some('\'')
        };
        let token = match (first, self.dialect) {
            ('\'', MySql) | ('"', MySql) => Token::SingleQuotedString(self.backslashed(first, mysql_escape)?),
            ('\'', Postgres | Sqlite) => Token::SingleQuotedString(self.doubled(first)?),
            ('"', Postgres | Sqlite) | ('`', MySql | Sqlite) => self.quoted_name(first, first)?,
            ('[', Sqlite) => self.quoted_name('[', ']')?,
            ('e' | 'E', Postgres) if prefixed('e') => {
                self.bump();
                Token::SingleQuotedString(self.backslashed('\'', postgres_escape)?)
            }
            ('x' | 'X', _) if prefixed('x') => {
                self.bump();
                let digits = self.doubled('\'')?;
                self.hex(digits)?
            }
            ('b' | 'B', Postgres | MySql) if prefixed('b') => {
                self.bump();
                let digits = self.doubled('\'')?;
                if !digits.chars().all(|c| matches!(c, '0' | '1')) {
                    return Err(self.invalid("a bit literal holds only 0 and 1"));
                }
                Token::SingleQuotedByteStringLiteral(digits)
            }
            ('n' | 'N', _) if prefixed('n') => {
                return Err(self.invalid("N'…' literals are not supported: write '…'"));
            }
            ('u' | 'U', Postgres) if rest[1..].starts_with("&'") || rest[1..].starts_with("&\"") => {
                return Err(self.invalid("U&'…' is not supported: write the characters themselves, or E'\\u….'"));
            }
            _ => return Ok(None),
        };
        Ok(Some(token))
    }

    fn hex(&self, digits: String) -> Result<Token, GuardError> {
        let whole_bytes = digits.len().is_multiple_of(2) || self.dialect == Dialect::Postgres;
        if !whole_bytes || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(self.invalid("a hexadecimal literal holds pairs of hexadecimal digits"));
        }
        Ok(Token::HexStringLiteral(digits))
    }

    /// Reads `'…'` in which only the quote itself, doubled, is special.
    fn doubled(&mut self, quote: char) -> Result<String, GuardError> {
        self.bump();
        let mut value = String::new();
        loop {
            match self.bump() {
                Some(c) if c == quote && self.peek() == Some(quote) => {
                    self.bump();
                    value.push(quote);
                }
                Some(c) if c == quote => return Ok(value),
                Some('\0') => return Err(self.invalid("a NUL character in a literal: bind it as a parameter")),
                Some(c) => value.push(c),
                None => return Err(self.invalid(format!("{quote} is never closed"))),
            }
        }
    }

    /// Reads `'…'` in which a backslash escapes, too.
    fn backslashed(
        &mut self,
        quote: char,
        escape: fn(&mut Self, &mut String) -> Option<()>,
    ) -> Result<String, GuardError> {
        self.bump();
        let mut value = String::new();
        loop {
            match self.bump() {
                Some(c) if c == quote && self.peek() == Some(quote) => {
                    self.bump();
                    value.push(quote);
                }
                Some(c) if c == quote => return Ok(value),
                Some('\\') => {
                    escape(self, &mut value).ok_or_else(|| self.invalid("not an escape that is supported here"))?
                }
                Some('\0') => return Err(self.invalid("a NUL character in a literal: bind it as a parameter")),
                Some(c) => value.push(c),
                None => return Err(self.invalid(format!("{quote} is never closed"))),
            }
        }
    }

    fn quoted_name(&mut self, open: char, close: char) -> Result<Token, GuardError> {
        let name = if open == close {
            self.doubled(open)?
        } else {
            self.bump();
            let name = self.take_while(|c| c != close).to_owned();
            if self.bump().is_none() {
                return Err(self.invalid(format!("{open} is never closed")));
            }
            name
        };
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(self.invalid("a quoted name is empty or holds control characters"));
        }
        // One kind of quote for the parser: how the name was quoted says nothing about it.
        Ok(Token::make_word(&name, Some('"')))
    }

    fn word(&mut self) -> Token {
        let dialect = self.dialect;
        let word = self.take_while(|c| is_name_start(dialect, c) || c.is_ascii_digit() || c == '$');
        Token::make_word(word, None)
    }

    fn number(&mut self) -> Result<Token, GuardError> {
        let from = self.at;
        let digits = self.take_while(|c| c.is_ascii_digit());
        if digits == "0" && self.peek().is_some_and(|c| c.eq_ignore_ascii_case(&'x')) {
            // On MariaDB it is a number or a blob by what is around it, and X'…' always a blob.
            return Err(self.invalid("0x… is not supported here: write the number in decimal, or a blob as X'…'"));
        }
        if self.peek() == Some('.') {
            self.bump();
            self.take_while(|c| c.is_ascii_digit());
        }
        let mut ahead = self.rest().chars();
        if ahead.next().is_some_and(|c| matches!(c, 'e' | 'E')) {
            let sign = ahead.next();
            let digit = if matches!(sign, Some('+' | '-')) { ahead.next() } else { sign };
            if digit.is_some_and(|c| c.is_ascii_digit()) {
                self.skip(2);
                self.take_while(|c| c.is_ascii_digit());
            }
        }
        let number = self.sql[from..self.at].to_owned();
        let dialect = self.dialect;
        if self.peek().is_some_and(|c| is_name_start(dialect, c) || c == '.' || c == '$') {
            return Err(self.invalid(format!(
                "`{number}` runs into what follows it: a name that starts with a digit needs quotes"
            )));
        }
        Ok(Token::Number(number, false))
    }

    /// `$1`, or on Postgres a string in dollar quotes.
    fn dollar(&mut self) -> Result<Token, GuardError> {
        self.bump();
        if self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.saw_dollar = true;
            let index = self.take_while(|c| c.is_ascii_digit());
            return self.numbered(index);
        }
        if self.dialect != Dialect::Postgres {
            return Err(self.invalid("named placeholders are not supported: write `?` or `$1`"));
        }
        let tag = self.take_while(|c| c == '_' || c.is_ascii_alphanumeric());
        if self.peek() != Some('$') {
            return Err(self.invalid("`$` starts neither a placeholder nor a literal"));
        }
        self.bump();
        let closing = format!("${tag}$");
        let Some(length) = self.rest().find(&closing) else {
            return Err(self.invalid(format!("{closing} is never closed")));
        };
        let value = self.rest()[..length].to_owned();
        if value.contains('\0') {
            return Err(self.invalid("a NUL character in a literal"));
        }
        let end = self.at + length + closing.len();
        while self.at < end {
            self.bump();
        }
        Ok(Token::SingleQuotedString(value))
    }

    fn question(&mut self) -> Result<Token, GuardError> {
        self.bump();
        let index = self.take_while(|c| c.is_ascii_digit());
        if !index.is_empty() {
            if self.dialect != Dialect::Sqlite {
                return Err(self.invalid("`?1` is SQLite's: write `?` or `$1`"));
            }
            return self.numbered(index);
        }
        self.styled(Style::Question)?;
        self.parameters += 1;
        Ok(Token::Placeholder(format!("${}", self.parameters)))
    }

    fn numbered(&mut self, index: &str) -> Result<Token, GuardError> {
        self.styled(Style::Numbered)?;
        // More than the text could use: every index has to occur.
        let number = index.parse::<usize>().ok().filter(|number| (1..=MAX_BYTES).contains(number));
        let Some(number) = number else {
            return Err(self.invalid(format!("placeholder {index} is out of range")));
        };
        if self.used.len() < number {
            self.used.resize(number, false);
        }
        self.used[number - 1] = true;
        self.parameters = self.used.len();
        Ok(Token::Placeholder(format!("${number}")))
    }

    fn styled(&mut self, style: Style) -> Result<(), GuardError> {
        if *self.style.get_or_insert(style) == style {
            return Ok(());
        }
        Err(self.invalid("`?` and numbered placeholders in one statement: use one kind"))
    }

    /// One operator, the longest that the database would read.
    fn operator(&mut self) -> Result<Token, GuardError> {
        let with_question = !self.question_is_placeholder;
        let text = operators::longest(self.dialect, self.rest(), with_question);
        let Some((token, length)) = text else {
            let shown: String = self.rest().chars().take(8).collect();
            return Err(self.invalid(format!("`{shown}` is not understood here")));
        };
        self.skip(length);
        Ok(token)
    }

    /// Bounds the depth of the tree that the parser will build.
    fn count(&mut self, token: &Token) -> Result<(), GuardError> {
        if operators::chains(token) {
            self.chain += 1;
        }
        if self.chain > MAX_CHAIN {
            return Err(self.invalid(format!(
                "more than {MAX_CHAIN} operators in one statement: bind a list as parameters, or send several statements"
            )));
        }
        Ok(())
    }
}

/// What may start an unquoted name. Letters of all scripts; no odd blanks, no joiners.
fn is_name_start(dialect: Dialect, c: char) -> bool {
    c == '_' || c.is_alphabetic() || (dialect == Dialect::MySql && c == '$')
}

/// MySQL: `\%` and `\_` keep their backslash, all unknown ones lose it.
fn mysql_escape(lexer: &mut Lexer<'_>, value: &mut String) -> Option<()> {
    let escaped = lexer.bump()?;
    match escaped {
        '0' => value.push('\0'),
        'b' => value.push('\u{8}'),
        'n' => value.push('\n'),
        'r' => value.push('\r'),
        't' => value.push('\t'),
        'Z' => value.push('\u{1a}'),
        '%' | '_' => value.extend(['\\', escaped]),
        '\0' => return None,
        other => value.push(other),
    }
    Some(())
}

/// Postgres: bytes above 127 in octal or hexadecimal would be half characters, so they are refused.
fn postgres_escape(lexer: &mut Lexer<'_>, value: &mut String) -> Option<()> {
    let digits = |lexer: &mut Lexer<'_>, radix: u32, min: usize, max: usize| {
        let mut digits = String::new();
        while digits.len() < max && lexer.peek().is_some_and(|c| c.is_digit(radix)) {
            digits.extend(lexer.bump());
        }
        if digits.len() < min { None } else { u32::from_str_radix(&digits, radix).ok() }
    };
    let ascii = |code: u32| char::from_u32(code).filter(|c| *c != '\0' && c.is_ascii());
    let escaped = match lexer.peek()? {
        '0'..='7' => ascii(digits(lexer, 8, 1, 3)?)?,
        'x' => {
            lexer.bump();
            if lexer.peek().is_some_and(|c| c.is_ascii_hexdigit()) { ascii(digits(lexer, 16, 1, 2)?)? } else { 'x' }
        }
        'u' => {
            lexer.bump();
            char::from_u32(digits(lexer, 16, 4, 4)?).filter(|c| *c != '\0')?
        }
        'U' => {
            lexer.bump();
            char::from_u32(digits(lexer, 16, 8, 8)?).filter(|c| *c != '\0')?
        }
        other => {
            lexer.bump();
            match other {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '\0' => return None,
                other => other,
            }
        }
    };
    value.push(escaped);
    Some(())
}
