//! A loopback port that stands for a server.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// Takes connections meant for a server, on a port of its own; it ends with this value, and its connections with it.
pub struct Relay {
    address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

impl Relay {
    /// Hands every connection to `serve`. Either side may go away at any time: what `serve` says of that is nobody's
    /// business.
    ///
    /// # Errors
    /// When no loopback port is free.
    pub async fn start<S, F>(serve: S) -> Result<Self>
    where
        S: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// The same URL, through this relay.
    ///
    /// # Errors
    /// When it is no URL with a host and a port.
    pub fn through(&self, url: &str) -> Result<String> {
        let mut url = Url::parse(url)?;
        url.set_host(Some(&self.address.ip().to_string())).context("the URL cannot have a host")?;
        url.set_port(Some(self.address.port())).ok().context("the URL cannot have a port")?;
        Ok(url.into())
    }
}

/// Where the server of a URL is.
///
/// # Errors
/// When it is no URL with a host and a port.
pub fn host_and_port(url: &str) -> Result<(String, u16)> {
    let url = Url::parse(url)?;
    let host = url.host_str().context("the server's URL has no host")?.to_owned();
    Ok((host, url.port().context("the server's URL has no port")?))
}
