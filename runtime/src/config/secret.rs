//! Values that must not be seen.

use std::fmt;

use url::Url;

/// A text that never appears in logs, errors or debug output: both `Debug` and `Display` write `***`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one who needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A server's address, credentials included. `Debug` and `Display` leave out user, password, query and fragment.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(Url);

impl ServerUrl {
    /// Wraps an address that has a host.
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// The whole address with user and password, percent-encoded, as client libraries take it.
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }

    /// The parts, for clients that take them one by one.
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())?;
        if let Some(port) = self.0.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.0.path())
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_show_themselves_to_nobody() {
        assert_eq!(format!("{:?} {}", Secret::new("hunter2"), Secret::new("hunter2")), "*** ***");
        assert_eq!(Secret::new("hunter2").expose(), "hunter2");
    }

    #[test]
    fn an_address_is_shown_without_credentials() {
        let url = ServerUrl::new(Url::parse("amqp://shop:hunter2@mq.example:5673/%2f?secret=x#y").unwrap());
        assert_eq!(format!("{url} {url:?}"), "amqp://mq.example:5673/%2f amqp://mq.example:5673/%2f");
        assert!(url.expose().contains("hunter2"));
    }
}
