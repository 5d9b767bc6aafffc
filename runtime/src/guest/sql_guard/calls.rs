//! Function calls: by name, by keyword, with windows.

use sqlparser::ast::{
    CeilFloorKind, DataType, DateTimeField, DuplicateTreatment, Expr, ExtractSyntax, Function, FunctionArg,
    FunctionArgExpr, FunctionArgOperator, FunctionArgumentClause, FunctionArgumentList, FunctionArguments, Interval,
    NamedWindowDefinition, NamedWindowExpr, ObjectName, SearchModifier, TrimWhereField, WindowFrame, WindowFrameBound,
    WindowFrameUnits, WindowSpec, WindowType,
};

use super::write::{Pen, Step, absent, unsupported};
use super::{GuardError, Kind, functions, names, types};
use crate::ledger::database::Dialect;

impl Pen<'_> {
    /// Calls whose arguments have keywords among them.
    pub(super) fn keyword_call(&mut self, expr: &Expr) -> Step {
        match expr {
            Expr::Interval(interval) => self.interval(interval),
            Expr::AtTimeZone { timestamp, time_zone } if self.dialect() == Dialect::Postgres => {
                self.infix(timestamp, "AT TIME ZONE", time_zone)
            }
            Expr::Extract { field, syntax: ExtractSyntax::From, expr } if self.dialect() != Dialect::Sqlite => {
                self.put("EXTRACT(");
                self.put(date_field(field)?);
                self.clause("FROM", Some(expr))?;
                self.put(")");
                Ok(())
            }
            Expr::Ceil { expr, field } => self.rounded("CEIL(", expr, field),
            Expr::Floor { expr, field } => self.rounded("FLOOR(", expr, field),
            Expr::Position { expr, r#in } if self.dialect() != Dialect::Sqlite => {
                self.put("POSITION(");
                self.infix(expr, "IN", r#in)?;
                self.put(")");
                Ok(())
            }
            Expr::Substring { expr, substring_from, substring_for, special, shorthand } => {
                self.put(if *shorthand { "SUBSTR(" } else { "SUBSTRING(" });
                self.expr(expr)?;
                let (from, length) = if *special { (",", ",") } else { ("FROM", "FOR") };
                self.clause(from, substring_from.as_deref())?;
                self.clause(length, substring_for.as_deref())?;
                self.put(")");
                Ok(())
            }
            Expr::Trim { trim_where, trim_what, expr, trim_characters } => {
                self.trim(trim_where.as_ref(), trim_what.as_deref(), expr, trim_characters.as_deref())
            }
            Expr::Overlay { expr, overlay_what, overlay_from, overlay_for } if self.dialect() == Dialect::Postgres => {
                self.put("OVERLAY(");
                self.infix(expr, "PLACING", overlay_what)?;
                self.clause("FROM", Some(overlay_from))?;
                self.clause("FOR", overlay_for.as_deref())?;
                self.put(")");
                Ok(())
            }
            Expr::Collate { expr, collation } => {
                let [collation] = names::idents(collation)?[..] else {
                    return unsupported("a collation with a schema");
                };
                self.expr(expr)?;
                self.put("COLLATE");
                self.ident(collation)
            }
            Expr::Convert { is_try: false, expr, data_type, charset, target_before_value: false, styles } => {
                self.convert(expr, data_type.as_ref(), charset.as_ref(), styles)
            }
            Expr::MatchAgainst { columns, match_value, opt_search_modifier } => {
                self.put("MATCH");
                self.parens(columns, |pen, column| pen.column(&names::idents(column)?))?;
                self.put("AGAINST");
                self.put("(");
                self.value(&match_value.value)?;
                self.search_modifier(opt_search_modifier.as_ref());
                self.put(")");
                Ok(())
            }
            other => unsupported(format!("`{other}`")),
        }
    }

    fn search_modifier(&mut self, modifier: Option<&SearchModifier>) {
        match modifier {
            None => {}
            Some(SearchModifier::InNaturalLanguageMode) => self.put("IN NATURAL LANGUAGE MODE"),
            Some(SearchModifier::InNaturalLanguageModeWithQueryExpansion) => {
                self.put("IN NATURAL LANGUAGE MODE WITH QUERY EXPANSION");
            }
            Some(SearchModifier::InBooleanMode) => self.put("IN BOOLEAN MODE"),
            Some(SearchModifier::WithQueryExpansion) => self.put("WITH QUERY EXPANSION"),
        }
    }

    fn rounded(&mut self, call: &str, expr: &Expr, field: &CeilFloorKind) -> Step {
        let CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) = field else {
            return unsupported("CEIL or FLOOR with more than one argument");
        };
        self.put(call);
        self.expr(expr)?;
        self.put(")");
        Ok(())
    }

    fn trim(
        &mut self,
        side: Option<&TrimWhereField>,
        what: Option<&Expr>,
        expr: &Expr,
        characters: Option<&[Expr]>,
    ) -> Step {
        self.put("TRIM(");
        match side {
            None => {}
            Some(TrimWhereField::Both) => self.put("BOTH"),
            Some(TrimWhereField::Leading) => self.put("LEADING"),
            Some(TrimWhereField::Trailing) => self.put("TRAILING"),
        }
        if let Some(what) = what {
            self.expr(what)?;
            self.put("FROM");
        }
        self.expr(expr)?;
        for characters in characters.unwrap_or_default() {
            self.clause(",", Some(characters))?;
        }
        self.put(")");
        Ok(())
    }

    fn convert(
        &mut self,
        expr: &Expr,
        data_type: Option<&DataType>,
        charset: Option<&ObjectName>,
        styles: &[Expr],
    ) -> Step {
        absent(self.dialect() != Dialect::MySql || !styles.is_empty(), "CONVERT")?;
        self.put("CONVERT(");
        self.expr(expr)?;
        match (data_type, charset) {
            (Some(data_type), None) => {
                let text = types::text(self.grants, data_type)?;
                self.put(",");
                self.put(&text);
            }
            (None, Some(charset)) => {
                let [charset] = names::idents(charset)?[..] else {
                    return unsupported("a character set with a schema");
                };
                self.put("USING");
                self.ident(charset)?;
            }
            _ => return unsupported("this form of CONVERT"),
        }
        self.put(")");
        Ok(())
    }

    fn interval(&mut self, interval: &Interval) -> Step {
        let Interval { value, leading_field, leading_precision, last_field, fractional_seconds_precision } = interval;
        absent(leading_precision.is_some() || fractional_seconds_precision.is_some(), "an INTERVAL with a precision")?;
        absent(last_field.is_some() || self.dialect() == Dialect::Sqlite, "an INTERVAL from … TO …")?;
        self.put("INTERVAL");
        self.expr(value)?;
        if let Some(field) = leading_field {
            self.put(date_field(field)?);
        }
        Ok(())
    }

    pub(super) fn function(&mut self, function: &Function) -> Step {
        let Function { name, uses_odbc_syntax, parameters, args, within_group, filter, null_treatment, over } =
            function;
        absent(*uses_odbc_syntax, "{fn …}")?;
        absent(!matches!(parameters, FunctionArguments::None), "a function with parameters before its arguments")?;
        absent(null_treatment.is_some(), "IGNORE or RESPECT NULLS")?;
        let parts = names::meanings(self.dialect(), name)?;
        let lower = parts.last().map(|last| last.to_ascii_lowercase()).unwrap_or_default();
        let known = parts.len() == 1 && functions::is_known(self.dialect(), &lower);
        self.function_name(name, known)?;
        match args {
            // current_timestamp and its like; Postgres and SQLite take no parentheses there.
            FunctionArguments::None if known && is_niladic(&lower) => {}
            FunctionArguments::None => return unsupported(format!("function `{name}` without parentheses")),
            FunctionArguments::Subquery(query) if lower == "array" => {
                self.glue("(");
                self.query(query)?;
                self.put(")");
            }
            FunctionArguments::Subquery(_) => return unsupported("a query as argument without parentheses of its own"),
            FunctionArguments::List(list) => self.arguments(&lower, list)?,
        }
        if !within_group.is_empty() {
            self.put("WITHIN GROUP (");
            self.order_by_list(within_group)?;
            self.put(")");
        }
        if let Some(filter) = filter {
            self.put("FILTER (");
            self.clause("WHERE", Some(filter))?;
            self.put(")");
        }
        match over {
            None => Ok(()),
            Some(WindowType::NamedWindow(name)) => {
                self.put("OVER");
                self.ident(name)
            }
            Some(WindowType::WindowSpec(spec)) => {
                self.put("OVER");
                self.window(spec)
            }
        }
    }

    /// Checks the name of a function and writes it. The known ones are words, never quoted, since some are grammar.
    pub(super) fn function_name(&mut self, name: &ObjectName, known: bool) -> Step {
        let parts = names::meanings(self.dialect(), name)?;
        parts.iter().try_for_each(|part| self.check_name(part))?;
        if known {
            // A quoted name on Postgres is exact, and all of ours are lower case.
            let [one] = parts.as_slice() else { return unsupported(format!("function `{name}`")) };
            let folded = one.to_ascii_lowercase();
            if self.dialect() != Dialect::Postgres || folded == *one {
                self.put(&folded);
                return Ok(());
            }
        }
        let shown = parts.join(".");
        if functions::is_never(parts.last().map_or("", String::as_str)) {
            return Err(GuardError::denied(
                format!("function `{shown}`: it reaches beyond the statement's transaction"),
                "no grant opens it",
            ));
        }
        if !self.grants.function(&parts) {
            return Err(GuardError::denied(
                format!("function `{shown}` is not on the list of functions for guests"),
                format!("add {shown:?} to grants.functions, if it reads and writes only what this consumer may"),
            ));
        }
        self.kind = Kind::Write;
        self.path(&names::idents(name)?)
    }

    fn arguments(&mut self, function: &str, list: &FunctionArgumentList) -> Step {
        let FunctionArgumentList { duplicate_treatment, args, clauses } = list;
        absent(
            function == "last_insert_id" && !args.is_empty(),
            "last_insert_id with an argument: it sets session state",
        )?;
        self.glue("(");
        match duplicate_treatment {
            None => {}
            Some(DuplicateTreatment::Distinct) => self.put("DISTINCT"),
            Some(DuplicateTreatment::All) => self.put("ALL"),
        }
        let args = match (function, args.as_slice()) {
            (
                "timestampdiff" | "timestampadd",
                [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(unit))), rest @ ..],
            ) => {
                self.put(time_unit(&unit.value)?);
                self.put(",");
                rest
            }
            (_, all) => all,
        };
        self.list(args, Self::function_arg)?;
        for clause in clauses {
            match clause {
                FunctionArgumentClause::OrderBy(expressions) => self.order_by_list(expressions)?,
                FunctionArgumentClause::Separator(value) => {
                    self.put("SEPARATOR");
                    self.value(&value.value)?;
                }
                other => return unsupported(format!("`{other}` in the arguments of `{function}`")),
            }
        }
        self.put(")");
        Ok(())
    }

    pub(super) fn function_arg(&mut self, arg: &FunctionArg) -> Step {
        let value = match arg {
            FunctionArg::Unnamed(value) => value,
            FunctionArg::Named { name, arg, operator: FunctionArgOperator::RightArrow } => {
                self.ident(name)?;
                self.put("=>");
                arg
            }
            other => return unsupported(format!("argument `{other}`")),
        };
        match value {
            FunctionArgExpr::Expr(expr) => self.expr(expr),
            FunctionArgExpr::Wildcard => {
                self.put("*");
                Ok(())
            }
            FunctionArgExpr::QualifiedWildcard(name) => self.qualified_wildcard(name),
            FunctionArgExpr::WildcardWithOptions(_) => unsupported("options after `*`"),
        }
    }

    /// Writes the WINDOW clause.
    pub(super) fn windows(&mut self, windows: &[NamedWindowDefinition]) -> Step {
        if windows.is_empty() {
            return Ok(());
        }
        self.put("WINDOW");
        self.list(windows, |pen, NamedWindowDefinition(name, definition)| {
            pen.ident(name)?;
            pen.put("AS");
            match definition {
                NamedWindowExpr::NamedWindow(_) => unsupported("a window that is only another name"),
                NamedWindowExpr::WindowSpec(spec) => pen.window(spec),
            }
        })
    }

    fn window(&mut self, spec: &WindowSpec) -> Step {
        let WindowSpec { window_name, partition_by, order_by, window_frame } = spec;
        self.put("(");
        if let Some(name) = window_name {
            self.ident(name)?;
        }
        if !partition_by.is_empty() {
            self.put("PARTITION BY");
            self.list(partition_by, Self::expr)?;
        }
        self.order_by_list(order_by)?;
        if let Some(WindowFrame { units, start_bound, end_bound }) = window_frame {
            self.put(match units {
                WindowFrameUnits::Rows => "ROWS",
                WindowFrameUnits::Range => "RANGE",
                WindowFrameUnits::Groups => "GROUPS",
            });
            if end_bound.is_some() {
                self.put("BETWEEN");
            }
            self.bound(start_bound)?;
            if let Some(end) = end_bound {
                self.put("AND");
                self.bound(end)?;
            }
        }
        self.put(")");
        Ok(())
    }

    fn bound(&mut self, bound: &WindowFrameBound) -> Step {
        let (distance, direction) = match bound {
            WindowFrameBound::CurrentRow => {
                self.put("CURRENT ROW");
                return Ok(());
            }
            WindowFrameBound::Preceding(distance) => (distance, "PRECEDING"),
            WindowFrameBound::Following(distance) => (distance, "FOLLOWING"),
        };
        match distance {
            None => self.put("UNBOUNDED"),
            Some(distance) => self.expr(distance)?,
        }
        self.put(direction);
        Ok(())
    }
}

/// Functions that are written without parentheses.
fn is_niladic(name: &str) -> bool {
    matches!(name, "current_date" | "current_time" | "current_timestamp" | "localtime" | "localtimestamp")
}

/// The unit that two functions of MySQL take as a bare word.
fn time_unit(word: &str) -> Result<&'static str, GuardError> {
    const UNITS: [&str; 9] = ["MICROSECOND", "SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR"];
    match UNITS.iter().find(|unit| unit.eq_ignore_ascii_case(word)) {
        Some(unit) => Ok(unit),
        None => unsupported(format!("`{word}` as a unit of time")),
    }
}

fn date_field(field: &DateTimeField) -> Result<&'static str, GuardError> {
    use DateTimeField as F;
    Ok(match field {
        F::Year => "YEAR",
        F::Quarter => "QUARTER",
        F::Month => "MONTH",
        F::Week(None) => "WEEK",
        F::Day => "DAY",
        F::Hour => "HOUR",
        F::Minute => "MINUTE",
        F::Second => "SECOND",
        F::Millisecond => "MILLISECOND",
        F::Milliseconds => "MILLISECONDS",
        F::Microsecond => "MICROSECOND",
        F::Microseconds => "MICROSECONDS",
        F::Century => "CENTURY",
        F::Decade => "DECADE",
        F::Millennium => "MILLENNIUM",
        F::Dow => "DOW",
        F::Doy => "DOY",
        F::Isodow => "ISODOW",
        F::Isoyear => "ISOYEAR",
        F::Epoch => "EPOCH",
        F::Julian => "JULIAN",
        F::Timezone => "TIMEZONE",
        other => return unsupported(format!("`{other}` as part of a date")),
    })
}
