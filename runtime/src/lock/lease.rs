//! Leases: locks kept alive while attempts run, and let go of afterwards without anybody waiting for it.
//!
//! ```no_run
//! # async fn example(lock: std::sync::Arc<dyn hapax::lock::Lock>, held: Vec<hapax::lock::Held>) {
//! use std::time::Duration;
//! let leases = hapax::lock::lease::Leases::start(lock, Duration::from_secs(30));
//! let guard = leases.hold(held); // renewed every 10 s from here on
//! /* … the batch runs … */
//! guard.release(); // returns at once
//! leases.shutdown(Duration::from_secs(1)).await;
//! # }
//! ```
//! A lock that is lost (its host was frozen past the lease, Redis was emptied) is reported and no longer renewed. The
//! attempt goes on: SQL is the judge, so a lost lock can cost time and never correctness.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::{Held, Lock, LockError};

/// How many keys wait for their release at most; what is past it ends with its lease. Reached only when the lock
/// server is slower than the whole pipeline.
const MOST_RELEASES_WAITING: usize = 1 << 16;

/// How many keys one release call names: a script stops the server's other clients for as long as it runs.
const RELEASES_PER_CALL: usize = 1 << 12;

/// After a renewal that failed altogether, the next one comes this soon, or sooner if leases are short.
const RENEW_AGAIN: Duration = Duration::from_secs(1);

/// Keeps locks renewed, and releases them in the background. Dropping it ends both; see [`Leases::shutdown`].
pub struct Leases {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

struct Shared {
    lock: Arc<dyn Lock>,
    lease: Duration,
    book: Mutex<Book>,
    /// Something waits for its release.
    releases: Notify,
    stop: CancellationToken,
}

/// What is held, per guard, and what waits for its release.
#[derive(Default)]
struct Book {
    held: HashMap<u64, Vec<Held>>,
    next_guard: u64,
    releasing: Vec<Held>,
}

/// Locks held for a batch; dropping it releases them in the background.
#[must_use = "dropping the guard releases its locks"]
pub struct Guard {
    shared: Arc<Shared>,
    number: u64,
}

impl Leases {
    /// Starts renewing every third of `lease`, in the current tokio runtime.
    pub fn start(lock: Arc<dyn Lock>, lease: Duration) -> Self {
        let shared = Arc::new(Shared {
            lock,
            lease,
            book: Mutex::default(),
            releases: Notify::new(),
            stop: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(renew_until_stopped(Arc::clone(&shared)));
        tasks.spawn(release_until_stopped(Arc::clone(&shared)));
        tasks.close();
        Self { shared, tasks }
    }

    /// How long a lock lasts without renewal.
    pub fn lease(&self) -> Duration {
        self.shared.lease
    }

    /// Keeps these locks renewed from now on, until the guard goes.
    pub fn hold(&self, held: Vec<Held>) -> Guard {
        let mut book = self.shared.book();
        let number = book.next_guard;
        book.next_guard += 1;
        if !held.is_empty() {
            book.held.insert(number, held);
        }
        drop(book);
        Guard { shared: Arc::clone(&self.shared), number }
    }

    /// How many locks are being renewed.
    pub fn held(&self) -> usize {
        self.shared.book().held.values().map(Vec::len).sum()
    }

    /// Stops renewing, and sends the releases that still wait, for at most `limit`. Guards should be gone by then:
    /// what they hold ends with its lease.
    pub async fn shutdown(self, limit: Duration) {
        self.shared.stop.cancel();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            let waiting = self.shared.book().releasing.len();
            warn!(waiting, ?limit, "locks were not released in time; they end with their lease");
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Guard {
    /// Ends the renewal and hands the locks over for release; returns at once.
    pub fn release(self) {
        drop(self);
    }

    /// Ends the renewal and releases the locks, in one trip: whoever asks for the same keys next finds them free. If the
    /// lock server does not answer, they end with their lease.
    pub async fn release_now(self) {
        let held = self.shared.book().held.remove(&self.number);
        if let Some(held) = held {
            self.shared.release(&held).await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut book = self.shared.book();
        let Some(mut held) = book.held.remove(&self.number) else { return };
        let room = MOST_RELEASES_WAITING.saturating_sub(book.releasing.len());
        if held.len() > room {
            debug!(keys = held.len() - room, "too many locks wait for their release; these end with their lease");
            held.truncate(room);
        }
        book.releasing.append(&mut held);
        drop(book);
        self.shared.releases.notify_one();
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews everything held, in one trip.
    async fn renew(&self) -> Result<(), LockError> {
        let (owners, held) = self.book().all_held();
        if held.is_empty() {
            return Ok(());
        }
        let answers = self.lock.extend(&held, self.lease).await?;
        let lost = owners.into_iter().zip(held).zip(answers).filter(|(_, kept)| !kept).map(|(lost, _)| lost);
        for (owner, held) in lost {
            if self.book().forget(owner, &held) {
                crate::telemetry::metrics::lease_lost();
                warn!(
                    key = held.key,
                    "a lock was lost while its attempt runs; another host may run the same message, and SQL keeps one"
                );
            }
        }
        Ok(())
    }

    /// Releases everything that waits, in as few trips as its number allows.
    async fn release_waiting(&self) {
        loop {
            let waiting = self.book().some_to_release();
            if waiting.is_empty() {
                return;
            }
            self.release(&waiting).await;
        }
    }

    async fn release(&self, held: &[Held]) {
        if let Err(error) = self.lock.release(held).await {
            debug!(keys = held.len(), %error, "locks were not released; they end with their lease");
        }
    }
}

impl Book {
    /// Every lock held, each with the number of its guard.
    fn all_held(&self) -> (Vec<u64>, Vec<Held>) {
        self.held.iter().flat_map(|(owner, held)| held.iter().map(|held| (*owner, held.clone()))).unzip()
    }

    /// Takes a lost lock off its guard. False when the guard has meanwhile let go of it: then nothing was lost.
    fn forget(&mut self, owner: u64, lost: &Held) -> bool {
        let Some(held) = self.held.get_mut(&owner) else { return false };
        let before = held.len();
        held.retain(|held| held != lost);
        held.len() < before
    }

    fn some_to_release(&mut self) -> Vec<Held> {
        if self.releasing.len() <= RELEASES_PER_CALL {
            return std::mem::take(&mut self.releasing);
        }
        self.releasing.drain(..RELEASES_PER_CALL).collect()
    }
}

async fn renew_until_stopped(shared: Arc<Shared>) {
    let period = shared.lease / 3;
    let again = RENEW_AGAIN.min(shared.lease / 10);
    let mut wait = period;
    while shared.stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        wait = match shared.stop.run_until_cancelled(shared.renew()).await {
            Some(Ok(())) => period,
            Some(Err(error)) => {
                debug!(%error, "locks were not renewed; trying again");
                again
            }
            None => return,
        };
    }
}

async fn release_until_stopped(shared: Arc<Shared>) {
    while shared.stop.run_until_cancelled(shared.releases.notified()).await.is_some() {
        shared.release_waiting().await;
    }
    // What was handed over before the end is released still; each call has a limit of its own.
    shared.release_waiting().await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::super::local::LocalLock;
    use super::super::{Acquired, Features};
    use super::*;

    /// A local lock that counts its calls, and is slow to release when told.
    #[derive(Default)]
    struct Counting {
        inner: LocalLock,
        extends: AtomicUsize,
        releases: AtomicUsize,
        release_takes: Duration,
    }

    #[async_trait]
    impl Lock for Counting {
        fn features(&self) -> Features {
            self.inner.features()
        }
        async fn describe(&self) -> Result<String, LockError> {
            self.inner.describe().await
        }
        async fn acquire(&self, keys: &[String], lease: Duration) -> Result<Vec<Acquired>, LockError> {
            self.inner.acquire(keys, lease).await
        }
        async fn extend(&self, held: &[Held], lease: Duration) -> Result<Vec<bool>, LockError> {
            self.extends.fetch_add(1, Ordering::SeqCst);
            self.inner.extend(held, lease).await
        }
        async fn release(&self, held: &[Held]) -> Result<(), LockError> {
            tokio::time::sleep(self.release_takes).await;
            self.releases.fetch_add(1, Ordering::SeqCst);
            self.inner.release(held).await
        }
    }

    const LEASE: Duration = Duration::from_millis(300);

    async fn take(lock: &dyn Lock, keys: &[&str]) -> Vec<Held> {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let taken = lock.acquire(&keys, LEASE).await.unwrap().into_iter().filter_map(|answer| match answer {
            Acquired::Yes(held) => Some(held),
            Acquired::No { .. } => None,
        });
        taken.collect()
    }

    #[tokio::test]
    async fn all_guards_are_renewed_in_one_call_and_released_keys_are_free() {
        let lock = Arc::new(Counting::default());
        let leases = Leases::start(lock.clone(), LEASE);
        let guards: Vec<Guard> = vec![
            leases.hold(take(&*lock, &["a", "b"]).await),
            leases.hold(take(&*lock, &["c"]).await),
            leases.hold(Vec::new()),
        ];
        tokio::time::sleep(LEASE * 2).await;
        assert_eq!(leases.held(), 3);
        assert!(take(&*lock, &["a", "b", "c"]).await.is_empty(), "still held after two leases");
        let renewals = lock.extends.load(Ordering::SeqCst);
        assert!((3..=6).contains(&renewals), "{renewals} renewals in two leases");
        for guard in guards {
            guard.release();
        }
        leases.shutdown(Duration::from_secs(1)).await;
        assert_eq!(take(&*lock, &["a", "b", "c"]).await.len(), 3);
    }

    #[tokio::test]
    async fn a_lost_lock_is_dropped_and_its_neighbours_stay() {
        let lock = Arc::new(Counting::default());
        let leases = Leases::start(lock.clone(), LEASE);
        let held = take(&*lock, &["lost", "kept"]).await;
        let _guard = leases.hold(held.clone());
        lock.inner.release(&held[..1]).await.unwrap();
        tokio::time::sleep(LEASE / 2).await;
        assert_eq!(leases.held(), 1);
        assert_eq!(take(&*lock, &["lost", "kept"]).await[0].key, "lost");
    }

    #[tokio::test]
    async fn releases_coalesce_while_one_is_under_way() {
        let lock = Arc::new(Counting { release_takes: Duration::from_millis(50), ..Counting::default() });
        let leases = Leases::start(lock.clone(), LEASE);
        for n in 0..100 {
            leases.hold(take(&*lock, &[&format!("k{n}")]).await).release();
            tokio::task::yield_now().await;
        }
        leases.shutdown(Duration::from_secs(2)).await;
        let calls = lock.releases.load(Ordering::SeqCst);
        assert!((1..=3).contains(&calls), "{calls} calls");
        assert_eq!(take(&*lock, &["k0", "k50", "k99"]).await.len(), 3);
    }

    #[tokio::test]
    async fn who_waits_for_the_release_can_take_the_keys_again_at_once() {
        let lock = Arc::new(Counting { release_takes: Duration::from_millis(50), ..Counting::default() });
        let leases = Leases::start(lock.clone(), LEASE);
        leases.hold(take(&*lock, &["a", "b"]).await).release_now().await;
        assert_eq!(take(&*lock, &["a", "b"]).await.len(), 2);
        assert_eq!(leases.held(), 0);
        leases.shutdown(Duration::from_secs(1)).await;
        assert_eq!(lock.releases.load(Ordering::SeqCst), 1, "they were released once more in the background");
    }

    #[tokio::test]
    async fn shutdown_does_not_wait_past_its_limit() {
        let lock = Arc::new(Counting { release_takes: Duration::from_secs(60), ..Counting::default() });
        let leases = Leases::start(lock.clone(), LEASE);
        leases.hold(take(&*lock, &["a"]).await).release();
        let started = std::time::Instant::now();
        leases.shutdown(Duration::from_millis(100)).await;
        assert!(started.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_lock_released_during_its_renewal_is_not_lost() {
        let held = Held { key: "k".into(), token: super::super::Token::random() };
        let mut book = Book::default();
        book.held.insert(7, vec![held.clone()]);
        book.held.remove(&7);
        assert!(!book.forget(7, &held));
    }
}
