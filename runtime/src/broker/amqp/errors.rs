//! What went wrong on a connection, sorted by what it means for a queue or a message.

use lapin::protocol::AMQPError;
use lapin::{Error, ErrorKind};

use super::super::BrokerError;

/// Reply codes of AMQP that mean something to us.
pub(super) mod code {
    pub(in super::super) const ACCESS_REFUSED: u16 = 403;
    pub(in super::super) const NOT_FOUND: u16 = 404;
    pub(in super::super) const RESOURCE_LOCKED: u16 = 405;
    pub(in super::super) const PRECONDITION_FAILED: u16 = 406;
    pub(in super::super) const CONNECTION_FORCED: u16 = 320;
    pub(in super::super) const NOT_ALLOWED: u16 = 530;
    pub(in super::super) const INTERNAL_ERROR: u16 = 541;
}

/// A request that failed.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// The server answered by closing the channel or the connection, and says why.
    Refused { code: u16, text: String },
    /// The connection was lost, or never came to be.
    Lost(String),
}

impl Failure {
    /// What lapin reports.
    pub(super) fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(error) => Self::of_protocol(error),
            ErrorKind::IOError(error) | ErrorKind::RuntimeShutdownError(error) => Self::Lost(io_words(error)),
            ErrorKind::MissingHeartbeatError => Self::Lost("the server sent no heartbeat for too long".to_owned()),
            ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_) => {
                Self::Lost("the connection was closed".to_owned())
            }
            ErrorKind::ParsingError(_) => Self::Lost("the server sent something that is not AMQP 0-9-1".to_owned()),
            _ => Self::Lost(error.to_string()),
        }
    }

    fn of_protocol(error: &AMQPError) -> Self {
        Self::Refused { code: error.get_id(), text: error.get_message().to_string() }
    }

    /// A request that was not answered in time.
    pub(super) fn timed_out(what: &str, limit: std::time::Duration) -> Self {
        Self::Lost(format!("no answer to {what} within {}", humantime::format_duration(limit)))
    }

    /// True if the message or declaration that was sent is to blame, and not the server's day.
    pub(super) fn blames_the_request(&self) -> bool {
        match self {
            Self::Refused { code, .. } => !matches!(*code, code::CONNECTION_FORCED | code::INTERNAL_ERROR),
            Self::Lost(_) => false,
        }
    }

    /// What happened, in words.
    pub(super) fn words(&self) -> &str {
        match self {
            Self::Refused { text, .. } | Self::Lost(text) => text,
        }
    }

    /// As an error of the whole server.
    pub(super) fn unavailable(&self, server: &str) -> BrokerError {
        BrokerError::Unavailable { server: server.to_owned(), reason: self.words().to_owned() }
    }
}

/// An I/O error without its number, and with the reason behind it.
pub(super) fn io_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused: nothing listens there".to_owned(),
        std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::ConnectionReset => {
            "the connection was lost".to_owned()
        }
        std::io::ErrorKind::InvalidData if error.to_string().contains("UnknownIssuer") => {
            format!("TLS: {error}; add its certificate authority to the system's, or name its file in SSL_CERT_FILE")
        }
        // What the TLS library calls everything that it did not expect.
        std::io::ErrorKind::InvalidData => format!("TLS: {error}"),
        _ => error.to_string(),
    }
}

/// Quotes a word for a POSIX shell where it needs it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A pattern for RabbitMQ's permissions that matches exactly this name.
pub(super) fn pattern(name: &str) -> String {
    let mut pattern = String::from("^");
    for character in name.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('$');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_split_them() {
        assert_eq!(quoted("orders.eu"), "orders.eu");
        assert_eq!(quoted("my queue"), "'my queue'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted(&pattern("a.b")), r"'^a\.b$'");
    }
}
