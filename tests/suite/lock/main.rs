//! The conformance suite of the lock seam: one list of facts, checked on every back end. What a back end cannot do is
//! in its `Features`, and [`others_see_a_lock_where_the_back_end_says_so`] checks that too. What only a server can
//! suffer is in [`faults`].

mod faults;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hapax::lock::lease::Leases;
use hapax::lock::redis::RedisSettings;
use hapax::lock::{Acquired, Features, Held, Lock, Token, open};
use hapax_tests::servers::shared;

/// Long enough that no test sees its end by accident.
const LONG: Duration = Duration::from_secs(60);
/// Short enough to wait for its end.
const SHORT: Duration = Duration::from_millis(150);

/// One back end, under keys that no other test uses.
struct Subject {
    lock: Arc<dyn Lock>,
    url: String,
    prefix: String,
}

impl Subject {
    fn open(url: &str) -> Self {
        let (lock, url) = (open_lock(url), url.to_owned());
        Self { lock, url, prefix: format!("hapax:suite:{}:", uuid::Uuid::new_v4()) }
    }

    async fn local() -> Result<Self> {
        Ok(Self::open("local:"))
    }

    async fn redis() -> Result<Self> {
        Ok(Self::open(shared().redis().await?.fresh_database().await?.url()))
    }

    fn key(&self, name: impl std::fmt::Display) -> String {
        format!("{}{name}", self.prefix)
    }

    fn keys<N: std::fmt::Display>(&self, names: impl IntoIterator<Item = N>) -> Vec<String> {
        names.into_iter().map(|name| self.key(name)).collect()
    }

    /// Takes one key that must be free.
    async fn take(&self, name: &str, lease: Duration) -> Held {
        match self.try_take(name, lease).await {
            Acquired::Yes(held) => held,
            Acquired::No { expires_in } => panic!("{name} is held for {expires_in:?} more"),
        }
    }

    async fn try_take(&self, name: &str, lease: Duration) -> Acquired {
        one(&*self.lock, &self.key(name), lease).await
    }

    async fn is_free(&self, name: &str) -> bool {
        match self.try_take(name, LONG).await {
            Acquired::Yes(held) => self.lock.release(&[held]).await.is_ok(),
            Acquired::No { .. } => false,
        }
    }
}

fn open_lock(url: &str) -> Arc<dyn Lock> {
    // A busy test machine may take its time; the limits themselves are tested in `faults`.
    let settings = RedisSettings { response_timeout: Duration::from_secs(5), ..RedisSettings::default() };
    open(url, settings).expect("a URL that can be used")
}

async fn one(lock: &dyn Lock, key: &str, lease: Duration) -> Acquired {
    let mut answers = lock.acquire(&[key.to_owned()], lease).await.expect("an answer");
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

fn held(answers: Vec<Acquired>) -> Vec<Held> {
    let held = answers.into_iter().map(|answer| match answer {
        Acquired::Yes(held) => Some(held),
        Acquired::No { .. } => None,
    });
    held.flatten().collect()
}

/// Makes one test per back end out of each fact.
macro_rules! on_every_back_end {
    ($($fact:ident)+) => {
        mod local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() -> hapax_tests::TestResult {
                super::$fact(super::Subject::local().await?).await;
                Ok(())
            })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() -> hapax_tests::TestResult {
                super::$fact(super::Subject::redis().await?).await;
                Ok(())
            })+
        }
    };
}

on_every_back_end! {
    others_see_a_lock_where_the_back_end_says_so
    it_tells_what_it_is
    a_key_has_one_holder_until_it_is_released
    no_keys_are_no_trouble
    a_key_named_twice_in_one_call_is_taken_once
    somebody_elses_token_neither_extends_nor_releases
    every_acquisition_has_a_token_of_its_own
    a_lease_ends_by_itself_and_its_holder_has_lost_it
    extending_moves_the_end_of_a_lease
    the_time_left_is_that_of_the_holders_lease
    a_thousand_keys_are_answered_in_their_order
    keys_are_bytes_of_any_kind
    of_fifty_that_try_at_once_one_wins
    leases_keep_a_lock_while_it_is_held_and_no_longer
}

async fn others_see_a_lock_where_the_back_end_says_so(subject: Subject) {
    let other = open_lock(&subject.url);
    let features = Features { shared: subject.url != "local:" };
    assert_eq!(subject.lock.features(), features);
    let held = subject.take("a", LONG).await;
    let seen = matches!(one(&*other, &held.key, SHORT).await, Acquired::No { .. });
    assert_eq!(seen, features.shared);
}

async fn it_tells_what_it_is(subject: Subject) {
    let description = subject.lock.describe().await.expect("a description");
    let expected = if subject.lock.features().shared { " at redis" } else { "memory of this process" };
    assert!(description.contains(expected), "{description}");
}

async fn a_key_has_one_holder_until_it_is_released(subject: Subject) {
    let held = subject.take("a", LONG).await;
    assert_eq!(held.key, subject.key("a"));
    assert!(matches!(subject.try_take("a", LONG).await, Acquired::No { .. }));
    assert!(subject.is_free("b").await, "another key is another lock");
    subject.lock.release(&[held]).await.expect("released");
    assert!(subject.is_free("a").await);
}

async fn no_keys_are_no_trouble(subject: Subject) {
    assert_eq!(subject.lock.acquire(&[], LONG).await, Ok(vec![]));
    assert_eq!(subject.lock.extend(&[], LONG).await, Ok(vec![]));
    assert_eq!(subject.lock.release(&[]).await, Ok(()));
}

async fn a_key_named_twice_in_one_call_is_taken_once(subject: Subject) {
    let answers = subject.lock.acquire(&subject.keys(["a", "a"]), LONG).await.expect("answers");
    assert!(matches!(&answers[..], [Acquired::Yes(_), Acquired::No { .. }]), "{answers:?}");
}

async fn somebody_elses_token_neither_extends_nor_releases(subject: Subject) {
    let ours = subject.take("a", Duration::from_secs(5)).await;
    let forged = Held { key: ours.key.clone(), token: Token::random() };
    assert_eq!(subject.lock.extend(std::slice::from_ref(&forged), LONG).await, Ok(vec![false]));
    subject.lock.release(&[forged]).await.expect("ignored");
    match subject.try_take("a", LONG).await {
        Acquired::No { expires_in } => assert!(expires_in <= Duration::from_secs(5), "{expires_in:?}"),
        Acquired::Yes(_) => panic!("it was released by a token that is not its holder's"),
    }
    assert_eq!(subject.lock.extend(&[ours], LONG).await, Ok(vec![true]));
}

async fn every_acquisition_has_a_token_of_its_own(subject: Subject) {
    let mut tokens = HashSet::new();
    for _ in 0..20 {
        let held = subject.take("a", LONG).await;
        assert!(tokens.insert(held.token));
        subject.lock.release(&[held]).await.expect("released");
    }
}

async fn a_lease_ends_by_itself_and_its_holder_has_lost_it(subject: Subject) {
    let first = subject.take("a", SHORT).await;
    tokio::time::sleep(SHORT + Duration::from_millis(50)).await;
    assert_eq!(subject.lock.extend(std::slice::from_ref(&first), LONG).await, Ok(vec![false]), "nobody holds it");
    let second = subject.take("a", LONG).await;
    assert_eq!(subject.lock.extend(std::slice::from_ref(&first), LONG).await, Ok(vec![false]), "another holds it");
    subject.lock.release(&[first]).await.expect("ignored");
    assert_eq!(subject.lock.extend(&[second], LONG).await, Ok(vec![true]));
}

async fn extending_moves_the_end_of_a_lease(subject: Subject) {
    let held = subject.take("a", Duration::from_millis(500)).await;
    assert_eq!(subject.lock.extend(&[held], LONG).await, Ok(vec![true]));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!subject.is_free("a").await);
}

async fn the_time_left_is_that_of_the_holders_lease(subject: Subject) {
    subject.take("a", Duration::from_secs(20)).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let Acquired::No { expires_in } = subject.try_take("a", LONG).await else { panic!("taken twice") };
    let bounds = Duration::from_secs(10)..Duration::from_millis(19_985);
    assert!(bounds.contains(&expires_in), "{expires_in:?}");
}

async fn a_thousand_keys_are_answered_in_their_order(subject: Subject) {
    let taken = |n: u32| n.is_multiple_of(3);
    let before = subject.lock.acquire(&subject.keys((0..1000).filter(|n| taken(*n))), LONG).await.expect("answers");
    assert_eq!(held(before).len(), 334);

    let keys = subject.keys(0..1000);
    let answers = subject.lock.acquire(&keys, LONG).await.expect("answers");
    assert_eq!(answers.len(), 1000);
    for (n, (key, answer)) in (0..).zip(keys.iter().zip(&answers)) {
        match answer {
            Acquired::Yes(held) => assert!(!taken(n) && held.key == *key, "{n}"),
            Acquired::No { .. } => assert!(taken(n), "{n}"),
        }
    }

    let mut ours = held(answers);
    for held in ours.iter_mut().step_by(2) {
        held.token = Token::random();
    }
    let extended = subject.lock.extend(&ours, LONG).await.expect("answers");
    assert!(extended.iter().enumerate().all(|(n, extended)| *extended == (n % 2 == 1)));
    subject.lock.release(&ours).await.expect("released");
    let again = subject.lock.acquire(&keys, LONG).await.expect("answers");
    assert_eq!(held(again).len(), 333);
}

async fn keys_are_bytes_of_any_kind(subject: Subject) {
    let long = "é".repeat(127) + "x";
    let names =
        ["", " ", "a b", "A", "a", "a ", "a\r\n*1\r\n$4\r\nQUIT\r\n", "{slot}", "日本語", "\u{1}\u{7f}\"'\\%", &long];
    let answers = subject.lock.acquire(&subject.keys(names), LONG).await.expect("answers");
    let ours = held(answers);
    assert_eq!(ours.iter().map(|held| &held.key).collect::<Vec<_>>(), subject.keys(names).iter().collect::<Vec<_>>());
    assert_eq!(subject.lock.extend(&ours, LONG).await, Ok(vec![true; names.len()]));
    subject.lock.release(&ours).await.expect("released");
    for name in names {
        assert!(subject.is_free(name).await, "{name:?}");
    }
}

async fn of_fifty_that_try_at_once_one_wins(subject: Subject) {
    let subject = Arc::new(subject);
    for round in 0..10 {
        let tries: Vec<_> = (0..50)
            .map(|_| {
                let subject = Arc::clone(&subject);
                tokio::spawn(async move { subject.try_take(&round.to_string(), LONG).await })
            })
            .collect();
        let mut winners = 0;
        for answer in tries {
            winners += usize::from(matches!(answer.await.expect("no panic"), Acquired::Yes(_)));
        }
        assert_eq!(winners, 1, "round {round}");
    }
}

async fn leases_keep_a_lock_while_it_is_held_and_no_longer(subject: Subject) {
    let lease = Duration::from_millis(600);
    let leases = Leases::start(Arc::clone(&subject.lock), lease);
    let kept = leases.hold(vec![subject.take("kept", lease).await]);
    let released = leases.hold(vec![subject.take("released", lease).await]);
    let dropped = leases.hold(vec![subject.take("dropped", lease).await]);
    tokio::time::sleep(lease * 3).await;
    for name in ["kept", "released", "dropped"] {
        assert!(!subject.is_free(name).await, "{name} after three leases");
    }
    released.release();
    drop(dropped);
    // Well within a lease: freed by release, and not by its end.
    tokio::time::sleep(lease / 6).await;
    assert!(subject.is_free("released").await && subject.is_free("dropped").await);
    assert!(!subject.is_free("kept").await);
    assert_eq!(leases.held(), 1);
    drop(kept);
    leases.shutdown(Duration::from_secs(1)).await;
    assert!(subject.is_free("kept").await);
}
