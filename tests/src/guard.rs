//! A watchdog: what it watches dies with this process, however this process dies.
//!
//! It is a shell that reads a pipe which only this process holds. When the pipe closes — on drop, at exit, after a panic,
//! or because SIGKILL left no time for anything — it kills what it watches and removes the directory it was given.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// `$1`: the directory to remove, and what is mounted in it, or nothing. `$2`: the signal to begin with; SIGKILL follows
/// after 5 s. SIGCONT goes with it, since a stopped process takes no other signal than SIGKILL.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
runs() { kill -0 "$1" && ! grep -q '^State:.Z' "/proc/$1/status"; }
pids=
while read -r verb pid; do
    case $verb in
    watch) pids="$pids $pid" ;;
    forget)
        left=
        for p in $pids; do [ "$p" = "$pid" ] || left="$left $p"; done
        pids=$left
        ;;
    esac
done
for p in $pids; do kill -"$2" "$p"; kill -CONT "$p"; done
round=0
while [ $round -lt 50 ]; do
    left=
    for p in $pids; do runs "$p" && left="$left $p"; done
    [ -z "$left" ] && break
    round=$((round + 1))
    sleep 0.1
done
for p in $pids; do kill -KILL "$p"; done
[ -z "$1" ] || for m in "$1"/*; do mountpoint -q "$m" && umount -l "$m"; done
[ -z "$1" ] || rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }
"#;

/// Longest wait for the watchdog to finish when it is dropped.
const FINISH_LIMIT: Duration = Duration::from_secs(15);

/// Kills the watched processes and removes its directory when dropped, or when this process dies.
pub(crate) struct Guard {
    watchdog: Mutex<Child>,
    pipe: Mutex<Option<ChildStdin>>,
}

impl Guard {
    /// Starts a watchdog over `directory`. `signal` ("KILL", "QUIT") is what the watched processes get first.
    /// With `HAPAX_TEST_KEEP` set, the directory stays, for a look at what is in it.
    pub(crate) fn new(directory: &Path, signal: &str) -> Result<Self> {
        let keep = std::env::var_os("HAPAX_TEST_KEEP").is_some();
        let mut command = Command::new("sh");
        command.arg("-c").arg(SCRIPT).arg("hapax-watchdog");
        command.arg(if keep { Path::new("") } else { directory }).arg(signal);
        // A process group of its own: Ctrl-C on the terminal must not reach it before its work is done.
        command.process_group(0).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut watchdog = command.spawn().context("starting the watchdog shell")?;
        let pipe = watchdog.stdin.take();
        Ok(Self { watchdog: Mutex::new(watchdog), pipe: Mutex::new(pipe) })
    }

    /// From now on `pid` dies with this guard.
    pub(crate) fn watch(&self, pid: u32) -> Result<()> {
        self.say("watch", pid)
    }

    /// `pid` is dead and reaped; the number may soon mean someone else.
    pub(crate) fn forget(&self, pid: u32) -> Result<()> {
        self.say("forget", pid)
    }

    fn say(&self, verb: &str, pid: u32) -> Result<()> {
        let mut pipe = locked(&self.pipe);
        let pipe = pipe.as_mut().context("the watchdog has no pipe")?;
        pipe.write_all(format!("{verb} {pid}\n").as_bytes())
            .with_context(|| format!("telling the watchdog to {verb} process {pid}"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(locked(&self.pipe).take());
        let start = Instant::now();
        let mut watchdog = locked(&self.watchdog);
        while matches!(watchdog.try_wait(), Ok(None)) && start.elapsed() < FINISH_LIMIT {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The lock, also after a panic elsewhere: nothing here is left half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
