//! The one connection to Redis: made in the background, given up when it fails, made again.
//!
//! ```text
//! unbuilt ──first call──▶ connecting ──▶ up ──error, silence──▶ down ──probe succeeds──▶ up
//!                             └──────────────────▶ down
//! ```
//! Callers wait only while the first connection is being made. While the server is down they are told so at once, and
//! one background task tries to reach it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo as _, RedisError};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::{Call, Held, LockError, Token, explain};

/// Between two attempts to connect, at least and at most; jitter may double it, which still is well under a second.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(300));

/// How many keys of lost answers are remembered; what is past it ends with its lease.
const MOST_ORPHANS: usize = 4096;

/// How long the lock lasts by which a new connection proves itself.
const PROBE_LEASE: Duration = Duration::from_secs(1);

/// The link to one server. Dropping it ends its background task.
pub(super) struct Link {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    client: Client,
    /// Address without credentials.
    server: String,
    /// Only to cross it out, should a server quote it.
    password: Option<String>,
    connect_timeout: Duration,
    state: watch::Sender<State>,
    generations: AtomicU64,
    stop: CancellationToken,
    orphans: Mutex<Vec<Orphan>>,
}

enum State {
    Unbuilt,
    Connecting,
    Up(Up),
    Down { reason: String },
}

/// A connection that works, as far as anybody knows.
#[derive(Clone)]
pub(super) struct Up {
    pub(super) connection: MultiplexedConnection,
    /// Tells this connection from its successors: a late failure of an old one must not end a new one.
    generation: u64,
}

/// A key that may be ours: the answer to its acquisition was lost.
struct Orphan {
    held: Held,
    expires: Instant,
}

impl Link {
    pub(super) fn new(url: &str, connect_timeout: Duration) -> Result<Self, LockError> {
        let (client, server, password) = parse(url)?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            client,
            server,
            password,
            connect_timeout,
            state: watch::Sender::new(State::Unbuilt),
            generations: AtomicU64::new(0),
            stop: stop.clone(),
            orphans: Mutex::default(),
        });
        Ok(Self { shared, _stop: stop.drop_guard() })
    }

    /// The server's address without credentials.
    pub(super) fn server(&self) -> &str {
        &self.shared.server
    }

    pub(super) fn error(&self, reason: String) -> LockError {
        LockError { server: self.shared.server.clone(), reason }
    }

    /// The connection; or, at once, why there is none. Only the very first connection is waited for, until `deadline`.
    pub(super) async fn up(&self, deadline: Instant) -> Result<Up, LockError> {
        self.shared.start_first();
        let mut state = self.shared.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Connecting | State::Unbuilt));
        match timeout_at(deadline, settled).await {
            Ok(Ok(state)) => match &*state {
                State::Up(up) => Ok(up.clone()),
                State::Down { reason } => Err(self.error(format!("down: {reason}"))),
                State::Unbuilt | State::Connecting => Err(self.error("not connected yet".to_owned())),
            },
            Ok(Err(_)) | Err(_) => Err(self.error("not connected yet".to_owned())),
        }
    }

    /// Records that a call on `up` failed; the result is for its caller.
    pub(super) fn failed(&self, up: &Up, error: &RedisError) -> LockError {
        let text = explain::text(error);
        let reason = self.shared.in_words(&text);
        if explain::ends_connection(error, &text) {
            self.shared.break_off(up.generation, &reason);
        }
        self.error(reason)
    }

    /// Records that a call on `up` got no answer in time. A server that hangs is one that is down.
    pub(super) fn silent(&self, up: &Up, waited: Duration) -> LockError {
        let reason = format!("no answer within {}", humantime::format_duration(waited));
        self.shared.break_off(up.generation, &reason);
        self.error(reason)
    }

    /// Remembers keys whose acquisition was not answered, to release them once the server is back.
    pub(super) fn perhaps_ours(&self, keys: &[String], token: Token, expires: Instant) {
        let now = Instant::now();
        let mut orphans = self.shared.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        orphans.retain(|orphan| orphan.expires > now);
        let room = MOST_ORPHANS.saturating_sub(orphans.len());
        orphans.extend(keys.iter().take(room).map(|key| Orphan { held: Held { key: key.clone(), token }, expires }));
    }
}

impl Shared {
    /// Starts the first connection, at most once.
    fn start_first(self: &Arc<Self>) {
        let first = self.state.send_if_modified(|state| {
            let unbuilt = matches!(state, State::Unbuilt);
            if unbuilt {
                *state = State::Connecting;
            }
            unbuilt
        });
        if first {
            tokio::spawn(Arc::clone(self).keep_connecting());
        }
    }

    /// Gives up the connection of that generation, if it is still the current one, and has it made again.
    fn break_off(self: &Arc<Self>, generation: u64, reason: &str) {
        let current = self.state.send_if_modified(|state| {
            let current = matches!(state, State::Up(up) if up.generation == generation);
            if current {
                *state = State::Down { reason: reason.to_owned() };
            }
            current
        });
        if current {
            warn!(server = self.server, reason, "the lock server is down");
            tokio::spawn(Arc::clone(self).keep_connecting());
        }
    }

    /// Tries until a connection serves. The states make sure that one such task runs at a time.
    async fn keep_connecting(self: Arc<Self>) {
        let stop = self.stop.clone();
        let started = Instant::now();
        let mut failed = false;
        let mut delays = ExponentialBuilder::new()
            .with_min_delay(RETRY.0)
            .with_max_delay(RETRY.1)
            .without_max_times()
            .with_jitter()
            .build();
        let attempts = async {
            loop {
                match self.connect().await {
                    Ok(connection) => break connection,
                    Err(reason) => self.still_down(reason),
                }
                failed = true;
                tokio::time::sleep(delays.next().unwrap_or(RETRY.1)).await;
            }
        };
        let Some(connection) = stop.run_until_cancelled(attempts).await else { return };
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        if failed || generation > 1 {
            info!(server = self.server, after = ?started.elapsed(), "the lock server is back");
        }
        self.state.send_replace(State::Up(Up { connection, generation }));
    }

    /// Notes why the server is still down, and logs it when the reason is a new one.
    fn still_down(&self, reason: String) {
        let news = !matches!(&*self.state.borrow(), State::Down { reason: last } if *last == reason);
        if news {
            warn!(server = self.server, reason, "the lock server is down");
            self.state.send_replace(State::Down { reason });
        }
    }

    /// Makes a connection, proves that it can do all that a lock needs, and releases what lost answers left behind.
    async fn connect(&self) -> Result<MultiplexedConnection, String> {
        // Calls have a deadline of their own, and it covers more than one answer.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connect = async {
            let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            prove(&mut connection).await?;
            self.release_orphans(&mut connection).await?;
            Ok(connection)
        };
        match timeout(self.connect_timeout, connect).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.in_words(&explain::text(&error))),
            Err(_) => {
                Err(format!("no connection or no answer within {}", humantime::format_duration(self.connect_timeout)))
            }
        }
    }

    async fn release_orphans(&self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let orphans = std::mem::take(&mut *self.orphans.lock().unwrap_or_else(PoisonError::into_inner));
        let now = Instant::now();
        let held: Vec<Held> =
            orphans.into_iter().filter(|orphan| orphan.expires > now).map(|orphan| orphan.held).collect();
        if held.is_empty() {
            return Ok(());
        }
        let released: i64 = Call::release(&held).invoke(connection).await?;
        debug!(server = self.server, asked = held.len(), released, "released locks whose acquisition was not answered");
        Ok(())
    }

    /// An error text with advice, and without the password, should the server have quoted it.
    fn in_words(&self, text: &str) -> String {
        let mut words = match explain::advice(text) {
            Some(advice) => format!("{text}; {advice}"),
            None => text.to_owned(),
        };
        if let Some(password) = &self.password {
            words = words.replace(password.as_str(), "***");
        }
        words
    }
}

/// Takes, extends and releases a lock of its own: a server that answers PING may still be a replica, be full, or refuse
/// a right. Leaves all three scripts with the server, too.
async fn prove(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    let key = format!("hapax:probe:{}", uuid::Uuid::new_v4());
    let held = [Held { key: key.clone(), token: Token::random() }];
    Call::acquire(&[key], held[0].token, PROBE_LEASE).invoke::<Vec<i64>>(connection).await?;
    Call::extend(&held, PROBE_LEASE).invoke::<Vec<i64>>(connection).await?;
    Call::release(&held).invoke::<i64>(connection).await?;
    Ok(())
}

/// Client, address without credentials, and password of a URL.
fn parse(url: &str) -> Result<(Client, String, Option<String>), LockError> {
    // These errors name the part that is wrong, and quote nothing of it.
    let bad = |error: RedisError| LockError::in_url(error.to_string().replace(" - InvalidClientConfig", ""));
    let parsed = url::Url::parse(url).map_err(|error| LockError::in_url(error.to_string()))?;
    if parsed.fragment().is_some() {
        return Err(LockError::in_url(
            "it has a '#'; write %23 if that belongs to the password (unverified TLS is not supported)",
        ));
    }
    let scheme = parsed.scheme().to_owned();
    // Small requests of many tasks share the connection: none should wait for another's answer to be sent.
    let info = parsed.into_connection_info().map_err(bad)?.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let (db, password) = (info.redis_settings().db(), info.redis_settings().password().map(str::to_owned));
    let server = match info.addr() {
        ConnectionAddr::Unix(path) => format!("{scheme}://{}?db={db}", path.display()),
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } if host.contains(':') => {
            format!("{scheme}://[{host}]:{port}/{db}")
        }
        address => format!("{scheme}://{address}/{db}"),
    };
    let client = Client::open(info).map_err(bad)?;
    Ok((client, server, password.filter(|password| !password.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_credentials() {
        let shown = |url: &str| parse(url).map(|(_, server, _)| server).unwrap();
        assert_eq!(shown("redis://localhost"), "redis://localhost:6379/0");
        assert_eq!(shown("rediss://shop:p%40ss@cache.example:6380/2"), "rediss://cache.example:6380/2");
        assert_eq!(shown("redis://:pw@[::1]:7000"), "redis://[::1]:7000/0");
        assert_eq!(shown("redis+unix:///run/redis.sock?db=1&user=u&pass=pw"), "redis+unix:///run/redis.sock?db=1");
    }

    #[test]
    fn a_server_that_quotes_the_password_is_not_quoted() {
        let link = Link::new("redis://u:hunter2@h", Duration::from_secs(1)).unwrap();
        let words = link.shared.in_words("ERR unknown command 'AUTH', with args beginning with: 'u' 'hunter2'");
        assert!(words.contains("'***'") && !words.contains("hunter2"), "{words}");
    }

    #[tokio::test]
    async fn what_is_remembered_of_lost_answers_is_bounded_and_ends_with_the_lease() {
        let link = Link::new("redis://localhost", Duration::from_secs(1)).unwrap();
        let remembered = || link.shared.orphans.lock().unwrap().len();
        let keys: Vec<String> = (0..MOST_ORPHANS + 1).map(|n| n.to_string()).collect();
        link.perhaps_ours(&keys, Token::random(), Instant::now() + Duration::from_millis(10));
        assert_eq!(remembered(), MOST_ORPHANS);
        tokio::time::sleep(Duration::from_millis(15)).await;
        link.perhaps_ours(&keys[..1], Token::random(), Instant::now() + Duration::from_secs(1));
        assert_eq!(remembered(), 1);
    }
}
