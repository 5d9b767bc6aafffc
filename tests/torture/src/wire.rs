//! The network between a host and one of its servers: a TCP relay whose weather the nemesis makes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use hapax_tests::relay::{Relay, host_and_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// What becomes of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// It arrives.
    Fair,
    /// Connections are closed, and no new one is made.
    Cut,
    /// It arrives when the weather changes.
    Silent(Way),
    /// Every packet takes so much longer.
    Slow(Duration),
    /// Half of the next packet arrives, and the connection is reset.
    Reset,
    /// Connections are cut whose host commits something large: before the server hears of it, or before it can answer.
    CommitCut(Heard),
}

/// Whether the server hears the COMMIT after which the connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    Yes,
    No,
}

/// As both protocols write it.
const COMMIT: &[u8] = b"COMMIT";

/// A transaction in which more bytes than that were sent is one of several messages, and none of those in which hosts
/// look for something to do.
const LARGE: usize = 4096;

/// Which way nothing gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToHost,
    Both,
}

/// A relay to one server, or to whichever of a cluster's nodes answers; it ends with this value, and its connections
/// with it.
pub(crate) struct Wire {
    relay: Relay,
    weather: watch::Sender<Weather>,
    touched: Arc<AtomicUsize>,
}

impl Wire {
    /// Relays to the host and port of a server's URL, or of the next of them where nobody answers.
    ///
    /// # Errors
    /// As [`host_and_port`] and [`Relay::start`].
    pub(crate) async fn to(urls: &[String]) -> Result<Self> {
        let weather = watch::Sender::new(Weather::Fair);
        let touched = Arc::<AtomicUsize>::default();
        let (now, touches) = (weather.subscribe(), touched.clone());
        let servers = urls.iter().map(|url| host_and_port(url)).collect::<Result<Arc<[_]>>>()?;
        let relay = Relay::start(move |host| relay(host, servers.clone(), now.clone(), touches.clone())).await?;
        Ok(Self { relay, weather, touched })
    }

    /// The same URL, through this relay.
    ///
    /// # Errors
    /// When it is no URL with a host and a port.
    pub(crate) fn through(&self, url: &str) -> Result<String> {
        self.relay.through(url)
    }

    /// Changes the weather. [`touched`](Self::touched) counts anew.
    pub(crate) fn set(&self, weather: Weather) {
        self.touched.store(0, Ordering::Relaxed);
        self.weather.send_replace(weather);
    }

    /// How many packets and connections the weather has held up or destroyed.
    pub(crate) fn touched(&self) -> usize {
        self.touched.load(Ordering::Relaxed)
    }
}

async fn relay(
    mut host: TcpStream,
    servers: Arc<[(String, u16)]>,
    weather: watch::Receiver<Weather>,
    touched: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    if *weather.borrow() == Weather::Cut {
        touched.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    let mut server = connect(&servers).await?;
    host.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let end = {
        let (mut from_host, mut to_host) = host.split();
        let (mut from_server, mut to_server) = server.split();
        let (up, down) = (weather.clone(), weather);
        tokio::select! {
            end = pump(&mut from_host, &mut to_server, up, Way::ToServer, &touched) => end?,
            end = pump(&mut from_server, &mut to_host, down, Way::ToHost, &touched) => end?,
        }
    };
    if end == End::Reset {
        host.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// Connects to the first that answers.
async fn connect(servers: &[(String, u16)]) -> std::io::Result<TcpStream> {
    let mut result = Err(std::io::ErrorKind::AddrNotAvailable.into());
    for (host, port) in servers {
        result = TcpStream::connect((host.as_str(), *port)).await;
        if result.is_ok() {
            break;
        }
    }
    result
}

/// How a connection ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

async fn pump(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut weather: watch::Receiver<Weather>,
    way: Way,
    touched: &AtomicUsize,
) -> std::io::Result<End> {
    let mut buffer = vec![0; 64 << 10];
    // Since the last COMMIT.
    let mut sent = 0;
    loop {
        let length = tokio::select! {
            read = from.read(&mut buffer) => read?,
            // A connection that is silent has to be cut all the same.
            _ = weather.wait_for(|weather| *weather == Weather::Cut) => 0,
        };
        if length == 0 {
            touched.fetch_add(usize::from(*weather.borrow() == Weather::Cut), Ordering::Relaxed);
            return Ok(End::Closed);
        }
        let now = *weather.borrow_and_update();
        sent += length;
        let commits = way == Way::ToServer && buffer[..length].windows(COMMIT.len()).any(|word| word == COMMIT);
        let is_hit = match now {
            Weather::Fair => false,
            Weather::CommitCut(_) => commits && sent > LARGE,
            _ => true,
        };
        if commits {
            sent = 0;
        }
        touched.fetch_add(usize::from(is_hit), Ordering::Relaxed);
        match now {
            Weather::CommitCut(heard) if is_hit => {
                if heard == Heard::Yes {
                    to.write_all(&buffer[..length]).await?;
                }
                return Ok(End::Closed);
            }
            Weather::Fair | Weather::CommitCut(_) => {}
            Weather::Cut => return Ok(End::Closed),
            Weather::Slow(delay) => tokio::time::sleep(delay).await,
            Weather::Silent(silent) if silent == way || silent == Way::Both => {
                let _ = weather.wait_for(|weather| *weather != now).await;
            }
            Weather::Silent(_) => {}
            Weather::Reset => {
                to.write_all(&buffer[..length / 2]).await?;
                return Ok(End::Reset);
            }
        }
        to.write_all(&buffer[..length]).await?;
    }
}
