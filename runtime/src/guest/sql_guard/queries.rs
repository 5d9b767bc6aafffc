//! SELECT, VALUES, WITH, and what they read from.

use sqlparser::ast::{
    Cte, CteAsMaterialized, Distinct, Expr, Fetch, GroupByExpr, GroupByWithModifier, Ident, LimitClause, LockClause,
    LockType, NonBlock, ObjectName, Offset, OffsetRows, OrderBy, OrderByExpr, OrderByKind, OrderByOptions, OrderBySort,
    Parens, Query, Select, SelectFlavor, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, SetOperator,
    SetQuantifier, TableAlias, TableFactor, TableWithJoins, Values, WildcardAdditionalOptions, With,
};

use super::write::{Pen, Step, absent, unsupported};
use super::{GuardError, Kind, Verb, names};
use crate::ledger::database::Dialect;

impl Pen<'_> {
    /// Writes a query. Answers whether it returns rows, which a data-modifying statement in its place may not.
    pub(super) fn query(&mut self, query: &Query) -> Result<bool, GuardError> {
        let Query {
            with,
            body,
            order_by,
            limit_clause,
            fetch,
            locks,
            for_clause,
            settings,
            format_clause,
            pipe_operators,
        } = query;
        absent(for_clause.is_some(), "FOR XML, FOR JSON or FOR BROWSE")?;
        absent(settings.is_some(), "SETTINGS")?;
        absent(format_clause.is_some(), "FORMAT")?;
        absent(!pipe_operators.is_empty(), "pipe operators")?;
        let outer = self.ctes.len();
        if let Some(with) = with {
            self.with(with)?;
        }
        let returns_rows = self.body(body)?;
        if let Some(order_by) = order_by {
            self.order_by(order_by)?;
        }
        if let Some(limit) = limit_clause {
            self.limit(limit)?;
        }
        if let Some(fetch) = fetch {
            self.fetch(fetch)?;
        }
        for lock in locks {
            self.lock(lock, body)?;
        }
        self.ctes.truncate(outer);
        Ok(returns_rows)
    }

    fn with(&mut self, with: &With) -> Step {
        let With { with_token: _, recursive, cte_tables } = with;
        self.put(if *recursive { "WITH RECURSIVE" } else { "WITH" });
        self.list(cte_tables, |pen, cte| {
            let Cte { alias, query, from, materialized, closing_paren_token: _ } = cte;
            let TableAlias { explicit: _, name, columns, at } = alias;
            absent(from.is_some() || at.is_some(), "WITH … FROM")?;
            let sent = pen.cte_name(name);
            pen.check_name(&names::meaning(pen.dialect(), name))?;
            pen.name(&sent)?;
            if !columns.is_empty() {
                pen.parens(columns, Self::alias_column)?;
            }
            // Of the CTEs of a WITH, each sees those before it and, if recursive, itself: what all databases agree on.
            if *recursive {
                pen.ctes.push(sent.clone());
            }
            pen.put("AS");
            match (materialized, pen.dialect()) {
                (None, _) => {}
                (Some(_), Dialect::MySql) => return unsupported("MATERIALIZED"),
                (Some(CteAsMaterialized::Materialized), _) => pen.put("MATERIALIZED"),
                (Some(CteAsMaterialized::NotMaterialized), _) => pen.put("NOT MATERIALIZED"),
            }
            pen.subquery(query)?;
            if !*recursive {
                pen.ctes.push(sent);
            }
            Ok(())
        })
    }

    /// Writes a query in parentheses.
    pub(super) fn subquery(&mut self, query: &Query) -> Step {
        self.put("(");
        self.query(query)?;
        self.put(")");
        Ok(())
    }

    fn body(&mut self, body: &SetExpr) -> Result<bool, GuardError> {
        match body {
            SetExpr::Select(select) => self.select(select)?,
            SetExpr::Query(query) => self.subquery(query)?,
            SetExpr::SetOperation { .. } => self.set_operation(body)?,
            SetExpr::Values(values) => self.values(values)?,
            SetExpr::Insert(statement)
            | SetExpr::Update(statement)
            | SetExpr::Delete(statement)
            | SetExpr::Merge(statement) => {
                return self.statement(statement);
            }
            SetExpr::Table(_) => return unsupported("TABLE: write SELECT * FROM"),
        }
        Ok(true)
    }

    /// `a UNION b UNION c …`: the tree leans to the left, as deep as there are members, so it is walked in a loop.
    fn set_operation(&mut self, body: &SetExpr) -> Step {
        let mut right_hand = Vec::new();
        let mut first = body;
        while let SetExpr::SetOperation { left, op, set_quantifier, right } = first {
            right_hand.push((op, set_quantifier, right));
            first = left;
        }
        self.body(first)?;
        for (op, quantifier, right) in right_hand.into_iter().rev() {
            self.put(match op {
                SetOperator::Union => "UNION",
                SetOperator::Except => "EXCEPT",
                SetOperator::Intersect => "INTERSECT",
                SetOperator::Minus => return unsupported("MINUS"),
            });
            match quantifier {
                SetQuantifier::None => {}
                SetQuantifier::All => self.put("ALL"),
                SetQuantifier::Distinct => self.put("DISTINCT"),
                SetQuantifier::ByName | SetQuantifier::AllByName | SetQuantifier::DistinctByName => {
                    return unsupported("BY NAME");
                }
            }
            self.body(right)?;
        }
        Ok(())
    }

    fn values(&mut self, values: &Values) -> Step {
        let Values { explicit_row, value_keyword, rows } = values;
        absent(*value_keyword, "VALUE: write VALUES")?;
        self.put("VALUES");
        self.list(rows, |pen, row| {
            let Parens { opening_token: _, content, closing_token: _ } = row;
            if *explicit_row {
                pen.put("ROW");
            }
            pen.parens(content, Self::assigned)
        })
    }

    fn select(&mut self, select: &Select) -> Step {
        let Select {
            select_token: _,
            optimizer_hints,
            distinct,
            select_modifiers,
            top,
            top_before_distinct: _,
            projection,
            exclude,
            into,
            from,
            lateral_views,
            prewhere,
            selection,
            connect_by,
            group_by,
            cluster_by,
            distribute_by,
            sort_by,
            having,
            named_window,
            qualify,
            window_before_qualify: _,
            value_table_mode,
            flavor,
        } = select;
        absent(into.is_some(), "SELECT … INTO: it creates a table, a file or a variable")?;
        absent(!optimizer_hints.is_empty(), "optimizer hints")?;
        absent(select_modifiers.is_some(), "SELECT modifiers")?;
        absent(top.is_some(), "TOP")?;
        absent(exclude.is_some(), "EXCLUDE")?;
        absent(!lateral_views.is_empty(), "LATERAL VIEW")?;
        absent(prewhere.is_some(), "PREWHERE")?;
        absent(!connect_by.is_empty(), "CONNECT BY")?;
        absent(
            !(cluster_by.is_empty() && distribute_by.is_empty() && sort_by.is_empty()),
            "CLUSTER, DISTRIBUTE or SORT BY",
        )?;
        absent(qualify.is_some(), "QUALIFY")?;
        absent(value_table_mode.is_some(), "SELECT AS")?;
        absent(*flavor != SelectFlavor::Standard, "FROM without SELECT")?;
        self.put("SELECT");
        self.distinct(distinct.as_ref())?;
        self.list(projection, Self::select_item)?;
        self.from(from)?;
        self.clause("WHERE", selection.as_ref())?;
        self.group_by(group_by)?;
        self.clause("HAVING", having.as_ref())?;
        self.windows(named_window)
    }

    fn distinct(&mut self, distinct: Option<&Distinct>) -> Step {
        match distinct {
            None => {}
            Some(Distinct::All) => self.put("ALL"),
            Some(Distinct::Distinct) => self.put("DISTINCT"),
            Some(Distinct::On(_)) if self.dialect() != Dialect::Postgres => return unsupported("DISTINCT ON"),
            Some(Distinct::On(expressions)) => {
                self.put("DISTINCT ON");
                self.parens(expressions, Self::expr)?;
            }
        }
        Ok(())
    }

    /// Writes what a SELECT or RETURNING lists.
    pub(super) fn select_item(&mut self, item: &SelectItem) -> Step {
        match item {
            SelectItem::UnnamedExpr(expr) => self.expr(expr),
            SelectItem::ExprWithAlias { expr, alias } => {
                self.expr(expr)?;
                self.put("AS");
                self.ident(alias)
            }
            SelectItem::Wildcard(options) => {
                plain_wildcard(options)?;
                self.put("*");
                Ok(())
            }
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options) => {
                plain_wildcard(options)?;
                self.qualified_wildcard(name)
            }
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::Expr(_), _) => unsupported("(…).*"),
            SelectItem::ExprWithAliases { .. } => unsupported("several names for one column"),
        }
    }

    /// `t.*`
    pub(super) fn qualified_wildcard(&mut self, name: &ObjectName) -> Step {
        let idents = names::idents(name)?;
        if idents.len() > 2 || idents.first().is_none_or(|first| names::is_system_schema(&first.value)) {
            return unsupported(format!("`{name}.*`"));
        }
        self.path(&idents)?;
        self.glue(".*");
        Ok(())
    }

    /// Writes a keyword and its condition, if there is one.
    pub(super) fn clause(&mut self, keyword: &str, condition: Option<&Expr>) -> Step {
        let Some(condition) = condition else { return Ok(()) };
        self.put(keyword);
        self.expr(condition)
    }

    fn group_by(&mut self, group_by: &GroupByExpr) -> Step {
        let GroupByExpr::Expressions(expressions, modifiers) = group_by else { return unsupported("GROUP BY ALL") };
        if expressions.is_empty() {
            return absent(!modifiers.is_empty(), "GROUP BY of nothing");
        }
        self.put("GROUP BY");
        self.list(expressions, Self::expr)?;
        match modifiers.as_slice() {
            [] => {}
            [GroupByWithModifier::Rollup] if self.dialect() == Dialect::MySql => self.put("WITH ROLLUP"),
            _ => return unsupported("this GROUP BY modifier"),
        }
        Ok(())
    }

    fn order_by(&mut self, order_by: &OrderBy) -> Step {
        let OrderBy { kind, interpolate } = order_by;
        absent(interpolate.is_some(), "INTERPOLATE")?;
        let OrderByKind::Expressions(expressions) = kind else { return unsupported("ORDER BY ALL") };
        self.order_by_list(expressions)
    }

    pub(super) fn order_by_list(&mut self, expressions: &[OrderByExpr]) -> Step {
        if expressions.is_empty() {
            return Ok(());
        }
        self.put("ORDER BY");
        self.list(expressions, |pen, OrderByExpr { expr, options, with_fill }| {
            absent(with_fill.is_some(), "WITH FILL")?;
            pen.expr(expr)?;
            let OrderByOptions { sort, nulls_first } = options;
            match sort {
                None => {}
                Some(OrderBySort::Asc) => pen.put("ASC"),
                Some(OrderBySort::Desc) => pen.put("DESC"),
                Some(OrderBySort::Using(_)) => return unsupported("ORDER BY … USING"),
            }
            match nulls_first {
                None => {}
                Some(true) => pen.put("NULLS FIRST"),
                Some(false) => pen.put("NULLS LAST"),
            }
            Ok(())
        })
    }

    fn limit(&mut self, limit: &LimitClause) -> Step {
        match limit {
            LimitClause::LimitOffset { limit, offset, limit_by } => {
                absent(!limit_by.is_empty(), "LIMIT … BY")?;
                self.clause("LIMIT", limit.as_ref())?;
                let Some(Offset { value, rows }) = offset else { return Ok(()) };
                self.clause("OFFSET", Some(value))?;
                match rows {
                    OffsetRows::None => {}
                    OffsetRows::Row | OffsetRows::Rows => self.put("ROWS"),
                }
                Ok(())
            }
            LimitClause::OffsetCommaLimit { offset, limit } => {
                self.clause("LIMIT", Some(offset))?;
                self.put(",");
                self.expr(limit)
            }
        }
    }

    fn fetch(&mut self, fetch: &Fetch) -> Step {
        let Fetch { with_ties, percent, quantity } = fetch;
        absent(*percent || self.dialect() == Dialect::Sqlite, "FETCH … PERCENT")?;
        let Some(Expr::Value(quantity)) = quantity else { return unsupported("FETCH without a plain number") };
        self.put("FETCH FIRST");
        self.value(&quantity.value)?;
        self.put(if *with_ties { "ROWS WITH TIES" } else { "ROWS ONLY" });
        Ok(())
    }

    /// Row locks hold up writers, so they take more than the right to read.
    fn lock(&mut self, lock: &LockClause, body: &SetExpr) -> Step {
        let LockClause { lock_type, of, nonblock } = lock;
        absent(self.dialect() == Dialect::Sqlite, "FOR UPDATE (SQLite locks the whole database)")?;
        let SetExpr::Select(select) = body else { return unsupported("row locks outside a plain SELECT") };
        let of = of.as_ref().map(names::idents).transpose()?;
        if of.as_ref().is_some_and(|of| of.len() != 1) {
            return unsupported("FOR UPDATE OF with more than the name from FROM");
        }
        let only = of.as_ref().map(|of| of[0]);
        let locked =
            select.from.iter().try_fold(0, |sum, table| Ok::<_, GuardError>(sum + self.lockable(table, only)?))?;
        if only.is_some() && locked == 0 {
            return unsupported("FOR UPDATE OF something that is no table in FROM");
        }
        self.kind = Kind::Write;
        self.put(match lock_type {
            LockType::Share => "FOR SHARE",
            LockType::Update => "FOR UPDATE",
        });
        if let Some(only) = only {
            self.put("OF");
            self.ident(only)?;
        }
        match nonblock {
            None => {}
            // A lock that is held for a moment would fail every attempt within milliseconds, and end in a dead letter.
            Some(NonBlock::Nowait) => {
                return Err(GuardError::denied(
                    "NOWAIT: an attempt waits for a row lock, up to limits.sql_lock_time, and then runs again uncounted",
                    "leave NOWAIT out, or write SKIP LOCKED to go on without the rows that others hold",
                ));
            }
            Some(NonBlock::SkipLocked) => self.put("SKIP LOCKED"),
        }
        Ok(())
    }

    /// Checks the tables that a row lock on `table` takes, and counts them.
    fn lockable(&self, table: &TableWithJoins, only: Option<&Ident>) -> Result<usize, GuardError> {
        let mut locked = 0;
        let joined = table.joins.iter().map(|join| &join.relation);
        for factor in std::iter::once(&table.relation).chain(joined) {
            locked += match factor {
                TableFactor::Table { name, alias, args: None, .. } if self.cte(name).is_none() => {
                    let called =
                        alias.as_ref().map(|alias| &alias.name).or(names::idents(name)?.last().copied()).cloned();
                    let meaning = |ident: &Ident| names::meaning(self.dialect(), ident);
                    let chosen = only.is_none_or(|only| called.is_some_and(|called| meaning(&called) == meaning(only)));
                    if !chosen {
                        continue;
                    }
                    let name = names::meanings(self.dialect(), name)?;
                    self.grants.any_of(&name, &[Verb::Update, Verb::Delete])?;
                    1
                }
                TableFactor::Table { .. } | TableFactor::UNNEST { .. } | TableFactor::JsonTable { .. } => 0,
                TableFactor::NestedJoin { table_with_joins, alias: None } => self.lockable(table_with_joins, only)?,
                _ => return unsupported("row locks on a subquery in FROM: put the lock inside it"),
            };
        }
        Ok(locked)
    }
}

fn plain_wildcard(options: &WildcardAdditionalOptions) -> Step {
    let WildcardAdditionalOptions {
        wildcard_token: _,
        opt_ilike,
        opt_exclude,
        opt_except,
        opt_replace,
        opt_rename,
        opt_alias,
    } = options;
    let plain = opt_ilike.is_none()
        && opt_exclude.is_none()
        && opt_except.is_none()
        && opt_replace.is_none()
        && opt_rename.is_none()
        && opt_alias.is_none();
    absent(!plain, "options after `*`")
}
