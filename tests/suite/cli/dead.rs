//! `hapax dead` and `hapax explain`, on what a real host made of hostile messages.

use std::time::Duration;

use hapax_tests::TestResult;
use serde_json::{Value, json};

use crate::workspace::{Workspace, guest, snapshot};

fn consumer(rules: &str) -> String {
    format!(
        "[consumers.chaos]\nqueue = \"work\"\nmodule = \"{}\"\ndeclare = \"create\"\nmessage_id = {rules}\n\
         retry = {{ max_attempts = 2, initial_interval = \"10ms\", max_interval = \"10ms\", jitter = 0.0 }}\n\
         grants = {{ publish = [{{ exchange = \"\", routing_key = \"#\" }}] }}\n",
        guest("chaos").display()
    )
}

/// A workspace with four dead letters, and one message handled whose outbox message cannot be delivered.
async fn workspace() -> anyhow::Result<Workspace> {
    let workspace = Workspace::embedded(&consumer("[\"header:order\"]"))?;
    let fail = |code: &str, advice: &str| json!({"fail": {"code": code, "message": "none left", "detail": "stack\ntrace", "advice": advice}});
    let messages = [
        json!({"headers": {"order": "for-good"}, "body": {"do": [fail("out-of-stock", "never")], "compensate": []}}),
        json!({"headers": {"order": "worn-out"}, "body": {"do": [fail("db-down", "policy")], "compensate": [fail("no-refund", "never")]}}),
        json!({"id": "unseen", "body": {"do": []}}),
        json!({"headers": {"order": "publishes"}, "body": {"do": [{"publish": {"routing_key": "nowhere", "body": "x"}}]}}),
        json!({"headers": {"order": "for-good"}, "body": {"do": [{"print": "another body"}]}}),
    ];
    let lines: Vec<String> = messages.iter().map(Value::to_string).collect();
    workspace.hapax("migrate")?.expect_success()?;
    workspace.write("messages.jsonl", &lines.join("\n"))?;
    // The host makes the queue; what is published while it does may arrive in part.
    let mut host = workspace.host()?;
    host.wait_consuming(Duration::from_secs(90)).await?;
    workspace.hapax("publish --queue work --lines messages.jsonl")?.expect_success()?;
    host.terminate(Duration::from_secs(30)).await?;
    workspace.host_until_dead(4).await?;
    Ok(workspace)
}

/// The ids of dead letters by reason.
fn id(workspace: &Workspace, reason: &str) -> anyhow::Result<String> {
    let ran = workspace.hapax(&format!("dead list --json --reason {reason}"))?.expect_success()?;
    let row: Value = serde_json::from_str(ran.out.lines().next().unwrap_or_default())?;
    Ok(row["id"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn dead_letters_are_listed_shown_redriven_and_discarded_and_all_of_it_twice() -> TestResult {
    let workspace = workspace().await?;
    snapshot!("dead_list", workspace.hapax("dead list")?);
    snapshot!("dead_list_filtered", workspace.hapax("dead list --consumer chaos --code no-refund --since 1h")?);
    snapshot!("dead_list_none", workspace.hapax("dead list --until 2020-01-01")?);
    snapshot!("dead_list_limit", workspace.hapax("dead list --limit 1")?);
    let compensated = id(&workspace, "permanent")?;
    snapshot!("dead_show", workspace.hapax(&format!("dead show {}", &compensated[..34]))?);
    let whole: Value =
        serde_json::from_str(&workspace.hapax(&format!("dead show {compensated} --json"))?.expect_success()?.out)?;
    let body = workspace.hapax(&format!("dead show {compensated} --body"))?.expect_success()?.out;
    assert_eq!(whole["body"], Value::String(body));
    snapshot!("dead_show_ambiguous", workspace.hapax("dead show 0")?);
    snapshot!("dead_show_unknown", workspace.hapax("dead show ffff")?);

    snapshot!("explain_dead", workspace.hapax("explain chaos for-good")?);
    snapshot!("explain_compensation_failed", workspace.hapax("explain chaos worn-out")?);
    snapshot!("explain_outbox", workspace.hapax("explain chaos publishes")?);

    snapshot!("redrive_dry_run", workspace.hapax("dead redrive --all --dry-run")?);
    snapshot!("redrive_all", workspace.hapax("dead redrive --consumer chaos --rate 2/s")?);
    snapshot!("redrive_all_again", workspace.hapax("dead redrive --consumer chaos --rate 2/s")?);
    snapshot!("redrive_one_again", workspace.hapax(&format!("dead redrive {}", id(&workspace, "no-id")?))?);
    snapshot!("explain_redriven", workspace.hapax("explain chaos worn-out")?);
    snapshot!("redrive_forced", workspace.hapax(&format!("dead redrive {compensated} --force"))?);
    snapshot!("redrive_forced_again", workspace.hapax(&format!("dead redrive {compensated} --force"))?);

    let unseen = id(&workspace, "no-id")?;
    snapshot!("discard", workspace.hapax(&format!("dead discard {unseen}"))?);
    snapshot!("discard_again", workspace.hapax(&format!("dead discard {unseen}"))?);
    let outbox = workspace.hapax("outbox stats chaos")?.expect_success()?.out;
    let expected = "0 messages wait to be published\n1 message is undeliverable, the oldest for ";
    assert!(outbox.starts_with(expected), "{outbox}");
    snapshot!("outbox_retry", workspace.hapax("outbox retry chaos")?);
    Ok(())
}

/// The rules of the config as it is now decide about messages that had no id.
#[tokio::test]
async fn a_message_without_an_id_is_redriven_under_todays_rules() -> TestResult {
    let workspace = workspace().await?;
    let config = std::fs::read_to_string(workspace.path("hapax.toml"))?;
    workspace.write("hapax.toml", &config.replace("[\"header:order\"]", "[\"header:order\", \"property\"]"))?;
    let unseen = id(&workspace, "no-id")?;
    let ran = workspace.hapax(&format!("dead redrive {unseen}"))?.expect_success()?;
    assert_eq!(ran.out, "1 dead letter redriven\n");
    workspace
        .host_until("it to be handled", || Ok(workspace.hapax("explain chaos unseen")?.out.contains("Handled: ")))
        .await?;
    Ok(())
}
