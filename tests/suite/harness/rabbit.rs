//! RabbitMQ: start, crash, end, and what the suites do with its virtual hosts.

use std::time::Duration;

use hapax_tests::servers::{Rabbit, alive, descendants, shared};
use hapax_tests::vhost::Message;
use hapax_tests::{TestResult, wait_until};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn persistent_messages_survive_a_crash_in_order() -> TestResult {
    let Some(mut server) = Rabbit::private().await? else { return Ok(()) };
    assert_eq!(server.pid()?, server.node_pid().await?, "the process started is the node, no shell before it");
    let vhost = server.vhost("crash").await?;
    vhost.declare_queue("orders", json!({})).await?;
    let messages = (0..1000).map(|n| Message::to_queue("orders", Some(&n.to_string()), format!("order {n}")));
    assert_eq!(vhost.publish(messages).await?, 0);
    server.write_declarations().await?;

    let family = [vec![server.pid()?], descendants(server.pid()?)].concat();
    server.kill9().await?;
    assert!(family.iter().all(|&pid| !alive(pid)), "the whole family is gone: {family:?}");
    assert!(vhost.connect().await.is_err(), "nothing answers while it is dead");

    server.restart().await?;
    let found = vhost.take("orders", 2000).await?;
    let bodies: Vec<_> = found.iter().map(|message| String::from_utf8_lossy(&message.body)).collect();
    assert_eq!(bodies, (0..1000).map(|n| format!("order {n}")).collect::<Vec<_>>());

    let (pid, directory) = (server.pid()?, server.directory().map(std::path::Path::to_owned));
    server.stop().await?;
    assert!(!alive(pid));
    drop(server);
    assert!(directory.is_some_and(|directory| !directory.exists()), "the port mapper and the files are gone too");
    Ok(())
}

#[tokio::test]
async fn a_virtual_host_is_one_tests_own() -> TestResult {
    let server = shared().rabbit().await?;
    let (one, other) = (server.vhost("own").await?, server.vhost("own").await?);
    assert_ne!(one.url(), other.url());
    one.declare_queue("orders", json!({})).await?;
    assert!(one.queue_exists("orders").await?);
    assert!(!other.queue_exists("orders").await?);
    Ok(())
}

#[tokio::test]
async fn a_moved_message_keeps_all_its_properties() -> TestResult {
    let vhost = shared().rabbit().await?.vhost("move").await?;
    vhost.declare_queue("dead", json!({})).await?;
    vhost.declare_queue("orders", json!({})).await?; // a quorum queue would add its `x-delivery-count`
    let mut inner = FieldTable::default();
    inner.insert("when".into(), AMQPValue::Timestamp(1_700_000_000));
    inner.insert("bytes".into(), AMQPValue::ByteArray(vec![0, 255].into()));
    let mut headers = FieldTable::default();
    headers.insert("x-hapax-dead-id".into(), AMQPValue::LongLongInt(7));
    headers.insert("short".into(), AMQPValue::ShortInt(-3));
    headers.insert("list".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(inner)])));
    let mut message = Message::to_queue("dead", Some("id-1"), vec![0xff, 0x00, b'x']);
    message.properties = message.properties.with_headers(headers).with_priority(3).with_type("order".into());
    let properties = message.properties.clone();
    assert_eq!(vhost.publish([message.clone(), message]).await?, 0);

    assert_eq!(vhost.move_messages("dead", "orders").await?, 2);
    let moved = vhost.take("orders", 10).await?;
    assert_eq!(moved.len(), 2);
    assert_eq!(moved[0].properties, properties);
    assert_eq!(moved[0].body, [0xff, 0x00, b'x']);
    assert!(vhost.take("dead", 1).await?.is_empty());

    let error = vhost.publish([Message::to_queue("dead", None, "stays")]).await;
    assert_eq!(error?, 0);
    assert!(vhost.move_messages("dead", "nowhere").await.is_err(), "there is no such queue");
    wait_until(SOON, "the message to be back in its queue", async || {
        vhost.queue("dead").await.is_ok_and(|queue| queue.ready == 1)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn depths_bindings_and_returned_messages_are_seen() -> TestResult {
    let vhost = shared().rabbit().await?.vhost("depths").await?;
    vhost.declare_exchange("shop", "topic").await?;
    vhost.declare_queue("orders", json!({})).await?;
    vhost.bind_queue("shop", "orders", "order.*").await?;
    let to = |key: &str| {
        let mut message = Message::to_queue(key, None, "body");
        message.exchange = "shop".to_owned();
        message
    };
    let returned = vhost.publish([to("order.created"), to("stock.reduced"), to("order.paid")]).await?;
    assert_eq!(returned, 1, "no queue is bound for stock.reduced");

    let connection = vhost.connect().await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(1, Default::default()).await?;
    let _consumer =
        channel.basic_consume("orders".into(), "".into(), Default::default(), FieldTable::default()).await?;
    wait_until(SOON, "one message out and one in", async || {
        let state = vhost.queue("orders").await.unwrap_or_default();
        (state.messages, state.ready, state.unacknowledged, state.consumers) == (2, 1, 1, 1)
    })
    .await?;

    wait_until(SOON, "the connection to be listed", async || {
        vhost.connections().await.is_ok_and(|connections| !connections.is_empty())
    })
    .await?;
    assert_eq!(vhost.close_connections().await?, 1);
    wait_until(SOON, "the client to notice", async || !connection.status().connected()).await?;
    wait_until(SOON, "the message to be given back", async || {
        vhost.queue("orders").await.is_ok_and(|state| state.ready == 2 && state.consumers == 0)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_policy_takes_effect_and_goes() -> TestResult {
    let vhost = shared().rabbit().await?.vhost("policy").await?;
    vhost.declare_queue("orders", json!({})).await?;
    vhost.set_policy("short", "^orders$", json!({ "max-length": 1 })).await?;
    let policy = async || {
        let state = vhost.admin().get(&["queues", vhost.name(), "orders"]).await.unwrap_or_default();
        state["policy"].as_str().map(str::to_owned)
    };
    wait_until(SOON, "the policy to apply", async || policy().await.as_deref() == Some("short")).await?;
    assert_eq!(vhost.publish((0..5).map(|n| Message::to_queue("orders", None, n.to_string()))).await?, 0);
    let left = vhost.take("orders", 10).await?;
    assert_eq!(left.iter().map(|message| &message.body[..]).collect::<Vec<_>>(), [b"4"]);
    vhost.delete_policy("short").await?;
    wait_until(SOON, "the policy to go", async || policy().await.is_none()).await?;
    Ok(())
}

#[tokio::test]
async fn rabbitmqctl_reaches_the_private_node() -> TestResult {
    let server = shared().rabbit().await?;
    if !server.is_private() {
        return crate::not_tested(&server.describe());
    }
    let vhost = server.vhost("ctl").await?;
    let listed = server.ctl(&["list_vhosts", "name"]).await?;
    assert!(listed.lines().any(|line| line == vhost.name()), "{listed}");
    assert!(server.ctl(&["no_such_command"]).await.is_err());
    Ok(())
}
