//! Children: their logs, their signals, their limits, and their end with the process that started them.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hapax_tests::proc::{Launch, Process};
use hapax_tests::servers::{alive, descendants};
use hapax_tests::{TestResult, wait_for, wait_until};

const SOON: Duration = Duration::from_secs(20);
/// RabbitMQ starts, among tests that start others.
const START: Duration = Duration::from_secs(180);

fn shell(script: &str) -> Launch {
    Launch::program("sh", ["-c", script]).name("script")
}

#[tokio::test]
async fn a_childs_words_and_status_are_seen() -> TestResult {
    let mut child = shell("echo to-out; echo to-err >&2; echo \"$GREETING from $PWD\"; exit 3")
        .env("GREETING", "hello")
        .current_dir("/")
        .start()?;
    assert_eq!(child.wait(SOON).await?.code(), Some(3));
    for words in ["to-out", "to-err", "hello from /\n"] {
        assert!(child.log().contains(words), "{}", child.log());
    }
    let error = child.wait_success(SOON).await.err().context("status 3 counted as success")?.to_string();
    assert!(error.contains("script ended with exit status 3") && error.contains("to-err"), "{error}");
    let error = child.kill9().await.err().context("a dead child was killed")?.to_string();
    assert!(error.contains("had ended before it could be killed"), "{error}");
    Ok(())
}

#[tokio::test]
async fn waits_end_and_say_what_for() -> TestResult {
    let short = Duration::from_millis(100);
    let mut child = shell("echo started; exec sleep 600").start()?;
    child.wait_for_log(SOON, "started").await?;
    let error = child.wait(short).await.err().context("it ended")?.to_string();
    assert!(error.contains("still runs after 100ms") && error.contains("started"), "{error}");
    let error = child.wait_for_log(short, "finished").await.err().context("it said so")?.to_string();
    assert!(error.contains("did not say \"finished\" within 100ms"), "{error}");

    let begin = Instant::now();
    let error = wait_until(short, "the moon", async || false).await.err().context("it came")?.to_string();
    assert_eq!(error, "waited 100ms in vain for the moon");
    let error = wait_until(short, "an answer", std::future::pending::<bool>).await.err().context("it came")?;
    assert!(error.to_string().contains("in vain for an answer"), "{error}");
    let error = wait_for(short, "a try", async || bail!("not this time") as anyhow::Result<()>).await;
    let error = format!("{:#}", error.err().context("it succeeded")?);
    assert_eq!(error, "waited 100ms in vain for a try: not this time");
    assert!(begin.elapsed() < SOON);
    Ok(())
}

#[tokio::test]
async fn signals_do_what_they_say() -> TestResult {
    let script = "trap 'echo asked to end; exit 0' TERM; echo ready; while :; do sleep 0.05; echo tick; done";
    let mut child = shell(script).start()?;
    child.wait_for_log(SOON, "tick").await?;
    child.sigstop()?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let frozen = child.log().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(child.log().len(), frozen, "it went on while frozen");
    child.sigcont()?;
    wait_until(SOON, "it to go on", async || child.log().len() > frozen).await?;
    assert_eq!(child.terminate(SOON).await?.code(), Some(0));
    assert!(child.log().contains("asked to end"));

    let mut child = shell("exec sleep 600").start()?;
    let pid = child.pid();
    child.kill9().await?;
    assert!(!alive(pid));
    assert_eq!(child.try_wait()?.and_then(|status| status.signal()), Some(9));
    Ok(())
}

#[tokio::test]
async fn a_dropped_child_takes_its_children_with_it() -> TestResult {
    let mut child = shell("sleep 600 & echo ready; wait").start()?;
    child.wait_for_log(SOON, "ready").await?;
    let family = [vec![child.pid()], descendants(child.pid())].concat();
    assert_eq!(family.len(), 2);
    drop(child);
    wait_until(SOON, "both to be gone", async || !family.iter().any(|&pid| alive(pid))).await?;
    Ok(())
}

#[tokio::test]
async fn a_missing_program_is_named() -> TestResult {
    let error = Launch::program("/no/such/program", ["run"]).start().err().context("it started")?;
    assert!(format!("{error:#}").contains("/no/such/program"), "{error:#}");
    Ok(())
}

/// `make servers`, on private servers whatever the environment says, with its files below `directory`.
fn make_servers(directory: &Path, database: &str) -> anyhow::Result<Process> {
    // The databases' users must get through.
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755))?;
    let names = ["HAPAX_TEST_AMQP_URL", "HAPAX_TEST_REDIS_URL", "HAPAX_TEST_POSTGRES_URL", "HAPAX_TEST_MYSQL_URL"];
    let launch =
        Launch::program(env!("CARGO_BIN_EXE_servers"), [""; 0]).env("DATABASE", database).env("TMPDIR", directory);
    names.into_iter().fold(launch, |launch, name| launch.env(name, "")).start()
}

fn entries(directory: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}

#[tokio::test]
async fn servers_die_with_an_owner_that_is_killed() -> TestResult {
    if let Some(own) = crate::users_own() {
        return crate::not_tested(&own);
    }
    let directory = tempfile::tempdir_in("/tmp")?;
    let mut owner = make_servers(directory.path(), "both")?;
    owner.wait_for_log(START, "Ctrl-C stops them").await?;
    let family = descendants(owner.pid());
    assert!(family.len() > 8, "four servers, the port mapper, and what watches them: {family:?}");
    assert_eq!(entries(directory.path()).len(), 4);

    owner.kill9().await?;
    wait_for(SOON, "everything to be gone", async || {
        if let Some(pid) = family.iter().find(|&&pid| alive(pid)) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            bail!("process {pid} is still there: {}", name.replace('\0', " "));
        }
        let left = entries(directory.path());
        if left.is_empty() { Ok(()) } else { bail!("files are still there: {left:?}") }
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn make_servers_prints_a_config_and_stops_when_asked() -> TestResult {
    if let Some(own) = crate::users_own() {
        return crate::not_tested(&own);
    }
    let directory = tempfile::tempdir_in("/tmp")?;
    let mut owner = make_servers(directory.path(), "postgres")?;
    owner.wait_for_log(START, "Ctrl-C stops them").await?;
    let log = owner.log();
    for line in
        ["[broker]", "url = \"amqp://", "[lock]", "url = \"redis://", "[database]", "/shop\"", "http://127.0.0.1:"]
    {
        assert!(log.contains(line), "{line} is missing:\n{log}");
    }
    let family = descendants(owner.pid());
    assert_eq!(owner.terminate(Duration::from_secs(60)).await?.code(), Some(0), "{}", owner.log());
    assert!(owner.log().contains("nothing is left of them"));
    assert!(!owner.log().contains("warning"), "{}", owner.log());
    wait_until(SOON, "everything to be gone", async || !family.iter().any(|&pid| alive(pid))).await?;
    assert_eq!(entries(directory.path()), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_missing_server_is_named_with_its_package() -> TestResult {
    let directory = tempfile::tempdir_in("/tmp")?;
    let programs = tempfile::tempdir()?;
    for program in ["sh", "rm", "sleep", "id"] {
        let folders = ["/bin", "/usr/bin"].map(|folder| Path::new(folder).join(program));
        let found = folders.into_iter().find(|path| path.exists()).with_context(|| format!("there is no {program}"))?;
        symlink(found, programs.path().join(program))?;
    }
    let mut owner = Launch::program(env!("CARGO_BIN_EXE_servers"), [""; 0])
        .env("PATH", programs.path())
        .env("TMPDIR", directory.path())
        .env("HAPAX_TEST_REDIS_URL", "")
        .env("HAPAX_TEST_AMQP_URL", "")
        .start()?;
    assert_eq!(owner.wait(START).await?.code(), Some(1), "{}", owner.log());
    let log = owner.log();
    assert!(log.contains("there is no program") && log.contains("sudo apt-get install"), "{log}");

    let mut owner = make_servers(directory.path(), "oracle")?;
    assert_eq!(owner.wait(SOON).await?.code(), Some(1));
    assert!(owner.log().contains("expected mariadb, postgres or both"), "{}", owner.log());
    Ok(())
}
