//! A lexer for SQL, just deep enough to find placeholders, the end of a statement and what kind of statement it is,
//! without being misled by literals, quoted names and comments.
//!
//! It never judges: text that it cannot read to the end (an unterminated literal) becomes one token, and the server
//! gives the error.

/// Whose lexical rules apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// `$1`, dollar quotes, `E''`, nested comments.
    Postgres,
    /// `[name]`, `` `name` ``, flat comments.
    Sqlite,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keyword or an unquoted name.
    Word,
    /// A quoted name.
    Quoted,
    /// A string literal, of whatever notation.
    Literal,
    /// A number.
    Number,
    /// `$n` of Postgres.
    Placeholder(u32),
    /// Any other single byte.
    Symbol(u8),
}

/// A token and where it stands, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The kind of a statement, by its main verb: `WITH x AS (…) UPDATE …` is an `UPDATE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// `INSERT`, `REPLACE`.
    Insert,
    /// `UPDATE`, `DELETE`, `MERGE`.
    Change,
    /// Everything else.
    Other,
}

/// A statement cut into tokens; white space and comments are gone.
#[derive(Debug)]
pub(super) struct Scanned<'a> {
    sql: &'a str,
    tokens: Vec<Token>,
}

/// Cuts a statement into tokens.
pub(super) fn scan(sql: &str, rules: Rules) -> Scanned<'_> {
    let mut lexer = Lexer { bytes: sql.as_bytes(), at: 0, rules };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next_token() {
        tokens.push(token);
    }
    Scanned { sql, tokens }
}

impl Scanned<'_> {
    /// True where nothing but semicolons follows the first semicolon. A trigger's body has semicolons of its own.
    pub(super) fn is_single(&self) -> bool {
        let creates = self.tokens.first().is_some_and(|token| self.is_word(token, "CREATE"));
        if creates && self.tokens.iter().take(3).any(|token| self.is_word(token, "TRIGGER")) {
            return true;
        }
        let semicolon = |token: &Token| token.kind == Kind::Symbol(b';');
        self.tokens.iter().skip_while(|token| !semicolon(token)).all(semicolon)
    }

    /// Where the statement ends: trailing semicolons and comments are not part of it.
    pub(super) fn end(&self) -> usize {
        self.tokens.iter().rfind(|token| token.kind != Kind::Symbol(b';')).map_or(0, |token| token.end)
    }

    /// The placeholders, in the order of the text.
    pub(super) fn placeholders(&self) -> impl Iterator<Item = (u32, Token)> + '_ {
        self.tokens.iter().filter_map(|token| match token.kind {
            Kind::Placeholder(number) => Some((number, *token)),
            _ => None,
        })
    }

    /// Where SQLite's numbered parameters (`?1`) stand, in bytes. None if there are parameters of another kind.
    pub(super) fn numbered_parameters(&self) -> Option<Vec<(usize, usize)>> {
        let mut found = Vec::new();
        let mut tokens = self.tokens.iter().peekable();
        while let Some(token) = tokens.next() {
            match token.kind {
                Kind::Symbol(b'?') => {
                    let number = tokens.next_if(|next| next.kind == Kind::Number && next.start == token.end)?;
                    found.push((token.start, number.end));
                }
                Kind::Symbol(b':' | b'@' | b'$') => return None,
                _ => {}
            }
        }
        Some(found)
    }

    /// The main verb.
    pub(super) fn verb(&self) -> Verb {
        let main = match self.with_list() {
            With::None => self.tokens.iter().find(|token| token.kind != Kind::Symbol(b'(')),
            With::Main(at) => self.tokens.iter().find(|token| token.start == at),
            With::Unreadable => None,
        };
        match main.map(|token| self.sql[token.start..token.end].to_ascii_uppercase()).as_deref() {
            Some("INSERT" | "REPLACE") => Verb::Insert,
            Some("UPDATE" | "DELETE" | "MERGE") => Verb::Change,
            _ => Verb::Other,
        }
    }

    /// Where the statement behind its `WITH` list begins.
    pub(super) fn with_list(&self) -> With {
        if !self.tokens.first().is_some_and(|token| self.is_word(token, "WITH")) {
            return With::None;
        }
        let mut depth = 0_usize;
        let mut body_opened = false;
        let mut body_closed = false;
        for (index, token) in self.tokens.iter().enumerate() {
            // `name AS [NOT] [MATERIALIZED] (…)` ends a member of the list; a comma starts the next one.
            if body_closed && depth == 0 {
                if token.kind == Kind::Symbol(b',') {
                    body_closed = false;
                    continue;
                }
                if self.is_word(token, "SEARCH") || self.is_word(token, "CYCLE") {
                    return With::Unreadable;
                }
                return With::Main(token.start);
            }
            match token.kind {
                Kind::Symbol(b'(') => {
                    let before = index.checked_sub(1).and_then(|index| self.tokens.get(index));
                    body_opened |= depth == 0
                        && before.is_some_and(|word| self.is_word(word, "AS") || self.is_word(word, "MATERIALIZED"));
                    depth += 1;
                }
                Kind::Symbol(b')') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 && body_opened {
                        body_opened = false;
                        body_closed = true;
                    }
                }
                _ => {}
            }
        }
        With::Unreadable
    }

    fn is_word(&self, token: &Token, word: &str) -> bool {
        token.kind == Kind::Word && self.sql[token.start..token.end].eq_ignore_ascii_case(word)
    }
}

/// What [`Scanned::with_list`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum With {
    /// The statement does not begin with `WITH`.
    None,
    /// The main statement begins at this byte.
    Main(usize),
    /// There is a `WITH` whose end was not found, or one with SEARCH or CYCLE.
    Unreadable,
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    rules: Rules,
}

impl Lexer<'_> {
    fn next_token(&mut self) -> Option<Token> {
        self.skip_blank();
        let start = self.at;
        let byte = *self.bytes.get(start)?;
        let kind = match byte {
            b'\'' => self.quoted(b'\'', false, Kind::Literal),
            b'"' => self.quoted(b'"', false, Kind::Quoted),
            b'`' if self.rules == Rules::Sqlite => self.quoted(b'`', false, Kind::Quoted),
            b'[' if self.rules == Rules::Sqlite => self.until(b']'),
            b'$' if self.rules == Rules::Postgres => self.dollar(),
            b'0'..=b'9' => self.number(),
            _ if is_name_start(byte) => self.word(),
            _ => {
                self.at += 1;
                Kind::Symbol(byte)
            }
        };
        Some(Token { kind, start, end: self.at })
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn skip_blank(&mut self) {
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(byte), _) if byte.is_ascii_whitespace() || byte == 0x0b => self.at += 1,
                (Some(b'-'), Some(b'-')) => {
                    while self.peek(0).is_some_and(|byte| byte != b'\n' && byte != b'\r') {
                        self.at += 1;
                    }
                }
                (Some(b'/'), Some(b'*')) => self.skip_comment(),
                _ => return,
            }
        }
    }

    fn skip_comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.bytes.len() {
            match (self.peek(0), self.peek(1)) {
                (Some(b'/'), Some(b'*')) if depth == 0 || self.rules == Rules::Postgres => {
                    depth += 1;
                    self.at += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    /// Text in quotes; a doubled quote is one of the text, and so is an escaped one where escapes count.
    fn quoted(&mut self, quote: u8, escapes: bool, kind: Kind) -> Kind {
        self.at += 1;
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            if escapes && byte == b'\\' {
                self.at = (self.at + 1).min(self.bytes.len());
            } else if byte == quote {
                if self.peek(0) != Some(quote) {
                    break;
                }
                self.at += 1;
            }
        }
        kind
    }

    fn until(&mut self, last: u8) -> Kind {
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            if byte == last {
                break;
            }
        }
        Kind::Quoted
    }

    /// `$1`, `$$text$$`, `$tag$text$tag$`, or a lone dollar sign.
    fn dollar(&mut self) -> Kind {
        let digits = self.bytes[self.at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            let text = &self.bytes[self.at + 1..self.at + 1 + digits];
            self.at += 1 + digits;
            let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            return number.map_or(Kind::Symbol(b'$'), Kind::Placeholder);
        }
        let tag =
            self.bytes[self.at + 1..].iter().take_while(|byte| is_name_start(**byte) || byte.is_ascii_digit()).count();
        if self.peek(1 + tag) != Some(b'$') {
            self.at += 1;
            return Kind::Symbol(b'$');
        }
        let delimiter = &self.bytes[self.at..self.at + tag + 2];
        let body = self.at + delimiter.len();
        let length = self.bytes[body..].windows(delimiter.len()).position(|window| window == delimiter);
        self.at = length.map_or(self.bytes.len(), |length| body + length + delimiter.len());
        Kind::Literal
    }

    fn number(&mut self) -> Kind {
        while self.peek(0).is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_') {
            self.at += 1;
        }
        Kind::Number
    }

    fn word(&mut self) -> Kind {
        let start = self.at;
        while self.peek(0).is_some_and(|byte| is_name_start(byte) || byte.is_ascii_digit() || byte == b'$') {
            self.at += 1;
        }
        let escapes = self.rules == Rules::Postgres
            && self.at - start == 1
            && self.bytes[start].eq_ignore_ascii_case(&b'e')
            && self.peek(0) == Some(b'\'');
        if escapes { self.quoted(b'\'', true, Kind::Literal) } else { Kind::Word }
    }
}

fn is_name_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(sql: &str) -> Vec<u32> {
        scan(sql, Rules::Postgres).placeholders().map(|(number, _)| number).collect()
    }

    #[test]
    fn placeholders_are_found_outside_of_text_only() {
        assert_eq!(numbers("SELECT $1, $2+$10"), [1, 2, 10]);
        assert_eq!(numbers("SELECT '$1', \"$2\", $$ $3 $$, $tag$ $4 $$ $tag$, $5"), [5]);
        assert_eq!(numbers("SELECT '''$1', E'\\'$2', e'\\\\', $3"), [3]);
        assert_eq!(numbers("SELECT 1 -- $1\n, $2 /* $3 /* $4 */ $5 */ , $6"), [2, 6]);
        assert_eq!(numbers("SELECT a$1, é$2, $3"), [3]);
        assert_eq!(numbers("SELECT 'open $1"), [] as [u32; 0]);
        assert_eq!(numbers("SELECT $99999999999999999999, $, $x"), [] as [u32; 0]);
        assert_eq!(numbers("SELECT U&'\\0041' , x'41', $1"), [1]);
    }

    #[test]
    fn the_main_statement_is_found_behind_its_with_list() {
        let main = |sql| match scan(sql, Rules::Postgres).with_list() {
            With::Main(at) => &sql[at..],
            With::None => "none",
            With::Unreadable => "unreadable",
        };
        assert_eq!(main("SELECT 1"), "none");
        assert_eq!(main("WITH a AS (SELECT 1) SELECT * FROM a"), "SELECT * FROM a");
        assert_eq!(
            main(
                "with recursive a(x, y) as not materialized (select (1), 2), \"b\" as (delete from t returning ')') update u set v = 1"
            ),
            "update u set v = 1"
        );
        assert_eq!(main("WITH a AS (SELECT 1) (SELECT 2)"), "(SELECT 2)");
        assert_eq!(main("WITH a AS (SELECT 1) SEARCH DEPTH FIRST BY x SET y SELECT 2"), "unreadable");
        assert_eq!(main("WITH a AS (SELECT 1"), "unreadable");
    }

    #[test]
    fn verbs() {
        let verb = |sql| scan(sql, Rules::Sqlite).verb();
        assert_eq!(verb("/* c */ insert into t values (1)"), Verb::Insert);
        assert_eq!(verb("WITH a AS (SELECT 1) REPLACE INTO t SELECT * FROM a"), Verb::Insert);
        assert_eq!(verb("delete from [insert]"), Verb::Change);
        assert_eq!(verb("(SELECT 1)"), Verb::Other);
        assert_eq!(verb(""), Verb::Other);
    }

    #[test]
    fn several_statements_are_told_from_one() {
        let single = |sql| scan(sql, Rules::Postgres).is_single();
        assert!(single("SELECT 1"));
        assert!(single("SELECT ';' ; -- done; \n ;"));
        assert!(!single("SELECT 1; SELECT 2"));
        assert!(single("CREATE TEMP TRIGGER a BEFORE UPDATE ON t BEGIN SELECT 1; END"));
        assert_eq!(scan("SELECT 1 ; -- end", Rules::Postgres).end(), 8);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic_and_tokens_never_overlap(sql in "\\PC{0,40}|[$'\"`\\[\\]eE1;/*\\-\\\\\n(),a ]{0,60}") {
            for rules in [Rules::Postgres, Rules::Sqlite] {
                let scanned = scan(&sql, rules);
                let mut last = 0;
                for token in &scanned.tokens {
                    assert!(token.start >= last && token.end > token.start && token.end <= sql.len());
                    last = token.end;
                }
                scanned.verb();
                scanned.with_list();
                scanned.is_single();
                assert!(sql.is_char_boundary(scanned.end()));
            }
        }
    }
}
