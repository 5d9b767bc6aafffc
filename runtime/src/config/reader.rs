//! Reads a TOML table key by key, and keeps going.
//!
//! Serde stops at its first error and forgets where values stood once two tables are merged. A [`Reader`] notes every
//! problem with its place and goes on with the default. The keys it was asked for are the keys that exist: there is no
//! second list of them to keep in step.

use std::cell::{Cell, RefCell};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Finding, Severity};
use super::scalar::{FOREVER, format_size, interpolate, parse_duration, parse_size, suggest};

/// What all readers of one file share.
pub(super) struct Context<'a> {
    /// Environment variables.
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// What relative paths are relative to.
    pub(super) dir: &'a Path,
    findings: RefCell<Vec<Finding>>,
    /// How many of the findings are about `[defaults]`: what stands there is met again in every consumer.
    in_defaults: Cell<usize>,
    #[cfg(test)]
    pub(super) asked: RefCell<std::collections::BTreeSet<String>>,
}

impl<'a> Context<'a> {
    pub(super) fn new(env: &'a dyn Fn(&str) -> Option<String>, dir: &'a Path) -> Self {
        Self {
            env,
            dir,
            findings: RefCell::default(),
            in_defaults: Cell::new(0),
            #[cfg(test)]
            asked: RefCell::default(),
        }
    }

    /// Notes something wrong.
    fn report(&self, severity: Severity, span: Option<Range<usize>>, problem: Problem) {
        let Problem { message, label, help } = problem;
        let finding = Finding { severity, span, message, label, help };
        let mut findings = self.findings.borrow_mut();
        let met_in_defaults = findings[..self.in_defaults.get()].iter().any(|known| known.is_at(&finding));
        if !met_in_defaults && !findings.contains(&finding) {
            findings.push(finding);
        }
    }

    /// Says that `[defaults]` has just been read on its own.
    pub(super) fn defaults_are_read(&self) {
        self.in_defaults.set(self.findings.borrow().len());
    }

    pub(super) fn error(&self, span: Range<usize>, problem: Problem) {
        self.report(Severity::Error, Some(span), problem);
    }

    /// Notes what the file as a whole lacks.
    pub(super) fn missing(&self, severity: Severity, problem: Problem) {
        self.report(severity, None, problem);
    }

    pub(super) fn warning(&self, span: Range<usize>, problem: Problem) {
        self.report(Severity::Warning, Some(span), problem);
    }

    /// Everything noted, in the order of the file.
    pub(super) fn into_findings(self) -> Vec<Finding> {
        let mut findings = self.findings.into_inner();
        findings.sort_by_key(|finding| finding.span.as_ref().map(|span| (span.start, span.end)));
        findings
    }
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    message: String,
    label: String,
    help: Option<String>,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), label: String::new(), help: None }
    }

    /// Beside the caret.
    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Below the line.
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A value and where it stands.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub(super) context: &'a Context<'a>,
    /// Its key.
    pub(super) name: String,
    pub(super) node: &'a Spanned<DeValue<'a>>,
}

impl<'a> Field<'a> {
    pub(super) fn span(&self) -> Range<usize> {
        self.node.span()
    }

    /// Reports what `parse` finds wrong.
    pub(super) fn check<T>(&self, parse: impl FnOnce(&Self) -> Result<T, Problem>) -> Option<T> {
        parse(self).map_err(|problem| self.context.error(self.span(), problem)).ok()
    }

    /// The string as it is in the file, variables and all.
    pub(super) fn raw(&self) -> Option<&'a str> {
        self.node.get_ref().as_str()
    }

    /// A string, variables replaced.
    pub(super) fn text(&self) -> Result<String, Problem> {
        match self.raw() {
            Some(raw) => interpolate(raw, self.context.env).map_err(Problem::new),
            None => Err(self.mismatch("a string")),
        }
    }

    /// A string that is not empty and fits an AMQP short string: 255 bytes.
    pub(super) fn name(&self) -> Result<String, Problem> {
        let text = self.text()?;
        match text.len() {
            0 => Err(Problem::new(format!("`{}` is empty", self.name))),
            1..=255 => Ok(text),
            n => Err(Problem::new(format!("`{}` has {n} bytes; at most 255 are possible", self.name))),
        }
    }

    /// The same, and it may be empty.
    pub(super) fn name_or_empty(&self) -> Result<String, Problem> {
        if self.raw() == Some("") { Ok(String::new()) } else { self.name() }
    }

    /// A path, relative to the config file.
    pub(super) fn path(&self) -> Result<PathBuf, Problem> {
        let text = self.text()?;
        if text.is_empty() {
            return Err(Problem::new(format!("`{}` is empty", self.name)));
        }
        Ok(self.context.dir.join(text))
    }

    /// A whole number within a range.
    pub(super) fn integer<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Result<T, Problem> {
        let found = match self.node.get_ref() {
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => Some(self.variable("a whole number")?),
        };
        let fits = found.and_then(|number| u64::try_from(number).ok()).filter(|number| range.contains(number));
        let expected = || match (range.start(), range.end()) {
            (least, &u64::MAX) => format!("`{}` must be at least {least}", self.name),
            (least, most) => format!("`{}` must be between {least} and {most}", self.name),
        };
        fits.and_then(|number| T::try_from(number).ok()).ok_or_else(|| Problem::new(expected()))
    }

    /// A number within a range.
    pub(super) fn number(&self, range: RangeInclusive<f64>) -> Result<f64, Problem> {
        let found = match self.node.get_ref() {
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Integer(_) => Some(self.integer::<u32>(0..=u64::from(u32::MAX)).map(f64::from)?),
            _ => Some(self.variable("a number")?),
        };
        found.filter(|number| range.contains(number)).ok_or_else(|| {
            Problem::new(format!("`{}` must be between {} and {}", self.name, range.start(), range.end()))
        })
    }

    /// A boolean.
    pub(super) fn boolean(&self) -> Result<bool, Problem> {
        match self.node.get_ref() {
            DeValue::Boolean(flag) => Ok(*flag),
            _ => self.variable("true or false"),
        }
    }

    /// A value that came through a variable, which TOML can only write as a string.
    fn variable<T: std::str::FromStr>(&self, expected: &str) -> Result<T, Problem> {
        match self.raw() {
            Some(raw) if raw.contains("${") => self.text()?.trim().parse().map_err(|_| {
                Problem::new(format!("`{}` must be {expected}", self.name)).label("the variable holds something else")
            }),
            _ => Err(self.mismatch(expected)),
        }
    }

    /// A duration within a range.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Result<Duration, Problem> {
        let help = "durations are written \"200ms\", \"3s\" or \"1h 30m\"";
        let text = self.text().map_err(|problem| if self.raw().is_none() { problem.help(help) } else { problem })?;
        let duration = parse_duration(&text)
            .map_err(|error| Problem::new(format!("`{}` is not a duration", self.name)).label(error).help(help))?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let (least, most) = (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
        let expected =
            if *range.end() == FOREVER { format!("at least {least}") } else { format!("between {least} and {most}") };
        Err(Problem::new(format!("`{}` must be {expected}", self.name)))
    }

    /// A size in bytes within a range.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Result<u64, Problem> {
        let help = "sizes are written \"64MiB\" or \"1MB\"";
        let text = self.text().map_err(|problem| if self.raw().is_none() { problem.help(help) } else { problem })?;
        let bytes = parse_size(&text)
            .map_err(|error| Problem::new(format!("`{}` is not a size", self.name)).label(error).help(help))?;
        if range.contains(&bytes) {
            return Ok(bytes);
        }
        let (least, most) = (format_size(*range.start()), format_size(*range.end()));
        let expected =
            if *range.end() == u64::MAX { format!("at least {least}") } else { format!("between {least} and {most}") };
        Err(Problem::new(format!("`{}` must be {expected}", self.name)))
    }

    /// One of several words.
    pub(super) fn choice<T: Clone>(&self, choices: &[(&str, T)]) -> Result<T, Problem> {
        self.choice_or(choices, |text| format!("`{}` cannot be `{text}`", self.name))
    }

    /// The same, with another message for any other word.
    pub(super) fn choice_or<T: Clone>(
        &self,
        choices: &[(&str, T)],
        message: impl FnOnce(&str) -> String,
    ) -> Result<T, Problem> {
        let text = self.text()?;
        if let Some((_, chosen)) = choices.iter().find(|(word, _)| *word == text) {
            return Ok(chosen.clone());
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        Err(unknown_word(&message(&text), &text, &words))
    }

    /// The items of an array.
    pub(super) fn items(&self) -> Result<Vec<Field<'a>>, Problem> {
        match self.node.get_ref() {
            DeValue::Array(items) => Ok(items.iter().map(|node| Field { node, ..self.clone() }).collect()),
            _ => Err(self.mismatch("an array")),
        }
    }

    /// The entries of a table whose keys are free.
    pub(super) fn entries(&self) -> Result<Vec<(Range<usize>, Field<'a>)>, Problem> {
        let Some(table) = self.node.get_ref().as_table() else { return Err(self.mismatch("a table")) };
        let field = |name: &str, node| Field { context: self.context, name: name.to_owned(), node };
        Ok(table.iter().map(|(key, node)| (key.span(), field(key.get_ref(), node))).collect())
    }

    pub(super) fn mismatch(&self, expected: &str) -> Problem {
        let found = match self.node.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a floating point number",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        Problem::new(format!("`{}` must be {expected}", self.name)).label(format!("this is {found}"))
    }
}

/// How many words are listed beside a "did you mean".
const SHORT_LIST: usize = 6;

/// "Did you mean", and the whole list unless it is long.
pub(super) fn unknown_word(message: &str, word: &str, known: &[&str]) -> Problem {
    let list = || known.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    let near = suggest(word, known.iter().copied());
    let problem = match near {
        Some(near) => Problem::new(message).label(format!("did you mean `{near}`?")),
        None => Problem::new(message),
    };
    if near.is_some() && known.len() > SHORT_LIST {
        problem
    } else {
        problem.help(format!("expected one of {}", list()))
    }
}

/// Reads one table.
pub(super) struct Reader<'a> {
    pub(super) context: &'a Context<'a>,
    table: Option<&'a DeTable<'a>>,
    /// Where the table stands, or the nearest thing that does.
    span: Range<usize>,
    /// Dotted, for messages; empty for the file itself.
    path: String,
    known: Vec<&'static str>,
    /// A part of something, like `[defaults]`: nothing is missing in it.
    partial: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(context: &'a Context<'a>, table: &'a DeTable<'a>, span: Range<usize>, path: &str) -> Self {
        Self { context, table: Some(table), span, path: path.to_owned(), known: Vec::new(), partial: false }
    }

    /// From here on nothing counts as missing.
    pub(super) fn partial(mut self) -> Self {
        self.partial = true;
        self
    }

    /// The value of a key, which is known from now on.
    pub(super) fn field(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        #[cfg(test)]
        self.context.asked.borrow_mut().insert(format!("{}.{key}", self.path));
        let node = self.table?.get(key)?;
        Some(Field { context: self.context, name: key.to_owned(), node })
    }

    /// An optional value.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Field<'a>) -> Result<T, Problem>,
    ) -> Option<T> {
        self.field(key)?.check(parse)
    }

    /// A value with a default.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&Field<'a>) -> Result<T, Problem>,
    ) -> T {
        self.optional(key, parse).unwrap_or(default)
    }

    /// A value that must be there.
    pub(super) fn require<T>(
        &mut self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(&Field<'a>) -> Result<T, Problem>,
    ) -> Option<T> {
        let field = self.field(key);
        if field.is_none() && !self.partial {
            let problem = Problem::new(format!("{} has no `{key}`", self.title()));
            self.context.error(self.span.clone(), problem.help(format!("for example: {key} = {example}")));
        }
        field?.check(parse)
    }

    /// A table below this one; absent, it is read as an empty one.
    pub(super) fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Reader<'a>) -> T) -> T {
        let field = self.field(key);
        if let Some(field) = &field
            && field.node.get_ref().as_table().is_none()
        {
            self.context.error(field.span(), field.mismatch("a table"));
        }
        self.below(key, field.as_ref(), read)
    }

    /// A table that may be absent, or switched off and on by `false` and `true`.
    pub(super) fn switch<T>(
        &mut self,
        key: &'static str,
        default: bool,
        read: impl FnOnce(&mut Reader<'a>) -> T,
    ) -> Option<T> {
        let field = self.field(key);
        let on = match field.as_ref().map(|field| field.node.get_ref()) {
            None => default,
            Some(DeValue::Table(_)) => true,
            Some(_) => field.as_ref()?.check(|f| f.boolean().map_err(|_| f.mismatch("a table, true or false")))?,
        };
        on.then(|| self.below(key, field.as_ref(), read))
    }

    /// Reads the table of a field; of anything but a table, an empty one.
    pub(super) fn below<T>(&self, key: &str, field: Option<&Field<'a>>, read: impl FnOnce(&mut Reader<'a>) -> T) -> T {
        let mut reader = Reader {
            context: self.context,
            table: field.and_then(|field| field.node.get_ref().as_table()),
            span: field.map_or_else(|| self.span.clone(), Field::span),
            path: if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) },
            known: Vec::new(),
            partial: self.partial,
        };
        let result = read(&mut reader);
        reader.finish();
        result
    }

    /// Where a key stands, however deep; none where it is not set.
    pub(super) fn place(&self, path: &[&str]) -> Option<Range<usize>> {
        let (last, above) = path.split_last()?;
        let table = above.iter().try_fold(self.table?, |table, key| table.get(*key)?.get_ref().as_table());
        table?.get(*last).map(Spanned::span)
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(self) {
        let Some(table) = self.table else { return };
        let mut listed = self.known.clone();
        if listed.len() > SHORT_LIST {
            listed.sort_unstable();
        }
        for (key, _) in table.iter().filter(|(key, _)| !self.known.contains(&key.get_ref().as_ref())) {
            let message = format!("unknown key `{}` in {}", key.get_ref(), self.title());
            self.context.error(key.span(), unknown_word(&message, key.get_ref(), &listed));
        }
    }

    /// What the table is called in messages.
    pub(super) fn title(&self) -> String {
        if self.path.is_empty() { "the file".to_owned() } else { format!("[{}]", self.path) }
    }
}
