//! One optional address for machines that watch: `/healthz`, `/readyz` and `/metrics`.
//!
//! - `/healthz`: 200 as long as the process can answer at all. Restart it when it cannot.
//! - `/readyz`: 200 when every component is up; else 503, and JSON that names what each waits for. Never a reason to
//!   restart: the servers waited for will not come sooner.
//! - `/metrics`: Prometheus' text form.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::metrics::Metrics;
use super::readiness::Readiness;

/// How long open requests may take to end once the process stops.
const DRAIN: Duration = Duration::from_secs(2);

/// The listen address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen:?}: {cause}; free that address or set another one as `listen`")]
pub struct ListenError {
    /// The address as configured.
    pub listen: String,
    /// What the system said.
    #[source]
    pub cause: std::io::Error,
}

/// A server that answers until its token is cancelled.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Watched {
    readiness: Readiness,
    metrics: Metrics,
}

/// Listens on `listen` (`127.0.0.1:9464`, `[::]:9464`; port 0 takes a free one) and answers in the background until
/// `stop`.
///
/// # Errors
/// When the address is not one, is taken, or may not be used.
pub async fn serve(
    listen: &str,
    readiness: Readiness,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<Server, ListenError> {
    let failed = |cause| ListenError { listen: listen.to_owned(), cause };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let router = Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(async |State(watched): State<Watched>| (TEXT_FORM, watched.metrics.render())))
        .with_state(Watched { readiness, metrics });
    info!(%address, "serving /healthz, /readyz and /metrics");
    let task = tokio::spawn(async move {
        let stopped = stop.clone();
        let serving = axum::serve(listener, router).with_graceful_shutdown(async move { stopped.cancelled().await });
        let drained = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = serving => if let Err(error) = served {
                warn!(%address, %error, "no longer serving /healthz, /readyz and /metrics");
            },
            () = drained => {}
        }
    });
    Ok(Server { address, task })
}

impl Server {
    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until it has ended, some seconds after its token at the latest.
    pub async fn ended(self) {
        // The task neither panics nor is aborted; and if it did, it has ended.
        let _ = self.task.await;
    }
}

const TEXT_FORM: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];

async fn readyz(State(watched): State<Watched>) -> (StatusCode, [(HeaderName, &'static str); 1], String) {
    let waiting_for = watched.readiness.waiting_for();
    let ready = waiting_for.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({ "ready": ready, "waiting_for": waiting_for });
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::super::metrics::ConsumerMetrics;
    use super::*;

    /// Head and body of the answer to a plain GET.
    async fn get(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    async fn started(readiness: &Readiness, stop: &CancellationToken) -> Server {
        serve("127.0.0.1:0", readiness.clone(), Metrics::install().unwrap(), stop.clone()).await.unwrap()
    }

    #[tokio::test]
    async fn health_readiness_and_metrics_are_served() {
        let readiness = Readiness::new();
        let server = started(&readiness, &CancellationToken::new()).await;
        let consumer = readiness.component("consumer c");
        consumer.waiting("queue \"q\"");
        ConsumerMetrics::new("served").received(2);

        let (head, _) = get(server.address(), "/healthz").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let (head, body) = get(server.address(), "/readyz").await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert_eq!(body, "{\"ready\":false,\"waiting_for\":{\"consumer c\":\"queue \\\"q\\\"\"}}\n");
        consumer.up();
        let (head, body) = get(server.address(), "/readyz").await;
        assert!(head.starts_with("HTTP/1.1 200") && body.contains("\"ready\":true"), "{head} {body}");
        let (head, body) = get(server.address(), "/metrics").await;
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("hapax_deliveries_received_total{consumer=\"served\"} 2\n"), "{body}");
        assert!(get(server.address(), "/").await.0.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn it_stops_though_a_client_never_finishes_its_request() {
        let stop = CancellationToken::new();
        let server = started(&Readiness::new(), &stop).await;
        let address = server.address();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /healthz HT").await.unwrap();
        get(address, "/healthz").await;
        stop.cancel();
        tokio::time::timeout(DRAIN * 3, server.ended()).await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_used_is_named_with_the_cause() {
        let server = started(&Readiness::new(), &CancellationToken::new()).await;
        for (listen, cause) in [(server.address().to_string(), "in use"), ("no port".to_owned(), "invalid")] {
            let result = serve(&listen, Readiness::new(), Metrics::install().unwrap(), CancellationToken::new()).await;
            let text = result.unwrap_err().to_string();
            assert!(text.contains(&format!("cannot listen on {listen:?}")) && text.contains(cause), "{text}");
        }
    }
}
