//! `hapax.toml`: from text to values that are complete and checked.
//!
//! [`Config::load`] reports everything that is wrong at once, each with its line and what was expected; see
//! `reference.toml` for every key and its default.
//!
//! A file is read in four steps: parsed into a tree that knows where each value stood; `[defaults]` merged under each
//! consumer, table by table; read key by key, where each problem is noted and reading goes on; and checked for values
//! that do not go together.

mod check;
mod consumer;
mod diagnostic;
mod grants;
mod mask;
mod policy;
mod reader;
mod scalar;
mod secret;
mod server;

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use consumer::{ConsumerConfig, DeadLetterCopy};
pub use diagnostic::{Diagnostic, Place, Severity};
pub use grants::{Grants, PublishGrant, Verb};
pub use policy::{Batch, Limits, LockPolicy, MassFailure, OnUnavailable, Prefetch, Reuse};
pub use secret::{Secret, ServerUrl};
pub use server::{BrokerConfig, DatabaseConfig, LockConfig};

use diagnostic::Finding;
use mask::Mask;
use reader::{Context, Field, Problem, Reader};

/// A whole config, complete and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// Where deliveries come from.
    pub broker: BrokerConfig,
    /// Where locks are held.
    pub lock: LockConfig,
    /// The ledger of every consumer that names no other.
    pub database: DatabaseConfig,
    /// In the order of the file.
    pub consumers: Vec<ConsumerConfig>,
    /// Where health and metrics are served.
    pub listen: Option<SocketAddr>,
    /// What is logged, and how.
    pub log: LogConfig,
    /// How long a graceful stop waits for running attempts.
    pub drain: Duration,
    /// Where compiled modules are kept.
    pub module_cache: ModuleCacheConfig,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// A filter directive such as `info,hapax=debug`; known to be valid.
    pub level: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// `[module_cache]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleCacheConfig {
    /// The directory; it is made on first use, readable and writable for this user only.
    pub dir: PathBuf,
}

impl Config {
    /// Reads and checks a file. On success there may be warnings; on failure there is at least one error, and the
    /// warnings are among them, in the order of the file.
    pub fn load(path: impl AsRef<Path>) -> Result<(Self, Vec<Diagnostic>), Vec<Diagnostic>> {
        let path = path.as_ref();
        let whole_file =
            |message: String| vec![Diagnostic::of_file(path, message, "name the config file with -c FILE")];
        let bytes = std::fs::read(path).map_err(|error| whole_file(format!("cannot read the config: {error}")))?;
        let text = String::from_utf8(bytes).map_err(|_| whole_file("the config is not UTF-8".to_owned()))?;
        Self::parse(&text, path)
    }

    /// The same for a text. `path` is for messages, and what relative paths are relative to. Only files that hold
    /// passwords are read.
    pub fn parse(text: &str, path: impl AsRef<Path>) -> Result<(Self, Vec<Diagnostic>), Vec<Diagnostic>> {
        Self::parse_with_env(text, path, &|name| std::env::var(name).ok())
    }

    /// The same with other environment variables.
    pub fn parse_with_env(
        text: &str,
        path: impl AsRef<Path>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Self, Vec<Diagnostic>), Vec<Diagnostic>> {
        let path = path.as_ref();
        let (root, syntax_errors) = DeTable::parse_recoverable(text);
        let mask = Mask::of(root.get_ref(), text, !syntax_errors.is_empty());
        let locate = |finding: Finding| finding.locate(path, text, &mask);
        if !syntax_errors.is_empty() {
            return Err(syntax_errors.iter().map(|error| locate(syntax_finding(error))).collect());
        }
        let context = Context::new(env, path.parent().unwrap_or(Path::new("")));
        let config = read(&context, root.get_ref(), path);
        let diagnostics: Vec<_> = context.into_findings().into_iter().map(locate).collect();
        match config {
            Some(config) if !diagnostics.iter().any(Diagnostic::is_error) => Ok((config, diagnostics)),
            _ => Err(diagnostics),
        }
    }
}

fn syntax_finding(error: &toml::de::Error) -> Finding {
    Finding {
        severity: Severity::Error,
        span: error.span(),
        message: format!("not valid TOML: {}", error.message().replace('\n', "; ")),
        label: String::new(),
        help: None,
    }
}

/// Reads the whole file. `None` only after an error was reported.
fn read<'a>(context: &'a Context<'a>, root: &'a DeTable<'a>, path: &Path) -> Option<Config> {
    let mut reader = Reader::new(context, root, 0..0, "");
    let listen = reader.optional("listen", socket_address);
    let drain =
        reader.get("drain", Duration::from_secs(25), |f| f.duration(Duration::ZERO..=Duration::from_secs(3600)));
    let log = reader.section("log", log);
    let module_cache = reader.section("module_cache", module_cache);
    let broker = required_section(&mut reader, "broker", "url = \"amqp://user@localhost/%2f\"", server::broker);
    let lock = reader.section("lock", server::lock);
    let database = required_section(&mut reader, "database", "url = \"mysql://user@localhost/shop\"", server::database);
    let defaults = defaults(&mut reader, database.as_ref());
    let consumers = consumers(&mut reader, defaults, database.as_ref(), broker.as_ref());
    reader.finish();
    let path = path.to_owned();
    Some(Config {
        path,
        broker: broker?,
        lock: lock?,
        database: database?,
        consumers,
        listen,
        log,
        drain,
        module_cache,
    })
}

fn required_section<'a, T>(
    reader: &mut Reader<'a>,
    key: &'static str,
    example: &str,
    read: impl FnOnce(&mut Reader<'a>) -> Option<T>,
) -> Option<T> {
    if reader.place(&[key]).is_none() {
        let problem = Problem::new(format!("there is no [{key}]")).help(format!("for example: [{key}] {example}"));
        reader.context.missing(Severity::Error, problem);
        reader.field(key);
        return None;
    }
    reader.section(key, read)
}

fn socket_address(field: &Field<'_>) -> Result<SocketAddr, Problem> {
    field.text()?.parse().map_err(|_| {
        Problem::new("`listen` must be an IP address and a port")
            .help("for example \"127.0.0.1:9090\" or \"[::]:9090\"")
    })
}

fn log(reader: &mut Reader<'_>) -> LogConfig {
    let formats = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    LogConfig {
        format: reader.get("format", LogFormat::Auto, |f| f.choice(&formats)),
        level: reader.get("level", "info".to_owned(), log_level),
    }
}

fn log_level(field: &Field<'_>) -> Result<String, Problem> {
    let text = field.text()?;
    let checked = tracing_subscriber::EnvFilter::try_new(&text);
    let help = "a level (error, warn, info, debug, trace), or levels by module: \"info,hapax::broker=debug\"";
    checked.map(|_| text).map_err(|error| Problem::new(format!("`level` is not a filter: {error}")).help(help))
}

/// Where compiled modules are kept unless a config says otherwise: in the user's cache directory, or without one in
/// `.hapax-cache` of `dir`.
pub fn default_module_cache(dir: &Path, env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let variable = |name: &str| env(name).filter(|value| Path::new(value).is_absolute());
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| format!("{home}/.cache")));
    base.map_or_else(|| dir.join(".hapax-cache"), |base| Path::new(&base).join("hapax"))
}

fn module_cache(reader: &mut Reader<'_>) -> ModuleCacheConfig {
    let default = default_module_cache(reader.context.dir, reader.context.env);
    ModuleCacheConfig { dir: reader.get("dir", default, Field::path) }
}

/// Reads `[defaults]` once on its own, so that its mistakes are told once and whether or not a consumer uses it.
fn defaults<'a>(reader: &mut Reader<'a>, database: Option<&DatabaseConfig>) -> Option<&'a DeTable<'a>> {
    let field = reader.field("defaults")?;
    let Some(table) = field.node.get_ref().as_table() else {
        reader.context.error(field.span(), field.mismatch("a table"));
        return None;
    };
    let mut alone = Reader::new(reader.context, table, field.span(), "defaults").partial();
    consumer::consumer(&mut alone, "defaults", database);
    alone.finish();
    reader.context.defaults_are_read();
    Some(table)
}

fn consumers<'a>(
    reader: &mut Reader<'a>,
    defaults: Option<&DeTable<'_>>,
    database: Option<&DatabaseConfig>,
    broker: Option<&BrokerConfig>,
) -> Vec<ConsumerConfig> {
    let mut entries = reader.optional("consumers", Field::entries).unwrap_or_default();
    if entries.is_empty() {
        let problem = Problem::new("no consumer is configured").help("[consumers.NAME] with queue, module and grants");
        reader.context.missing(Severity::Warning, problem);
    }
    entries.sort_by_key(|(key, _)| key.start);
    let mut found = Vec::new();
    for (key, field) in entries {
        found.extend(one_consumer(&field, key, defaults, database, broker));
    }
    check::consumers(reader, &found, broker);
    found.into_iter().map(|(consumer, _)| consumer).collect()
}

/// One consumer, and the place of its queue.
fn one_consumer(
    field: &Field<'_>,
    key: Range<usize>,
    defaults: Option<&DeTable<'_>>,
    database: Option<&DatabaseConfig>,
    broker: Option<&BrokerConfig>,
) -> Option<(ConsumerConfig, Range<usize>)> {
    if let Err(problem) = check::name(&field.name) {
        field.context.error(key.clone(), problem);
    }
    let Some(own) = field.node.get_ref().as_table() else {
        field.context.error(field.span(), field.mismatch("a table"));
        return None;
    };
    let merged = match defaults {
        Some(defaults) => merge(defaults, own),
        None => own.clone(),
    };
    let mut reader = Reader::new(field.context, &merged, key.clone(), &format!("consumers.{}", field.name));
    let consumer = consumer::consumer(&mut reader, &field.name, database);
    check::consumer(&reader, &consumer, broker);
    let place = reader.place(&["queue"]).unwrap_or(key);
    reader.finish();
    Some((consumer, place))
}

/// `over` laid over `under`: tables are merged key by key at every depth, anything else is replaced. Places stay those
/// of the values.
fn merge<'a>(under: &DeTable<'a>, over: &DeTable<'a>) -> DeTable<'a> {
    let mut merged = over.clone();
    for (key, value) in under.iter() {
        let both = (value.get_ref(), over.get(key.get_ref().as_ref()).map(Spanned::get_ref));
        if let (DeValue::Table(under), Some(DeValue::Table(over))) = both {
            if let Some(place) = merged.get_mut(key.get_ref().as_ref()) {
                *place.get_mut() = DeValue::Table(merge(under, over));
            }
        } else if both.1.is_none() {
            merged.insert(key.clone(), value.clone());
        }
    }
    merged
}

#[cfg(test)]
mod tests;
