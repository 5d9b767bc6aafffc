//! What queries read from: tables, joins, subqueries, table functions, JSON_TABLE.

use sqlparser::ast::{
    FunctionArg, Join, JoinConstraint, JoinOperator, JsonTableColumn, JsonTableColumnErrorHandling,
    JsonTableNamedColumn, JsonTableNestedColumn, ObjectName, TableAlias, TableAliasColumnDef, TableFactor,
    TableFunctionArgs, TableWithJoins,
};

use super::write::{Pen, Step, absent, unsupported};
use super::{Verb, functions, names, types};
use crate::ledger::database::Dialect;

impl Pen<'_> {
    pub(super) fn from(&mut self, from: &[TableWithJoins]) -> Step {
        if from.is_empty() {
            return Ok(());
        }
        self.put("FROM");
        self.list(from, |pen, table| pen.table_with_joins(table))
    }

    /// Writes tables that are read.
    pub(super) fn table_with_joins(&mut self, table: &TableWithJoins) -> Step {
        let TableWithJoins { relation, joins } = table;
        self.table_factor(relation, &[Verb::Select])?;
        joins.iter().try_for_each(|join| self.join(join, &[Verb::Select]))
    }

    pub(super) fn join(&mut self, join: &Join, verbs: &[Verb]) -> Step {
        let Join { relation, global, join_operator } = join;
        absent(*global, "GLOBAL JOIN")?;
        let (kind, constraint) = match join_operator {
            JoinOperator::Join(constraint) => ("JOIN", constraint),
            JoinOperator::Inner(constraint) => ("INNER JOIN", constraint),
            JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint) => ("LEFT JOIN", constraint),
            JoinOperator::Right(constraint) | JoinOperator::RightOuter(constraint) => ("RIGHT JOIN", constraint),
            JoinOperator::FullOuter(constraint) => ("FULL JOIN", constraint),
            JoinOperator::CrossJoin(constraint) => ("CROSS JOIN", constraint),
            JoinOperator::StraightJoin(constraint) if self.dialect() == Dialect::MySql => ("STRAIGHT_JOIN", constraint),
            _ => return unsupported(format!("this kind of join: `{join}`")),
        };
        if matches!(constraint, JoinConstraint::Natural) {
            self.put("NATURAL");
        }
        self.put(kind);
        self.table_factor(relation, verbs)?;
        match constraint {
            JoinConstraint::None | JoinConstraint::Natural => Ok(()),
            JoinConstraint::On(condition) => self.clause("ON", Some(condition)),
            JoinConstraint::Using(columns) => {
                self.put("USING");
                self.parens(columns, |pen, column| pen.path(&names::idents(column)?))
            }
        }
    }

    /// Writes one table, subquery or table function of FROM; base tables need all of `verbs`.
    pub(super) fn table_factor(&mut self, factor: &TableFactor, verbs: &[Verb]) -> Step {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                absent(!with_hints.is_empty() || !index_hints.is_empty(), "table and index hints")?;
                absent(version.is_some(), "reading another version of a table")?;
                absent(!partitions.is_empty(), "PARTITION")?;
                absent(json_path.is_some(), "a path into a table")?;
                absent(sample.is_some(), "TABLESAMPLE")?;
                if let Some(TableFunctionArgs { args, settings }) = args {
                    absent(settings.is_some(), "SETTINGS")?;
                    return self.table_function(name, args, *with_ordinality, alias.as_ref());
                }
                absent(*with_ordinality, "WITH ORDINALITY of a table")?;
                self.base_table(name, alias.as_ref(), verbs)
            }
            TableFactor::Derived { lateral, subquery, alias, sample } => {
                absent(sample.is_some(), "TABLESAMPLE")?;
                if *lateral {
                    self.put("LATERAL");
                }
                self.subquery(subquery)?;
                self.alias(alias.as_ref())
            }
            TableFactor::Function { lateral, name, args, with_ordinality, alias } => {
                if *lateral {
                    self.put("LATERAL");
                }
                self.table_function(name, args, *with_ordinality, alias.as_ref())
            }
            TableFactor::UNNEST { alias, array_exprs, with_offset, with_offset_alias, with_ordinality } => {
                absent(*with_offset || with_offset_alias.is_some(), "WITH OFFSET")?;
                self.put("unnest(");
                self.list(array_exprs, Self::expr)?;
                self.put(")");
                if *with_ordinality {
                    self.put("WITH ORDINALITY");
                }
                self.alias(alias.as_ref())
            }
            TableFactor::JsonTable { json_expr, json_path, columns, alias } if self.dialect() == Dialect::MySql => {
                self.put("JSON_TABLE(");
                self.expr(json_expr)?;
                self.put(",");
                self.value(&json_path.value)?;
                self.put("COLUMNS");
                self.parens(columns, Self::json_column)?;
                self.put(")");
                self.alias(alias.as_ref())
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                let TableWithJoins { relation, joins } = &**table_with_joins;
                self.put("(");
                self.table_factor(relation, verbs)?;
                joins.iter().try_for_each(|join| self.join(join, verbs))?;
                self.put(")");
                self.alias(alias.as_ref())
            }
            other => unsupported(format!("`{other}` in FROM")),
        }
    }

    fn base_table(&mut self, name: &ObjectName, alias: Option<&TableAlias>, verbs: &[Verb]) -> Step {
        let parts = names::idents(name)?;
        if let [one] = parts.as_slice() {
            let dual = one.quote_style.is_none() && one.value.eq_ignore_ascii_case("dual");
            if dual && self.dialect() == Dialect::MySql && alias.is_none() {
                self.put("DUAL");
                return Ok(());
            }
            if let Some(cte) = self.cte(name) {
                self.name(&cte)?;
                if alias.is_some() {
                    return self.alias(alias);
                }
                // Other names in the statement still call it by its own.
                self.put("AS");
                return self.ident(one);
            }
        }
        self.table(name, verbs)?;
        self.alias(alias)
    }

    fn table_function(
        &mut self,
        name: &ObjectName,
        args: &[FunctionArg],
        with_ordinality: bool,
        alias: Option<&TableAlias>,
    ) -> Step {
        let parts = names::meanings(self.dialect(), name)?;
        let known = matches!(parts.as_slice(), [one] if functions::is_table_function(self.dialect(), &one.to_ascii_lowercase()));
        self.function_name(name, known)?;
        self.glue("(");
        self.list(args, Self::function_arg)?;
        self.put(")");
        if with_ordinality {
            absent(self.dialect() != Dialect::Postgres, "WITH ORDINALITY")?;
            self.put("WITH ORDINALITY");
        }
        self.alias(alias)
    }

    pub(super) fn alias(&mut self, alias: Option<&TableAlias>) -> Step {
        let Some(TableAlias { explicit: _, name, columns, at }) = alias else { return Ok(()) };
        absent(at.is_some(), "AT")?;
        self.put("AS");
        self.ident(name)?;
        if columns.is_empty() { Ok(()) } else { self.parens(columns, Self::alias_column) }
    }

    pub(super) fn alias_column(&mut self, column: &TableAliasColumnDef) -> Step {
        let TableAliasColumnDef { name, data_type } = column;
        self.ident(name)?;
        if let Some(data_type) = data_type {
            let text = types::text(self.grants, data_type)?;
            self.put(&text);
        }
        Ok(())
    }

    fn json_column(&mut self, column: &JsonTableColumn) -> Step {
        match column {
            JsonTableColumn::Named(JsonTableNamedColumn { name, r#type, path, exists, on_empty, on_error }) => {
                self.ident(name)?;
                let text = types::text(self.grants, r#type)?;
                self.put(&text);
                self.put(if *exists { "EXISTS PATH" } else { "PATH" });
                self.value(&path.value)?;
                self.json_fallback(on_empty.as_ref(), "ON EMPTY")?;
                self.json_fallback(on_error.as_ref(), "ON ERROR")
            }
            JsonTableColumn::ForOrdinality(name) => {
                self.ident(name)?;
                self.put("FOR ORDINALITY");
                Ok(())
            }
            JsonTableColumn::Nested(JsonTableNestedColumn { path, columns }) => {
                self.put("NESTED PATH");
                self.value(&path.value)?;
                self.put("COLUMNS");
                self.parens(columns, Self::json_column)
            }
        }
    }

    fn json_fallback(&mut self, fallback: Option<&JsonTableColumnErrorHandling>, when: &str) -> Step {
        match fallback {
            None => return Ok(()),
            Some(JsonTableColumnErrorHandling::Null) => self.put("NULL"),
            Some(JsonTableColumnErrorHandling::Error) => self.put("ERROR"),
            Some(JsonTableColumnErrorHandling::Default(value)) => {
                self.put("DEFAULT");
                self.value(&value.value)?;
            }
        }
        self.put(when);
        Ok(())
    }
}
