//! The socket of an AMQP connection, with a hand on it.
//!
//! lapin owns its sockets and drives each from a thread of its own. The tap sits in between, for what lapin has no
//! function for: cutting a connection that does not answer (its thread would wait for ever), reading the properties
//! that the server introduces itself with, and mending frames that would end the connection (see [`sieve`](super::sieve)).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures::Stream;
use futures::io::{AsyncRead, AsyncWrite};
use futures::task::AtomicWaker;
use lapin::tcp::{AMQPUriTcpExt as _, AsyncTcpStream, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, parsing};
use lapin::uri::AMQPUri;
use tokio_util::sync::CancellationToken;

use super::sieve::Sieve;

type PlainStream = <Tokio as Reactor>::TcpStream;

/// Connects, with TLS where the scheme says so.
pub(super) async fn connect(uri: &AMQPUri, tls: &OwnedTLSConfig) -> io::Result<(Tap, Control)> {
    let runtime = Runtime::tokio_current();
    let inner = uri.connect_with_config_async(tls.as_ref(), &runtime).await?;
    let control = Control::default();
    Ok((Tap { inner, sieve: Sieve::new(), control: control.clone() }, control))
}

/// What remains in our hands when the stream has gone to lapin.
#[derive(Clone, Default)]
pub(super) struct Control(Arc<Shared>);

#[derive(Default)]
struct Shared {
    cut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    greeting: Mutex<Option<Vec<u8>>>,
    gone: CancellationToken,
}

impl Control {
    /// Ends the connection at once, whatever it is doing.
    pub(super) fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.reader.wake();
        self.0.writer.wake();
    }

    /// True once it was cut.
    pub(super) fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::Acquire)
    }

    /// Waits until lapin has closed the socket.
    pub(super) async fn gone(&self) {
        self.0.gone.cancelled().await;
    }

    /// How the server introduced itself: `product`, `version`, and more.
    pub(super) fn server_properties(&self) -> FieldTable {
        let greeting = self.0.greeting.lock().unwrap_or_else(PoisonError::into_inner);
        // class, method, protocol major and minor, then the table
        let table = greeting.as_deref().and_then(|payload| payload.get(6..));
        table.and_then(|table| parsing::parse_field_table(table).ok()).map(|(_, table)| table).unwrap_or_default()
    }

    /// One of the server's properties, as text.
    pub(super) fn server_property(&self, name: &str) -> Option<String> {
        match self.server_properties().inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            _ => None,
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.is_cut() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "given up"));
        }
        Ok(())
    }
}

/// A stream as lapin sees it.
pub(super) struct Tap {
    inner: AsyncTcpStream<PlainStream>,
    sieve: Sieve,
    control: Control,
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.control.0.gone.cancel();
    }
}

impl AsyncRead for Tap {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, target: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.control.0.reader.register(cx.waker());
        this.control.check()?;
        if target.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            match this.sieve.take(target) {
                0 => {}
                count => return Poll::Ready(Ok(count)),
            }
            let count = ready!(Pin::new(&mut this.inner).poll_read(cx, this.sieve.room()))?;
            if count == 0 {
                this.sieve.finish();
                return Poll::Ready(Ok(this.sieve.take(target)));
            }
            this.sieve.filled(count);
            if let Some(greeting) = this.sieve.greeting() {
                *this.control.0.greeting.lock().unwrap_or_else(PoisonError::into_inner) = Some(greeting);
            }
        }
    }
}

impl AsyncWrite for Tap {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.control.0.writer.register(cx.waker());
        this.control.check()?;
        Pin::new(&mut this.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.control.0.writer.register(cx.waker());
        this.control.check()?;
        Pin::new(&mut this.inner).poll_write_vectored(cx, parts)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
    }
}

/// Tokio as lapin sees it: the only difference is the type of its streams.
#[derive(Debug, Clone)]
pub(super) struct TappedTokio(Tokio);

impl TappedTokio {
    /// The runtime that the caller runs on.
    pub(super) fn current() -> Self {
        Self(Tokio::current())
    }
}

impl RuntimeKit for TappedTokio {}

impl Executor for TappedTokio {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, function: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(function)
    }
}

impl Reactor for TappedTokio {
    type TcpStream = Tap;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        // lapin registers nothing: it asks for connections only, and the bound that the trait has on `H` has no name
        // outside its crate.
        Err::<async_rs::util::DummyIO, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move {
            let inner = AsyncTcpStream::Plain(connecting.await?);
            Ok(Tap { inner, sieve: Sieve::new(), control: Control::default() })
        }
    }
}
