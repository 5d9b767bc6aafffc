//! `hapax publish`, to the embedded broker and to RabbitMQ.

use hapax_tests::TestResult;
use hapax_tests::servers::shared;
use serde_json::json;

use crate::workspace::{Workspace, snapshot};

/// A workspace whose broker has the queue `orders`.
async fn workspace() -> anyhow::Result<Workspace> {
    use hapax::broker::{Binding, Broker as _, Declare, QueueSpec};
    let workspace = Workspace::embedded("")?;
    let broker = hapax::broker::embedded::Embedded::open(workspace.path("broker.db")).await?;
    let spec = QueueSpec {
        queue: "orders".into(),
        consumer: "test".into(),
        declare: Declare::Create,
        arguments: std::collections::BTreeMap::new(),
        bindings: vec![Binding { exchange: "shop".into(), routing_key: "order.*".into() }],
        prefetch_messages: 1,
        prefetch_bytes: 1,
        ordered: false,
    };
    broker.declare(&spec).await?;
    broker.close().await;
    Ok(workspace)
}

async fn depth(workspace: &Workspace) -> anyhow::Result<Option<u64>> {
    let broker = hapax::broker::embedded::Embedded::open(workspace.path("broker.db")).await?;
    Ok(broker.queue_depth("orders").await?)
}

#[tokio::test]
async fn messages_are_confirmed_or_said_to_have_come_back() -> TestResult {
    let workspace = workspace().await?;
    snapshot!("publish_one", workspace.hapax("publish --queue orders 42")?);
    snapshot!("publish_returned", workspace.hapax("publish --queue nowhere 42 --id a")?);
    snapshot!("publish_refused", workspace.hapax("publish --exchange nowhere --routing-key k 42 --id a")?);
    assert_eq!(depth(&workspace).await?, Some(1));
    Ok(())
}

#[tokio::test]
async fn json_lines_are_published_in_windows() -> TestResult {
    let workspace = workspace().await?;
    let lines: Vec<String> = (0..1000).map(|n| json!({"id": format!("o-{n}"), "body": {"n": n}}).to_string()).collect();
    let args = ["publish", "--exchange", "shop", "-k", "order.created", "--lines", "--window", "64"];
    snapshot!("publish_lines", workspace.run(&args, lines.join("\n").as_bytes())?);
    assert_eq!(depth(&workspace).await?, Some(1000));
    let mixed = "{\"body\": 1}\n\n{\"body\": 2, \"routing_key\": \"lost\"}\n{\"bdy\": 3}\n{\"body\": 4}\n";
    snapshot!("publish_bad_line", workspace.run(&args, mixed.as_bytes())?);
    assert_eq!(depth(&workspace).await?, Some(1001), "what came before the bad line is published");
    Ok(())
}

#[tokio::test]
async fn rabbitmq_confirms_and_returns() -> TestResult {
    let vhost = shared().rabbit().await?.vhost("publish").await?;
    vhost.declare_queue("orders", json!({})).await?;
    let workspace = Workspace::new()?;
    let lines = "{\"id\": \"a\", \"body\": {\"n\": 1}, \"headers\": {\"tenant\": \"x\"}}\n{\"body\": 2, \"routing_key\": \"lost\"}\n";
    let ran = workspace.run(&["publish", "--broker", vhost.url(), "--queue", "orders", "--lines"], lines.as_bytes())?;
    assert_eq!(ran.code, Some(1), "{}", ran.snapshot());
    assert_eq!(ran.out, "2 messages: 1 confirmed, 1 returned\n");
    let found = vhost.take("orders", 10).await?;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].body, b"{\"n\":1}");
    Ok(())
}
