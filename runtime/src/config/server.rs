//! `[broker]`, `[lock]` and `[database]`: where the servers are.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use super::reader::{Field, Problem, Reader, unknown_word};
use super::secret::{Secret, ServerUrl};
use crate::ledger::database::Dialect;

/// `[broker]`: where deliveries come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerConfig {
    /// `amqp://` or `amqps://`.
    Amqp(ServerUrl),
    /// `embedded:PATH`: a file of Hapax's own.
    Embedded(PathBuf),
}

/// `[lock]`: where locks are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockConfig {
    /// `redis://`, `rediss://` or `redis+unix://`.
    Redis(ServerUrl),
    /// `local:`: in this process's memory.
    Local,
}

/// `[database]`, or a consumer's own: where the ledger is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseConfig {
    /// `mysql://` or `mariadb://`.
    MySql(ServerUrl),
    /// `postgres://` or `postgresql://`.
    Postgres(ServerUrl),
    /// `sqlite://PATH`.
    Sqlite(PathBuf),
}

impl DatabaseConfig {
    /// Which SQL it speaks.
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::MySql(_) => Dialect::MySql,
            Self::Postgres(_) => Dialect::Postgres,
            Self::Sqlite(_) => Dialect::Sqlite,
        }
    }
}

/// Without credentials.
impl fmt::Display for BrokerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amqp(url) => fmt::Display::fmt(url, f),
            Self::Embedded(path) => write!(f, "embedded:{}", path.display()),
        }
    }
}

/// Without credentials.
impl fmt::Display for LockConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(url) => fmt::Display::fmt(url, f),
            Self::Local => f.write_str("local:"),
        }
    }
}

/// Without credentials.
impl fmt::Display for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MySql(url) | Self::Postgres(url) => fmt::Display::fmt(url, f),
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
        }
    }
}

/// What follows a scheme, and what it makes.
enum Kind<T> {
    Server(fn(ServerUrl) -> T),
    /// A server at a socket of this machine: it has a path and no host.
    Socket(fn(ServerUrl) -> T),
    File(fn(PathBuf) -> T),
    Alone(fn() -> T),
}

type Schemes<T> = [(&'static str, Kind<T>)];

const BROKERS: [(&str, Kind<BrokerConfig>); 3] = [
    ("amqp", Kind::Server(BrokerConfig::Amqp)),
    ("amqps", Kind::Server(BrokerConfig::Amqp)),
    ("embedded", Kind::File(BrokerConfig::Embedded)),
];

const LOCKS: [(&str, Kind<LockConfig>); 4] = [
    ("redis", Kind::Server(LockConfig::Redis)),
    ("rediss", Kind::Server(LockConfig::Redis)),
    ("redis+unix", Kind::Socket(LockConfig::Redis)),
    ("local", Kind::Alone(|| LockConfig::Local)),
];

const DATABASES: [(&str, Kind<DatabaseConfig>); 5] = [
    ("mysql", Kind::Server(DatabaseConfig::MySql)),
    ("mariadb", Kind::Server(DatabaseConfig::MySql)),
    ("postgres", Kind::Server(DatabaseConfig::Postgres)),
    ("postgresql", Kind::Server(DatabaseConfig::Postgres)),
    ("sqlite", Kind::File(DatabaseConfig::Sqlite)),
];

/// Reads `[broker]`.
pub(super) fn broker(reader: &mut Reader<'_>) -> Option<BrokerConfig> {
    section(reader, "\"amqp://user@localhost/%2f\"", &BROKERS)
}

/// Reads `[database]`, or the table of a consumer's own.
pub(super) fn database(reader: &mut Reader<'_>) -> Option<DatabaseConfig> {
    section(reader, "\"mysql://user@localhost/shop\"", &DATABASES)
}

/// Reads `database` of a consumer: an address, or a table as `[database]`. `None` where there is none, or a wrong one.
pub(super) fn consumer_database(reader: &mut Reader<'_>) -> Option<DatabaseConfig> {
    let field = reader.field("database")?;
    if field.raw().is_some() {
        return endpoint(&field, None, &DATABASES);
    }
    if field.node.get_ref().as_table().is_none() {
        reader.context.error(field.span(), field.mismatch("an address, or a table with `url` and `password`"));
        return None;
    }
    reader.below("database", Some(&field), database)
}

/// Reads `[lock]`; without an address, locks are local.
pub(super) fn lock(reader: &mut Reader<'_>) -> Option<LockConfig> {
    let (url, password) = (reader.field("url"), reader.field("password"));
    match url {
        Some(url) => endpoint(&url, password.as_ref(), &LOCKS),
        None => {
            if let Some(password) = password {
                let problem = Problem::new("`password` without `url`").label("whose password is it?");
                reader.context.error(password.span(), problem);
            }
            Some(LockConfig::Local)
        }
    }
}

fn section<T>(reader: &mut Reader<'_>, example: &str, schemes: &Schemes<T>) -> Option<T> {
    let url = reader.require("url", example, |field| Ok(field.clone()));
    let password = reader.field("password");
    endpoint(&url?, password.as_ref(), schemes)
}

/// An address with its password, reported on if it is wrong.
fn endpoint<T>(url: &Field<'_>, password: Option<&Field<'_>>, schemes: &Schemes<T>) -> Option<T> {
    let found = url.check(|url| address(url, schemes));
    let secret = password.map(|field| field.check(read_secret));
    match (found?, secret) {
        (Address::Server(parsed, make), None) => {
            if has_password(&parsed) && !url.raw().unwrap_or_default().contains("${") {
                warn_about_password(url);
            }
            Some(make(ServerUrl::new(parsed)))
        }
        (Address::Server(mut parsed, make), Some(secret)) => {
            if has_password(&parsed) {
                let problem = Problem::new("the password is given twice").label("here, and in `url`");
                url.context.error(password?.span(), problem);
                return None;
            }
            put_password(&mut parsed, &secret?);
            Some(make(ServerUrl::new(parsed)))
        }
        (Address::Other(made), None) => Some(made),
        (Address::Other(_), Some(_)) => {
            url.context.error(password?.span(), Problem::new("an address like this takes no password"));
            None
        }
    }
}

/// The parameter that holds the password in the address of a socket, which has no place for one before a host.
const SOCKET_PASSWORD: &str = "pass";

fn has_password(url: &Url) -> bool {
    url.password().is_some() || !url.has_host() && url.query_pairs().any(|(name, _)| name == SOCKET_PASSWORD)
}

/// Clients decode what they find there, so that everything but letters and digits is encoded: `Url` itself leaves a `%`
/// alone, and `a%20b` would become another password.
fn put_password(url: &mut Url, secret: &Secret) {
    let encoded = utf8_percent_encode(secret.expose(), NON_ALPHANUMERIC).to_string();
    // It fails without a host, and then the address is a socket's.
    if url.set_password(Some(&encoded)).is_err() {
        url.query_pairs_mut().append_pair(SOCKET_PASSWORD, secret.expose());
    }
}

fn warn_about_password(url: &Field<'_>) {
    let problem = Problem::new("the address contains a password")
        .help("keep it out of the file: password = \"${NAME}\" takes an environment variable, \"file:PATH\" a file");
    url.context.warning(url.span(), problem);
}

enum Address<T> {
    Server(Url, fn(ServerUrl) -> T),
    Other(T),
}

/// Never shows the address itself: it may contain a password.
fn address<T>(field: &Field<'_>, schemes: &Schemes<T>) -> Result<Address<T>, Problem> {
    let text = field.text()?;
    let names: Vec<&str> = schemes.iter().map(|(name, _)| *name).collect();
    let Some((scheme, rest)) = text.split_once(':') else {
        let help = format!("it begins with a scheme: {}", names.join(":, ") + ":");
        return Err(Problem::new(format!("`{}` is not an address", field.name)).help(help));
    };
    let Some((_, kind)) = schemes.iter().find(|(name, _)| *name == scheme) else {
        return Err(unknown_word("unknown scheme", scheme, &names));
    };
    match kind {
        Kind::Server(make) => Ok(Address::Server(server_url(&text, scheme, rest)?, *make)),
        Kind::Socket(make) => Ok(Address::Server(socket_url(&text, scheme, rest)?, *make)),
        Kind::File(make) => Ok(Address::Other(make(field.context.dir.join(file_path(scheme, rest)?)))),
        Kind::Alone(make) if rest.is_empty() => Ok(Address::Other(make())),
        Kind::Alone(_) => Err(Problem::new(format!("nothing may follow `{scheme}:`"))),
    }
}

fn server_url(text: &str, scheme: &str, rest: &str) -> Result<Url, Problem> {
    let help = format!("for example: {scheme}://user@localhost/…; special characters are written as in %2f");
    if !rest.starts_with("//") {
        return Err(Problem::new(format!("`{scheme}:` must be followed by `//` and a host")).help(help));
    }
    let url = Url::parse(text).map_err(|error| Problem::new(format!("not a valid address: {error}")).help(&*help))?;
    match url.host_str() {
        Some(host) if !host.is_empty() => Ok(url),
        _ => Err(Problem::new("the address has no host").help(help)),
    }
}

fn socket_url(text: &str, scheme: &str, rest: &str) -> Result<Url, Problem> {
    let help = format!("for example: {scheme}:///run/redis/redis.sock");
    let path = rest.strip_prefix("//").filter(|path| path.starts_with('/') && path.len() > 1);
    if path.is_none_or(|path| path.starts_with("/?")) {
        let problem = Problem::new(format!("`{scheme}:` must be followed by `//` and the absolute path of a socket"));
        return Err(problem.help(help));
    }
    Url::parse(text).map_err(|error| Problem::new(format!("not a valid address: {error}")).help(help))
}

fn file_path<'t>(scheme: &str, rest: &'t str) -> Result<&'t str, Problem> {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.contains('?') {
        return Err(Problem::new(format!("`{scheme}:` takes a path and no parameters")));
    }
    match path {
        "" => Err(Problem::new(format!("`{scheme}:` must be followed by the path of a file"))),
        ":memory:" => Err(Problem::new("a database in memory would forget everything when the process dies")
            .help("give the path of a file")),
        _ => Ok(path),
    }
}

/// Longest password file, in bytes.
const MAX_SECRET_BYTES: usize = 64 * 1024;

/// A password: as it is written, from `${NAME}`, or from a file (`file:PATH`, its last line end left out).
fn read_secret(field: &Field<'_>) -> Result<Secret, Problem> {
    let text = field.text()?;
    // Asked of the text in the file: a password in a variable may begin with anything.
    if !field.raw().unwrap_or_default().starts_with("file:") {
        return Ok(Secret::new(text));
    }
    let path = field.context.dir.join(text.trim_start_matches("file:"));
    let problem = |what: &str| Problem::new(format!("cannot read the password from {}: {what}", path.display()));
    let content = std::fs::read(&path).map_err(|error| problem(&error.to_string()))?;
    if content.len() > MAX_SECRET_BYTES {
        return Err(problem("it is larger than 64 KiB"));
    }
    let content = String::from_utf8(content).map_err(|_| problem("it is not UTF-8"))?;
    let line = content.strip_suffix('\n').unwrap_or(&content);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() { Err(problem("it is empty")) } else { Ok(Secret::new(line)) }
}
