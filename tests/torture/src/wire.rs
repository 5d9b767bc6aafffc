//! The network between a host and one of its servers: a TCP relay whose weather the nemesis makes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

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
}

/// Which way nothing gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToHost,
    Both,
}

/// A relay on a loopback port of its own; it ends with this value, and its connections with it.
pub(crate) struct Wire {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    touched: Arc<AtomicUsize>,
    _relay: AbortOnDropHandle<()>,
}

impl Wire {
    /// Relays to the host and port of a server's URL.
    ///
    /// # Errors
    /// When the URL has no host and port, or no loopback port is free.
    pub(crate) async fn to(url: &str) -> Result<Self> {
        let url = Url::parse(url)?;
        let host = url.host_str().context("the server's URL has no host")?.to_owned();
        let server = (host, url.port().context("the server's URL has no port")?);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let weather = watch::Sender::new(Weather::Fair);
        let touched = Arc::<AtomicUsize>::default();
        let relay = tokio::spawn(accept(listener, server, weather.subscribe(), touched.clone()));
        Ok(Self { address, weather, touched, _relay: AbortOnDropHandle::new(relay) })
    }

    /// The same URL, through this relay.
    ///
    /// # Errors
    /// When it is no URL with a host and a port.
    pub(crate) fn through(&self, url: &str) -> Result<String> {
        let mut url = Url::parse(url)?;
        url.set_host(Some(&self.address.ip().to_string())).context("the URL cannot have a host")?;
        url.set_port(Some(self.address.port())).ok().context("the URL cannot have a port")?;
        Ok(url.into())
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

async fn accept(
    listener: TcpListener,
    server: (String, u16),
    weather: watch::Receiver<Weather>,
    touched: Arc<AtomicUsize>,
) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((host, _)) = listener.accept().await {
        if *weather.borrow() == Weather::Cut {
            touched.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let (server, weather, touched) = (server.clone(), weather.clone(), touched.clone());
        connections.spawn(async move {
            // Either side may go away at any time: that ends the other.
            let _ = relay(host, server, weather, touched).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(
    mut host: TcpStream,
    server: (String, u16),
    weather: watch::Receiver<Weather>,
    touched: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
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
        touched.fetch_add(usize::from(now != Weather::Fair), Ordering::Relaxed);
        match now {
            Weather::Fair => {}
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
