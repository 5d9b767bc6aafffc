//! What a Redis can do to us: die, hang, forget, fill up, refuse. Every call ends in time, nothing is held by accident,
//! and the lock works again by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::lock::lease::Leases;
use hapax::lock::redis::{RedisLock, RedisSettings};
use hapax::lock::{Acquired, Held, Lock, LockError};
use hapax_tests::TestResult;
use hapax_tests::servers::Redis;
use tokio::net::{TcpStream, UnixListener};

use crate::{LONG, one};

/// As by default; a caller may wait this long and not much longer.
const RESPONSE: Duration = Duration::from_millis(500);
/// What a busy test machine may add to any limit.
const SLACK: Duration = Duration::from_millis(400);
/// A second, as promised, and what a busy test machine may add.
const RECOVERY: Duration = Duration::from_secs(2);

fn lock(url: &str) -> Arc<RedisLock> {
    let settings = RedisSettings { connect_timeout: Duration::from_secs(1), response_timeout: RESPONSE };
    Arc::new(RedisLock::new(url, settings).expect("a URL that can be used"))
}

/// A lock that has worked once.
async fn working_lock(server: &Redis) -> Arc<RedisLock> {
    let lock = lock(server.url());
    take(&*lock, "first", LONG).await;
    lock
}

/// A command from an operator, whom nothing locks out.
async fn operator(server: &Redis, command: &str) -> redis::RedisResult<()> {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap_or_default());
    cmd.arg(words.collect::<Vec<_>>());
    cmd.exec_async(&mut redis::Client::open(server.url())?.get_multiplexed_async_connection().await?).await
}

fn url_as(server: &Redis, credentials: &str, db: u8) -> String {
    format!("{}/{db}", server.url().replacen("://", &format!("://{credentials}@"), 1))
}

async fn try_take(lock: &dyn Lock, key: &str) -> Result<Vec<Acquired>, LockError> {
    lock.acquire(&[key.to_owned()], LONG).await
}

async fn take(lock: &dyn Lock, key: &str, lease: Duration) -> Held {
    match one(lock, key, lease).await {
        Acquired::Yes(held) => held,
        Acquired::No { expires_in } => panic!("{key} is held for {expires_in:?}"),
    }
}

/// The error of a call, and how long it took.
async fn refused(lock: &dyn Lock) -> (LockError, Duration) {
    let started = Instant::now();
    let error = try_take(lock, "refused").await.expect_err("an error");
    (error, started.elapsed())
}

/// Waits until calls succeed again.
async fn wait_for_recovery(lock: &dyn Lock) {
    let started = Instant::now();
    while let Err(error) = lock.acquire(&["recovery".to_owned()], Duration::from_millis(1)).await {
        assert!(started.elapsed() < RECOVERY, "not back {:?} after the server: {error}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_server_that_was_never_there_fails_fast_and_is_found_when_it_comes() -> TestResult {
    let Some(mut server) = Redis::private().await? else { return Ok(()) };
    server.kill9().await?;
    let lock = lock(server.url());
    let (error, took) = refused(&*lock).await;
    assert!(took < RESPONSE + SLACK, "{took:?}");
    assert!(error.to_string().contains("refused") || error.to_string().contains("not connected yet"), "{error}");
    server.restart().await?;
    wait_for_recovery(&*lock).await;
    Ok(())
}

#[tokio::test]
async fn a_killed_server_fails_every_call_at_once_and_works_again_after_its_restart() -> TestResult {
    let Some(mut server) = Redis::private().await? else { return Ok(()) };
    let lock = working_lock(&server).await;
    let held = take(&*lock, "held", LONG).await;
    server.kill9().await?;

    let started = Instant::now();
    for _ in 0..100 {
        try_take(&*lock, "k").await.expect_err("nobody is there");
        lock.extend(std::slice::from_ref(&held), LONG).await.expect_err("nobody is there");
        lock.release(std::slice::from_ref(&held)).await.expect_err("nobody is there");
    }
    assert!(started.elapsed() < RESPONSE + SLACK, "300 calls waited {:?} together", started.elapsed());
    let (error, _) = refused(&*lock).await;
    assert_eq!(error.server, format!("{}/0", server.url()));
    assert!(error.reason.starts_with("down: "), "{error}");

    server.restart().await?;
    wait_for_recovery(&*lock).await;
    assert_eq!(lock.extend(&[held], LONG).await, Ok(vec![false]), "the new server knows nothing of it");
    Ok(())
}

#[tokio::test]
async fn a_frozen_server_costs_one_response_timeout_and_what_it_took_late_is_released() -> TestResult {
    let Some(mut server) = Redis::private().await? else { return Ok(()) };
    let lock = working_lock(&server).await;
    server.sigstop()?;
    let started = Instant::now();
    let error = try_take(&*lock, "late").await.expect_err("no answer");
    assert!((RESPONSE..RESPONSE + SLACK).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert!(error.reason.contains("no answer within 500ms"), "{error}");
    for _ in 0..100 {
        let (_, took) = refused(&*lock).await;
        assert!(took < Duration::from_millis(50), "known to be down, and yet it took {took:?}");
    }

    server.sigcont()?;
    wait_for_recovery(&*lock).await;
    // The SET was in the server's buffer and was carried out: for a minute nobody could take it.
    take(&*lock, "late", LONG).await;
    Ok(())
}

#[tokio::test]
async fn callers_at_once_all_end_within_the_response_timeout() -> TestResult {
    let Some(mut server) = Redis::private().await? else { return Ok(()) };
    let lock = working_lock(&server).await;
    server.sigstop()?;
    let started = Instant::now();
    let calls: Vec<_> = (0..50)
        .map(|n| {
            let lock = Arc::clone(&lock);
            tokio::spawn(async move { try_take(&*lock, &n.to_string()).await.is_err() })
        })
        .collect();
    for call in calls {
        assert!(call.await.expect("no panic"));
    }
    assert!(started.elapsed() < RESPONSE + SLACK, "{:?}", started.elapsed());
    server.sigcont()?;
    Ok(())
}

#[tokio::test]
async fn a_paused_server_is_down_until_the_pause_ends() -> TestResult {
    let Some(server) = Redis::private().await? else { return Ok(()) };
    let lock = working_lock(&server).await;
    operator(&server, "CLIENT PAUSE 1500 ALL").await?;
    let (error, took) = refused(&*lock).await;
    assert!(took < RESPONSE + SLACK && error.reason.contains("no answer"), "{error} after {took:?}");
    tokio::time::sleep(Duration::from_millis(1500).saturating_sub(took)).await;
    wait_for_recovery(&*lock).await;
    Ok(())
}

#[tokio::test]
async fn an_emptied_server_has_lost_the_locks_and_goes_on() -> TestResult {
    let Some(server) = Redis::private().await? else { return Ok(()) };
    let lock = working_lock(&server).await;
    let leases = Leases::start(lock.clone(), Duration::from_millis(600));
    let held = take(&*lock, "a", LONG).await;
    let _guard = leases.hold(vec![held.clone()]);
    operator(&server, "FLUSHALL").await?;
    operator(&server, "SCRIPT FLUSH").await?;
    assert_eq!(lock.extend(&[held], LONG).await, Ok(vec![false]));
    take(&*lock, "a", LONG).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(leases.held(), 0, "a lost lock is no longer renewed");
    Ok(())
}

#[tokio::test]
async fn a_full_server_is_explained_and_serves_again_as_soon_as_there_is_room() -> TestResult {
    let Some(server) = Redis::private().await? else { return Ok(()) };
    let lock = working_lock(&server).await;
    let held = take(&*lock, "held", LONG).await;
    operator(&server, "CONFIG SET maxmemory-policy noeviction").await?;
    operator(&server, "CONFIG SET maxmemory 1").await?;
    let (error, took) = refused(&*lock).await;
    assert!(took < RESPONSE && error.reason.contains("OOM") && error.reason.contains("raise it"), "{error}");
    lock.release(&[held]).await.expect("releasing needs no room");
    operator(&server, "CONFIG SET maxmemory 0").await?;
    try_take(&*lock, "k").await.expect("no waiting: the connection never was the trouble");
    Ok(())
}

#[tokio::test]
async fn a_replica_is_explained_and_its_promotion_is_noticed() -> TestResult {
    let Some(server) = Redis::private().await? else { return Ok(()) };
    let lock = working_lock(&server).await;
    operator(&server, "REPLICAOF 127.0.0.1 1").await?;
    let (error, _) = refused(&*lock).await;
    assert!(error.reason.contains("READONLY") && error.reason.contains("primary"), "{error}");
    operator(&server, "REPLICAOF NO ONE").await?;
    wait_for_recovery(&*lock).await;
    Ok(())
}

#[tokio::test]
async fn logins_work_with_the_rights_that_we_name_and_wrong_ones_are_explained_without_the_password() -> TestResult {
    let Some(server) = Redis::private().await? else { return Ok(()) };
    let rights = "~hapax:* +evalsha +eval +set +pttl +get +pexpire +del +select";
    operator(&server, &format!("ACL SETUSER shop on >s3cr%t {rights}")).await?;
    operator(&server, "ACL SETUSER reader on >s3cr%t ~hapax:* +get").await?;

    let shop = lock(&url_as(&server, "shop:s3cr%25t", 3));
    let held = take(&*shop, "hapax:a", LONG).await;
    assert_eq!(shop.extend(std::slice::from_ref(&held), LONG).await, Ok(vec![true]));
    shop.release(&[held]).await.expect("released");
    take(&*shop, "hapax:b", LONG).await;
    assert!(shop.describe().await.expect("a description").contains("/3"));
    let elsewhere = take(&*lock(server.url()), "hapax:b", LONG).await;
    assert_eq!(elsewhere.key, "hapax:b", "database 0 is another one than 3");

    for (credentials, words) in [("shop:wr0ng", "user or password is wrong"), ("reader:s3cr%25t", "ACL SETUSER")] {
        let lock = lock(&url_as(&server, credentials, 0));
        let (error, _) = refused(&*lock).await;
        assert!(error.reason.contains(words), "{error}");
        let shown = format!("{error} {error:?} {lock:?}");
        assert!(!shown.contains("wr0ng") && !shown.contains("s3cr"), "{shown}");
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_password_is_explained() -> TestResult {
    let Some(server) = Redis::private().await? else { return Ok(()) };
    operator(&server, "CONFIG SET requirepass s3cret").await?;
    let (error, _) = refused(&*lock(server.url())).await;
    assert!(error.reason.contains("NOAUTH") && error.reason.contains("wants a password"), "{error}");
    take(&*lock(&url_as(&server, ":s3cret", 0)), "k", LONG).await;
    Ok(())
}

#[tokio::test]
async fn a_socket_in_the_file_system_serves_too() -> TestResult {
    let Some(server) = Redis::private().await? else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("redis.sock");
    let listener = UnixListener::bind(&path)?;
    let address = server.url().trim_start_matches("redis://").to_owned();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await?;
        tokio::io::copy_bidirectional(&mut socket, &mut TcpStream::connect(address).await?).await
    });
    let lock = lock(&format!("redis+unix://{}", path.display()));
    take(&*lock, "k", LONG).await;
    assert!(lock.describe().await?.contains(" at redis+unix:///"));
    Ok(())
}

#[tokio::test]
async fn tls_to_a_server_without_it_fails_in_time() -> TestResult {
    let Some(server) = Redis::private().await? else { return Ok(()) };
    let lock = lock(&server.url().replacen("redis:", "rediss:", 1));
    let (error, took) = refused(&*lock).await;
    assert!(took < RESPONSE + SLACK, "{took:?}");
    assert!(error.server.starts_with("rediss://127.0.0.1:"), "{error}");
    // Neither side speaks first in a way that the other would understand.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (error, _) = refused(&*lock).await;
    assert!(error.reason.starts_with("down: "), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_key_of_another_kind_or_without_an_end_is_somebody_elses() -> TestResult {
    let Some(server) = Redis::private().await? else { return Ok(()) };
    let lock = working_lock(&server).await;
    let ours = take(&*lock, "ours", LONG).await;
    operator(&server, "LPUSH list x").await?;
    operator(&server, "SET forever x").await?;
    for key in ["list", "forever"] {
        assert!(matches!(one(&*lock, key, LONG).await, Acquired::No { expires_in } if expires_in == LONG), "{key}");
        let forged = Held { key: key.to_owned(), token: ours.token };
        assert_eq!(lock.extend(&[forged.clone(), ours.clone()], LONG).await, Ok(vec![false, true]), "{key}");
        lock.release(&[forged]).await.expect("ignored");
        assert!(matches!(one(&*lock, key, LONG).await, Acquired::No { .. }), "{key}");
    }
    Ok(())
}
