//! INSERT, REPLACE, UPDATE, DELETE and MERGE.

use sqlparser::ast::{
    Assignment, AssignmentTarget, ConflictTarget, Delete, DoUpdate, FromTable, Ident, Insert, InsertAliases, Merge,
    MergeAction, MergeClause, MergeClauseKind, MergeInsertExpr, MergeInsertKind, MergeUpdateExpr, MergeUpdateKind,
    ObjectName, OnConflict, OnConflictAction, OnInsert, Parens, SelectItem, SqliteOnConflict, Statement,
    TableAliasWithoutColumns, TableFactor, TableObject, TableWithJoins, Update, UpdateTableFromKind, Values,
};

use super::write::{Pen, Step, absent, unsupported};
use super::{GuardError, Verb, names};
use crate::ledger::database::Dialect;

impl Pen<'_> {
    /// Writes a statement; answers whether it returns rows.
    pub(super) fn statement(&mut self, statement: &Statement) -> Result<bool, GuardError> {
        match statement {
            Statement::Query(query) => self.query(query),
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(update) => self.update(update),
            Statement::Delete(delete) => self.delete(delete),
            Statement::Merge(merge) if self.dialect() == Dialect::Postgres => self.merge(merge),
            _ => unsupported("this kind of statement"),
        }
    }

    fn insert(&mut self, insert: &Insert) -> Result<bool, GuardError> {
        let Insert {
            insert_token: _,
            optimizer_hints,
            or,
            ignore,
            into: _,
            table,
            table_alias,
            columns,
            overwrite,
            source,
            assignments,
            partitioned,
            after_columns,
            has_table_keyword,
            on,
            returning,
            output,
            replace_into,
            priority,
            insert_alias,
            settings,
            format_clause,
            multi_table_insert_type,
            multi_table_into_clauses,
            multi_table_when_clauses,
            multi_table_else_clause,
        } = insert;
        absent(!optimizer_hints.is_empty(), "optimizer hints")?;
        absent(*overwrite || *has_table_keyword, "INSERT OVERWRITE and INSERT INTO TABLE")?;
        absent(partitioned.is_some() || !after_columns.is_empty(), "PARTITION")?;
        absent(output.is_some(), "OUTPUT")?;
        absent(priority.is_some(), "LOW_PRIORITY, DELAYED and HIGH_PRIORITY")?;
        absent(settings.is_some() || format_clause.is_some(), "SETTINGS and FORMAT")?;
        let several = multi_table_insert_type.is_some()
            || multi_table_else_clause.is_some()
            || !multi_table_into_clauses.is_empty()
            || !multi_table_when_clauses.is_empty();
        absent(several, "an INSERT into several tables")?;
        let TableObject::TableName(table) = table else {
            return unsupported("an INSERT into something that is no table");
        };

        let mut verbs = vec![Verb::Insert];
        self.insert_verb(*replace_into, *ignore, or.as_ref(), &mut verbs)?;
        if let Some(
            OnInsert::DuplicateKeyUpdate(_)
            | OnInsert::OnConflict(OnConflict { action: OnConflictAction::DoUpdate(_), .. }),
        ) = on
        {
            verbs.push(Verb::Update);
        }
        self.table(table, &verbs)?;
        if let Some(TableAliasWithoutColumns { explicit: _, alias }) = table_alias {
            self.put("AS");
            self.ident(alias)?;
        }
        self.insert_rows(columns, assignments, source.as_deref())?;
        if let Some(InsertAliases { row_alias, col_aliases }) = insert_alias {
            absent(self.dialect() != Dialect::MySql, "an alias for the new row")?;
            self.put("AS");
            self.path(&names::idents(row_alias)?)?;
            if let Some(columns) = col_aliases {
                self.parens(columns, Self::ident)?;
            }
        }
        match on {
            None => {}
            Some(on) => self.on_insert(on)?,
        }
        self.returning(returning.as_deref(), table)
    }

    fn insert_verb(
        &mut self,
        replace: bool,
        ignore: bool,
        or: Option<&SqliteOnConflict>,
        verbs: &mut Vec<Verb>,
    ) -> Step {
        let text = match (self.dialect(), replace, ignore, or) {
            (Dialect::MySql | Dialect::Sqlite, true, false, None) => {
                verbs.push(Verb::Delete);
                "REPLACE INTO"
            }
            (_, false, false, None) => "INSERT INTO",
            (Dialect::MySql, false, true, None) => "INSERT IGNORE INTO",
            (Dialect::Sqlite, false, false, Some(or)) => {
                if *or == SqliteOnConflict::Replace {
                    verbs.push(Verb::Delete);
                }
                self.put("INSERT");
                self.or(or)?;
                "INTO"
            }
            _ => return unsupported("this form of INSERT"),
        };
        self.put(text);
        Ok(())
    }

    fn or(&mut self, or: &SqliteOnConflict) -> Step {
        self.put(match or {
            SqliteOnConflict::Rollback => return unsupported("OR ROLLBACK: it would end the host's transaction"),
            SqliteOnConflict::Abort => "OR ABORT",
            SqliteOnConflict::Fail => "OR FAIL",
            SqliteOnConflict::Ignore => "OR IGNORE",
            SqliteOnConflict::Replace => "OR REPLACE",
        });
        Ok(())
    }

    fn insert_rows(
        &mut self,
        columns: &[ObjectName],
        assignments: &[Assignment],
        source: Option<&sqlparser::ast::Query>,
    ) -> Step {
        if !columns.is_empty() {
            self.parens(columns, |pen, column| {
                let [column] = names::idents(column)?[..] else { return unsupported("a dotted column in INSERT") };
                pen.ident(column)
            })?;
        }
        match (source, assignments) {
            (Some(query), []) => self.query(query).map(drop),
            (None, []) => {
                absent(self.dialect() == Dialect::MySql, "INSERT without values")?;
                self.put("DEFAULT VALUES");
                Ok(())
            }
            (None, assignments) => {
                self.put("SET");
                self.list(assignments, Self::assignment)
            }
            (Some(_), _) => unsupported("INSERT with both SET and rows"),
        }
    }

    fn on_insert(&mut self, on: &OnInsert) -> Step {
        match on {
            OnInsert::DuplicateKeyUpdate(assignments) if self.dialect() == Dialect::MySql => {
                self.put("ON DUPLICATE KEY UPDATE");
                self.list(assignments, Self::assignment)
            }
            OnInsert::OnConflict(OnConflict { conflict_target, action }) if self.dialect() != Dialect::MySql => {
                self.put("ON CONFLICT");
                match conflict_target {
                    None => {}
                    Some(ConflictTarget::Columns(columns)) => self.parens(columns, Self::ident)?,
                    Some(ConflictTarget::OnConstraint(name)) => {
                        self.put("ON CONSTRAINT");
                        self.path(&names::idents(name)?)?;
                    }
                }
                match action {
                    OnConflictAction::DoNothing => {
                        self.put("DO NOTHING");
                        Ok(())
                    }
                    OnConflictAction::DoUpdate(DoUpdate { assignments, selection }) => {
                        self.put("DO UPDATE SET");
                        self.list(assignments, Self::assignment)?;
                        self.clause("WHERE", selection.as_ref())
                    }
                }
            }
            _ => unsupported("this ON clause of INSERT"),
        }
    }

    fn assignment(&mut self, assignment: &Assignment) -> Step {
        let Assignment { target, value } = assignment;
        match target {
            AssignmentTarget::ColumnName(name) => self.column(&names::idents(name)?)?,
            AssignmentTarget::Tuple(names) => self.parens(names, |pen, name| pen.column(&names::idents(name)?))?,
        }
        self.put("=");
        self.assigned(value)
    }

    /// Reads the changed rows back, so it needs `select` on the table.
    fn returning(&mut self, items: Option<&[SelectItem]>, table: &ObjectName) -> Result<bool, GuardError> {
        let Some(items) = items else { return Ok(false) };
        self.grants.table(&names::meanings(self.dialect(), table)?, Verb::Select)?;
        self.put("RETURNING");
        self.list(items, Self::select_item)?;
        Ok(true)
    }

    fn update(&mut self, update: &Update) -> Result<bool, GuardError> {
        let Update {
            update_token: _,
            optimizer_hints,
            table,
            assignments,
            from,
            selection,
            returning,
            output,
            or,
            order_by,
            limit,
        } = update;
        absent(!optimizer_hints.is_empty(), "optimizer hints")?;
        absent(output.is_some(), "OUTPUT")?;
        self.put("UPDATE");
        if let Some(or) = or {
            absent(self.dialect() != Dialect::Sqlite, "UPDATE OR")?;
            self.or(or)?;
            if *or == SqliteOnConflict::Replace {
                self.grants.table(&names::meanings(self.dialect(), plain_table(&table.relation)?)?, Verb::Delete)?;
            }
        }
        if table.joins.is_empty() {
            plain_table(&table.relation)?;
            self.target(&table.relation, Verb::Update)?;
        } else {
            self.joined_update(table, assignments)?;
        }
        self.put("SET");
        self.list(assignments, Self::assignment)?;
        match from {
            None => {}
            Some(UpdateTableFromKind::AfterSet(tables)) if self.dialect() != Dialect::MySql => {
                self.put("FROM");
                self.list(tables, Self::table_with_joins)?;
            }
            Some(_) => return unsupported("this place for FROM in UPDATE"),
        }
        self.clause("WHERE", selection.as_ref())?;
        self.order_by_list(order_by)?;
        self.clause("LIMIT", limit.as_ref())?;
        match (returning, plain_table(&table.relation)) {
            (None, _) => Ok(false),
            (Some(items), Ok(name)) => self.returning(Some(items), name),
            (Some(_), Err(error)) => Err(error),
        }
    }

    /// Writes the one table that a statement changes. It is never a CTE.
    fn target(&mut self, factor: &TableFactor, verb: Verb) -> Step {
        let TableFactor::Table {
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
        } = factor
        else {
            return unsupported("a change to something that is no table");
        };
        let plain = args.is_none()
            && with_hints.is_empty()
            && version.is_none()
            && !with_ordinality
            && partitions.is_empty()
            && json_path.is_none()
            && sample.is_none()
            && index_hints.is_empty();
        absent(!plain, "hints, partitions or arguments of a table that is changed")?;
        self.table(name, &[verb])?;
        self.alias(alias.as_ref())
    }

    /// MySQL's `UPDATE a JOIN b … SET a.x = …`: the tables that SET names are changed, the others are read.
    fn joined_update(&mut self, table: &TableWithJoins, assignments: &[Assignment]) -> Step {
        absent(self.dialect() != Dialect::MySql, "an UPDATE of joined tables (write UPDATE … FROM)")?;
        let mut changed = Vec::new();
        for Assignment { target, value: _ } in assignments {
            let AssignmentTarget::ColumnName(column) = target else { return unsupported("SET (a, b) = …") };
            let [qualifier, _] = names::idents(column)?[..] else {
                return unsupported("SET without the table's name, or with its schema, in an UPDATE of joined tables");
            };
            changed.push(qualifier);
        }
        self.changed_and_read(table, &changed, Verb::Update)
    }

    /// Writes joined tables, with `verb` checked on those named by `changed` and `select` on the rest.
    fn changed_and_read(&mut self, table: &TableWithJoins, changed: &[&Ident], verb: Verb) -> Step {
        let TableWithJoins { relation, joins } = table;
        let factors = std::iter::once(relation).chain(joins.iter().map(|join| &join.relation));
        if factors.clone().any(|factor| !matches!(factor, TableFactor::Table { .. } | TableFactor::Derived { .. })) {
            return unsupported("parentheses and table functions among tables that are changed together");
        }
        let called: Vec<_> = factors.map(called).collect();
        for changed in changed {
            // Without case, and exactly once: more than the server needs, so that it cannot mean another one.
            let matches =
                called.iter().flatten().filter(|name| name.to_lowercase() == changed.value.to_lowercase()).count();
            if matches != 1 {
                return unsupported(format!(
                    "a change to `{changed}`, which does not name exactly one of the joined tables"
                ));
            }
        }
        let verb_of = |factor: &TableFactor| {
            let name = called_lower(factor);
            if changed.iter().any(|changed| Some(changed.value.to_lowercase()) == name) { verb } else { Verb::Select }
        };
        self.changed_or_read(relation, verb_of(relation))?;
        for join in joins {
            // Checked here by the verb of its own; `join` then writes it.
            match verb_of(&join.relation) {
                Verb::Select => self.join(join, &[Verb::Select])?,
                verb => {
                    plain_table(&join.relation)?;
                    if let TableFactor::Table { name, .. } = &join.relation
                        && self.cte(name).is_some()
                    {
                        return unsupported("a change to a CTE");
                    }
                    self.join(join, &[verb])?;
                }
            }
        }
        Ok(())
    }

    fn changed_or_read(&mut self, factor: &TableFactor, verb: Verb) -> Step {
        if verb == Verb::Select { self.table_factor(factor, &[verb]) } else { self.target(factor, verb) }
    }

    fn delete(&mut self, delete: &Delete) -> Result<bool, GuardError> {
        let Delete {
            delete_token: _,
            optimizer_hints,
            tables,
            from,
            using,
            selection,
            returning,
            output,
            order_by,
            limit,
        } = delete;
        absent(!optimizer_hints.is_empty(), "optimizer hints")?;
        absent(output.is_some(), "OUTPUT")?;
        let FromTable::WithFromKeyword(from) = from else { return unsupported("DELETE without FROM") };
        let [table] = from.as_slice() else { return unsupported("DELETE from several tables") };
        self.put("DELETE");
        if tables.is_empty() {
            absent(!table.joins.is_empty(), "DELETE FROM a join (name the table: DELETE t FROM t JOIN …)")?;
            self.put("FROM");
            self.target(&table.relation, Verb::Delete)?;
        } else {
            self.joined_delete(tables, table)?;
        }
        if let Some(using) = using {
            absent(self.dialect() != Dialect::Postgres, "DELETE … USING")?;
            self.put("USING");
            self.list(using, Self::table_with_joins)?;
        }
        self.clause("WHERE", selection.as_ref())?;
        self.order_by_list(order_by)?;
        self.clause("LIMIT", limit.as_ref())?;
        match returning {
            None => Ok(false),
            Some(items) => self.returning(Some(items), plain_table(&table.relation)?),
        }
    }

    /// MySQL's `DELETE a FROM a JOIN b …`
    fn joined_delete(&mut self, tables: &[ObjectName], from: &TableWithJoins) -> Step {
        absent(self.dialect() != Dialect::MySql, "DELETE with a list of tables")?;
        let mut changed = Vec::new();
        for table in tables {
            let [name] = names::idents(table)?[..] else {
                return unsupported("DELETE of a table with its schema: use an alias");
            };
            changed.push(name);
        }
        self.list(&changed, |pen, name| pen.ident(name))?;
        self.put("FROM");
        self.changed_and_read(from, &changed, Verb::Delete)
    }

    fn merge(&mut self, merge: &Merge) -> Result<bool, GuardError> {
        let Merge { merge_token: _, optimizer_hints, into: _, table, source, on, clauses, output } = merge;
        absent(!optimizer_hints.is_empty() || output.is_some(), "hints and OUTPUT in MERGE")?;
        let target = names::meanings(self.dialect(), plain_table(table)?)?;
        let mut verbs = Vec::new();
        for MergeClause { action, .. } in clauses {
            match action {
                MergeAction::Insert(_) => verbs.push(Verb::Insert),
                MergeAction::Update(_) => verbs.push(Verb::Update),
                MergeAction::Delete { .. } => verbs.push(Verb::Delete),
                MergeAction::DoNothing { .. } => {}
            }
        }
        verbs.iter().try_for_each(|verb| self.grants.table(&target, *verb))?;
        self.put("MERGE INTO");
        // A MERGE that never does anything still tells what the table holds.
        self.target(table, verbs.first().copied().unwrap_or(Verb::Select))?;
        self.put("USING");
        self.table_factor(source, &[Verb::Select])?;
        self.clause("ON", Some(on))?;
        clauses.iter().try_for_each(|clause| self.merge_clause(clause))?;
        Ok(false)
    }

    fn merge_clause(&mut self, clause: &MergeClause) -> Step {
        let MergeClause { when_token: _, clause_kind, predicate, action } = clause;
        self.put(match clause_kind {
            MergeClauseKind::Matched => "WHEN MATCHED",
            MergeClauseKind::NotMatched => "WHEN NOT MATCHED",
            MergeClauseKind::NotMatchedByTarget => "WHEN NOT MATCHED BY TARGET",
            MergeClauseKind::NotMatchedBySource => "WHEN NOT MATCHED BY SOURCE",
        });
        self.clause("AND", predicate.as_ref())?;
        self.put("THEN");
        match action {
            MergeAction::Delete { delete_token: _ } => self.put("DELETE"),
            MergeAction::DoNothing { do_token: _, nothing_token: _ } => self.put("DO NOTHING"),
            MergeAction::Update(MergeUpdateExpr { update_token: _, kind, update_predicate, delete_predicate }) => {
                absent(update_predicate.is_some() || delete_predicate.is_some(), "WHERE in a MERGE action")?;
                let MergeUpdateKind::Set(assignments) = kind else { return unsupported("UPDATE *") };
                self.put("UPDATE SET");
                self.list(assignments, Self::assignment)?;
            }
            MergeAction::Insert(MergeInsertExpr {
                insert_token: _,
                columns,
                kind_token: _,
                kind,
                insert_predicate,
            }) => {
                absent(insert_predicate.is_some(), "WHERE in a MERGE action")?;
                let MergeInsertKind::Values(Values { explicit_row: false, value_keyword: false, rows }) = kind else {
                    return unsupported("INSERT ROW and INSERT *");
                };
                let [Parens { opening_token: _, content, closing_token: _ }] = rows.as_slice() else {
                    return unsupported("several rows in a MERGE action");
                };
                self.put("INSERT");
                if !columns.is_empty() {
                    self.parens(columns, |pen, column| pen.path(&names::idents(column)?))?;
                }
                self.put("VALUES");
                self.parens(content, Self::assigned)?;
            }
        }
        Ok(())
    }
}

/// The name of a factor that is a table.
fn plain_table(factor: &TableFactor) -> Result<&ObjectName, GuardError> {
    match factor {
        TableFactor::Table { name, args: None, .. } => Ok(name),
        _ => unsupported("a change to something that is no table"),
    }
}

/// What a joined table is called in its statement.
fn called(factor: &TableFactor) -> Option<String> {
    match factor {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
            Some(alias.name.value.clone())
        }
        TableFactor::Table { name, alias: None, .. } => {
            names::idents(name).ok()?.last().map(|ident| ident.value.clone())
        }
        _ => None,
    }
}

fn called_lower(factor: &TableFactor) -> Option<String> {
    called(factor).map(|name| name.to_lowercase())
}
