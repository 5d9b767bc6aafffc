//! The lock seam: a short exclusive claim on a message id while an attempt runs.
//!
//! Nothing correct depends on it: the inbox's unique key is the judge. It keeps two hosts from running the same
//! message at the same time and throwing one result away.

pub mod lease;
pub mod local;
pub mod redis;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

/// What a back end can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Other hosts see the lock.
    pub shared: bool,
}

/// A random value for each acquisition: only its holder can extend or release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 16]);

impl Token {
    /// A new token from the operating system's random numbers.
    pub fn random() -> Self {
        Self(*uuid::Uuid::new_v4().as_bytes())
    }
}

/// A lock held: its key, and the token that proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The lock's key, see [`key`].
    pub key: String,
    /// Proof of holding.
    pub token: Token,
}

/// The answer for one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// It is ours for one lease.
    Yes(Held),
    /// Somebody else holds it.
    No {
        /// How much of the holder's lease is left.
        expires_in: Duration,
    },
}

/// The lock's back end did not answer as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("lock at {server}: {reason}")]
pub struct LockError {
    /// Address without credentials.
    pub server: String,
    /// What happened.
    pub reason: String,
}

/// A lock server. Every call is one round trip, however many keys it names, and is bounded by a time limit of the
/// back end's own: a lock server that hangs is one that is down.
#[async_trait]
pub trait Lock: Send + Sync {
    /// What this back end can do.
    fn features(&self) -> Features;

    /// Server name and version, for logs and `hapax check --connect`.
    async fn describe(&self) -> Result<String, LockError>;

    /// Tries to take each key for one lease; answers are in the order of `keys`.
    async fn acquire(&self, keys: &[String], lease: Duration) -> Result<Vec<Acquired>, LockError>;

    /// Renews each lease that is still held under its token; `false` where it was lost.
    async fn extend(&self, held: &[Held], lease: Duration) -> Result<Vec<bool>, LockError>;

    /// Releases what is still held under its token; what is not ours stays.
    async fn release(&self, held: &[Held]) -> Result<(), LockError>;
}

/// The key under which a consumer locks a message id.
pub fn key(consumer: &str, id: &crate::message::MessageId) -> String {
    format!("hapax:{consumer}:{id}")
}

/// Takes, extends and releases a lock that nobody else wants: more than a sign of life, for a server that is full or
/// read-only, or whose user lacks a right, answers too.
///
/// # Errors
/// When the lock server does not do that.
pub async fn probe(lock: &dyn Lock, lease: Duration) -> Result<(), LockError> {
    let answers = lock.acquire(&[format!("hapax:probe:{}", uuid::Uuid::new_v4())], lease).await?;
    let held = answers.into_iter().filter_map(|answer| match answer {
        Acquired::Yes(held) => Some(held),
        Acquired::No { .. } => None,
    });
    let held: Vec<Held> = held.collect();
    lock.extend(&held, lease).await?;
    lock.release(&held).await
}

/// Opens the lock that `url` names: `redis://`, `rediss://` (TLS), `redis+unix://` (a socket), or `local:` (this
/// process's memory). Nothing is connected yet, so this works before the server is there.
///
/// # Errors
/// When the URL is not one of these. The URL itself is never in the error: it may hold a password.
pub fn open(url: &str, settings: redis::RedisSettings) -> Result<Arc<dyn Lock>, LockError> {
    match url.split_once(':') {
        Some(("local", "")) => Ok(Arc::new(local::LocalLock::new())),
        Some(("redis" | "rediss" | "redis+unix", _)) => Ok(Arc::new(redis::RedisLock::new(url, settings)?)),
        _ => Err(LockError::in_url("its scheme is not one of redis://, rediss://, redis+unix:// or local:")),
    }
}

impl LockError {
    /// The lock's URL cannot be used; `reason` must not quote it.
    fn in_url(reason: impl Into<String>) -> Self {
        Self { server: "lock.url".to_owned(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_opened_by_its_url() {
        let open = |url| open(url, redis::RedisSettings::default());
        assert!(!open("local:").unwrap().features().shared);
        for url in ["redis://localhost", "rediss://user:pw@cache:6380/2", "redis+unix:///run/redis.sock?db=1"] {
            assert!(open(url).unwrap().features().shared, "{url}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_used_is_explained_and_never_quoted() {
        for url in [
            "",
            "local:x",
            "memcached://u:s3cret@h",
            "redis://u:s3cret@h/db",
            "redis://u:s3cret@",
            "rediss://u:s3cret@h/#insecure",
        ] {
            let error =
                open(url, redis::RedisSettings::default()).err().unwrap_or_else(|| panic!("{url} was accepted"));
            assert_eq!(error.server, "lock.url");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }
}
