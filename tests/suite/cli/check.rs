//! `hapax check`.

use std::time::Duration;

use anyhow::Context as _;
use hapax_tests::TestResult;
use hapax_tests::servers::{Rabbit, Redis, shared};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _};

use crate::workspace::{Workspace, guest, snapshot, text_snapshot};

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

/// What stands between the heading of the broker and that of the lock.
fn about_the_broker(output: &str) -> String {
    let lines = output.lines().skip_while(|line| !line.starts_with("broker "));
    lines.take_while(|line| !line.starts_with("lock ")).collect::<Vec<_>>().join("\n")
}

/// The arguments of the last `rabbitmqctl set_permissions` in an output: configure, write, read.
fn permissions(output: &str) -> anyhow::Result<serde_json::Value> {
    let command =
        output.lines().rev().find(|line| line.contains("rabbitmqctl set_permissions")).context("no command")?;
    let mut patterns = command.split(' ').rev().map(|word| word.trim_matches('\''));
    let mut next = || patterns.next().context("a pattern");
    let (read, write, configure) = (next()?, next()?, next()?);
    Ok(json!({ "configure": configure, "write": write, "read": read }))
}

/// A user that may do nothing at the broker: what it lacks, and the command that grants it; then that command, and
/// nothing is left but a queue that is not there. None of the questions leaves a trace.
#[tokio::test]
async fn missing_rights_come_with_the_command_that_grants_them_on_rabbitmq() -> TestResult {
    let vhost = shared().rabbit().await?.vhost("rights").await?;
    let (admin, user) = (vhost.admin(), format!("{}-user", vhost.name()));
    vhost.declare_queue("orders", json!({ "x-max-length": 1000 })).await?;
    vhost.declare_queue("audit", json!({})).await?;
    vhost.declare_exchange("shop", "topic").await?;
    vhost.bind_queue("shop", "orders", "order.*").await?;
    vhost.bind_queue("shop", "audit", "#").await?;
    admin.create_user(&user, "limited").await?;
    let none = json!({ "configure": "^$", "write": "^$", "read": "^$" });
    admin.set_permissions(vhost.name(), &user, &none).await?;

    let mut url = url::Url::parse(vhost.url())?;
    url.set_username(&user).ok();
    url.set_password(Some("limited")).ok();
    let consumer = reduce_stock()
        .replace(
            "declare = \"create\"",
            "declare = \"create\"\narguments = { x-max-length = 1000 }\n\
            bindings = [{ exchange = \"shop\", routing_key = \"order.*\" }]\n\
            dead_letter = { routing_key = \"orders.dead\" }",
        )
        .replace("publish = [", "publish = [{ exchange = \"nowhere\", routing_key = \"x\" }, ");
    let workspace = Workspace::embedded(&consumer)?;
    let config = std::fs::read_to_string(workspace.path("hapax.toml"))?;
    workspace.write("hapax.toml", &config.replace("embedded:broker.db", url.as_str()))?;
    let address = format!("127.0.0.1:{}/{}", url.port().unwrap_or(5672), vhost.name());
    let masked = |text: &str| {
        let text = about_the_broker(text).replace(&address, "[ADDRESS]").replace(&user, "[USER]");
        let lines = text.replace(vhost.name(), "[VHOST]");
        let server =
            |line: &str| if line.starts_with("  server ") { "  server [VERSION]".to_owned() } else { line.to_owned() };
        lines.lines().map(server).collect::<Vec<_>>().join("\n")
    };

    let ran = workspace.hapax("check --connect")?;
    assert_eq!(ran.code, Some(1), "{}", ran.snapshot());
    assert!(!ran.out.contains("limited"), "{}", ran.out);
    text_snapshot!("check_rights_at_rabbitmq", masked(&ran.out));
    admin.set_permissions(vhost.name(), &user, &permissions(&ran.out)?).await?;
    let ran = workspace.hapax("check --connect")?;
    text_snapshot!("check_rights_at_rabbitmq_granted", masked(&ran.out));
    vhost.declare_queue("orders.dead", json!({})).await?;
    vhost.declare_exchange("nowhere", "topic").await?;

    // Asked again with all rights, and nothing was declared, bound, unbound, published or taken by any of it.
    vhost.publish([order()]).await?;
    let bindings = async || admin.get(&["bindings", vhost.name()]).await;
    let before = bindings().await?;
    let ran = workspace.hapax("check --connect")?;
    assert!(!about_the_broker(&ran.out).contains("problem"), "{}", ran.snapshot());
    assert_eq!(bindings().await?, before);
    for queue in ["orders", "audit"] {
        let taken = vhost.take(queue, 10).await?;
        assert_eq!(taken.len(), 1, "{queue}");
    }
    assert_eq!(vhost.take("orders.dead", 10).await?.len(), 0);
    vhost.delete_queue("orders").await?;
    let ran = workspace.hapax("check --connect")?;
    assert!(about_the_broker(&ran.out).contains("not there yet"), "{}", ran.snapshot());
    assert!(!vhost.queue_exists("orders").await?);
    admin.delete(&["users", &user]).await?;
    Ok(())
}

fn order() -> hapax_tests::vhost::Message {
    hapax_tests::vhost::Message {
        exchange: "shop".to_owned(),
        routing_key: "order.created".to_owned(),
        properties: lapin::BasicProperties::default(),
        body: b"{}".to_vec(),
    }
}

#[tokio::test]
async fn a_lock_user_without_rights_is_told_the_command_that_grants_them() -> TestResult {
    let Some(server) = Redis::private().await? else { return Ok(()) };
    let mut admin = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    let mut setuser = redis::cmd("ACL");
    setuser.arg("SETUSER").arg("shop").arg("on").arg(">limited").arg("+ping");
    let () = setuser.query_async(&mut admin).await?;
    let workspace = Workspace::embedded(&reduce_stock())?;
    let config = std::fs::read_to_string(workspace.path("hapax.toml"))?;
    let url = server.url().replace("redis://", "redis://shop:limited@");
    workspace.write("hapax.toml", &config.replace("local:", &url))?;
    let ran = workspace.hapax("check --connect")?;
    assert_eq!(ran.code, Some(1), "{}", ran.snapshot());
    assert!(ran.out.contains("ACL SETUSER <user> ~hapax:* +evalsha"), "{}", ran.out);
    let mut setuser = redis::cmd("ACL");
    setuser.arg("SETUSER").arg("shop").arg("~hapax:*");
    setuser.arg(&["+evalsha", "+eval", "+set", "+pttl", "+get", "+pexpire", "+del"]);
    let () = setuser.query_async(&mut admin).await?;
    let ran = workspace.hapax("check --connect")?;
    assert_eq!(ran.code, Some(0), "{}", ran.snapshot());
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut admin).await?;
    assert!(keys.is_empty(), "{keys:?}");
    Ok(())
}

#[tokio::test]
async fn servers_with_tls_are_trusted_by_the_authority_that_is_named() -> TestResult {
    let (Some(rabbit), Some(redis)) = (Rabbit::private().await?, Redis::private().await?) else { return Ok(()) };
    let (broker, lock) = (rabbit.tls().context("TLS")?, redis.tls().context("TLS")?);
    let workspace = Workspace::embedded("")?;
    let config = std::fs::read_to_string(workspace.path("hapax.toml"))?;
    let config = config.replace("embedded:broker.db", &format!("amqps://guest:guest@127.0.0.1:{}/%2f", broker.port));
    workspace.write("hapax.toml", &config.replace("local:", &format!("rediss://127.0.0.1:{}", lock.port)))?;
    let ran = workspace.hapax("check --connect")?;
    assert_eq!(ran.code, Some(1), "{}", ran.snapshot());
    assert_eq!(ran.out.matches("name its file in SSL_CERT_FILE").count(), 2, "{}", ran.out);

    // The system's own file of authorities is such a list too.
    let both = [std::fs::read_to_string(broker.authority)?, std::fs::read_to_string(lock.authority)?].concat();
    workspace.write("authorities.pem", &both)?;
    let trusted = workspace.path("authorities.pem");
    let ran = workspace.run_with(&[("SSL_CERT_FILE", &trusted)], &["check", "--connect"], b"")?;
    assert_eq!(ran.code, Some(0), "{}", ran.snapshot());
    assert!(ran.out.contains("RabbitMQ ") && ran.out.contains("Redis "), "{}", ran.out);
    Ok(())
}

/// What is waited for and what mends it are in the log, and not only in `hapax check`.
#[tokio::test]
async fn a_host_that_waits_for_its_queue_says_what_makes_one() -> TestResult {
    let workspace = Workspace::embedded(&reduce_stock().replace("\"create\"", "\"passive\""))?;
    let mut host = workspace.host()?;
    let patience = Duration::from_secs(60);
    host.wait_for_log(patience, "there is no other way to create a queue of the embedded broker").await?;
    host.terminate(patience).await?;
    Ok(())
}

/// The GRANT commands in an output.
fn grants(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.find("GRANT ").map(|at| line[at..].trim_end_matches(';').to_owned()))
        .collect()
}
