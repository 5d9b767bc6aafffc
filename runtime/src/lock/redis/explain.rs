//! What Redis answered instead, in words, and what to do about it.

use redis::{ErrorKind, RedisError};

/// What an error asks of the operator. The code is looked for in the whole text: servers before 7 wrap the
/// error of a command that a script ran in an `ERR` of their own.
const ADVICE: [(&str, &str); 14] = [
    ("READONLY", "this is a replica; point lock.url at the primary"),
    ("MASTERDOWN", "this is a replica without its primary; point lock.url at the primary"),
    ("OOM", "its maxmemory is reached; raise it, or set maxmemory-policy to volatile-ttl"),
    ("LOADING", "it is loading its data set; this passes"),
    ("BUSY", "somebody's script blocks it; SCRIPT KILL ends that"),
    ("MISCONF", "it cannot write its snapshot and refuses changes; look at its log and disk"),
    ("NOAUTH", "it wants a password; put one into lock.url or lock.password"),
    ("WRONGPASS", "user or password is wrong; correct them in lock.url or lock.password"),
    ("NOPERM", RIGHTS),
    ("permissions", RIGHTS),
    ("MOVED", "it is a node of a cluster, which is not supported; use a single server"),
    ("CROSSSLOT", "it is a node of a cluster, which is not supported; use a single server"),
    ("UnknownIssuer", "add its certificate authority to the system's, or name its file in SSL_CERT_FILE"),
    ("NOREPLICAS", "it has too few replicas to accept writes (min-replicas-to-write)"),
];

/// What a user of the lock may need to be granted. [`super::RedisLock`] calls nothing else.
const RIGHTS: &str =
    "run: ACL SETUSER <user> ~hapax:* +evalsha +eval +set +pttl +get +pexpire +del (and +select for a database but 0)";

/// The codes after which another connection may find another server or other rights.
const RECONNECT: [&str; 5] = ["READONLY", "MASTERDOWN", "LOADING", "NOAUTH", "WRONGPASS"];

/// The error as the server or the system put it, on one line.
pub(super) fn text(error: &RedisError) -> String {
    let text = match (error.kind(), error.code(), error.detail()) {
        (ErrorKind::Server(_) | ErrorKind::Extension, Some(code), Some(detail)) => format!("{code} {detail}"),
        // The client keeps the server's words to itself here.
        (ErrorKind::AuthenticationFailed, ..) => "WRONGPASS the login was refused".to_owned(),
        _ => error.to_string(),
    };
    // Redis 7 adds which line of which script it was, which helps nobody but us.
    let text = text.split(" script: ").next().unwrap_or_default();
    text.trim_end_matches('.').replace(['\r', '\n'], " ")
}

/// What to do about an error with that text.
pub(super) fn advice(text: &str) -> Option<&'static str> {
    ADVICE.iter().find(|(code, _)| has_code(text, code)).map(|(_, advice)| *advice)
}

/// Whether the connection is of no more use after this error: it broke, or a new one may reach a server that serves.
/// A server that refuses with any other answer is up, and refuses as fast as it grants.
pub(super) fn ends_connection(error: &RedisError, text: &str) -> bool {
    match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension => RECONNECT.iter().any(|code| has_code(text, code)),
        _ => true,
    }
}

/// Whether `code` stands in `text` as a word.
fn has_code(text: &str, code: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_an_operator_can_mend_come_with_advice() {
        let advised = |text| advice(text).unwrap_or_else(|| panic!("no advice for {text}"));
        assert!(advised("READONLY You can't write against a read only replica.").contains("primary"));
        assert!(advised("OOM command not allowed when used memory > 'maxmemory'.").contains("maxmemory"));
        assert!(advised("ERR Error running script: @user_script:4: -OOM command not allowed").contains("maxmemory"));
        assert!(advised("NOPERM this user has no permissions to run the 'set' command").contains("+pexpire"));
        assert!(advised("invalid peer certificate: UnknownIssuer").contains("SSL_CERT_FILE"));
        assert_eq!(advice("ERR no BUSYness here"), None);
        assert_eq!(advice("Connection refused (os error 111)"), None);
    }

    #[test]
    fn only_errors_that_another_connection_may_mend_end_this_one() {
        let server = |code: &'static str| {
            let error = RedisError::from((ErrorKind::Extension, code));
            ends_connection(&error, code)
        };
        assert!(server("READONLY") && server("LOADING") && server("NOAUTH"));
        assert!(!server("OOM") && !server("BUSY") && !server("NOPERM") && !server("ERR"));
        let broken = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(ends_connection(&broken, "broken pipe"));
    }
}
