//! RabbitMQ's management API, as far as the suites need it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use url::Url;

/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(20);

/// A client of the management API. Plain HTTP: it is for loopback and test networks.
#[derive(Clone)]
pub struct Admin {
    url: Url,
    user: String,
    password: String,
    http: Client,
}

impl Admin {
    /// A client for `http://USER:PASSWORD@HOST:PORT`.
    ///
    /// # Errors
    /// When the URL is another one.
    pub fn new(mut url: Url) -> Result<Self> {
        ensure!(url.scheme() == "http", "the management API is used over http:// only");
        let user = if url.username().is_empty() { "guest" } else { url.username() }.to_owned();
        let password = url.password().unwrap_or("guest").to_owned();
        let cleared = url.set_username("").and(url.set_password(None));
        ensure!(cleared.is_ok(), "the management URL names no host");
        // No idle connections: one would belong to the runtime of the test that opened it, and die with that.
        let http =
            Client::builder().timeout(LIMIT).pool_max_idle_per_host(0).build().context("making an HTTP client")?;
        Ok(Self { url, user, password, http })
    }

    /// The address, without user and password.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The user as whom it works.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// `GET /api/overview`: node, versions, listeners.
    ///
    /// # Errors
    /// When RabbitMQ does not answer or refuses.
    pub async fn overview(&self) -> Result<Value> {
        self.get(&["overview"]).await
    }

    /// Creates a virtual host and gives this user all rights in it.
    ///
    /// # Errors
    /// When RabbitMQ does not answer or refuses.
    pub async fn create_vhost(&self, name: &str) -> Result<()> {
        self.put(&["vhosts", name], &json!({})).await?;
        let all = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        self.set_permissions(name, &self.user, &all).await
    }

    /// Deletes a virtual host with all that is in it, and closes its connections.
    ///
    /// # Errors
    /// When RabbitMQ does not answer or refuses.
    pub async fn delete_vhost(&self, name: &str) -> Result<()> {
        self.delete(&["vhosts", name]).await
    }

    /// Creates a user, or changes its password.
    ///
    /// # Errors
    /// When RabbitMQ does not answer or refuses.
    pub async fn create_user(&self, name: &str, password: &str) -> Result<()> {
        self.put(&["users", name], &json!({ "password": password, "tags": "" })).await
    }

    /// Sets what `user` may do in `vhost`: `{"configure": REGEX, "write": REGEX, "read": REGEX}`.
    ///
    /// # Errors
    /// When RabbitMQ does not answer or refuses.
    pub async fn set_permissions(&self, vhost: &str, user: &str, permissions: &Value) -> Result<()> {
        self.put(&["permissions", vhost, user], permissions).await
    }

    /// `GET /api/PATH`; the segments are encoded here.
    ///
    /// # Errors
    /// When RabbitMQ does not answer or refuses.
    pub async fn get(&self, path: &[&str]) -> Result<Value> {
        let (status, answer) = self.send(Method::GET, path, None).await?;
        ensure!(status.is_success(), "GET {}: {status}: {answer}", path.join("/"));
        Ok(answer)
    }

    /// `GET /api/PATH`, none if there is no such thing.
    ///
    /// # Errors
    /// When RabbitMQ does not answer or refuses.
    pub async fn find(&self, path: &[&str]) -> Result<Option<Value>> {
        match self.send(Method::GET, path, None).await? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, answer) if status.is_success() => Ok(Some(answer)),
            (status, answer) => bail!("GET {}: {status}: {answer}", path.join("/")),
        }
    }

    /// `PUT /api/PATH`.
    ///
    /// # Errors
    /// When RabbitMQ does not answer or refuses.
    pub async fn put(&self, path: &[&str], body: &Value) -> Result<()> {
        let (status, answer) = self.send(Method::PUT, path, Some(body)).await?;
        ensure!(status.is_success(), "PUT {}: {status}: {answer}", path.join("/"));
        Ok(())
    }

    /// `POST /api/PATH`.
    ///
    /// # Errors
    /// When RabbitMQ does not answer or refuses.
    pub async fn post(&self, path: &[&str], body: &Value) -> Result<Value> {
        let (status, answer) = self.send(Method::POST, path, Some(body)).await?;
        ensure!(status.is_success(), "POST {}: {status}: {answer}", path.join("/"));
        Ok(answer)
    }

    /// `DELETE /api/PATH`; that there is no such thing is no error.
    ///
    /// # Errors
    /// When RabbitMQ does not answer or refuses.
    pub async fn delete(&self, path: &[&str]) -> Result<()> {
        let (status, answer) = self.send(Method::DELETE, path, None).await?;
        let done = status.is_success() || status == StatusCode::NOT_FOUND;
        ensure!(done, "DELETE {}: {status}: {answer}", path.join("/"));
        Ok(())
    }

    /// An answer without a JSON body counts as null.
    async fn send(&self, method: Method, path: &[&str], body: Option<&Value>) -> Result<(StatusCode, Value)> {
        let mut url = self.url.clone();
        url.path_segments_mut().ok().context("the management URL has no path")?.pop_if_empty().push("api").extend(path);
        let what = || format!("{method} {} at RabbitMQ's management API", path.join("/"));
        let mut request = self.http.request(method.clone(), url).basic_auth(&self.user, Some(&self.password));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(what)?;
        let status = response.status();
        let bytes = response.bytes().await.with_context(what)?;
        let answer = serde_json::from_slice(&bytes).unwrap_or_else(|_| match bytes.is_empty() {
            true => Value::Null,
            false => Value::String(String::from_utf8_lossy(&bytes).into_owned()),
        });
        Ok((status, answer))
    }
}
