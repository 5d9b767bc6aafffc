//! The lock on Redis (or anything that speaks its protocol and runs its Lua): one server, one database; no Cluster.
//!
//! Every call is one script call in one trip, however many keys it names. A script rather than a pipeline of
//! `SET … NX PX` and `PTTL`, because the server then sends the time left only for the keys that somebody else holds,
//! the token travels once instead of once per key, and no key can expire between the two questions. The scripts are
//! called by their digest and sent in full only to a server that does not know them yet.
//!
//! A key that was set by a call whose answer was lost is never taken as held: it is released after the next reconnect
//! if its lease has not ended by then, and otherwise ends with its lease.

mod explain;
mod link;

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind};
use tokio::time::{Instant, timeout_at};

use super::{Acquired, Features, Held, Lock, LockError, Token};
use crate::sabotage::{self, Breach};
use link::Link;

/// Redis adds a time to live to its clock and refuses sums that overflow; no lease is ever near this long.
const LONGEST_LEASE: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long to wait for Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedisSettings {
    /// For one attempt to connect, TLS and login included. Attempts run in the background.
    pub connect_timeout: Duration,
    /// For one call, a first connection included: no caller ever waits longer.
    pub response_timeout: Duration,
}

impl Default for RedisSettings {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(2), response_timeout: Duration::from_millis(500) }
    }
}

/// A lock on a Redis server, see the module's text.
///
/// The connection is made at the first call, in the background. Once it is lost or does not answer in time, calls fail
/// at once, until the background has connected again and taken, extended and released a lock of its own.
pub struct RedisLock {
    link: Link,
    settings: RedisSettings,
}

impl RedisLock {
    /// Prepares a lock on the server at `url`: `redis://[user[:password]@]host[:port][/db]`, the same with `rediss://`
    /// for TLS under the system's root certificates, or `redis+unix:///path[?db=N&user=…&pass=…]`.
    ///
    /// # Errors
    /// When the URL does not make sense. Whether the server is there shows later. The error never quotes the URL.
    pub fn new(url: &str, settings: RedisSettings) -> Result<Self, LockError> {
        Ok(Self { link: Link::new(url, settings.connect_timeout)?, settings })
    }

    /// Runs one script, within the response timeout whatever happens.
    async fn run<T: FromRedisValue>(&self, call: &Call<'_>) -> Result<T, Failed> {
        let deadline = Instant::now() + self.settings.response_timeout;
        let result = self.run_until(call, deadline).await;
        if result.is_err() {
            crate::telemetry::metrics::lock_failed();
        }
        result
    }

    async fn run_until<T: FromRedisValue>(&self, call: &Call<'_>, deadline: Instant) -> Result<T, Failed> {
        let mut up = self.link.up(deadline).await.map_err(|error| Failed { error, sent: false })?;
        match timeout_at(deadline, call.invoke(&mut up.connection)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Failed { error: self.link.failed(&up, &error), sent: true }),
            Err(_) => Err(Failed { error: self.link.silent(&up, self.settings.response_timeout), sent: true }),
        }
    }

    fn odd_answer(&self, answers: usize, keys: usize) -> LockError {
        crate::telemetry::metrics::lock_failed();
        self.link.error(format!("answered for {answers} keys instead of {keys}; is there a proxy in between?"))
    }
}

impl fmt::Debug for RedisLock {
    /// Without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLock")
            .field("server", &self.link.server())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Lock for RedisLock {
    fn features(&self) -> Features {
        Features { shared: true }
    }

    async fn describe(&self) -> Result<String, LockError> {
        let deadline = Instant::now() + self.settings.response_timeout;
        let mut up = self.link.up(deadline).await?;
        let mut info = Cmd::new();
        info.arg("INFO").arg("server");
        match timeout_at(deadline, info.query_async::<String>(&mut up.connection)).await {
            Ok(Ok(info)) => Ok(format!("{} at {}", name_and_version(&info), self.link.server())),
            // INFO needs a right that locks do not: its lack is no fault.
            Ok(Err(error)) if explain::text(&error).contains("NOPERM") => {
                Ok(format!("Redis (version hidden from this user) at {}", self.link.server()))
            }
            Ok(Err(error)) => Err(self.link.failed(&up, &error)),
            Err(_) => Err(self.link.silent(&up, self.settings.response_timeout)),
        }
    }

    async fn acquire(&self, keys: &[String], lease: Duration) -> Result<Vec<Acquired>, LockError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let token = Token::random();
        let asked = Instant::now();
        let answers: Vec<i64> = match self.run(&Call::acquire(keys, token, lease)).await {
            Ok(answers) => answers,
            Err(Failed { error, sent }) => {
                if sent {
                    self.link.perhaps_ours(keys, token, asked + lease);
                }
                return Err(error);
            }
        };
        if answers.len() != keys.len() {
            return Err(self.odd_answer(answers.len(), keys.len()));
        }
        let acquired = |(key, answer): (&String, i64)| match answer {
            0 => Acquired::Yes(Held { key: key.clone(), token }),
            // Somebody set this key by hand, for ever: treat it as a lock just taken, and look again later.
            ..0 => Acquired::No { expires_in: lease },
            left => Acquired::No { expires_in: Duration::from_millis(left.unsigned_abs()) },
        };
        Ok(keys.iter().zip(answers).map(acquired).collect())
    }

    async fn extend(&self, held: &[Held], lease: Duration) -> Result<Vec<bool>, LockError> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let answers: Vec<i64> = self.run(&Call::extend(held, lease)).await.map_err(|failed| failed.error)?;
        if answers.len() != held.len() {
            return Err(self.odd_answer(answers.len(), held.len()));
        }
        Ok(answers.into_iter().map(|answer| answer == 1).collect())
    }

    async fn release(&self, held: &[Held]) -> Result<(), LockError> {
        if held.is_empty() {
            return Ok(());
        }
        self.run::<i64>(&Call::release(held)).await.map(drop).map_err(|failed| failed.error)
    }
}

/// A call without an answer.
struct Failed {
    error: LockError,
    /// The server may have done what was asked.
    sent: bool,
}

/// A script and its digest.
struct Script {
    source: &'static str,
    digest: String,
}

impl Script {
    fn new(source: &'static str) -> Self {
        Self { source, digest: redis::Script::new(source).get_hash().to_owned() }
    }
}

static ACQUIRE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/acquire.lua")));
static EXTEND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(match sabotage::broken(Breach::LockWithoutToken) {
        true => "local t = {} for i, k in ipairs(KEYS) do t[i] = redis.call('PEXPIRE', k, ARGV[1]) end return t",
        false => include_str!("redis/extend.lua"),
    })
});
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(match sabotage::broken(Breach::LockWithoutToken) {
        true => "return redis.call('DEL', unpack(KEYS))",
        false => include_str!("redis/release.lua"),
    })
});

/// One call of one script.
struct Call<'a> {
    script: &'static Script,
    keys: Vec<&'a str>,
    /// Comes before the tokens, where the script wants one.
    lease_ms: Option<u64>,
    tokens: Vec<Token>,
}

impl<'a> Call<'a> {
    fn acquire(keys: &'a [String], token: Token, lease: Duration) -> Self {
        let keys = keys.iter().map(String::as_str).collect();
        Self { script: &ACQUIRE, keys, lease_ms: Some(milliseconds(lease)), tokens: vec![token] }
    }

    fn extend(held: &'a [Held], lease: Duration) -> Self {
        Self { lease_ms: Some(milliseconds(lease)), ..Self::of_held(&EXTEND, held) }
    }

    fn release(held: &'a [Held]) -> Self {
        Self::of_held(&RELEASE, held)
    }

    fn of_held(script: &'static Script, held: &'a [Held]) -> Self {
        let keys = held.iter().map(|held| held.key.as_str()).collect();
        Self { script, keys, lease_ms: None, tokens: held.iter().map(|held| held.token).collect() }
    }

    async fn invoke<T: FromRedisValue>(
        &self,
        connection: &mut impl redis::aio::ConnectionLike,
    ) -> Result<T, RedisError> {
        match self.command("EVALSHA", &self.script.digest).query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.command("EVAL", self.script.source).query_async(connection).await
            }
            result => result,
        }
    }

    fn command(&self, verb: &str, script: &str) -> Cmd {
        let mut command = Cmd::new();
        command.arg(verb).arg(script).arg(self.keys.len()).arg(&self.keys).arg(self.lease_ms);
        for token in &self.tokens {
            command.arg(&token.0[..]);
        }
        command
    }
}

/// Whole milliseconds that Redis accepts as a time to live.
fn milliseconds(lease: Duration) -> u64 {
    let capped = lease.clamp(Duration::from_millis(1), LONGEST_LEASE);
    u64::try_from(capped.as_millis()).unwrap_or(u64::MAX)
}

/// "Redis 7.0.15" or "Valkey 8.1.0", from the answer to `INFO server`.
fn name_and_version(info: &str) -> String {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    match (field("valkey_version"), field("redis_version")) {
        (Some(version), _) => format!("Valkey {}", version.trim()),
        (None, Some(version)) => format!("Redis {}", version.trim()),
        (None, None) => "a server that does not tell its version".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_whole_milliseconds_that_redis_accepts() {
        assert_eq!(milliseconds(Duration::ZERO), 1);
        assert_eq!(milliseconds(Duration::from_micros(2500)), 2);
        assert_eq!(milliseconds(Duration::MAX), 365 * 24 * 3_600_000);
    }

    #[test]
    fn a_server_is_called_by_its_own_name() {
        assert_eq!(name_and_version("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n"), "Redis 7.0.15");
        assert_eq!(name_and_version("redis_version:7.2.4\r\nvalkey_version:8.1.0\r\n"), "Valkey 8.1.0");
        assert_eq!(name_and_version(""), "a server that does not tell its version");
    }

    #[test]
    fn a_call_names_keys_lease_and_tokens_in_the_scripts_order() {
        let held = [Held { key: "a\r\n$1".into(), token: Token([0; 16]) }];
        let packed = Call::extend(&held, Duration::from_secs(1)).command("EVALSHA", "d").get_packed_command();
        let mut expected =
            b"*6\r\n$7\r\nEVALSHA\r\n$1\r\nd\r\n$1\r\n1\r\n$5\r\na\r\n$1\r\n$4\r\n1000\r\n$16\r\n".to_vec();
        expected.extend([0; 16]);
        expected.extend(b"\r\n");
        assert_eq!(packed, expected);
    }

    #[test]
    fn debug_output_hides_the_password() {
        let lock = RedisLock::new("redis://shop:s3cret@localhost/3", RedisSettings::default()).unwrap();
        let shown = format!("{lock:?}");
        assert!(shown.contains("redis://localhost:6379/3") && !shown.contains("s3cret"), "{shown}");
    }
}
