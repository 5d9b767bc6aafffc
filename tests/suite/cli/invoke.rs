//! `hapax invoke`, with real handlers.

use hapax_tests::TestResult;

use crate::workspace::{Workspace, guest, snapshot};

const SCHEMA: &str = "CREATE TABLE stock (goods_id INTEGER PRIMARY KEY, quantity INTEGER NOT NULL);\n\
    CREATE TABLE refused_order (message_id TEXT PRIMARY KEY, goods_id INTEGER, quantity INTEGER, reason TEXT);\n\
    CREATE TABLE log (name TEXT, value TEXT);\n\
    CREATE TRIGGER watch AFTER UPDATE ON stock BEGIN INSERT INTO log VALUES ('old', OLD.quantity); SELECT 1; END;\n\
    INSERT INTO stock VALUES (1234567890123456789, 10);\n";

fn workspace() -> anyhow::Result<Workspace> {
    let workspace = Workspace::new()?;
    workspace.write("schema.sql", SCHEMA)?;
    workspace.write("order.json", r#"{"goods_id": 1234567890123456789, "quantity": 3}"#)?;
    Ok(workspace)
}

fn reduce_stock(rest: &str) -> String {
    format!("invoke {} --message order.json --schema schema.sql --id order-1 {rest}", guest("reduce_stock").display())
}

#[test]
fn a_handler_runs_once_and_everything_it_did_is_shown() -> TestResult {
    let workspace = workspace()?;
    snapshot!("invoke_ok", workspace.hapax(&reduce_stock(""))?);
    Ok(())
}

#[test]
fn a_refusal_is_shown_with_what_would_follow() -> TestResult {
    let workspace = workspace()?;
    workspace.write("order.json", r#"{"goods_id": 1234567890123456789, "quantity": 11}"#)?;
    snapshot!("invoke_refused", workspace.hapax(&reduce_stock(""))?);
    snapshot!("invoke_compensate", workspace.hapax(&reduce_stock("--compensate --code out-of-stock"))?);
    Ok(())
}

#[test]
fn what_is_not_granted_is_denied() -> TestResult {
    let workspace = workspace()?;
    snapshot!("invoke_denied_table", workspace.hapax(&reduce_stock("--grant stock=select"))?);
    snapshot!("invoke_denied_exchange", workspace.hapax(&reduce_stock("--grant publish:events=#"))?);
    Ok(())
}

#[test]
fn hostile_handlers_end_in_words() -> TestResult {
    let workspace = workspace()?;
    let chaos = guest("chaos");
    let chaos = chaos.display();
    for (name, body) in [
        ("invoke_panic", r#"{"do": [{"print": "before"}, {"stderr": "\u001b[2Jhello"}, {"panic": "on purpose"}]}"#),
        ("invoke_wrong_sql", r#"{"do": [{"sql": "INSERT INTO log (nam) VALUES (?)", "params": ["x"]}]}"#),
        ("invoke_hapax_table", r#"{"do": [{"query": "SELECT * FROM hapax_inbox"}]}"#),
        (
            "invoke_values",
            r#"{"do": [{"sql": "INSERT INTO log VALUES (?, ?)", "params": [null, "it's\n"]}, {"many": "INSERT INTO log VALUES (?, ?)", "rows": [["a", "b"], ["c", "d"]]}, {"query": "SELECT * FROM log"}]}"#,
        ),
    ] {
        workspace.write("message.json", body)?;
        let ran = workspace.hapax(&format!("invoke {chaos} --message message.json --schema schema.sql --id m"))?;
        assert!(!ran.out.contains('\u{1b}'), "{name}");
        let mut settings = insta::Settings::clone_current();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        // Which functions a guest died in, and where they lie in it, are its toolchain's matter; log lines are the clock's.
        let (frames, lines): (Vec<String>, Vec<String>) = ran
            .snapshot()
            .lines()
            .filter(|line| !line.contains("  at ") && !line.contains("hapax::guest") && !line.contains(".rs:"))
            .map(str::to_owned)
            .partition(|line| is_frame(line));
        let text = lines.join("\n").replace("wasm backtrace:", "wasm backtrace: [FRAMES]");
        assert_eq!(frames.is_empty(), !text.contains("[FRAMES]"), "{name}");
        settings.bind(|| insta::assert_snapshot!(name, text));
    }
    Ok(())
}

/// `  12:  0x1bbda - chaos.wasm!name`
fn is_frame(line: &str) -> bool {
    let number = line.trim_start().split(':').next().unwrap_or_default();
    line.contains(" - ") && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[test]
fn what_cannot_run_is_explained() -> TestResult {
    let workspace = workspace()?;
    workspace.write("wrong.sql", "CREATE TABLE t (id BIGINT AUTO_INCREMENT);")?;
    let module = guest("reduce_stock");
    let line = format!("invoke {} --message order.json --schema wrong.sql", module.display());
    snapshot!("invoke_wrong_schema", workspace.hapax(&line)?);
    snapshot!("invoke_no_module", workspace.hapax("invoke missing.wasm --message order.json")?);
    snapshot!("invoke_no_message", workspace.hapax(&format!("invoke {} --message missing.json", module.display()))?);
    snapshot!("invoke_wrong_grant", workspace.hapax("invoke m.wasm --message order.json --grant stock=drop")?);
    Ok(())
}

#[test]
fn a_committed_call_counts_like_a_handled_message() -> TestResult {
    let module = guest("reduce_stock");
    let workspace = Workspace::embedded(&format!(
        "[consumers.reduce-stock]\nqueue = \"orders\"\nmodule = \"{}\"\ndeclare = \"create\"\n\
         grants = {{ tables = {{ stock = [\"select\", \"update\"] }}, publish = [{{ exchange = \"shop\", routing_key = \"#\" }}] }}\n",
        module.display()
    ))?;
    workspace.write("order.json", r#"{"goods_id": 1234567890123456789, "quantity": 3}"#)?;
    workspace.hapax("migrate")?.expect_success()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let path = workspace.path("shop.db").display().to_string();
    runtime.block_on(run_sql(&path, "CREATE TABLE stock (goods_id INTEGER PRIMARY KEY, quantity INTEGER); INSERT INTO stock VALUES (1234567890123456789, 10)"))?;
    let line = |more: &str| {
        format!("invoke {} --message order.json --consumer reduce-stock --id o-1 {more}", module.display())
    };

    workspace.hapax(&line(""))?.expect_success()?;
    assert_eq!(runtime.block_on(number(&path, "SELECT quantity FROM stock"))?, 10, "rolled back");
    snapshot!("invoke_commit", workspace.hapax(&line("--commit"))?);
    assert_eq!(runtime.block_on(number(&path, "SELECT quantity FROM stock"))?, 7);
    assert_eq!(runtime.block_on(number(&path, "SELECT COUNT(*) FROM hapax_outbox"))?, 1);
    snapshot!("invoke_commit_again", workspace.hapax(&line("--commit"))?);
    assert_eq!(runtime.block_on(number(&path, "SELECT quantity FROM stock"))?, 7, "once");
    snapshot!("explain_handled", workspace.hapax("explain reduce-stock o-1")?);
    Ok(())
}

async fn run_sql(path: &str, sql: &'static str) -> anyhow::Result<()> {
    use sqlx::Connection as _;
    let mut connection = sqlx::SqliteConnection::connect(path).await?;
    sqlx::raw_sql(sql).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

async fn number(path: &str, sql: &'static str) -> anyhow::Result<i64> {
    use sqlx::Connection as _;
    let mut connection = sqlx::SqliteConnection::connect(path).await?;
    Ok(sqlx::query_scalar(sql).fetch_one(&mut connection).await?)
}
