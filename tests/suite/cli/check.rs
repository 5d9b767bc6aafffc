//! `hapax check`.

use hapax_tests::TestResult;
use hapax_tests::servers::shared;
use sqlx::{AssertSqlSafe, Connection as _};

use crate::workspace::{Workspace, guest, snapshot};

fn reduce_stock() -> String {
    format!(
        "[consumers.reduce-stock]\nqueue = \"orders\"\nmodule = \"{}\"\ndeclare = \"create\"\n\
         [consumers.reduce-stock.grants]\ntables = {{ stock = [\"select\", \"update\"], refused_order = [\"insert\"] }}\n\
         publish = [{{ exchange = \"shop\", routing_key = \"stock.*\" }}]\nconfig = {{ exchange = \"s3cret\" }}\n",
        guest("reduce_stock").display()
    )
}

#[test]
fn a_good_config_is_shown_with_its_modules() -> TestResult {
    let workspace = Workspace::embedded(&reduce_stock())?;
    let ran = workspace.hapax("check")?;
    assert!(!ran.out.contains("s3cret"), "values of grants are nobody's business");
    snapshot!("check_good", ran);
    snapshot!("check_good_connect_before_anything_is_there", workspace.hapax("check --connect")?);
    assert!(!workspace.path("shop.db").exists(), "a check makes no database");
    Ok(())
}

#[test]
fn everything_wrong_with_modules_and_grants_is_told_at_once() -> TestResult {
    let consumers = format!(
        "[consumers.a]\nqueue = \"a\"\nmodule = \"missing.wasm\"\n\
         [consumers.b]\nqueue = \"b\"\nmodule = \"core.wasm\"\n\
         [consumers.c]\nqueue = \"c\"\nmodule = \"{}\"\n",
        guest("reduce_stock").display()
    );
    let workspace = Workspace::embedded(&consumers)?;
    workspace.write("core.wasm", "\0asm\u{1}\0\0\0")?;
    snapshot!("check_bad_modules", workspace.hapax("check")?);
    Ok(())
}

#[test]
fn config_errors_end_with_2_and_hide_passwords() -> TestResult {
    let workspace = Workspace::new()?;
    let config = "[broker]\nurl = \"amqp://shop:hunter2@localhost/%2f\"\npasword = \"hunter2\"\n[database]\nurl = \"mysql2://x\"\n\
                  [consumers.orders]\nqueue = \"orders\"\nconcurency = 4\n";
    workspace.write("hapax.toml", config)?;
    let ran = workspace.hapax("check")?;
    assert!(!ran.err.contains("hunter2"), "{}", ran.err);
    snapshot!("check_config_errors", ran);
    Ok(())
}

#[test]
fn connect_finds_missing_tables_and_queues() -> TestResult {
    let workspace = Workspace::embedded(&reduce_stock().replace("\"create\"", "\"passive\""))?;
    workspace.hapax("migrate")?.expect_success()?;
    snapshot!("check_connect_missing", workspace.hapax("check --connect")?);
    Ok(())
}

/// A user that owns nothing: what it lacks, and the commands that grant it; then those commands, and no problem is left.
#[tokio::test]
async fn missing_rights_come_with_the_commands_that_grant_them_on_postgres() -> TestResult {
    let database = shared().postgres().await?.fresh_database("rights").await?;
    let mut admin = sqlx::PgConnection::connect(database.url()).await?;
    let user = format!("{}_user", database.name());
    for sql in [
        "CREATE TABLE stock (goods_id bigint, quantity bigint)".to_owned(),
        "CREATE TABLE refused_order (message_id text)".to_owned(),
        format!("CREATE ROLE {user} LOGIN PASSWORD 'limited'"),
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC".to_owned(),
        "GRANT SELECT ON stock TO PUBLIC".to_owned(),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await?;
    }
    let mut limited = url::Url::parse(database.url())?;
    limited.set_username(&user).ok();
    limited.set_password(Some("limited")).ok();
    let workspace = Workspace::embedded(&reduce_stock())?;
    let config = std::fs::read_to_string(workspace.path("hapax.toml"))?;
    let set_database = |url: &str| workspace.write("hapax.toml", &config.replace("sqlite://shop.db", url));
    set_database(limited.as_str())?;
    let ran = workspace.hapax("check --connect")?;
    assert_eq!(ran.code, Some(1), "{}", ran.snapshot());
    assert!(ran.out.contains(&format!("GRANT USAGE, CREATE ON SCHEMA public TO {user};")), "{}", ran.out);

    set_database(database.url())?;
    workspace.hapax("migrate")?.expect_success()?;
    set_database(limited.as_str())?;
    let ran = workspace.hapax("check --connect")?;
    assert_eq!(ran.code, Some(1), "{}", ran.snapshot());
    assert!(ran.out.contains(&format!("GRANT UPDATE ON \"stock\" TO {user};")), "{}", ran.out);
    assert!(ran.out.contains(&format!("GRANT INSERT ON \"refused_order\" TO {user};")), "{}", ran.out);
    assert!(!ran.out.contains("limited@"), "{}", ran.out);
    for sql in grants(&ran.out) {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await?;
    }
    // The table of migrations is read with the rights on the others.
    sqlx::query(AssertSqlSafe(format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}")))
        .execute(&mut admin)
        .await?;
    // Now that it can be read, the rights that Hapax itself lacks are told too.
    let ran = workspace.hapax("check --connect")?;
    for sql in grants(&ran.out) {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await?;
    }
    let ran = workspace.hapax("check --connect")?;
    assert_eq!(ran.code, Some(0), "{}", ran.snapshot());
    sqlx::query(AssertSqlSafe(format!("DROP OWNED BY {user}"))).execute(&mut admin).await?;
    sqlx::query(AssertSqlSafe(format!("DROP ROLE {user}"))).execute(&mut admin).await?;
    Ok(())
}

#[tokio::test]
async fn missing_rights_come_with_the_commands_that_grant_them_on_mariadb() -> TestResult {
    let database = shared().mariadb().await?.fresh_database("rights").await?;
    let mut admin = sqlx::MySqlConnection::connect(database.url()).await?;
    let (name, user) = (database.name().to_owned(), format!("u{}", &database.name()[database.name().len() - 12..]));
    for sql in [
        "CREATE TABLE stock (goods_id bigint, quantity bigint)".to_owned(),
        "CREATE TABLE refused_order (message_id varchar(255))".to_owned(),
        format!("CREATE USER '{user}'@'%' IDENTIFIED BY 'limited'"),
        format!("GRANT SELECT ON {name}.stock TO '{user}'@'%'"),
        format!("GRANT SELECT ON {name}.refused_order TO '{user}'@'%'"),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await?;
    }
    let mut limited = url::Url::parse(database.url())?;
    limited.set_username(&user).ok();
    limited.set_password(Some("limited")).ok();
    let workspace = Workspace::embedded(&reduce_stock())?;
    let config = std::fs::read_to_string(workspace.path("hapax.toml"))?;
    let set_database = |url: &str| workspace.write("hapax.toml", &config.replace("sqlite://shop.db", url));
    set_database(limited.as_str())?;
    let ran = workspace.hapax("check --connect")?;
    assert_eq!(ran.code, Some(1), "{}", ran.snapshot());
    assert!(ran.out.contains("seems to have no right to create tables"), "{}", ran.out);

    set_database(database.url())?;
    workspace.hapax("migrate")?.expect_success()?;
    sqlx::query(AssertSqlSafe(format!("GRANT SELECT ON {name}.* TO '{user}'@'%'"))).execute(&mut admin).await?;
    set_database(limited.as_str())?;
    let ran = workspace.hapax("check --connect")?;
    assert_eq!(ran.code, Some(1), "{}", ran.snapshot());
    assert!(ran.out.contains(&format!("GRANT UPDATE ON `stock` TO '{user}'@'%';")), "{}", ran.out);
    assert!(
        ran.out.contains(&format!("GRANT INSERT, UPDATE, DELETE ON `hapax_inbox` TO '{user}'@'%';")),
        "{}",
        ran.out
    );
    for sql in grants(&ran.out) {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await?;
    }
    let ran = workspace.hapax("check --connect")?;
    assert_eq!(ran.code, Some(0), "{}", ran.snapshot());
    sqlx::query(AssertSqlSafe(format!("DROP USER '{user}'@'%'"))).execute(&mut admin).await?;
    Ok(())
}

/// The GRANT commands in an output.
fn grants(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.find("GRANT ").map(|at| line[at..].trim_end_matches(';').to_owned()))
        .collect()
}
