//! Help texts, versions, and what wrong usage gets.

use std::io::Read as _;
use std::process::{Command, Stdio};

use hapax_tests::TestResult;
use hapax_tests::proc::hapax_bin;

use crate::workspace::{Workspace, snapshot};

#[test]
fn every_command_explains_itself() -> TestResult {
    let workspace = Workspace::new()?;
    for (name, line) in [
        ("help", "--help"),
        ("help_short", "-h"),
        ("help_run", "run --help"),
        ("help_check", "check --help"),
        ("help_new", "new --help"),
        ("help_invoke", "invoke --help"),
        ("help_publish", "publish --help"),
        ("help_dead", "dead --help"),
        ("help_dead_list", "dead list --help"),
        ("help_dead_show", "dead show --help"),
        ("help_dead_redrive", "dead redrive --help"),
        ("help_dead_discard", "dead discard --help"),
        ("help_explain", "explain --help"),
        ("help_outbox", "outbox --help"),
        ("help_migrate", "migrate --help"),
        ("help_topology", "topology --help"),
        ("help_import_ids", "import-ids --help"),
    ] {
        let ran = workspace.hapax(line)?.expect_success()?;
        let mut settings = insta::Settings::clone_current();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name, ran.snapshot()));
    }
    Ok(())
}

#[test]
fn the_version_says_what_it_was_built_from() -> TestResult {
    let workspace = Workspace::new()?;
    let short = workspace.hapax("-V")?.expect_success()?.out;
    assert_eq!(short, format!("hapax {}\n", env!("CARGO_PKG_VERSION")));
    let long = workspace.hapax("--version")?.expect_success()?.out;
    assert!(long.starts_with(short.trim_end()), "{long}");
    for label in
        ["commit ", "compiler  rustc 1.", "engine    wasmtime ", "contract  hapax:handler@", "tested    RabbitMQ "]
    {
        assert!(long.contains(&format!("\n{label}")), "{label:?} in {long}");
    }
    Ok(())
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_to_do() -> TestResult {
    let workspace = Workspace::embedded("")?;
    snapshot!("usage_unknown_command", workspace.hapax("redrive")?);
    snapshot!("usage_dead_redrive_everything", workspace.hapax("dead redrive")?);
    snapshot!("usage_publish_nowhere", workspace.hapax("publish body")?);
    snapshot!("usage_commit_needs_a_consumer", workspace.hapax("invoke m.wasm --message m.json --commit")?);
    snapshot!("usage_unknown_consumer", workspace.hapax("explain orders 1")?);
    snapshot!("usage_no_config", workspace.hapax("migrate -c missing.toml")?);
    Ok(())
}

#[test]
fn a_reader_that_goes_away_is_no_error() -> TestResult {
    let workspace = Workspace::embedded("")?;
    let mut command = Command::new(hapax_bin()?);
    command.args(["migrate", "--dry-run"]).current_dir(workspace.path("")).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    drop(child.stdout.take());
    let mut errors = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut errors)?;
    }
    assert!(child.wait()?.success(), "{errors}");
    assert!(!errors.contains("panicked") && !errors.contains("error"), "{errors}");
    Ok(())
}
