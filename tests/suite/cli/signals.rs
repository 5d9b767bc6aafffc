//! `hapax run` and the signals that end it.

use std::time::Duration;

use anyhow::Result;
use hapax_tests::TestResult;
use hapax_tests::proc::Process;

use crate::workspace::{Workspace, guest};

/// For what takes no time on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn workspace() -> Result<Workspace> {
    Workspace::embedded(&format!(
        "[consumers.work]\nqueue = \"work\"\nmodule = \"{}\"\ndeclare = \"create\"\nlimits.time = \"2m\"\n",
        guest("chaos").display()
    ))
}

async fn consuming(workspace: &Workspace) -> Result<Process> {
    let mut host = workspace.host()?;
    host.wait_consuming(PATIENCE).await?;
    Ok(host)
}

/// A host in the middle of a message that takes longer than anybody waits.
async fn busy(workspace: &Workspace) -> Result<Process> {
    let mut host = consuming(workspace).await?;
    let slow = r#"{"do": [{"print": "in the middle"}, {"sleep-ms": 90000}]}"#;
    workspace.run(&["publish", "--queue", "work", "--id", "slow", slow], b"")?.expect_success()?;
    host.wait_for_log(PATIENCE, "in the middle").await?;
    Ok(host)
}

#[tokio::test]
async fn one_sigint_stops_in_good_order() -> TestResult {
    let mut host = consuming(&workspace()?).await?;
    host.sigint()?;
    host.wait_success(PATIENCE).await?;
    assert!(host.log().contains("stopped in good order"), "{}", host.log_tail());
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_at_once_whichever_it_is() -> TestResult {
    type Send = fn(&mut Process) -> Result<()>;
    let cases: [(Send, Send, i32); 3] = [
        (Process::sigterm, Process::sigterm, 143),
        (Process::sigint, Process::sigint, 130),
        (Process::sigint, Process::sigterm, 143),
    ];
    for (first, second, code) in cases {
        let workspace = workspace()?;
        let mut host = busy(&workspace).await?;
        first(&mut host)?;
        host.wait_for_log(PATIENCE, "finishing what has begun").await?;
        second(&mut host)?;
        // The drain alone would take longer.
        let ended = host.wait(Duration::from_secs(15)).await?;
        assert_eq!(ended.code(), Some(code), "{}", host.log_tail());
        assert!(!host.log().contains("stopped in good order"), "{}", host.log_tail());
    }
    Ok(())
}

#[tokio::test]
async fn a_host_that_still_waits_stops_in_good_order() -> TestResult {
    let workspace = workspace()?;
    let _first = consuming(&workspace).await?;
    waits_and_stops(&workspace, "consumes it").await?;
    let config = std::fs::read_to_string(workspace.path("hapax.toml"))?;
    workspace.write("hapax.toml", &config.replace("embedded:", "embedded:no/such/folder/"))?;
    waits_and_stops(&workspace, "waiting for the broker").await
}

async fn waits_and_stops(workspace: &Workspace, waits: &str) -> TestResult {
    let mut host = workspace.host()?;
    host.wait_for_log(PATIENCE, waits).await?;
    host.sigterm()?;
    host.wait_success(PATIENCE).await?;
    assert!(host.log().contains("stopped in good order"), "{}", host.log_tail());
    Ok(())
}
