//! Round trips, counted by a slow proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hapax::ledger::database::{Dialect, open};
use hapax::ledger::value::{Param, RowLimits, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::backend::{Backend, SETTINGS, make_stock, text};

/// A proxy that passes on what clients send after a delay, or not at all.
pub(crate) struct Proxy {
    pub(crate) url: String,
    frozen: Arc<AtomicBool>,
}

impl Proxy {
    pub(crate) async fn start(url: &str, delay: Duration) -> Self {
        let mut url = url::Url::parse(url).expect("a URL");
        let default = if url.scheme().starts_with("postgres") { 5432 } else { 3306 };
        let server = format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(default));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(listener.local_addr().expect("an address").port())).expect("a port");
        let frozen = Arc::new(AtomicBool::new(false));
        let is_frozen = Arc::clone(&frozen);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.expect("the server behind the proxy");
                tokio::spawn(pass(client, server, delay, Arc::clone(&is_frozen)));
            }
        });
        Self { url: url.into(), frozen }
    }

    /// From now on nothing gets through, and no connection is closed.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::Release);
    }
}

async fn pass(client: TcpStream, server: TcpStream, delay: Duration, frozen: Arc<AtomicBool>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asking = async {
        let mut buffer = vec![0; 65_536];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            tokio::time::sleep(delay).await;
            while frozen.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if to_server.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
    };
    let answering = async { tokio::io::copy(&mut from_server, &mut to_client).await };
    tokio::select! {
        () = asking => {}
        _ = answering => {}
    }
}

pub(crate) async fn known_statements_cost_one_round_trip(backend: &Backend) {
    if backend.dialect == Dialect::Sqlite {
        // No network. What a statement costs is measured by the benchmarks.
        assert!(!backend.database().features().await.expect("features").shared);
        return;
    }
    make_stock(&mut backend.connect().await, 3).await;
    let delay = Duration::from_millis(40);
    let proxy = Proxy::start(&backend.url, delay).await;
    let mut connection = open(&proxy.url, SETTINGS).expect("a usable URL").connect().await.expect("a connection");
    let (update, select) = backend.pick(
        (
            "UPDATE stock SET amount = $1 WHERE id = $2",
            "SELECT id, amount, '::1'::inet AS net FROM stock WHERE id = $1",
        ),
        ("UPDATE stock SET amount = ? WHERE id = ?", "SELECT id, amount FROM stock WHERE id = ?"),
        ("", ""),
    );
    let ints = [Param::One(Value::Int(7)), Param::One(Value::Int(1))];
    // Text into a number: on Postgres a statement of its own.
    let texts = [Param::One(text("8")), Param::One(Value::Int(2))];
    for round in 0..3 {
        let mut trips = Vec::new();
        let mut started = Instant::now();
        let mut lap = |what: &'static str| {
            trips.push((what, started.elapsed().as_secs_f64() / delay.as_secs_f64()));
            started = Instant::now();
        };
        connection.begin().await.expect("BEGIN");
        lap("begin");
        connection.savepoint().await.expect("SAVEPOINT");
        lap("savepoint");
        connection.execute(update, &ints).await.expect(update);
        lap("execute");
        connection.execute(update, &texts).await.expect(update);
        lap("execute with a cast");
        connection.query(select, &ints[1..], RowLimits::NONE).await.expect(select);
        lap("query");
        connection.rollback_to_savepoint().await.expect("ROLLBACK TO");
        lap("rollback to savepoint");
        connection.savepoint().await.expect("SAVEPOINT");
        lap("savepoint again");
        connection.ping().await.expect("a sign of life");
        lap("ping");
        connection.commit().await.expect("COMMIT");
        lap("commit");
        println!("round {round}: {trips:.2?}");
        for (what, trips) in trips.into_iter().filter(|_| round > 0) {
            assert!(trips < 1.9, "{what} cost {trips:.1} round trips");
        }
    }
}
