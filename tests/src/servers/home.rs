//! Where a private server lives: its directory, its user, its ports, its programs.

use std::collections::HashSet;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;

use crate::guard::Guard;
use crate::proc::{Process, describe};
use crate::wait::block_on;

/// Longest run of a program that prepares a data directory (`initdb` takes 1 s on an idle machine).
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// Ports are taken from here: below the range from which systems take the ports of outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Socket paths may have 107 bytes (103 on macOS), so the directory must be short.
const MAX_BASE_LENGTH: usize = 60;

/// A private server's directory, with the guard that removes it and kills what runs in it.
pub struct Home {
    directory: PathBuf,
    guard: Arc<Guard>,
    account: Option<Account>,
}

/// A program that this machine lacks.
#[derive(Debug)]
pub(super) struct NotInstalled(&'static str);

impl std::fmt::Display for NotInstalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no program `{}`", self.0)
    }
}

impl std::error::Error for NotInstalled {}

/// A system user to run as.
struct Account {
    uid: u32,
    gid: u32,
}

impl Home {
    /// Makes a directory for `server` ("redis"). If this is root and the server has a system `user`, its programs will run
    /// as that user. `crash_signal` is what its processes get when this process dies.
    pub(super) fn create(server: &str, user: Option<&str>, crash_signal: &str) -> Result<Self> {
        let root = rustix::process::geteuid().is_root();
        let account = match user {
            Some(user) if root => Some(Account { uid: id_of(user, "-u")?, gid: id_of(user, "-g")? }),
            _ => None,
        };
        let base = base_directory(account.is_some())?;
        let directory = tempfile::Builder::new()
            .prefix(&format!("hapax-{server}-"))
            .tempdir_in(&base)
            .with_context(|| format!("making a directory in {}", base.display()))?
            .keep();
        let guard = Arc::new(Guard::new(&directory, crash_signal)?);
        let home = Self { directory, guard, account };
        // The server's user must get through to the folders that are its own.
        std::fs::set_permissions(&home.directory, PermissionsExt::from_mode(0o711)).context("opening the directory")?;
        Ok(home)
    }

    /// The directory itself.
    pub(super) fn path(&self) -> &Path {
        &self.directory
    }

    /// Makes a folder that belongs to the server's user alone.
    pub(super) fn make_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).context("closing a folder to others")?;
        if let Some(account) = &self.account {
            chown(&path, Some(account.uid), Some(account.gid))
                .with_context(|| format!("giving {} away", path.display()))?;
        }
        Ok(path)
    }

    /// A command that runs `program` as the server's user, in the server's directory.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.directory);
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// Starts a process that dies with this directory, and writes `name`.log there.
    pub(super) fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        Process::spawn(name, command, &self.log(name), Arc::clone(&self.guard))
    }

    /// Where a process of that name writes what it says.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// Runs a program to its end, which must be a good one. Blocks.
    pub(super) fn run(&self, name: &str, command: Command) -> Result<()> {
        let mut process = self.spawn(name, command)?;
        block_on(async move {
            let status = process.wait(PREPARE_LIMIT).await?;
            ensure!(status.success(), "{} failed ({})\n{}", process.name(), describe(status), process.log_tail());
            Ok(())
        })
    }
}

/// A directory for temporary directories: short, and open to the servers' users.
fn base_directory(for_other_users: bool) -> Result<PathBuf> {
    let candidates = [std::env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")];
    let fits = |path: &Path| {
        path.as_os_str().len() <= MAX_BASE_LENGTH
            && path.is_dir()
            && (!for_other_users || path.ancestors().all(traversable))
    };
    let found = candidates.iter().find(|path| path.canonicalize().is_ok_and(|path| fits(&path)));
    found.cloned().context("no temporary directory is short enough and open to the servers' users: set TMPDIR to one")
}

fn traversable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
}

/// The user or group id of a system user, from `id`.
fn id_of(user: &str, which: &str) -> Result<u32> {
    let output = Command::new("id").args([which, user]).output().context("running `id`")?;
    ensure!(
        output.status.success(),
        "there is no user `{user}`, whom the server's package makes, and the server refuses to run as root"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("`id {which} {user}` said {text:?}"))
}

/// A loopback port that is free now, and that this process has not given out before.
pub(super) fn free_port() -> Result<u16> {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    for _ in 0..1000 {
        let port = rand::rng().random_range(PORTS);
        let free = TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free && GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1 between {} and {}", PORTS.start, PORTS.end)
}

/// Finds a program on the PATH, in the folders for servers, or in `more`.
///
/// # Errors
/// [`NotInstalled`], if it is nowhere.
pub(super) fn find_program(name: &'static str, more: &[PathBuf]) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/opt/homebrew/sbin", "/opt/homebrew/bin"].map(PathBuf::from);
    let folders = more.iter().cloned().chain(std::env::split_paths(&path)).chain(usual);
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    found.ok_or_else(|| NotInstalled(name).into())
}
