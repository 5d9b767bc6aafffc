//! What of sqlparser's grammar is switched on, per database, and how much work one statement may cause.
//!
//! Each option here is one that a guest needs; those of sqlparser's own dialects that only open doors (DDL, session
//! commands, hints, modifiers, speculative arguments) stay off. The tree is checked all the same.

use std::any::TypeId;
use std::cell::Cell;

use sqlparser::ast::{Expr, Statement};
use sqlparser::dialect::{Dialect as Grammar, MySqlDialect, PostgreSqlDialect, Precedence, SQLiteDialect};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError, ParserOptions};
use sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::ledger::database::Dialect;

/// How many steps the parser may take: some statements make it try the same tokens again and again.
const FUEL: u32 = 200_000;
/// How deep the parser may recurse.
const MAX_DEPTH: usize = 100;

/// Parses the tokens of one statement, all of them.
pub(super) fn parse(dialect: Dialect, tokens: Vec<TokenWithSpan>) -> Result<Statement, ParserError> {
    let grammar = Fenced { dialect, fuel: Cell::new(FUEL) };
    let mut parser = Parser::new(&grammar)
        .with_options(ParserOptions::new().with_trailing_commas(false))
        .with_recursion_limit(MAX_DEPTH)
        .with_tokens_with_locations(tokens);
    let statement = parser.parse_statement()?;
    match parser.peek_token() {
        TokenWithSpan { token: Token::EOF, .. } => Ok(statement),
        extra => {
            Err(ParserError::ParserError(format!("Expected: end of statement, found: {extra}{}", extra.span.start)))
        }
    }
}

#[derive(Debug)]
struct Fenced {
    dialect: Dialect,
    fuel: Cell<u32>,
}

impl Fenced {
    fn base(&self) -> &'static dyn Grammar {
        match self.dialect {
            Dialect::Postgres => &PostgreSqlDialect {},
            Dialect::MySql => &MySqlDialect {},
            Dialect::Sqlite => &SQLiteDialect {},
        }
    }

    fn is(&self, one_of: &[Dialect]) -> bool {
        one_of.contains(&self.dialect)
    }

    /// `RecursionLimitExceeded` is the one error that sqlparser's speculative branches do not swallow.
    fn burn(&self) -> Result<(), ParserError> {
        let left = self.fuel.get().checked_sub(1).ok_or(ParserError::RecursionLimitExceeded)?;
        self.fuel.set(left);
        Ok(())
    }
}

use Dialect::{MySql, Postgres, Sqlite};

impl Grammar for Fenced {
    fn dialect(&self) -> TypeId {
        self.base().dialect()
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.base().is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.base().is_identifier_part(ch)
    }

    fn parse_prefix(&self, _parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
        self.burn().err().map(Err)
    }

    fn parse_infix(&self, parser: &mut Parser, expr: &Expr, precedence: u8) -> Option<Result<Expr, ParserError>> {
        self.base().parse_infix(parser, expr, precedence)
    }

    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        match self.burn() {
            Ok(()) => self.base().get_next_precedence(parser),
            Err(spent) => Some(Err(spent)),
        }
    }

    fn prec_value(&self, precedence: Precedence) -> u8 {
        self.base().prec_value(precedence)
    }

    fn parse_statement(&self, parser: &mut Parser) -> Option<Result<Statement, ParserError>> {
        // SQLite's REPLACE; MySQL's LOCK TABLES is nothing for a guest.
        if self.is(&[Sqlite]) { self.base().parse_statement(parser) } else { None }
    }

    fn is_reserved_for_identifier(&self, keyword: Keyword) -> bool {
        self.base().is_reserved_for_identifier(keyword)
    }

    fn is_column_alias(&self, keyword: &Keyword, parser: &mut Parser) -> bool {
        self.base().is_column_alias(keyword, parser)
    }

    fn is_select_item_alias(&self, explicit: bool, keyword: &Keyword, parser: &mut Parser) -> bool {
        self.base().is_select_item_alias(explicit, keyword, parser)
    }

    fn is_table_factor(&self, keyword: &Keyword, parser: &mut Parser) -> bool {
        self.base().is_table_factor(keyword, parser)
    }

    fn is_table_alias(&self, keyword: &Keyword, parser: &mut Parser) -> bool {
        self.base().is_table_alias(keyword, parser)
    }

    fn is_table_factor_alias(&self, explicit: bool, keyword: &Keyword, parser: &mut Parser) -> bool {
        self.base().is_table_factor_alias(explicit, keyword, parser)
    }

    fn supports_filter_during_aggregation(&self) -> bool {
        self.is(&[Postgres, Sqlite])
    }

    fn supports_group_by_expr(&self) -> bool {
        self.is(&[Postgres])
    }

    fn supports_group_by_with_modifier(&self) -> bool {
        self.is(&[MySql])
    }

    fn supports_left_associative_joins_without_parens(&self) -> bool {
        self.is(&[Sqlite])
    }

    fn supports_cross_join_constraint(&self) -> bool {
        self.is(&[MySql])
    }

    fn supports_in_empty_list(&self) -> bool {
        self.is(&[Sqlite])
    }

    fn supports_named_fn_args_with_rarrow_operator(&self) -> bool {
        self.is(&[Postgres])
    }

    fn supports_update_order_by(&self) -> bool {
        self.is(&[MySql])
    }

    fn supports_limit_comma(&self) -> bool {
        self.is(&[MySql, Sqlite])
    }

    fn supports_string_literal_concatenation(&self) -> bool {
        self.is(&[MySql])
    }

    fn supports_empty_projections(&self) -> bool {
        self.is(&[Postgres])
    }

    fn supports_match_against(&self) -> bool {
        self.is(&[MySql])
    }

    fn supports_insert_set(&self) -> bool {
        self.is(&[MySql])
    }

    fn supports_insert_table_alias(&self) -> bool {
        self.is(&[Postgres])
    }

    fn require_interval_qualifier(&self) -> bool {
        self.is(&[MySql])
    }

    fn supports_interval_options(&self) -> bool {
        self.is(&[Postgres])
    }

    fn supports_bitwise_shift_operators(&self) -> bool {
        true
    }

    fn supports_array_typedef_with_brackets(&self) -> bool {
        self.is(&[Postgres])
    }

    fn supports_geometric_types(&self) -> bool {
        self.is(&[Postgres])
    }

    fn supports_notnull_operator(&self) -> bool {
        self.is(&[Postgres, Sqlite])
    }

    fn supports_data_type_signed_suffix(&self) -> bool {
        self.is(&[MySql])
    }

    fn supports_double_ampersand_operator(&self) -> bool {
        self.is(&[MySql])
    }

    fn supports_comma_separated_trim(&self) -> bool {
        self.is(&[Postgres, Sqlite])
    }
}
