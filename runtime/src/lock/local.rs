//! The lock in this process's memory: for the embedded demo, and for a single host without Redis.
//!
//! Time is tokio's, so a test that pauses it sees leases end without waiting.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Acquired, Features, Held, Lock, LockError, Token};

/// How many locks are held at most by default: far above any prefetch, far below what would trouble a host's memory.
const DEFAULT_CAPACITY: usize = 1 << 20;

/// Below this many entries nobody looks for expired ones.
const FIRST_SWEEP: usize = 1 << 10;

/// A lock that only this process sees.
#[derive(Debug)]
pub struct LocalLock {
    entries: Mutex<Entries>,
    capacity: usize,
}

/// The locks held, and when to look for expired ones next.
#[derive(Debug)]
struct Entries {
    by_key: HashMap<String, Entry>,
    sweep_at: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    token: Token,
    expires: Instant,
}

impl Default for LocalLock {
    fn default() -> Self {
        Self::new()
    }
}

impl LocalLock {
    /// A lock with room for about a million keys.
    pub fn new() -> Self {
        Self::with_capacity(DEFAULT_CAPACITY)
    }

    /// A lock that refuses to hold more than `capacity` keys.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { entries: Mutex::new(Entries { by_key: HashMap::new(), sweep_at: FIRST_SWEEP }), capacity }
    }

    fn with_entries<T>(&self, work: impl FnOnce(&mut Entries, Instant) -> T) -> T {
        // Nothing in here panics half-way through a change, so a poisoned map is still a correct one.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut entries, Instant::now())
    }
}

impl Entries {
    /// Drops what has expired, each time the map has doubled: constant cost per key in the long run.
    fn sweep(&mut self, now: Instant, at_once: bool) {
        if at_once || self.by_key.len() >= self.sweep_at {
            self.by_key.retain(|_, entry| entry.expires > now);
            self.sweep_at = FIRST_SWEEP.max(self.by_key.len() * 2);
        }
    }

    fn acquire(&mut self, key: &str, token: Token, now: Instant, expires: Instant) -> Acquired {
        match self.by_key.get(key) {
            Some(entry) if entry.expires > now => Acquired::No { expires_in: entry.expires - now },
            _ => {
                self.by_key.insert(key.to_owned(), Entry { token, expires });
                Acquired::Yes(Held { key: key.to_owned(), token })
            }
        }
    }

    /// The live entry that `held` proves its right to.
    fn owned(&mut self, held: &Held, now: Instant) -> Option<&mut Entry> {
        self.by_key.get_mut(&held.key).filter(|entry| entry.token == held.token && entry.expires > now)
    }
}

#[async_trait]
impl Lock for LocalLock {
    fn features(&self) -> Features {
        Features { shared: false }
    }

    async fn describe(&self) -> Result<String, LockError> {
        Ok("memory of this process".to_owned())
    }

    async fn acquire(&self, keys: &[String], lease: Duration) -> Result<Vec<Acquired>, LockError> {
        let token = Token::random();
        self.with_entries(|entries, now| {
            entries.sweep(now, false);
            if entries.by_key.len() + keys.len() > self.capacity {
                entries.sweep(now, true);
            }
            if entries.by_key.len() + keys.len() > self.capacity {
                return Err(self.full());
            }
            let expires = now + lease;
            Ok(keys.iter().map(|key| entries.acquire(key, token, now, expires)).collect())
        })
    }

    async fn extend(&self, held: &[Held], lease: Duration) -> Result<Vec<bool>, LockError> {
        Ok(self.with_entries(|entries, now| {
            let extend = |held| entries.owned(held, now).map(|entry| entry.expires = now + lease).is_some();
            held.iter().map(extend).collect()
        }))
    }

    async fn release(&self, held: &[Held]) -> Result<(), LockError> {
        self.with_entries(|entries, now| {
            for held in held {
                if entries.owned(held, now).is_some() {
                    entries.by_key.remove(&held.key);
                }
            }
        });
        Ok(())
    }
}

impl LocalLock {
    fn full(&self) -> LockError {
        crate::telemetry::metrics::lock_failed();
        LockError {
            server: "local:".to_owned(),
            reason: format!(
                "{} locks are held, and more are refused; lower the prefetch or the lease, or use Redis",
                self.capacity
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: std::ops::Range<usize>) -> Vec<String> {
        names.map(|n| format!("k{n}")).collect()
    }

    #[tokio::test]
    async fn it_holds_no_more_than_its_capacity_and_expired_locks_make_room() {
        let lock = LocalLock::with_capacity(10);
        lock.acquire(&keys(0..10), Duration::from_millis(30)).await.unwrap();
        let error = lock.acquire(&keys(10..11), Duration::from_secs(1)).await.unwrap_err();
        assert!(error.reason.starts_with("10 locks are held"), "{error}");
        tokio::time::sleep(Duration::from_millis(40)).await;
        let answers = lock.acquire(&keys(10..20), Duration::from_secs(1)).await.unwrap();
        assert!(answers.iter().all(|answer| matches!(answer, Acquired::Yes(_))));
    }

    #[tokio::test]
    async fn expired_locks_do_not_pile_up() {
        let lock = LocalLock::new();
        for round in 0..20 {
            lock.acquire(&keys(round * 1000..(round + 1) * 1000), Duration::ZERO).await.unwrap();
        }
        assert!(lock.entries.lock().unwrap().by_key.len() <= FIRST_SWEEP + 1000);
    }
}
