//! Redis servers for this suite.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The server for tests that disturb nothing: the one that the environment names, or one of our own.
pub(crate) fn undisturbed() -> (String, Option<Redis>) {
    match std::env::var("HAPAX_TEST_REDIS_URL") {
        Ok(url) if !url.is_empty() => (url, None),
        _ => {
            let server = Redis::start();
            (server.url(), Some(server))
        }
    }
}

/// A private Redis that a test may kill, freeze and start again. It dies with the value.
pub(crate) struct Redis {
    child: Child,
    port: u16,
    arguments: Vec<String>,
    directory: TempDir,
}

impl Redis {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more arguments, and waits until it listens.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let child = spawn(port, &directory, &arguments);
        let mut server = Self { child, port, arguments, directory };
        server.wait_until_listening();
        server
    }

    /// Its URL, for the user that needs no password.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn url_as(&self, credentials: &str, db: u8) -> String {
        format!("redis://{credentials}@127.0.0.1:{}/{db}", self.port)
    }

    pub(crate) fn url_with_tls(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.port)
    }

    /// Where it listens when started with `--unixsocket redis.sock`.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// Ends it as a crash does: it says goodbye to nobody.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("redis-server can be killed");
        self.child.wait().expect("redis-server can be reaped");
    }

    /// Starts it again on the same port, empty.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.port, &self.directory, &self.arguments);
        self.wait_until_listening();
    }

    /// Stops it from running, without closing anything.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    /// A command from an operator, as the user that needs no password.
    pub(crate) fn command(&self, command: &str) -> redis::RedisResult<redis::Value> {
        let client = redis::Client::open(self.url())?;
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().expect("a command"));
        words.for_each(|word| drop(cmd.arg(word)));
        cmd.query(&mut client.get_connection_with_timeout(Duration::from_secs(5))?)
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success(), "kill {signal}");
    }

    fn wait_until_listening(&mut self) {
        let limit = Instant::now() + Duration::from_secs(10);
        while !self.answers() {
            let exited = self.child.try_wait().expect("the child can be asked");
            assert!(exited.is_none(), "redis-server ended: {exited:?}");
            assert!(Instant::now() < limit, "redis-server does not listen on port {} within 10 s", self.port);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Any answer will do: with a password set, PING is refused.
    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let timed = stream.set_read_timeout(Some(Duration::from_secs(1)));
        timed.and_then(|()| stream.write_all(b"PING\r\n")).and_then(|()| stream.read(&mut [0; 64])).is_ok()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, directory: &TempDir, arguments: &[String]) -> Child {
    let listen = if arguments.iter().any(|argument| argument == "--tls-port") { 0 } else { port };
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &listen.to_string(), "--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(directory.path())
        .args(arguments.iter().map(|argument| argument.replace("{port}", &port.to_string())))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().expect("redis-server starts: install it, or put it on the PATH")
}
