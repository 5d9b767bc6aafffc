//! Expressions and function calls.

use sqlparser::ast::{AccessExpr, Array, BinaryOperator, CaseWhen, CastKind, DataType, Expr, Subscript, TypedString};

use super::write::{Pen, Step, absent, unsupported};
use super::{Kind, operators, types};
use crate::ledger::database::Dialect;

impl Pen<'_> {
    /// Writes what may stand in VALUES and after SET: an expression, or DEFAULT.
    pub(super) fn assigned(&mut self, expr: &Expr) -> Step {
        match expr {
            Expr::Identifier(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("default") => {
                self.put("DEFAULT");
                Ok(())
            }
            other => self.expr(other),
        }
    }

    /// Writes an expression. Parentheses are the guest's own: the order of its tokens does not change, so neither does
    /// what the database makes of them.
    pub(super) fn expr(&mut self, expr: &Expr) -> Step {
        match expr {
            Expr::Identifier(ident) => self.column(&[ident]),
            Expr::CompoundIdentifier(idents) => self.column(&idents.iter().collect::<Vec<_>>()),
            Expr::CompoundFieldAccess { root, access_chain } => self.access(root, access_chain),
            Expr::Value(value) => self.value(&value.value),
            Expr::TypedString(typed) => self.typed_string(typed),
            Expr::Nested(inner) => self.in_parens(|pen| pen.expr(inner)),
            Expr::Tuple(items) => self.parens(items, Self::expr),
            Expr::BinaryOp { .. } => self.binary(expr),
            Expr::UnaryOp { op, expr } => {
                let Some(text) = operators::unary(*op) else { return unsupported(format!("operator `{op}`")) };
                self.put(text);
                self.expr(expr)
            }
            Expr::IsFalse(_)
            | Expr::IsNotFalse(_)
            | Expr::IsTrue(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotUnknown(_)
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::InList { .. }
            | Expr::InSubquery { .. }
            | Expr::Between { .. }
            | Expr::Like { .. }
            | Expr::ILike { .. }
            | Expr::SimilarTo { .. }
            | Expr::RLike { .. } => self.predicate(expr),
            Expr::AnyOp { left, compare_op, right, is_some } => {
                self.quantified(left, compare_op, if *is_some { "SOME" } else { "ANY" }, right)
            }
            Expr::AllOp { left, compare_op, right } => self.quantified(left, compare_op, "ALL", right),
            Expr::Exists { subquery, negated } => {
                self.put(if *negated { "NOT EXISTS" } else { "EXISTS" });
                self.subquery(subquery)
            }
            Expr::Subquery(query) => self.subquery(query),
            Expr::Case { case_token: _, end_token: _, operand, conditions, else_result } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref())
            }
            Expr::Cast { kind, expr, data_type, format } => {
                absent(format.is_some(), "CAST … FORMAT")?;
                self.cast(kind, expr, data_type)
            }
            Expr::Function(function) => self.function(function),
            Expr::Array(Array { elem, named }) if self.dialect() == Dialect::Postgres => {
                self.put(if *named { "ARRAY[" } else { "[" });
                self.list(elem, Self::expr)?;
                self.glue("]");
                Ok(())
            }
            Expr::GroupingSets(sets) => self.grouping("GROUPING SETS", sets),
            Expr::Cube(sets) => self.grouping("CUBE", sets),
            Expr::Rollup(sets) => self.grouping("ROLLUP", sets),
            _ => self.keyword_call(expr),
        }
    }

    fn in_parens(&mut self, inner: impl FnOnce(&mut Self) -> Step) -> Step {
        self.put("(");
        inner(self)?;
        self.put(")");
        Ok(())
    }

    /// `a AND b AND c …`: the tree leans to the left, as deep as there are operands, so it is walked in a loop.
    fn binary(&mut self, expr: &Expr) -> Step {
        let mut right_hand = Vec::new();
        let mut first = expr;
        while let Expr::BinaryOp { left, op, right } = first {
            right_hand.push((op, right));
            first = left;
        }
        self.expr(first)?;
        for (op, right) in right_hand.into_iter().rev() {
            self.operator(op)?;
            self.expr(right)?;
        }
        Ok(())
    }

    fn operator(&mut self, op: &BinaryOperator) -> Step {
        let Some(text) = operators::binary(self.dialect(), op) else {
            return unsupported(format!("operator `{op}`"));
        };
        self.put(text);
        Ok(())
    }

    fn quantified(&mut self, left: &Expr, op: &BinaryOperator, quantifier: &str, right: &Expr) -> Step {
        self.expr(left)?;
        self.operator(op)?;
        self.put(quantifier);
        match right {
            Expr::Subquery(query) => {
                self.glue("(");
                self.query(query)?;
            }
            array if self.dialect() == Dialect::Postgres => {
                self.glue("(");
                self.expr(array)?;
            }
            _ => return unsupported(format!("{quantifier} of a list")),
        }
        self.put(")");
        Ok(())
    }

    fn predicate(&mut self, expr: &Expr) -> Step {
        let (operand, test) = match expr {
            Expr::IsFalse(operand) => (operand, "IS FALSE"),
            Expr::IsNotFalse(operand) => (operand, "IS NOT FALSE"),
            Expr::IsTrue(operand) => (operand, "IS TRUE"),
            Expr::IsNotTrue(operand) => (operand, "IS NOT TRUE"),
            Expr::IsNull(operand) => (operand, "IS NULL"),
            Expr::IsNotNull(operand) => (operand, "IS NOT NULL"),
            Expr::IsUnknown(operand) => (operand, "IS UNKNOWN"),
            Expr::IsNotUnknown(operand) => (operand, "IS NOT UNKNOWN"),
            Expr::IsDistinctFrom(left, right) => return self.infix(left, "IS DISTINCT FROM", right),
            Expr::IsNotDistinctFrom(left, right) => return self.infix(left, "IS NOT DISTINCT FROM", right),
            Expr::InList { expr, list, negated } => {
                self.expr(expr)?;
                self.put(if *negated { "NOT IN" } else { "IN" });
                return self.parens(list, Self::expr);
            }
            Expr::InSubquery { expr, subquery, negated } => {
                self.expr(expr)?;
                self.put(if *negated { "NOT IN" } else { "IN" });
                return self.subquery(subquery);
            }
            Expr::Between { expr, negated, low, high } => {
                self.infix(expr, if *negated { "NOT BETWEEN" } else { "BETWEEN" }, low)?;
                self.put("AND");
                return self.expr(high);
            }
            _ => return self.pattern(expr),
        };
        self.expr(operand)?;
        self.put(test);
        Ok(())
    }

    pub(super) fn infix(&mut self, left: &Expr, operator: &str, right: &Expr) -> Step {
        self.expr(left)?;
        self.put(operator);
        self.expr(right)
    }

    fn pattern(&mut self, expr: &Expr) -> Step {
        let postgres = self.dialect() == Dialect::Postgres;
        let (negated, any, operand, operator, pattern, escape) = match expr {
            Expr::Like { negated, any, expr, pattern, escape_char } => {
                (negated, *any, expr, "LIKE", pattern, escape_char)
            }
            Expr::ILike { negated, any, expr, pattern, escape_char } if postgres => {
                (negated, *any, expr, "ILIKE", pattern, escape_char)
            }
            Expr::SimilarTo { negated, expr, pattern, escape_char } if postgres => {
                (negated, false, expr, "SIMILAR TO", pattern, escape_char)
            }
            Expr::RLike { negated, expr, pattern, regexp: _ } if !postgres => {
                (negated, false, expr, "REGEXP", pattern, &None)
            }
            other => return unsupported(format!("`{other}`")),
        };
        absent(any, "LIKE ANY")?;
        self.expr(operand)?;
        if *negated {
            self.put("NOT");
        }
        self.put(operator);
        self.expr(pattern)?;
        self.clause("ESCAPE", escape.as_deref())
    }

    fn case(&mut self, operand: Option<&Expr>, conditions: &[CaseWhen], else_result: Option<&Expr>) -> Step {
        self.clause("CASE", operand)?;
        if operand.is_none() {
            self.put("CASE");
        }
        for CaseWhen { condition, result } in conditions {
            self.clause("WHEN", Some(condition))?;
            self.clause("THEN", Some(result))?;
        }
        self.clause("ELSE", else_result)?;
        self.put("END");
        Ok(())
    }

    fn cast(&mut self, kind: &CastKind, expr: &Expr, data_type: &DataType) -> Step {
        let text = types::text(self.grants, data_type)?;
        if types::is_custom(data_type) {
            self.kind = Kind::Write;
        }
        match kind {
            CastKind::Cast => {
                self.put("CAST(");
                self.expr(expr)?;
                self.put("AS");
                self.put(&text);
                self.put(")");
            }
            CastKind::DoubleColon if self.dialect() == Dialect::Postgres => {
                self.expr(expr)?;
                self.put("::");
                self.put(&text);
            }
            CastKind::DoubleColon | CastKind::TryCast | CastKind::SafeCast => return unsupported(format!("{kind:?}")),
        }
        Ok(())
    }

    fn typed_string(&mut self, typed: &TypedString) -> Step {
        let TypedString { data_type, value, uses_odbc_syntax } = typed;
        let dated = matches!(data_type, DataType::Date | DataType::Time(None, _) | DataType::Timestamp(None, _));
        absent(*uses_odbc_syntax, "{d …}")?;
        absent(!dated || self.dialect() == Dialect::Sqlite, "a literal with a type before it (write CAST(… AS …))")?;
        let text = types::text(self.grants, data_type)?;
        self.put(&text);
        self.value(&value.value)
    }

    /// `a[1]`, `a[1:2]`, `(a).b`
    fn access(&mut self, root: &Expr, chain: &[AccessExpr]) -> Step {
        absent(self.dialect() != Dialect::Postgres, "subscripts")?;
        self.expr(root)?;
        for access in chain {
            match access {
                // Postgres would read `(x).f` as `f(x)`, and no grant says which functions that may be.
                AccessExpr::Dot(_) => return unsupported("fields of a value: `(x).y`"),
                AccessExpr::Subscript(Subscript::Index { index }) => {
                    self.glue("[");
                    self.expr(index)?;
                }
                AccessExpr::Subscript(Subscript::Slice { lower_bound, upper_bound, stride }) => {
                    absent(stride.is_some(), "a slice with a stride")?;
                    self.glue("[");
                    lower_bound.iter().try_for_each(|bound| self.expr(bound))?;
                    self.put(":");
                    upper_bound.iter().try_for_each(|bound| self.expr(bound))?;
                }
            }
            self.put("]");
        }
        Ok(())
    }

    fn grouping(&mut self, keyword: &str, sets: &[Vec<Expr>]) -> Step {
        absent(self.dialect() != Dialect::Postgres, keyword)?;
        self.put(keyword);
        self.parens(sets, |pen, set| match set.as_slice() {
            [one] => pen.expr(one),
            several => pen.parens(several, Self::expr),
        })
    }
}
