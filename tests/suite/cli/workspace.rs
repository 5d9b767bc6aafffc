//! A folder with a config and its files, and the binary run in it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hapax_tests::proc::{self, Launch, Process, hapax_bin};
use hapax_tests::wait_until;

use crate::mask::mask;

/// Variables that would change what the binary does.
const VARIABLES: [&str; 6] = ["HAPAX_CONFIG", "HAPAX_BROKER", "HAPAX_LOG", "RUST_LOG", "COLUMNS", "HOME"];

/// A guest that `make guests` builds.
pub(crate) fn guest(name: &str) -> PathBuf {
    proc::guest(name).unwrap_or_else(|error| panic!("{error:#}"))
}

/// A folder of one test.
pub(crate) struct Workspace {
    folder: tempfile::TempDir,
}

/// What a command did.
pub(crate) struct Ran {
    /// Its exit status.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
    folder: PathBuf,
    line: String,
}

impl Workspace {
    /// An empty one.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { folder: tempfile::Builder::new().prefix("hapax-cli-").tempdir()? })
    }

    /// One with a `hapax.toml` on files: broker `broker.db`, ledger `shop.db`, and these consumers.
    pub(crate) fn embedded(consumers: &str) -> Result<Self> {
        let workspace = Self::new()?;
        let servers = "[broker]\nurl = \"embedded:broker.db\"\n[lock]\nurl = \"local:\"\n[database]\nurl = \"sqlite://shop.db\"\n";
        workspace.write("hapax.toml", &format!("{servers}{consumers}"))?;
        Ok(workspace)
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        std::fs::write(self.path(name), text).with_context(|| format!("writing {name}"))
    }

    /// Runs the binary with these arguments, separated by spaces.
    pub(crate) fn hapax(&self, line: &str) -> Result<Ran> {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.run(&args, b"")
    }

    /// Runs the binary with these arguments and standard input.
    pub(crate) fn run(&self, args: &[&str], input: &[u8]) -> Result<Ran> {
        self.run_with(&[], args, input)
    }

    /// The same, with these variables set.
    pub(crate) fn run_with(&self, variables: &[(&str, &Path)], args: &[&str], input: &[u8]) -> Result<Ran> {
        let mut command = Command::new(hapax_bin()?);
        command.args(args).current_dir(self.folder.path()).env("NO_COLOR", "1").env("XDG_CACHE_HOME", cache());
        VARIABLES.iter().for_each(|name| {
            command.env_remove(name);
        });
        command.envs(variables.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("standard input")?;
        let input = input.to_vec();
        // It may end without reading.
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output()?;
        drop(writer.join());
        Ok(Ran {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).context("standard output is not UTF-8")?,
            err: String::from_utf8(output.stderr).context("standard error is not UTF-8")?,
            folder: self.folder.path().canonicalize()?,
            line: args.join(" "),
        })
    }

    /// Starts a host.
    pub(crate) fn host(&self) -> Result<Process> {
        Launch::hapax(["run", "-c", "hapax.toml"])
            .current_dir(self.folder.path())
            .env("XDG_CACHE_HOME", cache())
            .env("HAPAX_LOG", "info")
            .start()
    }

    /// Runs a host until there are so many dead letters.
    pub(crate) async fn host_until_dead(&self, number: usize) -> Result<()> {
        self.host_until("dead letters", || Ok(self.hapax("dead list --json")?.out.lines().count() >= number)).await
    }

    /// Runs a host until something is the case.
    pub(crate) async fn host_until(&self, what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
        let mut host = self.host()?;
        let seen = wait_until(Duration::from_secs(90), what, async || is().unwrap_or(false)).await;
        let ended = host.terminate(Duration::from_secs(30)).await;
        seen.with_context(|| host.log_tail())?;
        anyhow::ensure!(ended?.success(), "{}", host.log_tail());
        Ok(())
    }
}

/// Compiled modules of all tests.
fn cache() -> &'static str {
    env!("CARGO_TARGET_TMPDIR")
}

impl Ran {
    /// Everything that it printed, with what differs from run to run masked.
    pub(crate) fn snapshot(&self) -> String {
        let mut text = format!("$ hapax {}\n{}", self.line, self.out);
        if !self.err.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(text, "--- standard error\n{}", self.err);
        }
        let _ = write!(text, "--- exit code {}", self.code.map_or("none".to_owned(), |code| code.to_string()));
        let folder = self.folder.display().to_string();
        let guests = proc::target_dir().unwrap_or_default().join("wasm32-wasip2/release").display().to_string();
        let text = text.replace(&folder, "[DIR]").replace(&guests, "[GUESTS]");
        // What the toolchain of a guest imports is not ours to fix.
        let lines = mask(&text);
        let lines: Vec<&str> =
            lines.lines().filter(|line| !line.trim_start().starts_with("wasi:")).map(str::trim_end).collect();
        lines.join("\n")
    }

    /// Fails unless it ended with 0.
    pub(crate) fn expect_success(self) -> Result<Self> {
        anyhow::ensure!(self.code == Some(0), "{}", self.snapshot());
        Ok(self)
    }
}

/// Compares an output with the snapshot of that name.
macro_rules! snapshot {
    ($name:literal, $ran:expr) => {
        $crate::workspace::text_snapshot!($name, $ran.snapshot())
    };
}
pub(crate) use snapshot;

/// Compares a text with the snapshot of that name.
macro_rules! text_snapshot {
    ($name:literal, $text:expr) => {{
        let mut settings = insta::Settings::clone_current();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        let text = $text;
        settings.bind(|| insta::assert_snapshot!($name, text));
    }};
}
pub(crate) use text_snapshot;
