//! `hapax topology`.

use hapax_tests::TestResult;
use hapax_tests::servers::shared;

use crate::workspace::{Workspace, snapshot};

const CONSUMERS: &str = r#"
[consumers.reduce-stock]
queue = "orders"
module = "m.wasm"
declare = "create"
arguments = { x-queue-type = "quorum", x-max-length = 1000, x-single-active-consumer = true }
bindings = [{ exchange = "shop", routing_key = "order.created" }]
dead_letter = { exchange = "", routing_key = "orders.dead" }
grants = { publish = [{ exchange = "events", routing_key = "stock.*" }, { exchange = "", routing_key = "audit" }] }
[consumers.mail]
queue = "mail"
module = "m.wasm"
dead_letter = { exchange = "dead", routing_key = "mail" }
"#;

#[test]
fn what_the_broker_must_have_is_shown() -> TestResult {
    let workspace = Workspace::embedded(CONSUMERS)?;
    snapshot!("topology_text", workspace.hapax("topology")?);
    snapshot!("topology_definitions", workspace.hapax("topology --format definitions")?);
    let config = std::fs::read_to_string(workspace.path("hapax.toml"))?;
    workspace.write("hapax.toml", &config.replace("embedded:broker.db", "amqp://localhost"))?;
    let shown = workspace.hapax("topology")?.expect_success()?.out;
    assert!(shown.contains("exchange \"shop\": must exist"), "nobody makes exchanges on RabbitMQ: {shown}");
    Ok(())
}

#[tokio::test]
async fn rabbitmq_imports_the_definitions() -> TestResult {
    let server = shared().rabbit().await?;
    if !server.is_private() {
        println!("not tested on a server of the user's own: rabbitmqctl runs beside its node");
        return Ok(());
    }
    let vhost = server.vhost("topology").await?;
    let workspace = Workspace::embedded(CONSUMERS)?;
    let config = std::fs::read_to_string(workspace.path("hapax.toml"))?;
    workspace.write("hapax.toml", &config.replace("embedded:broker.db", vhost.url()))?;
    let definitions = workspace.hapax("topology --format definitions")?.expect_success()?.out;
    workspace.write("definitions.json", &definitions)?;
    // The node reads it, as a user of its own.
    let file = workspace.path("definitions.json").display().to_string();
    server.ctl(&["import_definitions", &file]).await?;
    for queue in ["orders", "orders.dead", "audit", "mail"] {
        assert!(vhost.queue_exists(queue).await?, "{queue}");
    }
    let bindings = vhost.admin().get(&["bindings", vhost.name(), "e", "shop", "q", "orders"]).await?;
    assert_eq!(bindings[0]["routing_key"], "order.created");
    let queue = vhost.admin().get(&["queues", vhost.name(), "orders"]).await?;
    assert_eq!((&queue["arguments"]["x-max-length"], &queue["type"]), (&1000.into(), &"quorum".into()));
    Ok(())
}
