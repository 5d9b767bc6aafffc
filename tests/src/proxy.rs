//! A TCP relay between a host and one of its servers, which counts round trips, and loses what a test says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::relay::{Relay, host_and_port};

/// Which part of an exchange is lost when a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// What the client sent never reaches the server.
    Request,
    /// The server gets it, does it and answers; the client never sees the answer.
    Answer,
}

/// A connection is cut at `at`, once `after` has gone through it from client to server.
#[derive(Debug, Clone)]
struct Cut {
    after: Vec<u8>,
    at: Vec<u8>,
    loss: Loss,
}

/// What a test wants lost.
#[derive(Default)]
struct Orders {
    /// One connection, at one place.
    once: Option<Cut>,
    /// Every connection through which the client sends this.
    every: Option<Vec<u8>>,
    /// How many connections that cost so far.
    cuts: usize,
    /// Nothing gets through any more.
    frozen: bool,
    /// Requests of clients that had their last answer.
    trips: usize,
}

/// A relay to one server; it ends with this value, and its connections with it.
pub struct Proxy {
    relay: Relay,
    orders: Arc<Mutex<Orders>>,
}

impl Proxy {
    /// Relays to the host and port of a server's URL.
    ///
    /// # Errors
    /// As [`host_and_port`] and [`Relay::start`].
    pub async fn to(url: &str) -> Result<Self> {
        let orders = Arc::new(Mutex::new(Orders::default()));
        let given = orders.clone();
        let server = host_and_port(url)?;
        let relay = Relay::start(move |client| relay(client, server.clone(), given.clone())).await?;
        Ok(Self { relay, orders })
    }

    /// The same URL, through this relay.
    ///
    /// # Errors
    /// When it is no URL with a host and a port.
    pub fn through(&self, url: &str) -> Result<String> {
        self.relay.through(url)
    }

    /// Cuts one connection: the first through which the client sends `at`, having sent `after` earlier.
    pub fn cut_once(&self, after: &str, at: &str, loss: Loss) {
        let cut = Cut { after: after.into(), at: at.into(), loss };
        lock(&self.orders).once = Some(cut);
    }

    /// Whether the connection that was to be cut has been.
    pub fn has_cut(&self) -> bool {
        lock(&self.orders).once.is_none()
    }

    /// Cuts every connection through which the client sends `marker`, which the server never sees: as a packet that is
    /// too large for it, or one that a firewall does not like, costs its connection whenever it is sent.
    pub fn cut_every(&self, marker: &str) {
        lock(&self.orders).every = Some(marker.into());
    }

    /// From now on nothing that a client sends gets through, and no connection is closed.
    pub fn freeze(&self) {
        lock(&self.orders).frozen = true;
    }

    /// How many round trips clients have begun: what they sent after an answer, however many packets it took.
    pub fn trips(&self) -> usize {
        lock(&self.orders).trips
    }

    /// How many connections have been cut by [`cut_every`](Self::cut_every).
    pub fn cuts(&self) -> usize {
        lock(&self.orders).cuts
    }
}

fn lock(orders: &Mutex<Orders>) -> MutexGuard<'_, Orders> {
    orders.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn relay(client: TcpStream, server: (String, u16), orders: Arc<Mutex<Orders>>) -> std::io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (withhold, withheld) = tokio::sync::watch::channel(false);
    let answered = AtomicBool::new(true);
    tokio::select! {
        ended = requests(from_client, to_server, orders, withhold, &answered) => ended,
        ended = answers(from_server, to_client, withheld, &answered) => ended,
    }
}

/// Client to server. Returns, and so cuts, before a request that is to be lost.
async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    orders: Arc<Mutex<Orders>>,
    withhold: tokio::sync::watch::Sender<bool>,
    answered: &AtomicBool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    // What was sent lately: what is looked for may come in two reads.
    let mut seen = Vec::new();
    let mut is_marked = false;
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        seen.extend_from_slice(&buffer[..length]);
        let (once, longest, frozen) = {
            let mut orders = lock(&orders);
            orders.trips += usize::from(answered.swap(false, Ordering::Relaxed));
            if orders.every.as_ref().is_some_and(|marker| find(&seen, marker).is_some()) {
                orders.cuts += 1;
                return Ok(());
            }
            (orders.once.clone(), orders.every.as_ref().map_or(0, Vec::len), orders.frozen)
        };
        if frozen {
            std::future::pending::<()>().await;
        }
        if let Some(cut) = once {
            if !is_marked && let Some(end) = find(&seen, &cut.after) {
                is_marked = true;
                seen.drain(..end);
            }
            if is_marked && find(&seen, &cut.at).is_some() {
                lock(&orders).once = None;
                if cut.loss == Loss::Request {
                    return Ok(());
                }
                withhold.send_replace(true);
            }
        }
        let surplus = seen.len().saturating_sub(longest.max(256));
        seen.drain(..surplus);
        to.write_all(&buffer[..length]).await?;
    }
}

/// Server to client. Returns, and so cuts, at an answer that is to be lost.
async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    withheld: tokio::sync::watch::Receiver<bool>,
    answered: &AtomicBool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 || *withheld.borrow() {
            return Ok(());
        }
        // Before the client has it, and can send what follows.
        answered.store(true, Ordering::Relaxed);
        to.write_all(&buffer[..length]).await?;
    }
}

/// Where the first occurrence ends.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted).map(|at| at + wanted.len())
}
