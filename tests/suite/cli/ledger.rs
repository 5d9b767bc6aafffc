//! `hapax migrate`, `import-ids`, and `outbox`.

use hapax_tests::TestResult;

use crate::workspace::{Workspace, snapshot};

const CONSUMER: &str = "[consumers.orders]\nqueue = \"orders\"\nmodule = \"m.wasm\"\n";

#[test]
fn migrations_are_shown_applied_and_then_done() -> TestResult {
    let workspace = Workspace::embedded(CONSUMER)?;
    snapshot!("not_migrated", workspace.hapax("dead list")?);
    snapshot!("migrate_dry_run", workspace.hapax("migrate --dry-run")?);
    assert!(!workspace.path("shop.db").exists(), "a dry run makes no file");
    snapshot!("migrate", workspace.hapax("migrate")?);
    snapshot!("migrate_again", workspace.hapax("migrate")?);
    snapshot!("migrate_dry_run_again", workspace.hapax("migrate --dry-run")?);
    Ok(())
}

#[test]
fn each_distinct_database_is_migrated_and_one_that_fails_does_not_stop_the_others() -> TestResult {
    let other = "[consumers.mail]\nqueue = \"mail\"\nmodule = \"m.wasm\"\ndatabase = \"sqlite://missing/mail.db\"\n\
                 [consumers.mail2]\nqueue = \"mail2\"\nmodule = \"m.wasm\"\ndatabase = \"sqlite://mail.db\"\n";
    let workspace = Workspace::embedded(&format!("{CONSUMER}{other}"))?;
    snapshot!("migrate_several", workspace.hapax("migrate")?);
    Ok(())
}

#[test]
fn imported_ids_are_counted_once() -> TestResult {
    let workspace = Workspace::embedded(CONSUMER)?;
    workspace.hapax("migrate")?.expect_success()?;
    let many: String = (0..2500).map(|n| format!("order-{n}\n")).collect();
    snapshot!("import_ids", workspace.run(&["import-ids", "orders"], format!("{many}order-0\r\n\n").as_bytes())?);
    snapshot!("import_ids_again", workspace.run(&["import-ids", "orders", "-"], many.as_bytes())?);
    let bad = [b"good\n".as_slice(), &[b'x'; 256], b"\n\xff\nnul\0\n", b"last"].concat();
    workspace.write("ids.txt", "")?;
    std::fs::write(workspace.path("ids.txt"), bad)?;
    snapshot!("import_ids_bad", workspace.hapax("import-ids orders ids.txt")?);
    snapshot!("explain_imported", workspace.hapax("explain orders order-7")?);
    snapshot!("explain_unknown", workspace.hapax("explain orders Order-7")?);
    snapshot!("outbox_empty", workspace.hapax("outbox stats orders")?);
    Ok(())
}
