//! One connection, made when it is needed and made again when it is lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use async_rs::Runtime;
use futures::StreamExt as _;
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use percent_encoding::percent_decode_str;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::errors::{Failure, code, io_words};
use super::tap::{self, Control, TappedTokio};
use crate::broker::{BrokerError, Settings};

/// How long an orderly good-bye may take before the socket is closed without it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where to connect, and as whom. Not `Debug`: it holds the password.
pub(super) struct Address {
    uri: AMQPUri,
    /// For people: scheme, host, port and virtual host.
    pub(super) server: String,
    /// The virtual host.
    pub(super) vhost: String,
    /// The user.
    pub(super) user: String,
}

impl Address {
    /// Reads an `amqp://` or `amqps://` URL.
    ///
    /// lapin has a parser too; it takes an IPv6 address for no address, and connects to localhost.
    pub(super) fn parse(text: &str, settings: &Settings) -> Result<Self, BrokerError> {
        let bad = |reason: String| BrokerError::Unavailable { server: "AMQP address".to_owned(), reason };
        let url = url::Url::parse(text).map_err(|error| bad(format!("not a URL: {error}")))?;
        let scheme = match url.scheme() {
            "amqp" => AMQPScheme::AMQP,
            "amqps" => AMQPScheme::AMQPS,
            other => return Err(bad(format!("{other:?} is neither amqp nor amqps"))),
        };
        let decode = |part: &str, what: &str| {
            let text = percent_decode_str(part).decode_utf8();
            text.map(|text| text.into_owned()).map_err(|_| bad(format!("its {what} is not UTF-8")))
        };
        let user = if url.username().is_empty() { "guest".to_owned() } else { decode(url.username(), "user")? };
        let password = url.password().map_or(Ok("guest".to_owned()), |password| decode(password, "password"))?;
        let host = url.host_str().filter(|host| !host.is_empty()).unwrap_or("localhost");
        let host = decode(host.trim_start_matches('[').trim_end_matches(']'), "host")?;
        let port = url.port().unwrap_or_else(|| scheme.default_port());
        let vhost = url.path().strip_prefix('/').map_or(Ok("/".to_owned()), |path| decode(path, "virtual host"))?;
        if vhost.len() > 255 {
            return Err(bad("its virtual host has more than 255 bytes".to_owned()));
        }
        let query = Self::query(&url, settings).map_err(bad)?;
        let shown_host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let server = format!("{scheme}://{shown_host}:{port}/{}", vhost.replace('%', "%25").replace('/', "%2f"));
        let userinfo = AMQPUserInfo { username: user.clone(), password };
        let authority = AMQPAuthority { userinfo, host, port };
        Ok(Self { uri: AMQPUri { scheme, authority, vhost: vhost.clone(), query }, server, vhost, user })
    }

    fn query(url: &url::Url, settings: &Settings) -> Result<AMQPQueryString, String> {
        let seconds = settings.heartbeat.as_secs_f64().ceil().clamp(1.0, f64::from(u16::MAX));
        let mut query = AMQPQueryString { heartbeat: Some(seconds as u16), ..AMQPQueryString::default() };
        for (key, value) in url.query_pairs() {
            let bad = || format!("its {key}={value} is not a value for that");
            match &*key {
                "heartbeat" => query.heartbeat = Some(value.parse().map_err(|_| bad())?),
                "frame_max" => query.frame_max = Some(value.parse().map_err(|_| bad())?),
                "channel_max" => query.channel_max = Some(value.parse().map_err(|_| bad())?),
                "auth_mechanism" => {
                    query.auth_mechanism = Some(value.parse::<SASLMechanism>().map_err(|_| bad())?);
                }
                _ => {
                    return Err(format!(
                        "its parameter {key:?} is unknown; known are heartbeat, frame_max, channel_max, auth_mechanism"
                    ));
                }
            }
        }
        Ok(query)
    }
}

/// A live connection.
pub(super) struct Live {
    connection: Connection,
    control: Control,
    /// Why publishing is blocked, while it is.
    blocked: watch::Receiver<Option<String>>,
    events: tokio::task::AbortHandle,
    request_timeout: Duration,
}

impl Live {
    /// Opens a channel.
    ///
    /// No server refuses this. But lapin keeps the error of a channel that the server closed, and answers with it when
    /// the number of that channel comes round again, without asking the server. Such a connection looks alive and opens
    /// fewer and fewer channels, so it is given up, to be built anew.
    pub(super) async fn channel(&self) -> Result<Channel, Failure> {
        match timeout(self.request_timeout, self.connection.create_channel()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => {
                self.cut();
                let reason = Failure::of(&error);
                Err(Failure::Lost(format!("the connection opens no more channels ({})", reason.words())))
            }
            Err(_) => Err(Failure::timed_out("channel.open", self.request_timeout)),
        }
    }

    /// Closes a channel that is not needed any more. Dropping it is not enough: lapin then closes it behind our back, and
    /// if that fails, because the server or a closing connection was faster, it takes the whole connection down.
    /// True unless the server did not answer.
    pub(super) async fn finish(&self, channel: Channel) -> bool {
        !channel.status().connected() || timeout(CLOSE_TIMEOUT, channel.close(200, "done".into())).await.is_ok()
    }

    /// Waits for an answer from the server, for a limited time. That one request is slow says nothing about the
    /// connection, which others use too: heartbeats decide about that.
    pub(super) async fn request<T>(
        &self,
        what: &str,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Failure> {
        match timeout(self.request_timeout, request).await {
            Ok(answer) => answer.map_err(|error| Failure::of(&error)),
            Err(_) => Err(Failure::timed_out(what, self.request_timeout)),
        }
    }

    /// The server's product and version.
    pub(super) fn product(&self) -> (String, String) {
        let property = |name| self.control.server_property(name);
        (property("product").unwrap_or_else(|| "AMQP broker".to_owned()), property("version").unwrap_or_default())
    }

    /// Why the broker accepts no messages, if it does not.
    pub(super) fn blocked(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }

    /// Tells of every change of [`blocked`](Self::blocked).
    pub(super) fn watch_blocked(&self) -> watch::Receiver<Option<String>> {
        self.blocked.clone()
    }

    /// Largest frame that may be sent, in bytes.
    pub(super) fn frame_max(&self) -> usize {
        match self.connection.configuration().frame_max() {
            0 => usize::MAX,
            size => size as usize,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        // lapin takes a moment to notice that it was cut.
        self.connection.status().connected() && !self.control.is_cut()
    }

    /// Ends the connection without a word.
    pub(super) fn cut(&self) {
        self.control.cut();
    }

    /// Says good-bye, for a limited time.
    pub(super) async fn close(&self) {
        let closing = async {
            if self.is_connected() && self.connection.close(200, "done".into()).await.is_ok() {
                // lapin answers when the good-bye is queued; the socket goes when the server has answered.
                self.control.gone().await;
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
        self.cut();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.events.abort();
    }
}

/// A connection that is built lazily, by one task at a time, and rebuilt when it is lost.
pub(super) struct Link {
    address: Arc<Address>,
    settings: Arc<Settings>,
    /// What it is for: part of its name at the broker.
    role: &'static str,
    state: Mutex<State>,
    /// Counts finished attempts to connect, so that those who waited for one share its result.
    attempts: AtomicU64,
}

#[derive(Default)]
struct State {
    live: Option<Arc<Live>>,
    failure: Option<BrokerError>,
    closed: bool,
}

impl Link {
    pub(super) fn new(address: Arc<Address>, settings: Arc<Settings>, role: &'static str) -> Self {
        Self { address, settings, role, state: Mutex::default(), attempts: AtomicU64::new(0) }
    }

    /// The connection, which may be lost by the time it is used.
    pub(super) async fn get(&self) -> Result<Arc<Live>, BrokerError> {
        let before = self.attempts.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        if state.closed {
            let reason = "this side has closed the connection".to_owned();
            return Err(BrokerError::Unavailable { server: self.address.server.clone(), reason });
        }
        if let Some(live) = &state.live
            && live.is_connected()
        {
            return Ok(live.clone());
        }
        if let Some(failure) = &state.failure
            && self.attempts.load(Ordering::Acquire) != before
        {
            return Err(failure.clone());
        }
        state.live = None;
        let result = connect(&self.address, &self.settings, self.role).await.map(Arc::new);
        self.attempts.fetch_add(1, Ordering::Release);
        state.failure = result.as_ref().err().cloned();
        state.live = result.as_ref().ok().cloned();
        result
    }

    /// Closes the connection; it is not built again.
    pub(super) async fn close(&self) {
        let mut state = self.state.lock().await;
        state.closed = true;
        if let Some(live) = state.live.take() {
            live.close().await;
        }
    }
}

/// Connects once.
pub(super) async fn connect(address: &Address, settings: &Settings, role: &str) -> Result<Live, BrokerError> {
    let unavailable = |reason: String| BrokerError::Unavailable { server: address.server.clone(), reason };
    let limit = settings.connect_timeout;
    // The system's authorities, or those in SSL_CERT_FILE, as with the other servers.
    let tls = OwnedTLSConfig::default();
    let opening = timeout(limit, tap::connect(&address.uri, &tls));
    let (stream, control) = opening
        .await
        .map_err(|_| unavailable(format!("no connection within {}", humantime::format_duration(limit))))?
        .map_err(|error| unavailable(io_words(&error)))?;

    // From here on lapin's thread owns the socket. Whatever ends this function early must cut it, or the thread stays.
    let guard = CutOnDrop(Some(control.clone()));
    let slot = StdMutex::new(Some(stream));
    let take = async move |_uri: AMQPUri, _runtime: Runtime<TappedTokio>| {
        let stream = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        stream.map(AsyncTcpStream::Plain).ok_or_else(|| std::io::Error::other("connected once already").into())
    };
    let name = format!("{} ({role})", settings.connection_name);
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "Hapax".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let handshake = Connection::connector(address.uri.clone(), Runtime::new(TappedTokio::current()), take, properties);
    let connection = match timeout(limit, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(refused(address, &Failure::of(&error))),
        Err(_) => {
            let limit = humantime::format_duration(limit);
            return Err(unavailable(format!("connected, but no AMQP answer within {limit}")));
        }
    };
    guard.disarm();
    let (sender, blocked) = watch::channel(None);
    let events = tokio::spawn(follow(connection.events_listener(), sender, address.server.clone())).abort_handle();
    info!(server = %address.server, role, "connected");
    Ok(Live { connection, control, blocked, events, request_timeout: limit })
}

/// Cuts a connection that was given up on the way.
struct CutOnDrop(Option<Control>);

impl CutOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        if let Some(control) = &self.0 {
            control.cut();
        }
    }
}

/// What a failed handshake means.
fn refused(address: &Address, failure: &Failure) -> BrokerError {
    let server = address.server.clone();
    match failure {
        Failure::Refused { code: code::ACCESS_REFUSED, text, .. } => {
            BrokerError::Login { server, reason: format!("user {:?}: {text}", address.user) }
        }
        Failure::Refused { code: code::NOT_ALLOWED, text, .. } => {
            let reason =
                format!("virtual host {:?} (the path of the URL; %2f is the default one): {text}", address.vhost);
            BrokerError::Login { server, reason }
        }
        other => other.unavailable(&server),
    }
}

/// Follows what the server says about the connection as a whole.
async fn follow(events: impl futures::Stream<Item = Event>, blocked: watch::Sender<Option<String>>, server: String) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                warn!(%server, %reason, "the broker accepts no messages for now");
                blocked.send_replace(Some(reason));
            }
            Event::ConnectionUnblocked => {
                info!(%server, "the broker accepts messages again");
                blocked.send_replace(None);
            }
            other => debug!(%server, event = ?other, "connection event"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Address, BrokerError> {
        Address::parse(url, &Settings::default())
    }

    #[test]
    fn addresses_are_shown_without_credentials() {
        let address = parse("amqp://shop:s%40cret@[::1]:5673/a%2fb?heartbeat=7").unwrap();
        assert_eq!(address.server, "amqp://[::1]:5673/a%2fb");
        assert_eq!(address.uri.authority.host, "::1");
        assert_eq!(address.uri.authority.userinfo.password, "s@cret");
        assert_eq!((address.vhost.as_str(), address.user.as_str()), ("a/b", "shop"));
        assert_eq!(address.uri.query.heartbeat, Some(7));
    }

    #[test]
    fn missing_parts_have_the_usual_defaults() {
        let address = parse("amqps://example.com").unwrap();
        assert_eq!(address.server, "amqps://example.com:5671/%2f");
        assert_eq!(parse("amqp://").map(|address| address.server).unwrap(), "amqp://localhost:5672/%2f");
        assert_eq!(parse("amqp://h/").map(|address| address.vhost).unwrap(), "");
    }

    #[test]
    fn bad_addresses_are_errors_without_the_password() {
        for url in
            ["amqp://u:hunter2@h:99999/", "amqp://u:hunter2@h/?hart=1", "amqp://u:hunter2@h/%ff", "http://u:hunter2@h"]
        {
            let error = parse(url).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!error.is_empty() && !error.contains("hunter2"), "{url}: {error}");
        }
    }
}
